"""The picture of `imbert-eval cost`: time against residual, and how time grows with whatever was varied."""

import itertools
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from imbert_hf.evaluation.pictures import SOLVERS, panels_of, shortened


OTHERS: dict[str, Any] = {"FreeLB": ":", "R3F": "-.", "R-Drop": (0, (1, 4))}  # steps without a residual
PHASES: dict[str, tuple[str, Any]] = {
    "inference": ("o", "-"),
    "implicit": ("s", "--"),
    "one_step": ("^", ":"),
    "unrolled": ("X", "-."),
}
AXES = {
    "iterations": "iterations",
    "batch": "rows a batch",
    "length": "tokens a row",
    "implicit_layers": "implicit layers",
}


def figure(data: dict[str, Any], head: str) -> Figure:
    """A panel for inference and for each gradient of each batch, then one for whatever was varied."""
    cells = data["cells"]
    train = any(row["training"] for cell in cells for row in cell["rows"])
    gradients = list(dict.fromkeys(r["gradient"] for c in cells for r in c["rows"] if r["kind"] == "IM-BERT"))
    phases = [("inference", gradients[0]), *(("training", g) for g in gradients if train)]
    varied = [axis for axis in AXES if len(_values(cells, axis)) > 1]
    colours = _colours(cells)
    draws = [partial(_draw, cell, phase, gradient, colours) for cell in cells for phase, gradient in phases]
    draws += [partial(_draw_growth, cells, axis, colours) for axis in varied]
    picture = panels_of(draws, width=4.5)
    picture.suptitle(shortened(head, 110), fontsize="medium")
    handles = []
    for (solver, rate), colour in colours.items():
        label = solver.replace("_", " ") + ("" if rate is None else f", lr {rate:g}")
        handles.append(Line2D([], [], color=colour, marker="o", label=label))
    handles += [Line2D([], [], color="gray", marker="|", linestyle="--", label="floor")]
    handles += [Line2D([], [], color="black", label="BERT")]
    kinds = dict.fromkeys(row["kind"] for cell in cells for row in cell["rows"])
    handles += [Line2D([], [], color="gray", linestyle=OTHERS[kind], label=kind) for kind in kinds if kind in OTHERS]
    others = [kind for kind in kinds if kind not in ("BERT", "EX-BERT", "IM-BERT", *OTHERS)]
    handles += [Line2D([], [], color="gray", marker="x", linestyle=":", label=kind) for kind in others]
    if varied:
        shown = [what for what in PHASES if what == "inference" or (train and what in gradients)]
        for what in shown:
            marker, line = PHASES[what]
            label = f"growth: {what.replace('_', ' ')}"
            handles.append(Line2D([], [], color="gray", marker=marker, linestyle=line, label=label))
    columns = max(2, int(picture.get_figwidth() / 2))
    picture.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize="small")
    return picture


def _values(cells: list[dict[str, Any]], axis: str) -> list[int]:
    if axis == "iterations":
        return sorted({row["iterations"] for cell in cells for row in cell["rows"] if row["kind"] == "IM-BERT"})
    return sorted({cell[axis] for cell in cells})


Colours = dict[tuple[str, float | None], str]  # of a solver and its learning rate


def _colours(cells: list[dict[str, Any]]) -> Colours:
    found: Colours = {}
    more = itertools.cycle(("tab:purple", "tab:brown", "tab:pink", "tab:olive"))
    for row in (row for cell in cells for row in cell["rows"] if row["solver"]):
        key = (row["solver"], row["learning_rate"])
        if key not in found:
            found[key] = next(more) if SOLVERS[key[0]] in found.values() else SOLVERS[key[0]]
    return found


def _draw_growth(cells: list[dict[str, Any]], axis: str, colours: Colours, axes: Any) -> None:
    """Of IM-BERT, with all else as in the first batch, and the most iterations where these are not what varies."""
    others = [name for name in ("batch", "length", "implicit_layers", "text") if name != axis]
    most = _values(cells, "iterations")[-1]
    lines: dict[tuple, dict[int, float]] = {}
    for cell in cells:
        if any(cell[name] != cells[0][name] for name in others):
            continue
        for row in cell["rows"]:
            if row["kind"] != "IM-BERT" or (axis != "iterations" and row["iterations"] != most):
                continue
            x = row[axis] if axis == "iterations" else cell[axis]
            for phase, what in (("inference", "inference"), ("training", row["gradient"])):
                if row[phase]:
                    lines.setdefault((row["solver"], row["learning_rate"], what), {})[x] = row[phase]["ratio"]
    for (solver, rate, what), points in lines.items():
        if len(points) > 1:
            marker, line = PHASES[what]
            style: dict[str, Any] = {"marker": marker, "linestyle": line, "markersize": 4, "alpha": 0.8}
            axes.plot(*zip(*sorted(points.items()), strict=True), color=colours[solver, rate], **style)
    of = "" if axis == "iterations" else f"; {most} iterations"
    axes.set(xlabel=AXES[axis], ylabel="time / BERT", xticks=_values(cells, axis))
    axes.set_title(f"growth with {AXES[axis]}{of}", fontsize="small")


def _draw(cell: dict[str, Any], phase: str, gradient: str, colours: Colours, axes: Any) -> None:
    """Points are settings of T; their whiskers are the quartiles of the rounds."""
    lines: dict[tuple, dict[int, dict[str, Any]]] = {}
    for row in cell["rows"]:
        wanted = phase == "inference" or row["gradient"] == gradient  # at inference all gradients are one
        if row["solver"] and row["residual"] and row[phase] and wanted:
            lines.setdefault((row["kind"], row["solver"], row["learning_rate"]), {})[row["iterations"]] = row
    for (kind, solver, rate), by_iterations in lines.items():
        rows = [by_iterations[T] for T in sorted(by_iterations)]
        residuals, timings = [row["residual"] for row in rows], [row[phase] for row in rows]
        times = [timing["ratio"] for timing in timings]
        spreads = [[abs(t["quartiles"][i] - t["ratio"]) for t in timings] for i in (0, 1)]
        mark, colour = ("o-" if kind == "IM-BERT" else "x:"), colours[solver, rate]
        axes.errorbar(times, residuals, xerr=spreads, fmt=mark, color=colour, markersize=5, alpha=0.8)
        if kind == "IM-BERT":
            floors = [timing["floor"] for timing in timings]
            axes.plot(floors, residuals, "|--", color=colour, markersize=8, alpha=0.6)
    axes.axvline(1, color="black", linewidth=1)
    for row in cell["rows"]:
        if row["kind"] in OTHERS and row[phase]:
            axes.axvline(row[phase]["ratio"], color="gray", linestyle=OTHERS[row["kind"]])
    axes.set(yscale="log", xlabel="time / BERT", ylabel="relative residual")
    what = "inference" if phase == "inference" else f"training step, {gradient.replace('_', ' ')}"
    about = f"{cell['batch']} x {cell['length']}, {cell['text']} text, {cell['implicit_layers']} implicit"
    axes.set_title(f"{what}; {about}", fontsize="small")
