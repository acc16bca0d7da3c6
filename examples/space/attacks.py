"""What the page does to a text, and to the rows of its table. The attacks themselves are imbert_hf's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from answers import Models, Reading, probabilities

from imbert_hf.evaluation.attacks.candidates import CharacterEdits
from imbert_hf.evaluation.attacks.noise import noisy, perturb
from imbert_hf.evaluation.attacks.query import query_attack
from imbert_hf.evaluation.data.classifier import Classifier
from imbert_hf.evaluation.data.tasks import Row


NOISE = {"typos": "keyboard", "swaps": "swap", "deletions": "deletion", "clause": "clause"}
SEARCH = "search"
WORDS = 25  # at most, of a text that is searched: each is asked about several times


@dataclass(frozen=True)
class Attacked:
    """A text after an attack.

    Attributes:
        by: whose answers led the search; "" for noise, which asks nobody.
        text: changed.
        queries: texts that it asked about.
        before, after: (2, labels), the probabilities of BERT and of IM-BERT.
    """

    by: str
    text: str
    queries: int
    before: numpy.ndarray
    after: numpy.ndarray


def attack(models: Models, reading: Reading, text: str, kind: str, strength: float, seed: int) -> list[Attacked]:
    """The text under one of NOISE, or under a search against either model: an entry for each text that comes out.

    Args:
        strength: from 0 to 1, the share of the words that change, or that the search may change.
        seed: of the choice of words and letters.

    Raises:
        ValueError: there is no text, or it is too long; the sentence says so.
    """
    pair = models.pair(reading)
    if not text.strip():
        raise ValueError("There is no text to attack yet: type one above.")
    if not models.read_whole(text):
        raise ValueError(
            "The models read the beginning of this text alone: attack a shorter one, which they read whole."
        )
    if kind == SEARCH:
        words = len(text.split())
        if words > WORDS:
            raise ValueError(f"The search takes texts of at most {WORDS} words, and this one has {words}.")
        found = [(c.name, *_search(c, text, strength, seed)) for c in pair]
    else:
        found = [("", perturb(text, NOISE[kind], strength, seed), 0)]
    before, *after = _both(pair, [text, *(changed for _, changed, _ in found)])
    return [Attacked(*entry, before, answers) for entry, answers in zip(found, after, strict=True)]


def _both(pair: Sequence[Classifier], texts: Sequence[str]) -> numpy.ndarray:
    """(texts, 2, labels)."""
    return numpy.stack([probabilities(classifier, texts) for classifier in pair], axis=1)


def _search(classifier: Classifier, text: str, strength: float, seed: int) -> tuple[str, int]:
    """Away from what the classifier answers. The changed text, and the number of queries."""
    label = int(probabilities(classifier, [text])[0].argmax())
    options: Any = {"candidates": CharacterEdits(seed), "max_share": max(strength, 0.01)}
    (result,) = query_attack(classifier, [Row((text,), label)], **options)
    return result.texts[0], result.queries


@dataclass(frozen=True)
class Checked:
    """A row of the table: which of BERT and IM-BERT are right before, and which after."""

    row: Row
    changed: str
    before: tuple[bool, bool]
    after: tuple[bool, bool]

    @property
    def falls(self) -> tuple[bool, bool]:
        """Whether BERT is right before and wrong after, and whether IM-BERT is."""
        bert, im_bert = (was and not still for was, still in zip(self.before, self.after, strict=True))
        return bert, im_bert


BERT_ALONE, IM_BERT_ALONE = "BERT falls, IM-BERT holds", "IM-BERT falls, BERT holds"
OUTCOMES = (BERT_ALONE, IM_BERT_ALONE)


def outcome(checked: Checked) -> str:
    """One of OUTCOMES where one model falls and the other is right before and after; else ""."""
    held = [was and still for was, still in zip(checked.before, checked.after, strict=True)]
    bert, im_bert = checked.falls
    return BERT_ALONE if bert and held[1] else IM_BERT_ALONE if im_bert and held[0] else ""


def check(
    models: Models, reading: Reading, rows: Sequence[Row], kind: str, strength: float, seed: int
) -> list[Checked]:
    """Both models on the rows, before and after one of NOISE."""
    changed = [noisy(row.texts, NOISE[kind], strength, seed)[0] for row in rows]
    answers = _both(models.pair(reading), [*(row.texts[0] for row in rows), *changed]).argmax(axis=2)
    right = answers == numpy.tile([row.label for row in rows], 2)[:, None]
    before, after = right[: len(rows)].tolist(), right[len(rows) :].tolist()
    return [Checked(r, c, tuple(b), tuple(a)) for r, c, b, a in zip(rows, changed, before, after, strict=True)]
