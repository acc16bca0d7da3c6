"""examples/finetune.py on a tiny random BERT and a few made-up rows: the trainings, and what they write."""

import json
import shutil
from pathlib import Path

import pytest
import torch


pytest.importorskip("accelerate")
pytest.importorskip("datasets")
sklearn_metrics = pytest.importorskip("sklearn.metrics")

from finetuning import FIELDS, LABELS, glue, im_fields, refusal, results_of  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    EvalPrediction,
)

from imbert_hf import IMBertConfig, IMBertForSequenceClassification  # noqa: E402
from imbert_hf.evaluation.data.loading import fingerprint  # noqa: E402
from imbert_hf.evaluation.data.tasks import TASKS as GLUE  # noqa: E402


@pytest.mark.parametrize("connection", ["bert", "ex-bert", "im-bert"])
def test_connection(connection, arguments, data, tmp_path):
    more = ["--im_layers", "all", "--im_iterations", "2"] if connection == "im-bert" else []
    glue.main(arguments("--connection", connection, "--seed", "3", *more))
    out = tmp_path / "out"
    results = results_of(out)

    assert results["task"] == "sst2"
    assert results["connection"] == connection
    assert set(results["metrics"]) == {"validation"}
    assert 0 <= results["metrics"]["validation"]["accuracy"] <= 1
    assert "f1" not in results["metrics"]["validation"]
    assert results["rows"] == {"train": 24, "validation": 10}
    assert results["steps"] == results["steps_timed"] == 3
    assert 0 < results["seconds_per_training_step"] * 3 < results["train_runtime"]
    assert results["seconds_per_eval_row"]["validation"] > 0
    assert results["seed"] == 3
    assert results["fingerprint"] == fingerprint(str(out))
    assert results["labels"] == ["negative", "positive"]
    assert set(results["data"]) == {"train", "validation"}
    assert set(results["versions"]) >= {"python", "torch", "transformers", "datasets", "accelerate", "imbert_hf"}
    assert results["git"] is None or set(results["git"]) == {"commit", "dirty"}
    assert results["arguments"]["data"]["data_dir"] == str(data)
    assert results["arguments"]["model"]["connection"] == connection
    assert results["arguments"]["training"]["learning_rate"] == 1e-3
    assert not (out / "results.json.part").exists()

    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert type(model) is (BertForSequenceClassification if connection == "bert" else IMBertForSequenceClassification)
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert AutoTokenizer.from_pretrained(out)("a good film")["input_ids"][0] == 2
    if connection == "bert":
        assert results["im_fields"] is None
    else:
        expected = {name: getattr(IMBertConfig(), name) for name in im_fields()}
        if connection == "ex-bert":
            expected |= {"im_theta": 0.0, "im_vector_field": "layer", "im_layers": "all"}
        else:
            expected |= {"im_layers": "all", "im_iterations": 2}
        assert results["im_fields"] == expected
        assert {name: getattr(model.config, name) for name in expected} == expected


