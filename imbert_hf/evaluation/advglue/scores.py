"""AdvGLUE (Wang et al., NeurIPS 2021, arXiv 2111.02840): accuracy on attacked texts, beside what makes it readable.

A model that has collapsed to one class scores at the majority baseline, above trained models: so clean accuracy, the
baseline and the predicted shares stand beside every accuracy, and every difference has its interval.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy
from numpy.typing import ArrayLike
from sklearn.metrics import f1_score

from imbert_hf.evaluation.data.classifier import Classifier, Prediction, predict
from imbert_hf.evaluation.data.tasks import TASKS, Row, Task
from imbert_hf.evaluation.statistics import accuracy_interval, paired_difference


@dataclass(frozen=True)
class Run:
    """One model's predictions for the rows of one task.

    Attributes:
        name: of the model; runs of one name and task are seeds of one model.
        path: of the checkpoint.
        task: of the rows.
        rows: n rows.
        labels: (n,) predicted for the attacked texts, GLUE's integers.
        original_labels: (n,) predicted for the originals, -1 where a row has none.
        residuals, converged: of the implicit layers, as in Prediction.
        about: what else an entry of the results tells of the model.
    """

    name: str
    path: str
    task: Task
    rows: Sequence[Row]
    labels: numpy.ndarray
    original_labels: numpy.ndarray
    residuals: numpy.ndarray
    converged: numpy.ndarray
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def repeated(self) -> int:
        """How many rows have an original that another has, too, in a table of one's own: they are not independent."""
        originals = [row.original for row in self.rows if row.original is not None]
        return len(originals) - len({*originals}) if self.task.own else 0

    @property
    def gold(self) -> numpy.ndarray:
        return numpy.array([row.label for row in self.rows])

    @property
    def right(self) -> numpy.ndarray:
        """(n,) bool, the attacked text is classified as its label says."""
        return self.labels == self.gold

    @property
    def paired(self) -> numpy.ndarray:
        """(n,) bool, the original is known."""
        return self.original_labels >= 0

    @property
    def original_right(self) -> numpy.ndarray:
        return self.original_labels == self.gold


def run(classifier: Classifier, rows: Sequence[Row], **options: Any) -> Run:
    """Asks a classifier about attacked texts and originals; `options` are predict's."""
    attacked = predict(classifier, [row.texts for row in rows], **options)
    originals = sorted({row.original for row in rows if row.original is not None})
    clean: Prediction = predict(classifier, originals, **options | {"residuals": "none"})
    of = dict(zip(originals, clean.labels.tolist(), strict=True))
    return Run(
        name=classifier.name,
        path=classifier.path,
        task=classifier.task,
        rows=rows,
        labels=attacked.labels,
        original_labels=numpy.array([-1 if row.original is None else of[row.original] for row in rows]),
        residuals=attacked.residuals,
        converged=attacked.converged,
        about=classifier.about(),
    )


def measure(run: Run) -> dict[str, Any]:
    """An entry of `results`: shares are from 0 to 1, None where the data does not tell.

    accuracy on the attacked texts; clean_accuracy on the originals of the rows that have one (`pairs` of them);
    robust_accuracy, both texts right; attack_success_rate, the attacked text wrong among pairs whose original is right.
    """
    everything = numpy.ones(len(run.rows), dtype=bool)
    return {
        "model": run.name,
        "path": run.path,
        "task": run.task.name,
        **run.about,
        **_shares(run, everything),
        "accuracy_ci95": accuracy_interval(run.right),
        **_pair_intervals(run),
        "f1": float(f1_score(run.gold, run.labels, zero_division=0.0)) if run.task == TASKS["qqp"] else None,
        **baseline(run.task, run.gold, run.labels),
        "by_construction": _by(run, lambda row: row.construction),
        "by_method": _by(run, lambda row: row.method),
        "mean_residual": float(run.residuals.mean())
        if numpy.isfinite(run.residuals).all() and run.residuals.size
        else None,
        "unconverged_rate": float(1 - run.converged.mean()) if run.converged.size else None,
        "residual_rows": len(run.residuals),
        "repeated": run.repeated,
    }


def baseline(task: Task, gold: ArrayLike, labels: ArrayLike) -> dict[str, Any]:
    """What shows a collapse: majority_accuracy, of a model that always says the most frequent label, and
    predicted_share, by label.
    """
    k = len(task.labels)
    of_gold, of_labels = (numpy.bincount(numpy.asarray(values, dtype=int), minlength=k) for values in (gold, labels))
    return {
        "majority_accuracy": float(of_gold.max() / of_gold.sum()),
        "predicted_share": dict(zip(task.labels, (of_labels / of_labels.sum()).tolist(), strict=True)),
    }


def collapse_warnings(entries: Sequence[dict[str, Any]]) -> list[str]:
    """A sentence for each model that says almost always the same; entries with model, task and predicted_share."""
    found = []
    for entry in entries:
        label, share = max(entry["predicted_share"].items(), key=lambda item: item[1])
        if share >= 0.9:
            found.append(
                f"warning: {entry['model']} predicts {label} for {100 * share:.0f} % of the rows of {entry['task']}: "
                "a model that says always the same cannot be attacked, and is no robust one."
            )
    return list(dict.fromkeys(found))


