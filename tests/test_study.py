"""examples/study.py and its report on a tiny BERT and made-up rows: what is kept, gone on with, and rendered."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
import yaml


pytest.importorskip("accelerate")
pytest.importorskip("datasets")
pytest.importorskip("sklearn")

from classifiers import WORDS, bert, save
from safetensors.torch import load_file


pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
README = "Before.\n\n<!-- study: main -->\nold\n<!-- /study -->\n\nAfter.\n"


@pytest.fixture(scope="module")
def study():
    """The modules of the study: plan, stages, report and the script."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        import study
        import study_plan
        import study_report
        import study_stages
    finally:
        sys.path.remove(str(EXAMPLES))
    study.plan, study.stages, study.report = study_plan, study_stages, study_report
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
    command = [sys.executable, str(EXAMPLES / "study.py"), str(plan), "--data", str(data), "--runs", str(runs)]
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
    assert len(every) == 10
    assert len({run.name for run in every}) == 8
    assert len({run.trained.name for run in every}) == 6
    assert len({run.taught_by.name for run in every}) == 5
    search, main = (
        next(r for r in every if (r.part, r.model, r.seed) == (p, "IM-BERT", 0)) for p in ("search", "main")
    )
    assert search.name == main.name
    assert (search.stages, main.stages) == (("train", "choice"), ("train", "test", "query", "cost"))
    assert [run.part for run in study.plan.runs_of(study.plan.read_plan(plan), ["main"])] == ["main"] * 3


def test_no_run_trains_on_a_row_that_settings_are_chosen_by(study, data, tmp_path):
    study.stages.split(data, "sst2", tmp_path)
    parts = [(tmp_path / "sst2" / f"{name}.jsonl").read_text().splitlines() for name in ("validation", "train")]
    assert len(parts[0]) == study.stages.CHOICE
    assert sorted(parts[0] + parts[1]) == sorted((data / "sst2" / "train.jsonl").read_text().splitlines())


def test_what_is_kept_of_a_run(study, plan, data, runs):
    (run,) = [r for r in study.plan.runs_of(study.plan.read_plan(plan), ["main"]) if r.model == "IM-BERT"]
    kept = study.plan.read_run(runs, run)
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
        return load_file(runs / "weights" / every[name].name / "model.safetensors")

    def config(name):
        return json.loads((runs / "weights" / every[name].name / "config.json").read_text())

    for name, base in (("one at inference", "IM-BERT"), ("switched", "BERT")):
        assert study.plan.read_run(runs, every[name])["settings"]["fields"] == every[name].fields
        assert config(name)["model_type"] == "imbert"
        assert all(torch.equal(w, weights(base)[key]) for key, w in weights(name).items())
    assert config("one at inference")["im_eval_iterations"] == 1
    assert config("one at inference")["im_iterations"] == 2
    assert config("switched")["im_iterations"] == 1
    assert config("distilled")["model_type"] == "bert"
    assert not torch.equal(*(weights(name)["classifier.weight"] for name in ("distilled", "IM-BERT")))
    kept = {name: study.plan.read_run(runs, run) for name, run in every.items() if name != "R3F"}
    assert kept["distilled"]["settings"]["teacher"] == every["IM-BERT"].arguments
    assert kept["distilled"]["stages"]["train"]["steps"] == 4
    assert kept["one at inference"]["stages"]["train"] == kept["IM-BERT"]["stages"]["train"]
    assert kept["switched"]["stages"]["choice"]["residual"] > 0


def test_a_stopped_run_goes_on_and_a_failed_one_is_kept_and_tried_again(study, plan, data, model, runs):
    (run,) = [r for r in study.plan.runs_of(study.plan.read_plan(plan), ["main"]) if r.model == "BERT"]
    kept = study.plan.read_run(runs, run)
    del kept["stages"]["cost"]
    study.plan.write_run(runs, run, kept)
    before = {path.name: path.stat().st_mtime_ns for path in runs.glob("*.json")}

    assert start(plan, data, model, runs, "--parts", "main", "--models", "IM-BERT").stdout == ""  # all is made
    said = start(plan, data, str(runs / "absent"), runs, "--parts", "search", "main")  # of both, BERT's run is one
    assert said.returncode == 0, said.stderr
    done, failed = said.stdout.splitlines()
    assert done.startswith("[4/5] main: sst2, seed 0, BERT: ")
    assert failed.startswith("[5/5] main: sst2, seed 0, R3F: finetune_glue.py: error: --model_name_or_path")
    again = study.plan.read_run(runs, run)
    assert {name: again["stages"][name] for name in kept["stages"]} == kept["stages"]  # nothing was made twice
    assert "cost" in again["stages"]
    untouched = [name for name, time in before.items() if (runs / name).stat().st_mtime_ns == time]
    assert len(untouched) == len(before) - 1

    assert start(plan, data, model, runs).stdout == ""  # what failed is left alone
    (line,) = start(plan, data, model, runs, "--retry", "--workers", "2").stdout.splitlines()
    assert "R3F" in line
    assert "error" not in line
    r3f = next(r for r in study.plan.runs_of(study.plan.read_plan(plan)) if r.model == "R3F")
    assert study.plan.read_run(runs, r3f)["problem"] is None
    (runs / f"{r3f.name}.json").unlink()  # for the others


