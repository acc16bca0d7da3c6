"""Tables and pictures of a study's cells; report.py puts them together."""

import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from matplotlib.figure import Figure
from tabulate import tabulate

from imbert_hf.evaluation.statistics import paired_bootstrap
from study.plan import ATTACKED, NOISE, QUERIED, RADIUS, STEPS, STRENGTH
from study.scores import Cell, costs, official


NOT_RUN = "not run"
MARKERS = "os^Dv<>pPX"
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
        cells: a model each; the first is what the others are compared with.
        lines: accuracies, a line a model, and what the most frequent label would score.
        apart: what the other models score over the first, where both were run.
        draw: its picture, where it is none of differences.
    """

    title: str
    note: str
    cells: list[Cell]
    lines: list[Line]
    apart: Differences
    draw: Callable[["Table"], Figure] | None = None

    @property
    def drawn(self) -> bool:
        return self.draw is not None or bool(self.apart)

    @property
    def caption(self) -> str:
        return textwrap.fill(self.note, 120, break_on_hyphens=False)


def part_table(title: str, note: str, cells: list[Cell], stage: str, kind: str | None = None) -> Table:
    """`kind` of picture, of plan.PICTURES."""
    lines = [accuracies(cell, stage) for cell in cells]
    frequent = most_frequent(cells, stage)
    lines += [dict.fromkeys(lines[0], "") | frequent] * bool(frequent)
    shown = [n for n in lines[0] if n in ("", "clean") or any(line[n] not in (NOT_RUN, "") for line in lines)]
    lines, apart = [{n: line[n] for n in shown} for line in lines], differences(cells, stage)
    return Table(title, note, cells, lines, apart, drawing(kind, apart))


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
    """A line a model but the first: its points over the first, in brackets the seeds where these are fewer."""
    most = len(table.cells[0].kept)

    def points(found: dict[str, Any] | None) -> str:
        if found is None:
            return NOT_RUN
        low, high = (100 * end for end in found["ci95"])
        number = f"{100 * found['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"
        number += f" ({found['seeds']})" * (found["seeds"] < most)
        return f"**{number}**" if found["resolved"] else number

    return [
        {"": cell.model} | {measure: points(of.get(cell.model)) for measure, of in table.apart.items()}
        for cell in table.cells[1:]
    ]


def markdown(lines: Iterable[Line]) -> str:
    return tabulate(lines, "keys", "pipe", disable_numparse=True)


def picture(table: Table) -> Figure:
    """A panel a measure: every model's difference to the first, with its interval."""
    models = [cell.model for cell in table.cells[1:]]
    figure = Figure(figsize=(2.5 + 2.2 * len(table.apart), 1.2 + 0.28 * len(models)), layout="constrained")
    axes = figure.subplots(1, len(table.apart), sharey=True, squeeze=False)[0]
    for ax, (measure, of) in zip(axes, table.apart.items(), strict=True):
        for y, model in enumerate(models):
            if model in of:
                middle, (low, high) = 100 * of[model]["difference"], (100 * end for end in of[model]["ci95"])
                ax.plot([low, high], [y, y], color="tab:blue" if of[model]["resolved"] else "0.6")
                ax.plot(middle, y, "o", color="tab:blue" if of[model]["resolved"] else "0.6", markersize=4)
        ax.axvline(0, color="0.8", zorder=0)
        ax.set_title(measure, fontsize="medium")
    axes[0].set_yticks(range(len(models)), models)
    axes[0].invert_yaxis()
    figure.suptitle(f"{table.title}: points over {table.cells[0].model}", fontsize="medium")
    return figure


def drawing(kind: str | None, apart: Differences) -> Callable[[Table], Figure] | None:
    return cost_picture if kind == "cost" and apart else None


def looks(models: Sequence[str]) -> dict[str, dict[str, Any]]:
    """model -> its colour and mark. What a name says behind a comma is shown by the mark, the rest by the colour.

    So "R3F, last layer" has the colour of "R3F" and the mark of "last layer", which itself is a mark without a name.
    """
    behind = {model.partition(", ")[2] for model in models}
    halves = {model: ("", model) if model in behind else model.partition(", ")[::2] for model in models}
    hues, marks = (list(dict.fromkeys(half[i] for half in halves.values())) for i in (0, 1))
    found = {}
    for model, (hue, mark) in halves.items():
        k = hues.index(hue)
        mark_of_ten = marks.index(mark) + len(marks) * (k // 10)
        found[model] = {"color": f"C{k % 10}", "fmt": MARKERS[mark_of_ten % len(MARKERS)]}
    return found


def cost_picture(table: Table) -> Figure:
    """A panel a measure, a dot a model: its difference to the first against what its training costs.

    Models of no known cost are left out; a score's costs are those of its first task. Resolved differences are full.
    """
    known = {cell.model: found for cell in table.cells[1:] if (found := costs(cell)["training cost"])}
    figure = Figure(figsize=(2.5 + 2.6 * len(table.apart), 3 + 0.1 * len(known)), layout="constrained")
    axes = figure.subplots(1, len(table.apart), squeeze=False)[0]
    shown, styles = {}, looks(list(known))
    for ax, (measure, of) in zip(axes, table.apart.items(), strict=True):
        for model, ratios in known.items():
            if model in of:
                middle, ends = 100 * of[model]["difference"], 100 * numpy.array(of[model]["ci95"])
                style = styles[model] | {"markersize": 5, "elinewidth": 0.8}
                style["markerfacecolor"] = style["color"] if of[model]["resolved"] else "white"
                bars = numpy.abs(ends - middle)[:, None]
                shown[model] = ax.errorbar(float(numpy.mean(ratios)), middle, bars, label=model, **style)
        ax.axhline(0, color="0.8", zorder=0)
        ax.set_title(measure, fontsize="medium")
        ax.set_xlabel("training cost")
    figure.legend(shown.values(), shown.keys(), loc="outside right center", fontsize="x-small")
    figure.suptitle(f"{table.title}: points over {table.cells[0].model}", fontsize="medium")
    return figure
