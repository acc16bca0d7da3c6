"""The measures by hand for constant and perfect predictors, against scikit-learn, and the command."""

import json
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
from classifiers import WORDS, bert, classifier, imbert, save
from sklearn import metrics

from imbert_hf.evaluation import cli
from imbert_hf.evaluation.advglue import scores as advglue
from imbert_hf.evaluation.advglue.scores import Run, compare, measure, official_score, summarise
from imbert_hf.evaluation.data.classifier import predict
from imbert_hf.evaluation.data.tasks import TASKS, Row
from imbert_hf.evaluation.report import Journal


KEYS = {
    *("model", "task", "n", "accuracy", "accuracy_ci95", "majority_accuracy", "predicted_share", "clean_accuracy"),
    *("robust_accuracy", "attack_success_rate", "by_construction", "by_method", "mean_residual", "unconverged_rate"),
}


def row(label, original=True, construction="word", method="T3"):
    return Row(("b",), label, ("a",) if original else None, construction, method)


ROWS = [
    row(1),
    row(1),
    row(1, method="SCPN"),
    row(0, construction="sentence"),
    row(0, original=False, construction="human"),
]


def predicted(labels, originals, rows=ROWS, name="m", task="sst2", path="p"):
    known = [o if r.original else -1 for o, r in zip(originals, rows, strict=True)]
    nothing = numpy.zeros((0, 0))
    return Run(name, path, TASKS[task], rows, numpy.array(labels), numpy.array(known), nothing, nothing.astype(bool))


def test_constant_predictor():
    found = measure(predicted([1] * 5, [1] * 5))
    assert set(found) >= KEYS
    assert found["n"] == 5
    assert found["accuracy"] == found["majority_accuracy"] == pytest.approx(3 / 5)
    assert found["predicted_share"] == {"negative": 0, "positive": 1}
    # four pairs, three of label 1: right before and after, so no attack succeeds
    assert found["pairs"] == 4
    assert found["clean_accuracy"] == found["robust_accuracy"] == 3 / 4
    assert found["attack_success_rate"] == 0
    assert found["mean_residual"] is found["unconverged_rate"] is found["f1"] is None


def test_perfect_predictor():
    gold = [r.label for r in ROWS]
    found = measure(predicted(gold, gold))
    assert found["accuracy"] == found["clean_accuracy"] == found["robust_accuracy"] == 1
    assert found["attack_success_rate"] == 0
    assert found["by_construction"]["human"]["clean_accuracy"] is None


def test_by_hand():
    # attacked: right, wrong, wrong, right, wrong; original: right, right, wrong, wrong, -
    found = measure(predicted([1, 0, 0, 0, 1], [1, 1, 0, 1, 0]))
    assert found["accuracy"] == 2 / 5
    assert found["clean_accuracy"] == 2 / 4
    assert found["robust_accuracy"] == 1 / 4
    assert found["attack_success_rate"] == 1 / 2
    word = found["by_construction"]["word"]
    assert word["n"] == 3
    assert word["accuracy"] == 1 / 3
    assert word["clean_accuracy"] == 2 / 3
    assert found["by_method"]["SCPN"]["attack_success_rate"] is None  # no original was right
    assert set(found["by_method"]) == {"T3", "SCPN"}


def test_no_pair_right_before_leaves_no_success_rate():
    found = measure(predicted([0] * 5, [1 - r.label for r in ROWS]))
    assert found["clean_accuracy"] == 0
    assert found["attack_success_rate"] is None


@pytest.mark.parametrize("task", list(TASKS))
def test_agrees_with_scikit_learn(task):
    rng = numpy.random.default_rng(0)
    k = len(TASKS[task].labels)
    gold, labels = rng.integers(k, size=200), rng.integers(k, size=200)
    rows = [Row(("b",), int(g)) for g in gold]
    found = measure(predicted(labels, [0] * 200, rows, task=task))
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(gold, labels))
    counts = numpy.diag(metrics.confusion_matrix(gold, gold))
    assert found["majority_accuracy"] == pytest.approx(counts.max() / 200)
    assert list(found["predicted_share"].values()) == pytest.approx([(labels == i).mean() for i in range(k)])
    assert found["clean_accuracy"] is None
    if task == "qqp":
        assert found["f1"] == pytest.approx(metrics.f1_score(gold, labels))


