"""Renders the tables and pictures of a study from the lines of its runs; the same lines give the same output.

    python examples/study report examples/study/plan.yaml --runs model_cards/study/runs --output model_cards/study \
        --readme model_cards/README.md

Writes OUTPUT/tables.md, a picture in OUTPUT/figures for each table, and, where --readme is given, what stands there
between the lines `<!-- study: NAME -->` and `<!-- /study -->`: the tables of the plan's part or score NAME.
What was not run is marked so.
"""

import argparse
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

from imbert_hf.evaluation.report import write_whole
from study.advglue import score_table
from study.plan import BATCH, CHOICE, LENGTH, VALIDATION, read_plan, runs_of
from study.scores import Cell, cells_of
from study.tables import MEASURES, Differences, accuracies, difference_table, differences, picture


SCORE_NOTE = (
    "Means over {tasks}, of weight one each. A task's mean is over all seeds of a model; their numbers stand in that "
    "order. A difference is over the seeds that both have, two or more of every task, in brackets the fewest. The "
    "rows, and what they were measured in, are those of the parts {parts}."
)
LEGEND = {
    "official": "AdvGLUE's own score, where another: QQP's is the mean of accuracy and F1",
    "growth": "of the relative difference from the first hidden state to the last, words moved at random",
    "residual": "mean relative residual of the solves",
    "inference cost, training cost": "times to those of plain BERT with the same weights, in turns, float32, "
    f"{BATCH} rows of {LENGTH} tokens",
    "most frequent label": "what always answering it would score",
}
HEAD = """# Study

Rendered from the line of every run by

    python examples/study report {plan} --runs {runs} --output {output}

from the plan in [{plan}]({link}).

{about}

Accuracies are in percent: mean over seeds ± standard deviation over seeds. Differences to the first row are in points,
over the seeds that both were run with, with a 95 % interval over rows and seeds (paired bootstrap, widened to
Student's t over the seeds); **bold** where it excludes 0 and there is more than one seed. No correction is made for how
many comparisons one reads. "choice" is of {choice} rows of the train file that no run trained on, "validation" of at
most {validation} of the validation file.

"""


def sections(plan: dict[str, Any], runs: Path, output: Path) -> dict[str, str]:
    """score or part -> its tables, in Markdown, where it has any; the pictures are written."""
    found: dict[str, str] = {}
    for score, what in (plan.get("scores") or {}).items():
        if shown := score_table(plan, score, runs):
            table, cells, apart = shown
            tasks = ", ".join(task for part in what["parts"] for task in plan["parts"][part]["tasks"])
            note = SCORE_NOTE.format(tasks=tasks, parts="; ".join(what["parts"]))
            found[score] = section(score, f"{table}\n\n{note}", cells, apart, output)
    for part, what in plan["parts"].items():
        texts, more = [], what.get("arguments")
        for task in what["tasks"]:
            cells = cells_of((run for run in runs_of(plan, [part]) if run.task == task), runs)
            for stage in ("choice", "test"):
                if stage not in what["stages"]:
                    continue
                name = part if part.endswith(f", {task}") else f"{part}, {task}"
                title = f"{name}, {'validation' if stage == 'test' else stage}"
                table = accuracies(cells, stage)
                notes = [f"Trained with {', '.join(f'{n} {v}' for n, v in more.items())}."] if more else []
                notes += [f"Accuracies and residuals under {what['autocast']} autocast."] if "autocast" in what else []
                table += "\n\n" * bool(notes) + " ".join(notes)
                texts.append(section(title, table, cells, differences(cells, stage), output))
        if texts:
            found[part] = "\n".join(texts)
    return found


def section(title: str, table: str, cells: list[Cell], apart: Differences, output: Path) -> str:
    """The table, and where there are differences their table and picture."""
    text = f"### {title}\n\n{table}\n"
    if apart:
        name = "figures/" + re.sub(r"\W+", "-", title) + ".png"
        (output / name).parent.mkdir(exist_ok=True)
        write_whole(output / name, partial(picture(cells, apart, title).savefig, dpi=100, format="png"))
        text += f"\nPoints over {cells[0].model}:\n\n{difference_table(cells, apart)}\n\n![{title}]({name})\n"
    return text


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
    parser = argparse.ArgumentParser(
        "study report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", type=Path, help="YAML file")
    parser.add_argument("--runs", type=Path, required=True, help="folder of <task>.jsonl")
    parser.add_argument("--output", type=Path, required=True, help="folder of tables.md and figures")
    parser.add_argument("--readme", type=Path, help="file with marks, to put tables in")
    args = parser.parse_args(argv)
    try:
        plan = read_plan(args.plan)
        if not any(args.runs.glob("*.jsonl")):
            raise ValueError(f"--runs {args.runs} holds no <task>.jsonl.")
        args.output.mkdir(parents=True, exist_ok=True)
        found = sections(plan, args.runs, args.output)
        changed = insert(args.readme, found) if args.readme else None
    except (ValueError, OSError) as error:
        sys.exit(f"study report: error: {error}")
    about = (plan.get("about") or "").strip()
    link = os.path.relpath(args.plan, args.output)
    sizes = {"choice": CHOICE, "validation": VALIDATION}
    head = HEAD.format(plan=args.plan, runs=args.runs, output=args.output, link=link, about=about, **sizes)
    legend = "".join(f"- {name}: {what}\n" for name, what in (MEASURES | LEGEND).items())
    text = f"{head}{legend}\n" + "\n".join(f"## {part}\n\n{tables}" for part, tables in found.items())
    write_whole(args.output / "tables.md", lambda path: path.write_text(text, encoding="utf-8"))
    if changed is not None:
        write_whole(args.readme, lambda path: path.write_text(changed, encoding="utf-8"))


if __name__ == "__main__":
    main()
