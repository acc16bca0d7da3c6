"""The gradient modes against exact gradients, and what they share: one dropout mask, checkpointing, autocast."""

import gc
import itertools
import weakref

import pytest
import torch
from problems import Linear, Mixing, cosine, inputs, relative_error, step
from torch import nn
from torch.utils.checkpoint import checkpoint

from imbert_hf import Anderson, FixedPoint, GradientDescent, Implicit, OneStep, Unrolled
from imbert_hf.solvers_imbert import VECTOR_FIELDS
from imbert_hf.step_imbert import INITIAL_GUESSES


SOLVERS = {"fixed_point": FixedPoint(), "anderson": Anderson(), "gradient_descent": GradientDescent(0.15)}
GRADIENTS = {"unrolled": Unrolled(), "implicit": Implicit(), "one_step": OneStep()}
PAIRS = list(itertools.product(SOLVERS, GRADIENTS))


def cotangent(x):
    return torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(9))


def gradients(value, x, layer):
    return torch.autograd.grad(value, (x, *layer.parameters()), cotangent(x))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("gradient", [Unrolled(), Implicit(150, FixedPoint()), Implicit(20, Anderson())])
@pytest.mark.parametrize("vector_field", VECTOR_FIELDS)
def test_linear_relation_has_exact_gradients(solver, gradient, vector_field):
    layer, x = Linear(), inputs()
    for theta, guess in itertools.product((0.3, 1.0), INITIAL_GUESSES):
        setting = {"vector_field": vector_field, "theta": theta, "step_size": 0.8}
        solution = step(
            layer, x, solver=SOLVERS[solver], gradient=gradient, iterations=150, initial_guess=guess, **setting
        )
        expected = gradients(layer.exact(x, **setting), x, layer)
        torch.testing.assert_close(gradients(solution.value, x, layer), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("vector_field", VECTOR_FIELDS)
@pytest.mark.parametrize("products", [0, 1, 4])
def test_adjoint_is_the_neumann_sum_from_c_v(vector_field, products):
    layer, x = Linear(), inputs()
    c = 1 + VECTOR_FIELDS[vector_field]
    y = step(
        layer, x, vector_field=vector_field, solver=Anderson(), gradient=Implicit(products, FixedPoint()), iterations=40
    ).value
    v = cotangent(x)
    w = c * v
    for _ in range(products):
        w = v + w @ layer.weight / c
    grad_x, grad_weight = gradients(y, x, layer)
    torch.testing.assert_close(grad_x, w / c)
    torch.testing.assert_close(grad_weight, torch.einsum("bli,blj->ij", w / c, y.detach()))


@pytest.mark.parametrize("vector_field", VECTOR_FIELDS)
@pytest.mark.parametrize("tolerance", [0.0, 1e-12])
def test_one_step_is_one_evaluation_in_which_y_moves_with_x(vector_field, tolerance):
    layer, x = Linear(), inputs()
    c = 1 + VECTOR_FIELDS[vector_field]
    setting = {"vector_field": vector_field, "iterations": 40, "tolerance": tolerance}
    y = step(layer, x, solver=Anderson(), gradient=OneStep(), **setting).value
    v = cotangent(x)
    grad_x, grad_weight = gradients(y, x, layer)
    torch.testing.assert_close(grad_x, (v + v @ layer.weight) / c)
    torch.testing.assert_close(grad_weight, torch.einsum("bli,blj->ij", v, y.detach()))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("theta", [0.5, 1.0])
def test_unrolled_is_the_derivative_of_the_iteration(solver, theta):
    layer, x = Mixing(length=3, width=2), inputs(batch=2, length=3, width=2)
    for guess, iterations in itertools.product(INITIAL_GUESSES, (1, 3)):

        def run(x, *parameters, guess=guess, iterations=iterations):
            setting = {"theta": theta, "initial_guess": guess, "iterations": iterations}
            return step(layer, x, solver=SOLVERS[solver], gradient=Unrolled(), **setting).value

        assert torch.autograd.gradcheck(run, (x, *layer.parameters()))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("theta", [0.5, 1.0])
def test_implicit_is_the_derivative_of_the_solution(solver, theta):
    layer, x = Mixing(length=3, width=2), inputs(batch=2, length=3, width=2)

    def run(x, *parameters):
        gradient = Implicit(40, Anderson())
        return step(layer, x, theta=theta, solver=SOLVERS[solver], gradient=gradient, iterations=150).value

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()), atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_modes_agree_at_convergence_and_one_step_descends(solver):
    layer, x = Mixing(), inputs()

    def run(gradient):
        value = step(layer, x, solver=SOLVERS[solver], gradient=gradient, iterations=150).value
        return torch.cat([g.flatten() for g in gradients(value, x, layer)])

    exact = run(Unrolled())
    assert relative_error(run(Implicit(100)), exact) < 1e-6
    assert cosine(run(OneStep()), exact) > 0.8


