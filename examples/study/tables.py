"""Tables of a study's cells; report.py puts them together, with the pictures of pictures.py."""

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from tabulate import tabulate

from imbert_hf.evaluation.statistics import paired_bootstrap
from study.plan import ATTACKED, NOISE, PICTURES, QUERIED, RADIUS, STEPS, STRENGTH
from study.scores import Cell, costs, official


NOT_RUN = "not run"
Line = dict[str, str]  # column -> what it shows; the first column, "", is the model
Differences = dict[str, dict[str, dict[str, Any]]]  # measure -> model -> what `difference` returns
# column -> what it says
MEASURES = {
    "clean": "accuracy",
    "noise": f"accuracy under {', '.join(NOISE)} noise of strength {STRENGTH}, the mean over these",
    "worst": "right on the clean text and under each of these kinds of noise",
    "embedding": f"accuracy under the attack on the embeddings, radius {RADIUS}, {STEPS} steps, of {ATTACKED} rows",
    "query": f"accuracy under the character attack, of {QUERIED} rows",
    "AdvGLUE": "accuracy on AdvGLUE dev, for mnli the mean of its two sets",
    "AdvGLUE test": "the same on its test set",
    "originals": "accuracy on the originals of AdvGLUE's rows, where these are known",
    "both": "original and attacked text both right",
}


@dataclass(frozen=True)
class Table:
    """The models of a part on one task, or of a score over its tasks.

    Attributes:
        title: of its picture.
        note: what it is of.
        cells: a model each.
        lines: accuracies, a line a model, and what the most frequent label would score.
        apart: what models score over those that they are compared with, where both were run.
        over: model -> the model that it is compared with.
        kind: of its picture: "differences", these against the "cost" of training, or "layers".
    """

    title: str
    note: str
    cells: list[Cell]
    lines: list[Line]
    apart: Differences
    over: dict[str, str]
    kind: str = PICTURES[0]

    @property
    def drawn(self) -> bool:
        return any(cell.of_stage("layers") for cell in self.cells) if self.kind == "layers" else bool(self.apart)

    @property
    def caption(self) -> str:
        return textwrap.fill(self.note, 120, break_on_hyphens=False)

    @property
    def bases(self) -> list[str]:
        return list(dict.fromkeys(self.over.values()))

    @property
    def base(self) -> str:
        """What the models are compared with, in words."""
        return "the model that each line names" if len(self.bases) > 1 else self.cells[0].model


def part_table(title: str, note: str, cells: list[Cell], stage: str, kind: str) -> Table:
    lines = [accuracies(cell, stage) for cell in cells]
    frequent = most_frequent(cells, stage)
    lines += [dict.fromkeys(lines[0], "") | frequent] * bool(frequent)
    shown = [n for n in lines[0] if n in ("", "clean") or any(line[n] not in (NOT_RUN, "") for line in lines)]
    lines, apart = [{n: line[n] for n in shown} for line in lines], differences(cells, stage)
    return Table(title, note, cells, lines, apart, over_first(cells), kind)


def over_first(cells: Sequence[Cell]) -> dict[str, str]:
    return {cell.model: cells[0].model for cell in cells[1:]}


def accuracies(cell: Cell, stage: str) -> Line:
    """A model's seeds, accuracies and cost."""
    runs = [kept for kept in cell.kept.values() if kept is not None]
    made = [kept["stages"] for kept in runs if stage in kept["stages"]]
    failed = sum(kept["problem"] is not None for kept in runs)
    line = {"": cell.model, "seeds": f"{len(made)} of {len(cell.kept)}" + f", {failed} failed" * bool(failed)}
    for measure in MEASURES:
        scores = cell.rows(stage, measure)
        line[measure] = spread([100 * float(r.mean()) for r in scores.values()])
        line[measure] += f" ({len(scores)})" * (0 < len(scores) < len(made))
    of_advglue = [stages[stage].get("advglue", {}) for stages in made]
    another = any("qqp" in sets for sets in of_advglue)
    line["official"] = spread([100 * official(sets) for sets in of_advglue]) if another or not made else ""
    line["growth"] = spread([g for stages in made if (g := stages[stage]["growth"]) is not None], 2)
    residuals = [stages[stage]["residual"] for stages in made]
    line["residual"] = spread([r for r in residuals if r is not None], 3) if any(residuals) or not made else ""
    return line | {name: spread(ratios, 2) for name, ratios in costs(cell).items()}


def most_frequent(cells: list[Cell], stage: str) -> Line:
    """What always answering it would score, as the last run says."""
    line: Line = {}
    for kept in (kept for cell in cells for kept in cell.kept.values() if kept is not None):
        if found := kept["stages"].get(stage):
            line |= {"": "most frequent label", "clean": f"{100 * found['majority']:.1f}"}
            if shares := [one["majority"] for one in found.get("advglue", {}).values()]:
                line["AdvGLUE"] = f"{100 * float(numpy.mean(shares)):.1f}"
    return line


def spread(values: list[float], digits: int = 1) -> str:
    if not values:
        return NOT_RUN
    text = f"{numpy.mean(values):.{digits}f}"
    return f"{text} ± {numpy.std(values, ddof=1):.{digits}f}" if len(values) > 1 else text


def differences(cells: list[Cell], stage: str) -> Differences:
    """measure -> model -> its difference to the first, over the seeds that both were run with."""
    found: Differences = {}
    for measure in MEASURES:
        for cell in cells[1:]:
            if len(apart := cell.over(cells[0], stage, measure)):
                found.setdefault(measure, {})[cell.model] = difference(apart)
    return found


def difference(*apart: numpy.ndarray) -> dict[str, Any]:
    """The mean of (seeds, n), or of several such sets' means; resolved: its interval excludes 0, of several seeds."""
    low, high = interval = paired_bootstrap(*apart)
    seeds = min(len(of_set) for of_set in apart)
    resolved = seeds > 1 and not low <= 0 <= high
    mean = float(numpy.mean([of_set.mean() for of_set in apart]))
    return {"difference": mean, "ci95": interval, "resolved": resolved, "seeds": seeds}


def difference_lines(table: Table) -> list[Line]:
    """A line a model that is compared: its points over the other, in brackets the seeds where these are fewer."""
    most = len(table.cells[0].kept)

    def points(found: dict[str, Any] | None) -> str:
        if found is None:
            return NOT_RUN
        low, high = (100 * end for end in found["ci95"])
        number = f"{100 * found['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"
        number += f" ({found['seeds']})" * (found["seeds"] < most)
        return f"**{number}**" if found["resolved"] else number

    return [
        {"": model, **({"over": base} if len(table.bases) > 1 else {})}
        | {measure: points(of.get(model)) for measure, of in table.apart.items()}
        for model, base in table.over.items()
    ]


def markdown(lines: Iterable[Line]) -> str:
    return tabulate(lines, "keys", "pipe", disable_numparse=True)
