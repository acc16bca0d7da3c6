"""Means over several tasks, such as AdvGLUE's score over its five, from the runs of a study; for report.py."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy

from study.plan import models_of_score, runs_of
from study.scores import Cell, cells_of, official
from study.tables import NOT_RUN, Differences, Table, difference, drawing


MEASURES = ("clean", "noise", "worst", "embedding", "query", "AdvGLUE", "AdvGLUE test")
NOTE = (
    "Means over {tasks}, of weight one each. A task's mean is over all seeds of a model, whose numbers stand in that "
    "order. A difference is over the seeds that both have, two or more of every task. Brackets hold the fewest. The "
    "parts are {parts}."
)


def score_table(plan: dict[str, Any], score: str, runs: Path) -> Table | None:
    """Each model's means over the tasks, and its differences to the first; None where there are none to show.

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
    models = [[cells[model] for cells in tasks] for model in models_of_score(plan, score)]
    measured = [cells for cells in models if all(cell.rows("test", "AdvGLUE") for cell in cells)]
    if len(measured) < 2 or measured[0] != models[0]:
        return None
    measures = [m for m in MEASURES if all(cell.rows("test", m) for cells in measured for cell in cells)]
    columns = ("", "seeds", *measures, "official")
    lines = [dict.fromkeys(columns, NOT_RUN) | means(cells, measures if cells in measured else ()) for cells in models]
    lines.append(dict.fromkeys(columns, "") | frequent([tests_of(cell)[0] for cell in models[0]]))
    apart: Differences = {}
    for measure in measures:
        for cells in measured[1:]:
            pairs = [cell.over(first, "test", measure) for cell, first in zip(cells, models[0], strict=True)]
            if all(len(of_task) > 1 for of_task in pairs):
                apart.setdefault(measure, {})[cells[0].model] = difference(*pairs)
    note = NOTE.format(tasks=", ".join(task for _, task in names), parts=", ".join(f"`{part}`" for part in parts))
    draw = drawing(plan["scores"][score].get("picture"), apart)
    return Table(score, note, [cells[0] for cells in models], lines, apart, draw)


def means(cells: Sequence[Cell], measures: Sequence[str]) -> dict[str, str]:
    """A model's line, with these of its means."""
    line = {"": cells[0].model, "seeds": ", ".join(str(len(tests_of(cell))) for cell in cells)}
    for measure in measures:
        of_tasks = [cell.rows("test", measure).values() for cell in cells]
        line[measure] = percent(numpy.mean([rows.mean() for rows in seeds]) for seeds in of_tasks)
    if measures:
        scores = [[official(made["advglue"]) for made in tests_of(cell)] for cell in cells]
        line["official"] = percent(numpy.mean(of_task) for of_task in scores)
    return line


def tests_of(cell: Cell) -> list[dict[str, Any]]:
    """What is kept of the stage "test", seed by seed."""
    return [kept["stages"]["test"] for kept in cell.kept.values() if kept is not None and "test" in kept["stages"]]


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
