"""Data of one's own: every kind of table and of fault in it, labels by name or index, and commands that take it."""

import json
import re

import numpy
import pandas
import pytest
from classifiers import bert, imbert, save
from datasets import ClassLabel, Dataset, Features, Value

from imbert_hf.evaluation import cli
from imbert_hf.evaluation.data.classifier import load_classifier, model_labels, predict
from imbert_hf.evaluation.data.tables import read_table
from imbert_hf.evaluation.data.tasks import label_index, own_task, read_rows


LABELS = ("billing", "technical", "sales", "other")
ROWS = [("w1 w2", "billing"), ('w3 "w4"\nw5, w6', "Technical"), ("NA", "2"), ("żółć 😀", "other")]
EXPECTED = [((text,), index) for (text, _), index in zip(ROWS, range(4), strict=True)]


def task(data="data.csv", columns=("text",), label="label", labels=LABELS):
    return own_task(str(data), columns, label, labels)


def read(path, **kwargs):
    return [(row.texts, row.label) for row in read_rows(str(path), task(path, **kwargs))]


def write(folder, kind):
    """ROWS as a file of a kind."""
    frame, path = pandas.DataFrame(ROWS, columns=["text", "label"]), folder / f"data{kind}"
    if kind.lower() == ".csv":
        frame.to_csv(path, index=False)
    elif kind == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=kind == ".jsonl")
    return path


@pytest.mark.parametrize("kind", [".csv", ".CSV", ".json", ".jsonl", ".parquet"])
def test_every_kind_of_table_has_the_same_rows(kind, tmp_path):
    assert read(write(tmp_path, kind)) == EXPECTED


def test_text_with_a_label_after_the_last_tab(tmp_path):
    path = tmp_path / "data.txt"
    path.write_bytes(b"\xef\xbb\xbfw1 w2\tbilling\r\n\r\nw3\tw4\t1\r\n")
    assert read(path) == [(("w1 w2",), 0), (("w3\tw4",), 1)]


