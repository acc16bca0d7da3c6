"""The targets command: verdicts and ratios from numbers given by hand; never a time."""

import json

import costs
import pytest
import references
import targets
import torch
from bench import Bench, record
from references import find_torchdeq

from imbert_hf import IMBertForSequenceClassification
from imbert_hf.evaluation.cost import measures as cost_measures
from imbert_hf.evaluation.cost.settings import make_batch


needs_torchdeq = pytest.mark.skipif(find_torchdeq() is None, reason="torchdeq is not installed")


model = costs.model  # a fixture


@pytest.fixture
def bench(model):
    batch = make_batch(model, None, None, 8, 6)
    return Bench(model, random=batch, sentence=make_batch(model, None, None, 1, 6), real=batch, repeats=1)


def fake_times(monkeypatch, seconds):
    """Times by the name of a row, and what was asked for."""
    asked = []

    def give(self, row, base, batch, training, *, times=1, repeats=None):
        asked.append((len(batch["labels"]), training, repeats, row.name, base.name, times))
        return cost_measures.ratio(seconds(row), seconds(base))

    monkeypatch.setattr(Bench, "ratio", give)
    return asked


def fake_peaks(monkeypatch, peak):
    monkeypatch.setattr(Bench, "peak", lambda self, row, batch: peak(row) * len(batch["labels"]))


def table(records, *names):
    return [tuple(r[name] for name in names) for r in records]


# -- verdicts --


@pytest.mark.parametrize(
    ("measured", "bound", "strict", "verdict"),
    [
        (1.0, 1.05, False, "met"),
        (1.05, 1.05, False, "met"),
        (1.0500001, 1.05, False, "missed"),
        (1.0, 1.0, True, "missed"),
        (0.9999999, 1.0, True, "met"),
        (None, 1.0, False, "not measured"),
        (float("nan"), 1.0, False, "not measured"),
        (float("inf"), 1.0, False, "not measured"),
        (1.7, None, False, "-"),
        (None, None, False, "not measured"),
    ],
)
def test_verdicts(measured, bound, strict, verdict):
    found = record("a", "b", measured, bound, strict=strict, quartiles=[0.5, float("inf")])
    assert found["verdict"] == verdict
    json.dumps(found, allow_nan=False)
    assert (found["measured"] is None) == (verdict == "not measured") == (found["quartiles"] is None)


def test_a_verdict_that_the_numbers_do_not_give():
    found = record("a", "b", None, 1.0, verdict="missed", note="why")
    assert (found["measured"], found["verdict"], found["note"]) == (None, "missed", "why")


# -- groups, from times and peaks by hand --


def test_times_against_the_floor(bench, monkeypatch):
    """BERT takes 1 s in two rounds and 10 s in a third; fixed_point T 3 evaluates 4 times, T 1 twice."""
    times = {"BERT": [1.0, 10.0, 1.0], "fixed_point T 1, implicit": [2.0, 21.0, 2.2]}
    times["fixed_point T 3, implicit"] = [4.0, 44.0, 4.8]
    asked = fake_times(monkeypatch, lambda row: times[row.name])
    monkeypatch.setattr(targets, "INFERENCE", {"fixed_point": (1.05, (1, 3))})
    found = list(targets.inference(bench))
    assert table(found, "target", "setting", "bound", "verdict") == [
        ("inference / floor", "fixed_point T 1", 1.05, "met"),
        ("inference / floor", "fixed_point T 3", 1.05, "missed"),
    ]
    assert [r["measured"] for r in found] == pytest.approx([1.05, 1.1])
    assert found[1]["quartiles"] == pytest.approx([1.05, 1.15])
    # BERT as often as evaluations are made
    assert asked == [(8, False, None, name, "BERT", n) for name, n in zip(list(times)[1:], (2, 4), strict=True)]


def test_one_sentence_has_more_rounds(bench, monkeypatch):
    asked = fake_times(monkeypatch, lambda row: [row.floor.inference])
    monkeypatch.setattr(targets, "SENTENCE", {"anderson": (1.15, (2,))})
    (found,) = targets.sentence(bench)
    assert (found["setting"], found["measured"], found["verdict"]) == ("anderson T 2", 1.0, "met")
    assert asked == [(1, False, 10, "anderson T 2, implicit", "BERT", 3)]


