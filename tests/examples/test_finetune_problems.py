"""examples/finetune.py on tables of several labels a row and of numbers: what it trains, measures and refuses."""

import json
import math

import finetune
import numpy
import pytest
import torch
from finetune_arguments import check_connection
from finetune_data import DataArguments, load_data
from finetune_problems import MULTI, REGRESSION, SINGLE
from finetuning import WORDS, refusal, results_of
from scipy import stats
from sklearn.metrics import f1_score
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    EvalPrediction,
    TrainingArguments,
)

from imbert_hf.evaluation.data.tasks import Task


TOPICS = ["10", "9", "audio", "price"]  # numbers first, by their value: 9, 10, audio, price


def texts(rows):
    return [f"{WORDS[i % 14]} {WORDS[(3 * i) % 14]} {WORDS[(5 * i + 2) % 14]}" for i in range(rows)]


def topics(i):
    return [name for j, name in enumerate(TOPICS) if (i >> j) & 1]


def write_json(path, labels, rows=30):
    lines = [json.dumps({"body": text, "label": labels(i)}) for i, text in enumerate(texts(rows))]
    path.write_text("\n".join(lines))
    return str(path)


def write_flags(path, rows=30):
    """Columns of flags, in every spelling; "price" is never on."""
    cells = [("0", "False", "0.0"), ("1", "TRUE", "1.0")]
    lines = [",".join([t, *(cells[n in topics(i)][i % 3] for n in TOPICS[:3]), "0"]) for i, t in enumerate(texts(rows))]
    path.write_text("\n".join(["body," + ",".join(TOPICS), *lines]))
    return str(path)


@pytest.fixture
def words(bert, tmp_path):
    few = "--num_train_epochs 2 --per_device_train_batch_size 8 --use_cpu True --report_to none --disable_tqdm True"
    model = ["--model_name_or_path", str(bert), "--output_dir", str(tmp_path / "out"), "--text_column_names", "body"]
    return lambda *more: [*model, *few.split(), "--learning_rate", "1e-3", *map(str, more)]


def logits_of(folder, texts):
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model, model(**AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")).logits


def test_lists_of_labels(words, tmp_path):
    files = [write_json(tmp_path / f"{name}.jsonl", topics) for name in ("train", "validation")]
    finetune.main(words("--train_file", files[0], "--validation_file", files[1]))
    results = results_of(tmp_path / "out")
    names = ["9", "10", "audio", "price"]
    assert (results["problem_type"], results["labels"]) == (MULTI, names)
    model, logits = logits_of(tmp_path / "out", texts(30))
    assert (model.config.problem_type, list(model.config.id2label.values())) == (MULTI, names)
    gold = numpy.array([[name in topics(i) for name in names] for i in range(30)])
    predicted = (torch.sigmoid(logits) > 0.5).numpy()
    found = results["metrics"]["validation"]
    assert found["accuracy"] == pytest.approx((gold == predicted).all(axis=1).mean())
    assert found["f1_micro"] == pytest.approx(2 * (gold & predicted).sum() / (gold.sum() + predicted.sum()))
    assert found["f1_macro"] == pytest.approx(f1_score(gold, predicted, average="macro", zero_division=0.0))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor(gold).float())
    assert found["loss"] == pytest.approx(expected.item(), rel=1e-4)
    evaluations = [entry["eval_f1_micro"] for entry in results["history"] if "eval_f1_micro" in entry]
    assert found["f1_micro"] == max(evaluations)


def test_columns_of_flags_are_the_same_lists(tmp_path):
    columns = DataArguments(
        train_file=write_flags(tmp_path / "f.csv"), text_column_names="body", label_column_name=", ".join(TOPICS)
    )
    lists = DataArguments(train_file=write_json(tmp_path / "l.json", lambda i: topics(i % 8)), text_column_names="body")
    (task, data), (other, same) = load_data(columns, 0), load_data(lists, 0)
    assert (task.problem_type, task.labels) == (MULTI, ("10", "9", "audio", "price"))
    assert other.labels == ("9", "10", "audio")
    for split, rows in {"train": 27, "validation": 3}.items():
        assert len(data[split]) == rows
        assert data[split]["text0"] == same[split]["text0"]  # the split is of the seed alone
        assert [[b, a, *rest] for a, b, *rest in data[split]["label"]] == [[*row, 0.0] for row in same[split]["label"]]


