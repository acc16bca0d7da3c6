"""How stiff the layers of a run's weights are, read as BERT: what im_consistency asks them to be less of.

With x the input of a layer F, f(h) = F(h) - h and y0 = x + f(x), BERT's own step:

    stiffness  ||f(y0) - f(x)|| / ||f(x)||, how much a step changes when f is taken at its end; of all tokens
    first      the same of the first token, which the head reads
    moved      ||h' - h|| / ||h|| of the first token's state h after the layer and h' of the same text with typos
    radius     the spectral radius of dF/dh at x, of the last two layers

Each is a mean over rows, in float32.
"""

from collections.abc import Iterable
from typing import Any

import numpy
import torch
from torch import Tensor

from imbert_hf.evaluation.attacks.noise import perturb
from imbert_hf.evaluation.cost.variants import plain_bert
from imbert_hf.evaluation.data.classifier import Classifier
from imbert_hf.evaluation.data.tasks import Row
from imbert_hf.evaluation.stability.layers import plain_layers
from imbert_hf.evaluation.stability.spectrum import Map, leading_eigenvalues
from study.plan import STRENGTH
from study.scores import Cell
from study.tables import Line, Table, spread


TYPOS = ("keyboard", "swap", "deletion")
Steps = list[tuple[Map, Tensor, Tensor]]  # of one text: each layer's F, x and y0, (1, length, hidden)
SPECTRA = 2  # rows, the shortest, and layers, the last: an eigenvalue takes some hundred products


def measure_layers(classifier: Classifier, rows: list[Row]) -> dict[str, Any]:
    """name -> a list over the layers; of clean texts and of those with typos where both are measured."""
    model = plain_bert(classifier.model)

    def ask(texts: Iterable[str]) -> Steps:
        return steps(model, classifier.collate(classifier.encode([tuple(texts)])))

    clean = [ask(row.texts) for row in rows]
    noisy = [ask(perturb(text, kind, STRENGTH, seed=0) for text in row.texts) for kind in TYPOS for row in rows]
    pairs = zip(clean * len(TYPOS), noisy, strict=True)
    moved = [[first_token(h, w) for (_, _, h), (_, _, w) in zip(*pair, strict=True)] for pair in pairs]
    found = {"moved": means(moved)}
    of_each_kind = [noisy[i % len(TYPOS) * len(rows) + i] for i in range(len(rows))]
    for name, texts in {"clean": clean, "typos": of_each_kind}.items():
        both = [stiffness(layers) for layers in texts]
        found |= {f"stiffness, {name}": means([every for every, _ in both])}
        found |= {f"first, {name}": means([first for _, first in both])}
        short = sorted(texts, key=lambda layers: layers[0][1].shape[1])[:SPECTRA]
        found |= {f"radius, {name}": means([radii(layers) for layers in short])}
    return found


@torch.no_grad()
def steps(model: Any, inputs: dict[str, Tensor]) -> Steps:
    return [(F, x, F(x)) for F, x in plain_layers(model, inputs)]


@torch.no_grad()
def stiffness(layers: Steps) -> tuple[list[float], list[float]]:
    """Of all tokens, and of the first."""
    changes = [(F(y0) - 2 * y0 + x, y0 - x) for F, x, y0 in layers]
    every = [float(change.norm() / step.norm()) for change, step in changes]
    return every, [float(change[0, 0].norm() / step[0, 0].norm()) for change, step in changes]


def radii(layers: Steps) -> list[float]:
    found = [leading_eigenvalues(F, x, count=2).radius for F, x, _ in layers[-SPECTRA:]]
    return [numpy.nan if radius is None else radius for radius in found]


def first_token(h: Tensor, moved: Tensor) -> float:
    return float((moved[0, 0] - h[0, 0]).norm() / h[0, 0].norm())


def means(rows: list[list[float]]) -> list[float]:
    return [round(value, 5) for value in numpy.nanmean(rows, axis=0).tolist()]


def layers_table(title: str, note: str, cells: list[Cell]) -> Table:
    """A line a model, of the last layer."""
    lines: list[Line] = []
    for cell in cells:
        made = cell.of_stage("layers")
        line = {"": cell.model, "seeds": f"{len(made)} of {len(cell.kept)}"}
        for name in made[0] if made else ():
            line[name] = spread([layers[name][-1] for layers in made], 2)
        lines.append(line)
    return Table(title, note, cells, lines, {}, {}, "layers")
