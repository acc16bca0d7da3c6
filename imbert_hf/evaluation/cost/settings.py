"""What an implicit layer costs: work counted, time and memory as ratios to plain BERT, and what they buy.

One process, one set of weights, every variant measured in turn: a ratio is of two neighbours in time.
"""

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy
import torch
from torch import Tensor

from imbert_hf import ThetaMethod
from imbert_hf.evaluation.attacks.ascent import Batch
from imbert_hf.evaluation.cost.measures import (
    QUARTILES,
    converged_gradient,
    count,
    interleave,
    mean_residual,
    peak_bytes,
    ratio,
    relative_gradient_errors,
    timed,
    waiting,
)
from imbert_hf.evaluation.cost.variants import Variant, last_layers, make_variants
from imbert_hf.evaluation.report import Keep, compute_now, finite


Make = Callable[..., list[Variant]]  # see make_variants


def make_batch(
    model: Any, tokenizer: Any, texts: Sequence[str | tuple[str, ...]] | None, rows: int, length: int, seed: int = 0
) -> dict[str, Tensor]:
    """input_ids, attention_mask and labels, (rows, length).

    Args:
        texts: sentences, or tuples of a sentence or of a pair, from the first on and over again, truncated and padded;
            None: random tokens, none of them padding.
    """
    if texts is None:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(model.config.vocab_size, (rows, length), generator=generator)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    else:
        chosen = [(text,) if isinstance(text, str) else text for text in texts]
        columns = zip(*(chosen[i % len(chosen)] for i in range(rows)), strict=True)
        options = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
        encoded = tokenizer(*(list(column) for column in columns), **options)
        batch = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    batch["labels"] = torch.arange(rows) % 2
    return {name: value.to(model.device) for name, value in batch.items()}


def measure_batch(
    model: Any,
    batch: Batch,
    *,
    theta: float = 1.0,
    implicit_layers: int | None = None,
    repeats: int = 7,
    train: bool = True,
    gradient_rows: int = 4,
    progress: bool = False,
    make: Make = make_variants,
    **settings,
) -> dict[str, Any]:
    """One table: every variant on one batch.

    Args:
        model: a sequence classifier of imbert_hf, of two classes.
        batch: see `make_batch`.
        theta, implicit_layers, settings: of `make`.
        repeats: rounds of timing, after one that is not counted.
        train: measure training steps too.
        gradient_rows: of the batch, for the gradient's error; 0: not measured.
        make: makes the variants, see `make_variants`.

    Returns:
        What JSON can hold, see `cost`.
    """
    make = partial(make, theta=theta, implicit_layers=implicit_layers, **settings)
    variants, indices = make(model), last_layers(model, implicit_layers)
    if not train:  # what is named after a gradient too differs in training alone
        once = {variant.inference: variant for variant in variants if variant.inference}
        variants = [replace(variant, name=name) for name, variant in once.items()]
    seconds = _seconds(model, variants, batch, train, repeats, progress)
    peaks = {variant.name: peak_bytes(variant, batch) for variant in variants} if train else {}
    method = ThetaMethod(theta, model.config.im_step_size, model.config.im_vector_field)
    solving = {variant.inference: variant for variant in variants if variant.setting}
    residuals = {name: mean_residual(variant, batch, method, indices) for name, variant in solving.items()}
    converged: dict[str, Any] | None = None
    errors: dict[str, float] = {}
    if train and gradient_rows:
        some = {name: value[:gradient_rows] for name, value in batch.items()}
        converged, errors = _gradients(model, make, some, theta, indices)

    few, share = {name: value[:2] for name, value in batch.items()}, len(indices) / model.config.num_hidden_layers
    records = []
    for variant in variants:
        record = {"name": variant.name, "kind": variant.kind, **dict.fromkeys(_SETTING), **variant.setting}
        for phase in ("inference", "training"):
            timing = _to_floor(variant, seconds, phase, share)
            record[phase] = timing and count(variant, few, phase == "training", indices) | timing
        if train:
            record["training"]["memory_ratio"] = peaks[variant.name] / peaks["BERT"]
        record["residual"] = finite([residuals.get(variant.inference, math.nan)])[0]
        record["gradient_error"] = finite([errors.get(variant.name, math.nan)])[0]
        records.append(record)
    bert = {
        "inference_seconds": numpy.quantile(seconds["inference BERT"], QUARTILES).tolist(),
        "training_seconds": numpy.quantile(seconds["training BERT"], QUARTILES).tolist() if train else None,
        "training_bytes": peaks.get("BERT"),
    }
    return {"bert": bert, "converged": converged, "rows": records}


