"""Renders a study from the lines of its runs; the same lines give the same files.

    python examples/study report examples/study/plan.yaml --runs model_cards/study/runs --output model_cards/study \
        --readme model_cards/README.md

Writes three things into the folder OUTPUT: README.md, the page that answers what the plan asks; tables.md, every table;
and figures, a picture for each. Where --readme is given, it also replaces what stands there between the lines
`<!-- study: NAME -->` and `<!-- /study -->` with the tables of the plan's part or score NAME. What was not run says
so.
"""

import argparse
import os
import re
from argparse import RawDescriptionHelpFormatter
from functools import partial
from pathlib import Path
from typing import Any

from imbert_hf.command_line import Parser
from imbert_hf.evaluation.report import filled, write_whole
from study import means
from study.kept import read_run
from study.layers import layers_table
from study.page import page, tables_of
from study.pictures import picture
from study.plan import BATCH, CHOICE, LENGTH, PICTURES, VALIDATION, read_plan, runs_of
from study.scores import cells_of
from study.tables import MEASURES, Table, difference_lines, markdown, part_table


LEGEND = {
    "official": "AdvGLUE's own score, where another: QQP's is the mean of accuracy and F1",
    "growth": "of the relative difference from the first hidden state to the last, words moved at random",
    "residual": "mean relative residual of the solves",
    "inference cost, training cost": "times to those of plain BERT with the same weights, in turns, float32, "
    f"{BATCH} rows of {LENGTH} tokens",
    "most frequent label": "what always answering it would score",
}
LAYERS = "Task {task}, validation rows: the last layer of the weights, read as BERT's. The picture has every layer."
HEAD = f"""# Every table

Rendered by

    {{command}}

from the plan in [{{plan_name}}]({{plan}}). [README.md](README.md) has the tables that answer its question.

- Accuracies are in percent: the mean over seeds ± the standard deviation over seeds.
- Differences to the first row, or to the model that a row names, are in points, over the seeds that both were run with.
- Their 95 % intervals are over rows and seeds: a paired bootstrap, widened to Student's t over the seeds.
- **Bold** is a difference whose interval excludes 0, of more than one seed. No correction is made for how many
  comparisons one reads.
- *Choice* rows are {CHOICE} of the train file that no run trained on. *Validation* rows are at most {VALIDATION} of the
  validation file.

{{legend}}"""


def main(words: list[str]) -> None:
    parser = make_parser()
    args = parser.parse_args(words)
    try:
        plan = read_plan(args.plan, args.base)
        if not any(args.runs.glob("*.jsonl")):
            raise ValueError(f"--runs {args.runs} holds no <task>.jsonl.")
        if args.output.exists() and not args.output.is_dir():
            raise ValueError(f"--output {args.output} must be a folder.")
        if args.readme and not args.readme.is_file():
            raise ValueError(f"--readme {args.readme} must be a file.")
        found = tables(plan, args.runs)
        texts = {args.output / name: text for name, text in pages(plan, found, args).items()}
        if args.readme:
            texts[args.readme] = insert(args.readme, found)
        write(texts, found, args.output)
    except (ValueError, OSError) as error:
        parser.error(str(error))


def make_parser() -> Parser:
    parser = Parser("study report", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path, help="YAML file")
    parser.add_argument("--runs", type=Path, required=True, help="folder of <task>.jsonl")
    parser.add_argument("--base", metavar="NAME", help="as it was given to run")
    parser.add_argument("--output", type=Path, required=True, help="folder of README.md, tables.md and figures")
    parser.add_argument("--readme", type=Path, help="file with marks, to put tables in")
    return parser


def tables(plan: dict[str, Any], runs: Path) -> dict[str, list[Table]]:
    """score or part -> its tables, where it has any."""
    found = {}
    for score in plan.get("scores") or {}:
        if table := means.score_table(plan, score, runs):
            found[score] = [table]
    for part in plan["parts"]:
        if of_part := part_tables(plan, part, runs):
            found[part] = of_part
    return found