@pytest.mark.parametrize(("solver", "gradient"), PAIRS)
def test_every_pair_has_the_same_value_and_a_gradient(solver, gradient):
    for iterations, theta, guess, tolerance in (
        (1, 1.0, "previous", 0.0),
        (3, 0.5, "explicit", 0.0),
        (4, 1.0, "explicit", 1e-2),
    ):
        layer, x = Mixing(), inputs()
        setting = {"theta": theta, "initial_guess": guess, "tolerance": tolerance, "iterations": iterations}

        def run(gradient, layer=layer, x=x, setting=setting):
            return step(layer, x, solver=SOLVERS[solver], gradient=gradient, **setting).value

        value = run(GRADIENTS[gradient])
        for g in gradients(value, x, layer):
            assert g.isfinite().all()
            assert g.abs().sum() > 0
        with torch.no_grad():
            torch.testing.assert_close(run(GRADIENTS[gradient]), value, rtol=0, atol=1e-14)
        with torch.inference_mode():
            torch.testing.assert_close(run(GRADIENTS[gradient]), value, rtol=0, atol=1e-14)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize(("iterations", "theta"), [(0, 1.0), (0, 0.5), (3, 0.0)])
@pytest.mark.parametrize("vector_field", VECTOR_FIELDS)
def test_where_nothing_is_solved_the_expression_is_differentiated(gradient, iterations, theta, vector_field):
    layer, x = Mixing(), inputs()
    e = VECTOR_FIELDS[vector_field]
    setting = {"vector_field": vector_field, "theta": theta, "step_size": 0.7, "iterations": iterations}
    solution = step(layer, x, solver=FixedPoint(), gradient=GRADIENTS[gradient], **setting)
    expected = x + 0.7 * (layer(x) - e * x)
    torch.testing.assert_close(solution.value, expected)
    torch.testing.assert_close(gradients(solution.value, x, layer), gradients(expected, x, layer))
    if theta == 0:
        assert (solution.residual == 0).all()


@pytest.mark.parametrize(("solver", "gradient"), PAIRS)
def test_callables_that_are_no_modules_get_the_gradients_of_a_module(solver, gradient):
    layer, x = Linear(), inputs()
    setting = {"solver": SOLVERS[solver], "gradient": GRADIENTS[gradient], "iterations": 3, "theta": 0.7}
    expected = gradients(step(layer, x, **setting).value, x, layer)
    matrix = layer.weight.detach().clone().requires_grad_()
    leaf = step(lambda h: h @ matrix.T, x, **setting).value
    torch.testing.assert_close(torch.autograd.grad(leaf, (x, matrix), cotangent(x)), expected)
    half = (layer.weight.detach() / 2).requires_grad_()
    product = 2 * half
    inner = step(lambda h: h @ product.T, x, **setting).value
    grad_x, grad_half = torch.autograd.grad(inner, (x, half), cotangent(x))
    torch.testing.assert_close((grad_x, grad_half / 2), expected)


def test_frozen_layers_build_no_graph():
    layer, x = Mixing().requires_grad_(False), inputs(requires_grad=False)
    assert not step(layer, x, solver=FixedPoint(), gradient=Implicit(), iterations=2).value.requires_grad
    x.requires_grad_()
    step(layer, x, solver=FixedPoint(), gradient=Implicit(), iterations=2).value.sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("theta", [0.5, 1.0])
