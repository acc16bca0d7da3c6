"""The least work for a given quality: rates of linear maps by hand, and each search against a plain one."""

import copy
import json
import math
from dataclasses import replace

import costs
import pytest
import torch
from problems import Linear, Mixing, inputs
from tiny import imbert_config

from imbert_hf import Anderson, FixedPoint, IMBertForSequenceClassification
from imbert_hf.evaluation.cost import measures as cost_measures
from imbert_hf.evaluation.cost import quality as cost_quality
from imbert_hf.evaluation.cost.measures import converged_gradient, gradient_errors
from imbert_hf.evaluation.cost.quality import adjoint_work, equal_residual, gradient_iterations, layer_work
from imbert_hf.evaluation.cost.references import Equation
from imbert_hf.evaluation.cost.rows import Floor, Row
from imbert_hf.evaluation.cost.settings import make_batch
from imbert_hf.evaluation.stability.growth import connected
from imbert_hf.evaluation.stability.layers import PlainLayer


INF = math.inf
model = costs.model  # a fixture


@pytest.fixture(scope="module")
def contracting():
    """A float32 model whose relation fixed-point iteration solves."""
    torch.manual_seed(0)
    model = IMBertForSequenceClassification(imbert_config(num_hidden_layers=2)).eval()
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.output.LayerNorm.weight.mul_(0.4)
        model.classifier.weight.mul_(20)
    return model


@pytest.fixture(autouse=True)
def few_products(monkeypatch):
    monkeypatch.setitem(cost_measures.CONVERGED, "im_gradient_iterations", 40)  # time; these models need no more


@pytest.fixture
def batch(batch):
    return {**batch, "labels": torch.tensor([0, 1, 0])}  # padded


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


# -- iterations for a gradient --


def test_the_iterations_found_are_the_smallest_of_the_grid(contracting, batch):
    grid = (1, 2, 3, 5, 8)
    # Of the config's own number of products nothing is left: as many as iterations.
    with connected(contracting.config, {"im_gradient_iterations": 1}):
        found = gradient_iterations(contracting, batch, error=1e-2, grid=(8, 3, 1, 5, 2))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["rows"], found["of"]) == (3, 3)
    assert found["residual"] <= 1e-9
    double = copy.deepcopy(contracting).double()
    exact, _, _ = converged_gradient(double, batch, 1.0, (0, 1))
    for solver, by_gradient in found["found"].items():
        for gradient, entry in by_gradient.items():

            def error(T, solver=solver, gradient=gradient):
                fields = {"im_solver": solver, "im_gradient": gradient, "im_iterations": T, "im_gradient_iterations": T}
                row = Row("row", "IM-BERT", double, Floor(0, 0), fields, setting={"iterations": T})
                return gradient_errors([row], batch, exact)["row"]

            T = entry["iterations"]
            assert T > 1
            assert entry["error"] == pytest.approx(error(T))
            assert error(T) <= 1e-2 < error(grid[grid.index(T) - 1])


def test_the_search_is_in_float64_and_may_end_without_success(contracting):
    small = make_batch(contracting, None, None, 2, 4)
    found = gradient_iterations(contracting, small, solvers=["anderson"], error=1e-8, grid=(2, 24))["found"]["anderson"]
    for entry in found.values():  # float32 would stop at 1e-7
        assert entry["iterations"] == 24
        assert entry["error"] <= 1e-8
    found = gradient_iterations(contracting, small, solvers=["anderson"], error=1e-8, grid=(1, 2))["found"]["anderson"]
    assert found == {name: {"iterations": None, "error": None} for name in ("implicit", "unrolled")}


# -- iterations for a residual --


def measured(model, batch, **fields):
    with connected(model.config, fields), torch.no_grad():
        return torch.stack(model(**batch, output_im_statistics=True).im_residuals).mean().item()


def test_the_literal_reading_against_the_solvers(model):
    small = make_batch(model, None, None, 3, 6)
    rates = (0.01, 0.05, 0.1, 0.2)
    found = equal_residual(model, small, learning_rates=rates, iterations=4)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    own = {  # without padding the package's gradient descent is the literal reading
        rate: measured(model, small, im_solver="gradient_descent", im_learning_rate=rate, im_iterations=4)
        for rate in rates
    }
    assert found["residuals"] == {str(rate): pytest.approx(value, rel=1e-4) for rate, value in own.items()}
    assert found["learning_rate"] == min(own, key=own.get)
    assert found["residual"] == found["residuals"][str(found["learning_rate"])] == min(found["residuals"].values())


def test_the_smallest_number_whose_residual_is_as_small(contracting, batch, monkeypatch):
    literal = {"residual": 2e-3}

    def fixed(row, *rest):
        return literal["residual"] if row.kind == "literal" else cost_measures.residual(row, *rest)

    monkeypatch.setattr(cost_quality, "residual", fixed)
    # The config's own options of a solve at inference must not count.
    fields = {"im_eval_iterations": 1, "im_tolerance": 0.5, "im_layers": [0]}
    with connected(contracting.config, fields):
        found = equal_residual(contracting, batch, learning_rates=(0.1,), most=9)
    for solver, T in found["solvers"].items():
        before, reached = (measured(contracting, batch, im_solver=solver, im_iterations=k) for k in (T - 1, T))
        assert T > 1
        assert reached <= 2e-3 < before
    literal["residual"] = 1e-30
    assert equal_residual(contracting, batch, most=2)["solvers"] == {"fixed_point": None, "anderson": None}


