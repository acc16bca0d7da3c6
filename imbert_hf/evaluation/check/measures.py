"""The five measures of `imbert-eval check`, and how many rows a budget of time pays for."""

import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy
from sklearn.metrics import f1_score

from imbert_hf.evaluation.advglue.scores import baseline
from imbert_hf.evaluation.attacks.ascent import Ascent
from imbert_hf.evaluation.attacks.candidates import CharacterEdits
from imbert_hf.evaluation.attacks.embedding import embedding_attack
from imbert_hf.evaluation.attacks.noise import noisy
from imbert_hf.evaluation.attacks.pairs import pairs, pairs_of_attack
from imbert_hf.evaluation.attacks.query import QueryAttackResult, query_attack
from imbert_hf.evaluation.data.arguments import digest
from imbert_hf.evaluation.data.classifier import Classifier, predict
from imbert_hf.evaluation.data.loading import first_line
from imbert_hf.evaluation.data.tasks import Row, drawn
from imbert_hf.evaluation.report import Journal, Keep, at_least, compute_now
from imbert_hf.evaluation.statistics import accuracy_interval


MEASURES = ("clean", "noise", "worst", "characters", "embedding")
ATTACKS = ("characters", "embedding")  # which take a hundred times as long a row
NOISE = {"keyboard": 0.4, "swap": 0.4, "deletion": 0.4, "clause": 0.5}  # kind -> strength
RADIUS = 0.02  # of the embedding attack, relative to the embeddings
LEAST = 8  # rows
CHUNK = 32  # rows of the character attack that are kept together


class Rows(NamedTuple):
    """The rows that are asked, and those of them that are attacked."""

    asked: list[Row]
    attacked: list[Row]


@dataclass
class Found:
    """What was measured of one model.

    Attributes:
        right: measure -> of each row whether it is right, or the share of noisy variants in which it is.
        reasons: measure -> why it could not be measured.
        warnings: of the masking checks of the embedding attack.
        macro_f1, baseline: on the clean text; see `scores.baseline`.
        answers: (kind, strength) of noise -> Prediction.answers, the clean text first.
        results: of the character attack.
    """

    right: dict[str, list[float]]
    reasons: dict[str, str]
    warnings: list[str]
    macro_f1: float
    baseline: dict[str, Any]
    answers: dict[tuple[str, float], dict[str, Any]] = field(default_factory=dict)
    results: list[QueryAttackResult] = field(default_factory=list)

    def entry(self, measure: str) -> dict[str, Any] | None:
        """accuracy, ci95 and n; None where it was not measured."""
        if measure not in self.right:
            return None
        values = self.right[measure]
        return {"accuracy": float(numpy.mean(values)), "ci95": accuracy_interval(values), "n": len(values)}


def measure_model(
    classifier: Classifier, rows: Rows, journal: Journal, *, seed: int, batch_size: int, progress: bool
) -> Found:
    """All five; a measure that a model does not allow has a reason instead, and the others go on."""
    options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    about = {"check": 2, "of": classifier.key(), "seed": seed, "batch_size": batch_size}

    def keep(key: dict[str, Any], compute: Callable[[], Any], of: Sequence[Row] = rows.asked) -> Any:
        return journal.part({**about, "rows": digest(of), **key}, compute)

    def ask(kind: str, strength: float) -> dict[str, Any]:
        texts = [noisy(row.texts, kind, strength, seed) for row in rows.asked]
        return predict(classifier, texts, residuals="none", **options).answers()

    gold = [row.label for row in rows.asked]
    asked = [("keyboard", 0.0), *NOISE.items()]  # strength 0 is the clean text
    answers = {(k, s): keep({"noise": k, "strength": s}, partial(ask, k, s)) for k, s in asked}
    labels, *others = [of["labels"] for of in answers.values()]
    clean, *variants = numpy.equal([labels, *others], gold).astype(float).tolist()
    right = {"clean": clean, "noise": numpy.mean(variants, axis=0).tolist()}
    right["worst"] = numpy.min([clean, *variants], axis=0).tolist()
    f1 = float(f1_score(gold, labels, average="macro", zero_division=0.0))
    found = Found(right, {}, [], f1, baseline(classifier.task, gold, labels), answers)
    attacks = {"characters": _characters, "embedding": _embedding}
    for name, attack in attacks.items():
        try:
            kept = partial(keep, of=rows.attacked)
            survived, more = attack(classifier, rows.attacked, seed, options, kept)
        except Exception as error:  # of a model whose forward is another than the attack needs
            found.reasons[name] = first_line(error).rstrip(".")
        else:
            found.right[name] = [float(right) for right in survived]
            (found.results if name == "characters" else found.warnings).extend(more)
    return found


