"""examples/study on a tiny BERT and made-up rows: what is measured and kept, gone on with, and rendered."""

import json
import re
from dataclasses import replace

import numpy
import pytest
import torch


pytest.importorskip("accelerate")
pytest.importorskip("datasets")
pytest.importorskip("sklearn")

import studies
from classifiers import bert, save
from safetensors.torch import load_file
from studies import PARTS, rows, start


study, data, plan = studies.study, studies.data, studies.plan  # fixtures
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")

README = "Before.\n\n<!-- study: main -->\nold\n<!-- /study -->\n\nAfter.\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("bert"), bert())


@pytest.fixture(scope="module")
def runs(study, plan, data, model, tmp_path_factory):
    """Folder in which every run of the plan was made, but for R3F's."""
    folder = tmp_path_factory.mktemp("runs")
    for run in study.plan.runs_of(study.plan.read_plan(plan)):
        if run.model != "R3F":
            study.stages.make_run(run, study.files.Files(data, folder, model))
    return folder


def test_no_run_trains_on_a_row_that_settings_are_chosen_by(study, data, tmp_path):
    folder = study.files.Files(data, tmp_path).split("sst2")
    parts = [(folder / "sst2" / f"{name}.jsonl").read_text().splitlines() for name in ("validation", "train")]
    assert len(parts[0]) == study.files.CHOICE
    assert sorted(parts[0] + parts[1]) == sorted((data / "sst2" / "train.jsonl").read_text().splitlines())


def test_a_train_file_without_rows_to_spare_is_refused(study, tmp_path):
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "train.jsonl").write_text("{}\n" * 500)
    with pytest.raises(ValueError, match=r"sst2/train.jsonl must hold more than 500 rows, got 500\."):
        study.files.Files(tmp_path, tmp_path / "runs").split("sst2")


def test_what_is_kept_of_a_run(study, plan, data, runs):
    (run,) = [r for r in study.plan.runs_of(study.plan.read_plan(plan), ["main"]) if r.model == "IM-BERT"]
    kept = study.kept.read_run(runs, run)
    assert kept["settings"] == run.settings
    assert kept["problem"] is None
    assert set(kept["stages"]) == set(kept["seconds"]) == {"train", "choice", "test", "query", "layers", "cost"}
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
    monkeypatch.setattr(study.stages, "train", lambda run, files, weights: None)
    (tmp_path / "weights" / run.trained.key).mkdir(parents=True)
    (tmp_path / "weights" / run.trained.key / "model.safetensors").touch()
    for stage in ("choice", "test", "advglue_test", "query", "layers", "cost"):
        monkeypatch.setitem(study.stages.STAGE, stage, lambda *_: torch.is_autocast_enabled("cpu"))
    every = ("train", "choice", "test", "advglue_test", "query", "cost")
    for autocast, expected in (("bfloat16", [True, True, True, True, False]), ("", [False] * 5)):
        one = replace(run, autocast=autocast, stages=every)
        study.stages.make_run(one, study.files.Files(tmp_path, tmp_path))
        stages = study.kept.read_run(tmp_path, one)["stages"]
        assert [stages[stage] for stage in every[1:]] == expected


@pytest.mark.parametrize("name", ["R3F", "switched", "distilled"])
def test_a_cost_alone_takes_one_step_of_training(study, plan, data, model, monkeypatch, tmp_path, name):
    """And leaves what was measured of trained weights as it is, though these are gone."""
    parts = {"costs": {"tasks": ["sst2"], "seeds": [0], "models": [name], "stages": ["cost"]}}
    (run,) = study.plan.runs_of(study.plan.read_plan(plan) | {"parts": parts})
    assert run.stages == ("cost",)
    measured = {"train": {"steps": 7}, "choice": {"clean": "1"}}
    study.kept.write_run(tmp_path, run, {"stages": measured, "weights": "gone"})
    steps, made = [], study.stages.fine_tuned
    monkeypatch.setattr(
        study.stages, "fine_tuned", lambda run, *of: steps.append(run.arguments["max_steps"]) or made(run, *of)
    )
    study.stages.make_run(run, study.files.Files(data, tmp_path, model))
    kept = study.kept.read_run(tmp_path, run)
    assert kept["stages"].pop("cost")["training"]["ratio"] > 0
    assert (kept["stages"], kept["weights"]) == (measured, "gone")
    assert steps == [1] * (2 if name == "distilled" else 1)