def test_numbers(words, tmp_path):
    files = [write_json(tmp_path / f"{name}.jsonl", lambda i: i / 8 - 1) for name in ("train", "validation")]
    finetune.main(
        words(
            "--train_file",
            files[0],
            "--validation_file",
            files[1],
            "--num_train_epochs",
            "4",
            "--learning_rate",
            "1e-2",
        )
    )
    results = results_of(tmp_path / "out")
    assert (results["problem_type"], results["labels"]) == (REGRESSION, ["label"])
    model, logits = logits_of(tmp_path / "out", texts(30))
    assert (model.config.problem_type, model.config.num_labels) == (REGRESSION, 1)
    predicted, gold = logits[:, 0].numpy(), numpy.arange(30) / 8 - 1
    found = results["metrics"]["validation"]
    assert found["mse"] == pytest.approx(((predicted - gold) ** 2).mean(), rel=1e-4)
    assert found["mse"] == pytest.approx(found["loss"], rel=1e-4)
    assert found["mae"] == pytest.approx(numpy.abs(predicted - gold).mean(), rel=1e-4)
    assert found["pearson"] == pytest.approx(numpy.corrcoef(predicted, gold)[0, 1], abs=0.02)
    assert found["spearman"] == pytest.approx(stats.spearmanr(predicted, gold)[0], abs=0.02)
    errors = [entry["eval_mse"] for entry in results["history"] if "eval_mse" in entry][:-1]  # the last is of the best
    assert found["mse"] == pytest.approx(min(errors), rel=1e-5)


def test_it_stops_where_the_error_falls_no_more(words, monkeypatch, tmp_path):
    errors = iter([3.0, 2.0, 2.5, 2.0])  # of three epochs, and of the best at the end
    monkeypatch.setattr(finetune, "compute_metrics", lambda prediction, task: {"mse": next(errors)})
    own = write_json(tmp_path / "own.jsonl", lambda i: i / 8)
    finetune.main(words("--train_file", own, "--early_stopping_patience", "1", "--num_train_epochs", "6"))
    results = results_of(tmp_path / "out")
    assert [entry["eval_mse"] for entry in results["history"] if "eval_mse" in entry] == [3.0, 2.0, 2.5, 2.0]
    assert results["best_checkpoint"] == str(tmp_path / "out" / "checkpoint-8")  # four steps an epoch


def test_metrics_of_constants_and_of_no_answer():
    task = Task("own", ("text",), ("stars",), problem_type=REGRESSION)
    same = finetune.compute_metrics(EvalPrediction(numpy.ones((3, 1)), numpy.array([1.0, 2.0, 3.0])), task)
    assert same == {"mse": pytest.approx(5 / 3), "mae": 1.0, "pearson": None, "spearman": None}
    task = Task("own", ("text",), ("a", "b"), problem_type=MULTI)
    none = finetune.compute_metrics(EvalPrediction(-numpy.ones((2, 2)), numpy.array([[0.0, 0.0], [1.0, 0.0]])), task)
    assert none == {"f1_micro": 0.0, "f1_macro": 0.0, "accuracy": 0.5}


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ([0, 1], SINGLE),
        ([0.0, 1.0], SINGLE),
        (["1.0", "2"], SINGLE),
        (["0.5", "1", "many"], SINGLE),
        ([True, False], SINGLE),
        ([0.5, 1.0], REGRESSION),
        (["0.5", "1", "nan"], None),
        ([["a"], [], ["b"]], MULTI),
    ],
)
def test_which_problem_type_it_is(cells, kind, tmp_path):
    write_json(tmp_path / "own.jsonl", lambda i: cells[i % len(cells)])
    args = DataArguments(train_file=str(tmp_path / "own.jsonl"), text_column_names="body")
    if kind is None:
        with pytest.raises(ValueError, match=r"own.jsonl, row 3: 'label' must be a finite number, got 'nan'\."):
            load_data(args, 0)
    else:
        assert load_data(args, 0)[0].problem_type == kind


@pytest.mark.parametrize("value", ["3,5", "", "inf", "many", None, True, [1.0], math.nan])
def test_a_faulty_number_is_one_sentence(value, words, tmp_path):
    own = write_json(tmp_path / "own.jsonl", lambda i: value)
    sentence = f"{own}, row 1: 'label' must be a finite number, got {value!r}."
    assert sentence in refusal(words("--train_file", own, "--problem_type", REGRESSION))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [["a", "a"], ["a", " "], ["a", None], "a", None, [0, 1, 0]])
