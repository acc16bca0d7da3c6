"""Tables and the picture of `imbert-eval attack`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from imbert_hf.evaluation.advglue.scores import collapse_warnings
from imbert_hf.evaluation.data.arguments import comparison_table, interval
from imbert_hf.evaluation.pictures import Look, draw_bars, draw_line, legend, looks, panels_of
from imbert_hf.evaluation.report import explained, percent, table
from imbert_hf.evaluation.statistics import share_interval


WORDS = {
    "radius": "how far the word embeddings may be moved, relative to their norm",
    "fewer steps": "accuracy under the attack with a fifth of the steps and one start",
    "transferred": "accuracy under the attack made on plain BERT",
    "gradient masking": "an attack that fails for want of a gradient, and looks like robustness",
    "large_radius": "no row may survive the largest radius",
    "larger_radius": "accuracy must not rise with the radius",
    "gradient": "must agree with a finite difference",
    "more_steps": "fewer steps must not find more",
    "transfer": "the attack made on plain BERT must not find more",
    "success": "how many of the rows that were right the attack has turned, percent",
    "mean queries": "texts that the model was asked about, a row that was right",
    "words changed": "percent of the words, where the attack succeeded",
    "strength": "share of the words that are changed, of clause: of ten sentences that are added",
    "none  ": "no attack, the clean text",  # a cell, no word of a sentence
}


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
    return explained(parts, WORDS)


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
    entries = [entry for section in ("embedding", "query", "noise") for entry in data[section]]
    look = looks(entry["model"] for entry in entries)
    draws: list[Callable[[Any], None]] = []
    if data["embedding"]:
        draws.append(partial(_draw_curves, data["embedding"], look))
    if data["query"]:
        draws.append(partial(_draw_queries, data["query"], look))
    for kind in dict.fromkeys(e["kind"] for e in data["noise"]):
        draws.append(partial(_draw_noise, [e for e in data["noise"] if e["kind"] == kind], look))
    drawing = panels_of(draws)
    drawing.supylabel("accuracy, percent", fontsize="medium")
    drawing.suptitle(f"{entries[0]['task']}, n = {entries[0]['n']}; whiskers: 95 % intervals", fontsize="medium")
    more = []
    if any(p["transfer_accuracy"] is not None for e in data["embedding"] for p in e["curve"]):
        more.append(Line2D([], [], color="gray", marker="x", linestyle=":", label="transferred from plain BERT"))
    if not all(map(_believed, data["embedding"])):
        style: dict[str, Any] = {"marker": "o", "fillstyle": "none", "linestyle": "none"}
        more.append(Line2D([], [], color="gray", label="checks for gradient masking failed", **style))
    legend(drawing, look, lines=True, more=more)
    return drawing


def _believed(entry: dict[str, Any]) -> bool:
    return all(check["passed"] is not False for check in entry["checks"])


def _draw_curves(entries: Sequence[dict[str, Any]], look: dict[str, Look], axis: Any) -> None:
    places = [0.0, *sorted({p["radius"] for e in entries for p in e["curve"]})]
    for e in entries:
        clean = (0.0, (e["clean_accuracy"], e["clean_accuracy_ci95"]))
        curve = [clean, *((p["radius"], (p["accuracy"], p["accuracy_ci95"])) for p in e["curve"])]
        draw_line(axis, look[e["model"]], curve, places, fillstyle="full" if _believed(e) else "none")
        points = [(p["radius"], (p["transfer_accuracy"], None)) for p in e["curve"]]
        if points[0][1][0] is not None:
            beside = look[e["model"]]._replace(shift=look[e["model"]].shift + 0.05)
            draw_line(axis, beside, points, places, marker="x", linestyle=":")
    axis.set_xlabel("radius / norm of the embeddings")


def _draw_queries(entries: Sequence[dict[str, Any]], look: dict[str, Look], axis: Any) -> None:
    clean = {e["model"]: (e["accuracy"], share_interval(e["accuracy"], e["n"])) for e in entries}
    groups: dict[str, list] = {"clean": list(clean.items())}
    for e in entries:
        under = (e["accuracy_under_attack"], e["accuracy_under_attack_ci95"])
        groups.setdefault(e["attack"], []).append((e["model"], under))
    draw_bars(axis, look, list(groups.items()))
    axis.set_xlabel("query attacks")


def _draw_noise(entries: Sequence[dict[str, Any]], look: dict[str, Look], axis: Any) -> None:
    places = sorted({0.0, *(e["strength"] for e in entries)})
    for name in dict.fromkeys(e["model"] for e in entries):
        own = [e for e in entries if e["model"] == name]
        clean = own[0]["clean_accuracy"]
        points = {0.0: (clean, share_interval(clean, own[0]["n"]))}
        points |= {e["strength"]: (e["accuracy"], e["accuracy_ci95"]) for e in own}
        draw_line(axis, look[name], sorted(points.items()), places)
    axis.set_xlabel(f"{entries[0]['kind']}: strength")