def test_official_score_by_hand():
    accuracy = {"sst2": 0.5, "qqp": 0.6, "mnli": 0.2, "mnli-mm": 0.4, "qnli": 0.7, "rte": 0.8}
    results = [{"task": t, "accuracy": a, "f1": 0.4 if t == "qqp" else None} for t, a in accuracy.items()]
    score, only = official_score(results)
    assert score == pytest.approx((0.5 + (0.6 + 0.4) / 2 + 0.3 + 0.7 + 0.8) / 5)
    assert only == pytest.approx((0.5 + 0.6 + 0.3 + 0.7 + 0.8) / 5)
    assert official_score(results[:-1]) == (None, None)


def test_comparison_of_two_models():
    rows = [row(1)] * 100
    a = predicted([1] * 80 + [0] * 20, [1] * 100, rows, "a")
    b = predicted([1] * 50 + [0] * 50, [1] * 100, rows, "b")
    (found,) = compare([a, b])
    assert (found["a"], found["b"], found["task"]) == ("a", "b", "sst2")
    assert found["difference"] == pytest.approx(0.3)
    assert found["ci95"][0] < 0.3 < found["ci95"][1]
    assert found["resolved"]
    assert found["robust_accuracy"]["difference"] == pytest.approx(0.3)
    assert compare([a]) == []


def test_seeds_of_one_model():
    rows = [row(1)] * 10
    seeds = [predicted([1] * k + [0] * (10 - k), [1] * 10, rows, "a") for k in (6, 8)]
    (found,) = summarise(seeds)
    assert found["seeds"] == 2
    assert found["accuracy"] == pytest.approx(0.7)
    assert found["accuracy_std"] == pytest.approx(numpy.sqrt(2) / 10)
    other = predicted([1] * 5 + [0] * 5, [1] * 10, rows, "b")
    with pytest.raises(ValueError, match="a has 2 checkpoints of sst2 and b has 1"):
        compare([*seeds, other])
    (paired,) = compare([*seeds, other, other])
    assert paired["difference"] == pytest.approx(0.2)
    assert paired["mcnemar_p"] is None


# The command


def data(folder, tasks=("sst2",), n=12):
    rng = numpy.random.default_rng(0)

    def text():
        return " ".join(rng.choice(WORDS, rng.integers(3, 12)))

    content = {}
    for name in tasks:
        fields, labels = TASKS[name].fields, TASKS[name].labels
        content[name] = [
            {f: text() for f in fields}
            | {"label": i % len(labels), "method": "T3", "data_construction": "word", f"original_{fields[0]}": text()}
            for i in range(n)
        ]
    path = folder / "data.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def run(*words):
    cli.main(["advglue", *map(str, words), "--device", "cpu", "--quiet"])


@pytest.fixture
def models(tmp_path):
    return [save(tmp_path / "a", bert()), save(tmp_path / "b", imbert(seed=1))]


def test_command_writes_json_table_and_picture(tmp_path, models, capsys):
    out, picture = tmp_path / "out.json", tmp_path / "out.png"
    words = [w for m in models for w in ("--model", m)]
    run("--task", "sst2", *words, "--data", data(tmp_path), "--output", out, "--plot", picture)
    found = json.loads(out.read_text())
    assert set(found) >= {"settings", "results", "comparisons", "score", "score_accuracy_only"}
    assert [r["model"] for r in found["results"]] == models
    assert all(set(r) >= KEYS for r in found["results"])
    assert found["results"][0]["mean_residual"] is None
    assert 0 <= found["results"][1]["mean_residual"] < numpy.inf
    (comparison,) = found["comparisons"]
    assert set(comparison) >= {"a", "b", "task", "difference", "ci95", "mcnemar_p"}
    assert found["score"] is None
    assert {"seed", "versions", "batch_size", "data", "command"} <= set(found["settings"])
    assert picture.read_bytes()[:4] == b"\x89PNG"
    printed = capsys.readouterr().out
    assert "majority" in printed
    assert "resolved" in printed
    assert not list(tmp_path.glob("*part*"))