@pytest.mark.parametrize("task", LABELS)
def test_tasks(task, arguments, data, tmp_path):
    glue.main(arguments("--connection", "bert", "--max_steps", "1", task=task))
    out = tmp_path / "out"
    results = results_of(out)
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert model.config.id2label == dict(enumerate(LABELS[task]))
    assert model.config.label2id == {name: i for i, name in enumerate(LABELS[task])}

    splits = ["validation_matched", "validation_mismatched"] if task == "mnli" else ["validation"]
    assert list(results["metrics"]) == splits
    tokenizer = AutoTokenizer.from_pretrained(out)
    for split in splits:
        lines = (data / task / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        texts = [[row[name] for row in rows] for name in FIELDS[task]]
        with torch.no_grad():
            predicted = model(**tokenizer(*texts, padding=True, return_tensors="pt")).logits.argmax(-1)
        labels = [row["label"] for row in rows]
        assert results["metrics"][split]["accuracy"] == pytest.approx(
            (predicted == torch.tensor(labels)).float().mean()
        )
        if task == "qqp":
            f1 = sklearn_metrics.f1_score(labels, predicted, zero_division=0.0)
            assert results["metrics"][split]["f1"] == pytest.approx(f1)
        else:
            assert "f1" not in results["metrics"][split]


def test_theta_rises_to_im_theta(arguments, tmp_path):
    glue.main(arguments("--theta_warmup", "0.5", "--im_theta", "0.8", "--num_train_epochs", "2"))
    results = results_of(tmp_path / "out")
    assert results["im_fields"]["im_theta"] == 0.8
    assert results["arguments"]["model"]["theta_warmup"] == 0.5
    config = json.loads((Path(results["best_checkpoint"]) / "config.json").read_text(encoding="utf-8"))
    assert config["im_theta"] == 0.8


def test_f1_by_hand():
    # Predicted 1 1 0 0 1 for 1 0 0 1 1: two true positives, one false positive, one false negative.
    logits = torch.tensor([[0, 1], [0, 1], [1, 0], [1, 0], [0, 1]]).numpy()
    prediction = EvalPrediction(logits, torch.tensor([1, 0, 0, 1, 1]).numpy())
    assert glue.compute_metrics(prediction, GLUE["qqp"]) == {
        "accuracy": pytest.approx(3 / 5),
        "f1": pytest.approx(2 / 3),
    }
    assert glue.compute_metrics(prediction, GLUE["rte"]) == {"accuracy": pytest.approx(3 / 5)}


def test_subset_is_of_the_seed_alone(arguments, monkeypatch, tmp_path):
    rows = []

    class Recorder(glue.Trainer):
        def __init__(self, *args, train_dataset, eval_dataset, **kwargs):
            rows.append((train_dataset["text0"][:], eval_dataset["text0"][:]))
            super().__init__(*args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)

    monkeypatch.setattr(glue, "Trainer", Recorder)
    for i, more in enumerate([["bert"], ["im-bert"], ["bert", "--data_seed", "1"], ["ex-bert", "--seed", "1"]]):
        limits = ["--max_train_samples", "6", "--max_eval_samples", "4", "--max_steps", "1"]
        glue.main(arguments(*limits, "--output_dir", str(tmp_path / str(i)), "--connection", *more))
    assert [len(part) for part in rows[0]] == [6, 4]
    assert rows[0] == rows[1]
    assert rows[2] == rows[3] != rows[0]
    assert results_of(tmp_path / "0")["rows"] == {"train": 6, "validation": 4}


def test_no_implicit_layer_is_bert(arguments, tmp_path):
    """To the bit: the same rows in the same order, the same classifier to start from, the same dropout."""
    glue.main(arguments("--connection", "bert"))
    glue.main(arguments("--connection", "im-bert", "--im_layers", "", "--output_dir", str(tmp_path / "im")))
    first, second = load_file(tmp_path / "out" / "model.safetensors"), load_file(tmp_path / "im" / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_resumed_equals_uninterrupted(arguments, tmp_path):
    more = ["--num_train_epochs", "2", "--save_total_limit", "2", "--load_best_model_at_end", "False"]
    whole, interrupted = tmp_path / "out", tmp_path / "interrupted"
    glue.main(arguments(*more))
    shutil.copytree(whole / "checkpoint-3", interrupted / "checkpoint-3")
    resumed = ["--output_dir", str(interrupted), "--resume_from_checkpoint", "last"]
    glue.main(arguments(*more, *resumed))

    first, second = load_file(whole / "model.safetensors"), load_file(interrupted / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    start = load_file(whole / "checkpoint-3" / "model.safetensors")
    assert not all(torch.equal(first[name], start[name]) for name in first)

    first, second = results_of(whole), results_of(interrupted)
    assert second["steps"] == first["steps"] == 6
    assert second["steps_timed"] == 3
    assert second["metrics"]["validation"]["loss"] == first["metrics"]["validation"]["loss"]
    evaluations = [[entry["eval_loss"] for entry in r["history"] if "eval_loss" in entry] for r in (first, second)]
    assert evaluations[0] == evaluations[1]
    assert len(evaluations[0]) == 3  # two epochs and the final one
    assert second["resumed_from"] == str(interrupted / "checkpoint-3")

    said = refusal(arguments(*more, *resumed, "--defence", "r3f"))
    assert "checkpoint-6 was trained with defence None, not 'r3f'" in said
    said = refusal(arguments(*more, *resumed, "--im_theta", "0.5", "--im_layers", "all"))  # theta may be on its way
    assert f"{interrupted / 'checkpoint-6'} was trained with im_layers [-1], not 'all': pass --im_layers." in said


def test_best_checkpoint_is_kept(arguments, monkeypatch, tmp_path):
    accuracies = iter([0.9, 0.1, 0.2, 0.9])
    monkeypatch.setattr(glue, "compute_metrics", lambda prediction, task: {"accuracy": next(accuracies)})
    glue.main(arguments("--num_train_epochs", "3"))
    out = tmp_path / "out"
    assert results_of(out)["best_checkpoint"] == str(out / "checkpoint-3")
    best, final = load_file(out / "checkpoint-3" / "model.safetensors"), load_file(out / "model.safetensors")
    assert all(torch.equal(best[name], final[name]) for name in best)
    assert not (out / "checkpoint-6").exists()


def test_checkpoint_keeps_its_im_fields_and_takes_a_new_classifier(arguments, bert, data, tmp_path):
    checkpoint = tmp_path / "imbert"
    shutil.copytree(bert, checkpoint)
    settings = {"im_theta": 0.25, "im_layers": [1], "im_solver": "anderson"}
    IMBertForSequenceClassification.from_pretrained(bert, num_labels=3, **settings).half().save_pretrained(checkpoint)
    glue.main(arguments("--model_name_or_path", str(checkpoint), "--max_steps", "1", "--im_theta", "0.75"))
    found = results_of(tmp_path / "out")["im_fields"]
    assert (found["im_theta"], found["im_layers"], found["im_solver"]) == (0.75, [1], "anderson")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert weights["classifier.weight"].shape == (2, 32)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
