"""What an implicit layer costs: work counted, time and memory as ratios to plain BERT, and what they buy.

One process, one set of weights, every row measured in turn: a ratio is of two neighbours in time.
"""

import copy
import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy
import torch
from torch import Tensor

from imbert_hf.evaluation.cost import references
from imbert_hf.evaluation.cost.measures import (
    QUARTILES,
    converged_gradient,
    count,
    gradient_errors,
    interleave,
    peak_bytes,
    ratio,
    residual,
    timed,
)
from imbert_hf.evaluation.cost.references import Batch, Equation
from imbert_hf.evaluation.cost.rows import BERT_STEP, EVALUATION, last_layers, make_rows
from imbert_hf.evaluation.report import Keep, compute_now, finite


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


def measure(
    model: Any,
    batch: Batch,
    *,
    theta: float = 1.0,
    implicit_layers: int | None = None,
    repeats: int = 7,
    train: bool = True,
    gradient_rows: int = 4,
    progress: bool = False,
    **rows_of,
) -> dict[str, Any]:
    """One table: every row on one batch.

    Args:
        model: IMBertForSequenceClassification of two classes.
        batch: see `make_batch`.
        theta, implicit_layers: see `make_rows`.
        repeats: rounds of timing, after one that is not counted.
        train: measure training steps too.
        gradient_rows: of the batch, for the gradient's error; 0: not measured.
        rows_of: further arguments of `make_rows`.

    Returns:
        What JSON can hold, see `cost`.
    """
    rows = make_rows(model, theta=theta, implicit_layers=implicit_layers, **rows_of)
    indices = last_layers(model, implicit_layers)
    if not train:  # what is named after a gradient too differs in training alone
        rows = [
            replace(row, name=row.inference) for row in {row.inference: row for row in rows}.values() if row.inference
        ]
    config = model.config
    equation = Equation(theta, config.im_step_size, config.im_vector_field, config.im_initial_guess)
    few = {name: value[:2] for name, value in batch.items()}
    actions: dict[str, Any] = {}
    for row in rows:
        if row.inference is not None:
            actions.setdefault(f"inference {row.inference}", partial(timed, row, batch, False))
        if train:
            actions[f"training {row.name}"] = partial(timed, row, batch, True)
    wait = torch.get_device_module(model.device).synchronize if model.device.type != "cpu" else lambda: None
    interleave(actions, 1, synchronise=wait)
    seconds = interleave(actions, repeats, synchronise=wait, progress=progress)

    peaks = {row.name: peak_bytes(row, batch) for row in rows} if train else {}
    residuals: dict[str, float] = {}
    for row in rows:
        if row.setting and row.inference not in residuals:
            residuals[str(row.inference)] = residual(row, batch, equation, indices)
    errors: dict[str, float] = {}
    converged: dict[str, Any] | None = None
    if train and gradient_rows:
        double = copy.deepcopy(model).double()
        some = {name: value[:gradient_rows] for name, value in batch.items()}
        exact, kept, reached = converged_gradient(double, some, theta, indices)
        converged = {"rows": len(kept), "of": len(some["labels"]), "residual": finite([reached])[0]}
        if exact is not None:
            again = make_rows(double, theta=theta, implicit_layers=implicit_layers, **rows_of)
            solved = {name: value[kept] for name, value in some.items()}
            errors = gradient_errors(again, solved, exact)

    records = []
    for row in rows:
        record: dict[str, Any] = {"name": row.name, "kind": row.kind, **dict.fromkeys(_SETTING), **row.setting}
        record["inference"] = record["training"] = None
        for phase, name, least in (
            ("inference", row.inference, row.floor.inference / EVALUATION),
            ("training", row.name, row.floor.training / BERT_STEP),
        ):
            if f"{phase} {name}" in seconds:
                timing = ratio(seconds[f"{phase} {name}"], seconds[f"{phase} BERT"])
                least = 1 + (least - 1) * len(indices) / config.num_hidden_layers
                floors = {"floor": least, "to_floor": timing["ratio"] / least}
                record[phase] = count(row, few, phase == "training", indices) | timing | floors
        if train:
            record["training"]["memory_ratio"] = peaks[row.name] / peaks["BERT"]
        record["residual"] = finite([residuals.get(str(row.inference), float("nan"))])[0]
        record["gradient_error"] = finite([errors.get(row.name, float("nan"))])[0]
        records.append(record)
    return {
        "bert": {
            "inference_seconds": numpy.quantile(seconds["inference BERT"], QUARTILES).tolist(),
            "training_seconds": numpy.quantile(seconds["training BERT"], QUARTILES).tolist() if train else None,
            "training_bytes": peaks.get("BERT"),
        },
        "converged": converged,
        "rows": records,
    }


_SETTING = ("solver", "gradient", "iterations", "learning_rate")


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
    **options,
) -> list[dict[str, Any]]:
    """Time, memory, work and quality of IM-BERT's settings against plain BERT with the same weights.

    Args:
        model: IMBertForSequenceClassification of two classes, in the dtype and on the device to measure.
        tokenizer, texts: real text; None: random tokens alone.
        batches, lengths, implicit_layers: every combination is measured; see `make_rows` for the last.
        random: measure random tokens, beside `texts` where there are any.
        seed: of random tokens and of dropout.
        keep: a finished combination, see `report.Journal`.
        options: of `measure` and `make_rows`.

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
            "torchdeq": references.find_torchdeq() is not None,
            **{name: value for name, value in model.config.to_dict().items() if name.startswith("im_")},
            **options,
        }

        def compute(batch=batch, layers=layers):
            torch.manual_seed(seed)
            return measure(model, batch, implicit_layers=layers, progress=progress, **options)

        cells.append({**cell, **keep(key, compute)})
    return cells