def test_training_against_the_floor_in_rounds_of_one_solver(bench, monkeypatch):
    # BERT's step 3; T 2: implicit 3 evaluations, 1 again, 2 products, backward 2; one_step 3 and 2; the descent 2 more.
    least = {"anderson": (8, 5), "gradient_descent": (10, 7)}
    times = {"BERT": [3.0]}
    times |= {f"anderson T 2, {g}": [n * 1.2] for g, n in zip(targets.LEAN, least["anderson"], strict=True)}
    times |= {
        f"gradient_descent T 2 lr 0.02, {g}": [n * 1.0]
        for g, n in zip(targets.LEAN, least["gradient_descent"], strict=True)
    }
    asked = fake_times(monkeypatch, lambda row: times[row.name])
    monkeypatch.setattr(targets, "TRAINING", dict.fromkeys(least, (1.10, (2,))))
    found = list(targets.training(bench))
    assert [r["measured"] for r in found] == pytest.approx([1.2, 1.2, 1, 1])
    assert [r["verdict"] for r in found] == ["missed", "missed", "met", "met"]
    assert found[1]["setting"] == "anderson T 2, one_step"
    assert [(training, times) for _, training, _, _, _, times in asked] == [(True, n) for n in (3, 2, 3, 2)]


def test_memory_against_bert_and_flat(bench, monkeypatch):
    peaks = {"BERT": 100, "anderson T 2, implicit": 110, "anderson T 8, implicit": 112, "anderson T 50, implicit": 116}
    peaks |= {f"anderson T {T}, one_step": 100 for T in (2, 8, 50)}
    fake_peaks(monkeypatch, lambda row: peaks[row.name])
    monkeypatch.setattr(targets, "MEMORY", {"anderson": (1.15, (2, 8, 50))})
    found = {(r["target"], r["setting"]): (r["measured"], r["verdict"]) for r in targets.memory(bench)}
    assert len(found) == 6 + 2
    assert found["memory / BERT", "anderson T 8, implicit"] == (1.12, "met")
    assert found["memory / BERT", "anderson T 50, implicit"] == (1.16, "missed")
    assert found["memory, spread over T", "anderson T 2 8 50, implicit"] == (pytest.approx(6 / 110), "missed")
    assert found["memory, spread over T", "anderson T 2 8 50, one_step"] == (0, "met")


def test_against_the_literal_reading(bench, monkeypatch):
    answer = {"learning_rate": 0.05, "residual": 0.02, "residuals": {}, "solvers": {"anderson": 2, "fixed_point": None}}
    monkeypatch.setattr(targets.quality, "equal_residual", lambda *args, **kwargs: answer)
    times = {"literal T 5 lr 0.05": [8.0, 16.0], "anderson T 2, implicit": [2.0, 4.0]}
    asked = fake_times(monkeypatch, lambda row: times[row.name])
    found = list(targets.residual(bench))
    assert table(found, "target", "setting", "measured", "verdict") == [
        ("inference / literal", "anderson T 2", 0.25, "met"),
        ("inference / literal", "fixed_point", None, "missed"),
        ("training / literal", "anderson T 2, implicit", 0.25, "missed"),
        ("training / literal", "fixed_point", None, "missed"),
    ]
    assert "does not reach literal T 5 lr 0.05's residual 2.0e-02 with up to 20 iterations" in found[1]["note"]
    assert asked == [(8, training, None, *reversed(list(times)), 1) for training in (False, True)]
    answer["learning_rate"] = answer["residual"] = None
    found = list(targets.residual(bench))
    assert [r["verdict"] for r in found] == ["not measured"] * 2
    assert "diverges" in found[0]["note"]


