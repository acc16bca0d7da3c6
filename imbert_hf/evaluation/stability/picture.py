"""The picture of `imbert-eval stability`, and how its records are grouped."""

from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy
from matplotlib.figure import Figure

from imbert_hf.evaluation.pictures import SOLVERS, Look, looks, panels_of, shortened
from imbert_hf.evaluation.stability.spectrum import stability_function


THETAS = {0.0: ("tab:red", "o-"), 0.5: ("tab:green", "s--"), 1.0: ("tab:blue", "D:")}


def groups(records: list[dict[str, Any]], *names: str) -> dict[tuple, list[dict[str, Any]]]:
    found: dict[tuple, list[dict[str, Any]]] = {}
    for record in records:
        found.setdefault(tuple(record[name] for name in names), []).append(record)
    return found


def columns(average: Callable, rows: list[list[float | None]]) -> list[float | None]:
    """The average of each column; what is None counts as infinite."""
    columns = [average([float("inf") if v is None else v for v in column]) for column in zip(*rows, strict=True)]
    return [None if value == float("inf") else value for value in columns]


def figure(data: dict[str, Any], head: str) -> Figure:
    """Four panels: growth, region of stability, residuals, convergence."""
    draws = (_draw_growth, _draw_region, _draw_residuals, _draw_convergence)
    picture = panels_of([partial(draw, data) for draw in draws], width=5.5, columns=2)
    for axes in picture.axes[:4]:
        entries = max(1, len(axes.get_legend_handles_labels()[1]))
        axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=min(3, entries))
    picture.suptitle(f"{shortened(head, 80)}, n = {len(data['sentences'])} sentences", fontsize="medium")
    return picture


def _finite(values: Sequence[float | None]) -> numpy.ndarray:
    return numpy.array([numpy.nan if value is None else value for value in values])


def _draw_growth(data: dict[str, Any], axes: Any) -> None:
    look: dict[str, Look] = looks(data["connections"])
    for (connection, direction), (mean,) in groups(data["summary"]["growth"], "connection", "direction").items():
        of, line = look[connection], "-" if direction == "worst" else "--"
        records = [r for r in data["growth"] if (r["connection"], r["direction"]) == (connection, direction)]
        x, y = numpy.arange(len(mean["relative"])) + of.shift / 2, _finite(mean["relative"])
        label = f"{of.label}, {direction}"
        axes.plot(x, y, color=of.color, linestyle=line, marker=of.marker, markersize=4, alpha=0.85, label=label)
        if len(records) > 1:
            low, high = numpy.quantile([_finite(r["relative"]) for r in records], [0.25, 0.75], axis=0)
            axes.fill_between(x, low, high, color=of.color, alpha=0.12, linewidth=0)
    axes.set(yscale="log", xlabel="layer l", xticks=range(len(mean["relative"])))
    axes.set_title("relative difference $||h_l(x+d) - h_l(x)|| / ||h_l(x)||$; bands: quartiles", fontsize="medium")


def _draw_region(data: dict[str, Any], axes: Any) -> None:
    z = [(layer["layer"], complex(*value)) for layer in data["spectrum"] for value in layer["z"]]
    reach = max([2.5] + [1.1 * max(abs(value.real), abs(value.imag)) for _, value in z])
    across, up = numpy.meshgrid(numpy.linspace(-reach, reach, 400), numpy.linspace(-reach, reach, 400))
    for theta, (colour, _) in THETAS.items():
        size = abs(stability_function(across + 1j * up, theta))
        axes.contour(across, up, size, [1.0], colors=[colour])
        axes.contourf(across, up, size, [0, 1], colors=[colour], alpha=0.08)
        axes.plot([], [], color=colour, label=f"$|R(z)| = 1$, theta {theta:g}")
    if z:
        layers, values = zip(*z, strict=True)
        points = axes.scatter([v.real for v in values], [v.imag for v in values], 12, layers, cmap="viridis", zorder=3)
        axes.figure.colorbar(points, ax=axes, label="layer", ticks=sorted(set(layers)))
    axes.set(xlabel="Re z", ylabel="Im z", aspect="equal")
    axes.set_title("leading eigenvalues z; shaded: stable, $|R(z)| \\leq 1$", fontsize="medium")


def _draw_residuals(data: dict[str, Any], axes: Any) -> None:
    of_solver = groups(data["summary"]["residuals"], "solver").items()
    for ((solver,), records), line in zip(of_solver, ("-", "--", "-."), strict=True):
        rows = [r["residual"] for r in records]
        for row in rows:
            axes.plot(_finite(row), color=SOLVERS[solver], linewidth=0.6, alpha=0.5)
        middle = _finite(columns(median, rows))
        axes.plot(middle, line, color=SOLVERS[solver], linewidth=2, label=solver.replace("_", " "))
    axes.axhline(1e-2, color="gray", linestyle=":", label="converged")
    axes.set(yscale="log", xlabel="iteration")
    axes.set_title("relative residual; thin: each layer, thick: their median", fontsize="medium")


def _draw_convergence(data: dict[str, Any], axes: Any) -> None:
    for (theta,), rows in groups(data["summary"]["convergence"], "theta").items():
        colour, style = THETAS[theta]
        shares = [100 * r["share"] for r in rows]
        axes.plot(
            [r["step_size"] for r in rows],
            shares,
            style,
            color=colour,
            markersize=9 - 4 * theta,
            label=f"theta {theta:g}",
        )
    axes.set(xscale="log", xlabel="step size gamma", ylim=(-3, 103))
    axes.set_title("solves that converge, percent", fontsize="medium")
    step_sizes = sorted({r["step_size"] for r in data["summary"]["convergence"]})
    axes.set_xticks(step_sizes, [f"{step_size:g}" for step_size in step_sizes])
    axes.set_xticks([], minor=True)