def test_a_run_that_takes_too_long_is_kept_as_such(study, plan, data, model, tmp_path):
    said = start(plan, data, model, tmp_path, "--parts", "main", "--time-limit", "0.1")
    assert [line.split(": ", 2)[2] for line in said.stdout.splitlines()] == [
        "exceeded the time limit of 0.1 s; 0 minutes of one worker left"
    ] * 3 or said.stdout.count("exceeded the time limit of 0.1 s") == 3
    assert json.loads(next(tmp_path.glob("*.json")).read_text())["problem"] == "exceeded the time limit of 0.1 s"


def test_the_report_says_what_the_files_say_and_the_same_twice(study, plan, runs, tmp_path):
    readme, output = tmp_path / "README.md", tmp_path / "study.md"
    readme.write_text(README)
    words = [str(plan), "--runs", str(runs), "--output", str(output), "--readme", str(readme)]
    study.report.main(words)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    pictures = {f"study-{name}.png" for name in ("main-sst2-validation", "search-sst2-choice", "derived-sst2-choice")}
    assert set(made) == {"README.md", "study.md"} | pictures
    study.report.main(words)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == made

    text = output.read_text()
    table = text.split("### main, sst2, validation")[1].split("\n\n")[1].splitlines()
    cells = {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in table}
    assert cells["R3F"][:2] == ["0 of 1", "not run"]
    by_model = {
        run.model: study.plan.read_run(runs, run)["stages"]
        for run in study.plan.runs_of(study.plan.read_plan(plan), ["main"])
    }
    right = {m: numpy.array([c == "1" for c in s["test"]["clean"]]) for m, s in by_model.items() if s}
    assert cells["IM-BERT"][:2] == ["1 of 1", f"{100 * right['IM-BERT'].mean():.1f}"]
    apart = 100 * (right["IM-BERT"].mean() - right["BERT"].mean())
    assert f"{apart:+.1f} [" in text.split("Points over BERT")[-1].split("![")[0]

    shown = readme.read_text()
    assert shown.startswith("Before.\n\n<!-- study: main -->\n### main, sst2, validation")
    assert shown.endswith("<!-- /study -->\n\nAfter.\n")
    assert "old" not in shown
    assert ".png" not in shown


def test_pairs_count_where_both_texts_are_right(study):
    stages = {"test": {"clean": "10", "advglue": {"a": {"attacked": "1101", "original": "10-1"}}}}
    cell = study.report.Cell("m", {0: {"stages": stages}, 1: None})
    assert cell.rows("test", "both")[0].tolist() == [True, False, True]
    assert cell.rows("test", "originals")[0].tolist() == [True, False, True]
    assert cell.rows("test", "query") == {}
    assert cell.rows("choice", "clean") == {}


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
    assert str(stop.value).startswith(f"study.py: error: {path}")
    assert sentence in str(stop.value)
    assert "\n" not in str(stop.value)
    assert not (tmp_path / "runs").exists()


def test_wrong_arguments(study, plan, data, tmp_path):
    for words, sentence in (
        (["--parts", "mian"], "--parts must be of search, main, derived, got 'mian'."),
        (["--models", "BART"], "--models must be of BERT, IM-BERT, R3F, .*, got 'BART'."),
        (["--workers", "0"], "--workers must be an integer >= 1, got 0."),
        (["--data", str(tmp_path)], f"--data {tmp_path} lacks sst2/train.jsonl."),
    ):
        with pytest.raises(SystemExit, match=sentence):
            study.main([str(plan), "--data", str(data), "--runs", str(tmp_path / "runs"), *words])
    for words, sentence in (
        (["--runs", str(tmp_path)], f"--runs {tmp_path} holds no JSON file."),
        (["--output", str(tmp_path / "no" / "x.md")], "the folder does not exist"),
    ):
        (tmp_path / "some").mkdir(exist_ok=True)
        (tmp_path / "some" / "run.json").write_text("{}")
        with pytest.raises(SystemExit, match=sentence):
            study.report.main([str(plan), "--runs", str(tmp_path / "some"), "--output", str(tmp_path / "x.md"), *words])