@needs_torchdeq
def test_against_torchdeq(bench, monkeypatch):
    monkeypatch.setattr(targets, "TORCHDEQ", {"anderson": (4,)})
    asked = fake_times(monkeypatch, lambda row: [2.0 if row.kind == "torchdeq" else 2.0 + ("one_step" in row.name)])
    fake_peaks(monkeypatch, lambda row: 4 if row.kind == "torchdeq" else 3)
    assert table(targets.torchdeq(bench), "target", "setting", "measured", "verdict") == [
        ("inference / torchdeq", "anderson T 4", 1, "met"),
        ("training / torchdeq", "anderson T 4, implicit", 1, "met"),
        ("training / torchdeq", "anderson T 4, one_step", 1.5, "missed"),
        ("memory / torchdeq", "anderson T 4, implicit", 0.75, "met"),
        ("memory / torchdeq", "anderson T 4, one_step", 0.75, "met"),
    ]
    names = [f"anderson T 4, {gradient}" for gradient in ("implicit", "implicit", "one_step")]
    assert asked == [(8, k > 0, None, name, f"torchdeq {name}", 1) for k, name in enumerate(names)]


def test_torchdeq_that_is_not_installed(bench, monkeypatch):
    monkeypatch.setattr(references, "find_torchdeq", lambda: None)
    found = list(targets.torchdeq(bench))
    assert table(found, "setting", "verdict") == [(s, "not measured") for s in targets.TORCHDEQ for _ in range(3)]
    assert {r["note"] for r in found} == {"not installed (pip install torchdeq)"}


@needs_torchdeq
def test_half_precision_has_no_anderson_of_torchdeq(bench, monkeypatch):
    half = IMBertForSequenceClassification(bench.model.config).bfloat16().eval()
    monkeypatch.setattr(targets, "TORCHDEQ", {"anderson": (4,)})
    found = list(targets.torchdeq(Bench(half, bench.random, bench.sentence, bench.real, repeats=1)))
    assert table(found, "verdict", "note") == [("not measured", "it has no bfloat16")] * 3


def gradient_found(monkeypatch, implicit, unrolled, rows=4):
    def answer(model, batch, *, solvers, gradients, error, grid):
        assert (len(batch["labels"]), error) == (4, 1e-2)
        return {
            "rows": rows,
            "found": {s: {"implicit": {"iterations": implicit}, "unrolled": {"iterations": unrolled}} for s in solvers},
        }

    monkeypatch.setattr(targets.quality, "gradient_iterations", answer)
    monkeypatch.setattr(targets, "SOLVERS", ("anderson",))


def test_gradient_quality_there_and_from_there_on(bench, monkeypatch):
    gradient_found(monkeypatch, 3, 4)
    seconds = {"anderson T 3, implicit": 5, "anderson T 4, unrolled": 5}
    seconds |= {"anderson T 6, implicit": 8, "anderson T 8, unrolled": 10}
    fake_times(monkeypatch, lambda row: [seconds[row.name]])
    fake_peaks(monkeypatch, lambda row: seconds[row.name])
    settings = ["anderson T 3, implicit / anderson T 4, unrolled", "anderson T 6, implicit / anderson T 8, unrolled"]
    assert table(targets.gradient(bench), "target", "setting", "measured", "verdict") == [
        ("training, implicit / unrolled", settings[0], 1, "missed"),  # less, not as much
        ("memory, implicit / unrolled", settings[0], 1, "missed"),
        ("training, implicit / unrolled", settings[1], 0.8, "met"),
        ("memory, implicit / unrolled", settings[1], 0.8, "met"),
    ]


def test_an_unrolled_step_that_does_not_fit_is_not_run(bench, monkeypatch):
    gradient_found(monkeypatch, 3, 4)
    asked = fake_times(monkeypatch, lambda row: [1.0])
    # 8 rows need 8 GiB with T 4 and 16 GiB with T 8, of which 0.8 x 20 are 16.
    fake_peaks(monkeypatch, lambda row: row.setting["iterations"] * 2**28)
    for size, verdicts in ((20, ["missed", "met"] * 2), (19, ["missed", "met", "not measured", "not measured"])):
        monkeypatch.setattr(targets, "memory_bytes", lambda device, size=size: size * 2**30)
        found = list(targets.gradient(bench))
        assert [r["verdict"] for r in found] == verdicts
    assert found[-1]["note"] == "unrolled would take 16 GiB"
    assert len(asked) == 3
    monkeypatch.undo()
    assert targets.memory_bytes(torch.device("cpu")) > 2**28


