"""Attacked texts beside their originals: the table of --export, and what advglue says of it."""

import csv
import json
from dataclasses import replace

import numpy
import pandas
import pytest
from classifiers import WORDS, bert, imbert, save

from imbert_hf.evaluation import cli
from imbert_hf.evaluation.attacks.noise import perturb
from imbert_hf.evaluation.data.classifier import load_classifier, predict
from imbert_hf.evaluation.data.tasks import own_task, read_rows
from imbert_hf.evaluation.report import write_csv


LABELS = ("billing", "technical", "sales")
# What a spreadsheet would take for a formula, cells and lines that end early, missing values: texts like any other.
ODD = ["=1+wonders", "+words", "-words", "@words", 'he said "words",\nnot words', " żółć 😀\twords\r", "NA", "''", "7"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [save(folder / "bert", bert(LABELS)), save(folder / "im-bert", imbert(LABELS, im_layers=[-1], seed=1))]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    rng = numpy.random.default_rng(0)
    texts = ODD + [" ".join(f"{w}word" if i % 2 else w for i, w in enumerate(rng.choice(WORDS, 6))) for _ in range(9)]
    rows = [{"model": text, "other": text[::-1], "queue": LABELS[i % 3]} for i, text in enumerate(texts)]
    path = tmp_path_factory.mktemp("data") / "tickets.csv"
    write_csv(path, rows)
    return path


def run(*words):
    cli.main([*map(str, words), "--device", "cpu", "--quiet"])


FEW = ["--attack", "character", "--attack", "noise", "--kinds", "swap,clause", "--strengths", "0.5"]
COLUMNS = ["--text-column", "model", "--label-column", "queue"]  # a column that is called as one of the export


def test_the_table_of_an_attack(models, table, tmp_path):
    words = ["attack", "--model", f"a={models[0]}", "--model", f"b={models[1]}", "--data", table, *COLUMNS, *FEW]
    run(*words, "--output", tmp_path / "without.json")
    run(*words, "--output", tmp_path / "with.json", "--export", tmp_path / "pairs.csv")
    without, data = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("without", "with"))
    assert {**data, "settings": 0} == {**without, "settings": 0}
    with (tmp_path / "pairs.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = pandas.read_csv(tmp_path / "pairs.csv", keep_default_na=False)
    texts = pandas.read_csv(table, keep_default_na=False)
    assert [row["original_model"] for row in rows] == list(found["original_model"]) == list(texts["model"]) * 6
    assert list(found["index"]) == list(range(len(texts))) * 6
    assert list(found["label"]) == list(texts["queue"]) * 6
    swapped = [perturb(text, "swap", 0.5, 0) for text in texts["model"]]
    assert list(found["attacked_model"][(found.method == "swap 0.5") & (found.model == "b")]) == swapped
    assert swapped != list(texts["model"])
    classifier = load_classifier(models[1], own_task("tickets", ["model"], "queue", LABELS))
    answers = predict(classifier, [(text,) for text in swapped]).answers()
    of = found[(found.model == "b") & (found.method == "swap 0.5")]
    assert list(of["prediction_after"]) == [LABELS[i] for i in answers["labels"]]
    assert list(of["probability_after"]) == pytest.approx(answers["probabilities"])
    for entry in [*data["query"], *data["noise"]]:
        method = entry["attack"] if "attack" in entry else f"{entry['kind']} {entry['strength']:g}"
        of = found[(found.model == entry["model"]) & (found.method == method)]
        assert (of.prediction_before == of.label).mean() == pytest.approx(entry["clean_accuracy"])
        after = entry.get("accuracy_under_attack", entry["accuracy"])
        assert (of.prediction_after == of.label).mean() == pytest.approx(after)
        changed = of.original_model != of.attacked_model
        assert changed.any() or "attack" in entry  # which may find nothing
        assert not (of.probability_before != of.probability_after)[~changed].any()


def test_a_check_of_pairs_and_what_advglue_says_of_its_table(models, table, tmp_path):
    columns = ["--text-column", "model", "--text-column", "other", "--label-column", "queue"]
    words = ["check", "--model", models[0], "--data", table, *columns, "--rows", 12, "--output", tmp_path / "c.json"]
    run(*words, "--export", tmp_path / "pairs.csv")
    data = json.loads((tmp_path / "c.json").read_text())
    found = pandas.read_csv(tmp_path / "pairs.csv", keep_default_na=False)
    (result,) = data["results"]
    assert data["rows"] == {"of": 18, "asked": 12, "attacked": 12, "budget": None}
    assert len(found) == 5 * 12
    assert set(found.method) == {"keyboard 0.4", "swap 0.4", "deletion 0.4", "clause 0.5", "characters"}
    right = found.prediction_after == found.label
    assert right[found.method == "characters"].mean() == pytest.approx(result["characters"]["accuracy"])
    assert right[found.method != "characters"].mean() == pytest.approx(result["noise"]["accuracy"])
    names = [f"--{kind}-column={of}_{field}" for kind, of in (("text", "attacked"), ("original", "original"))
             for field in ("model", "other")]  # fmt: skip
    few = found[found.method == "characters"].drop(columns="method")
    few.to_csv(tmp_path / "few.csv", index=False, quoting=csv.QUOTE_ALL)  # else a \r ends its line
    for name, chosen in (("pairs", found), ("few", few)):
        run("advglue", "--model", models[0], "--data", tmp_path / f"{name}.csv", *names, "--output", tmp_path / name)
        (entry,) = json.loads((tmp_path / name).read_text())["results"]
        before, after = chosen.prediction_before == chosen.label, chosen.prediction_after == chosen.label
        assert (entry["task"], entry["n"], entry["pairs"]) == (name, len(chosen), len(chosen))
        expected = after.mean(), before.mean(), (before & after).mean()
        names_of = ("accuracy", "clean_accuracy", "robust_accuracy")
        assert [entry[of] for of in names_of] == pytest.approx(expected)
        assert set(entry["by_method"]) == (set(found.method) if name == "pairs" else set())


def test_advglue_takes_a_table_in_which_one_text_of_a_pair_was_left_alone(models, tmp_path, capsys):
    path, columns = tmp_path / "qqp.csv", ["--text-column=a", "--text-column=b", "--label-column=kind"]
    path.write_text("a,b,a0,b0,kind\nw1,w2,w3,,billing\nw1,w2,,w4,Sales\nw5,w6,,,2\n")
    words = ["advglue", "--model", f"x={models[0]}", "--model", f"y={models[1]}", "--data", path, *columns]
    run(*words, "--original-column=a0", "--original-column=b0", "--output", tmp_path / "out.json")
    data = json.loads((tmp_path / "out.json").read_text())
    task = own_task(str(path), ["a", "b"], "kind", LABELS)
    originals = [row.original for row in read_rows(path, replace(task, originals=("a0", "b0")))]
    assert originals == [("w3", "w2"), ("w1", "w4"), None]
    clean = predict(load_classifier(models[0], task), originals[:2]).labels
    assert data["results"][0]["clean_accuracy"] == numpy.equal(clean, [0, 2]).mean()
    assert [(r["n"], r["pairs"], r["f1"]) for r in data["results"]] == [(3, 2, None)] * 2  # of another qqp
    assert [(c["a"], c["b"], c["task"]) for c in data["comparisons"]] == [("x", "y", "qqp")]
    capsys.readouterr()
    run(*words)
    assert "no row of qqp has its original" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--original-column", "a"], "--original-column must be given once for each --text-column, got a"),
        (["--original-column", "a", "--original-column", "c"], "has no column 'c'; the columns there: 'a', 'b', 'l'"),
        (["--task", "sst2"], "--text-column is of a table of your own"),
    ],
)
def test_wrong_columns_of_originals(words, message, models, tmp_path, capsys):
    path = tmp_path / "data.csv"
    path.write_text("a,b,l\nw1,w2,0\n")
    columns = ["--text-column", "a", "--text-column", "b", "--label-column", "l"]
    with pytest.raises(SystemExit):
        run("advglue", "--model", models[0], "--data", path, *columns, *words)
    assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("advglue", "--model", models[0], "--data", path, "--original-column", "a")
    assert "--text-column is missing: it must name one or two columns of" in capsys.readouterr().err


