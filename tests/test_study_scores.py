"""What the tables of examples/study.py make of rows whose scores are known."""

import pytest


pytest.importorskip("sklearn")
pytest.importorskip("tabulate")

from classifiers import example


@pytest.fixture(scope="module")
def tables():
    return example("study_tables")


def kept_of(clean, problem=None, **more):
    stage = {"clean": clean, "noise": {"swap": clean}, "embedding": clean, "growth": 1.0, "residual": None}
    return {"stages": {"choice": {**stage, "majority": 0.5, **more}}, "problem": problem}


def test_pairs_count_where_both_texts_are_right(tables):
    """In both sets of mnli, one after the other."""
    two = {"mnli": {"attacked": "1101", "original": "10-1"}, "mnli-mm": {"attacked": "0", "original": "1"}}
    cell = tables.Cell("m", {0: {"stages": {"test": {"clean": "10", "advglue": two}}}, 1: None})
    assert cell.rows("test", "AdvGLUE")[0].tolist() == [1, 1, 0, 1, 0]
    assert cell.rows("test", "originals")[0].tolist() == [1, 0, 1, 1]
    assert cell.rows("test", "both")[0].tolist() == [1, 0, 1, 0]
    assert cell.rows("test", "query") == {}
    assert cell.rows("choice", "clean") == {}


def test_the_official_score_of_a_task(tables):
    two = {"mnli": {"attacked": "1101", "f1": None}, "mnli-mm": {"attacked": "01", "f1": None}}
    assert tables.official(two) == (0.75 + 0.5) / 2
    qqp = {"qqp": {"attacked": "1101", "f1": 0.25, "original": "1111", "majority": 0.5}}
    assert tables.official(qqp) == (0.75 + 0.25) / 2
    kept = {"stages": {"test": kept_of("1111")["stages"]["choice"] | {"advglue": qqp}}, "problem": None}
    head, _, line, *_ = tables.accuracies([tables.Cell("m", {0: kept})], "test").splitlines()
    cells = dict(zip(*([cell.strip() for cell in of.split("|")] for of in (head, line)), strict=True))
    assert (cells["AdvGLUE"], cells["official"]) == ("75.0", "50.0")


def test_a_row_under_noise_scores_the_share_of_the_kinds(tables):
    cell = tables.Cell("m", {0: kept_of("1100", noise={"swap": "1100", "clause": "1010"})})
    assert cell.rows("choice", "noise")[0].tolist() == [1, 0.5, 0.5, 0]


def test_one_seed_resolves_nothing_and_several_may(tables):
    wrong, right = "0" * 100, "1" * 100
    for seeds in (1, 3):
        cells = [tables.Cell(n, {i: kept_of(c) for i in range(seeds)}) for n, c in (("a", wrong), ("b", right))]
        found = tables.differences(cells, "choice")["clean"]["b"]
        assert found == {"difference": 1.0, "ci95": [1.0, 1.0], "resolved": seeds > 1, "seeds": seeds}


def test_failures_are_counted_and_differences_are_over_common_seeds(tables):
    cells = [
        tables.Cell("a", {0: kept_of("1111"), 1: kept_of("0000")}),
        tables.Cell("b", {0: kept_of("1110"), 1: {"stages": {}, "problem": "diverged"}}),
    ]
    assert "| 1 of 2, 1 failed | 75.0 " in tables.accuracies(cells, "choice")
    found = tables.differences(cells, "choice")
    assert found["clean"]["b"]["difference"] == -0.25
    assert "| -25.0 [-75.0, +0.0] (1) |" in tables.difference_table(cells, found)


def kept_test(task, right, f1=None):
    """A run of which so many of 10 rows are right, clean and attacked, in every set."""
    bits = "1" * right + "0" * (10 - right)
    sets = ("mnli", "mnli-mm") if task == "mnli" else (task,)
    stage = kept_of(bits)["stages"]["choice"]
    one = {"attacked": bits, "original": bits, "majority": 0.6, "f1": f1}
    return {"stages": {"test": stage | {"advglue": dict.fromkeys(sets, one)}}, "problem": None}


def test_the_score_over_all_tasks(tmp_path):
    """Seeds that lack a task do not count; tasks weigh the same, and QQP's score is the mean of accuracy and F1."""
    advglue, plan_of = example("study_advglue"), example("study_plan")
    part = {"seeds": [0, 1, 2], "models": ["a", "b"], "stages": ["test"]}
    parts = {"one": part | {"tasks": ["sst2"]}, "rest": part | {"tasks": ["qqp", "mnli", "qnli", "rte"]}}
    plan = {"models": {"a": {"x": 0}, "b": {"x": 1}}, "parts": parts, "advglue": ["one", "rest"]}
    assert advglue.score_table(plan, tmp_path) is None
    for run in plan_of.runs_of(plan, ["one", "rest"]):
        if (run.task, run.seed) != ("rte", 2):
            right = {"sst2": 5, "qqp": 4, "mnli": 6, "qnli": 3, "rte": 2}[run.task] + (run.model == "b") + run.seed
            plan_of.write_run(tmp_path, run, kept_test(run.task, right, 0.9 if run.task == "qqp" else None))
    table, cells, apart = advglue.score_table(plan, tmp_path)
    head, _, a, b, frequent = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
    assert head == ["", "seeds", "clean", "noise", "embedding", "AdvGLUE, accuracy only", "AdvGLUE, official"]
    # (5 + 4 + 6 + 3 + 2) / 50, and 10 points more with the other seed; official: qqp (0.4 + 0.9) / 2
    assert a == ["a", "2", *["45.0 ± 7.1"] * 4, "49.5 ± 6.4"]
    assert b[2] == "55.0 ± 7.1"
    assert frequent == ["most frequent label", "", "50.0", "", "", "60.0", ""]
    assert [cell.model for cell in cells] == ["a", "b"]
    for measure, expected in (("AdvGLUE, accuracy only", 0.1), ("AdvGLUE, official", 0.09)):
        assert apart[measure]["b"]["difference"] == pytest.approx(expected)
        assert apart[measure]["b"]["seeds"] == 2