def test_a_second_derivative_through_implicit_is_refused(theta):
    """By every door: a refusal that hangs on no input is passed by."""
    layer, x = Mixing(), inputs()

    def loss(x):
        options = {"solver": FixedPoint(), "gradient": Implicit(), "iterations": 2, "theta": theta}
        return step(layer, x, **options).value.square().sum()

    (grad,) = torch.autograd.grad(loss(x), x, create_graph=True)
    with pytest.raises(RuntimeError, match="'implicit' has no second derivative"):
        torch.autograd.grad(grad.square().sum(), x, retain_graph=True)
    with pytest.raises(RuntimeError, match="'implicit' has no second derivative"):
        grad.sum().backward()
    with pytest.raises(RuntimeError, match="'implicit' has no second derivative"):
        torch.func.grad(lambda x: torch.func.grad(loss)(x).square().sum())(x.detach())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own
@pytest.mark.parametrize(("solver", "gradient"), [pair for pair in PAIRS if pair[1] != "implicit"])
def test_forward_mode_is_the_transpose_of_reverse_mode(solver, gradient):
    layer, x = Mixing(), inputs().detach()

    def value(x):
        return step(layer, x, solver=SOLVERS[solver], gradient=GRADIENTS[gradient], iterations=2, theta=0.7).value

    u, v = cotangent(x), torch.randn_like(x)
    _, along = torch.func.jvp(value, (x,), (u,))
    _, pullback = torch.func.vjp(value, x)
    torch.testing.assert_close((along * v).sum(), (pullback(v)[0] * u).sum())


def test_a_wider_layer_keeps_its_digits():
    """Under autocast F(y) may be wider than x."""
    layer = Linear()

    def wide(h):
        return layer(h.double())

    x = inputs().detach().bfloat16()
    for guess in INITIAL_GUESSES:
        options = {"solver": FixedPoint(), "gradient": Unrolled(), "iterations": 40, "initial_guess": guess}
        solution = step(wide, x, **options)
        assert solution.value.dtype == torch.float64
        assert solution.residual.max() < 1e-12


# Dropout: one mask a solve.


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("layer_kind", ["module", "callable"])
def test_one_dropout_mask_serves_the_solve_and_its_gradient(solver, layer_kind):
    layer, x = Mixing(dropout=0.3), inputs()
    F = layer if layer_kind == "module" else lambda h: layer(h)

    def run(gradient):
        torch.manual_seed(5)
        solution = step(F, x, solver=SOLVERS[solver], gradient=gradient, iterations=600)
        return solution, torch.cat([g.flatten() for g in gradients(solution.value, x, layer)])

    torch.manual_seed(5)
    layer(x)
    after_one_evaluation = torch.get_rng_state()
    solution, exact = run(Unrolled())
    assert (solution.residual < 1e-6).all()  # a fixed point exists, so the masks did not change
    assert torch.equal(torch.get_rng_state(), after_one_evaluation)
    solution, implicit = run(Implicit(150))
    assert relative_error(implicit, exact) < 1e-4  # the mask of backward is the one of forward
    assert torch.equal(torch.get_rng_state(), after_one_evaluation)  # after backward and statistics, too
    layer.eval()
    assert relative_error(run(Unrolled())[1], exact) > 1e-2


class Noisy(Mixing):
    """Dropout, and noise that is no dropout mask."""

    def forward(self, h):
        return super().forward(h) + 0.1 * torch.randn_like(h)


