"""examples/study and its report on a tiny BERT and made-up rows: what is kept, gone on with, and rendered."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy
import pytest
import torch
import yaml


pytest.importorskip("accelerate")
pytest.importorskip("datasets")
pytest.importorskip("sklearn")

from classifiers import WORDS, bert, save
from filelock import FileLock
from safetensors.torch import load_file


pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
REST = "tasks: [qqp, mnli, qnli, rte], seeds: [0]"
SCORED = f"""models: {{a: {{}}, b: {{}}}}
parts:
  one: {{tasks: [sst2], seeds: [0], models: [a, b], stages: [test]}}
  all: {{{REST}, models: [a, b], stages: [test]}}
  choice: {{{REST}, models: [a, b], stages: [choice]}}"""
README = "Before.\n\n<!-- study: main -->\nold\n<!-- /study -->\n\nAfter.\n"


@pytest.fixture(scope="module")
def study():
    """The modules of the study: plan, stages, report and the script."""
    study = import_module("study.run")
    study.plan, study.stages, study.report = (import_module(f"study.{name}") for name in ("plan", "stages", "report"))
    study.kept = import_module("study.kept")
    return study


def rows(count, seed):
    draw = random.Random(seed)
    return [{"sentence": " ".join(draw.choices(WORDS, k=6)), "label": i % 2} for i in range(count)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, count in (("train", 540), ("validation", 24)):
        (folder / "sst2").mkdir(exist_ok=True)
        (folder / "sst2" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(count, name)))
    attacked = [{"idx": i, **row, "original_sentence": row["sentence"][:-2]} for i, row in enumerate(rows(12, "adv"))]
    del attacked[3]["original_sentence"]
    (folder / "adv_glue").mkdir()
    (folder / "adv_glue" / "dev_ann.json").write_text(json.dumps({"sst2": attacked}))
    return folder


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    common = {"model_name_or_path": "hub/name", "max_train_samples": 16, "num_train_epochs": 1, "max_seq_length": 32}
    parts = {
        "search": {"tasks": ["sst2"], "seeds": [0, 1], "models": ["BERT", "IM-BERT"], "stages": ["choice"]},
        "main": {
            "tasks": ["sst2"],
            "seeds": [0],
            "models": ["BERT", "IM-BERT", "R3F"],
            "stages": ["test", "query", "cost"],
        },
        "derived": {
            "tasks": ["sst2"],
            "seeds": [0],
            "models": ["one at inference", "switched", "distilled"],
            "stages": ["choice"],
        },
        "half": {
            "tasks": ["sst2"],
            "seeds": [0],
            "models": ["IM-BERT"],
            "stages": ["choice"],
            "autocast": "bfloat16",
        },
    }
    models = {
        "BERT": {"connection": "bert"},
        "IM-BERT": {"im_iterations": 2},
        "R3F": {"connection": "bert", "r3f": True},
        "one at inference": {"of": "IM-BERT", "im_eval_iterations": 1},
        "switched": {"of": "BERT", "im_iterations": 1},
        "distilled": {"teacher": "IM-BERT", "num_train_epochs": 2},
    }
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({"common": common, "models": models, "parts": parts}, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("bert"), bert())


def start(plan, data, model, runs, *more):
    command = [sys.executable, str(EXAMPLES / "study"), "run", str(plan), "--data", str(data), "--runs", str(runs)]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([*command, "--model", model, *more], capture_output=True, text=True, env=env, check=False)


@pytest.fixture(scope="module")
def runs(study, plan, data, model, tmp_path_factory):
    """Folder in which every run of the plan was made, but for R3F's."""
    folder = tmp_path_factory.mktemp("runs")
    for run in study.plan.runs_of(study.plan.read_plan(plan)):
        if run.model != "R3F":
            study.stages.make_run(run, data, folder, model)
    return folder


def test_equal_settings_are_one_run_whatever_they_are_called(study, plan):
    every = list(study.plan.runs_of(study.plan.read_plan(plan)))
    assert len(every) == 11
    assert len({run.key for run in every}) == 9
    assert len({run.trained.key for run in every}) == 6
    assert len({run.taught_by.key for run in every}) == 5
    search, main = (
        next(r for r in every if (r.part, r.model, r.seed) == (p, "IM-BERT", 0)) for p in ("search", "main")
    )
    assert search.key == main.key
    assert (search.stages, main.stages) == (("train", "choice"), ("train", "test", "query", "cost"))
    assert [run.part for run in study.plan.runs_of(study.plan.read_plan(plan), ["main"])] == ["main"] * 3


