"""How time and memory of inference and of a training step grow: with the iterations, tokens, rows and implicit layers.

One of the four varies, the others stay at BASE, and every point is measured beside plain BERT with the same weights.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy
import torch
from tqdm.auto import tqdm

from imbert_hf import IMBertConfig, IMBertForSequenceClassification
from imbert_hf.evaluation.attacks.ascent import Batch
from imbert_hf.evaluation.cost.measures import interleave, peak_bytes, ratio, timed
from imbert_hf.evaluation.cost.settings import make_batch
from imbert_hf.evaluation.cost.variants import BERT_STEP, EVALUATION, Floor, Variant, floor_of, plain_bert
from imbert_hf.evaluation.report import Keep, compute_now


SHAPE = {
    "vocab_size": 1000,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
}
BASE = {"iterations": 3, "length": 64, "batch": 8, "implicit_layers": 4}
VARIED: dict[str, Sequence[int]] = {
    "iterations": (1, 2, 3, 6, 12),
    "length": (32, 64, 128, 256, 512),
    "batch": (1, 4, 16, 32, 64),
    "implicit_layers": (0, 1, 2, 4),
}
PHASES = ("inference", "training")
MEASURES = ("time", "memory")
Point = Mapping[str, int]


def small_model(seed: int = 0) -> Any:
    """A classifier of SHAPE with the weights that it draws."""
    torch.manual_seed(seed)
    return IMBertForSequenceClassification(IMBertConfig(**SHAPE)).eval()


def pair(model: Any, point: Point) -> list[Variant]:
    """Plain BERT, and IM-BERT with fixed_point and implicit at a point; the floors are of whole models."""
    n, k = model.config.num_hidden_layers, point["implicit_layers"]
    fields = {"im_layers": [*range(n - k, n)], "im_iterations": point["iterations"]}
    layer = floor_of(model, "fixed_point", "implicit", point["iterations"], 1.0)
    bert = Variant("BERT", "BERT", plain_bert(model), Floor(n * EVALUATION, n * BERT_STEP))
    whole = Floor((n - k) * EVALUATION + k * layer.inference, (n - k) * BERT_STEP + k * layer.training)
    return [bert, replace(bert, name="IM-BERT", kind="IM-BERT", model=model, floor=whole, fields=fields)]


def measure(model: Any, points: Sequence[Point], repeats: int, seed: int = 0) -> list[dict[str, Any]]:
    """Of each point, by phase: time, seconds of BERT and of IM-BERT in each round, their medians and ratio, and the
    floor of it; memory, the bytes of both, and their ratio. A round runs all points, whose times are then neighbours.
    """
    pairs = [pair(model, point) for point in points]
    batches = [make_batch(model, None, None, point["batch"], point["length"], seed) for point in points]
    actions = {
        (k, variant.name, phase): partial(timed, variant, batch, phase == "training")
        for k, (variants, batch) in enumerate(zip(pairs, batches, strict=True))
        for phase in PHASES
        for variant in variants
    }
    interleave(actions, 1)
    seconds = interleave(actions, repeats)
    return [
        {
            phase: _phase(phase, *variants, batch, {one.name: seconds[k, one.name, phase] for one in variants})
            for phase in PHASES
        }
        for k, (variants, batch) in enumerate(zip(pairs, batches, strict=True))
    ]


def _phase(phase: str, bert: Variant, ours: Variant, batch: Batch, seconds: Mapping[str, list[float]]) -> dict:
    held = {variant.name: peak_bytes(variant, batch, phase == "training") for variant in (bert, ours)}
    medians = {name: float(numpy.median(found)) for name, found in seconds.items()}
    spread = ratio(seconds["IM-BERT"], seconds["BERT"]) | {"seconds": seconds}
    least = getattr(ours.floor, phase) / getattr(bert.floor, phase)
    return {
        "time": {**medians, **spread, "floor": least},
        "memory": {**held, "ratio": held["IM-BERT"] / held["BERT"]},
    }


def growth(model: Any, repeats: int, seed: int = 0, keep: Keep = compute_now, progress: bool = False) -> dict[str, Any]:
    """What grows with each of VARIED.

    Returns:
        By name of VARIED: points, each its value and what `measure` returns; and exponents.
    """
    found = {}
    for name, values in tqdm(VARIED.items(), "growth", disable=not progress, leave=False):
        points = [{**BASE, name: value} for value in values]
        key = {"measure": "growth", "points": points, "shape": SHAPE, "repeats": repeats, "seed": seed}
        compute = partial(measure, model, points, repeats, seed)
        measured = keep(key | {"threads": torch.get_num_threads()}, compute)
        kept = [{"value": value, **of_value} for value, of_value in zip(values, measured, strict=True)]
        found[name] = {"points": kept, "exponents": exponents(kept)}
    return found


def exponents(points: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """The slopes of log(measure) over log(value) between the last two points, by phase, measure and model.

    Of a time the median over rounds of the slope within each.
    """
    before, last = points[-2:]
    step = math.log(last["value"] / before["value"])

    def slope(phase: str, measure: str, name: str) -> float:
        ends = [point[phase][measure].get("seconds", point[phase][measure])[name] for point in (before, last)]
        return float(numpy.median(numpy.log(numpy.divide(ends[1], ends[0])))) / step

    return {
        phase: {measure: {name: slope(phase, measure, name) for name in ("BERT", "IM-BERT")} for measure in MEASURES}
        for phase in PHASES
    }