_SETTING = ("solver", "gradient", "iterations", "learning_rate")
Seconds = dict[str, list[float]]  # by phase and name


def _seconds(
    model: Any, variants: Sequence[Variant], batch: Batch, train: bool, repeats: int, progress: bool
) -> Seconds:
    """Of every round, after one that is not counted."""
    actions: dict[str, Any] = {}
    for variant in variants:
        if variant.inference is not None:
            actions.setdefault(f"inference {variant.inference}", partial(timed, variant, batch, False))
        if train:
            actions[f"training {variant.name}"] = partial(timed, variant, batch, True)
    interleave(actions, 1, synchronise=waiting(model.device))
    return interleave(actions, repeats, synchronise=waiting(model.device), progress=progress)


def _gradients(
    model: Any, make: Make, batch: Batch, theta: float, indices: Sequence[int]
) -> tuple[dict[str, Any], dict[str, float]]:
    """What the converged gradient is of, and the error of each variant's, by name."""
    double = copy.deepcopy(model).double()
    exact, kept, reached = converged_gradient(double, batch, theta, indices)
    converged = {"rows": len(kept), "of": len(batch["labels"]), "residual": finite([reached])[0]}
    if exact is None:
        return converged, {}
    solved = {name: value[kept] for name, value in batch.items()}
    return converged, relative_gradient_errors(make(double), solved, exact)


def _to_floor(variant: Variant, seconds: Seconds, phase: str, share: float) -> dict[str, Any] | None:
    """The time against BERT's and against the floor, with a `share` of the layers implicit; None: not measured."""
    inference = phase == "inference"
    found = seconds.get(f"{phase} {variant.inference if inference else variant.name}")
    if found is None:
        return None
    timing, least = ratio(found, seconds[f"{phase} BERT"]), variant.floor.to_bert(not inference, share)
    return timing | {"floor": least, "to_floor": timing["ratio"] / least}


def cost(
    model: Any,
    tokenizer: Any = None,
    texts: Sequence[str | tuple[str, ...]] | None = None,
    *,
    batches: Sequence[int] = (32,),
    lengths: Sequence[int] = (64,),
    implicit_layers: Sequence[int | None] = (None,),
    random: bool = True,
    seed: int = 0,
    keep: Keep = compute_now,
    progress: bool = False,
    make: Make = make_variants,
    **options,
) -> list[dict[str, Any]]:
    """Time, memory, work and quality of IM-BERT's settings against plain BERT with the same weights.

    Args:
        model: a sequence classifier of imbert_hf, of two classes, in the dtype and on the device to measure.
        tokenizer, texts: real text; None: random tokens alone.
        batches, lengths, implicit_layers: every combination is measured; see `make_variants` for the last.
        random: measure random tokens, beside `texts` where there are any.
        seed: of random tokens and of dropout.
        keep: a finished combination, see `report.Journal`.
        make: makes the variants.
        options: of `measure_batch` and `make`.

    Returns:
        One record a combination: batch; length; implicit_layers; text, "random" or "real"; tokens, the share that is
        no padding; bert, of plain BERT inference_seconds and training_seconds, quartiles, and training_bytes;
        converged, rows and residual behind the gradients' errors; rows, each with name, kind, solver, gradient,
        iterations, learning_rate, inference and training (None where not measured), residual and gradient_error. Of
        inference and training: forward and backward (see `count`); ratio to BERT's time, its quartiles, and seconds of
        each round; floor, as a ratio to BERT's too; to_floor, ratio / floor; of training memory_ratio.
    """
    kinds = (["random"] if random or texts is None else []) + (["real"] if texts is not None else [])
    cells = []
    for text, rows, length, layers in itertools.product(kinds, batches, lengths, implicit_layers):
        batch = make_batch(model, tokenizer, texts if text == "real" else None, rows, length, seed)
        cell = {"batch": rows, "length": length, "implicit_layers": len(last_layers(model, layers)), "text": text}
        cell["tokens"] = batch["attention_mask"].float().mean().item()
        key = {
            "measure": "cost",
            **cell,
            "ids": batch["input_ids"].tolist(),
            "seed": seed,
            "dtype": str(model.dtype),
            "threads": torch.get_num_threads(),
            "make": make.__name__,
            **{name: value for name, value in model.config.to_dict().items() if name.startswith("im_")},
            **options,
        }

        def compute(batch=batch, layers=layers):
            torch.manual_seed(seed)
            return measure_batch(model, batch, implicit_layers=layers, progress=progress, make=make, **options)

        cells.append({**cell, **keep(key, compute)})
    return cells