def test_no_run_trains_on_a_row_that_settings_are_chosen_by(study, data, tmp_path):
    study.stages.split(data, "sst2", tmp_path)
    parts = [(tmp_path / "sst2" / f"{name}.jsonl").read_text().splitlines() for name in ("validation", "train")]
    assert len(parts[0]) == study.stages.CHOICE
    assert sorted(parts[0] + parts[1]) == sorted((data / "sst2" / "train.jsonl").read_text().splitlines())


def test_a_train_file_without_rows_to_spare_is_refused(study, tmp_path):
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "train.jsonl").write_text("{}\n" * 500)
    with pytest.raises(ValueError, match=r"sst2/train.jsonl must hold more than 500 rows, got 500\."):
        study.stages.split(tmp_path, "sst2", tmp_path / "parts")


def test_what_is_kept_of_a_run(study, plan, data, runs):
    (run,) = [r for r in study.plan.runs_of(study.plan.read_plan(plan), ["main"]) if r.model == "IM-BERT"]
    kept = study.kept.read_run(runs, run)
    assert kept["settings"] == run.settings
    assert kept["problem"] is None
    assert set(kept["stages"]) == set(kept["seconds"]) == {"train", "choice", "test", "query", "cost"}
    stages = kept["stages"]
    assert stages["train"]["im_fields"]["im_iterations"] == 2
    assert stages["train"]["rows"] == {"train": 16, "validation": 500}
    assert [len(stages[stage]["clean"]) for stage in ("choice", "test")] == [500, 24]
    # The Trainer's own accuracy on the same rows.
    share = numpy.mean([c == "1" for c in stages["choice"]["clean"]])
    assert share == pytest.approx(stages["train"]["metrics"]["validation"]["accuracy"])
    assert set(stages["test"]["noise"]) == {"keyboard", "swap", "deletion", "clause"}
    assert stages["test"]["majority"] == 0.5
    assert len(stages["test"]["advglue"]["sst2"]["attacked"]) == 12
    assert [i for i, c in enumerate(stages["test"]["advglue"]["sst2"]["original"]) if c == "-"] == [3]
    assert len(stages["query"]["after"]) == 24
    assert stages["query"]["before"] == stages["test"]["clean"]
    assert stages["cost"]["inference"]["ratio"] > 0
    text = json.dumps(kept)
    assert str(data) not in text
    assert str(runs) not in text
    assert not any(row["sentence"] in text for row in rows(24, "validation"))


def test_a_model_may_be_anothers_weights_with_other_fields_or_what_it_taught(study, plan, runs):
    """Fields set after the training change no weight; a distilled model is a BERT of its own."""
    every = {r.model: r for r in study.plan.runs_of(study.plan.read_plan(plan), ["main", "derived"])}

    def weights(name):
        return load_file(runs / "weights" / every[name].key / "model.safetensors")

    def config(name):
        return json.loads((runs / "weights" / every[name].key / "config.json").read_text())

    for name, base in (("one at inference", "IM-BERT"), ("switched", "BERT")):
        assert study.kept.read_run(runs, every[name])["settings"]["fields"] == every[name].fields
        assert config(name)["model_type"] == "imbert"
        assert all(torch.equal(w, weights(base)[key]) for key, w in weights(name).items())
    assert config("one at inference")["im_eval_iterations"] == 1
    assert config("one at inference")["im_iterations"] == 2
    assert config("switched")["im_iterations"] == 1
    assert config("distilled")["model_type"] == "bert"
    assert not torch.equal(*(weights(name)["classifier.weight"] for name in ("distilled", "IM-BERT")))
    kept = {name: study.kept.read_run(runs, run) for name, run in every.items() if name != "R3F"}
    assert kept["distilled"]["settings"]["teacher"] == every["IM-BERT"].arguments
    assert kept["distilled"]["stages"]["train"]["steps"] == 4
    assert kept["one at inference"]["stages"]["train"] == kept["IM-BERT"]["stages"]["train"]
    assert kept["switched"]["stages"]["choice"]["residual"] > 0


