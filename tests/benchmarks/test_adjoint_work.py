"""The work of forward and adjoint solves: counts by hand for one layer, and summed up for a model."""

import copy
import json
import math

import pytest
import quality as cost_quality
import searches
import torch
from problems import Linear, Mixing, inputs
from quality import adjoint_work, gradient_iterations, layer_work
from references import Equation

from imbert_hf import Anderson, FixedPoint
from imbert_hf.evaluation.cost import measures as cost_measures
from imbert_hf.evaluation.cost.settings import make_batch
from imbert_hf.evaluation.stability.growth import connected
from imbert_hf.evaluation.stability.layers import PlainLayer


INF = math.inf
contracting, few_products, batch = searches.contracting, searches.few_products, searches.batch  # fixtures


# -- one layer --


class Scalar(torch.nn.Module):
    """F(h) = a h with one a for each example: on the increment the map contracts by a / 2."""

    def __init__(self, *a):
        super().__init__()
        self.a = torch.tensor(a, dtype=torch.float64).view(-1, 1, 1)
        self.eval()

    def forward(self, h):
        return self.a * h


def by_hand(a, tolerance):
    """Of y = (x + a y) / 2, x = 1: iterates y* + (a / 2)^k (y_0 - y*), y* = 1 / (2 - a), from y_0 = a; and of
    w = 1 + (a / 2) w likewise, from w_0 = 2. The relative residual of the first is (2 - a) |y_k - y*| / |y_k|."""
    y, w, rate = 1 / (2 - a), 1 / (1 - a / 2), a / 2
    ys = [y + rate**k * (a - y) for k in range(200)]
    ws = [w + rate**k * (2 - w) for k in range(200)]
    evaluations = 1 + next(k for k in range(200) if (2 - a) * abs(ys[k] - y) / abs(ys[k]) <= tolerance)
    return evaluations, next(k for k in range(200) if (1 - rate) * abs(ws[k] - w) / abs(ws[k]) <= tolerance)


def scalar_work(*a, solver=None, tolerance=1e-3, most=60, equation=None, function=None):
    equation = equation or Equation()
    s, c = equation.weights
    F = function or Scalar(*a)
    x = torch.ones(len(a), 2, 3, dtype=torch.float64)
    y = x / (c - s * F.a)
    solver = solver or FixedPoint()
    return layer_work(F, x, y, x, equation, solver=solver, adjoint_solver=solver, tolerance=tolerance, most=most)


@pytest.mark.parametrize("tolerance", [0.3, 1e-2, 1e-6])
def test_fixed_point_by_its_rate(tolerance):
    rates = (0.1, 0.9, -0.7, 1.5)
    found = scalar_work(*rates, tolerance=tolerance)
    assert found.T.tolist() == [list(by_hand(a, tolerance)) for a in rates]


def test_counts_by_hand_for_a_halving_map():
    # a = 1: y* = y_0 = 1, so the guess is the solution: one evaluation; w_0 = w* = 2: no product.
    assert scalar_work(1.0).tolist() == [[1], [0]]
    # a = 0: y_1 = x / 2 = y* from y_0 = 0, two evaluations; w* = 1 from w_0 = 2, one product.
    assert scalar_work(0.0).tolist() == [[2], [1]]


def test_anderson_solves_one_unknown_in_two_iterations():
    # The second iterate is the secant's zero: 3 evaluations with the guess, 2 products.
    assert scalar_work(0.7, 1.5, solver=Anderson(), tolerance=1e-5).tolist() == [[3, 3], [2, 2]]


def test_the_guess_previous_saves_its_evaluation():
    # y_0 = x; layer field of gamma 1/2: y* = x / (1 - a / 2), c = 1, residual (1 - a / 2) |y_k - y*|.
    a, tolerance = 0.8, 1e-3
    equation = Equation(vector_field="layer", step_size=0.5, initial_guess="previous")
    y = [1 / (1 - a / 2) + (a / 2) ** k * (1 - 1 / (1 - a / 2)) for k in range(60)]
    expected = next(k for k in range(60) if (1 - a / 2) * abs(y[k] - y[59]) / y[k] <= tolerance)
    # c = 1: the adjoint solve starts at v, as the forward one does, and is the same one.
    assert scalar_work(a, equation=equation, tolerance=tolerance).tolist() == [[expected], [expected]]


def test_what_is_not_reached_is_infinite():
    # a = -3: the map expands by 1.5. a = 1/2: y* = 2/3, y_k = 1/2, 5/8, 21/32, 85/128, relative residuals 1/2, 1/10,
    # 1/42, 1/170; w* = 4/3, w_k = 2, 3/2, 11/8, 43/32, relative residuals 1/4, 1/12, 1/44, 1/172.
    assert scalar_work(-3.0, 0.5, tolerance=1e-2, most=30).tolist() == [[INF, 4], [INF, 3]]
    # The last of `most` iterates counts.
    assert scalar_work(0.5, tolerance=1e-2, most=3).tolist() == [[4], [3]]
    assert scalar_work(0.5, tolerance=1e-2, most=2).tolist() == [[INF], [INF]]


