"""Rows of the cost command: counts and floors by hand, references against the package and against formulas."""

import copy
from types import SimpleNamespace

import costs
import pytest
import torch
from costs import by_name
from problems import Mixing, inputs, step

from imbert_hf import Anderson, FixedPoint, GradientDescent, IMBertForSequenceClassification, Implicit, Unrolled
from imbert_hf.evaluation.cost import command
from imbert_hf.evaluation.cost import references as cost_references
from imbert_hf.evaluation.cost.measures import count, parameter_gradient
from imbert_hf.evaluation.cost.references import (
    Equation,
    find_torchdeq,
    freelb_losses,
    literal,
    plain_bert,
    plain_losses,
    r3f_losses,
    through_torchdeq,
)
from imbert_hf.evaluation.cost.rows import floor, make_rows
from imbert_hf.evaluation.cost.settings import cost


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
        for row in make_rows(model, iterations=(1, 3), theta=theta):
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


def test_work_of_the_references(model, small):
    rows = by_name(make_rows(model, iterations=(2, 4), with_references=True))
    own = rows["gradient_descent T 4 lr 0.02, unrolled"]
    assert count(rows["literal T 4 lr 0.02"], small, True, (0, 1)) == count(own, small, True, (0, 1))
    for name, passes in (("FreeLB, 3 steps", 3), ("R3F", 2)):
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


def test_plain_layers_below_the_implicit_ones(model, small):
    rows = make_rows(model, gradients=["unrolled"], iterations=[2], implicit_layers=1, with_references=True)
    solving = [row for row in rows if row.setting]
    assert [row.kind for row in solving] == ["IM-BERT"] * 3 + ["literal"]  # torchdeq has no unrolled gradient
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
        make_rows(model, implicit_layers=3)


def test_rows_of_torchdeq_are_left_out_where_it_is_not_installed(model, monkeypatch):
    monkeypatch.setattr(cost_references, "find_torchdeq", lambda: None)
    kinds = {row.kind for row in make_rows(model, iterations=(1,), with_references=True)}
    assert kinds == {"BERT", "EX-BERT", "IM-BERT", "literal", "FreeLB", "R3F"}


@needs_torchdeq
def test_half_precision_has_no_anderson_of_torchdeq(model, small):
    half = copy.deepcopy(model).bfloat16()
    rows = make_rows(half, gradients=["implicit"], iterations=[2], with_references=True)
    assert [row.name for row in rows if row.kind == "torchdeq"] == ["torchdeq fixed_point T 2, implicit"]
    for row in rows:
        count(row, small, True, (0, 1))
    assert len(command.absent("bfloat16")) == 1
    assert command.absent("float32") == []


# -- references --


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
    rows = by_name(make_rows(double, **options, with_references=True))
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


class Margin(torch.nn.Module):
    """loss = softplus(-m), the margin m = <w, sum of embeddings> + bias; linear in the embeddings."""

    def __init__(self, width=4):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = torch.nn.Embedding(9, width).double()
        self.w = torch.nn.Parameter(torch.randn(width, dtype=torch.float64, generator=generator))
        self.bias = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, attention_mask, labels, input_ids=None, inputs_embeds=None):
        embedded = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        margin = ((embedded @ self.w) * attention_mask).sum(dim=1) + self.bias
        loss = torch.nn.functional.softplus(-margin).mean()
        return SimpleNamespace(loss=loss, logits=torch.stack([torch.zeros_like(margin), margin], dim=1))


MARGIN_BATCH = {
    "input_ids": torch.tensor([[1, 2, 3], [4, 5, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
    "labels": torch.tensor([1, 1]),
}


def gradients(model, losses):
    model.zero_grad()
    for loss in losses:
        loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_freelb_ascends_by_hand():
    """The gradient by a row's n tokens is along -w: each step lowers the margin by step_size sqrt(n) |w|."""
    model, n = Margin(), torch.tensor([3.0, 2.0], dtype=torch.float64)
    found = gradients(model, freelb_losses(model, MARGIN_BATCH, steps=3, step_size=0.3, radius=0.5, start=0.0))
    margin = model(**MARGIN_BATCH).logits[:, 1].detach()
    distances = (0.0, 0.3, 0.5)  # of the third point the ball keeps 0.5
    moved = torch.stack([margin - d * n.sqrt() * model.w.norm() for d in distances])
    torch.testing.assert_close(found["bias"], -torch.sigmoid(-moved).mean())


def test_freelb_without_steps_is_the_mean_of_plain_gradients():
    model = Margin()
    plain = gradients(model, plain_losses(model, MARGIN_BATCH))
    found = gradients(model, freelb_losses(model, MARGIN_BATCH, step_size=0.0, start=0.0))
    torch.testing.assert_close(found, plain)


def test_freelb_starts_within_its_ball_and_off_padding():
    seen = []

    class Spy(Margin):
        def forward(self, inputs_embeds, **rest):
            seen.append((inputs_embeds - self.embedding(MARGIN_BATCH["input_ids"])).detach())
            return super().forward(inputs_embeds=inputs_embeds, **rest)

    model = Spy()
    gradients(model, freelb_losses(model, MARGIN_BATCH, step_size=0.3, radius=0.4, start=0.2))
    norms = torch.stack([delta.flatten(1).norm(dim=1) for delta in seen])
    assert ((norms[0] > 0) & (norms[0] <= 0.2)).all()
    assert (norms[1:] <= 0.4 + 1e-12).all()
    assert all((delta[1, 2] == 0).all() for delta in seen)


def test_r3f_without_noise_adds_nothing():
    model = Margin()
    plain = gradients(model, plain_losses(model, MARGIN_BATCH))
    (loss,) = list(r3f_losses(model, MARGIN_BATCH, noise=0.0))
    torch.testing.assert_close(loss, model(**MARGIN_BATCH).loss, check_dtype=False)
    found = gradients(model, r3f_losses(model, MARGIN_BATCH, noise=0.0))
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-7)


def test_r3f_adds_the_symmetric_divergence_by_hand(monkeypatch):
    model = Margin()
    monkeypatch.setattr(torch, "rand_like", torch.ones_like)  # noise of +0.1 on each component
    (loss,) = list(r3f_losses(model, MARGIN_BATCH, noise=0.1, weight=2.0))
    margin = model(**MARGIN_BATCH).logits[:, 1]
    moved = margin + 0.1 * torch.tensor([3.0, 2.0], dtype=torch.float64) * model.w.sum()
    p, q = torch.sigmoid(margin), torch.sigmoid(moved)
    # Of two Bernoulli distributions KL(p||q) + KL(q||p) is (p - q) times the difference of their logits.
    expected = model(**MARGIN_BATCH).loss + 2.0 * ((p - q) * (margin - moved)).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
