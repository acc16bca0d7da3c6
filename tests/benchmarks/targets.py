"""The targets for speed and memory, each measured as a ratio and held against its bound.

Theta is 1 and every layer is implicit unless a target says otherwise. A time is the median over rounds of the ratio
within each round, on random tokens unless a target is of real text. The floor prices an evaluation of a layer and a
vector-Jacobian product at 1 and the backward of a tracked evaluation at 2, see variants.floor.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import quality
import references
import torch
from bench import LEAN, Bench, Record, record
from tqdm.auto import tqdm

from imbert_hf.evaluation.attacks.ascent import Batch
from imbert_hf.evaluation.cost.settings import make_batch
from imbert_hf.evaluation.cost.variants import BACKWARD, SOLVERS, Variant
from imbert_hf.evaluation.report import Keep, compute_now
from imbert_hf.evaluation.stability.growth import connected


# Of each solver, the bound on time / floor, and the iterations.
INFERENCE = {
    "fixed_point": (1.05, (1, 2, 3, 5, 8, 12)),
    "anderson": (1.05, (1, 2, 3, 5, 8, 12)),
    "gradient_descent": (1.3, (1, 3, 5)),
}
SENTENCE = dict.fromkeys(quality.PAIRED, (1.15, (1, 2, 3, 5, 8)))
SENTENCE_LENGTH = 16
SENTENCE_ROUNDS = 10  # times as many: it is over in milliseconds
TRAINING = dict.fromkeys(SOLVERS, (1.20, (2, 3, 5)))  # a CPU draws the dropout masks anew in every evaluation
MEMORY = dict.fromkeys(SOLVERS, (1.15, (2, 8, 50)))  # against BERT's
MEMORY_SPREAD = 0.03
LITERAL: dict[str, Any] = {
    "solvers": quality.PAIRED,
    "learning_rates": (0.01, 0.02, 0.05, 0.1, 0.2),
    "iterations": 5,
    "most": 20,
}
LITERAL_BOUNDS = {"inference": 1 / 3, "training": 1 / 5}
TORCHDEQ = {"fixed_point": (3, 8), "anderson": (4, 8)}  # with fewer its Anderson evaluates more often than ours
GRADIENT: dict[str, Any] = {
    "gradients": ("implicit", "unrolled"),
    "error": 1e-2,
    "grid": (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48),
}
ADJOINT: dict[str, Any] = {"residuals": (1e-1, 1e-2, 1e-3), "most": 60}
TRAPEZOIDAL = {"fixed_point": (1.10, (3,))}  # at theta 1/2
CONSISTENCY = {"fixed_point": (1.10, (3,))}  # in the last layer alone

# Of a model while it is measured; the adjoint has as many iterations as forward
FIELDS = {"im_theta": 1.0, "im_layers": "all", "im_gradient_iterations": None}
UNSOLVED = "no row of the batch has a converged solution"

Limits = Mapping[str, tuple[float, Sequence[int]]]


def _to_floor(
    bench: Bench, target: str, limits: Limits, batch: Batch, *, training: bool, repeats: int | None = None, **more
) -> Iterator[Record]:
    """Time / floor, each row in turn with about as much of BERT's work."""
    for solver, (bound, iterations) in limits.items():
        bert, *rows = bench.rows(solver, iterations, LEAN if training else LEAN[:1], **more)
        for row in tqdm(rows, f"{target}, {solver}", disable=not bench.progress, leave=False):
            least = row.floor.to_bert(training)
            timing = bench.ratio(row, bert, batch, training, times=round(least), repeats=repeats)
            yield over(least, timing, target, row.name if training else str(row.inference), bound)


def over(least: float, timing: Mapping[str, Any], target: str, setting: str, bound: float) -> Record:
    """A time in units of BERT's, divided by the least that it can be."""
    quartiles, note = [value / least for value in timing["quartiles"]], f"{timing['ratio']:.2f} x BERT"
    return record(target, setting, timing["ratio"] / least, bound, quartiles=quartiles, note=note)


def _pair(
    bench: Bench,
    target: str,
    a: Variant,
    b: Variant,
    batch: Batch,
    training: bool,
    bound: float,
    setting: str = "",
    **more,
) -> Record:
    """Time of a / time of b."""
    timing = bench.ratio(a, b, batch, training)
    setting = setting or (a.name if training else str(a.inference))
    return record(target, setting, timing["ratio"], bound, quartiles=timing["quartiles"], **more)


def inference(bench: Bench) -> Iterator[Record]:
    yield from _to_floor(bench, "inference / floor", INFERENCE, bench.random, training=False)


def sentence(bench: Bench) -> Iterator[Record]:
    """The case of a service that classifies one sentence at a time."""
    target, repeats = f"sentence of {SENTENCE_LENGTH} tokens / floor", SENTENCE_ROUNDS * bench.repeats
    yield from _to_floor(bench, target, SENTENCE, bench.sentence, training=False, repeats=repeats)


def training(bench: Bench) -> Iterator[Record]:
    yield from _to_floor(bench, "training / floor", TRAINING, bench.random, training=True)


