"""Attacked and noisy texts beside their originals, with what a model said of both: the table of --export."""

from collections.abc import Sequence
from typing import Any

from imbert_hf.evaluation.attacks.query import QueryAttackResult
from imbert_hf.evaluation.data.classifier import Classifier
from imbert_hf.evaluation.data.tasks import Row


def pairs(
    classifier: Classifier,
    method: str,
    rows: Sequence[Row],
    texts: Sequence[Sequence[str]],
    before: dict[str, Any],
    after: dict[str, Any],
) -> list[dict[str, Any]]:
    """A row of the table for each of `rows`.

    Args:
        classifier: which was asked.
        method: what tables call the attack or noise.
        rows: the originals.
        texts: what became of the texts of each.
        before, after: `Prediction.answers` of the originals and of `texts`.
    """
    fields, labels = classifier.task.fields, classifier.task.labels
    told = [zip(of["labels"], of["probabilities"], strict=True) for of in (before, after)]
    return [
        {
            "index": row.index,
            "model": classifier.name,
            "method": method,
            # No field can be called as another column.
            **{f"original_{field}": text for field, text in zip(fields, row.texts, strict=True)},
            **{f"attacked_{field}": text for field, text in zip(fields, attacked, strict=True)},
            "label": labels[row.label],
            "prediction_before": labels[label_before],
            "probability_before": probability_before,
            "prediction_after": labels[label_after],
            "probability_after": probability_after,
        }
        for row, attacked, (label_before, probability_before), (label_after, probability_after) in zip(
            rows, texts, *told, strict=True
        )
    ]


def pairs_of_attack(
    classifier: Classifier, method: str, rows: Sequence[Row], results: Sequence[QueryAttackResult]
) -> list[dict[str, Any]]:
    """The same of query_attack's results: the last texts of each attack, whether it succeeded or not."""
    before = {"labels": [r.before for r in results], "probabilities": [r.probability_before for r in results]}
    after = {"labels": [r.after for r in results], "probabilities": [r.probability_after for r in results]}
    return pairs(classifier, method, rows, [r.texts for r in results], before, after)
