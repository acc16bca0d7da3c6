"""Renders the tables and pictures of a study from the JSON files of its runs; the same files give the same output.

    python examples/study_report.py examples/study.yaml --runs model_cards/runs --output model_cards/study.md \
        --readme README.md

Writes OUTPUT, a picture beside it for each table, and, where --readme is given, what stands there between the lines
`<!-- study: PART -->` and `<!-- /study -->`: the tables of PART. What was not run is marked so.
"""

import argparse
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy
from matplotlib.figure import Figure
from study_plan import (
    ATTACKED,
    BATCH,
    CHOICE,
    LENGTH,
    NOISE,
    QUERIED,
    RADIUS,
    STEPS,
    STRENGTH,
    VALIDATION,
    read_plan,
    runs_of,
)
from study_scores import Cell, cells_of, official
from tabulate import tabulate

from imbert_hf.evaluation.report import write_whole
from imbert_hf.evaluation.statistics import paired_bootstrap


NOT_RUN = "not run"
# column -> what it says
MEASURES = {
    "clean": "accuracy",
    "noise": f"accuracy under {', '.join(NOISE)} noise of strength {STRENGTH}, the mean over these",
    "embedding": f"accuracy under the attack on the embeddings, radius {RADIUS}, {STEPS} steps, of {ATTACKED} rows",
    "query": f"accuracy under the character attack, of {QUERIED} rows",
    "AdvGLUE": "accuracy on AdvGLUE dev, mnli's two sets together",
    "originals": "accuracy on the originals of AdvGLUE's rows, where these are known",
    "both": "original and attacked text both right",
}
LEGEND = {
    "official": "AdvGLUE's own score, where another: QQP's mean of accuracy and F1, MNLI's mean of its two sets",
    "growth": "of the relative difference from the first hidden state to the last, words moved at random",
    "residual": "mean relative residual of the solves",
    "inference cost, training cost": "times to those of plain BERT with the same weights, in turns, float32, "
    f"{BATCH} rows of {LENGTH} tokens",
    "most frequent label": "what always answering it would score",
}
HEAD = """# Study

Rendered from the JSON of every run by

    python examples/study_report.py {plan} --runs {runs} --output {output}

from the plan in [{plan}]({link}).

{about}

Accuracies are in percent: mean over seeds ± standard deviation over seeds. Differences to the first row are in points,
over the seeds that both were run with, with a 95 % interval over rows and seeds (paired bootstrap, widened to
Student's t over the seeds); **bold** where it excludes 0 and there is more than one seed. No correction is made for how
many comparisons one reads. "choice" is of {choice} rows of the train file that no run trained on, "validation" of at
most {validation} of the validation file.

"""


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
        another = any(len(sets) > 1 or "qqp" in sets for sets in of_advglue)
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
                counts = [len(one["attacked"]) for one in sets]
                frequent["AdvGLUE"] = float(numpy.average([one["majority"] for one in sets], weights=counts))
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


def differences(cells: list[Cell], stage: str) -> dict[str, dict[str, dict[str, Any]]]:
    """measure -> model -> its difference to the first, in points, over the seeds that both were run with."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for measure in MEASURES:
        first = cells[0].rows(stage, measure)
        for cell in cells[1:]:
            own = cell.rows(stage, measure)
            if pairs := [(own[seed], first[seed]) for seed in own if seed in first]:
                apart = numpy.array([a - b for a, b in pairs])
                low, high = interval = paired_bootstrap(apart)
                resolved = len(pairs) > 1 and not low <= 0 <= high
                one = {"difference": float(apart.mean()), "ci95": interval, "resolved": resolved, "seeds": len(pairs)}
                found.setdefault(measure, {})[cell.model] = one
    return found


def difference_table(cells: list[Cell], found: dict[str, dict[str, dict[str, Any]]]) -> str:
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


def picture(cells: list[Cell], found: dict[str, dict[str, dict[str, Any]]], title: str) -> Figure:
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


def sections(plan: dict[str, Any], runs: Path, output: Path) -> dict[str, str]:
    """part -> its tables, in Markdown, where it has any; the pictures are written."""
    found: dict[str, str] = {}
    for part, what in plan["parts"].items():
        texts = []
        for task in what["tasks"]:
            cells = cells_of((run for run in runs_of(plan, [part]) if run.task == task), runs)
            stages = [stage for stage in ("choice", "test") if stage in what["stages"]]
            for stage in stages:
                title = f"{part}, {task}, {'validation' if stage == 'test' else stage}"
                apart = differences(cells, stage)
                text = f"### {title}\n\n{accuracies(cells, stage)}\n"
                text += f"\nAccuracies and residuals under {what['autocast']} autocast.\n" if "autocast" in what else ""
                if apart:
                    name = re.sub(r"\W+", "-", f"{output.stem}-{title}") + ".png"
                    save = partial(picture(cells, apart, title).savefig, dpi=100, format="png")
                    write_whole(output.with_name(name), save)
                    text += (
                        f"\nPoints over {cells[0].model}:\n\n{difference_table(cells, apart)}\n\n![{title}]({name})\n"
                    )
                texts.append(text)
        if texts:
            found[part] = "\n".join(texts)
    return found


def insert(readme: Path, found: dict[str, str]) -> str:
    """The text of the file with what stands between the marks replaced."""

    def tables(match: re.Match[str]) -> str:
        if match[1] not in found:
            raise ValueError(f"{readme} has a mark for {match[1]!r}, and the plan no such part with tables.")
        shown = re.sub(r"^!\[.*\n", "", found[match[1]], flags=re.MULTILINE).strip()
        return f"<!-- study: {match[1]} -->\n{shown}\n<!-- /study -->"

    text = readme.read_text(encoding="utf-8")
    return re.sub(r"<!-- study: (.+?) -->\n.*?<!-- /study -->", tables, text, flags=re.DOTALL)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path, help="YAML file of study.py")
    parser.add_argument("--runs", type=Path, required=True, help="folder of study.py's JSON files")
    parser.add_argument("--output", type=Path, required=True, help="Markdown file; pictures are written beside it")
    parser.add_argument("--readme", type=Path, help="file with marks, to put tables in")
    args = parser.parse_args(argv)
    try:
        plan = read_plan(args.plan)
        if not any(args.runs.glob("*.json")):
            raise ValueError(f"--runs {args.runs} holds no JSON file.")
        if not args.output.parent.is_dir():
            raise ValueError(f"--output {args.output}: the folder does not exist.")
        found = sections(plan, args.runs, args.output)
        changed = insert(args.readme, found) if args.readme else None
    except (ValueError, OSError) as error:
        sys.exit(f"study_report.py: error: {error}")
    about = (plan.get("about") or "").strip()
    link = os.path.relpath(args.plan, args.output.parent)
    sizes = {"choice": CHOICE, "validation": VALIDATION}
    head = HEAD.format(plan=args.plan, runs=args.runs, output=args.output, link=link, about=about, **sizes)
    legend = "".join(f"- {name}: {what}\n" for name, what in (MEASURES | LEGEND).items())
    text = f"{head}{legend}\n" + "\n".join(f"## {part}\n\n{tables}" for part, tables in found.items())
    write_whole(args.output, lambda path: path.write_text(text, encoding="utf-8"))
    if changed is not None:
        write_whole(args.readme, lambda path: path.write_text(changed, encoding="utf-8"))


if __name__ == "__main__":
    main()
