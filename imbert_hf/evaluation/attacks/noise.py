"""Natural noise: seeded perturbations that keep the label, of typing or of content.

Own code, because no library looked at fits: nlpaug and augly (both last released in 2022), typo (2023) and augmentex
(2024) draw from global random state, and their stronger perturbations do not contain their weaker ones.
"""

import math
import random
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy
from tqdm.auto import tqdm

from imbert_hf.evaluation.data.classifier import Classifier, predict
from imbert_hf.evaluation.data.tasks import Row
from imbert_hf.evaluation.report import Keep, compute_now


# True whatever a text is about, and without sentiment: they add nothing that could be entailed, contradicted or asked.
CLAUSES = (
    "A week has seven days.",
    "Two and two make four.",
    "An hour has sixty minutes.",
    "A triangle has three sides.",
    "December comes after November.",
    "Ten is more than nine.",
    "A year has twelve months.",
    "Monday comes before Tuesday.",
    "A square has four sides.",
    "Half of eight is four.",
)
# Shorter words become other words too easily for the label to be safe.
_WORD = re.compile(r"[^\W\d_]{4,}")
# Rows of a QWERTY keyboard, and how far each is shifted to the right, in keys.
_ROWS = (("qwertyuiop", 0.0), ("asdfghjkl", 0.25), ("zxcvbnm", 0.75))
_KEYS = {key: (x + shift, y) for y, (row, shift) in enumerate(_ROWS) for x, key in enumerate(row)}
NEIGHBOURS = {a: "".join(b for b in _KEYS if a != b and math.dist(_KEYS[a], _KEYS[b]) < 1.3) for a in _KEYS}


def _keyboard(word: str, rng: random.Random) -> str:
    i = rng.choice([i for i in range(1, len(word) - 1) if word[i].lower() in NEIGHBOURS])
    letter = rng.choice(NEIGHBOURS[word[i].lower()])
    return word[:i] + (letter.upper() if word[i].isupper() else letter) + word[i + 1 :]


def _swap(word: str, rng: random.Random) -> str:
    i = rng.choice([i for i in range(1, len(word) - 2) if word[i] != word[i + 1]])
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :]


def _deletion(word: str, rng: random.Random) -> str:
    i = rng.randrange(1, len(word) - 1)
    return word[:i] + word[i + 1 :]


def _case(word: str, rng: random.Random) -> str:
    return word.lower() if word.isupper() else word.upper()


_EDITS = {"keyboard": _keyboard, "swap": _swap, "deletion": _deletion, "case": _case}
KINDS = (*_EDITS, "clause")


def perturb(text: str, kind: str, strength: float, seed: int) -> str:
    """The text with noise; the same for the same four arguments, and a stronger one changes all that a weaker one does.

    Args:
        text: any.
        kind: "keyboard" (an inner letter becomes a neighbour on a QWERTY keyboard), "swap" (of two inner neighbours),
            "deletion" (of an inner letter), "case" (words in capitals, and the other way round; an uncased model does
            not see it), or "clause" (sentences that are true of anything before and after the text).
        strength: from 0, which changes nothing, to 1: the share, rounded up, of the words of four letters or more, or,
            for "clause", of the ten CLAUSES.
        seed: of the choice of words, letters and clauses.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be from 0 to 1, got {strength}.")
    rng = random.Random(repr((seed, kind, text)))

    def chosen(items: Sequence[Any]) -> list[Any]:  # the first of one order, so that they are nested
        return rng.sample(items, len(items))[: math.ceil(strength * len(items) - 1e-9)]

    if kind == "clause":
        for clause in chosen(CLAUSES):
            text = f"{text} {clause}" if rng.random() < 0.5 else f"{clause} {text}"
        return text
    edited = []
    for word in _WORD.finditer(text):
        try:
            edited.append((*word.span(), _EDITS[kind](word.group(), rng)))
        except IndexError:  # nothing to choose from: no letter on the keyboard, or all letters equal
            continue
    for start, end, word in sorted(chosen(edited), reverse=True):  # from the end, so that other spans stay valid
        text = text[:start] + word + text[end:]
    return text


def noisy(texts: tuple[str, ...], kind: str, strength: float, seed: int) -> tuple[str, ...]:
    """The texts of a row with noise, see `perturb`.

    Of a pair, a clause joins the first text alone: two that differ would make two questions of one.
    """
    changed = texts[:1] if kind == "clause" else texts
    return (*(perturb(text, kind, strength, seed) for text in changed), *texts[len(changed) :])


def noise(
    classifier: Classifier,
    rows: Sequence[Row],
    *,
    kinds: Sequence[str] = KINDS,
    strengths: Sequence[float] = (0.1, 0.2, 0.4),
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = False,
    keep: Keep = compute_now,
) -> list[dict[str, Any]]:
    """Accuracy under each kind of noise at each strength, applied to all texts of each row; a clause to the first.

    Args:
        classifier: of load_classifier.
        rows: of its task.
        kinds, strengths, seed: of perturb.
        batch_size: rows.
        progress: show a bar.
        keep: of a Journal, which keeps each kind and strength.

    Returns:
        One entry a kind and strength: kind, strength, n, accuracy and clean_accuracy, from 0 to 1, `right`, n bools:
        which rows are right under the noise, and `answers`, of Prediction.
    """
    if not rows:
        raise ValueError("noise needs at least one row, got none.")
    labels = numpy.array([row.label for row in rows])

    def answers(kind: str, strength: float) -> dict[str, Any]:
        texts = [noisy(row.texts, kind, strength, seed) for row in rows]
        return predict(classifier, texts, batch_size=batch_size, residuals="none").answers()

    # Strength 0 is the clean text, whatever the kind.
    settings = [(KINDS[0], 0.0), *((kind, strength) for kind in kinds for strength in strengths)]
    kept = [
        keep({"answers": kind, "strength": strength, "seed": seed}, partial(answers, kind, strength))
        for kind, strength in tqdm(settings, desc=f"{classifier.name}, noise", leave=False, disable=not progress)
    ]
    clean, *rights = [(numpy.array(found["labels"]) == labels).tolist() for found in kept]
    return [
        {
            "kind": kind,
            "strength": strength,
            "n": len(rows),
            "accuracy": sum(right) / len(rows),
            "clean_accuracy": sum(clean) / len(rows),
            "right": right,
            "answers": found,
        }
        for (kind, strength), right, found in zip(settings[1:], rights, kept[1:], strict=True)
    ]
