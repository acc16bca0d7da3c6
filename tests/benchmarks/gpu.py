"""The bounds for a GPU: a BERT-base shape, all layers implicit with T 3 unless a target says otherwise.

Inference has bfloat16 weights, and a training step float32 weights under bfloat16 autocast with dropout. torchdeq
leaves autocast in its backward pass, so training beside it is in float32. A graph gets tokens alone: a release of
transformers may ask on the host whether a mask hides any. Memory is that of tensors, without workspace inside a kernel.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from bench import LEAN, Record, record
from references import find_torchdeq, with_references
from targets import SENTENCE_ROUNDS, over
from torch import Tensor
from tqdm.auto import tqdm

from imbert_hf.evaluation.attacks.ascent import Batch
from imbert_hf.evaluation.cost.measures import interleave, peak_bytes, ratio, timed, waiting
from imbert_hf.evaluation.cost.settings import make_batch
from imbert_hf.evaluation.cost.variants import Variant, last_layers, make_variants
from imbert_hf.evaluation.report import Keep, compute_now


BATCH, SENTENCE, LARGE_BATCH = (32, 128), (1, 16), (128, 128)
WARM_UP = 3  # rounds, or forwards before a capture, that are not counted


@dataclass(frozen=True)
class Target:
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
    shape: tuple[int, int] = BATCH
    solver: str = "fixed_point"
    gradient: str = "implicit"
    iterations: int = 3
    layers: int | None = None
    graph: bool = False
    against: str = "floor"

    @property
    def name(self) -> str:
        return f"{self.phase} / {self.against}"

    @property
    def setting(self) -> str:
        how = self.gradient if self.phase != "inference" else "one CUDA graph" if self.graph else "eager"
        where = "all layers" if self.layers is None else f"last {self.layers}"
        return f"{self.shape[0]} x {self.shape[1]}, {where}, {self.solver} T {self.iterations}, {how}"


TARGETS = (
    Target("inference", 1.15),
    Target("inference", 1.3, solver="anderson"),
    Target("inference", 1.10, layers=1),
    Target("inference", 1.06, graph=True),
    Target("inference", 1.06, layers=1, graph=True),
    Target("inference", 1.25, SENTENCE),
    Target("inference", 1.15, SENTENCE, graph=True),
    Target("inference", 1.05, LARGE_BATCH),
    *(Target("training", 1.15, gradient=gradient, layers=n) for n in (None, 1) for gradient in LEAN),
    *(Target("memory", 1.15, gradient=g, iterations=T, against="BERT") for g in LEAN for T in (2, 50)),
    *(Target("memory", 1.03, gradient=gradient, iterations=50, against="T 2") for gradient in LEAN),
    *(Target("inference", 1.0, iterations=T, against="torchdeq") for T in (3, 8)),
    *(
        Target(phase, bound, solver=solver, gradient=gradient, iterations=T, against="torchdeq")
        for phase, bound in (("training", 1.0), ("memory", 1.02))
        for solver, T in (("fixed_point", 3), ("anderson", 4))  # with 3 its Anderson evaluates once more
        for gradient in LEAN
    ),
)


def autocast_losses(model: Any, batch: Batch) -> Iterator[Tensor]:
    with torch.autocast(model.device.type, torch.bfloat16):
        loss = model(**batch).loss
    yield loss


def captured(forward: Callable[[], Any]) -> Callable[[], Any]:
    """What replays `forward` as one CUDA graph, whose logits are those of an eager call."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            forward()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = forward()
    graph.replay()
    torch.testing.assert_close(output.logits, forward().logits, rtol=0.05, atol=0.05)  # bfloat16
    return graph.replay


def variants_of(target: Target, model: Any) -> list[Variant]:
    """What a target measures, and what that is held against."""
    make = with_references if target.against == "torchdeq" else make_variants
    options: dict[str, Any] = {"solvers": [target.solver], "gradients": [target.gradient]}
    options["iterations"] = [2, target.iterations] if target.against == "T 2" else [target.iterations]
    named = {variant.name: variant for variant in make(model, implicit_layers=target.layers, **options)}
    ours = f"{target.solver} T {target.iterations}, {target.gradient}"
    theirs = {"torchdeq": f"torchdeq {ours}", "T 2": f"{target.solver} T 2, {target.gradient}"}
    found = [named[ours], named[theirs.get(target.against, "BERT")]]
    return found if target.against == "torchdeq" else [replace(one, losses=autocast_losses) for one in found]


def measure(target: Target, model: Any, repeats: int, seed: int = 0) -> Record:
    """One of TARGETS, of `model`, an IMBertForSequenceClassification, on its device and in its dtype."""
    if target.against == "torchdeq" and not find_torchdeq():
        return record(target.name, target.setting, None, target.bound, note="not installed (pip install torchdeq)")
    ours, theirs = variants_of(target, model)
    batch = make_batch(model, None, None, *target.shape, seed)
    if target.phase == "memory":
        return record(target.name, target.setting, peak_bytes(ours, batch) / peak_bytes(theirs, batch), target.bound)
    actions = {"ours": _action(target, ours, batch), "theirs": _action(target, theirs, batch)}
    wait = waiting(model.device)
    interleave(actions, WARM_UP, synchronise=wait)
    rounds = repeats * SENTENCE_ROUNDS if target.shape == SENTENCE else repeats
    seconds = interleave(actions, rounds, synchronise=wait)
    timing = ratio(seconds["ours"], seconds["theirs"])
    if target.against != "floor":
        return record(target.name, target.setting, timing["ratio"], target.bound, quartiles=timing["quartiles"])
    share = len(last_layers(model, target.layers)) / model.config.num_hidden_layers
    least = ours.floor.to_bert(target.phase == "training", share)
    return over(least, timing, target.name, target.setting, target.bound)


def _action(target: Target, variant: Variant, batch: Batch) -> Callable[[], Any]:
    if not target.graph:
        return partial(timed, variant, batch, target.phase == "training")
    with variant.ready(False):
        return partial(nullcontext, captured(partial(variant.infer, {"input_ids": batch["input_ids"]})))


def measure_gpu(
    model: Any, *, repeats: int, seed: int = 0, keep: Keep = compute_now, progress: bool = False
) -> list[Record]:
    """Every target; `model` in float32."""
    half, records = copy.deepcopy(model).bfloat16(), []
    for target in tqdm(TARGETS, "gpu", disable=not progress, leave=False):
        key = {"measure": "gpu", **asdict(target), "repeats": repeats, "seed": seed, "torchdeq": bool(find_torchdeq())}
        torch.manual_seed(seed)
        compute = partial(measure, target, half if target.phase == "inference" else model, repeats, seed)
        records.append(keep(key, compute))
    return records


def not_measured() -> list[Record]:
    return [record(target.name, target.setting, None, target.bound, note="no GPU") for target in TARGETS]
