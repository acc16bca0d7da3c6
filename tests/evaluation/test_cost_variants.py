"""Variants of the cost command: counts and floors by hand."""

import costs
import pytest
import torch

from imbert_hf.evaluation.cost.measures import count
from imbert_hf.evaluation.cost.settings import cost
from imbert_hf.evaluation.cost.variants import floor, make_variants, plain_bert


model, small = costs.model, costs.small  # fixtures

# -- work --


def expected_work(solver, gradient, T, theta, guess):
    """README's cost table: evaluations and products forward; evaluations, products, second products backward."""
    evaluations = T if guess == "previous" and theta == 1 else T + 1
    products = T if solver == "gradient_descent" else 0
    if gradient == "unrolled":
        return (evaluations, products), (0, evaluations, products)
    Fx = int(theta < 1)
    if gradient == "implicit":  # keeps the graph of one evaluation more
        return (evaluations + 1, products), (0, T + 1 + Fx, 0)
    return (evaluations, products), (0, 1 + Fx, 0)


@pytest.mark.parametrize("guess", ["explicit", "previous"])
@pytest.mark.parametrize("theta", [1.0, 0.5])
def test_work_is_that_of_the_cost_table(model, small, theta, guess):
    model.config.im_initial_guess = guess
    try:
        for row in make_variants(model, iterations=(1, 3), theta=theta):
            found = count(row, small, True, (0, 1))
            forward, backward = (tuple(found[phase].values()) for phase in ("forward", "backward"))
            if not row.setting:
                assert (forward, backward) == ((1, 0, 0), (0, 1, 0))
                assert (row.floor.inference, row.floor.training) == (1, 3)
                continue
            solver, gradient, T = (row.setting[name] for name in ("solver", "gradient", "iterations"))
            expected = expected_work(solver, gradient, T, theta, guess)
            assert (forward[:2], backward) == expected, row.name
            assert forward[2] == 0
            kept = int(gradient == "implicit")
            inference = {**found["forward"], "evaluations": forward[0] - kept}
            assert count(row, small, False, (0, 1)) == {"forward": inference}
            # The floor prices each at 1, second products at 2, and the gradients of weights at 1 more per evaluation
            # that has them, and per product that is sent back.
            tracked = backward[1] - (T if gradient == "implicit" else 0)
            # F(x) could serve the first iteration too.
            spare = int(guess == "previous" and theta < 1)
            assert row.floor.inference == sum(forward) - kept - spare
            training = sum(forward) + backward[0] + backward[1] + tracked + 2 * backward[2]
            assert training - 3 * spare <= row.floor.training <= training - spare
            assert spare or row.floor.training == training
    finally:
        model.config.im_initial_guess = "explicit"
    assert not any(layer.attention.output._forward_hooks for layer in model.bert.encoder.layer)


@pytest.mark.parametrize(
    ("solver", "gradient", "theta", "inference", "training"),
    [
        ("fixed_point", "one_step", 1.0, 4, 4 + 2),
        ("anderson", "one_step", 1.0, 4, 4 + 2),
        ("gradient_descent", "one_step", 1.0, 4 + 3, 7 + 2),
        ("fixed_point", "implicit", 1.0, 4, 4 + 1 + 3 + 2),
        ("gradient_descent", "implicit", 1.0, 7, 7 + 1 + 3 + 2),
        ("fixed_point", "unrolled", 1.0, 4, 4 + 4 * 2),
        ("anderson", "unrolled", 0.5, 4, 4 + 4 * 2),
        ("gradient_descent", "unrolled", 1.0, 7, 7 + 4 * 2 + 3 * 2),
        ("fixed_point", "one_step", 0.5, 4, 4 + 2 + 2),
        ("fixed_point", "implicit", 0.5, 4, 4 + 1 + 3 + 2 + 2),
    ],
)
def test_floor_by_hand_for_three_iterations(solver, gradient, theta, inference, training):
    found = floor(solver, gradient, 3, theta=theta)
    assert (found.inference, found.training) == (inference, training)
    more = floor(solver, gradient, 3, theta=theta, gradient_iterations=7).training - training
    assert more == (4 if gradient == "implicit" else 0)


def test_plain_layers_below_the_implicit_ones(model, small):
    rows = make_variants(model, gradients=["unrolled"], iterations=[2], implicit_layers=1)
    solving = [row for row in rows if row.setting]
    assert [row.kind for row in solving] == ["IM-BERT"] * 3
    for row in solving:
        below, last = (count(row, small, True, (i,)) for i in (0, 1))
        assert (below["forward"]["evaluations"], below["backward"]["products"]) == (1, 1)
        assert (last["forward"]["evaluations"], last["backward"]["products"]) == (3, 3)
    options = {"solvers": ["fixed_point"], "gradients": ["one_step"], "iterations": [2], "repeats": 1}
    (cell,) = cost(model, batches=[2], lengths=[5], implicit_layers=[1], gradient_rows=0, **options)
    assert (cell["implicit_layers"], cell["converged"]) == (1, None)
    row = cell["rows"][-1]
    assert row["inference"]["floor"] == (1 + 3) / 2
    assert row["training"]["floor"] == pytest.approx((3 + 5) / 6)
    assert row["training"]["forward"]["evaluations"] == 3
    with pytest.raises(ValueError, match="implicit_layers must be an integer from 1 to 2 for this model, got 3"):
        make_variants(model, implicit_layers=3)


def test_plain_bert_shares_the_parameters(model, small):
    bert = plain_bert(model)
    own = dict(model.named_parameters())
    assert all(parameter is own[name] for name, parameter in bert.named_parameters())
    assert type(bert).__name__ == "BertForSequenceClassification"
    assert not bert.training
    model.config.im_layers = []
    try:
        assert torch.equal(bert(**small).logits, model(**small).logits)
    finally:
        model.config.im_layers = "all"
