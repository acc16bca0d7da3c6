"""AdvGLUE's score over its five tasks, from the runs of several parts of a study; study_report.py shows it."""

from pathlib import Path
from typing import Any

import numpy
from study_plan import TASKS, read_run, runs_of
from study_scores import Cell, digits, of_measure, official
from study_tables import Differences, difference, spread
from tabulate import tabulate


EQUAL = dict.fromkeys(TASKS, 0.2)
ACCURACY, OFFICIAL = "AdvGLUE, accuracy only", "AdvGLUE, official"
# measure -> set of rows -> weight of its mean
WEIGHTS = {
    "clean": EQUAL,
    "noise": EQUAL,
    "embedding": EQUAL,
    ACCURACY: {**EQUAL, "mnli": 0.1, "mnli-mm": 0.1},
    OFFICIAL: {"score": 1.0},
}


def score_table(plan: dict[str, Any], runs: Path) -> tuple[str, list[Cell], Differences] | None:
    """Each model's means over the tasks, of the seeds that all of them were run with, and its differences to the first.

    Of QQP's F1 it takes more than which rows are right, so that a seed's official score is one number, and the interval
    of its difference one over seeds alone. None where there are no two models.

    Returns:
        The table, a cell for each model, and the differences.
    """
    tests = complete_tests(plan, runs)
    if len(tests) < 2:
        return None
    scores = {model: {seed: row_sets(made) for seed, made in seeds.items()} for model, seeds in tests.items()}
    first = next(iter(scores))
    lines: list[dict[str, str]] = []
    apart: Differences = {}
    for model, seeds in scores.items():
        lines.append({"": model, "seeds": str(len(seeds))})
        common = [seed for seed in seeds if seed in scores[first]]
        for measure, weights in WEIGHTS.items():
            means = [sum(w * sets[measure][name].mean() for name, w in weights.items()) for sets in seeds.values()]
            lines[-1][measure] = spread([100 * float(mean) for mean in means])
            if model != first and common:
                of_sets = [
                    numpy.array([seeds[seed][measure][name] - scores[first][seed][measure][name] for seed in common])
                    for name in weights
                ]
                apart.setdefault(measure, {})[model] = difference(of_sets, list(weights.values()))
    lines.append({"": "most frequent label", **frequent(next(iter(tests[first].values())))})
    cells = [Cell(model, dict.fromkeys(seeds)) for model, seeds in scores.items()]
    return tabulate(lines, "keys", "pipe", disable_numparse=True), cells, apart


def complete_tests(plan: dict[str, Any], runs: Path) -> dict[str, dict[int, dict[str, dict[str, Any]]]]:
    """model -> seed -> task -> what is kept of its stage "test", of the seeds that have all tasks."""
    found: dict[str, dict[int, dict[str, dict[str, Any]]]] = {}
    for run in runs_of(plan, plan.get("advglue", [])):
        if made := read_run(runs, run)["stages"].get("test"):
            found.setdefault(run.model, {}).setdefault(run.seed, {})[run.task] = made
    whole = {model: {seed: of for seed, of in seeds.items() if len(of) == len(TASKS)} for model, seeds in found.items()}
    return {model: seeds for model, seeds in whole.items() if seeds}


def row_sets(made: dict[str, dict[str, Any]]) -> dict[str, dict[str, numpy.ndarray]]:
    """measure -> set of rows -> (n,) what each row scores, of one seed."""
    sets: dict[str, dict[str, numpy.ndarray]] = {}
    for measure in ("clean", "noise", "embedding"):
        sets[measure] = {task: of_measure({"test": one}, "test", measure) for task, one in made.items()}
    attacked = {name: one["attacked"] for of_task in made.values() for name, one in of_task["advglue"].items()}
    sets[ACCURACY] = {name: digits(text) for name, text in attacked.items()}
    sets[OFFICIAL] = {"score": numpy.array([numpy.mean([official(of_task["advglue"]) for of_task in made.values()])])}
    return sets


def frequent(made: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What always answering each task's most frequent label would score."""
    of_advglue = {name: one["majority"] for of_task in made.values() for name, one in of_task["advglue"].items()}
    shares = {"clean": {task: one["majority"] for task, one in made.items()}, ACCURACY: of_advglue}
    return {m: f"{100 * sum(WEIGHTS[m][name] * share for name, share in of.items()):.1f}" for m, of in shares.items()}