def exported(classifier: Classifier, rows: Rows, found: Found, seed: int) -> list[dict[str, Any]]:
    """The rows of --export: each noisy text, and what the character attack made."""
    (_, clean), *others = found.answers.items()
    made = []
    for (kind, strength), answers in others:
        texts = [noisy(row.texts, kind, strength, seed) for row in rows.asked]
        made += pairs(classifier, f"{kind} {strength:g}", rows.asked, texts, clean, answers)
    attacked = rows.attacked if found.results else []
    return made + pairs_of_attack(classifier, "characters", attacked, found.results)


def _characters(
    classifier: Classifier, rows: list[Row], seed: int, options: dict[str, Any], keep: Keep = compute_now
) -> tuple[list, list]:
    """Which rows survive, and what was done to each."""

    def attack(some: list[Row]) -> list[dict[str, Any]]:
        return [asdict(r) for r in query_attack(classifier, some, candidates=CharacterEdits(seed=seed), **options)]

    chunks = [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]
    kept = [keep({"characters": i, "chunk": CHUNK}, partial(attack, chunk)) for i, chunk in enumerate(chunks)]
    results = [QueryAttackResult(**of_row) for of_row in itertools.chain(*kept)]
    return [r.before == r.label == r.after for r in results], results


def _embedding(
    classifier: Classifier, rows: list[Row], seed: int, options: dict[str, Any], keep: Keep = compute_now
) -> tuple[list, list]:
    """Which rows survive, and what speaks against it."""
    found = embedding_attack(classifier, rows, radii=[RADIUS], attack=Ascent(seed=seed), keep=keep, **options)
    return found["curve"][0]["right"], [c["message"] for c in found["checks"] if c["passed"] is False]


def choose_rows(
    classifiers: Sequence[Classifier], rows: Sequence[Row], seconds: float, *, seed: int, batch_size: int
) -> tuple[int, int]:
    """How many rows to ask and how many to attack, so that all of it takes about as many seconds, at least LEAST each.

    A few rows are measured beforehand, which is a part of the time. Half of what is left is for the attacks, and more
    where all rows are asked in less.
    """
    at_least(1, batch_size=batch_size)
    begun, sample = time.perf_counter(), drawn(rows, LEAST, seed)
    texts = [sample[i % len(sample)].texts for i in range(batch_size)]
    longer = [noisy(of_row, "clause", NOISE["clause"], seed) for of_row in texts]
    asked = attacked = 0.0  # seconds a row, of all models
    for classifier in classifiers:
        predict(classifier, texts[:1], residuals="none")  # the first call prepares what the others find
        clean, clauses = (_seconds(partial(predict, classifier, some, residuals="none")) for some in (texts, longer))
        asked += (len(NOISE) * clean + clauses) / len(texts)  # the clean text and its variants, of which one is longer
        for attack in (_characters, _embedding):
            with contextlib.suppress(Exception):  # it will not be made
                made = partial(attack, classifier, sample, seed, {"batch_size": batch_size})
                attacked += _seconds(made) / len(sample)
    left = max(seconds - (time.perf_counter() - begun), 0.0)
    n = min(len(rows), max(LEAST, int(left / 2 / asked)))
    left = max(left - n * asked, 0.0)
    return n, min(n, max(LEAST, int(left / attacked) if attacked else n))


def _seconds(function: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun
