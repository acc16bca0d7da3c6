"""The bounds for a GPU: a BERT-base shape, all layers implicit with T 3 unless a row says otherwise.

Inference has bfloat16 weights, and a training step float32 weights under bfloat16 autocast with dropout. Every row is
held against plain BERT, torchdeq or a row of its own kind, measured in turn with it in the same run.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from bench import Record, record
from references import find_torchdeq, with_references
from torch import Tensor
from tqdm.auto import tqdm

from imbert_hf.evaluation.attacks.ascent import Batch
from imbert_hf.evaluation.cost.measures import interleave, peak_bytes, ratio, timed, waiting
from imbert_hf.evaluation.cost.settings import make_batch
from imbert_hf.evaluation.cost.variants import BERT_STEP, EVALUATION, Variant


WIDE, ONE, MANY = (32, 128), (1, 16), (128, 128)
ENOUGH = 50  # forwards that a captured graph or an allocator has settled after


@dataclass(frozen=True)
class Row:
    """What is measured, and the most that it may be of what it is held `against`.

    Attributes:
        phase: "inference", "training", or "memory", the peak of a training step.
        shape: rows and tokens.
        layers: implicit ones, from the last one down; None: all.
        graph: replay the forward as one CUDA graph.
        against: "floor", of the time; "BERT"; "torchdeq", the same solve; "T 2", the same with two iterations.
    """

    phase: str
    bound: float
    shape: tuple[int, int] = WIDE
    solver: str = "fixed_point"
    gradient: str = "implicit"
    iterations: int = 3
    layers: int | None = None
    graph: bool = False
    against: str = "floor"

    @property
    def target(self) -> str:
        return f"{self.phase} / {self.against}"

    @property
    def setting(self) -> str:
        how = f"{self.solver} T {self.iterations}"
        how += f", {self.gradient}" if self.phase != "inference" else ", one CUDA graph" if self.graph else ", eager"
        where = "all layers" if self.layers is None else "last layer" if self.layers == 1 else f"last {self.layers}"
        return f"{self.shape[0]} x {self.shape[1]}, {where}, {how}"


ROWS = (
    Row("inference", 1.15),
    Row("inference", 1.3, solver="anderson"),
    Row("inference", 1.10, layers=1),
    Row("inference", 1.06, graph=True),
    Row("inference", 1.06, layers=1, graph=True),
    Row("inference", 1.25, ONE),
    Row("inference", 1.15, ONE, graph=True),
    Row("inference", 1.05, MANY),
    *(Row("training", 1.15, gradient=gradient) for gradient in ("implicit", "one_step")),
    *(
        Row("memory", 1.15, gradient=gradient, iterations=T, against="BERT")
        for gradient in ("implicit", "one_step")
        for T in (2, 50)
    ),
    *(Row("memory", 1.03, gradient=g, iterations=50, against="T 2") for g in ("implicit", "one_step")),
    *(Row("inference", 1.0, iterations=T, against="torchdeq") for T in (3, 8)),
    *(
        Row(phase, bound, solver=solver, gradient=gradient, against="torchdeq")
        for phase, bound in (("training", 1.0), ("memory", 1.02))
        for solver in ("fixed_point", "anderson")
        for gradient in ("implicit", "one_step")
    ),
)


def autocast_losses(model: Any, batch: Batch) -> Iterator[Tensor]:
    with torch.autocast(model.device.type, torch.bfloat16):
        loss = model(**batch).loss
    yield loss


def captured(forward: Callable[[], Any]) -> Callable[[], Any]:
    """What replays `forward` as one CUDA graph."""
    for _ in range(ENOUGH):
        forward()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        forward()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forward()
    return graph.replay


def pair(row: Row, model: Any) -> tuple[Variant, Variant | None]:
    """What a row measures, and what it is held against; None where torchdeq has no such solve."""
    other = 2 if row.against == "T 2" else row.iterations
    bert, *variants = [
        replace(variant, losses=autocast_losses)
        for variant in with_references(
            model,
            solvers=[row.solver],
            gradients=[row.gradient],
            iterations=sorted({row.iterations, other}),
            implicit_layers=row.layers,
        )
    ]
    named = {variant.name: variant for variant in variants}
    name = f"{row.solver} T {row.iterations}, {row.gradient}"
    theirs = {"torchdeq": f"torchdeq {name}", "T 2": f"{row.solver} T 2, {row.gradient}"}
    return named[name], named.get(theirs[row.against]) if row.against in theirs else bert


def least(row: Row, ours: Variant, model: Any) -> float:
    """The floor of a row's time, in units of BERT's."""
    if row.against != "floor":
        return 1.0
    unit = ours.floor.training / BERT_STEP if row.phase == "training" else ours.floor.inference / EVALUATION
    share = 1.0 if row.layers is None else row.layers / model.config.num_hidden_layers
    return 1 + (unit - 1) * share


def measured(row: Row, model: Any, repeats: int, seed: int = 0) -> Record:
    """A row of ROWS on the device of `model`, an IMBertForSequenceClassification in float32."""
    if row.phase == "inference":
        model = copy.deepcopy(model).bfloat16()
    ours, theirs = pair(row, model)
    if theirs is None:
        note = "it has no bfloat16" if find_torchdeq() else "not installed (pip install torchdeq)"
        return record(row.target, row.setting, None, row.bound, note=note)
    batch = make_batch(model, None, None, *row.shape, seed)
    if row.phase == "memory":
        value = peak_bytes(ours, batch) / peak_bytes(theirs, batch)
        return record(row.target, row.setting, value, row.bound)
    actions = {name: _action(row, variant, batch) for name, variant in (("ours", ours), ("theirs", theirs))}
    wait = waiting(model.device)
    interleave(actions, 1, synchronise=wait)
    seconds = interleave(actions, repeats, synchronise=wait)
    timing, unit = ratio(seconds["ours"], seconds["theirs"]), least(row, ours, model)
    quartiles, note = [value / unit for value in timing["quartiles"]], f"{timing['ratio']:.2f} x"
    return record(row.target, row.setting, timing["ratio"] / unit, row.bound, quartiles=quartiles, note=note)


def _action(row: Row, variant: Variant, batch: Batch) -> Callable[[], Any]:
    if not row.graph:
        return partial(timed, variant, batch, row.phase == "training")
    with variant.ready(False):
        return partial(nullcontext, captured(partial(variant.infer, batch)))


def measure_gpu(model: Any, rows: Sequence[Row] = ROWS, *, repeats: int, seed: int = 0, progress: bool = False):
    """Every row as a record; "not measured" where `model` is None."""
    if model is None:
        return [record(row.target, row.setting, None, row.bound, note="no GPU") for row in rows]
    torch.manual_seed(seed)
    return [measured(row, model, repeats, seed) for row in tqdm(rows, "gpu", disable=not progress, leave=False)]