def memory(bench: Bench) -> Iterator[Record]:
    """Peaks against BERT's, and how far they lie apart over the iterations."""
    for solver, (bound, iterations) in MEMORY.items():
        bert, *rows = bench.rows(solver, iterations, LEAN)
        base = bench.peak(bert, bench.random)
        shown = tqdm(rows, f"memory, {solver}", disable=not bench.progress, leave=False)
        peaks = {row.name: bench.peak(row, bench.random) for row in shown}
        for row in rows:
            yield record("memory / BERT", row.name, peaks[row.name] / base, bound)
        for gradient in LEAN:
            found = [peaks[row.name] for row in rows if row.setting["gradient"] == gradient]
            setting = f"{solver} T {' '.join(map(str, iterations))}, {gradient}"
            yield record("memory, spread over T", setting, (max(found) - min(found)) / min(found), MEMORY_SPREAD)


def residual(bench: Bench) -> Iterator[Record]:
    """Against the literal reading of the paper, at the residual that it reaches at its best learning rate."""
    compute = partial(quality.equal_residual, bench.model, bench.real, **LITERAL)
    found = bench.part("equal residual", bench.real, LITERAL, compute)
    iterations, rate, reached = LITERAL["iterations"], found["learning_rate"], found["residual"]
    if rate is None:
        note = "the literal reading diverges at every learning rate"
        for phase, bound in LITERAL_BOUNDS.items():
            yield record(f"{phase} / literal", f"T {iterations}", None, bound, note=note)
        return
    options: dict[str, Any] = {"learning_rates": [rate], "make": references.with_references}
    (literal,) = [row for row in bench.rows("gradient_descent", [iterations], **options) if row.kind == "literal"]
    ours = {solver: bench.rows(solver, [T])[-1] for solver, T in found["solvers"].items() if T is not None}
    for phase, bound in LITERAL_BOUNDS.items():
        target = f"{phase} / literal"
        for solver in found["solvers"]:
            if solver in ours:
                note = f"residual {reached:.1e} of {literal.name}"
                yield _pair(bench, target, ours[solver], literal, bench.real, phase == "training", bound, note=note)
            else:
                note = f"does not reach {literal.name}'s residual {reached:.1e} with up to {LITERAL['most']} iterations"
                yield record(target, solver, None, bound, verdict="missed", note=note)


def torchdeq(bench: Bench) -> Iterator[Record]:
    """Against torchdeq with the same solver, gradient and number of evaluations."""
    targets = [f"{what} / torchdeq" for what in ("inference", "training", "memory")]
    for solver, iterations in TORCHDEQ.items():
        rows = {row.name: row for row in bench.rows(solver, iterations, LEAN, make=references.with_references)}
        pairs = [(row, rows[name]) for row in rows.values() if (name := f"torchdeq {row.name}") in rows]
        if not pairs:
            dtype = str(bench.model.dtype).removeprefix("torch.")
            note = f"it has no {dtype}" if references.find_torchdeq() else "not installed (pip install torchdeq)"
            yield from (record(target, solver, None, 1.0, note=note) for target in targets)
            continue
        for ours, theirs in pairs:
            if ours.setting["gradient"] == LEAN[0]:
                yield _pair(bench, targets[0], ours, theirs, bench.random, False, 1.0)
        for ours, theirs in pairs:
            yield _pair(bench, targets[1], ours, theirs, bench.random, True, 1.0)
        for ours, theirs in pairs:
            peaks = [bench.peak(row, bench.random) for row in (ours, theirs)]
            yield record(targets[2], ours.name, peaks[0] / peaks[1], 1.0)


def gradient(bench: Bench) -> Iterator[Record]:
    """Implicit against unrolled, each with the fewest iterations that give a good gradient, and with twice these."""
    targets = [f"{phase}, implicit / unrolled" for phase in ("training", "memory")]
    for solver in SOLVERS:
        options = {"solvers": [solver], **GRADIENT}
        compute = partial(quality.gradient_iterations, bench.model, bench.few, **options)
        found = bench.part("gradient iterations", bench.few, options, compute)
        least = {name: found["found"][solver][name]["iterations"] for name in GRADIENT["gradients"]}
        never = [name for name, T in least.items() if T is None]
        if not never:
            yield from _implicit_to_unrolled(bench, solver, least, targets)
            continue
        note = f"{' and '.join(never)} not with an error of {GRADIENT['error']:g} up to T {max(GRADIENT['grid'])}"
        note += "".join(f"; {name} with T {T}" for name, T in least.items() if T is not None)
        verdict = {"implicit": "missed", "unrolled": "met"}[never[0]] if len(never) == 1 else None
        if not found["rows"]:
            note = UNSOLVED
        yield from (record(name, solver, None, 1.0, strict=True, verdict=verdict, note=note) for name in targets)


