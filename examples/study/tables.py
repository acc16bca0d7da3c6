"""Tables and pictures of a study's cells; report.py puts them together."""

from typing import Any

import numpy
from matplotlib.figure import Figure
from tabulate import tabulate

from imbert_hf.evaluation.statistics import paired_bootstrap
from study.plan import ATTACKED, NOISE, QUERIED, RADIUS, STEPS, STRENGTH
from study.scores import Cell, official


NOT_RUN = "not run"
Differences = dict[str, dict[str, dict[str, Any]]]  # measure -> model -> what `difference` returns
# column -> what it says
MEASURES = {
    "clean": "accuracy",
    "noise": f"accuracy under {', '.join(NOISE)} noise of strength {STRENGTH}, the mean over these",
    "embedding": f"accuracy under the attack on the embeddings, radius {RADIUS}, {STEPS} steps, of {ATTACKED} rows",
    "query": f"accuracy under the character attack, of {QUERIED} rows",
    "AdvGLUE": "accuracy on AdvGLUE dev, for mnli the mean of its two sets",
    "originals": "accuracy on the originals of AdvGLUE's rows, where these are known",
    "both": "original and attacked text both right",
}


def spread(values: list[float], digits: int = 1) -> str:
    if not values:
        return NOT_RUN
    text = f"{numpy.mean(values):.{digits}f}"
    return f"{text} ± {numpy.std(values, ddof=1):.{digits}f}" if len(values) > 1 else text


def accuracies(cells: list[Cell], stage: str) -> str:
    """A table: each model's seeds, accuracies and cost, and below them what the most frequent label would score."""
    lines = []
    frequent: dict[str, float] = {}
    for cell in cells:
        runs = [kept for kept in cell.kept.values() if kept is not None]
        made = [kept for kept in runs if stage in kept["stages"]]
        failed = sum(kept["problem"] is not None for kept in runs)
        line = {"": cell.model, "seeds": f"{len(made)} of {len(cell.kept)}" + f", {failed} failed" * bool(failed)}
        for measure in MEASURES:
            scores = cell.rows(stage, measure)
            line[measure] = spread([100 * float(r.mean()) for r in scores.values()])
            line[measure] += f" ({len(scores)})" * (0 < len(scores) < len(made))
        of_advglue = [kept["stages"][stage].get("advglue", {}) for kept in made]
        another = any("qqp" in sets for sets in of_advglue)
        line["official"] = spread([100 * official(sets) for sets in of_advglue]) if another or not made else ""
        line["growth"] = spread([g for kept in made if (g := kept["stages"][stage]["growth"]) is not None], 2)
        residuals = [kept["stages"][stage]["residual"] for kept in made]
        line["residual"] = spread([r for r in residuals if r is not None], 3) if any(residuals) or not made else ""
        costs = [kept["stages"]["cost"] for kept in runs if "cost" in kept["stages"]]
        for what in ("inference", "training"):
            line[f"{what} cost"] = spread([cost[what]["ratio"] for cost in costs], 2)
        lines.append(line)
        for found in (kept["stages"][stage] for kept in made):
            sets = list(found.get("advglue", {}).values())
            frequent |= {"clean": found["majority"]}
            if sets:
                frequent["AdvGLUE"] = float(numpy.mean([one["majority"] for one in sets]))
    last = {name: f"{100 * frequent[name]:.1f}" if name in frequent else "" for name in lines[0]}
    lines += [last | {"": "most frequent label"}] * bool(frequent)
    kept_columns = [
        name for name in lines[0] if any(line[name] not in (NOT_RUN, "") for line in lines) or name == "clean"
    ]
    return tabulate(
        [{name: line[name] for name in ["", *(n for n in kept_columns if n)]} for line in lines],
        "keys",
        "pipe",
        disable_numparse=True,
    )


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


def difference_table(cells: list[Cell], found: Differences) -> str:
    def text(d: dict[str, Any] | None) -> str:
        if d is None:
            return NOT_RUN
        low, high = (100 * end for end in d["ci95"])
        number = f"{100 * d['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"
        number += f" ({d['seeds']})" * (d["seeds"] < most)
        return f"**{number}**" if d["resolved"] else number

    most = len(cells[0].kept)
    lines = [{"": c.model} | {measure: text(of.get(c.model)) for measure, of in found.items()} for c in cells[1:]]
    return tabulate(lines, "keys", "pipe", disable_numparse=True)


def picture(cells: list[Cell], found: Differences, title: str) -> Figure:
    """A panel a measure: every model's difference to the first, with its interval."""
    models = [cell.model for cell in cells[1:]]
    figure = Figure(figsize=(2.5 + 2.2 * len(found), 1.2 + 0.28 * len(models)), layout="constrained")
    axes = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for ax, (measure, of) in zip(axes, found.items(), strict=True):
        for y, model in enumerate(models):
            if model in of:
                middle, (low, high) = 100 * of[model]["difference"], (100 * end for end in of[model]["ci95"])
                ax.plot([low, high], [y, y], color="tab:blue" if of[model]["resolved"] else "0.6")
                ax.plot(middle, y, "o", color="tab:blue" if of[model]["resolved"] else "0.6", markersize=4)
        ax.axvline(0, color="0.8", zorder=0)
        ax.set_title(measure, fontsize="medium")
    axes[0].set_yticks(range(len(models)), models)
    axes[0].invert_yaxis()
    figure.suptitle(f"{title}: points over {cells[0].model}", fontsize="medium")
    return figure
