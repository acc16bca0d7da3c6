"""The least work for a given quality: rates of linear maps by hand, and each search against a plain one."""

import copy
import json
import math
from dataclasses import replace

import costs
import pytest
import quality as cost_quality
import searches
import torch
from quality import adjoint_work, equal_residual, gradient_iterations, layer_work
from references import Equation

from imbert_hf.evaluation.cost import measures as cost_measures
from imbert_hf.evaluation.cost.measures import converged_gradient, relative_gradient_errors
from imbert_hf.evaluation.cost.settings import make_batch
from imbert_hf.evaluation.cost.variants import Floor, Variant
from imbert_hf.evaluation.stability.growth import connected


INF = math.inf
model = costs.model  # a fixture
contracting, few_products, batch = searches.contracting, searches.few_products, searches.batch  # fixtures


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
                row = Variant("row", "IM-BERT", double, Floor(0, 0), fields, setting={"iterations": T})
                return relative_gradient_errors([row], batch, exact)["row"]

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
        return literal["residual"] if row.kind == "literal" else cost_measures.mean_residual(row, *rest)

    monkeypatch.setattr(cost_quality, "mean_residual", fixed)
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

    monkeypatch.setattr(cost_quality, "mean_residual", table)
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