def test_the_same_weights_under_autocast(study, plan, runs):
    every = {
        run.part: study.kept.read_run(runs, run)
        for run in study.plan.runs_of(study.plan.read_plan(plan), ["main", "half"])
        if run.model == "IM-BERT"
    }
    single, half = (every[part] for part in ("main", "half"))
    assert half["settings"] == single["settings"] | {"autocast": "bfloat16"}
    assert half["stages"]["train"] == single["stages"]["train"]
    before, after = (kept["stages"]["choice"] for kept in (single, half))
    assert after["residual"] != before["residual"]
    assert after["residual"] == pytest.approx(before["residual"], rel=0.05)
    assert after["growth"] == before["growth"]  # always in float32


def test_all_that_a_part_measures_is_under_its_autocast_but_costs(study, plan, monkeypatch, tmp_path):
    run = next(study.plan.runs_of(study.plan.read_plan(plan), ["half"]))
    monkeypatch.setattr(study.stages, "load_classifier", lambda *_, **__: None)
    monkeypatch.setattr(study.stages, "train", lambda run, data, weights, model: None)
    (tmp_path / "weights" / run.trained.key).mkdir(parents=True)
    (tmp_path / "weights" / run.trained.key / "model.safetensors").touch()
    for stage in ("choice", "test", "query", "cost"):
        monkeypatch.setitem(study.stages.STAGE, stage, lambda *_: torch.is_autocast_enabled("cpu"))
    every = ("train", "choice", "test", "query", "cost")
    for autocast, expected in (("bfloat16", [True, True, True, False]), ("", [False] * 4)):
        one = replace(run, autocast=autocast, stages=every)
        study.stages.make_run(one, tmp_path, tmp_path, None)
        stages = study.kept.read_run(tmp_path, one)["stages"]
        assert [stages[stage] for stage in every[1:]] == expected


def test_a_stopped_run_goes_on_and_a_failed_one_is_kept_and_tried_again(study, plan, data, model, runs):
    (run,) = [r for r in study.plan.runs_of(study.plan.read_plan(plan), ["main"]) if r.model == "BERT"]
    kept = study.kept.read_run(runs, run)
    del kept["stages"]["cost"]
    study.kept.write_run(runs, run, kept)
    file = runs / "sst2.jsonl"
    before = file.read_text().splitlines()

    assert start(plan, data, model, runs, "--parts", "main", "--models", "IM-BERT").stdout == ""  # all is made
    said = start(plan, data, str(runs / "absent"), runs, "--parts", "search", "main")  # of both, BERT's run is one
    assert said.returncode == 0, said.stderr
    done, failed = said.stdout.splitlines()
    assert done.startswith("[4/5] main: sst2, seed 0, BERT: ")
    assert failed.startswith("[5/5] main: sst2, seed 0, R3F: finetune_glue.py: error: --model_name_or_path")
    again = study.kept.read_run(runs, run)
    assert {name: again["stages"][name] for name in kept["stages"]} == kept["stages"]  # nothing was made twice
    assert "cost" in again["stages"]
    after = file.read_text().splitlines()
    assert len(set(before) & set(after)) == len(before) - 1
    assert len(after) == len(before) + 1  # R3F's

    assert start(plan, data, model, runs).stdout == ""  # what failed is left alone
    (line,) = start(plan, data, model, runs, "--retry", "--workers", "2").stdout.splitlines()
    assert "R3F" in line
    assert "error" not in line
    r3f = next(r for r in study.plan.runs_of(study.plan.read_plan(plan)) if r.model == "R3F")
    assert study.kept.read_run(runs, r3f)["problem"] is None
    others = [line for line in file.read_text().splitlines() if "R3F" not in line]
    file.write_text("".join(f"{line}\n" for line in others))  # as the other tests expect it


@pytest.fixture
def attempts(study, monkeypatch):
    """What the child says of each attempt, in turn; the children that were started."""
    started, answers = [], []

    def child(run, args, words):
        started.append(run.key)
        return answers.pop(0)

    monkeypatch.setattr(study, "child", child)
    monkeypatch.setattr(study.time, "sleep", lambda seconds: None)
    return started, answers


