"""References of the benchmarks: counts by hand, values and gradients against the package and against formulas."""

import copy
import json

import costs
import pytest
import references
import torch
from classifiers import imbert, save
from costs import by_name
from problems import Mixing, inputs, step
from references import Equation, find_torchdeq, literal, through_torchdeq, with_references
from references_command import absent, rows
from run import run

from imbert_hf import (
    Anderson,
    FixedPoint,
    GradientDescent,
    IMBertForSequenceClassification,
    Implicit,
    ThetaMethod,
    Unrolled,
)
from imbert_hf.evaluation.cost import measures
from imbert_hf.evaluation.cost.measures import count, mean_residual, parameter_gradient
from imbert_hf.evaluation.cost.settings import make_batch


model, small = costs.model, costs.small  # fixtures

needs_torchdeq = pytest.mark.skipif(find_torchdeq() is None, reason="torchdeq is not installed")
RELATIONS = [
    {"theta": theta, "vector_field": field, "step_size": size, "initial_guess": guess}
    for theta, field, size, guess in [
        (1.0, "increment", 1.0, "explicit"),
        (0.6, "increment", 0.8, "explicit"),
        (1.0, "layer", 0.5, "previous"),
        (0.5, "layer", 0.5, "explicit"),
    ]
]


def test_work_of_the_references(model, small):
    rows = by_name(with_references(model, iterations=(2, 4)))
    own = rows["gradient_descent T 4 lr 0.02, unrolled"]
    assert count(rows["literal T 4 lr 0.02"], small, True, (0, 1)) == count(own, small, True, (0, 1))
    for name, passes in (("FreeLB, 3 steps", 3), ("R3F", 2), ("R-Drop", 2)):
        found = count(rows[name], small, True, (0, 1))
        assert (found["forward"]["evaluations"], found["backward"]["products"]) == (passes, passes)
        assert rows[name].floor.training == 3 * passes
        assert rows[name].inference is None
    torchdeq = [row for row in rows.values() if row.kind == "torchdeq"]
    assert len(torchdeq) == (8 if find_torchdeq() else 0)
    for row in torchdeq:
        if row.setting["solver"] == "fixed_point" or row.setting["iterations"] == 4:
            twin = rows[row.name.removeprefix("torchdeq ")]
            for training in (False, True):  # theirs evaluates in backward what ours evaluates in forward
                theirs, ours = (count(one, small, training, (0, 1)) for one in (row, twin))
                for work in ("evaluations", "products"):
                    totals = [sum(phase[work] for phase in found.values()) for found in (theirs, ours)]
                    assert totals[0] == totals[1], row.name


def test_rows_of_torchdeq_are_left_out_where_it_is_not_installed(model, monkeypatch):
    monkeypatch.setattr(references, "find_torchdeq", lambda: None)
    kinds = {row.kind for row in with_references(model, iterations=(1,))}
    assert kinds == {"BERT", "EX-BERT", "IM-BERT", "literal", "FreeLB", "R3F", "R-Drop"}


@needs_torchdeq
def test_half_precision_has_no_anderson_of_torchdeq(model, small):
    half = copy.deepcopy(model).bfloat16()
    rows = with_references(half, gradients=["implicit"], iterations=[2])
    assert [row.name for row in rows if row.kind == "torchdeq"] == ["torchdeq fixed_point T 2, implicit"]
    for row in rows:
        count(row, small, True, (0, 1))
    assert len(absent("bfloat16")) == 1
    assert absent("float32") == []


@pytest.mark.parametrize("relation", RELATIONS)
def test_the_literal_reading_is_unrolled_gradient_descent(relation):
    F, x = Mixing(), inputs()
    v = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(9))
    ours = step(F, x, **relation, solver=GradientDescent(0.2), gradient=Unrolled(), iterations=4).value
    theirs = literal(Equation(**relation), 4, 0.2)(F, x)
    torch.testing.assert_close(theirs, ours)
    leaves = (x, *F.parameters())
    expected = torch.autograd.grad(ours, leaves, v)
    torch.testing.assert_close(torch.autograd.grad(theirs, leaves, v), expected)
    with torch.no_grad():
        torch.testing.assert_close(literal(Equation(**relation), 4, 0.2)(F, x), ours.detach())


