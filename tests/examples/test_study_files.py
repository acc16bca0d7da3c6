"""What examples/study takes from elsewhere: data of the Hub, AdvGLUE's test set, another BERT, more processes."""

import json
from dataclasses import replace
from itertools import product

import pytest
import torch


pytest.importorskip("accelerate")
datasets = pytest.importorskip("datasets")
pytest.importorskip("sklearn")

import studies  # noqa: E402
from classifiers import bert, save  # noqa: E402
from finetune_arguments import im_values, parse  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from studies import EXAMPLES, rows  # noqa: E402
from tiny import refused  # noqa: E402

from imbert_hf import IMBertConfig  # noqa: E402
from imbert_hf.evaluation.data.tasks import find_task, read_rows  # noqa: E402


study, data, plan = studies.study, studies.data, studies.plan  # fixtures


@pytest.fixture
def hub(monkeypatch):
    """What is asked of the Hub, which has two rows of each split."""
    asked = []

    def load_dataset(*where, split):
        if where[1] == "adv_rte":
            raise datasets.exceptions.DatasetNotFoundError("no such dataset\nand more")
        asked.append((*where, split))
        of_task = find_task(where[1].removeprefix("adv_").replace("_mismatched", "-mm"))
        one = dict.fromkeys(of_task.fields, f"{split} é\u2028")
        return datasets.Dataset.from_list([{**one, "label": i, "idx": i} for i in range(2)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_the_hubs_data_are_written_once_as_local_files(study, hub, tmp_path):
    files = study.files.Files(tmp_path, tmp_path)
    study.files.fetch(["sst2", "mnli"], tmp_path)
    glue, advglue = "nyu-mll/glue", "AI-Secure/adv_glue"
    expected = [(glue, "sst2", "train"), (glue, "sst2", "validation"), (advglue, "adv_sst2", "validation")]
    expected += [(glue, "mnli", "train"), (glue, "mnli", "validation_matched"), (advglue, "adv_mnli", "validation")]
    assert hub == [*expected, (advglue, "adv_mnli_mismatched", "validation")]
    for name in ("sst2", "mnli", "mnli-mm"):
        found = read_rows(files.advglue_dev(name), find_task(name))
        assert [(row.texts[0], row.label, row.original) for row in found] == [
            ("validation é\u2028", i, None) for i in (0, 1)
        ]
    assert [row.label for row in read_rows(files.validation("mnli"), find_task("mnli"))] == [0, 1]
    study.files.fetch(["mnli", "sst2"], tmp_path)
    assert len(hub) == 7
    with pytest.raises(
        ValueError, match=r"^AI-Secure/adv_glue adv_rte of the Hub cannot be loaded, pass --data: no such"
    ):
        study.files.fetch(["rte"], tmp_path)
    study.files.fetch(["sst2"], tmp_path)  # what came before it is there
    assert not list(tmp_path.rglob(".*"))


def test_advglues_dev_set_has_originals_where_they_are_known(study, tmp_path):
    files = study.files.Files(tmp_path, tmp_path)
    (tmp_path / "adv_glue").mkdir()
    for name in ("sst2.jsonl", "dev.json", "dev_ann.json"):
        (tmp_path / "adv_glue" / name).touch()
        assert files.advglue_dev("sst2").name == name


def test_advglues_test_set_is_a_stage_of_its_own(study, plan, data, tmp_path):
    test_file = tmp_path / "test_ann.json"
    attacked = [{"idx": i, **row, "original_sentence": row["sentence"]} for i, row in enumerate(rows(6, "test"))]
    test_file.write_text(json.dumps({"sst2": attacked}))
    files = study.files.Files(data, tmp_path, save(tmp_path / "bert", bert()), test_file)
    run = next(study.plan.runs_of(study.plan.read_plan(plan), ["main"]))
    study.stages.make_run(replace(run, stages=("train", "test", "advglue_test")), files)
    (cell,) = import_scores().cells_of([run], tmp_path)
    kept = cell.kept[0]["stages"]["advglue_test"]["advglue"]["sst2"]
    assert len(kept["attacked"]) == 6
    assert kept["attacked"] == kept["original"]
    assert cell.rows("test", "AdvGLUE test")[0].tolist() == [float(c) for c in kept["attacked"]]
    assert len(cell.rows("test", "AdvGLUE")[0]) == 12
    assert cell.rows("choice", "AdvGLUE test") == {}


def import_scores():
    from study import scores

    return scores


def test_a_stage_whose_data_are_not_given_is_left_out(study, data, tmp_path):
    part = {"tasks": ["sst2"], "seeds": [0], "models": ["a"], "stages": ["test", "advglue_test"]}
    path, test_file = tmp_path / "plan.yaml", tmp_path / "test_ann.json"
    path.write_text(json.dumps({"models": {"a": {}}, "parts": {"p": part}}))
    test_file.touch()
    words = [str(path), "--data", str(data), "--runs", str(tmp_path / "runs")]
    for more, stages in (([], ()), (["--advglue-test", str(test_file)], ("advglue_test",))):
        (run,) = study.run.asked_for(study.run.make_parser().parse_args([*words, *more]))
        assert run.stages == ("train", "test", *stages)
    said = refused(study.run.main, [*words, "--advglue-test", str(tmp_path / "no.json")])
    assert said.endswith(f"--advglue-test {tmp_path / 'no.json'} must be a file, AdvGLUE's test_ann.json.")


def test_processes_train_together_on_the_batches_of_one(study, plan, data, tmp_path):
    """By accelerate: as many steps, and about the same weights, without dropout."""
    run = next(r for r in study.plan.runs_of(study.plan.read_plan(plan), ["main"]) if r.model == "IM-BERT")
    config = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = save(tmp_path / "bert", bert(**config))
    found = {}
    for processes in (1, 2):
        files = study.files.Files(data, tmp_path / str(processes), model, processes=processes)
        files.runs.mkdir()
        study.stages.make_run(replace(run, stages=("train",)), files)
        found[processes] = study.kept.read_run(files.runs, run)
    assert [kept["made"]["train"]["processes"] for kept in found.values()] == [1, 2]
    assert [kept["stages"]["train"]["steps"] for kept in found.values()] == [2, 2]
    one, two = (load_file(tmp_path / f"{n}/weights/{run.key}/model.safetensors") for n in found)
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=2e-6, msg=name)
    said = refused(study.run.main, [str(plan), "--data", str(data), "--runs", str(tmp_path / "no"), "--processes", "3"])
    assert said.endswith("--processes must be >= 1 and divide a batch of 8 rows, got 3.")


def test_another_base_is_another_run(study, plan):
    of_plan, of_base = (list(study.plan.runs_of(study.plan.read_plan(plan, base))) for base in (None, "other/bert"))
    assert {run.arguments["model_name_or_path"] for run in of_base if not run.teacher} == {"other/bert"}
    assert not {run.key for run in of_plan} & {run.key for run in of_base}


def test_the_papers_plan_says_all_that_a_run_depends_on(study):
    """Every run of it is one that finetune.py takes, with every field of the connection that it uses."""
    made = list(study.plan.runs_of(study.plan.read_plan(EXAMPLES / "study/paper.yaml")))
    assert {run.task for run in made} == {"sst2", "qqp", "mnli", "qnli", "rte"}
    for run in {run.model: run for run in made}.values():
        words = study.plan.words_of({**run.arguments, "task": run.task, "output_dir": "none", "use_cpu": True})
        own, _, _ = parse(words)
        config = IMBertConfig(num_hidden_layers=12, **im_values(own))
        if own.connection == "im-bert":
            said, default = {name for name in run.arguments if name.startswith("im_")}, IMBertConfig()
            assert said >= {"im_theta", "im_layers", "im_vector_field", "im_step_size", "im_solver", "im_iterations"}
            assert {config.im_vector_field, default.im_vector_field} <= {"increment", "layer"}
    paper = IMBertConfig.paper()
    settings = next(run.arguments for run in made if run.model == "IM-BERT, paper")
    for name, value in settings.items():
        if name.startswith("im_"):
            assert getattr(paper, name) == value, name
    low, full = (
        {run.arguments.get("max_train_samples") for run in made if run.part == p} for p in ("500 rows", "all rows")
    )
    assert (low, full) == ({500}, {None})
    assert all({"test", "advglue_test", "query"} <= {*run.stages} for run in made if run.part != "cost")


def test_an_estimate_counts_what_is_missing(study, plan, data, monkeypatch, tmp_path):
    """By the tokens of the rows, at the pace of each model."""
    estimate, files = study.estimate, study.files.Files(data, tmp_path)
    runs = list(study.plan.runs_of(study.plan.read_plan(plan), ["search", "derived"]))
    monkeypatch.setattr(estimate, "pace", lambda arguments, files: (3.0, 1.0))
    length = 2 + 6 * 4 / 3  # of rows of six words
    choice = length * estimate.EVALUATED["choice"]
    for run in runs:
        trained = {"distilled": 1 + 2}.get(run.model, 1)
        seconds = estimate.seconds_of(run, {"train", "choice"}, files, set())
        assert seconds == pytest.approx(choice + 3.0 * length * 16 * trained)
    lines = estimate.estimate(runs, files, 2).splitlines()
    assert lines[2].split()[-2:] == ["2", f"{2 * (choice + 48 * length) / 3600:.2f}"]
    # Of the derived, two have weights that are priced already, and the third has a teacher that is.
    total = (7 * choice + (4 + 2) * 48 * length) / 3600
    assert lines[-1].startswith(f"about {total:.2f} hours with --workers 2")
    for run, stage in product(runs, ("train", "choice")):
        kept = study.kept.read_run(tmp_path, run)
        study.kept.write_run(tmp_path, run, kept | {"stages": kept["stages"] | {stage: {}}})
    assert estimate.estimate(runs, files, 2) == ""


def test_an_estimate_says_which_data_are_too_few(study, plan, monkeypatch, tmp_path):
    """As the runs will say it: not a time below 0."""
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "train.jsonl").write_text('{"sentence": "a b", "label": 0}\n' * 48)
    monkeypatch.setattr(study.estimate, "pace", lambda arguments, files: (3.0, 1.0))
    runs = [run for run in study.plan.runs_of(study.plan.read_plan(plan), ["main"]) if run.model == "IM-BERT"]
    said = study.estimate.estimate(runs, study.files.Files(tmp_path, tmp_path / "runs"), 1)
    assert "not known: " in said
    assert "sst2/train.jsonl must hold more than 500 rows, got 48." in said
