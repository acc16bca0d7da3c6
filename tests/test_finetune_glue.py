"""examples/finetune_glue.py on a tiny random BERT and a few made-up rows: what it writes, and what it refuses."""

import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch


pytest.importorskip("accelerate")
datasets = pytest.importorskip("datasets")
sklearn_metrics = pytest.importorskip("sklearn.metrics")

from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForPreTraining,
    BertForSequenceClassification,
    BertTokenizer,
    EvalPrediction,
)

from imbert_hf import IMBertConfig, IMBertForSequenceClassification  # noqa: E402
from imbert_hf.configuration_imbert import IM_FIELDS  # noqa: E402


SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "finetune_glue.py"
specification = importlib.util.spec_from_file_location("finetune_glue", SCRIPT)
glue = importlib.util.module_from_spec(specification)
sys.modules["finetune_glue"] = glue  # where HfArgumentParser looks up the annotations of the script's dataclasses
specification.loader.exec_module(glue)

WORDS = ["a", "the", "film", "book", "is", "was", "good", "bad", "dull", "fine", "not", "very", "never", "it"]
FIELDS = {
    "sst2": ["sentence"],
    "rte": ["sentence1", "sentence2"],
    "qnli": ["question", "sentence"],
    "qqp": ["question1", "question2"],
    "mnli": ["premise", "hypothesis"],
}
LABELS = {
    "sst2": ["negative", "positive"],
    "rte": ["entailment", "not_entailment"],
    "qnli": ["entailment", "not_entailment"],
    "qqp": ["not_duplicate", "duplicate"],
    "mnli": ["entailment", "neutral", "contradiction"],
}