def test_the_best_rate_and_the_first_iteration_by_hand(model, batch, monkeypatch):
    literal = {0.01: 0.5, 0.02: 0.3, 0.05: math.nan, 0.1: INF, 0.2: 0.4}
    own = {"fixed_point": [0.9, 0.31, 0.3, 0.4], "anderson": [0.9, 0.8, 0.7, 0.6]}
    asked = []

    def table(row, *rest):
        if row.kind == "literal":
            assert row.setting["iterations"] == 7
            return literal[row.setting["learning_rate"]]
        asked.append((row.setting["solver"], row.setting["iterations"]))
        return own[row.setting["solver"]][row.setting["iterations"] - 1]

    monkeypatch.setattr(cost_quality, "residual", table)
    found = equal_residual(model, batch, iterations=7, most=4)
    assert found == {
        "learning_rate": 0.02,
        "residual": 0.3,
        "residuals": {"0.01": 0.5, "0.02": 0.3, "0.05": None, "0.1": None, "0.2": 0.4},
        "solvers": {"fixed_point": 3, "anderson": None},
    }
    assert asked == [("fixed_point", k) for k in (1, 2, 3)] + [("anderson", k) for k in (1, 2, 3, 4)]
    literal.update(dict.fromkeys(literal, math.nan))
    found = equal_residual(model, batch, iterations=7)
    assert (found["learning_rate"], found["residual"]) == (None, None)
    assert found["solvers"] == {"fixed_point": None, "anderson": None}


# -- all of them --


SEARCHES = [
    lambda model, batch: equal_residual(model, batch, most=2),
    lambda model, batch: gradient_iterations(model, batch, error=0.5, grid=(1, 2)),
    lambda model, batch: adjoint_work(model, batch, residuals=(0.1,)),
]


@pytest.mark.parametrize("search", SEARCHES)
def test_the_model_is_left_as_it_was_found(contracting, search):
    model = copy.deepcopy(contracting)
    fields = {"im_solver": "gradient_descent", "im_tolerance": 0.1, "im_layers": [1], "im_gradient_iterations": 2}
    for name, value in fields.items():
        setattr(model.config, name, value)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    config, weights = model.config.to_dict(), copy.deepcopy(model.state_dict())
    small = make_batch(model, None, None, 2, 4)
    found = search(model, small)
    assert model.config.to_dict() == config
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert all(torch.equal(parameter.grad, torch.ones_like(parameter)) for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    model.zero_grad()
    assert search(model, small) == found  # which no gradient kept from before had a part in


@pytest.mark.parametrize("search", SEARCHES)
def test_what_cannot_be_searched(contracting, search):
    model, small = copy.deepcopy(contracting), make_batch(contracting, None, None, 2, 4)
    model.config.im_theta = 0
    with pytest.raises(ValueError, match="im_theta must be > 0, or there is nothing to solve, got 0"):
        search(model, small)
    model.config.im_theta = 1
    model.bert.encoder.layer[0].train()
    with pytest.raises(ValueError, match="model must be in eval mode in all its parts"):
        search(model, small)


@pytest.mark.parametrize(
    ("search", "options", "message"),
    [
        (equal_residual, {"solvers": ["newton"]}, "solvers must be one of 'gradient_descent', .*, got 'newton'"),
        (equal_residual, {"learning_rates": []}, "learning_rates must hold a finite number > 0, got nothing"),
        (equal_residual, {"learning_rates": [0.1, 0.0]}, "learning_rates must be a finite number > 0, got 0.0"),
        (equal_residual, {"iterations": 0}, "iterations must be an integer >= 1, got 0"),
        (equal_residual, {"most": 0}, "most must be an integer >= 1, got 0"),
        (gradient_iterations, {"gradients": ["exact"]}, "gradients must be one of 'implicit', .*, got 'exact'"),
        (gradient_iterations, {"error": math.nan}, "error must be a finite number > 0, got nan"),
        (gradient_iterations, {"grid": [1, 0]}, "grid must be an integer >= 1, got 0"),
        (adjoint_work, {"solver": "gradient_descent"}, "solver must be one of 'fixed_point', 'anderson', got 'gradi"),
        (adjoint_work, {"residuals": [-1.0]}, "residuals must be a finite number > 0, got -1.0"),
        (adjoint_work, {"most": 1.5}, "most must be an integer >= 1, got 1.5"),
    ],
)
def test_bad_input_is_one_sentence(model, batch, search, options, message):
    with pytest.raises(ValueError, match=message) as error:
        search(model, batch, **options)
    assert len(str(error.value).splitlines()) == 1


def test_theta_is_the_configs(contracting, batch, monkeypatch):
    seen = []
    monkeypatch.setattr(
        cost_quality, "layer_work", lambda *args, **kwargs: seen.append(args) or layer_work(*args, **kwargs)
    )
    model = copy.deepcopy(contracting)
    model.config.im_theta, model.config.im_step_size = 0.5, 0.8
    (record,) = adjoint_work(model, batch, residuals=(1e-2,))
    real = batch["attention_mask"].bool()
    for F, x, y, _, equation in seen:
        assert equation == replace(Equation(), theta=0.5, step_size=0.8)
        # y = x + gamma [(1 - theta) (F(x) - x) + theta (F(y) - y)]
        expected = x + 0.8 * (0.5 * (F(x) - x) + 0.5 * (F(y) - y))
        torch.testing.assert_close(y[real], expected[real], rtol=1e-8, atol=1e-9)
    assert record["unsolved"] == 0
    found = gradient_iterations(model, batch, solvers=["fixed_point"], gradients=["implicit"], grid=(1, 4, 16))
    assert found["found"]["fixed_point"]["implicit"]["iterations"] in (4, 16)
    literal = equal_residual(model, batch, learning_rates=(0.1,), most=4)
    own = measured(model, batch, im_solver="gradient_descent", im_learning_rate=0.1, im_iterations=5)
    assert literal["residual"] == pytest.approx(own, rel=0.05)  # the literal one takes padding for real