def _shares(run: Run, chosen: numpy.ndarray) -> dict[str, Any]:
    pairs = run.paired & chosen
    clean = pairs & run.original_right
    return {
        "n": int(chosen.sum()),
        "accuracy": _share(run.right, chosen),
        "pairs": int(pairs.sum()),
        "clean_accuracy": _share(run.original_right, pairs),
        "robust_accuracy": _share(run.original_right & run.right, pairs),
        "attack_success_rate": _share(~run.right, clean),
    }


def _share(values: numpy.ndarray, chosen: numpy.ndarray) -> float | None:
    return float(values[chosen].mean()) if chosen.any() else None


def _pair_intervals(run: Run) -> dict[str, Any]:
    pairs = run.paired
    if not pairs.any():
        return {"clean_accuracy_ci95": None, "robust_accuracy_ci95": None}
    return {
        "clean_accuracy_ci95": accuracy_interval(run.original_right[pairs]),
        "robust_accuracy_ci95": accuracy_interval((run.original_right & run.right)[pairs]),
    }


def _by(run: Run, key: Callable[[Row], str | None]) -> dict[str, dict[str, Any]]:
    keys = numpy.array([key(row) or "" for row in run.rows])
    return {str(name): _shares(run, keys == name) for name in numpy.unique(keys) if name}


def _groups(runs: Sequence[Run]) -> dict[str, dict[str, list[Run]]]:
    """task -> name of the model -> its runs."""
    groups: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        groups.setdefault(run.task.name, {}).setdefault(run.name, []).append(run)
    return groups


def summarise(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Per model and task with several seeds: mean and standard deviation (n - 1) of the measures."""
    measures = ("accuracy", "clean_accuracy", "robust_accuracy", "attack_success_rate")
    summaries = []
    for task, models in _groups(runs).items():
        for name, seeds in models.items():
            if len(seeds) > 1:
                entry: dict[str, Any] = {"model": name, "task": task, "seeds": len(seeds)}
                found = [measure(run) for run in seeds]
                for what in measures:
                    values = [m[what] for m in found]
                    known = None not in values
                    entry[what] = float(numpy.mean(values)) if known else None
                    entry[f"{what}_std"] = float(numpy.std(values, ddof=1)) if known else None
                summaries.append(entry)
    return summaries


def compare(runs: Sequence[Run], *, seed: int = 0) -> list[dict[str, Any]]:
    """Every two models of a task on the same rows: `difference` is the accuracy of a minus that of b.

    Nothing is resolved where rows of one's own are `repeated`.

    `ci95` is its paired bootstrap interval over rows and, where there are several, over seeds, which pair in the order
    given (`pairs` names their checkpoints); mcnemar_p is None then. `resolved` is that of paired_difference.
    `robust_accuracy` holds the same for pairs with both texts right.

    Raises:
        ValueError: two models of a task have other numbers of seeds, or other rows.
    """
    comparisons = []
    for task, models in _groups(runs).items():
        for (a, of_a), (b, of_b) in combinations(models.items(), 2):
            if any(run.rows != of_a[0].rows for run in (*of_a, *of_b)):
                raise ValueError(f"{a} and {b} were asked about other rows of {task}.")
            if len(of_a) != len(of_b):
                raise ValueError(
                    f"{a} has {len(of_a)} checkpoints of {task} and {b} has {len(of_b)}; seeds are compared in pairs, "
                    "give as many of each, in the same order."
                )
            both = [(x.right, y.right) for x, y in zip(of_a, of_b, strict=True)]
            pairs = of_a[0].paired
            robust = [
                ((x.right & x.original_right)[pairs], (y.right & y.original_right)[pairs])
                for x, y in zip(of_a, of_b, strict=True)
            ]
            found = {
                "a": a,
                "b": b,
                "task": task,
                "seeds": len(of_a),
                "pairs": [[x.path, y.path] for x, y in zip(of_a, of_b, strict=True)],
                **paired_difference(both, seed),
                "robust_accuracy": paired_difference(robust, seed) if pairs.any() else None,
            }
            if of_a[0].repeated:
                for part in filter(None, (found, found["robust_accuracy"])):
                    part["resolved"] = False
            comparisons.append(found)
    return comparisons


def official_score(results: Sequence[dict[str, Any]]) -> tuple[float | None, float | None]:
    """AdvGLUE's score of one model, and the same from accuracies alone; None where a task is missing.

    The unweighted mean over sst2, qqp, mnli, qnli and rte, where qqp is the mean of accuracy and F1, and mnli the mean
    of matched and mismatched. Several seeds of a task count by their mean.
    """

    def mean(task: str, what: str) -> float:
        return float(numpy.mean([r[what] for r in results if r["task"] == task]))

    if {r["task"] for r in results} != {"sst2", "qqp", "mnli", "mnli-mm", "qnli", "rte"}:
        return None, None
    mnli = (mean("mnli", "accuracy") + mean("mnli-mm", "accuracy")) / 2
    rest = mnli + sum(mean(task, "accuracy") for task in ("sst2", "qnli", "rte"))
    qqp = mean("qqp", "accuracy")
    return (rest + (qqp + mean("qqp", "f1")) / 2) / 5, (rest + qqp) / 5