def test_the_adjoint_is_that_of_the_transposed_jacobian():
    """A nilpotent A of two steps: w = c v + ..., exact after as many products as A^T takes to vanish on v."""
    F = Linear(3).eval()
    with torch.no_grad():
        F.weight.copy_(torch.tensor([[0.0, 1, 0], [0, 0, 1], [0, 0, 0]]))  # h -> (h_2, h_3, 0)
    x = torch.zeros(2, 1, 3, dtype=torch.float64)
    x[:, 0, 0] = 1
    v = torch.zeros_like(x)
    v[0, 0, 0] = v[1, 0, 2] = 1
    y = F.exact(x)
    options = {"solver": FixedPoint(), "adjoint_solver": FixedPoint(), "tolerance": 1e-12, "most": 60}
    found = layer_work(F, x, y, v, Equation(), **options)
    # A x = 0: y_0 = 0 and y_1 = x / 2 = y*. A^T moves e_1 to e_2 to e_3 to 0: w_k is exact for e_3 at k = 1, for e_1
    # at 3. With A in its place it would be 1 and 3.
    assert found.tolist() == [[2, 2], [3, 1]]


def test_padding_does_not_count():
    F, (slow, fast) = Scalar(1.0), (1.5, 0.1)
    F.a = torch.tensor([slow, fast], dtype=torch.float64).view(1, 2, 1)  # by token
    x = torch.ones(3, 2, 3, dtype=torch.float64)
    mask = torch.tensor([[True, False], [False, True], [True, True]])
    options = {"solver": FixedPoint(), "adjoint_solver": FixedPoint(), "tolerance": 1e-4, "most": 60, "mask": mask}
    found = layer_work(F, x, x / (2 - F.a), x, Equation(), **options).T.tolist()
    assert found[:2] == [list(by_hand(a, 1e-4)) for a in (slow, fast)]
    assert found[1] < found[2] <= found[0]


def test_a_smaller_residual_needs_no_less():
    F, x = Mixing().eval(), inputs(requires_grad=False)
    y = x
    for _ in range(200):
        y = (x + F(y)) / 2
    v = inputs(seed=5, requires_grad=False)
    for solver in (FixedPoint(), Anderson()):
        found = torch.stack(
            [
                layer_work(F, x, y.detach(), v, Equation(), solver=solver, adjoint_solver=solver, tolerance=r, most=60)
                for r in (0.5, 1e-1, 1e-2, 1e-4, 1e-8)
            ]
        )
        assert (found.diff(dim=0) >= 0).all()
        assert (found[-1] > found[0]).all()
        assert found.isfinite().all()


# -- the adjoint work of a model --


def test_layers_are_entered_with_their_own_input_output_and_cotangent(contracting, batch, monkeypatch):
    seen = []
    monkeypatch.setattr(
        cost_quality, "layer_work", lambda *args, **kwargs: seen.append((args, kwargs)) or torch.ones(2, 3)
    )
    adjoint_work(contracting, batch, residuals=(0.5,))
    assert len(seen) == 2
    # Another way to the same: the graph of 80 iterations.
    double = copy.deepcopy(contracting).double()
    outputs = []
    handles = [
        layer.register_forward_hook(lambda module, args, y: outputs.append(y)) for layer in double.bert.encoder.layer
    ]
    with connected(double.config, {"im_iterations": 80, "im_gradient": "unrolled"}):
        output = double(**batch, output_hidden_states=True)
    for handle in handles:
        handle.remove()
    cotangents = torch.autograd.grad(output.loss, outputs)
    real = batch["attention_mask"].bool()
    for i, ((function, x, y, v, equation), options) in enumerate(seen):
        assert isinstance(function, PlainLayer)
        assert torch.equal(options["mask"], real)
        assert equation == Equation()
        for found, expected in ((x, output.hidden_states[i]), (y, outputs[i]), (v, cotangents[i])):
            torch.testing.assert_close(found[real], expected[real], rtol=1e-7, atol=1e-12)
            assert not found.requires_grad
        torch.testing.assert_close(((x + function(y)) / 2)[real], y[real], rtol=1e-7, atol=1e-9)
        assert v[real].norm() > 1e-4


def plain_counts(function, x, y, v, tolerance, most):
    """The fixed-point iterations of one row, written out."""
    guess, evaluations = function(x), 1
    while (2 * guess - x - function(guess)).norm() / guess.norm() > tolerance:
        if evaluations > most:
            evaluations = INF
            break
        guess, evaluations = (x + function(guess)) / 2, evaluations + 1
    _, transposed = torch.func.vjp(function, y)
    w, products = 2 * v, 0
    while (w - transposed(w)[0] / 2 - v).norm() / w.norm() > tolerance:
        if products == most:
            return evaluations, INF
        w, products = v + transposed(w)[0] / 2, products + 1
    return evaluations, products


