"""Does a classifier hold up? Accuracy on clean text, under natural noise and under two attacks, with intervals; of
several models the paired differences too. The one command to begin with.
"""

import argparse
import re
from collections.abc import Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from imbert_hf.evaluation import report
from imbert_hf.evaluation.advglue.scores import collapse_warnings
from imbert_hf.evaluation.check.measures import (
    ATTACKS,
    LEAST,
    MEASURES,
    NOISE,
    RADIUS,
    Found,
    Rows,
    choose_rows,
    exported,
    measure_model,
)
from imbert_hf.evaluation.check.page import page
from imbert_hf.evaluation.data.arguments import (
    add_attack_arguments,
    add_model_arguments,
    digest,
    interval,
    load_options,
    parse_models,
    read_data,
)
from imbert_hf.evaluation.data.classifier import Classifier, load_classifier
from imbert_hf.evaluation.data.tasks import drawn
from imbert_hf.evaluation.pictures import draw_bars, legend, looks, panels_of, shortened
from imbert_hf.evaluation.report import Journal, Report, at_least, explained, table
from imbert_hf.evaluation.stability.own import own_residuals
from imbert_hf.evaluation.statistics import paired_difference


HELP = "does a classifier hold up? noise and attacks in one table"
SHARED = True  # among the processes of a launch
UNITS = {"s": 1, "m": 60, "h": 3600}
SOLVED, ITERATIONS = 16, 12  # texts and iterations of the page's curves


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_attack_arguments(parser)
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE.html",
        help="table, picture and texts before and after as one page to hand on",
    )
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument(
        "--budget",
        default="5m",
        help="about this time in all, such as 90s, 2m or 1h: so many rows are drawn, 8 at least (default: %(default)s)",
    )
    amount.add_argument(
        "--rows",
        type=int,
        help="so many rows, by --seed, all of them attacked, instead of a --budget: the same on any machine",
    )
    add_model_arguments(parser)


def run(args: argparse.Namespace, journal: Journal) -> Report:
    seconds = parse_budget(args.budget)
    if args.rows is not None:
        at_least(1, **{"--rows": args.rows})
    specs = parse_models(args.model, args.task)
    task, rows = read_data(args, specs[0].path)
    classifiers = [load_classifier(spec.path, task, name=spec.name, **load_options(args)) for spec in specs]
    options: dict[str, Any] = {"seed": args.seed, "batch_size": args.batch_size}
    n = m = args.rows
    if args.rows is None:
        key = {"check": "rows", "of": [c.key() for c in classifiers], "rows": digest(rows), "seconds": seconds}
        n, m = journal.part(key | options, lambda: choose_rows(classifiers, rows, seconds, **options))
    asked = drawn(rows, n, args.seed)
    chosen = Rows(asked, drawn(asked, m, args.seed))
    found = {c.name: measure_model(c, chosen, journal, progress=not args.quiet, **options) for c in classifiers}
    data: dict[str, Any] = {
        "results": [result(c, found[c.name], len(asked)) for c in classifiers],
        "comparisons": compare(found, args.seed),
        "rows": {
            "of": len(rows),
            "asked": len(chosen.asked),
            "attacked": len(chosen.attacked),
            "budget": args.budget if args.rows is None else None,
        },
        "task": task.name,
    }
    made = []
    if args.export is not None or args.html is not None:
        made = [row for c in classifiers for row in exported(c, chosen, found[c.name], args.seed)]
    curves = {}
    if args.html is not None:
        texts = [row.texts for row in chosen.attacked[:SOLVED]]
        curves = {c.name: own_residuals(c, texts, ITERATIONS) for c in classifiers if c.implicit}
    return Report(data, text(data), lambda: figure(data), made, lambda: html(data, curves, made))