def test_the_literal_model_is_the_package_in_value_and_gradient(model, small):
    double = IMBertForSequenceClassification(model.config).double()
    double.load_state_dict(model.state_dict())
    double.eval()
    options = {"solvers": ["gradient_descent"], "gradients": ["unrolled"], "iterations": [3]}
    rows = by_name(with_references(double, **options))
    ours, theirs = rows["gradient_descent T 3 lr 0.02, unrolled"], rows["literal T 3 lr 0.02"]
    with ours.ready(False):
        expected = ours.infer(small).logits
    torch.testing.assert_close(theirs.infer(small).logits, expected)
    torch.testing.assert_close(parameter_gradient(theirs, small), parameter_gradient(ours, small))


@needs_torchdeq
@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_torchdeq_iterates_the_same_map(relation, iterations):
    F, x = Mixing(), inputs(requires_grad=False)
    with torch.no_grad():
        theirs = through_torchdeq(Equation(**relation), "fixed_point", "implicit", iterations)(F, x)
        ours = step(F, x, **relation, solver=FixedPoint(), gradient=Unrolled(), iterations=iterations).value
    torch.testing.assert_close(theirs, ours)


@needs_torchdeq
@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("solver", ["fixed_point", "anderson"])
def test_torchdeq_converges_to_the_same_solution_and_gradient(relation, solver):
    F, x = Mixing(), inputs()
    v = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(9))
    leaves = (x, *F.parameters())
    ours = step(F, x, **relation, solver=Anderson(), gradient=Implicit(60), iterations=60).value
    theirs = through_torchdeq(Equation(**relation), solver, "implicit", 80)(F, x)
    torch.testing.assert_close(theirs, ours, rtol=1e-6, atol=1e-8)
    expected = torch.autograd.grad(ours, leaves, v)
    torch.testing.assert_close(torch.autograd.grad(theirs, leaves, v), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("theta", [1.0, 0.5])
def test_the_literal_reading_has_the_residual_of_gradient_descent(model, theta):
    rows = by_name(with_references(model, gradients=["unrolled"], iterations=[2], theta=theta))
    batch = make_batch(model, None, None, 2, 5)
    names = ("literal T 2 lr 0.02", "gradient_descent T 2 lr 0.02, unrolled")
    found, own = (mean_residual(rows[name], batch, ThetaMethod(theta), (0, 1)) for name in names)
    assert found == pytest.approx(own, rel=1e-4)


def test_the_command_has_their_rows_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(measures.CONVERGED, "im_iterations", 20)  # time
    model = save(tmp_path / "model", imbert(num_hidden_layers=2))
    few = "--solver fixed_point --gradient one_step --iterations 1 --repeats 1 --batch 2 --length 6 --gradient-rows 1"
    run(
        ["references", "--model", model, "--device", "cpu", "--quiet", *few.split(), "--output", str(tmp_path / "json")]
    )
    shown, data = capsys.readouterr().out, json.loads((tmp_path / "json").read_text())
    rows = {row["name"]: row for row in data["cells"][0]["rows"]}
    own = ["BERT", "EX-BERT", "fixed_point T 1, one_step", "literal T 1 lr 0.02"]
    theirs = ["torchdeq fixed_point T 1, one_step"] if find_torchdeq() else []
    assert list(rows) == [*own, *theirs, "FreeLB, 3 steps", "R3F", "R-Drop"]
    assert rows["R3F"]["inference"] is None
    assert all(name in shown for name in rows)
    assert data["absent"] == absent("float32")
    assert ("torchdeq, which is not installed" in shown) == (find_torchdeq() is None)


def test_the_rows_of_the_readme_are_ratios_to_bert():
    def row(name, inference, step, memory):
        timing = {"ratio": inference} if inference else None
        return {"name": name, "kind": name, "inference": timing, "training": {"ratio": step, "memory_ratio": memory}}

    cell = {"rows": [row("BERT", 1, 1, 1), row("IM-BERT", 4.004, 3.1, 1.04), row("R3F", None, 2.05, 1.979)]}
    assert [tuple(found.values()) for found in rows({"cells": [cell]})] == [
        ("IM-BERT", "4.00", "3.10", "1.04"),
        ("R3F", "", "2.05", "1.98"),
    ]
