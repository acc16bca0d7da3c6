"""imbert-eval check: each measure by hand, what a model does not allow, and the words at the end."""

import json

import numpy
import pytest
import torch
from classifiers import bert, imbert, save
from transformers import XLNetConfig, XLNetForSequenceClassification

from imbert_hf.evaluation import cli
from imbert_hf.evaluation.attacks.ascent import Ascent, attacked
from imbert_hf.evaluation.attacks.candidates import CharacterEdits
from imbert_hf.evaluation.attacks.noise import perturb
from imbert_hf.evaluation.attacks.query import query_attack
from imbert_hf.evaluation.check import command, measures
from imbert_hf.evaluation.data.classifier import load_classifier, predict
from imbert_hf.evaluation.data.tasks import own_task, read_rows


LABELS = ("billing", "technical", "sales", "other")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "tickets.csv"
    lines = [f"w{i} w{(7 * i) % 80} w{(3 * i) % 80},{LABELS[i % 4]}" for i in range(24)]
    path.write_text("\n".join(["body,queue", *lines]) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [save(folder / "bert", bert(LABELS)), save(folder / "im-bert", imbert(LABELS, im_layers=[-1], seed=1))]


@pytest.fixture
def counts(monkeypatch):
    """No time is measured: 16 rows are asked, 6 of them attacked."""
    monkeypatch.setattr(command, "choose_rows", lambda *args, **kwargs: (16, 6))


def check(table, tmp_path, *words):
    out = tmp_path / "check.json"
    columns = ["--text-column", "body", "--label-column", "queue", "--device", "cpu", "--quiet"]
    cli.main(["check", *words, "--data", table, *columns, "--output", str(out)])
    return json.loads(out.read_text())


def test_every_measure_by_hand(models, table, counts, tmp_path):
    (result,) = check(table, tmp_path, "--model", models[0])["results"]
    task = own_task(table, ("body",), "queue", LABELS)
    classifier, rows = load_classifier(models[0], task), command.drawn(read_rows(table, task), 16, 0)
    gold = numpy.array([row.label for row in rows])

    def right(texts):
        return predict(classifier, texts).labels == gold

    clean = right([row.texts for row in rows])
    noisy = [right([(perturb(row.texts[0], kind, s, 0),) for row in rows]) for kind, s in measures.NOISE.items()]
    assert result["n"] == 16
    assert result["clean"]["accuracy"] == pytest.approx(clean.mean())
    assert result["noise"]["accuracy"] == pytest.approx(numpy.mean(noisy))
    assert result["worst"]["accuracy"] == pytest.approx(numpy.min([clean, *noisy], axis=0).mean())
    few = command.drawn(rows, 6, 0)
    edited = query_attack(classifier, few, candidates=CharacterEdits(seed=0))
    assert result["characters"]["accuracy"] == pytest.approx(numpy.mean([r.after == r.label for r in edited]))
    moved = attacked(classifier, few, measures.RADIUS, Ascent())
    assert result["embedding"]["accuracy"] == pytest.approx(moved.mean())
    assert [result[name]["n"] for name in measures.MEASURES] == [16, 16, 16, 6, 6]
    for name in measures.MEASURES:
        low, high = result[name]["ci95"]
        assert low <= result[name]["accuracy"] <= high
    of_class = [(gold == k, predict(classifier, [row.texts for row in rows]).labels == k) for k in range(4)]
    f1 = [2 * (g & p).sum() / max((g.sum() + p.sum()), 1) for g, p in of_class if (g | p).any()]
    assert result["macro_f1"] == pytest.approx(numpy.mean(f1))


def test_two_models_are_compared_row_by_row_and_kept(models, table, counts, tmp_path, capsys, monkeypatch):
    words = ["--model", f"a={models[0]}", "--model", f"b={models[1]}"]
    data = check(table, tmp_path, *words)
    assert [r["model"] for r in data["results"]] == ["a", "b"]
    assert [(c["a"], c["b"], c["measure"]) for c in data["comparisons"]] == [("a", "b", m) for m in measures.MEASURES]
    for comparison in data["comparisons"]:
        a, b = (r[comparison["measure"]]["accuracy"] for r in data["results"])
        assert comparison["difference"] == pytest.approx(a - b)
        assert comparison["ci95"][0] <= comparison["difference"] <= comparison["ci95"][1]
    shown = capsys.readouterr().out
    assert "16 of 24 rows of tickets, 6 of them attacked" in shown
    assert "esolved" in shown.splitlines()[-1]


def test_a_model_that_cannot_be_attacked_by_gradient_goes_on_with_the_rest(table, counts, tmp_path, capsys):
    torch.manual_seed(0)
    small = {"vocab_size": 99, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16}
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
    xlnet = XLNetForSequenceClassification(XLNetConfig(**small, **labels)).eval()
    (result,) = check(table, tmp_path, "--model", save(tmp_path / "xlnet", xlnet))["results"]
    assert result["embedding"] is None
    assert list(result["reasons"]) == ["embedding"]
    assert result["clean"]["n"] == 16
    assert "Not measured of" in capsys.readouterr().out


def test_the_rows_that_a_budget_pays_for(models, table, monkeypatch):
    task = own_task(table, ("body",), "queue", LABELS)
    classifier, rows = load_classifier(models[0], task), read_rows(table, task)
    cost = iter([3.2, 6.4, 8.0, 8.0] * 3)  # a batch of 32 texts, the same with clauses; 8 rows under each attack
    monkeypatch.setattr(measures, "_seconds", lambda function: next(cost))
    monkeypatch.setattr(measures.time, "perf_counter", iter([0.0, 2.0] * 3).__next__)  # of the trial itself
    options = {"seed": 0, "batch_size": 32}
    each = 0.1 * 4 + 0.2  # the clean text and three variants, and a longer one
    assert measures.choose_rows([classifier], rows, 20.0, **options) == (int(9 / each), 8)
    assert measures.choose_rows([classifier], rows, 1.0, **options) == (8, 8)  # never fewer
    assert measures.choose_rows([classifier], rows, 1e4, **options) == (24, 24)


def test_a_number_of_rows_in_place_of_a_budget(models, table, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "choose_rows", lambda *args, **kwargs: pytest.fail("a time was measured"))
    for rows, n in ((5, 5), (99, 24)):
        data = check(table, tmp_path, "--model", models[0], "--rows", str(rows), "--overwrite")
        assert data["rows"] == {"of": 24, "asked": n, "attacked": n, "budget": None}
        assert {data["results"][0][name]["n"] for name in measures.MEASURES} == {n}
    monkeypatch.undo()
    for words, message in ((["--rows", "0"], "--rows must be an integer >= 1, got 0"),
                           (["--batch-size", "0"], "batch_size must be an integer >= 1, got 0"),
                           (["--batch-size", "0", "--rows", "2"], "batch_size must be an integer >= 1, got 0"),
                           (["--rows", "5", "--budget", "1m"], "not allowed with argument")):  # fmt: skip
        with pytest.raises(SystemExit):
            check(table, tmp_path, "--model", models[0], "--overwrite", *words)
        assert message in capsys.readouterr().err


def _compared(**differences):
    fields = {"a": "a", "b": "b", "ci95": [0, 0]}
    return [{**fields, "measure": m, "difference": d, "resolved": abs(d) > 0.1} for m, d in differences.items()]


def test_the_last_line_says_what_is_resolved():
    assert command.verdict(_compared(clean=0.2, noise=-0.3, worst=0.01)) == (
        "Resolved: a is better than b in clean (20.0 points). Resolved: b is better than a in noise (30.0 points). "
        "Not resolved between a and b: worst."
    )
    assert command.verdict(_compared(clean=0.0)) == "Not resolved between a and b: clean."


def test_the_picture_has_a_bar_for_each_measure_of_each_model():
    entry = {"accuracy": 0.5, "ci95": [0.4, 0.6], "n": 9}
    first = {"model": "a", "macro_f1": 0.5, **dict.fromkeys(measures.MEASURES, entry)}
    data = {"results": [first, {**first, "model": "b", "embedding": None}], "task": "t"}
    picture = command.figure({**data, "rows": {"of": 9, "asked": 9, "attacked": 9}})
    (axes,) = picture.axes
    assert len(axes.patches) == 5 + 4
    assert "9 rows" in axes.get_title()
    assert [text.get_text() for text in picture.legends[0].get_texts()] == ["a", "b"]
    assert [bar.get_height() for bar in axes.patches] == [50] * 9


@pytest.mark.parametrize("budget", ["", "2", "0s", "two minutes", "-1m"])
def test_a_budget_is_a_time(budget):
    with pytest.raises(ValueError, match="--budget must be a time such as 90s, 2m or 1h, got"):
        command.parse_budget(budget)


def test_budgets():
    assert [command.parse_budget(text) for text in ("90s", "2m", "1.5h")] == [90, 120, 5400]


def test_a_budget_that_pays_for_the_least_alone_says_so(models, table, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "choose_rows", lambda *args, **kwargs: (measures.LEAST, measures.LEAST))
    check(table, tmp_path, "--model", models[0], "--budget", "1s")
    assert "The budget of 1s paid for no more than the least number of rows to attack, 8" in capsys.readouterr().out
    check(table, tmp_path, "--model", models[0], "--rows", "8", "--overwrite")
    assert "paid for" not in capsys.readouterr().out
