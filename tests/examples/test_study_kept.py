"""The lines that examples/study keeps of its runs: written whole, named, found again; and those in the tree."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest


pytest.importorskip("filelock")
pytest.importorskip("yaml")

STUDY = Path(__file__).resolve().parents[2] / "examples/study"
RUNS = STUDY.parents[1] / "model_cards/study/runs"
COUNTS = {"mnli": 12, "qnli": 12, "qqp": 78, "rte": 15, "sst2": 520}
WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from study.kept import write_run
from study.plan import Run
for seed in range(int(sys.argv[3]), 40, 2):
    run = Run("sst2", seed, {}, {}, {}, "", "part", "m", ("train",))
    write_run(Path(sys.argv[2]), run, {"settings": run.settings, "stages": {}, "seconds": {}, "problem": None})
"""


@pytest.fixture(scope="module")
def kept():
    return import_module("study.kept")


def run_of(seed=0, model="m", task="sst2", **arguments):
    return import_module("study.plan").Run(task, seed, arguments, {}, {}, "", "part", model, ("train",))


def line_of(run, **more):
    return {"settings": run.settings, "stages": {}, "seconds": {}, "problem": None} | more


def names_in(path):
    return [json.loads(line)["name"] for line in path.read_text().splitlines()]


def test_a_run_is_named_after_its_model_and_what_parts_change(kept):
    run = run_of(3, "last layer", max_train_samples=300, num_train_epochs=20)
    assert run.name == "last layer, 300 rows, 20 epochs, seed 3"
    assert replace(run, autocast="bfloat16").name == "last layer, 300 rows, 20 epochs, bfloat16, seed 3"
    assert run_of(max_train_samples=None).name == "m, all rows, seed 0"


def test_lines_are_sorted_and_another_run_changes_none_of_them(kept, tmp_path):
    first, second, other = run_of(1), run_of(0), run_of(0, task="rte")
    for run in (first, second, other):
        assert kept.read_run(tmp_path, run) == line_of(run)
        kept.write_run(tmp_path, run, line_of(run, stages={"train": {"rate": 0.1, "a": [1, None]}}))
    assert names_in(tmp_path / "sst2.jsonl") == [second.name, first.name]
    assert names_in(tmp_path / "rte.jsonl") == [other.name]
    before = (tmp_path / "sst2.jsonl").read_text().splitlines()
    kept.write_run(tmp_path, first, kept.read_run(tmp_path, first) | {"problem": "diverged"})
    after = (tmp_path / "sst2.jsonl").read_text().splitlines()
    assert before[0] == after[0]
    assert json.loads(after[1]) == json.loads(before[1]) | {"problem": "diverged"}
    assert kept.read_run(tmp_path, first)["stages"] == {"train": {"rate": 0.1, "a": [1, None]}}


def test_what_is_read_may_be_changed_without_changing_what_is_kept(kept, tmp_path):
    kept.write_run(tmp_path, run_of(), line_of(run_of()))
    kept.read_run(tmp_path, run_of())["stages"]["train"] = {}
    assert kept.read_run(tmp_path, run_of())["stages"] == {}


def test_settings_of_one_name_are_told_apart(kept, tmp_path):
    """And settings that another model has are found whatever they are called."""
    one, two = run_of(learning_rate=1e-4), run_of(learning_rate=2e-4)
    for run in (one, two, one, two):
        kept.write_run(tmp_path, run, line_of(run, problem=str(run.arguments)))
    assert names_in(tmp_path / "sst2.jsonl") == [one.name, f"{two.name}, {two.digest[:6]}"]
    called_otherwise = replace(one, model="n")
    assert kept.read_run(tmp_path, called_otherwise)["problem"] == str(one.arguments)
    kept.write_run(tmp_path, called_otherwise, line_of(one))
    assert names_in(tmp_path / "sst2.jsonl")[0] == one.name


