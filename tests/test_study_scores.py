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
