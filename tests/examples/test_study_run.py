"""Which runs examples/study makes, which it waits for, and what it keeps of those that fail."""

import json

import pytest


pytest.importorskip("accelerate")
pytest.importorskip("datasets")
pytest.importorskip("sklearn")

import studies
import yaml
from filelock import FileLock
from studies import start


study, data, plan = studies.study, studies.data, studies.plan  # fixtures


@pytest.fixture
def attempts(study, monkeypatch):
    """What the child says of each attempt, in turn; the children that were started."""
    started, answers = [], []

    def child(run, args, words):
        started.append(run.key)
        return answers.pop(0)

    monkeypatch.setattr(study.run, "child", child)
    monkeypatch.setattr(study.run, "say_how_long", lambda words: None)
    monkeypatch.setattr(study.run.time, "sleep", lambda seconds: None)
    return started, answers


def test_what_is_killed_has_not_failed_and_what_others_make_is_waited_for(study, plan, data, attempts, tmp_path):
    started, answers = attempts
    words = [str(plan), "--data", str(data), "--runs", str(tmp_path), "--parts", "main"]
    answers += [(study.run.BUSY, None), (-9, "was killed by signal 9"), (1, "broken"), (0, None)]
    with pytest.raises(SystemExit) as stop:
        study.run.main(words)
    assert stop.value.code == 1
    assert started == [*started[:3], started[0]]  # BERT's was busy, and tried again after the others
    kept = [study.kept.read_run(tmp_path, run) for run in study.plan.runs_of(study.plan.read_plan(plan), ["main"])]
    assert [one["problem"] for one in kept] == [None, None, "broken"]
    started.clear()
    answers += [(0, None), (0, None), (0, None)]
    study.run.main(words)
    assert len(started) == 2
    run = next(r for r in study.plan.runs_of(study.plan.read_plan(plan)) if r.model == "R3F")
    study.kept.write_run(tmp_path, run, kept[2] | {"failed": 0})  # of an earlier hour: with --retry tried, and once
    study.run.main([*words, "--models", "R3F", "--retry"])
    assert len(started) == 3


def test_costs_alone_are_no_runs_of_several_workers(study, plan, data, tmp_path):
    content = yaml.safe_load(plan.read_text())
    content["parts"] = {name: content["parts"]["main"] | {"stages": [name]} for name in ("cost", "test")}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(content))
    words = [str(tmp_path / "plan.yaml"), "--data", str(data), "--runs", str(tmp_path)]
    for more, expected in (([], {("cost",), ("train", "test")}), (["--workers", "2"], {("train", "test")})):
        found = study.run.asked_for(study.run.make_parser().parse_args([*words, *more]))
        assert {run.stages for run in found} == expected


def test_one_process_at_a_time_makes_a_run(study, plan, data, tmp_path):
    (run,) = [r for r in study.plan.runs_of(study.plan.read_plan(plan), ["derived"]) if r.model == "switched"]
    words = [str(plan), "--data", str(data), "--runs", str(tmp_path), "--parts", "derived", "--run", run.key]
    with FileLock(tmp_path / f".{run.trained.key}.lock"), pytest.raises(SystemExit) as stop:  # BERT is being trained
        study.run.main(words)
    assert stop.value.code == study.run.BUSY
    assert not list(tmp_path.glob("*.jsonl"))


def test_times_are_not_taken_while_others_work(study, plan, data, attempts, tmp_path):
    started, answers = attempts
    done = {stage: {} for stage in ("train", "test", "query", "layers")}
    for run in study.plan.runs_of(study.plan.read_plan(plan), ["main"]):
        study.kept.write_run(tmp_path, run, {"stages": done, "seconds": {"test": 1.0}, "problem": None})
    words = [str(plan), "--data", str(data), "--runs", str(tmp_path), "--parts", "main"]
    study.run.main([*words, "--shared"])
    assert started == []
    answers += [(0, None)] * 3
    study.run.main(words)
    assert len(started) == 3


def test_a_run_that_takes_too_long_is_kept_as_such(plan, data, tmp_path):
    said = start(plan, data, "absent", tmp_path, "--parts", "main", "--time-limit", "0.1")
    assert said.stdout.count("exceeded the time limit of 0.1 s; 0 minutes of one worker left") == 3
    lines = [json.loads(line) for line in (tmp_path / "sst2.jsonl").read_text().splitlines()]
    assert [line["problem"] for line in lines] == ["exceeded the time limit of 0.1 s"] * 3