def parse_budget(text: str) -> float:
    """Seconds of 90s, 2m or 1h."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if found is None or not 0 < float(found[1]) < 1e9:
        raise ValueError(f"--budget must be a time such as 90s, 2m or 1h, got {text!r}.")
    return float(found[1]) * UNITS[found[2]]


def result(classifier: Classifier, found: Found, n: int) -> dict[str, Any]:
    """The entry of one model in the JSON."""
    measured = {measure: found.entry(measure) for measure in MEASURES}
    rest = {"reasons": found.reasons, "warnings": found.warnings, **found.baseline}
    about = {"model": classifier.name, **classifier.about()}
    return {**about, "n": n, "macro_f1": found.macro_f1, **measured, **rest}


def compare(found: dict[str, Found], seed: int) -> list[dict[str, Any]]:
    """The differences of each two models in whatever was measured of both, paired by row."""
    return [
        {
            "a": a,
            "b": b,
            "measure": measure,
            **paired_difference([(found[a].right[measure], found[b].right[measure])], seed),
        }
        for a, b in combinations(found, 2)
        for measure in MEASURES
        if measure in found[a].right and measure in found[b].right
    ]


WORDS = {
    "macro F1": "mean over the labels",
    "noise": "mean over " + ", ".join(f"{kind} {strength:g}" for kind, strength in NOISE.items()),
    "worst": "right on the clean text and under each of these",
    "characters": "after edits of single letters, found by queries",
    "embedding": f"after a gradient attack that moves the words' embeddings by {100 * RADIUS:g} %",
    "may be weak": "an attack that fails for want of a gradient looks like robustness",
}


def text(data: dict[str, Any]) -> str:
    """The table, what it leaves out, and in words what is resolved."""
    about, rest = paragraphs(data)
    return explained([about, table([columns(entry) for entry in data["results"]]), *rest], WORDS)


def paragraphs(data: dict[str, Any]) -> tuple[str, list[str]]:
    """What stands above the table and below it."""
    rows = data["rows"]
    counts = f"{rows['asked']} of {rows['of']} rows of {data['task']}, {rows['attacked']} of them attacked"
    parts = []
    if rows["budget"] and rows["attacked"] == LEAST < rows["of"]:
        parts.append(
            f"The budget of {rows['budget']} paid for no more than the least number of rows to attack, {LEAST}, or not "
            "for these either; a larger --budget attacks more."
        )
    entries = [{"task": data["task"], **entry} for entry in data["results"]]
    parts += ["\n".join(warnings)] if (warnings := collapse_warnings(entries)) else []
    for entry in data["results"]:
        name = entry["model"]
        parts += [f"Not measured of {name}: {measure} ({why})." for measure, why in entry["reasons"].items()]
        parts += [f"Warning: the embedding attack on {name} may be weak: {why}." for why in entry["warnings"]]
    pairs = dict.fromkeys((c["a"], c["b"]) for c in data["comparisons"])
    if pairs:
        parts.append("About one comparison in twenty looks resolved by chance alone.")
    parts += [verdict([c for c in data["comparisons"] if (c["a"], c["b"]) == pair]) for pair in pairs]
    return f"{counts}; accuracy in percent, with 95 % intervals", parts


def columns(entry: dict[str, Any]) -> dict[str, Any]:
    shown = {"model": entry["model"], "majority": f"{100 * entry['majority_accuracy']:.1f}"}
    shown["macro F1"] = f"{100 * entry['macro_f1']:.1f}"
    for name in MEASURES:
        found = entry[name]
        shown[name] = found and f"{interval(found['accuracy'], found['ci95'])} of {found['n']}"
    return shown


def verdict(comparisons: Sequence[dict[str, Any]]) -> str:
    """Which differences of two models are resolved, in words."""
    a, b = comparisons[0]["a"], comparisons[0]["b"]
    said = []
    for better, worse, sign in ((a, b, 1), (b, a, -1)):
        won = [c for c in comparisons if c["resolved"] and sign * c["difference"] > 0]
        if won:
            gains = ", ".join(f"{c['measure']} ({100 * abs(c['difference']):.1f} points)" for c in won)
            said.append(f"Resolved: {better} is better than {worse} in {gains}.")
    if open_ones := [c["measure"] for c in comparisons if not c["resolved"]]:
        said.append(f"Not resolved between {a} and {b}: {', '.join(open_ones)}.")
    return " ".join(said)


def html(data: dict[str, Any], curves: dict[str, dict[int, Tensor]], pairs: Sequence[dict[str, Any]]) -> str:
    about, rest = paragraphs(data)
    rows = [columns(entry) for entry in data["results"]]
    figures = [("Accuracies as bars; the table has the same numbers", figure(data))]
    if curves:
        figures.append(("Relative residuals of the solves, by iteration and layer", draw_curves(curves)))
    meanings = WORDS | report.WORDS
    words = {word: meanings[word] for word in report.words_in("\n".join([table(rows), *rest]), meanings)}
    return page(f"imbert-eval check: {data['task']}", about, rows, words, rest, figures, pairs)


def draw_curves(curves: dict[str, dict[int, Tensor]]) -> Figure:
    """A panel for each implicit model: of each layer the median over texts."""

    def draw(name: str, layers: dict[int, Tensor], axes: Any) -> None:
        for layer in sorted(layers):
            axes.plot(layers[layer].median(dim=1).values.tolist(), marker=".", label=f"layer {layer}")
        axes.axhline(1e-2, color="gray", linestyle=":", label="converged")
        axes.set(yscale="log", xlabel="iteration", ylabel="relative residual")
        axes.set_title(f"{shortened(name)}: median of {layers[layer].shape[1]} texts", fontsize="medium")
        axes.legend(fontsize="small", ncols=2)

    return panels_of([partial(draw, name, layers) for name, layers in curves.items()])


def figure(data: dict[str, Any]) -> Figure:
    """A group of bars a measure, a bar a model, with its interval."""
    results, rows = data["results"], data["rows"]
    look = looks(entry["model"] for entry in results)
    picture = Figure(figsize=(9, 4.5), layout="constrained")
    axes = picture.subplots()
    groups = []
    for measure in MEASURES:
        found = [(entry["model"], entry[measure] or {"accuracy": None, "ci95": None}) for entry in results]
        label = f"{measure}\n(attack)" if measure in ATTACKS else measure
        groups.append((label, [(name, (of["accuracy"], of["ci95"])) for name, of in found]))
    draw_bars(axes, look, groups)
    axes.set_ylabel("accuracy, percent")
    axes.set_title(
        f"{data['task']}: {rows['asked']} rows, {rows['attacked']} attacked; whiskers: 95 % intervals", fontsize=10
    )
    legend(picture, look, lines=False)
    return picture