def write_rows(path, task, count):
    draw = random.Random(f"{path.name} {task}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            row = {name: " ".join(draw.choices(WORDS, k=draw.randint(2, 8))) for name in FIELDS[task]}
            file.write(json.dumps({**row, "label": i % len(LABELS[task]), "idx": i}) + "\n")


@pytest.fixture(autouse=True)
def one_thread():
    """Threads cost more than they save at this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for task in FIELDS:
        write_rows(folder / task / "train.jsonl", task, 24)
        for split in ["validation_matched", "validation_mismatched"] if task == "mnli" else ["validation"]:
            write_rows(folder / task / f"{split}.jsonl", task, 10)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        num_hidden_layers=2,
        hidden_size=32,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    BertForPreTraining(config).save_pretrained(folder)
    # The names of google-bert/bert-base-uncased; transformers 5 reads them, and would write them into every checkpoint.
    old_names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    weights = load_file(folder / "model.safetensors")
    for name in list(weights):
        for new, old in old_names.items():
            if new in name:
                weights[name.replace(new, old)] = weights.pop(name)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)}).save_pretrained(folder)
    return folder


@pytest.fixture
def arguments(bert, data, tmp_path):
    """A function from what a test adds to a full command line; the last of two values of an argument holds."""

    def words(*more, task="sst2"):
        return [
            *("--model_name_or_path", str(bert), "--data_dir", str(data), "--task", task),
            *("--output_dir", str(tmp_path / "out"), "--num_train_epochs", "1", "--learning_rate", "1e-3"),
            *("--per_device_train_batch_size", "8", "--use_cpu", "--disable_tqdm", "True"),
            *("--dataloader_pin_memory", "False", *more),
        ]

    return words


def results_of(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def refusal(argv):
    """The sentence with which the script ends; sys.exit writes a str to stderr and exits with 1."""
    with pytest.raises(SystemExit) as exit:
        glue.main(argv)
    assert isinstance(exit.value.code, str)
    assert "\n" not in exit.value.code
    return exit.value.code


@pytest.mark.parametrize("connection", ["bert", "ex-bert", "im-bert"])
def test_connection(connection, arguments, data, tmp_path):
    more = ["--im_layers", "-1", "--im_iterations", "2"] if connection == "im-bert" else []
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
            expected |= {"im_layers": [-1], "im_iterations": 2}
        assert results["im_fields"] == expected
        assert {name: getattr(model.config, name) for name in expected} == expected


def im_fields():
    return [*IM_FIELDS]


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


def test_r3f_adds_the_divergence_under_noise(arguments, monkeypatch, tmp_path):
    """Without dropout its noise of 1e-5 adds next to nothing to the loss; the loss logged is that of both terms."""
    found, r3f = [], glue.r3f_losses
    monkeypatch.setattr(glue, "r3f_losses", lambda m, b: (found.append(loss) or loss for loss in r3f(m, b)))
    glue.main(arguments("--connection", "bert", "--r3f", "--max_steps", "2", "--logging_steps", "1"))
    logged = [entry["loss"] for entry in results_of(tmp_path / "out")["history"] if "loss" in entry]
    assert [loss.item() for loss in found] == pytest.approx(logged, rel=1e-3)


def test_f1_by_hand():
    # Predicted 1 1 0 0 1 for 1 0 0 1 1: two true positives, one false positive, one false negative.
    logits = torch.tensor([[0, 1], [0, 1], [1, 0], [1, 0], [0, 1]]).numpy()
    prediction = EvalPrediction(logits, torch.tensor([1, 0, 0, 1, 1]).numpy())
    assert glue.compute_metrics(prediction, "qqp") == {"accuracy": pytest.approx(3 / 5), "f1": pytest.approx(2 / 3)}
    assert glue.compute_metrics(prediction, "rte") == {"accuracy": pytest.approx(3 / 5)}


def test_subset_is_of_the_seed_alone(arguments, monkeypatch, tmp_path):
    rows = []

    class Recorder(glue.Trainer):
        def __init__(self, *args, train_dataset, eval_dataset, **kwargs):
            rows.append((train_dataset["sentence"][:], eval_dataset["sentence"][:]))
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


def test_best_checkpoint_is_kept(arguments, monkeypatch, tmp_path):
    accuracies = iter([0.9, 0.1, 0.2, 0.9])
    monkeypatch.setattr(glue, "compute_metrics", lambda prediction, task: {"accuracy": next(accuracies)})
    glue.main(arguments("--num_train_epochs", "3"))
    out = tmp_path / "out"
    assert results_of(out)["best_checkpoint"] == str(out / "checkpoint-3")
    best, final = load_file(out / "checkpoint-3" / "model.safetensors"), load_file(out / "model.safetensors")
    assert all(torch.equal(best[name], final[name]) for name in best)
    assert not (out / "checkpoint-6").exists()


def test_users_strategies_are_not_overridden(arguments):
    def parsed(*more):
        args = glue.parse(arguments(*more))[2]
        return args.eval_strategy, args.save_strategy, args.save_total_limit, args.load_best_model_at_end

    assert parsed() == ("epoch", "epoch", 1, True)
    assert parsed("--save_total_limit", "4") == ("epoch", "epoch", 4, True)
    assert parsed("--load_best_model_at_end", "False") == ("epoch", "epoch", 1, False)
    assert parsed("--eval_strategy", "no") == ("no", "steps", None, False)
    assert parsed("--eval-strategy=steps") == ("steps", "steps", None, False)
    assert parsed("--save_strategy", "no") == ("no", "no", None, False)
    best = ["--eval_strategy", "steps", "--save_strategy", "steps", "--load_best_model_at_end"]
    assert parsed(*best) == ("steps", "steps", None, True)
    args = glue.parse(arguments(*best))[2]
    assert (args.metric_for_best_model, args.greater_is_better) == ("accuracy", True)
    assert glue.parse(arguments(*best, "--metric_for_best_model", "loss"))[2].greater_is_better is False


IM_WORDS = {
    "im_theta": (["0.5"], 0.5),
    "im_layers": (["0"], [0]),
    "im_vector_field": (["layer"], "layer"),
    "im_step_size": (["2"], 2.0),
    "im_solver": (["anderson"], "anderson"),
    "im_iterations": (["5"], 5),
    "im_eval_iterations": (["7"], 7),
    "im_tolerance": (["1e-3"], 1e-3),
    "im_initial_guess": (["previous"], "previous"),
    "im_learning_rate": (["0.3"], 0.3),
    "im_damping": (["0.9"], 0.9),
    "im_anderson_memory": (["2"], 2),
    "im_gradient": (["one_step"], "one_step"),
    "im_gradient_iterations": (["4"], 4),
}


def test_every_im_field_is_an_argument(arguments, tmp_path):
    assert set(IM_WORDS) == set(im_fields()) == {*glue.IM_FIELDS}
    words = [word for name, (value, _) in IM_WORDS.items() for word in (f"--{name}", *value)]
    glue.main(arguments("--max_steps", "1", *words))
    expected = {name: value for name, (_, value) in IM_WORDS.items()}
    assert results_of(tmp_path / "out")["im_fields"] == expected
    config = IMBertConfig.from_pretrained(tmp_path / "out")
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["all"], "all"),
        (["3,4,5"], [3, 4, 5]),
        (["3", "4", "5"], [3, 4, 5]),
        (["3, 4 5"], [3, 4, 5]),
        (["-1"], [-1]),
        (["-2", "-1"], [-2, -1]),
        ([""], []),
    ],
)
def test_layers(words, expected, arguments):
    assert glue.im_values(glue.parse(arguments("--im_layers", *words))[0]) == {"im_layers": expected}


def test_layers_after_an_equals_sign(arguments):
    assert glue.im_values(glue.parse(arguments("--im_layers=-2,-1"))[0]) == {"im_layers": [-2, -1]}


def test_paper_preset(arguments):
    values = glue.im_values(glue.parse(arguments("--preset", "paper", "--im_iterations", "9"))[0])
    paper = IMBertConfig.paper(im_iterations=9)
    assert values == {name: getattr(paper, name) for name in im_fields()}


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


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--im_thet", "1"], "--im_thet is no argument; there are --im_theta, --im_layers,"),
        (["--im-stepsize=1"], "--im-stepsize is no argument; there are --im_theta, --im_layers,"),
        (["--learning_rat", "1"], "--learning_rat is no argument; there are --im_theta"),
        (["--im_theta", "much"], "--im_theta/--im-theta: invalid float value: 'much'"),
        (["--im_theta", "2"], "im_theta must be a number from 0 to 1, got 2.0."),
        (
            ["--im_solver", "newton"],
            "im_solver must be one of 'gradient_descent', 'fixed_point', 'anderson', got 'newton'.",
        ),
        (["--im_layers", "1,x"], "--im_layers must be all, or layer indices such as 3,4,5, got '1 x'."),
        (["--im_layers", "2"], "im_layers must hold indices from -2 to 1 for 2 layers, got 2."),
        (["--task", "cola"], "argument --task: invalid choice: 'cola' (choose from "),
        (["--connection", "am-bert"], "argument --connection: invalid choice: 'am-bert' (choose from "),
        (["--connection", "bert", "--im_theta", "1"], "--im_theta has no effect with --connection bert; "),
        (["--theta_warmup", "2"], "fraction must be a number > 0 and <= 1, got 2.0."),
        (
            ["--connection", "bert", "--theta_warmup", "0.5"],
            "--theta_warmup 0.5 needs --connection im-bert, got 'bert'.",
        ),
        (["--hub_token", "hf_secret"], "--hub_token would be pickled into training_args.bin and pushed; set HF_TOKEN"),
        (["--connection", "ex-bert", "--im_theta", "1"], "--im_theta must be 0.0 with --connection ex-bert, got 1.0."),
        (
            ["--connection", "ex-bert", "--im_vector_field", "increment"],
            "--im_vector_field must be 'layer' with --connection ex-bert, got 'increment'.",
        ),
        (["--connection", "bert", "--preset", "paper"], "--preset paper needs --connection im-bert, got 'bert'."),
        (["--max_train_samples", "0"], "--max_train_samples must be an integer >= 1, got 0."),
        (["--max_eval_samples", "-1"], "--max_eval_samples must be an integer >= 1, got -1."),
        (["--max_seq_length", "129"], "--max_seq_length must be from 8 to 128 for "),
        (["--eval_strategy", "sometimes"], "argument --eval_strategy/--eval-strategy: invalid choice: 'sometimes'"),
        (["--resume_from_checkpoint", "last"], "--resume_from_checkpoint: there is no checkpoint in "),
        (
            ["--resume_from_checkpoint", "nowhere"],
            '--resume_from_checkpoint must be "last" or a checkpoint folder, got',
        ),
        (["--model_name_or_path", "./nowhere"], "--model_name_or_path ./nowhere cannot be loaded: "),
        (["settings.txt"], "settings.txt is no argument; "),
    ],
)
def test_bad_argument(more, sentence, arguments, tmp_path):
    assert sentence in refusal(arguments(*more))
    assert not (tmp_path / "out").exists()


GOOD = '{"sentence": "a", "label": 0}'


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (None, "cannot be read: No such file or directory"),
        ([], "is empty; it must hold rows of sst2."),
        (["", ""], "is empty; it must hold rows of sst2."),
        ([GOOD, '{"sentence": '], ", line 2 is not JSON: "),
        ([b'{"sentence": "\xff", "label": 0}'], "cannot be read: 'utf-8' codec can't decode byte 0xff"),
        ([GOOD, '["a", 0]'], ", line 2 must be a JSON object, got list."),
        ([GOOD, '{"text": "a", "label": 0}'], ", line 2: 'sentence' must be a text, got None."),
        (['{"sentence": 3, "label": 0}', GOOD], ", line 1: 'sentence' must be a text, got 3."),
        ([GOOD, '{"sentence": "a"}'], ", line 2: 'label' must be one of 0 (negative), 1 (positive), got None."),
    ],
)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_bad_data(split, lines, sentence, arguments, monkeypatch, tmp_path):
    for name in ("train", "validation"):
        write_rows(tmp_path / "sst2" / f"{name}.jsonl", "sst2", 8)
    path = tmp_path / "sst2" / f"{split}.jsonl"
    path.unlink()
    if lines is not None:
        path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
    monkeypatch.setattr(glue, "load_model", lambda *_: pytest.fail("a model was loaded before the data was checked"))
    found = refusal(arguments("--data_dir", str(tmp_path)))
    assert str(path) in found
    assert sentence in found
    assert not (tmp_path / "out").exists()


def test_edited_file_is_read_anew(tmp_path):
    write_rows(tmp_path / "sst2" / "validation.jsonl", "sst2", 1)
    args = glue.DataArguments(task="sst2", data_dir=str(tmp_path))
    for text in ("before", "after"):
        (tmp_path / "sst2" / "train.jsonl").write_text(json.dumps({"sentence": text, "label": 1}) + "\n\n")
        assert glue.load_data(args, seed=0)["train"].to_list() == [{"sentence": text, "label": 1}]


def test_hub_is_the_default(arguments, monkeypatch, tmp_path):
    calls = []

    def load_dataset(*args, split):
        calls.append((*args, split))
        rows = [{"premise": f"a {i}", "hypothesis": "b", "label": i % 3, "idx": i} for i in range(5)]
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = glue.load_data(glue.DataArguments(task="mnli", max_eval_samples=2), 0)
    splits = ["train", "validation_matched", "validation_mismatched"]
    assert calls == [("nyu-mll/glue", "mnli", split) for split in splits]
    assert [len(data[split]) for split in splits] == [5, 2, 2]

    def offline(*args, split):
        raise ConnectionError("no way to\nthe Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    words = arguments()
    at = words.index("--data_dir")
    del words[at : at + 2]
    sentence = "nyu-mll/glue cannot be loaded, pass --data_dir for local files: no way to the Hub"
    assert sentence in refusal(words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("connection", "found", "loads"),
    [
        ("im-bert", "distilbert", "IMBertConfig loads 'bert' and 'imbert'."),
        ("bert", "distilbert", "--connection bert loads 'bert'."),
        ("bert", "imbert", "--connection bert loads 'bert'."),
    ],
)
def test_other_model_type(connection, found, loads, arguments, bert, tmp_path):
    checkpoint = tmp_path / "other"
    shutil.copytree(bert, checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "model_type": found}))
    sentence = refusal(arguments("--model_name_or_path", str(checkpoint), "--connection", connection))
    assert f"{checkpoint} holds a checkpoint of model_type {found!r}; {loads}" in sentence
    assert not (tmp_path / "out").exists()


def test_checkpoint_without_tokenizer_or_weights(arguments, bert, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(bert, checkpoint)
    (checkpoint / "model.safetensors").unlink()
    more = ["--model_name_or_path", str(checkpoint)]
    assert f"--model_name_or_path {checkpoint} cannot be loaded: " in refusal(arguments(*more))
    for path in checkpoint.glob("tokenizer*"):
        path.unlink()
    assert f"{checkpoint} holds no tokenizer; save the model's own there." in refusal(arguments(*more))
    assert not (tmp_path / "out").exists()


def test_output_folder_in_use(arguments, tmp_path):
    out = tmp_path / "out"
    (out / "checkpoint-99").mkdir(parents=True)
    for name in ("results.json", "notes.txt"):
        (out / name).write_text("{}")
    sentence = refusal(arguments())
    assert f"--output_dir {out} is not an empty folder; choose another, or pass --overwrite_output_dir or" in sentence
    assert {path.name for path in out.iterdir()} == {"checkpoint-99", "notes.txt", "results.json"}
    assert (out / "results.json").read_text() == "{}"

    refusal(arguments("--overwrite_output_dir", "--max_train_samples", "0"))
    assert (out / "checkpoint-99").exists()
    glue.main(arguments("--overwrite_output_dir", "--max_steps", "1"))
    assert results_of(out)["steps"] == 1
    assert (out / "notes.txt").exists()
    assert not (out / "checkpoint-99").exists()

    file = tmp_path / "file"
    file.write_text("")
    assert f"--output_dir {file} is not an empty folder" in refusal(arguments("--output_dir", str(file)))


def test_git_state(monkeypatch, tmp_path):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    package = tmp_path / "checkout" / "imbert_hf" / "__init__.py"
    package.parent.mkdir(parents=True)
    package.write_text("")
    monkeypatch.setattr(glue.imbert_hf, "__file__", str(package))
    assert glue.git_state() is None

    def git(*words):
        user = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(package.parents[1]), *user, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    assert glue.git_state() is None  # no commit yet
    git("add", ".")
    git("commit", "-m", "first")
    assert glue.git_state() == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    package.write_text("changed = True\n")
    assert glue.git_state()["dirty"] is True


def settings_of(words):
    """The dict that a list of `--name value` words stands for."""
    settings = {}
    for word in words:
        if word.startswith("--"):
            name = word.removeprefix("--")
            settings[name] = True
        else:
            settings[name] = word
    return settings


def test_settings_file(arguments, tmp_path):
    settings = settings_of(arguments())
    more = {"im_theta": 0.5, "im_layers": [-2, -1], "im_tolerance": None, "overwrite_output_dir": True, "seed": 7}
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({**settings, **more, "lr_scheduler_kwargs": {}, "max_eval_samples": "3"}))
    model_args, data_args, args = glue.parse([str(path)])
    assert glue.im_values(model_args) == {"im_theta": 0.5, "im_layers": [-2, -1]}
    assert (data_args.overwrite_output_dir, data_args.max_eval_samples) == (True, 3)
    assert (args.seed, args.learning_rate, args.eval_strategy) == (7, 1e-3, "epoch")
    path.write_text(json.dumps({**settings, "im_layers": []}))
    assert glue.im_values(glue.parse([str(path)])[0]) == {"im_layers": []}

    path.write_text(json.dumps({**settings, "im_thet": 1}))
    assert "--im_thet is no argument; there are --im_theta, " in refusal([str(path)])
    for text in ("{", "[1]"):
        path.write_text(text)
        assert f"{path} must hold a JSON object of arguments: " in refusal([str(path)])
    path.unlink()
    assert f"{path} must hold a JSON object of arguments: " in refusal([str(path)])


def test_as_a_script(arguments, tmp_path):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({**settings_of(arguments("--max_steps", "1")), "im_layers": "all"}))
    command = [sys.executable, str(SCRIPT), str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert results_of(tmp_path / "out")["im_fields"]["im_layers"] == "all"
    assert "results.json" in done.stdout