def test_records_are_of_every_layer_and_row(contracting, monkeypatch):
    batch = make_batch(contracting, None, None, 3, 6)
    seen, inner = [], layer_work

    def spy(*args, **kwargs):
        seen.append(args[:4])
        return inner(*args, **kwargs)

    monkeypatch.setattr(cost_quality, "layer_work", spy)
    residuals, most = (1e-1, 1e-3, 1e-6), 6
    records = adjoint_work(contracting, batch, solver="fixed_point", residuals=residuals, most=most)
    assert json.loads(json.dumps(records, allow_nan=False)) == records
    assert [r["residual"] for r in records] == list(residuals)
    for record in records:
        counts = [
            plain_counts(F, *(t[i : i + 1] for t in (x, y, v)), record["residual"], most)
            for F, x, y, v in [(PlainLayer(f.layer), x, y, v) for f, x, y, v in seen[:2]]
            for i in range(3)
        ]
        solved = [pair for pair in counts if INF not in pair]
        assert (record["solver"], record["rows"], record["of"], record["pairs"]) == ("fixed_point", 3, 3, 6)
        assert record["unsolved"] == len(counts) - len(solved)
        assert record["more"] == sum(products > evaluations for evaluations, products in counts)
        for i, name in enumerate(("evaluations", "products")):
            expected = sum(pair[i] for pair in solved) / len(solved) if solved else None
            assert record[name] == (expected and pytest.approx(expected))
    assert records[0]["unsolved"] == 0 < records[2]["unsolved"]  # both sides of the bound were seen
    few, more = records[:2]
    assert few["evaluations"] < more["evaluations"]
    assert few["products"] < more["products"]


def test_pairs_are_summed_up_by_hand(contracting, monkeypatch):
    work = iter(torch.tensor([[[3, 5, INF], [3, 6, 2]], [[4, INF, 2], [INF, INF, 1]]], dtype=torch.float64))
    monkeypatch.setattr(cost_quality, "layer_work", lambda *args, **kwargs: next(work))
    (record,) = adjoint_work(contracting, make_batch(contracting, None, None, 3, 5), residuals=(0.1,))
    # Solved (3, 3), (5, 6), (2, 1); of the others, products inf above 4 evaluations counts as more.
    expected = {"residual": 0.1, "solver": "anderson", "rows": 3, "of": 3, "pairs": 6, "more": 2, "unsolved": 3}
    assert record == {**expected, "evaluations": pytest.approx(10 / 3), "products": pytest.approx(10 / 3)}


def test_solvers_have_the_models_options(contracting, monkeypatch):
    seen = []
    monkeypatch.setattr(cost_quality, "layer_work", lambda *args, **options: seen.append(options) or torch.ones(2, 2))
    small = make_batch(contracting, None, None, 2, 4)
    with connected(contracting.config, {"im_damping": 0.9, "im_anderson_memory": 2}):
        for solver in ("anderson", "fixed_point"):
            adjoint_work(contracting, small, solver=solver, residuals=(0.1,), most=7)
    assert [options["solver"] for options in seen[::2]] == [Anderson(0.9, 2), FixedPoint(0.9)]
    assert [options["adjoint_solver"] for options in seen[::2]] == [Anderson(memory=2), FixedPoint()]
    assert {(options["most"], options["tolerance"]) for options in seen} == {(7, 0.1)}


def test_rows_without_a_converged_solve_are_not_used(contracting, monkeypatch):
    small = make_batch(contracting, None, None, 3, 5)
    # The residuals after so few iterations, and a bound between them.
    monkeypatch.setitem(cost_measures.CONVERGED, "im_iterations", 3)
    double = copy.deepcopy(contracting).double()
    with connected(double.config, cost_measures.CONVERGED), torch.no_grad():
        residuals = torch.stack(double(**small, output_im_statistics=True).im_residuals).amax(dim=0)
    monkeypatch.setattr(cost_measures, "CONVERGED_RESIDUAL", residuals.median().item())
    (record,) = adjoint_work(contracting, small, residuals=(0.1,))
    assert (record["rows"], record["of"], record["pairs"]) == (2, 3, 4)
    options = {"solvers": ["anderson"], "gradients": ["implicit"], "error": 10.0, "grid": [1]}
    found = gradient_iterations(contracting, small, **options)
    kept = (residuals <= residuals.median()).nonzero()[:, 0]
    alone = gradient_iterations(contracting, {name: value[kept] for name, value in small.items()}, **options)
    assert found == {"rows": 2, "of": 3, "residual": pytest.approx(residuals.median().item()), "found": alone["found"]}

    monkeypatch.setattr(cost_measures, "CONVERGED_RESIDUAL", 0.0)
    (record,) = adjoint_work(contracting, small, residuals=(0.1,))
    nothing = {"rows": 0, "of": 3, "pairs": 0, "evaluations": None, "products": None, "more": 0, "unsolved": 0}
    assert record == {"residual": 0.1, "solver": "anderson", **nothing}
    found = gradient_iterations(contracting, small, gradients=["implicit"])
    none = {"implicit": {"iterations": None, "error": None}}
    assert found["found"] == {"fixed_point": none, "anderson": none}
    assert (found["rows"], found["of"]) == (0, 3)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