def test_five_tasks_make_a_score(tmp_path):
    file = data(tmp_path, TASKS)
    two = save(tmp_path / "qnli", bert(("entailment", "not_entailment")))
    paths = {
        "sst2": save(tmp_path / "sst2", bert()),
        "qqp": save(tmp_path / "qqp", bert(("not_duplicate", "duplicate"))),
        "mnli": save(tmp_path / "mnli", bert(("contradiction", "neutral", "entailment"))),
        "qnli": two,
        "rte": two,
    }
    words = [w for task, path in paths.items() for w in ("--model", f"{task}={path}")]
    run(*words, "--data", file, "--output", tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    of = {r["task"]: r for r in found["results"]}
    assert set(of) == set(TASKS)
    mnli = (of["mnli"]["accuracy"] + of["mnli-mm"]["accuracy"]) / 2
    qqp = (of["qqp"]["accuracy"] + of["qqp"]["f1"]) / 2
    expected = (of["sst2"]["accuracy"] + qqp + mnli + of["qnli"]["accuracy"] + of["rte"]["accuracy"]) / 5
    assert found["score"] == pytest.approx(expected)
    assert found["score_accuracy_only"] is not None
    named = [w for task, path in paths.items() for w in ("--model", f"x@{task}={path}")]
    run(*words, *named, "--data", file, "--output", tmp_path / "both.json")
    both = json.loads((tmp_path / "both.json").read_text())
    assert [s["score"] for s in both["scores"]] == pytest.approx([expected, expected])
    assert both["score"] is None
    assert {c["difference"] for c in both["comparisons"]} == {0.0}
    assert len(both["comparisons"]) == 6
    run(
        "--model",
        f"sst2={save(tmp_path / 'other', bert(seed=1))}",
        "--overwrite",
        *words,
        "--data",
        file,
        "--output",
        tmp_path / "out.json",
    )
    assert (
        json.loads((tmp_path / "out.json").read_text())["score"] is None
    )  # which of the two it would be of is not said


def test_a_checkpoint_is_no_seed_of_itself(tmp_path, models, capsys):
    with pytest.raises(SystemExit):
        run("--task", "sst2", "--model", models[0], "--model", models[0], "--data", data(tmp_path))
    assert "is given twice for sst2; seeds are different checkpoints" in capsys.readouterr().err
    run("--task", "sst2", "--task", "sst2", "--model", models[0], "--data", data(tmp_path))
    assert "+-" not in capsys.readouterr().out


def test_other_rows_are_not_compared():
    gold = [r.label for r in ROWS]
    a, b = predicted(gold, gold), predicted(gold[::-1], gold[::-1], ROWS[::-1], "b")
    with pytest.raises(ValueError, match="m and b were asked about other rows of sst2"):
        compare([a, b])


def test_a_changed_file_is_read_anew(tmp_path, models, monkeypatch):
    out = tmp_path / "out.json"
    words = ["--task", "sst2", "--model", models[0], "--model", models[1], "--output", out]
    asked = []
    original = advglue.run

    def interrupted(classifier, rows, **options):
        asked.append(len(rows))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return original(classifier, rows, **options)

    monkeypatch.setattr("imbert_hf.evaluation.advglue.command.ask", interrupted)
    with pytest.raises(SystemExit):
        run(*words, "--data", data(tmp_path))
    run(*words, "--data", data(tmp_path, n=10))
    assert asked == [12, 12, 10, 10]
    assert {r["n"] for r in json.loads(out.read_text())["results"]} == {10}


def test_solves_of_the_originals_are_not_measured(monkeypatch):
    asked = []

    def spy(classifier, texts, **options):
        asked.append(options.get("residuals"))
        return predict(classifier, texts, **options)

    monkeypatch.setattr(advglue, "predict", spy)
    advglue.run(classifier(imbert()), [Row(("w1",), 1, ("w2",))], residuals="all")
    assert asked == ["all", "none"]


def test_solves_that_are_not_finite_are_shown(capsys):
    run_ = predicted([1] * 5, [1] * 5)
    broken = measure(replace(run_, residuals=numpy.full((5, 2), numpy.inf), converged=numpy.zeros((5, 2), dtype=bool)))
    assert broken["mean_residual"] is None
    assert broken["unconverged_rate"] == 1
    from imbert_hf.evaluation.advglue.command import text

    assert "not finite" in text({"results": [broken], "comparisons": [], "summaries": [], "scores": []})


def test_names_are_seeds(tmp_path, models):
    words = ["--model", f"x={models[0]}", "--model", f"x={models[1]}"]
    run("--task", "sst2", *words, "--data", data(tmp_path), "--output", tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["summaries"][0]["seeds"] == 2
    assert found["comparisons"] == []


def test_collapse_and_missing_originals_are_said(tmp_path, capsys):
    model = bert()
    model.classifier.weight.data.zero_()
    model.classifier.bias.data = model.classifier.bias.data.new_tensor([0.0, 1.0])
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"sentence": "w1", "label": i % 2}) for i in range(4)), encoding="utf-8")
    run("--task", "sst2", "--model", save(tmp_path / "m", model), "--data", path)
    printed = capsys.readouterr().out
    assert "predicts positive for 100 % of the rows" in printed
    assert "clean accuracy is not known" in printed