@pytest.mark.parametrize("context", [torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_masks_within_contexts(context):
    """Dropout that is left on at inference, and autocast: the solve still has a solution."""
    layer, x = Mixing(dropout=0.3), inputs(requires_grad=False)
    with context():
        solution = step(layer, x, solver=FixedPoint(), gradient=Implicit(), iterations=300)
        assert (solution.residual < 1e-2).all()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("guess", INITIAL_GUESSES)
def test_noise_that_is_no_dropout_is_one_too(solver, guess):
    layer, x = Noisy(dropout=0.3), inputs()

    def run(gradient):
        torch.manual_seed(5)
        solution = step(layer, x, solver=SOLVERS[solver], gradient=gradient, iterations=600, initial_guess=guess)
        return solution, torch.cat([g.flatten() for g in gradients(solution.value, x, layer)])

    solution, exact = run(Unrolled())
    assert (solution.residual < 1e-6).all()
    assert relative_error(run(Implicit(150))[1], exact) < 1e-4


@pytest.mark.parametrize("theta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("guess", INITIAL_GUESSES)
def test_the_random_state_left_is_that_of_one_evaluation(theta, guess):
    layer, x = Mixing(dropout=0.3), inputs()
    torch.manual_seed(5)
    layer(x)
    expected = torch.get_rng_state()
    for (solver, gradient), iterations in itertools.product(PAIRS, (0, 1, 3)):
        torch.manual_seed(5)
        setting = {"theta": theta, "initial_guess": guess, "iterations": iterations}
        step(layer, x, solver=SOLVERS[solver], gradient=GRADIENTS[gradient], **setting)
        assert torch.equal(torch.get_rng_state(), expected)


# Checkpointing.


@pytest.mark.parametrize(("solver", "gradient"), PAIRS)
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_recomputes_a_solve_once_and_changes_nothing(solver, gradient, use_reentrant):
    layer, x = Mixing(dropout=0.2), inputs()

    def run(x):
        return step(layer, x, solver=SOLVERS[solver], gradient=GRADIENTS[gradient], iterations=3, theta=0.9).value

    def measure(function):
        layer.evaluations = 0
        layer.zero_grad()
        x.grad = None
        torch.manual_seed(5)
        value = function(x)
        forward = layer.evaluations
        value.backward(cotangent(x))
        backward = layer.evaluations - forward
        return value.detach(), [x.grad, *(p.grad for p in layer.parameters())], forward, backward

    value, grads, forward, backward = measure(run)
    ck_value, ck_grads, ck_forward, ck_backward = measure(lambda x: checkpoint(run, x, use_reentrant=use_reentrant))
    torch.testing.assert_close(ck_value, value, rtol=0, atol=1e-14)  # equal but for the order of sums in products
    torch.testing.assert_close(ck_grads, grads, rtol=1e-12, atol=1e-12)
    kept = gradient == "implicit"  # the evaluation at the value, whose graph backward finds again
    assert forward == 4 + kept
    assert backward == 0
    assert ck_forward == forward - (kept and use_reentrant)  # where no gradient is recorded
    assert ck_backward == forward


def test_a_checkpointed_solve_leaves_no_graph_behind():
    layer, x = Mixing(), inputs()
    seen = []
    hook = layer.dropout.register_forward_hook(lambda module, args, output: seen.append(weakref.ref(output)))

    def run(x):
        return step(layer, x, solver=GradientDescent(), gradient=Unrolled(), iterations=3).value

    value = checkpoint(run, x, use_reentrant=False)
    value.sum().backward()
    hook.remove()
    gc.collect()
    assert len(seen) == 8
    assert not any(ref() is not None for ref in seen)


# Autocast.


class Half(nn.Module):
    """A layer whose product autocast runs in bfloat16."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, h):
        return self.norm(h + torch.tanh(self.linear(h)))


@pytest.mark.parametrize(("solver", "gradient"), PAIRS)
def test_autocast_gradients_are_those_of_float32_to_bfloat16_rounding(solver, gradient):
    torch.manual_seed(0)
    layer, x = Half(), torch.randn(2, 3, 8, requires_grad=True)

    def run():
        value = step(layer, x, solver=SOLVERS[solver], gradient=GRADIENTS[gradient], iterations=2).value
        return torch.cat([g.flatten() for g in gradients(value.float(), x, layer)])

    exact = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        run()  # leaves nothing in autocast's cache that would cut a later gradient
        inside = run()
        value = step(layer, x, solver=SOLVERS[solver], gradient=GRADIENTS[gradient], iterations=2).value.float()
    outside = torch.cat([g.flatten() for g in gradients(value, x, layer)])  # backward after autocast, as Trainer's is
    assert relative_error(inside, exact) < 0.05
    torch.testing.assert_close(outside, inside, rtol=0.05, atol=0.02)
    assert not torch.equal(inside, exact)