def test_a_faulty_list_is_one_sentence(value, words, tmp_path):
    own = tmp_path / "own.json"
    own.write_text(json.dumps([{"body": "a", "label": value}]))
    said = refusal(words("--train_file", own, "--problem_type", MULTI))
    assert f"{own}, row 1: 'label' must be a list of labels, each once and none blank, got " in said


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--problem_type", "multi_label"], "argument --problem_type/--problem-type: invalid choice: 'multi_label'"),
        (["--label_column_name", "audio,price,body"], "must name each column once, got body and audio,price,body."),
        (["--label_column_name", "audio,body2"], "has no column 'body2'"),
        (["--label_column_name", "audio,mark"], "row 1: 'mark' must be 0 or 1, false or true, got '2'."),
        (["--label_column_name", "9,audio", "--problem_type", REGRESSION], "must name one column for --problem_type"),
        (["--label_column_name", "audio,price", "--label_smoothing_factor", "0.1"], "--label_smoothing_factor is of"),
        (["--label_column_name", "empty"], "row 1: 'empty' must hold a label, got ''."),
        (
            ["--label_column_name", "9", "--metric_for_best_model", "f1"],
            "--metric_for_best_model must be of accuracy, loss, macro_f1, got 'f1'.",
        ),
        (["--early_stopping_patience", "0"], "--early_stopping_patience must be an integer >= 1, got 0."),
        (
            ["--early_stopping_patience", "2", "--eval_strategy", "epoch"],
            "--early_stopping_patience has no effect without --load_best_model_at_end.",
        ),
        (["--remove_unused_columns", "False"], "--remove_unused_columns False cannot be used here: leave it out."),
        (["--label_names", "label"], "--label_names ['label'] cannot be used here: leave it out."),
        (["--task", "sst2", "--problem_type", SINGLE], "is of data of your own, and --task sst2 of GLUE"),
    ],
)
def test_wrong_arguments_are_one_sentence(more, sentence, words, tmp_path):
    own = tmp_path / "own.csv"
    rows = [f"{text},{i % 2},{i % 2},0,2,," for i, text in enumerate(texts(12))]
    own.write_text("\n".join(["body,9,audio,price,mark,empty,", *rows]))
    assert sentence in refusal(words("--train_file", own, *more))
    assert not (tmp_path / "out").exists()


def test_labels_of_another_file_must_be_those_of_the_first(words, tmp_path):
    train = write_json(tmp_path / "train.jsonl", topics)
    other = write_json(tmp_path / "other.jsonl", lambda i: ["audio", "video"] if i == 4 else [])
    said = refusal(words("--train_file", train, "--test_file", other))
    assert f"{other}, row 5: 'label' must hold labels of 9, 10, audio, price, got 'video'." in said
    train, other = (
        write_json(tmp_path / n, lambda i, c=c: c[i % 3]) for n, c in (("a.json", "xyx"), ("b.json", "xyz"))
    )
    said = refusal(words("--train_file", train, "--validation_file", other))
    assert f"{other}, row 3: 'label' must be one of x, y, got 'z'." in said


def test_a_run_is_not_resumed_as_one_of_another_problem_type(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"problem_type": MULTI, "id2label": {"0": "x", "1": "y"}}))
    (tmp_path / "trainer_state.json").write_text("{}")
    labels = {0: "x", 1: "y"}
    check_connection(BertConfig(problem_type=MULTI, id2label=labels), str(tmp_path), None)
    with pytest.raises(ValueError, match=f"was trained with problem_type '{MULTI}', not '{REGRESSION}'"):
        check_connection(BertConfig(problem_type=REGRESSION, id2label=labels), str(tmp_path), None)
    with pytest.raises(ValueError, match=r"was trained with labels \['x', 'y'\], not \['y', 'x'\]"):
        check_connection(BertConfig(problem_type=MULTI, id2label={0: "y", 1: "x"}), str(tmp_path), None)


def settled(**fields):
    args = TrainingArguments("out", metric_for_best_model="", eval_strategy="epoch", use_cpu=True, **fields)
    finetune.settle(args, Task("data", ("text",), ("a", "b"), problem_type=SINGLE), 0)
    return args


def test_a_plateau_is_of_the_metric_that_chooses(tmp_path):
    assert settled(lr_scheduler_type="reduce_lr_on_plateau").lr_scheduler_kwargs == {"mode": "max"}
    given = {"mode": "min", "patience": 3}
    kept = settled(lr_scheduler_type="reduce_lr_on_plateau", lr_scheduler_kwargs=given)
    assert kept.lr_scheduler_kwargs == given
    assert not settled().lr_scheduler_kwargs


def test_a_correlation_chooses_no_checkpoint(words, tmp_path):
    table = ["--train_file", write_json(tmp_path / "stars.jsonl", float)]
    said = refusal(words(*table, "--problem_type", REGRESSION, "--metric_for_best_model", "pearson"))
    assert "--metric_for_best_model pearson has no value where all predictions are equal" in said