def test_a_training_goes_on_from_its_last_whole_checkpoint(study, plan, data, monkeypatch, tmp_path):
    run = next(study.plan.runs_of(study.plan.read_plan(plan)))
    for step, file in ((32, "trainer_state.json"), (64, "model.safetensors")):  # the second was cut off
        (tmp_path / "weights" / f"checkpoint-{step}").mkdir(parents=True)
        (tmp_path / "weights" / f"checkpoint-{step}" / file).touch()
    said = []
    monkeypatch.setattr(study.stages.finetune, "main", said.extend)
    study.stages.fine_tuned(run, study.files.Files(data, tmp_path), tmp_path / "weights")
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
        study.stages.make_run(replace(run, stages=stages), study.files.Files(data, tmp_path))
        kept = study.kept.read_run(tmp_path, run)["stages"]
        assert {name: one["of"] for name, one in kept.items() if name != "train"} == expected
        weights.unlink()


def test_a_stopped_run_goes_on_and_a_failed_one_is_kept_and_tried_again(study, plan, data, model, runs, capsys):
    (run,) = [r for r in study.plan.runs_of(study.plan.read_plan(plan), ["main"]) if r.model == "BERT"]
    kept = study.kept.read_run(runs, run)
    del kept["stages"]["cost"]
    study.kept.write_run(runs, run, kept)
    file = runs / "sst2.jsonl"
    before = file.read_text().splitlines()

    words = [str(plan), "--data", str(data), "--runs", str(runs)]
    study.run.main([*words, "--parts", "main", "--models", "IM-BERT"])
    assert capsys.readouterr().out == ""  # all is made
    said = start(plan, data, str(runs / "absent"), runs, "--parts", "search", "main")  # of both, BERT's run is one
    assert said.returncode == 1, said.stderr  # R3F's
    done, failed = [line for line in said.stdout.splitlines() if line.startswith("[")]
    assert done.startswith("[4/5] main: sst2, seed 0, BERT: ")
    assert failed.startswith("[5/5] main: sst2, seed 0, R3F: finetune.py: error: --model_name_or_path")
    again = study.kept.read_run(runs, run)
    assert {name: again["stages"][name] for name in kept["stages"]} == kept["stages"]  # nothing was made twice
    assert "cost" in again["stages"]
    after = file.read_text().splitlines()
    assert len(set(before) & set(after)) == len(before) - 1
    assert len(after) == len(before) + 1  # R3F's

    study.run.main(words)
    assert capsys.readouterr().out == ""  # what failed is left alone
    said = start(plan, data, model, runs, "--retry", "--workers", "2").stdout
    assert re.match(r" +runs +hours\n.*\nR3F +1 +0\.0\d\nabout 0\.0\d hours with --workers 2, from a few", said)
    (line,) = [line for line in said.splitlines() if line.startswith("[")]
    assert "R3F" in line
    assert "error" not in line
    r3f = next(r for r in study.plan.runs_of(study.plan.read_plan(plan)) if r.model == "R3F")
    assert study.kept.read_run(runs, r3f)["problem"] is None
    others = [line for line in file.read_text().splitlines() if "R3F" not in line]
    file.write_text("".join(f"{line}\n" for line in others))  # as the other tests expect it


def test_the_report_says_what_the_lines_say_and_the_same_twice(study, plan, runs, tmp_path):
    readme, output = tmp_path / "marked.md", tmp_path / "study"
    readme.write_text(README)
    words = [str(plan), "--runs", str(runs), "--output", str(output), "--readme", str(readme)]
    study.report.main(words)
    made = {path.name: path.read_bytes() for path in tmp_path.rglob("*.*")}
    drawn = ("main-sst2-validation", "main-sst2-layers", "search-sst2-choice", "derived-sst2-choice")
    pictures = {f"{name}.png" for name in drawn}
    assert set(made) == {"marked.md", "README.md", "tables.md"} | pictures
    study.report.main(words)
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("*.*")} == made

    text = (output / "tables.md").read_text()
    note, head, _, line = text.split("## half\n\n")[1].replace("\n\n", "\n").splitlines()[:4]
    assert note == "Task sst2, choice rows. Measured under bfloat16 autocast, but for costs."
    assert text.count("bfloat16") == 1
    assert "inference cost" in head  # that of the same weights without autocast
    assert line.startswith("| IM-BERT")
    assert [line for line in text.splitlines() if line.startswith("#")][1:] == [f"## {part}" for part in PARTS]
    table = text.split("## main")[1].split("\n\n")[2].splitlines()
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
    apart_table = text.split("## main")[1].split("Points over BERT")[1].split("![")[0]
    (line,) = [line for line in apart_table.splitlines() if "| IM-BERT" in line]
    assert line.split("|")[2].strip().startswith(f"{apart:+.1f} [")

    shown = readme.read_text()
    assert shown.startswith("Before.\n\n<!-- study: main -->\nTask sst2, validation rows.\n\n|")
    assert shown.endswith("<!-- /study -->\n\nAfter.\n")
    assert "old" not in shown
    assert ".png" not in shown
    page = (output / "README.md").read_text()
    assert [line for line in page.splitlines() if line.startswith("## ")][1:4] == ["## search", "## main", "## derived"]
    assert "8 of the 9 planned runs were made." in page