def test_a_write_that_is_cut_off_loses_nothing(kept, monkeypatch, tmp_path):
    kept.write_run(tmp_path, run_of(0), line_of(run_of(0)))
    before = (tmp_path / "sst2.jsonl").read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(kept.os, step, killed)
            with pytest.raises(KeyboardInterrupt):
                kept.write_run(tmp_path, run_of(1), line_of(run_of(1)))
        assert (tmp_path / "sst2.jsonl").read_bytes() == before
    kept.write_run(tmp_path, run_of(1), line_of(run_of(1)))
    assert len(names_in(tmp_path / "sst2.jsonl")) == 2


def test_processes_that_share_a_file_lose_no_line(tmp_path):
    command = [sys.executable, "-c", WRITER, str(STUDY.parent), str(tmp_path)]
    writers = [subprocess.Popen([*command, first]) for first in ("0", "1")]
    assert [writer.wait() for writer in writers] == [0, 0]
    names = names_in(tmp_path / "sst2.jsonl")
    assert len(set(names)) == len(names) == 40
    assert names == sorted(names)


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '"name"', '{"name": "a", "settings": {}}'])
def test_a_line_that_is_no_run_is_named_and_kept(damage, kept, tmp_path):
    kept.write_run(tmp_path, run_of(0), line_of(run_of(0)))
    path = tmp_path / "sst2.jsonl"
    path.write_text(f"{path.read_text()}{damage}\n")
    before = path.read_text()
    sentence = "line 2 must be a JSON object with name, settings, stages, seconds, problem."
    for action in (lambda: kept.read_run(tmp_path, run_of(1)), lambda: kept.write_run(tmp_path, run_of(1), {})):
        with pytest.raises(ValueError, match=f"sst2.jsonl: {sentence}"):
            action()
    assert path.read_text() == before


def test_two_lines_of_the_same_settings_are_refused(kept, tmp_path):
    kept.write_run(tmp_path, run_of(0), line_of(run_of(0)))
    path = tmp_path / "sst2.jsonl"
    path.write_text(path.read_text() * 2)
    with pytest.raises(ValueError, match=r"line 2, 'm, all rows, seed 0', has the settings of .*; keep one\."):
        kept.read_run(tmp_path, run_of(0))


@pytest.fixture(scope="module")
def in_tree():
    """task -> its lines."""
    return {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in RUNS.glob("*.jsonl")}


def test_the_runs_in_the_tree_are_of_its_plan_and_named_after_it(kept, in_tree):
    """Each is shown by a table: its settings are those of the plan, and so is its name."""
    plan = import_module("study.plan")
    planned = {run.digest: run for run in plan.runs_of(plan.read_plan(STUDY / "plan.yaml"))}
    assert {task: len(lines) for task, lines in in_tree.items()} == COUNTS
    for task, lines in in_tree.items():
        names = [line["name"] for line in lines]
        assert names == sorted(set(names))
        for line in lines:
            run = planned[plan.digest_of(line["settings"])]
            assert (run.task, run.name) == (task, line["name"])
            trained = set(line["stages"]) != {"cost"}
            assert set(line) - {"made"} == {*kept.FIELDS, *(["weights"] if trained else [])}
            assert line["problem"] is None
            assert ("train" in line["stages"]) == trained
            assert set(line["stages"]) == set(line["seconds"])


def test_the_runs_in_the_tree_answer_the_same_rows_with_the_weights_they_name(in_tree):
    plan = import_module("study.plan")
    for task, lines in in_tree.items():
        asked, weights = set(), {}
        for line in lines:
            for stage, found in line["stages"].items():
                texts = {"clean": found.get("clean"), "embedding": found.get("embedding"), "after": found.get("after")}
                texts |= found.get("noise") or {}
                asked |= {(stage, name, len(text)) for name, text in texts.items() if text is not None}
                assert all(set(text) <= set("01-") for text in texts.values() if text is not None)
            trained = {name: value for name, value in line["settings"].items() if name not in ("fields", "autocast")}
            if "train" in line["stages"]:  # trained again by another commit, they may be others
                by = line.get("made", {}).get("train", {}).get("git", {}).get("commit")
                weights.setdefault((plan.digest_of(trained), by), set()).add(line["weights"])
        assert len({key[:2] for key in asked}) == len(asked), task  # of each measure, all runs have as many rows
        assert {len(of_training) for of_training in weights.values()} == {1}
