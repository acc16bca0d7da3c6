"""Tables and the picture of `imbert-eval attack`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from imbert_hf.evaluation.advglue.scores import collapse_warnings
from imbert_hf.evaluation.data.arguments import comparison_table, interval
from imbert_hf.evaluation.report import percent, table


def text(data: dict[str, Any]) -> str:
    """The tables of a run, shares in percent, with a warning under each curve that may not be believed."""
    entries = [entry for section in ("embedding", "query", "noise") for entry in data[section]]
    parts = [
        table(
            [
                {
                    "model": e["model"],
                    "task": e["task"],
                    "n": e["n"],
                    "accuracy": percent(e["clean_accuracy"]),
                    "majority": percent(e["majority_accuracy"]),
                    "predicted": " ".join(f"{k} {100 * v:.0f}" for k, v in e["predicted_share"].items()),
                }
                for e in {e["model"]: e for e in entries}.values()
            ]
        )
    ]
    parts += ["\n".join(warnings)] if (warnings := collapse_warnings(entries)) else []
    for entry in data["embedding"]:
        start = {"radius": 0, "accuracy": entry["clean_accuracy"], "accuracy_ci95": entry["clean_accuracy_ci95"]}
        parts.append(
            table(
                [
                    {
                        "model": entry["model"],
                        "radius": point["radius"],
                        "accuracy [95 %]": interval(point["accuracy"], point["accuracy_ci95"]),
                        "fewer steps": percent(point.get("accuracy_fewer_steps")),
                        "transferred": percent(point.get("transfer_accuracy")),
                    }
                    for point in (start, *entry["curve"])
                ]
            )
        )
        parts.append("\n".join(_verdict(entry)))
    if data["query"]:
        parts.append(
            table(
                [
                    {
                        "model": e["model"],
                        "attack": e["attack"],
                        "n": e["n"],
                        "accuracy": percent(e["accuracy"]),
                        "under attack [95 %]": interval(e["accuracy_under_attack"], e["accuracy_under_attack_ci95"]),
                        "success": percent(e["success_rate"]),
                        "mean queries": e["mean_queries"],
                        "words changed": percent(e["mean_changed_share"]),
                    }
                    for e in data["query"]
                ]
            )
        )
    if data["noise"]:
        by_kind: dict[tuple[str, str], dict[str, Any]] = {}
        for e in data["noise"]:
            row = by_kind.setdefault(
                (e["model"], e["kind"]),
                {"model": e["model"], "noise": e["kind"], "n": e["n"], "clean": percent(e["clean_accuracy"])},
            )
            row[f"strength {e['strength']:g} [95 %]"] = interval(e["accuracy"], e["accuracy_ci95"])
        parts.append(table(list(by_kind.values())))
    if data["comparisons"]:
        parts.append(comparison_table(data["comparisons"], "attack"))
    return "\n\n".join(parts)


def _verdict(entry: dict[str, Any]) -> list[str]:
    """A warning for each check that failed, and which passed or could not be made."""
    by: dict[bool | None, list[dict[str, Any]]] = {True: [], False: [], None: []}
    for check in entry["checks"]:
        by[check["passed"]].append(check)
    lines = [
        f"warning: {entry['model']} failed the check {check['name']}, so that the accuracies above may be too high: "
        f"{check['message']}."
        for check in by[False]
    ]
    for passed, what in ((True, "passed"), (None, "not made")):
        if by[passed]:
            names = ", ".join(check["name"] for check in by[passed])
            lines.append(f"{entry['model']}, checks for gradient masking {what}: {names}.")
    return lines


def figure(data: dict[str, Any]) -> Figure:
    """Accuracy against radius, under query attacks and against the strength of noise: a panel for each that ran."""
    panels: list[tuple[str, Callable[[Any], None]]] = []
    if data["embedding"]:
        panels.append(("radius / norm of the embeddings", partial(_draw_curves, data["embedding"])))
    if data["query"]:
        panels.append(("", partial(_draw_queries, data["query"])))
    for kind in dict.fromkeys(e["kind"] for e in data["noise"]):
        panels.append((f"{kind}: strength", partial(_draw_noise, [e for e in data["noise"] if e["kind"] == kind])))
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    drawing = Figure(figsize=(4 * columns, 3.5 * lines), layout="constrained")
    for axis, (label, draw) in zip(drawing.subplots(lines, columns, squeeze=False).flat, panels, strict=False):
        draw(axis)
        axis.set_xlabel(label)
        axis.set_ylim(0, 1)
        axis.legend(fontsize="small")
    for axis in drawing.axes[len(panels) :]:
        axis.remove()
    drawing.axes[0].set_ylabel("accuracy")
    return drawing


def _draw_curves(entries: Sequence[dict[str, Any]], axis: Any) -> None:
    for i, e in enumerate(entries):
        radii, accuracies = [0.0] + [p["radius"] for p in e["curve"]], [p["accuracy"] for p in e["curve"]]
        believed = all(c["passed"] is not False for c in e["checks"])
        label = e["model"][-24:] + ("" if believed else " (checks failed)")
        axis.plot(radii, [e["clean_accuracy"], *accuracies], "o-" if believed else "o--", color=f"C{i}", label=label)
        points = [(p["radius"], p["transfer_accuracy"]) for p in e["curve"] if p["transfer_accuracy"] is not None]
        if points:
            axis.plot(*zip(*points, strict=True), "x:", color=f"C{i}", label="transferred to it")
    axis.set_xscale("symlog", linthresh=min(p["radius"] for e in entries for p in e["curve"]))


def _draw_queries(entries: Sequence[dict[str, Any]], axis: Any) -> None:
    names = [f"{e['model'][-24:]}\n{e['attack']}" for e in entries]
    for shift, what in ((-0.2, "accuracy"), (0.2, "accuracy_under_attack")):
        places = [i + shift for i in range(len(entries))]
        axis.bar(places, [e[what] for e in entries], width=0.4, label=what.replace("_", " "))
    axis.set_xticks(range(len(entries)), names, fontsize="small")


def _draw_noise(entries: Sequence[dict[str, Any]], axis: Any) -> None:
    for name in dict.fromkeys(e["model"] for e in entries):
        own = [e for e in entries if e["model"] == name]
        axis.plot(
            [0.0] + [e["strength"] for e in own],
            [own[0]["clean_accuracy"]] + [e["accuracy"] for e in own],
            "o-",
            label=name[-24:],
        )