def _implicit_to_unrolled(
    bench: Bench, solver: str, least: Mapping[str, int], targets: Sequence[str]
) -> Iterator[Record]:
    for factor in (1, 2):
        ours, theirs = (bench.rows(solver, [factor * T], [name])[-1] for name, T in least.items())
        setting = f"{ours.name} / {theirs.name}"
        # Memory is linear in the rows: a few tell whether the step would bring the machine down.
        expected = bench.peak(theirs, bench.few) * len(bench.real["labels"]) / len(bench.few["labels"])
        if expected > 0.8 * memory_bytes(bench.model.device):
            note = f"unrolled would take {expected / 2**30:.0f} GiB"
            yield from (record(name, setting, None, 1.0, strict=True, note=note) for name in targets)
            continue
        yield _pair(bench, targets[0], ours, theirs, bench.real, True, 1.0, setting=setting, strict=True)
        peaks = [bench.peak(row, bench.real) for row in (ours, theirs)]
        yield record(targets[1], setting, peaks[0] / peaks[1], 1.0, strict=True)


def memory_bytes(device: torch.device) -> float:
    """Of the whole device; infinity where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return float("inf")


def adjoint(bench: Bench) -> Iterator[Record]:
    """Products of the adjoint solve against evaluations of the forward solve, at equal relative residual."""
    for solver in quality.PAIRED:
        options = {"solver": solver, **ADJOINT}
        compute = partial(quality.adjoint_work, bench.model, bench.few, **options)
        for work in bench.part("adjoint", bench.few, options, compute):
            known = work["products"] is not None and work["evaluations"]
            measured = work["products"] / work["evaluations"] if known else None
            note = f"of {work['pairs']} pairs {work['more']} need more products, {work['unsolved']} were not solved"
            note = note if work["rows"] else UNSOLVED
            setting = f"{solver}, residual {work['residual']:g}"
            yield record("adjoint products / evaluations", setting, measured, 1.0, note=note)


def theta(bench: Bench) -> Iterator[Record]:
    """The trapezoidal rule, whose F(x) is tracked too."""
    yield from _to_floor(bench, "training / floor, theta 0.5", TRAPEZOIDAL, bench.random, training=True, theta=0.5)
    for solver, (_, iterations) in TRAPEZOIDAL.items():
        bert, *rows = bench.rows(solver, iterations, LEAN, theta=0.5)
        for row in rows:
            share = bench.peak(row, bench.random) / bench.peak(bert, bench.random)
            yield record("memory / BERT, theta 0.5", row.name, share, None)


def consistency(bench: Bench) -> Iterator[Record]:
    """A step with im_consistency, whose guess is tracked too; the other layers are BERT's."""
    share = 1 / bench.model.config.num_hidden_layers
    for solver, (bound, iterations) in CONSISTENCY.items():
        bert, *rows = bench.rows(solver, iterations, LEAN, implicit_layers=1)
        for row in rows:
            least = replace(row.floor, training=row.floor.training + BACKWARD).to_bert(True, share)
            row = replace(row, fields={**row.fields, "im_consistency": 1.0})
            timing = bench.ratio(row, bert, bench.random, True, times=round(least))
            yield over(least, timing, "training / floor, im_consistency", row.name, bound)


GROUPS: dict[str, Callable[[Bench], Iterator[Record]]] = {
    "inference": inference,
    "sentence": sentence,
    "training": training,
    "memory": memory,
    "residual": residual,
    "torchdeq": torchdeq,
    "gradient": gradient,
    "adjoint": adjoint,
    "theta": theta,
    "consistency": consistency,
}


def measure_targets(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str | tuple[str, ...]],
    *,
    batch: int = 32,
    length: int = 64,
    repeats: int = 5,
    seed: int = 0,
    only: Sequence[str] = tuple(GROUPS),
    keep: Keep = compute_now,
    progress: bool = False,
) -> list[Record]:
    """Every target as a row.

    Args:
        model: IMBertForSequenceClassification of two classes, in the dtype and on the device to measure.
        tokenizer, texts: real text, see cost.make_batch.
        batch, length: rows and tokens.
        repeats: rounds of timing, after one that is not counted.
        seed: of random tokens and of dropout.
        only: names of GROUPS.
        keep: a finished part, see `report.Journal`.
        progress: show it.

    Returns:
        One record a row: group, of GROUPS, and what `record` returns: target; setting; measured, a ratio, None where
        there is none; quartiles of a time's; bound; strict; verdict; note.
    """
    if wrong := [name for name in only if name not in GROUPS]:
        raise ValueError(f"only must hold names of {', '.join(GROUPS)}, got {wrong[0]!r}.")
    bench = Bench(
        model,
        random=make_batch(model, None, None, batch, length, seed),
        sentence=make_batch(model, None, None, 1, SENTENCE_LENGTH, seed),
        real=make_batch(model, tokenizer, texts, batch, length),
        repeats=repeats,
        seed=seed,
        keep=keep,
        progress=progress,
    )
    chosen = tqdm([name for name in GROUPS if name in only], "targets", disable=not progress, leave=False)
    records = []
    with connected(model.config, FIELDS):
        for name in chosen:
            chosen.set_postfix_str(name)
            records += [{"group": name, **found} for found in GROUPS[name](bench)]
    return records
