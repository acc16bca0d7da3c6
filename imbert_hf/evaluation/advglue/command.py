"""Accuracy on attacked texts, AdvGLUE's or of a table of your own, beside clean accuracy, the majority baseline and
paired differences between models. Rows count as independent: of an --export, take one model and one method.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from imbert_hf.evaluation.advglue.scores import Run, collapse_warnings, compare, measure, official_score, summarise
from imbert_hf.evaluation.advglue.scores import run as ask
from imbert_hf.evaluation.data.arguments import (
    OWN,
    Spec,
    add_data_arguments,
    add_model_arguments,
    check_tasks,
    comparison_table,
    digest,
    interval,
    load_options,
    parse_model,
    read_own,
    refuse_columns,
)
from imbert_hf.evaluation.data.classifier import Classifier, load_classifier
from imbert_hf.evaluation.data.tasks import HUB, TASKS, Row, find_task, read_rows
from imbert_hf.evaluation.pictures import draw_bars, legend, looks
from imbert_hf.evaluation.report import Journal, Report, explained, percent, table


HELP = "accuracy on attacked texts, AdvGLUE or your own, and how two models differ"
SHARED = True  # among the processes of a launch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser)
    parser.add_argument("--task", action="append", help=f"one or several of {', '.join(TASKS)}")
    parser.add_argument(
        "--data",
        default=HUB,
        help=f"a file in AdvGLUE's format, or {HUB} of the Hub (default); with --text-column, a table of attacked "
        "texts, as for check; a column method, as an --export has it, splits the accuracies",
    )
    parser.add_argument(
        "--original-column",
        action="several",
        default=[],
        metavar="NAME",
        help="of --data, the text before it was attacked; twice for pairs, where one that was left alone may be blank",
    )
    parser.add_argument(
        "--model",
        action="append",
        required=True,
        metavar="[NAME][@TASK]=PATH",
        help="PATH, a folder or Hub id; NAME=PATH, and several PATHs of one NAME are seeds of one model; TASK=PATH or "
        "NAME@TASK=PATH for a model of that task alone (mnli: of mnli-mm too)",
    )
    parser.add_argument(
        "--residuals",
        default="sample",
        choices=["sample", "all", "none"],
        help="rows on which an implicit model's solves are measured; all costs one more evaluation of each layer",
    )
    add_model_arguments(parser)


def run(args: argparse.Namespace, journal: Journal) -> Report:
    specs = [parse_model(text) for text in args.model]
    if args.task is None and any(getattr(args, name) for name in OWN):
        own, of_own = read_own(args, specs[0].path)
        asked, rows = [(spec, own) for spec in specs], {own: of_own}
        check_tasks(specs, None)
    else:
        refuse_columns(args)
        asked = [(spec, find_task(name)) for spec in specs for name in tasks_of(spec, args.task)]
        tasks = dict.fromkeys(task for _, task in asked)
        rows = {task: read_rows(args.data, task, limit=args.max_rows, seed=args.seed) for task in tasks}
    options = {"batch_size": args.batch_size, "residuals": args.residuals}
    classifiers = [load_classifier(spec.path, task, name=spec.name, **load_options(args)) for spec, task in asked]
    seen: dict[Any, str] = {}
    for c in classifiers:
        if (c.name, c.task.name, c.fingerprint) in seen:
            raise ValueError(f"--model {c.path} is given twice for {c.task.name}; seeds are different checkpoints.")
        seen[c.name, c.task.name, c.fingerprint] = c.path
    runs = [_run(c, rows[c.task], journal, options, not args.quiet) for c in classifiers]
    results = [measure(r) for r in runs]
    comparisons = compare(runs, seed=args.seed)
    summaries = summarise(runs)
    scores = []
    for group in dict.fromkeys(spec.group for spec in specs):
        of_group = [r for r, (spec, _) in zip(results, asked, strict=True) if spec.group == group]
        score, accuracy_only = official_score(of_group)
        # Without names nothing says which of several models of a task belongs to which of another.
        if score is not None and (group or len(of_group) == len(TASKS)):
            scores.append({"model": group, "score": score, "score_accuracy_only": accuracy_only})
    only = scores[0] if len(scores) == 1 else {}
    data = {
        "results": results,
        "comparisons": comparisons,
        "summaries": summaries,
        "scores": scores,
        "score": only.get("score"),
        "score_accuracy_only": only.get("score_accuracy_only"),
    }
    return Report(data, text(data), lambda: figure(results))


def tasks_of(spec: Spec, asked: list[str] | None) -> list[str]:
    """The tasks to evaluate a model on."""
    asked = [find_task(name).name for name in asked or ()]
    if spec.task is None:
        if not asked:
            raise ValueError(
                f"--task is missing: model {spec.path} is given without one, or --text-column for a table."
            )
        return list(dict.fromkeys(asked))
    own = [spec.task, "mnli-mm"] if spec.task == "mnli" else [spec.task]
    chosen = [name for name in own if not asked or name in asked]
    if not chosen:
        raise ValueError(f"--model {spec.path} is of {spec.task}, which is not among --task {', '.join(asked)}.")
    return chosen


def _run(classifier: Classifier, rows: list[Row], journal: Journal, options: dict[str, Any], progress: bool) -> Run:
    """As advglue.run, kept in the journal."""
    key = {"advglue": classifier.key(), "rows": digest(rows), **options}
    names = ("labels", "original_labels", "residuals", "converged")

    def compute() -> dict[str, Any]:
        found = ask(classifier, rows, progress=progress, **options)
        return {name: getattr(found, name).tolist() for name in names}

    kept = {name: numpy.array(value) for name, value in journal.part(key, compute).items()}
    return Run(classifier.name, classifier.path, classifier.task, rows, about=classifier.about(), **kept)


WORDS = {
    "pairs": "rows whose original is known",
    "clean": "accuracy on these originals",
    "both right": "the original and the attacked text",
    "attack success": "attacked texts that are wrong, of those whose original is right, percent",
    "residual": "mean of ||r|| / ||y|| over the solves of the implicit layers",
    "unconverged": "percent of these whose residual exceeds im_tolerance, or 1e-2 where that is 0",
    "of rows": "rows whose solves were measured, see --residuals",
    "+-": "standard deviation over seeds",
}


def text(data: dict[str, Any]) -> str:
    """The tables of a run; shares in percent."""
    parts = [
        table(
            [
                {
                    "model": r["model"],
                    "task": r["task"],
                    "n": r["n"],
                    "accuracy [95 %]": interval(r["accuracy"], r["accuracy_ci95"]),
                    **({"F1": percent(r["f1"])} if r["f1"] is not None else {}),
                    "majority": percent(r["majority_accuracy"]),
                    "pairs": r["pairs"],
                    "clean [95 %]": interval(r["clean_accuracy"], r["clean_accuracy_ci95"]),
                    "both right [95 %]": interval(r["robust_accuracy"], r["robust_accuracy_ci95"]),
                    "attack success": percent(r["attack_success_rate"]),
                    "predicted": " ".join(f"{k} {100 * v:.0f}" for k, v in r["predicted_share"].items()),
                    **(
                        {
                            "residual": "not finite" if r["mean_residual"] is None else f"{r['mean_residual']:.1e}",
                            "unconverged": percent(r["unconverged_rate"]),
                            "of rows": r["residual_rows"],
                        }
                        if r["unconverged_rate"] is not None
                        else {}
                    ),
                }
                for r in data["results"]
            ]
        )
    ]
    parts += _warnings(data["results"])
    for what, title in (("by_construction", "construction"), ("by_method", "method")):
        split = [
            {
                "model": r["model"],
                "task": r["task"],
                title: name,
                "n": s["n"],
                "accuracy": percent(s["accuracy"]),
                "pairs": s["pairs"],
                "clean": percent(s["clean_accuracy"]),
                "both right": percent(s["robust_accuracy"]),
                "attack success": percent(s["attack_success_rate"]),
            }
            for r in data["results"]
            for name, s in r[what].items()
        ]
        parts += [table(split)] if split else []
    if data["summaries"]:
        parts.append(
            table(
                [
                    {
                        "model": s["model"],
                        "task": s["task"],
                        "seeds": s["seeds"],
                    }
                    | {
                        name.replace("_", " "): f"{100 * s[name]:.1f} +- {100 * s[name + '_std']:.1f}"
                        for name in ("accuracy", "clean_accuracy", "robust_accuracy", "attack_success_rate")
                        if s[name] is not None
                    }
                    for s in data["summaries"]
                ]
            )
        )
    compared = [
        c | found | {"of": what}
        for c in data["comparisons"]
        for what, found in (("accuracy", c), ("both right", c["robust_accuracy"]))
        if found is not None
    ]
    parts += [comparison_table(compared, "of")] if compared else []
    parts += [
        f"AdvGLUE score{' of ' + s['model'] if s['model'] else ''}: {100 * s['score']:.1f} "
        f"(accuracy only: {100 * s['score_accuracy_only']:.1f})"
        for s in data["scores"]
    ]
    return explained(parts, WORDS)


def _warnings(results: Sequence[dict[str, Any]]) -> list[str]:
    found = collapse_warnings(results)
    for r in results:
        if r["repeated"]:
            found.append(
                f"warning: {r['repeated']} rows of {r['task']} share their original with another: intervals are too "
                "narrow, and no difference is called resolved. Keep the rows of one method and one model."
            )
        if not r["pairs"]:
            found.append(
                f"warning: no row of {r['task']} has its original, so clean accuracy is not known: this accuracy alone "
                "does not tell a robust model from a poor one."
            )
    return ["\n".join(dict.fromkeys(found))] if found else []


def figure(results: Sequence[dict[str, Any]]) -> Figure:
    """Accuracies with their intervals, and the majority baseline, task by task; seeds of a model have one colour."""
    tasks = list(dict.fromkeys(r["task"] for r in results))
    look = looks(r["model"] for r in results)
    drawing = Figure(figsize=(max(6, 1 + 3 * len(tasks)), 4.5), layout="constrained")
    for axis, task in zip(drawing.subplots(1, len(tasks), squeeze=False, sharey=True)[0], tasks, strict=True):
        entries = [r for r in results if r["task"] == task]
        shown = {"clean_accuracy": "clean", "accuracy": "attacked", "robust_accuracy": "both right"}
        groups = [
            (label, [(r["model"], (r[what], r[f"{what}_ci95"])) for r in entries])
            for what, label in shown.items()
            if any(r[what] is not None for r in entries)
        ]
        draw_bars(axis, look, groups)
        axis.axhline(100 * entries[0]["majority_accuracy"], color="gray", linestyle=":")
        axis.set_title(f"{task}, n = {entries[0]['n']}", fontsize="medium")
    drawing.axes[0].set_ylabel("rows, percent; whiskers: 95 % intervals")
    legend(drawing, look, lines=False, more=[Line2D([], [], color="gray", linestyle=":", label="majority class")])
    return drawing
