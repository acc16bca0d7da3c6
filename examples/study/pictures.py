"""Pictures of a study's tables, a panel a measure."""

from collections.abc import Sequence
from typing import Any

import numpy
from matplotlib.figure import Figure

from study.scores import costs
from study.tables import Table


ACROSS = 3  # panels, so that a page shows their words at a size that can be read
MARKERS = "os^Dv<>pPX"
DASHES = {"typos": "--"}  # clean text has whole lines
LAYERS = {
    "first": "stiffness, first token",
    "stiffness": "stiffness, all tokens",
    "moved": "movement by typos",
    "radius": "spectral radius",
}


def picture(table: Table) -> Figure:
    return {"differences": difference_picture, "cost": cost_picture, "layers": layers_picture}[table.kind](table)


def difference_picture(table: Table) -> Figure:
    """Every model's difference, with its interval; resolved ones in blue."""
    models = [model for model in table.over if any(model in of for of in table.apart.values())]
    figure, axes = panels(list(table.apart), (2.6, 0.8 + 0.26 * len(models)), sharey=True)
    for ax, of in zip(axes, table.apart.values(), strict=True):
        for y, model in enumerate(models):
            if model in of:
                middle, ends = points(of[model])
                color = "tab:blue" if of[model]["resolved"] else "0.6"
                ax.plot(ends, [y, y], color=color)
                ax.plot(middle, y, "o", color=color, markersize=4)
        ax.axvline(0, color="0.8", zorder=0)
    axes[0].set_yticks(range(len(models)), models)
    axes[0].set_ylim(len(models) - 0.5, -0.5)
    figure.suptitle(f"{table.title}: points over {table.base}", fontsize="medium")
    return figure


def cost_picture(table: Table) -> Figure:
    """A dot a model: its difference against what its training costs; resolved ones are full.

    Models of no known cost are left out; a score's costs are those of its first task.
    """
    compared = [cell for cell in table.cells if cell.model in table.over]
    known = {cell.model: found for cell in compared if (found := costs(cell)["training cost"])}
    figure, axes = panels(list(table.apart), (2.6, 3))
    shown, styles = {}, looks(list(known))
    for ax, of in zip(axes, table.apart.values(), strict=True):
        for model, ratios in known.items():
            if model in of:
                middle, ends = points(of[model])
                style = styles[model] | {"markersize": 5, "elinewidth": 0.8}
                style["markerfacecolor"] = style["color"] if of[model]["resolved"] else "white"
                bars = numpy.abs(ends - middle)[:, None]
                shown[model] = ax.errorbar(float(numpy.mean(ratios)), middle, bars, label=model, **style)
        ax.axhline(0, color="0.8", zorder=0)
        ax.set_xlabel("training cost")
    figure.legend(shown.values(), shown.keys(), loc="outside right center", fontsize="x-small")
    figure.suptitle(f"{table.title}: points over {table.base}", fontsize="medium")
    return figure


def layers_picture(table: Table) -> Figure:
    """A line a model over the layers, dashed under typos; the bars are standard deviations over seeds."""
    made = {cell.model: found for cell in table.cells if (found := cell.of_stage("layers"))}
    names = list(next(iter(made.values()))[0])
    measures = list(dict.fromkeys(name.partition(", ")[0] for name in names))
    figure, axes = panels([LAYERS[measure] for measure in measures], (3.2, 2.6), across=2)
    of_measure = dict(zip(measures, axes, strict=True))
    for name in names:
        measure, _, text = name.partition(", ")
        for i, (model, layers) in enumerate(made.items()):
            values = numpy.array([of[name] for of in layers])
            place = numpy.arange(-values.shape[1], 0) + 0.06 * i
            bars = values.std(axis=0, ddof=1) if len(values) > 1 else None
            look = {"color": f"C{i}", "marker": "o", "markersize": 3, "linestyle": DASHES.get(text, "-")}
            label = f"{model}, {text}" if text in DASHES else model
            of_measure[measure].errorbar(place, values.mean(axis=0), bars, label=label, **look)
    for ax in axes:
        ax.set_xlabel("layer, from the end")
        ax.xaxis.get_major_locator().set_params(integer=True)
    shown = max((ax.get_legend_handles_labels() for ax in axes), key=lambda found: len(found[1]))
    figure.legend(*shown, loc="outside right center", fontsize="x-small", handlelength=3)
    figure.suptitle(table.title, fontsize="medium")
    return figure


def panels(
    titles: Sequence[str], size: tuple[float, float], across: int = ACROSS, **more: Any
) -> tuple[Figure, list[Any]]:
    """A panel a title, of so many inches, and room for names beside them."""
    across = min(across, len(titles))
    down = -(-len(titles) // across)
    figure = Figure(figsize=(1.6 + size[0] * across, 0.4 + size[1] * down), layout="constrained")
    axes: list[Any] = list(figure.subplots(down, across, squeeze=False, **more).flat)
    for ax in axes[len(titles) :]:
        ax.remove()
    for ax, title in zip(axes, titles, strict=False):
        ax.set_title(title, fontsize="medium")
    return figure, axes[: len(titles)]


def points(found: dict[str, Any]) -> tuple[float, numpy.ndarray]:
    """A difference and the ends of its interval."""
    return 100 * found["difference"], 100 * numpy.array(found["ci95"])


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