@pytest.mark.parametrize(
    ("implicit", "unrolled", "rows", "verdict", "note"),
    [
        (3, None, 4, "met", "unrolled not with an error of 0.01 up to T 48; implicit with T 3"),
        (None, 4, 4, "missed", "implicit not with an error of 0.01 up to T 48; unrolled with T 4"),
        (None, None, 4, "not measured", "implicit and unrolled not with an error of 0.01 up to T 48"),
        (None, None, 0, "not measured", "no row of the batch has a converged solution"),
    ],
)
def test_a_gradient_that_is_never_good(bench, monkeypatch, implicit, unrolled, rows, verdict, note):
    gradient_found(monkeypatch, implicit, unrolled, rows)
    found = list(targets.gradient(bench))
    assert table(found, "setting", "measured", "verdict", "note") == [("anderson", None, verdict, note)] * 2


def test_adjoint_against_forward(bench, monkeypatch):
    def work(model, batch, *, solver, residuals, most):
        assert (len(batch["labels"]), most) == (4, 60)
        counts = {0.1: (4.0, 3.0), 0.01: (4.0, 5.0), 0.001: (None, None)}
        common = {"solver": solver, "rows": 4, "pairs": 24, "more": 2, "unsolved": 1}
        return [{**common, "residual": r, "evaluations": counts[r][0], "products": counts[r][1]} for r in residuals]

    monkeypatch.setattr(targets.quality, "adjoint_work", work)
    found = list(targets.adjoint(bench))
    assert table(found[3:], "setting", "measured", "verdict") == [
        ("anderson, residual 0.1", 0.75, "met"),
        ("anderson, residual 0.01", 1.25, "missed"),
        ("anderson, residual 0.001", None, "not measured"),
    ]
    assert found[0]["note"] == "of 24 pairs 2 need more products, 1 were not solved"


def test_the_trapezoidal_rule(bench, monkeypatch):
    # T 3: implicit 4 evaluations, F(x)'s backward 2, 1 again, 3 products, backward 2; one_step 4, 2 and 2.
    times = {"BERT": 3.0, "fixed_point T 3, implicit": 12.0, "fixed_point T 3, one_step": 10.0}
    fake_times(monkeypatch, lambda row: [times[row.name]])
    fake_peaks(monkeypatch, lambda row: 2 if row.setting else 1)
    found = list(targets.theta(bench))
    assert [r["measured"] for r in found] == pytest.approx([1, 1.25, 2, 2])
    assert [r["verdict"] for r in found] == ["met", "missed", "-", "-"]


def test_a_step_with_im_consistency_in_the_last_layer(bench, monkeypatch):
    # BERT's step 2 x 3. T 3: implicit 4 evaluations, 1 again, 3 products, backward 2; one_step 4 and 2; each the
    # guess's backward 2, and 3 of the other layer.
    times = {"BERT": 6.0, "fixed_point T 3, implicit": 1.1 * 15, "fixed_point T 3, one_step": 1.2 * 11}
    asked = fake_times(monkeypatch, lambda row: [times[row.name]])
    found = list(targets.consistency(bench))
    assert [r["measured"] for r in found] == pytest.approx([1.1, 1.2])
    assert table(found, "bound", "note") == [(1.10, "2.75 x BERT"), (1.10, "2.20 x BERT")]
    assert [(training, times) for _, training, _, _, _, times in asked] == [(True, 2)] * 2


def test_the_rows_with_im_consistency_have_it_in_the_last_layer_alone(bench, monkeypatch):
    seen = []
    monkeypatch.setattr(Bench, "ratio", lambda self, row, *_, **__: seen.append(row) or cost_measures.ratio([1], [1]))
    list(targets.consistency(bench))
    assert [(row.fields["im_layers"], row.fields["im_consistency"]) for row in seen] == [([1], 1.0)] * 2
