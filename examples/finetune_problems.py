"""The problem types of Transformers: labels in a table, and metrics. A module of finetune.py.

Each has the names of the model's outputs, one row's label, metrics, and the metric that chooses the best checkpoint.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score

from imbert_hf.evaluation.data.tasks import Task, matching


Cells = dict[str, Any]  # a row of a table, by column
LOWER_IS_BETTER = ("mse", "mae")
UNDEFINED = ("pearson", "spearman")  # where one side is constant
FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


def sorted_names(names: set[str]) -> list[str]:
    return sorted(names, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))


def one_label(place: str, row: Cells, column: str) -> str:
    value = row[column]
    if value is None or value != value or isinstance(value, list | dict) or not str(value).strip():
        raise ValueError(f"{place}: {column!r} must hold a label, got {value!r:.60}.")
    if (name := str(value).strip()).startswith("["):
        raise ValueError(f"{place}: {column!r} must hold a label, got {name!r:.60}; lists need .jsonl or .parquet.")
    return name


def class_names(source: str, table: list[Cells], column: str) -> list[str]:
    names = {one_label(f"{source}, row {i}", row, column) for i, row in enumerate(table, start=1)}
    if len(names) < 2:
        raise ValueError(f"{source}: {column!r} must hold two labels or more, got {sorted(names)}.")
    return sorted_names(names)


def class_of(place: str, row: Cells, task: Task) -> int:
    name = one_label(place, row, task.label_column)
    if len(found := matching(name, task.labels)) == 1:
        return found[0]
    raise ValueError(f"{place}: {task.label_column!r} must be one of {', '.join(task.labels)}, got {name!r:.60}.")


def class_metrics(logits: numpy.ndarray, gold: numpy.ndarray, task: Task) -> dict[str, Any]:
    predicted = logits.argmax(axis=-1)
    metrics = {"accuracy": float(accuracy_score(gold, predicted))}
    if task.own:
        metrics["macro_f1"] = float(f1_score(gold, predicted, average="macro", zero_division=0.0))
    if task.name == "qqp":
        metrics["f1"] = float(f1_score(gold, predicted, zero_division=0.0))
    return metrics


def flag(place: str, row: Cells, column: str) -> bool:
    """Of one of several columns, each of which says whether its label holds."""
    value = str(row[column]).strip().lower()
    if value not in FLAGS:
        raise ValueError(f"{place}: {column!r} must be 0 or 1, false or true, got {row[column]!r:.60}.")
    return FLAGS[value]


def listed(place: str, row: Cells, column: str) -> set[str]:
    value = row[column]
    names = [str(name).strip() for name in value if name is not None] if isinstance(value, list) else []
    if not isinstance(value, list) or len({*names}) < len(value) or "" in names:
        raise ValueError(f"{place}: {column!r} must be a list of labels, each once and none blank, got {value!r:.60}.")
    return {*names}


def listed_names(source: str, table: list[Cells], column: str) -> list[str]:
    names = set().union(*(listed(f"{source}, row {i}", row, column) for i, row in enumerate(table, start=1)))
    if len(names) < 2 or names == {"0", "1"}:  # the latter would be one flag a label
        raise ValueError(f"{source}: {column!r} must hold lists of two labels' names or more, got {sorted(names)}.")
    return sorted_names(names)


def labels_of(place: str, row: Cells, task: Task) -> list[float]:
    names = listed(place, row, task.label_column)
    if unknown := sorted(names - {*task.labels}):
        allowed = ", ".join(task.labels)
        raise ValueError(f"{place}: {task.label_column!r} must hold labels of {allowed}, got {unknown[0]!r:.60}.")
    return [float(label in names) for label in task.labels]


def label_metrics(logits: numpy.ndarray, gold: numpy.ndarray, task: Task) -> dict[str, Any]:
    """As scikit-learn calls its scores; accuracy is that of whole rows."""
    predicted, gold = (logits > 0).astype(int), gold.astype(int)
    metrics = {f"f1_{kind}": float(f1_score(gold, predicted, average=kind, zero_division=0.0)) for kind in AVERAGES}
    return metrics | {"accuracy": float(accuracy_score(gold, predicted))}


AVERAGES = ("micro", "macro")


def number_of(place: str, row: Cells, task: Task) -> float:
    value = row[task.label_column]
    number = as_number(value)
    if number is None or not math.isfinite(number):
        raise ValueError(f"{place}: {task.label_column!r} must be a finite number, got {value!r:.60}.")
    return number


def as_number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def number_metrics(logits: numpy.ndarray, gold: numpy.ndarray, task: Task) -> dict[str, Any]:
    """Correlations are None where one side is constant."""
    apart = (predicted := logits.reshape(-1)) - gold
    varied = all(len({*values.tolist()}) > 1 for values in (predicted, gold))
    correlations = {"pearson": pearsonr, "spearman": spearmanr}
    metrics = {"mse": float((apart**2).mean()), "mae": float(abs(apart).mean())}
    return metrics | {n: float(of(predicted, gold).statistic) if varied else None for n, of in correlations.items()}


@dataclass(frozen=True)
class Problem:
    """What a problem type makes of labels.

    Attributes:
        names: (file, its table, label column) -> names of the model's outputs.
        label: (place, row, task) -> the row's label for the model. Raises ValueError, which names place and column.
        metrics: (logits, labels, task) -> metrics by name.
        best: the metric that chooses the best checkpoint.
    """

    names: Callable[[str, list[Cells], str], list[str]]
    label: Callable[[str, Cells, Task], Any]
    metrics: Callable[[numpy.ndarray, numpy.ndarray, Task], dict[str, Any]]
    best: str


SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
PROBLEMS = {
    SINGLE: Problem(class_names, class_of, class_metrics, "accuracy"),
    MULTI: Problem(listed_names, labels_of, label_metrics, "f1_micro"),
    REGRESSION: Problem(lambda source, table, column: [column], number_of, number_metrics, "mse"),
}


def problem_of(table: list[Cells], columns: list[str]) -> str:
    """The problem type of label columns: several, or lists, are of MULTI, numbers with fractions of REGRESSION."""
    values = [row[columns[0]] for row in table]
    if len(columns) > 1 or any(isinstance(value, list) for value in values):
        return MULTI
    numbers = [number for value in values if (number := as_number(value)) is not None]
    fractions = any(math.isfinite(number) and not number.is_integer() for number in numbers)
    return REGRESSION if fractions and len(numbers) == len(values) else SINGLE
