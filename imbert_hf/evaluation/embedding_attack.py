"""White-box attack: accuracy against the radius within which the word embeddings of a text may be moved.

An attack that fails for want of a gradient looks like robustness ("gradient masking", Athalye et al., ICML 2018, arXiv
1802.00420), and an implicit layer offers many ways to lack one. So the attack is checked too, see `masking_checks`.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy
import torch
from torch import Tensor

from .ascent import (
    Ascent,
    attacked,
    check_source,
    embedding_norm,
    exact_gradients,
    gradient_of,
    margin,
    moved_embeddings,
    norm,
    scaled,
    words_of,
)
from .classifier import Classifier, length_sorted, predict
from .report import Keep, compute_now
from .statistics import accuracy_interval
from .tasks import Row


def embedding_attack(
    classifier: Classifier,
    rows: Sequence[Row],
    *,
    radii: Sequence[float],
    large_radius: float = 3.0,
    attack: Ascent | None = None,
    source: Classifier | None = None,
    batch_size: int = 32,
    progress: bool = False,
    keep: Keep = compute_now,
) -> dict[str, Any]:
    """The curve of accuracy against radius, and whether it may be believed.

    Args:
        classifier: the model under attack.
        rows: n rows of its task.
        radii: relative to the l2 norm of the word embeddings of a row's words.
        large_radius: one more, at which no row should survive.
        attack: steps and restarts.
        source: plain BERT, whose attack is transferred; None: none is.
        batch_size: rows.
        progress: show a bar.
        keep: of a Journal, which keeps each radius.

    Returns:
        n, clean_accuracy and its interval, checks (of masking_checks), and curve: per radius accuracy, accuracy_ci95,
        transfer_accuracy, accuracy_fewer_steps, steps and `right`, the n rows that survive.
    """
    attack = attack or Ascent()
    wrong = [radius for radius in (*radii, large_radius) if not 0 < radius <= large_radius < math.inf]
    if wrong:
        raise ValueError(f"radii must be numbers above 0 and at most large_radius, {large_radius}, got {wrong[0]}.")
    radii = sorted({*radii, large_radius})
    if classifier.model.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"dtype must be float32 for an attack on the embeddings, whose gradient is checked against a finite "
            f"difference, got {classifier.model.dtype} for {classifier.path}."
        )
    if source is not None:
        check_source(source, classifier)
    fewer = replace(attack, steps=max(1, attack.steps // 5), restarts=1)
    options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}

    def survivors(radius: float, attack: Ascent, source: Classifier | None = None) -> list[bool]:
        key = {"radius": radius, "ascent": repr(attack), "source": source and source.fingerprint}
        return keep(key, lambda: attacked(classifier, rows, radius, attack, source=source, **options).tolist())

    curve = []
    for radius in radii:
        right = survivors(radius, attack)
        curve.append(
            {
                "radius": radius,
                "accuracy": float(numpy.mean(right)),
                "accuracy_ci95": accuracy_interval(right),
                "transfer_accuracy": None if source is None else float(numpy.mean(survivors(radius, attack, source))),
                "accuracy_fewer_steps": float(numpy.mean(survivors(radius, fewer))),
                "steps": attack.steps,
                "right": right,
            }
        )
    error = keep({"gradient": "error"}, lambda: gradient_error(classifier, rows, batch_size=batch_size))
    gold = [row.label for row in rows]
    labels = predict(classifier, [row.texts for row in rows], batch_size=batch_size, residuals="none").labels
    clean = float(numpy.mean(labels == gold))
    return {
        "n": len(rows),
        "clean_accuracy": clean,
        "clean_accuracy_ci95": accuracy_interval(labels == gold),
        "curve": curve,
        "checks": masking_checks(clean, curve, error, len(rows)),
    }


def gradient_error(classifier: Classifier, rows: Sequence[Row], *, batch_size: int = 32) -> float | None:
    """How far the gradient of the margin is from a finite difference: median over rows of |difference / slope - 1|.

    Both along the gradient, the difference central with 1e-3 of the embeddings' norm to each side. About 0 for an exact
    gradient; None where there is none.
    """
    errors: list[Tensor] = []
    encodings = classifier.encode([row.texts for row in rows])
    model = classifier.model
    for chosen in length_sorted(encodings, batch_size):
        batch = classifier.collate([encodings[i] for i in chosen])
        labels = torch.tensor([rows[i].label for i in chosen], device=model.device)
        words = words_of(classifier, batch)[..., None]
        width = model.get_input_embeddings().weight
        delta = torch.zeros(*batch["input_ids"].shape, width.shape[1], device=width.device, requires_grad=True)
        with exact_gradients(model):
            with moved_embeddings(model, delta):
                gradient = gradient_of(margin(classifier.logits(batch), labels), delta) * words
            with torch.no_grad():
                h = 1e-3 * embedding_norm(classifier, batch)
                ahead = scaled(gradient, h)
                ends = []
                for side in (ahead, -ahead):
                    with moved_embeddings(model, side):
                        ends.append(margin(classifier.logits(batch), labels))
                slope = norm(gradient) * 2 * h
                errors.append(((ends[0] - ends[1]) / slope - 1).abs().nan_to_num(torch.inf, torch.inf))
    error = float(torch.cat(errors).median())
    return error if math.isfinite(error) else None


def masking_checks(clean: float, curve: Sequence[dict[str, Any]], error: float | None, n: int) -> list[dict[str, Any]]:
    """What must hold for an accuracy under this attack to mean robustness (Athalye et al. 2018; Carlini et al. 2019).

    Args:
        clean: accuracy without an attack.
        curve: entries with radius, accuracy, accuracy_fewer_steps and transfer_accuracy (None: not run); at the last,
            largest radius nothing of the text is left.
        error: of gradient_error.
        n: rows. A weaker attack may do better by one row or one percent, whichever is more.

    Returns:
        One entry a check: name, passed, and a message that says what was seen.
    """
    last = curve[-1]
    checks = [
        {
            "name": "large_radius",
            "passed": last["accuracy"] <= 0.01,
            "message": f"{100 * last['accuracy']:.1f} % of the rows survive radius {last['radius']:g}, where none "
            f"should (without an attack {100 * clean:.1f} %)",
        },
        {
            "name": "gradient",
            "passed": error is not None and error <= 0.1,
            "message": "there is no gradient"
            if error is None
            else f"the gradient is off a finite difference by {100 * error:.1f} % (median over rows)",
        },
    ]
    for name, weaker, text in (
        ("more_steps", "accuracy_fewer_steps", "the attack with a fifth of the steps"),
        ("transfer", "transfer_accuracy", "the attack transferred from plain BERT"),
    ):
        run = [point for point in curve if point[weaker] is not None]
        if run:
            worst = max(run, key=lambda point: point["accuracy"] - point[weaker])
            checks.append(
                {
                    "name": name,
                    "passed": worst["accuracy"] - worst[weaker] <= max(0.01, 1 / n) + 1e-9,
                    "message": f"{text} leaves {100 * worst[weaker]:.1f} % at radius {worst['radius']:g}, the "
                    f"white-box attack {100 * worst['accuracy']:.1f} %, which should be no more",
                }
            )
    return checks
