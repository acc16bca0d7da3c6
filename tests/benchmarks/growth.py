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
    "iterations": (1, 2, 3, 6, 9, 12),
    "length": (32, 64, 128, 256, 512),
    "batch": (1, 4, 16, 32, 64),
    "implicit_layers": (0, 1, 2, 3, 4),
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


def measure_point(model: Any, point: Point, repeats: int, seed: int = 0) -> dict[str, Any]:
    """By phase and measure: of BERT and of IM-BERT, in seconds or bytes, and their ratio; and the floor of the time."""
    batch = make_batch(model, None, None, point["batch"], point["length"], seed)
    bert, ours = variants = pair(model, point)
    actions = {
        (v.name, phase): partial(timed, v, batch, phase == "training")  # type: ignore[misc]
        for phase in PHASES
        for v in variants
    }
    interleave(actions, 1)
    seconds = interleave(actions, repeats)
    return {phase: _phase(phase, bert, ours, batch, seconds) for phase in PHASES}


def _phase(phase: str, bert: Variant, ours: Variant, batch: Batch, seconds: Mapping[Any, list[float]]) -> dict:
    times = {variant.name: seconds[variant.name, phase] for variant in (bert, ours)}
    bytes_ = {variant.name: peak_bytes(variant, batch, phase == "training") for variant in (bert, ours)}
    time = {name: float(numpy.median(found)) for name, found in times.items()}
    least = getattr(ours.floor, phase) / getattr(bert.floor, phase)
    time |= {"floor": least} | ratio(times["IM-BERT"], times["BERT"])
    return {"time": time, "memory": {**bytes_, "ratio": bytes_["IM-BERT"] / bytes_["BERT"]}}


def growth(
    model: Any, repeats: int = 7, seed: int = 0, keep: Keep = compute_now, progress: bool = False
) -> dict[str, Any]:
    """What grows with each of VARIED.

    Returns:
        By name of VARIED: points, each its value and what measure_point returns; exponents, by phase and measure BERT's
        and IM-BERT's, None where a value is 0.
    """
    points = {name: [{**BASE, name: value} for value in values] for name, values in VARIED.items()}
    shown = tqdm(total=sum(map(len, points.values())), desc="points", disable=not progress, leave=False)
    found = {}
    for name, of_name in points.items():
        measured = []
        for point in of_name:
            key = {"measure": "growth", "point": point, "shape": SHAPE, "repeats": repeats, "seed": seed}
            compute = partial(measure_point, model, point, repeats, seed)
            measured.append({"value": point[name], **keep(key | {"threads": torch.get_num_threads()}, compute)})
            shown.update()
        found[name] = {"points": measured, "exponents": exponents(measured)}
    return found


def exponents(points: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """The slopes of log(measure) over log(value) between the last two points, by phase, measure and model."""
    before, last = points[-2:]
    step = math.log(last["value"] / before["value"])

    def slope(phase: str, measure: str, name: str) -> float:
        return math.log(last[phase][measure][name] / before[phase][measure][name]) / step

    return {
        phase: {measure: {name: slope(phase, measure, name) for name in ("BERT", "IM-BERT")} for measure in MEASURES}
        for phase in PHASES
    }
