"""White-box attack: accuracy against the radius within which the word embeddings of a text may be moved.

An attack that fails for want of a gradient looks like robustness ("gradient masking", Athalye et al., ICML 2018, arXiv
1802.00420), and an implicit layer offers many ways to lack one. So the attack is checked too, see `masking_checks`.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy
import torch

from imbert_hf.evaluation.attacks.ascent import (
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
from imbert_hf.evaluation.data.classifier import Classifier, length_sorted, predict
from imbert_hf.evaluation.data.tasks import Row
from imbert_hf.evaluation.processes import share
from imbert_hf.evaluation.report import Keep, compute_now, finite
from imbert_hf.evaluation.statistics import accuracy_interval


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
        key = {"radius": radius, "ascent": repr(attack), "source": source and source.key()}
        return keep(key, lambda: attacked(classifier, rows, radius, attack, source=source, **options).tolist())

    def accuracy(*what: Any) -> float:
        return float(numpy.mean(survivors(*what)))

    curve = []
    for radius in radii:
        right = survivors(radius, attack)
        curve.append(
            {
                "radius": radius,
                "accuracy": float(numpy.mean(right)),
                "accuracy_ci95": accuracy_interval(right),
                "transfer_accuracy": None if source is None else accuracy(radius, attack, source),
                "accuracy_fewer_steps": None if fewer == attack else accuracy(radius, fewer),
                "steps": attack.steps,
                "right": right,
            }
        )
    errors: list[float | None] = []
    for radius in (0.0, radii[len(radii) // 2]):
        point: dict[str, Any] = {"radius": radius, "seed": attack.seed, "batch_size": batch_size}
        errors += keep({"gradient": 1, **point}, partial(gradient_errors, classifier, rows, **point))
    gold = [row.label for row in rows]
    labels = predict(classifier, [row.texts for row in rows], batch_size=batch_size, residuals="none").labels
    clean = float(numpy.mean(labels == gold))
    return {
        "n": len(rows),
        "clean_accuracy": clean,
        "clean_accuracy_ci95": accuracy_interval(labels == gold),
        "curve": curve,
        "checks": masking_checks(clean, curve, errors, len(rows)),
    }


def gradient_errors(
    classifier: Classifier, rows: Sequence[Row], *, radius: float, seed: int = 0, batch_size: int = 32
) -> list[float | None]:
    """How far the gradient of each row's margin is from a finite difference: |difference / slope - 1|.

    Both along the gradient, the difference central with 1e-3 of the embeddings' norm to each side. About 0 for an exact
    gradient; None where there is none.

    Args:
        classifier, rows, batch_size: as for embedding_attack.
        radius: of the ball at a random point of whose sphere it is measured; 0: at the text itself.
        seed: of that point.
    """
    errors: list[float | None] = [None] * len(rows)
    encodings = classifier.encode([row.texts for row in rows])
    model = classifier.model

    def of_batch(chosen: list[int]) -> list[float | None]:
        generator = torch.Generator().manual_seed(seed)
        batch = classifier.collate([encodings[i] for i in chosen])
        labels = torch.tensor([rows[i].label for i in chosen], device=model.device)
        words = words_of(classifier, batch)[..., None]
        with torch.no_grad():
            size = embedding_norm(classifier, batch)
            embedded = model.get_input_embeddings()(batch["input_ids"])
            point = scaled(torch.randn(embedded.shape, generator=generator).to(embedded) * words, radius * size)
        delta = point.requires_grad_()
        with exact_gradients(model):
            with moved_embeddings(model, delta):
                gradient = gradient_of(margin(classifier.logits(batch), labels), delta) * words
            with torch.no_grad():
                ahead = scaled(gradient, 1e-3 * size)
                ends = []
                for side in (ahead, -ahead):
                    with moved_embeddings(model, delta + side):
                        ends.append(margin(classifier.logits(batch), labels))
                found = ((ends[0] - ends[1]) / (norm(gradient) * 2e-3 * size) - 1).abs()
        return finite(found)

    batches = length_sorted(encodings, batch_size)
    for chosen, found in zip(batches, share(of_batch, batches), strict=True):
        for i, error in zip(chosen, found, strict=True):
            errors[i] = error
    return errors


def masking_checks(
    clean: float, curve: Sequence[dict[str, Any]], errors: Sequence[float | None], n: int
) -> list[dict[str, Any]]:
    """What must hold for an accuracy under this attack to mean robustness (Athalye et al. 2018; Carlini et al. 2019).

    Args:
        clean: accuracy without an attack.
        curve: entries with radius, accuracy, accuracy_fewer_steps and transfer_accuracy (None: not run); at the last,
            largest radius nothing of the text is left.
        errors: of gradient_errors.
        n: rows. A weaker attack may do better by one row or one percent, whichever is more.

    Returns:
        One entry a check: name, passed (None: could not be made), and a message that says what was seen.
    """

    def percent(share: float) -> str:
        return f"{100 * share:.1f} %"

    slack, last = max(0.01, 1 / n) + 1e-9, curve[-1]
    exact = sum(error is not None and error <= 0.1 for error in errors) / len(errors)
    rise, at = max((b["accuracy"] - a["accuracy"], b["radius"]) for a, b in pairwise([{"accuracy": clean}, *curve]))
    checks: list[dict[str, Any]] = [
        {
            "name": "large_radius",
            "passed": last["accuracy"] <= 0.01,
            "message": f"{percent(last['accuracy'])} of the rows survive radius {last['radius']:g}, where none should "
            f"(without an attack {percent(clean)})",
        },
        {
            "name": "larger_radius",
            "passed": rise <= slack,
            "message": f"from one radius to the next, {at:g}, accuracy changes by {100 * rise:+.1f} points, and should "
            "not rise",
        },
        {
            "name": "gradient",
            "passed": exact >= 1 - max(0.05, 1 / len(errors)) - 1e-9,  # one miss of a few is none of 5 %
            "message": f"the gradient is within 10 % of a finite difference for {percent(exact)} of the rows, and "
            "should be for 95 %, or all but one",
        },
    ]
    for name, weaker, text in (
        ("more_steps", "accuracy_fewer_steps", "the attack with a fifth of the steps"),
        ("transfer", "transfer_accuracy", "the attack transferred from plain BERT"),
    ):
        run = [point for point in curve if point[weaker] is not None]
        check: dict[str, Any] = {"name": name, "passed": None, "message": f"{text} was not run"}
        if run:
            worst = max(run, key=lambda point: point["accuracy"] - point[weaker])
            check["passed"] = worst["accuracy"] - worst[weaker] <= slack
            check["message"] = (
                f"{text} leaves {percent(worst[weaker])} at radius {worst['radius']:g}, the white-box attack "
                f"{percent(worst['accuracy'])}, which should be no more"
            )
        checks.append(check)
    return checks