def test_what_is_killed_has_not_failed_and_what_others_make_is_waited_for(study, plan, data, attempts, tmp_path):
    started, answers = attempts
    words = [str(plan), "--data", str(data), "--runs", str(tmp_path), "--parts", "main"]
    answers += [(study.BUSY, None), (-9, "was killed by signal 9"), (1, "broken"), (0, None)]
    study.main(words)
    assert started == [*started[:3], started[0]]  # BERT's was busy, and tried again after the others
    kept = [study.kept.read_run(tmp_path, run) for run in study.plan.runs_of(study.plan.read_plan(plan), ["main"])]
    assert [one["problem"] for one in kept] == [None, None, "broken"]
    started.clear()
    answers += [(0, None), (0, None), (0, None)]
    study.main(words)
    assert len(started) == 2
    run = next(r for r in study.plan.runs_of(study.plan.read_plan(plan)) if r.model == "R3F")
    study.kept.write_run(tmp_path, run, kept[2] | {"failed": 0})  # of an earlier hour: with --retry tried, and once
    study.main([*words, "--models", "R3F", "--retry"])
    assert len(started) == 3


def test_one_process_at_a_time_makes_a_run(study, plan, data, tmp_path):
    (run,) = [r for r in study.plan.runs_of(study.plan.read_plan(plan), ["derived"]) if r.model == "switched"]
    words = [str(plan), "--data", str(data), "--runs", str(tmp_path), "--parts", "derived", "--run", run.key]
    with FileLock(tmp_path / f".{run.trained.key}.lock"), pytest.raises(SystemExit) as stop:  # BERT is being trained
        study.main(words)
    assert stop.value.code == study.BUSY
    assert not list(tmp_path.glob("*.jsonl"))


def test_times_are_not_taken_while_others_work(study, plan, data, attempts, tmp_path):
    started, answers = attempts
    done = {stage: {} for stage in ("train", "test", "query")}
    for run in study.plan.runs_of(study.plan.read_plan(plan), ["main"]):
        study.kept.write_run(tmp_path, run, {"stages": done, "seconds": {"test": 1.0}, "problem": None})
    words = [str(plan), "--data", str(data), "--runs", str(tmp_path), "--parts", "main"]
    study.main([*words, "--shared"])
    assert started == []
    answers += [(0, None)] * 3
    study.main(words)
    assert len(started) == 3


def test_a_training_goes_on_from_its_last_whole_checkpoint(study, plan, data, monkeypatch, tmp_path):
    run = next(study.plan.runs_of(study.plan.read_plan(plan)))
    for step, file in ((32, "trainer_state.json"), (64, "model.safetensors")):  # the second was cut off
        (tmp_path / "weights" / f"checkpoint-{step}").mkdir(parents=True)
        (tmp_path / "weights" / f"checkpoint-{step}" / file).touch()
    said = []
    monkeypatch.setattr(study.stages.finetune_glue, "main", said.extend)
    study.stages.finetune(run, data, tmp_path / "weights", None)
    assert said[said.index("--resume_from_checkpoint") + 1] == "last"
    assert not list((tmp_path / "weights").glob("checkpoint-*"))  # the whole one after the training


def test_what_was_measured_of_other_weights_is_dropped(study, plan, data, monkeypatch, tmp_path):
    run = next(study.plan.runs_of(study.plan.read_plan(plan)))
    weights = tmp_path / "weights" / run.key / "model.safetensors"
    content = [b"one", b"one", b"other"]

    def train(*_):
        weights.parent.mkdir(parents=True, exist_ok=True)
        weights.write_bytes(content.pop(0))
        return {}

    monkeypatch.setattr(study.stages, "train", train)
    monkeypatch.setattr(study.stages, "load_classifier", lambda *_, **__: None)
    for stage in ("choice", "test"):
        monkeypatch.setitem(study.stages.STAGE, stage, lambda *_: {"of": weights.read_bytes().decode()})
    for stages, expected in (
        (("train", "choice"), {"choice": "one"}),
        (("train", "choice", "test"), {"choice": "one", "test": "one"}),  # trained again, to the same weights
        (("train", "test", "query"), {"test": "other", "query": None}),
    ):
        monkeypatch.setitem(study.stages.STAGE, "query", lambda *_: {"of": None})
        study.stages.make_run(replace(run, stages=stages), data, tmp_path, None)
        kept = study.kept.read_run(tmp_path, run)["stages"]
        assert {name: one["of"] for name, one in kept.items() if name != "train"} == expected
        weights.unlink()


def test_a_run_that_takes_too_long_is_kept_as_such(study, plan, data, model, tmp_path):
    said = start(plan, data, model, tmp_path, "--parts", "main", "--time-limit", "0.1")
    assert said.stdout.count("exceeded the time limit of 0.1 s; 0 minutes of one worker left") == 3
    lines = [json.loads(line) for line in (tmp_path / "sst2.jsonl").read_text().splitlines()]
    assert [line["problem"] for line in lines] == ["exceeded the time limit of 0.1 s"] * 3


