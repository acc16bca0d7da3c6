"""Means over several tasks, such as AdvGLUE's score over its five, from the runs of a study; for report.py."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy

from study.plan import PICTURES, models_of_score, runs_of
from study.scores import Cell, cells_of, official
from study.tables import NOT_RUN, Differences, Table, difference, over_first


MEASURES = ("clean", "noise", "worst", "embedding", "query", "AdvGLUE", "AdvGLUE test")
NOTE = (
    "Means over {tasks}, of weight one each. {means}A difference is over the seeds that both have, two or more of each "
    "task. Brackets hold the fewest. The parts are {parts}."
)
MEANS = "A task's mean is over all seeds of a model, whose numbers stand in that order. "


def score_table(plan: dict[str, Any], score: str, runs: Path) -> Table | None:
    """Each model's means over the tasks, and its differences to the first; None where there are none to show.

    Where the score says `over`, the differences alone, each to the model that it names.

    Of a task a model's mean is that over its seeds. A difference is over the seeds that both were run with, two or more
    of every task, and its interval takes the tasks' seeds, which are trainings of their own, as independent. The
    official score has none: F1 needs what was answered, and only what was right is kept.

    The table's cells are those of the first task.
    """
    parts = plan["scores"][score]["parts"]
    names = [(part, task) for part in parts for task in plan["parts"][part]["tasks"]]
    tasks = [
        {cell.model: cell for cell in cells_of((run for run in runs_of(plan, [part]) if run.task == task), runs)}
        for part, task in names
    ]
    models = {model: [cells[model] for cells in tasks] for model in models_of_score(plan, score)}
    measured = {m: cells for m, cells in models.items() if all(cell.rows("test", "AdvGLUE") for cell in cells)}
    firsts = [cells[0] for cells in models.values()]
    given = plan["scores"][score].get("over")
    over = given or over_first(firsts)
    compared = [(model, base) for model, base in over.items() if model in measured and base in measured]
    if not compared:
        return None
    measures = [m for m in MEASURES if all(cell.rows("test", m) for cells in measured.values() for cell in cells)]
    columns = ("", "seeds", *measures, "official")
    lines = []
    if not given:
        for model, cells in models.items():
            lines.append(dict.fromkeys(columns, NOT_RUN) | means(cells, measures if model in measured else ()))
        lines.append(
            dict.fromkeys(columns, "") | frequent([cell.of_stage("test")[0] for cell in models[firsts[0].model]])
        )
    apart: Differences = {}
    for measure in measures:
        for model, base in compared:
            pairs = [cell.over(first, "test", measure) for cell, first in zip(models[model], models[base], strict=True)]
            if all(len(of_task) > 1 for of_task in pairs):
                apart.setdefault(measure, {})[model] = difference(*pairs)
    told = {"tasks": ", ".join(task for _, task in names), "parts": ", ".join(f"`{part}`" for part in parts)}
    note = NOTE.format(**told, means="" if given else MEANS)
    return Table(score, note, firsts, lines, apart, over, plan["scores"][score].get("picture", PICTURES[0]))


def means(cells: Sequence[Cell], measures: Sequence[str]) -> dict[str, str]:
    """A model's line, with these of its means."""
    line = {"": cells[0].model, "seeds": ", ".join(str(len(cell.of_stage("test"))) for cell in cells)}
    for measure in measures:
        of_tasks = [cell.rows("test", measure).values() for cell in cells]
        line[measure] = percent(numpy.mean([rows.mean() for rows in seeds]) for seeds in of_tasks)
    if measures:
        scores = [[official(made["advglue"]) for made in cell.of_stage("test")] for cell in cells]
        line["official"] = percent(numpy.mean(of_task) for of_task in scores)
    return line


def frequent(tests: list[dict[str, Any]]) -> dict[str, str]:
    """What always answering each task's most frequent label would score."""
    of_advglue = [numpy.mean([one["majority"] for one in made["advglue"].values()]) for made in tests]
    return {
        "": "most frequent label",
        "clean": percent([made["majority"] for made in tests]),
        "AdvGLUE": percent(of_advglue),
    }


def percent(shares: Iterable[Any]) -> str:
    return f"{100 * float(numpy.mean(list(shares))):.1f}"