def test_an_interrupted_run_goes_on(tmp_path, models, monkeypatch, capsys):
    words = ["--task", "sst2", "--model", models[0], "--model", models[1], "--data", data(tmp_path)]
    words += ["--output", tmp_path / "out.json"]
    asked = []
    original = advglue.run

    def interrupted(classifier, rows, **options):
        asked.append(classifier.path)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return original(classifier, rows, **options)

    monkeypatch.setattr("imbert_hf.evaluation.advglue.command.ask", interrupted)
    with pytest.raises(SystemExit, match=r"interrupted; finished parts are kept in .*out.json.parts"):
        run(*words)
    assert not (tmp_path / "out.json").exists()
    run(*words)
    assert asked == [models[0], models[1], models[1]]  # the first model was not asked again
    assert not (tmp_path / "out.json.parts").exists()
    resumed = json.loads((tmp_path / "out.json").read_text())
    run(*words)
    again = json.loads((tmp_path / "out.json").read_text())
    assert resumed["results"] == again["results"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "cola", "--model", "m"], "task must be one of sst2"),
        (["--model", "m"], "--task is missing: model m"),
        (["--task", "rte", "--model", "sst2=m"], "--model m is of sst2, which is not among --task rte"),
        (["--task", "sst2", "--model", "x@cola=m"], "--model must be PATH, NAME=PATH"),
        (["--task", "sst2", "--model", "m", "--data", "nowhere.json"], "nowhere.json cannot be read"),
        (["--task", "sst2", "--model", "m", "--output", "nowhere/out.json"], "the folder nowhere does not exist"),
        (["--task", "sst2", "--model", "m", "--plot", "nowhere/out.png"], "--plot nowhere/out.png: the folder"),
        (["--task", "sst2"], "--model"),
        (["--task", "sst2", "--model", "m", "--dtype", "int8"], "--dtype"),
        (["--task", "sst2", "--model", "m", "--batch-size", "0"], "batch_size must be an integer >= 1, got 0"),
        (["--task", "sst2", "--model", "m", "--label-map", "x"], "--label-map must read like negative=0,positive=1"),
        (["--task", "sst2", "--model", "m", "--label-map", "negativ=1,positive=0"], "got 'negativ'"),
        (["--task", "sst2", "--model", "m", "--label-map", "negative=1,negative=0"], "must name each label once"),
    ],
)
def test_one_sentence_for_wrong_arguments(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "m", bert())
    with pytest.raises(SystemExit) as error:
        run(*words, *([] if "--data" in words else ["--data", data(tmp_path)]))
    assert error.value.code == 2
    printed = capsys.readouterr().err.strip()
    assert message in printed
    assert printed.startswith("imbert-eval")
    assert len(printed.splitlines()) == 1


def test_journal_survives_a_line_cut_short(tmp_path):
    path = tmp_path / "parts"
    journal = Journal(path)
    assert journal.part({"a": 1}, lambda: [1, 2]) == [1, 2]
    path.write_bytes(path.read_bytes() + b'\n3\n\xff\n{"part": "x", "val')
    journal = Journal(path)
    journal.part({"a": 2}, lambda: 3)
    journal = Journal(path)
    assert journal.part({"a": 1}, lambda: pytest.fail("asked again")) == [1, 2]
    assert journal.part({"a": 2}, lambda: pytest.fail("asked again")) == 3
    assert journal.part({"a": 3}, lambda: 4) == 4
    assert Journal(path, {"device": "cuda"}).part({"a": 1}, lambda: 5) == 5  # of another machine
    assert Path(path).exists()
    journal.remove()
    assert not path.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_part_that_cannot_be_kept_is_told(tmp_path, capsys):
    (tmp_path / "parts").symlink_to("/dev/full")
    journal = Journal(tmp_path / "parts")
    assert [journal.part({"a": a}, lambda: [1, 2]) for a in range(2)] == [[1, 2]] * 2
    said = capsys.readouterr().err
    assert said == f"warning: parts are not kept in {tmp_path / 'parts'}: No space left on device.\n"
    assert journal.lost