def test_bom_carriage_returns_and_other_columns(tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes(b"\xef\xbb\xbflabel,text,more\r\n1,w1,x\r\nsales,w2,\r\n")
    assert read(path) == [(("w1",), 1), (("w2",), 2)]


def test_tabs_alone_part_the_cells_of_a_tsv(tmp_path):
    path = tmp_path / "data.tsv"
    path.write_text('text\tlabel\n"so good\tsales\nhe said "hm"\tother\n')
    assert read(path) == [(('"so good',), 2), (('he said "hm"',), 3)]


def test_names_of_class_labels_come_before_their_integers(tmp_path):
    names = Features({"text": Value("string"), "label": ClassLabel(names=["other", "billing"])})
    Dataset.from_dict({"text": ["w1", "w2"], "label": [0, 1]}, features=names).to_parquet(tmp_path / "data.parquet")
    assert read(tmp_path / "data.parquet") == [(("w1",), 3), (("w2",), 0)]


def test_a_folder_of_splits(tmp_path):
    for split, word in {"train": "w1", "validation": "w2"}.items():
        (tmp_path / f"{split}.csv").write_text(f"text,label\n{word},other\n")
    assert read(tmp_path) == [(("w2",), 3)]
    assert read_table(str(tmp_path), "train") == [{"text": "w1", "label": "other"}]
    with pytest.raises(ValueError, match=r"must hold test as a table, got train.csv, validation.csv"):
        read_table(str(tmp_path), "test")
    (tmp_path / "train.tsv").write_text("text\tlabel\n")
    with pytest.raises(ValueError, match=r"must hold one table a split, got train.csv, train.tsv, validation.csv"):
        read_table(str(tmp_path))


def test_pairs_of_which_one_may_be_empty(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("a,b,label\nw1,w2,0\nw3,,1\n")
    assert read(path, columns=("a", "b")) == [(("w1", "w2"), 0), (("w3", ""), 1)]


def test_five_thousand_rows_and_a_very_long_one(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("text,label\n" + "w1 w2,billing\n" * 5000 + f"{'word ' * 10_000},other\n")
    assert len(read(path)) == 5001


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\na,b\na,b,c\n", r"a.csv cannot be read: line 3 has 3 cells, and the header 2"),
        ("a.csv", b"text,label\n\xff,b\n", r"a.csv cannot be read: 'utf-8' codec can't decode byte 0xff"),
        ("a.csv", "text,label\nw1\n", r"a.csv cannot be read: line 2 has 1 cells, and the header 2"),
        ("a.csv", 'text,label\n"w1,0\n', r"a.csv cannot be read: line 1: unexpected end of data"),
        ("a.csv", "text,label,text\nw1,0,w2\n", r"a.csv cannot be read: the header has 'text' twice"),
        ("a.csv", "", r"a.csv holds no row"),
        ("a.jsonl", "", r"a.jsonl holds no row"),
        ("a.csv", "text,label\n", r"a.csv holds no row"),
        ("a.csv", "body,label\nw1,0\n", r"a.csv has no column 'text'; the columns there: 'body', 'label'"),
        ("a.csv", "text,label\nw1,0\n ,0\n", r"a.csv, row 2: text must hold a text, got blanks"),
        (
            "a.csv",
            "text,label\nw1,refund\n",
            r"row 1: 'label' 'refund' is none of .*billing, .*--label-map refund=INDEX",
        ),
        ("a.csv", "text,label\nw1,4\n", r"row 1: 'label' '4' is none of"),
        (
            "a.jsonl",
            '{"text": "a", "label": 0}\n{"text": "b" 1}\n',
            r"a.jsonl cannot be read: line 2 is not JSON: Expecting ',' delimiter, column 14",
        ),
        ("a.jsonl", '{"text": "half \\ud83d", "label": 0}\n', r"a.jsonl(, row 1| cannot be read).* surrogate"),
        ("a.jsonl", '{"text": 5, "label": 0}\n', r"row 1: 'text' must be a text, got 5"),
        ("a.jsonl", '{"text": ' + "[" * 3000 + "]" * 3000 + "}\n", r"a.jsonl cannot be read"),
        ("a.txt", "w1\tbilling\nw2\n", r"a.txt cannot be read: line 2 must be a text, a tab and a label, got 'w2'"),
        ("a.docx", "w1", r"must end with one of .csv, .tsv, .json, .jsonl, .parquet, .txt"),
    ],
)
def test_a_fault_is_one_sentence(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as error:
        read(path)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 500


def test_a_file_that_is_not_there():
    with pytest.raises(ValueError, match=r"nowhere.csv cannot be read: No such file"):
        read_table("nowhere.csv")
    with pytest.raises(ValueError, match=r"nowhere.jsonl cannot be read: No such file"):
        read_table("nowhere.jsonl")
    with pytest.raises(ValueError, match=r"nowhere.parquet cannot be read: there is no such file"):
        read_table("nowhere.parquet")


def test_labels_that_case_and_punctuation_tell_apart(tmp_path):
    labels = ("A+", "A-", "b")
    for label, index in {"A-": 1, "B": 2, " A+ ": 0}.items():
        path = tmp_path / "data.csv"
        path.write_text(f"text,label\nw1,{label}\n")
        assert read(path, labels=labels) == [(("w1",), index)]
    path.write_text("text,label\nw1,a\n")
    with pytest.raises(ValueError, match=r"'label' 'a' is several of the model's labels, A\+, A-, b"):
        read(path, labels=labels)


def test_the_outputs_are_called_as_the_model_or_the_map_says(tmp_path):
    path = save(tmp_path / "model", bert(("LABEL_0", "LABEL_1")))
    assert model_labels(path) == ["LABEL_0", "LABEL_1"]
    names = {"ham": 1, "spam": 0}
    assert model_labels(path, names) == ["spam", "ham"]
    with pytest.raises(ValueError, match=r"--label-map must hold indices from 0 to 1 for .*, got spam=2"):
        model_labels(path, {"spam": 2})
    own = save(tmp_path / "named", bert(("ham", "spam")))
    with pytest.raises(ValueError, match=r"--label-map ham=1 contradicts the names in .*: ham, spam"):
        model_labels(own, names)
    with pytest.raises(ValueError, match=r"nowhere/model cannot be loaded as a sequence classifier: there is no such"):
        model_labels("./nowhere/model")
    with pytest.raises(ValueError, match=r"must be a classifier of one label out of two or more, got one for"):
        model_labels(save(tmp_path / "regression", bert(("score",))))


def test_models_that_order_their_labels_in_another_way_agree(tmp_path):
    model = bert(LABELS)
    own, other = save(tmp_path / "a", model), tmp_path / "b"
    order = [2, 0, 3, 1]
    turned = bert(tuple(LABELS[i] for i in order))
    state = model.state_dict()
    state["classifier.weight"], state["classifier.bias"] = model.classifier.weight[order], model.classifier.bias[order]
    turned.load_state_dict(state)
    texts = [("w1 w2",), ("w3",)]
    found = [predict(load_classifier(str(path), task()), texts).logits for path in (own, save(other, turned))]
    numpy.testing.assert_allclose(found[0], found[1], rtol=1e-6)
    with pytest.raises(ValueError, match=r"calls its labels x, y, z, u, which does not tell"):
        load_classifier(save(tmp_path / "c", bert(("x", "y", "z", "u"))), task())


@pytest.fixture
def models(tmp_path):
    return [save(tmp_path / "bert", bert(LABELS)), save(tmp_path / "im-bert", imbert(LABELS, im_layers=[-1]))]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "tickets.csv"
    path.write_text("id,body,queue\n" + "".join(f"{i},w{i} w{i + 1} w{i + 2},{LABELS[i % 4]}\n" for i in range(8)))
    return str(path)


def run(*words):
    cli.main([*map(str, words), "--device", "cpu", "--quiet"])


def test_attack_takes_a_table_of_four_classes(models, table, tmp_path):
    named = [word for path in models for word in ("--model", path)]
    columns = ["--text-column", "body", "--label-column", "queue"]
    few = ["--attack", "character", "--attack", "noise", "--kinds", "swap", "--strengths", "0.4"]
    run("attack", *named, "--data", table, *columns, *few, "--output", tmp_path / "out.json")
    data = json.loads((tmp_path / "out.json").read_text())
    assert [(entry["task"], entry["n"]) for entry in data["query"]] == [("tickets", 8)] * 2
    assert data["query"][0]["label_order"] == list(LABELS)
    expected = predict(load_classifier(models[0], task()), [(f"w{i} w{i + 1} w{i + 2}",) for i in range(8)])
    right = (expected.labels == numpy.arange(8) % 4).mean()
    assert data["query"][0]["clean_accuracy"] == pytest.approx(right)


def test_stability_takes_its_texts_alone(models, table, tmp_path):
    small = [
        "--directions",
        "1",
        "--restarts",
        "1",
        "--steps",
        "1",
        "--eigenvalues",
        "1",
        "--iterations",
        "2",
        "--max-length",
        "16",
    ]
    run("stability", "--model", models[1], "--data", table, "--text-column", "body", "--max-rows", 1, *small)
    with pytest.raises(SystemExit):
        run("stability", "--model", models[1], "--data", table, *small)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], r"--text-column is missing: it must name one or two columns of .*tickets.csv, of 'id', 'body', 'queue'"),
        (["--text-column", "text"], r"has no column 'text'; the columns there: 'id', 'body', 'queue'"),
        (["--text-column", "body"], r"has no column 'label'"),
        (["--text-column", "body", "--task", "sst2"], r"--text-column is of a table of your own"),
        (["--label-column", "queue", "--task", "sst2"], r"--label-column is of a table of your own"),
        (["--text-column", "body", "--label-map", "a=0,b=0"], r"--label-map must use each index once, got 0 twice"),
        (["--text-column", "body", "--text-column", "id", "--text-column", "queue"], r"once or, for pairs, twice"),
    ],
)
def test_wrong_arguments_are_one_sentence(models, table, words, message, capsys):
    with pytest.raises(SystemExit):
        run("attack", "--model", models[0], "--data", table, *words)
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert re.search(message, shown)


def test_a_dataset_on_disk_stays_as_it_is(tmp_path):
    path = tmp_path / "data.parquet"
    Dataset.from_dict({"text": ["w1"], "label": [1]}).to_parquet(path)
    before = sorted(p.name for p in tmp_path.iterdir())
    assert read(path) == [(("w1",), 1)]
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("labels", "values", "found"),
    [
        (("0", "1"), ("-1", "1"), None),
        (("0", "1"), ("1.0", 0, "01"), [1, 0, 1]),
        (("1", "2", "3"), ("1", "3.0"), [0, 2]),
        (("1", "2", "3"), ("0",), None),
        (tuple(map(str, range(12))), ("1.0", "10"), [1, 10]),
        (("-1", "1"), (-1, "1.0"), [0, 1]),
        (("LABEL_0", "LABEL_1"), ("1", 0.0), [1, 0]),
        (("LABEL_0", "LABEL_1"), ("-1",), None),
    ],
)
def test_labels_that_are_numbers(labels, values, found):
    task = own_task("data.csv", ["body"], "queue", labels)
    if found is None:
        with pytest.raises(ValueError, match="is none of the model's labels"):
            [label_index("row 1", value, task) for value in values]
    else:
        assert [label_index("row 1", value, task) for value in values] == found