def test_the_report_says_what_the_files_say_and_the_same_twice(study, plan, runs, tmp_path):
    readme, output = tmp_path / "README.md", tmp_path / "study"
    readme.write_text(README)
    words = [str(plan), "--runs", str(runs), "--output", str(output), "--readme", str(readme)]
    study.report.main(words)
    made = {path.name: path.read_bytes() for path in tmp_path.rglob("*.*")}
    pictures = {f"{name}.png" for name in ("main-sst2-validation", "search-sst2-choice", "derived-sst2-choice")}
    head, _, line, *_ = (output / "tables.md").read_text().split("### half, sst2, choice")[1].strip().splitlines()
    assert "inference cost" in head  # that of the same weights without autocast
    assert line.startswith("| IM-BERT")
    assert (output / "tables.md").read_text().count("Accuracies and residuals under bfloat16 autocast.") == 1
    assert set(made) == {"README.md", "tables.md"} | pictures
    study.report.main(words)
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("*.*")} == made

    text = (output / "tables.md").read_text()
    table = text.split("### main, sst2, validation")[1].split("\n\n")[1].splitlines()
    cells = {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in table}
    assert cells["R3F"][:2] == ["0 of 1", "not run"]
    assert cells["most frequent label"][:3] == ["", "50.0", ""]
    by_model = {
        run.model: study.kept.read_run(runs, run)["stages"]
        for run in study.plan.runs_of(study.plan.read_plan(plan), ["main"])
    }
    right = {m: numpy.array([c == "1" for c in s["test"]["clean"]]) for m, s in by_model.items() if s}
    assert cells["IM-BERT"][:2] == ["1 of 1", f"{100 * right['IM-BERT'].mean():.1f}"]
    apart = 100 * (right["IM-BERT"].mean() - right["BERT"].mean())
    apart_table = text.split("### main")[1].split("Points over BERT")[1].split("![")[0]
    (line,) = [line for line in apart_table.splitlines() if "| IM-BERT" in line]
    assert line.split("|")[2].strip().startswith(f"{apart:+.1f} [")

    shown = readme.read_text()
    assert shown.startswith("Before.\n\n<!-- study: main -->\n### main, sst2, validation")
    assert shown.endswith("<!-- /study -->\n\nAfter.\n")
    assert "old" not in shown
    assert ".png" not in shown


def test_the_plan_in_the_tree_does_not_depend_on_the_default_of_im_layers(study):
    """Its names are hashes of what it says, and the defaults come from it."""
    for name, model in study.plan.read_plan(EXAMPLES / "study/plan.yaml")["models"].items():
        plain = model.get("connection") in ("bert", "ex-bert")  # the latter in all layers, whatever the default
        of_implicit = model.get("of", model.get("teacher", "BERT")) != "BERT"
        assert plain or of_implicit or model.get("preset") == "paper" or "im_layers" in model, name


