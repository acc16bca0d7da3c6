"""examples/finetune.py on a table of one's own, of every kind of checkpoint, and imbert-eval check on what it saved."""

import csv
import json
import shutil

import finetune
import finetune_data
import pytest
import torch
from finetune_data import DataArguments, load_data
from finetuning import WORDS, refusal, results_of
from transformers import AutoConfig, AutoModelForSequenceClassification, ElectraConfig, ElectraForPreTraining

from imbert_hf.evaluation import cli


CLASSES = ["billing", "sales", "technical"]


def write_table(path, rows=30):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "body", "queue"])
        for i in range(rows):
            writer.writerow([i, f'{WORDS[i % 14]} "{WORDS[(3 * i) % 14]}",\n{WORDS[(5 * i) % 14]}', CLASSES[i % 3]])
    return str(path)


@pytest.fixture
def words(bert, tmp_path):
    table = write_table(tmp_path / "tickets.csv")
    few = "--num_train_epochs 1 --per_device_train_batch_size 8 --use_cpu True --report_to none --disable_tqdm True"
    own = ["--train_file", table, "--text_column_names", "body", "--label_column_name", "queue"]
    model = ["--model_name_or_path", str(bert), "--output_dir", str(tmp_path / "out")]
    return lambda *more: [*own, *model, *few.split(), *map(str, more)]


def electra_of(bert, folder):
    """An ELECTRA with the tokenizer of a BERT."""
    shutil.copytree(bert, folder)
    (folder / "model.safetensors").unlink()
    torch.manual_seed(0)
    size = json.loads((bert / "config.json").read_text())["vocab_size"]
    shape = {"hidden_size": 32, "embedding_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ElectraConfig(vocab_size=size, **shape, intermediate_size=32, max_position_embeddings=128)
    ElectraForPreTraining(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("connection", ["bert", "im-bert"])
def test_two_commands_from_a_table(words, connection, tmp_path, capsys):
    finetune.main(words("--connection", connection))
    results = results_of(tmp_path / "out")
    assert (results["task"], results["labels"]) == ("tickets", CLASSES)
    assert results["rows"] == {"train": 27, "validation": 3}  # a tenth, one of each label
    assert set(results["metrics"]["validation"]) >= {"accuracy", "macro_f1"}
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.id2label == dict(enumerate(CLASSES))
    assert config.model_type == ("bert" if connection == "bert" else "imbert")
    capsys.readouterr()
    columns = ["--text-column", "body", "--label-column", "queue", "--budget", "1s", "--device", "cpu", "--quiet"]
    cli.main(["check", "--model", str(tmp_path / "out"), "--data", str(tmp_path / "tickets.csv"), *columns])
    assert "of 30 rows of tickets" in capsys.readouterr().out


def test_an_electra_and_its_files(words, bert, tmp_path):
    electra = electra_of(bert, tmp_path / "electra")
    for name in ("validation", "test"):
        write_table(tmp_path / f"{name}.csv", rows=6)
    files = ["--validation_file", tmp_path / "validation.csv", "--test_file", tmp_path / "test.csv"]
    finetune.main(words("--model_name_or_path", electra, *files))
    assert results_of(tmp_path / "out")["rows"] == {"train": 30, "validation": 6, "test": 6}
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert type(model).__name__ == "IMElectraForSequenceClassification"


def test_labels_that_are_integers_keep_their_order(words, tmp_path):
    lines = [f"{WORDS[i % 14]},{i % 11}" for i in range(44)]
    (tmp_path / "numbers.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    args = DataArguments(train_file=str(tmp_path / "numbers.csv"), text_column_names="text")
    task, data = load_data(args, 0)
    assert task.labels == tuple(map(str, range(11)))
    assert sorted(data["validation"]["label"]) == list(range(11))
    assert load_data(args, 0)[1]["train"]["text0"] == data["train"]["text0"]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--task", "sst2"], "--train_file is of data of your own, and --task sst2 of GLUE: leave one of them out"),
        (["--dataset_name", "me/tickets"], "must say what to train on, one of them"),
        (["--text_column_names", "text"], "tickets.csv has no column 'text'; the columns there: 'id', 'body', 'queue'"),
        (["--label_column_name", "label"], "tickets.csv has no column 'label'"),
        (
            ["--text_column_names", "id,body,more"],
            "--text_column_names must name one column or, for pairs, two, got id,body,more",
        ),
        (["--label_column_name", "id"], "--validation_file is missing, and label '0' has 1 of 30 rows"),
        (["--validation_file", "nowhere.csv"], "nowhere.csv cannot be read"),
    ],
)
def test_wrong_arguments_are_one_sentence(words, more, sentence, tmp_path):
    assert sentence in refusal(words(*more))
    assert not (tmp_path / "out").exists()


def test_a_missing_column_name_is_asked_for(words, tmp_path):
    given = words()
    at = given.index("--text_column_names")
    del given[at : at + 2]
    assert "--text_column_names is missing: it must name columns of" in refusal(given)
    one = tmp_path / "one.csv"
    one.write_text("body,queue\na,sales\nb,sales\n")
    assert "'queue' must hold two labels or more, got ['sales']" in refusal(words("--train_file", one))


def test_a_folder_of_splits(words, tmp_path):
    folder = tmp_path / "splits"
    folder.mkdir()
    for split, rows in {"train": 24, "validation": 6, "test": 9}.items():
        write_table(folder / f"{split}.csv", rows=rows)
    for name in ("train_file", "dataset_name"):
        args = finetune_data.DataArguments(**{name: str(folder)}, text_column_names="body", label_column_name="queue")
        _, data = finetune_data.load_data(args, 0)
        assert {split: len(rows) for split, rows in data.items()} == {"train": 24, "validation": 6, "test": 9}


def test_numbers_of_a_validation_file_are_the_same_labels(words, tmp_path):
    for name, values in {"train": range(12), "validation": ["0.0", "1.0"]}.items():
        lines = [f"{WORDS[i % 14]},{value}" for i, value in enumerate(2 * [*values])]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *lines]))
    files = {f"{name}_file": str(tmp_path / f"{name}.csv") for name in ("train", "validation")}
    args = finetune_data.DataArguments(**files, text_column_names="text")
    assert finetune_data.load_data(args, 0)[1]["validation"]["label"] == [0, 1, 0, 1]
    (tmp_path / "validation.csv").write_text("text,label\nfine,12\n")
    with pytest.raises(ValueError, match="row 1: 'label' must be one of 0, 1, 2"):
        finetune_data.load_data(args, 0)


def test_lists_in_cells_of_text_are_refused(words, tmp_path):
    path = tmp_path / "lists.csv"
    path.write_text("body,queue\na,\"['x', 'y']\"\nb,\"['x']\"\n")
    assert "must hold a label, got \"['x', 'y']\"; lists need .jsonl or .parquet" in refusal(
        words("--train_file", path)
    )