def part_tables(plan: dict[str, Any], part: str, runs: Path) -> list[Table]:
    """Of each task and kind of rows."""
    what, found = plan["parts"][part], []
    more = ", ".join(f"{name} {value}" for name, value in what.get("arguments", {}).items())
    trained = [f"Trained with {more}."] if more else []
    measured = [f"Measured under {what['autocast']} autocast, but for costs."] if "autocast" in what else []
    for task in what["tasks"]:
        cells = cells_of((run for run in runs_of(plan, [part]) if run.task == task), runs)
        name = part if part.endswith(f", {task}") else f"{part}, {task}"
        for stage, rows in (("choice", "choice"), ("test", "validation")):
            if stage in what["stages"]:
                note = " ".join([f"Task {task}, {rows} rows.", *trained, *measured])
                found.append(part_table(f"{name}, {rows}", note, cells, stage, what.get("picture", PICTURES[0])))
        if "layers" in what["stages"]:
            found.append(layers_table(f"{name}, layers", LAYERS.format(task=task), cells))
    return found


def shown(table: Table) -> str:
    """The table's accuracies and its differences, what it has of them."""
    texts = [table.caption]
    texts += [markdown(table.lines)] if table.lines else []
    texts += [f"Points over {table.base}:", markdown(difference_lines(table))] if table.apart else []
    return "\n\n".join(texts) + "\n"


def figure(table: Table) -> str:
    return "figures/" + re.sub(r"\W+", "-", table.title) + ".png"


def pages(plan: dict[str, Any], found: dict[str, list[Table]], args: argparse.Namespace) -> dict[str, str]:
    """README.md and tables.md."""
    command = f"python examples/study report {args.plan} --runs {args.runs} --output {args.output}"
    command += f" --base {args.base}" if args.base else ""
    command += f" --readme {args.readme}" if args.readme else ""
    where = {"command": command, "plan": os.path.relpath(args.plan, args.output)}
    every = HEAD.format(**where, plan_name=args.plan.name, legend=legend(MEASURES | LEGEND))
    for name, of_name in found.items():
        drawn = (f"{shown(t)}\n![{t.title}]({figure(t)})\n" if t.drawn else shown(t) for t in of_name)
        every += f"\n## {name}\n\n" + "\n".join(drawn)
    runs = {run.digest: read_run(args.runs, run) for run in runs_of(plan)}.values()
    settings = args.plan.with_name("README.md")
    more = f"- [How settings were chosen]({os.path.relpath(settings, args.output)}), and how to run it.\n"
    text = page(
        tables_of(plan.get("summary") or {name: name for name in list(found)[:3]}, found),
        about=(plan.get("about") or "").strip(),
        legend=legend({measure: MEASURES[measure] for measure in means.MEASURES}),
        made=sum(bool(kept["stages"]) for kept in runs),
        planned=len(runs),
        runs=os.path.relpath(args.runs, args.output),
        more=more if settings.is_file() else "",
        **where,
    )
    return {"tables.md": every, "README.md": text}


def legend(columns: dict[str, str]) -> str:
    return "".join(f"- {name}: {what}\n" for name, what in columns.items())


def insert(readme: Path, found: dict[str, list[Table]]) -> str:
    """The text of the file with what stands between the marks replaced."""

    def block(name: str) -> str:
        if name not in found:
            raise ValueError(f"{readme} has a mark for {name!r}, and the plan no such part with tables.")
        return "\n".join(map(shown, found[name]))

    return filled(readme.read_text(encoding="utf-8"), "study", block)


def write(texts: dict[Path, str], found: dict[str, list[Table]], output: Path) -> None:
    (output / "figures").mkdir(parents=True, exist_ok=True)
    for table in (table for of_name in found.values() for table in of_name if table.drawn):
        write_whole(output / figure(table), partial(picture(table).savefig, dpi=100, format="png"))
    for path, text in texts.items():
        write_whole(path, partial(Path.write_text, data=text, encoding="utf-8"))