def test_the_tables_in_the_tree_are_those_of_its_runs(study, tmp_path, monkeypatch):
    kept = EXAMPLES.parent / "model_cards"
    monkeypatch.chdir(EXAMPLES.parent)
    shutil.copy(kept / "README.md", tmp_path)
    words = ["--output", tmp_path / "study", "--readme", tmp_path / "README.md"]
    study.report.main(["examples/study/plan.yaml", "--runs", "model_cards/study/runs", *map(str, words)])
    number = re.compile(r"\d+\.\d+")
    for name in ("study/tables.md", "README.md"):
        texts = [folder.joinpath(name).read_text() for folder in (tmp_path, kept)]
        rendered, written = (text.partition("\n- clean: ")[2] or text for text in texts)  # below the two paths
        assert number.sub("#", rendered) == number.sub("#", written)
        for a, b in zip(number.findall(rendered), number.findall(written), strict=True):
            last = 10.0 ** -len(b.partition(".")[2])  # where another numpy rounds otherwise
            assert float(a) == pytest.approx(float(b), rel=0, abs=1.01 * last)
    assert {path.name for path in (tmp_path / "study/figures").iterdir()} == {
        path.name for path in (kept / "study/figures").iterdir()
    }


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("{", "cannot be read: "),
        ("[]", "must hold 'models', by name"),
        ("models: {a: {}}\nparts: {p: {tasks: [sst2]}}", "part 'p' must hold 'seeds', a list."),
        (
            "models: {a: {}}\nparts: {p: {tasks: [sst2], seeds: [0], models: [b], stages: []}}",
            "models of 'p' must be of a, got 'b'.",
        ),
        (
            "models: {a: {}}\nparts: {p: {tasks: [sst2], seeds: [0], models: [a], stages: [look]}}",
            "stages of 'p' must be of train, choice, test, query, cost, got 'look'.",
        ),
        ("models: {a: {}}\nparts: {}\ncomon: {}", "may hold about, common, models, parts, scores, got 'comon'."),
        ("models: {a: {}}\nparts: {}\nscores: [s]", "scores must hold scores by name, got ['s']."),
        (f"{SCORED}\nscores: {{one: {{parts: [one]}}}}", "score 'one' must have another name than every part."),
        (f"{SCORED}\nscores: {{s: [one]}}", "score 's' must hold parts, a list of one, all, choice, got None."),
        (f"{SCORED}\nscores: {{s: {{parts: [two]}}}}", "'s' must hold parts, a list of one, all, choice, got ['two']."),
        (f"{SCORED}\nscores: {{s: {{parts: [one], model: [a]}}}}", "'s' may hold parts, models, got 'model'."),
        (f"{SCORED}\nscores: {{s: {{parts: [one, one]}}}}", "of score 's' must hold a task once, got sst2, sst2."),
        (
            f"{SCORED}\nscores: {{s: {{parts: [one, choice]}}}}",
            "'choice' of score 's' must have the stage test, and the models a, b.",
        ),
        (
            f"{SCORED}\nscores: {{s: {{parts: [one, all], models: [b, c]}}}}",
            "'one' of score 's' must have the stage test, and the models b, c.",
        ),
        ("models: {a: bert}\nparts: {}", "'a' must hold arguments by name, got 'bert'."),
        ("models: {a: {of: [b]}}\nparts: {}", "of of 'a' must be a model that has neither of nor teacher, got ['b']."),
        (
            "models: {a: {}}\nparts: {p: {tasks: [sst2], seeds: [0], models: [a], stages: [test], argument: {}}}",
            "part 'p' may hold tasks, seeds, models, stages, arguments, autocast, got 'argument'.",
        ),
        (
            "models: {a: {}}\nparts: {p: {tasks: [sst2], seeds: [0], models: [a], stages: [test], autocast: float64}}",
            "autocast of 'p' must be of bfloat16, got 'float64'.",
        ),
        (
            "models: {a: {}}\nparts: {p: {tasks: [sst2], seeds: [0], models: [], stages: [test]}}",
            "models of 'p' must be of a, got none.",
        ),
        ("models: {a: {of: b}}\nparts: {}", "of of 'a' must be a model that has neither of nor teacher, got 'b'."),
        (
            "models: {a: {teacher: b}, b: {of: c}, c: {}}\nparts: {}",
            "teacher of 'a' must be a model that has neither of nor teacher, got 'b'.",
        ),
        (
            "models: {a: {of: b, learning_rate: 1}, b: {}}\nparts: {}",
            "beside of, 'a' may hold im_ fields alone, got 'learning_rate'.",
        ),
    ],
)
def test_a_wrong_plan_is_one_sentence(change, sentence, study, data, tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(change)
    with pytest.raises(SystemExit) as stop:
        study.main([str(path), "--data", str(data), "--runs", str(tmp_path / "runs")])
    assert str(stop.value).startswith(f"study run: error: {path}")
    assert sentence in str(stop.value)
    assert "\n" not in str(stop.value)
    assert not (tmp_path / "runs").exists()


def test_wrong_arguments(study, plan, data, tmp_path):
    for words, sentence in (
        (["--parts", "mian"], "--parts must be of search, main, derived, half, got 'mian'."),
        (["--models", "BART"], "--models must be of BERT, IM-BERT, R3F, .*, got 'BART'."),
        (["--workers", "0"], "--workers must be an integer >= 1, got 0."),
        (["--data", str(tmp_path)], f"--data {tmp_path} lacks sst2/train.jsonl."),
    ):
        with pytest.raises(SystemExit, match=sentence):
            study.main([str(plan), "--data", str(data), "--runs", str(tmp_path / "runs"), *words])
    with pytest.raises(SystemExit, match=f"--runs {tmp_path} holds no <task>.jsonl."):
        study.report.main([str(plan), "--runs", str(tmp_path), "--output", str(tmp_path / "report")])
    assert not (tmp_path / "report").exists()
