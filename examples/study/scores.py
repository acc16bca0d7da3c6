"""What the rows of a study's runs score, from the lines that are kept of them; report.py renders it."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy

from study.kept import read_run
from study.plan import Run


@dataclass(frozen=True)
class Cell:
    """The kept runs of one model on one task, by seed; None where a seed was not run."""

    model: str
    kept: dict[int, dict[str, Any] | None]

    def rows(self, stage: str, measure: str) -> dict[int, numpy.ndarray]:
        """seed -> (n,) what each row scores, whose mean is from 0 to 1; seeds that were run."""
        found = {}
        for seed, kept in self.kept.items():
            if kept is not None and (scores := of_measure(kept["stages"], stage, measure)) is not None:
                found[seed] = scores[~numpy.isnan(scores)]
        return found

    def of_stage(self, stage: str) -> list[dict[str, Any]]:
        """What is kept of the stage, seed by seed."""
        runs = (kept["stages"] for kept in self.kept.values() if kept is not None)
        return [stages[stage] for stages in runs if stage in stages]

    def over(self, first: "Cell", stage: str, measure: str) -> numpy.ndarray:
        """(seeds, n) what each row scores more than with `first`, of the seeds that both were run with."""
        own, other = self.rows(stage, measure), first.rows(stage, measure)
        return numpy.array([own[seed] - other[seed] for seed in own if seed in other])


def of_measure(stages: dict[str, Any], stage: str, measure: str) -> numpy.ndarray | None:
    """(n,) 1 where a row is right, 0 where wrong, NaN where there is nothing; None where it was not measured.

    A row under natural noise scores the share of the kinds of noise under which it is right. MNLI's two sets of AdvGLUE
    count the same, though they differ in size: the rows of the smaller one weigh more, and are drawn from both at once.
    """
    made = stages.get(stage, {})
    if measure == "query":
        return digits(stages["query"]["after"]) if stage == "test" and "query" in stages else None
    if measure in ("clean", "embedding"):
        return digits(made[measure]) if made else None
    if measure == "noise":
        return numpy.nanmean([digits(text) for text in made["noise"].values()], axis=0) if made else None
    if measure == "worst":
        return (
            numpy.nanmin([digits(text) for text in (made["clean"], *made["noise"].values())], axis=0) if made else None
        )
    if measure == "AdvGLUE test":
        made, measure = stages.get("advglue_test", {}) if stage == "test" else {}, "AdvGLUE"
    scores = []
    for one in made.get("advglue", {}).values():
        attacked, original = digits(one["attacked"]), digits(one["original"])
        scores.append({"AdvGLUE": attacked, "originals": original, "both": attacked * original}[measure])
    counts = [int((~numpy.isnan(of_set)).sum()) for of_set in scores]
    if not any(counts):
        return None
    weights = [sum(counts) / (numpy.count_nonzero(counts) * max(1, count)) for count in counts]
    return numpy.concatenate([weight * of_set for weight, of_set in zip(weights, scores, strict=True)])


def official(sets: dict[str, dict[str, Any]]) -> float:
    """AdvGLUE's score of one task, from 0 to 1, of the sets that `test` keeps."""
    scores = [[digits(one["attacked"]).mean(), *([] if one["f1"] is None else [one["f1"]])] for one in sets.values()]
    return float(numpy.mean([numpy.mean(of_set) for of_set in scores]))


def digits(text: str) -> numpy.ndarray:
    return numpy.array([numpy.nan if c == "-" else float(c) for c in text])


def costs(cell: Cell) -> dict[str, list[float]]:
    """Times of the model to plain BERT's with the same weights, of the seeds that they were taken of."""
    return {f"{what} cost": [of[what]["ratio"] for of in cell.of_stage("cost")] for what in ("inference", "training")}


def cells_of(runs: Iterable[Run], folder: Path) -> list[Cell]:
    kept: dict[str, dict[int, dict[str, Any] | None]] = {}
    for run in runs:
        made = read_run(folder, run)
        made["stages"] |= kept_cost(folder, run) if made["stages"] else {}
        kept.setdefault(run.model, {})[run.seed] = made if made["stages"] or made["problem"] else None
    return [Cell(model, seeds) for model, seeds in kept.items()]


def kept_cost(folder: Path, run: Run) -> dict[str, Any]:
    """Measured once, without autocast."""
    stages = read_run(folder, replace(run, autocast=""))["stages"]
    return {"cost": stages["cost"]} if "cost" in stages else {}