def test_export_needs_texts(models, table, capsys):
    with pytest.raises(SystemExit):
        run("attack", "--model", models[0], "--data", table, *COLUMNS, "--attack", "embedding", "--export", "-")
    assert "--export needs an --attack that makes texts, other than embedding." in capsys.readouterr().err


def test_standard_output_holds_the_table_alone(models, table, capsys):
    run("attack", "--model", models[0], "--data", table, *COLUMNS, *FEW[2:], "--max-rows", 2, "--export", "-")
    shown = capsys.readouterr().out
    assert shown.startswith('"index","model","method","original_model","attacked_model","label",')
    assert len(list(csv.DictReader(shown.splitlines()))) == 2 * 2


def test_rows_that_share_an_original_resolve_nothing(models, tmp_path, capsys):
    """An export of several methods: its rows are not independent."""
    attacked = [{"body": w, "before": WORDS[i % 4], "kind": LABELS[i % 3]} for i, w in enumerate(WORDS[:24])]
    write_csv(tmp_path / "pairs.csv", attacked)
    columns = ["--text-column", "body", "--original-column", "before", "--label-column", "kind"]
    both = ["--model", models[0], "--model", models[1]]
    run("advglue", *both, "--data", tmp_path / "pairs.csv", *columns, "--output", tmp_path / "adv.json")
    found = json.loads((tmp_path / "adv.json").read_text())
    assert [entry["repeated"] for entry in found["results"]] == [20, 20]
    assert not found["comparisons"][0]["resolved"]
    assert not found["comparisons"][0]["robust_accuracy"]["resolved"]
    assert "20 rows of pairs share their original with another" in capsys.readouterr().out
