"""The solvers against exact solutions, and the one loop: counts, tolerance, best iterate, failure."""

import itertools
import math

import pytest
import torch
from problems import Linear, Mixing, inputs, relative_error, step
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from imbert_hf import Anderson, FixedPoint, GradientDescent, Implicit, OneStep, Unrolled
from imbert_hf.solvers_imbert import VECTOR_FIELDS, Relation, _eliminate
from imbert_hf.step_imbert import INITIAL_GUESSES


SOLVERS = {
    "fixed_point": (FixedPoint(), 150),
    "anderson": (Anderson(), 30),
    "gradient_descent": (GradientDescent(0.15), 300),
}
PLAIN = {"solver": FixedPoint(), "gradient": Implicit(), "iterations": 3}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("vector_field", VECTOR_FIELDS)
def test_linear_relation_is_solved_exactly(solver, vector_field):
    layer, x = Linear(), inputs()
    solver, iterations = SOLVERS[solver]
    for theta, step_size, guess in itertools.product((0.0, 0.3, 0.5, 1.0), (0.5, 1.0), INITIAL_GUESSES):
        setting = {"vector_field": vector_field, "theta": theta, "step_size": step_size}
        solution = step(
            layer, x, solver=solver, gradient=Implicit(), iterations=iterations, initial_guess=guess, **setting
        )
        torch.testing.assert_close(solution.value, layer.exact(x, **setting), rtol=1e-11, atol=1e-11)
        assert solution.converged.all()
        assert (solution.residual < 1e-10).all()


@pytest.mark.parametrize("memory", [1, 3, 5])
def test_anderson_on_a_linear_relation_is_as_good_as_its_memory(memory):
    # With a memory as large as the dimension it solves an n-dimensional linear problem in n + 1 steps (Walker and Ni).
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(3, 3, bias=False, dtype=torch.float64)
    layer.weight.data = torch.diag(torch.tensor([-3.0, 0.5, 0.9], dtype=torch.float64))
    x = torch.randn(1, 1, 3, dtype=torch.float64, generator=generator)
    solution = step(layer, x, solver=Anderson(memory=memory), gradient=Implicit(), iterations=5)
    assert (solution.residual.item() < 1e-6) == (memory >= 3)


def test_elimination_matches_the_library_per_example():
    D = torch.randn(4, 5, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    A, rhs = D[:, :4] @ D[:, :4].mT, D[:, :4] @ D[:, 4, :, None]
    entries = [[A[:, i, j] for j in range(4)] for i in range(4)]
    found = _eliminate(entries, list(rhs[..., 0].unbind(dim=1)))
    torch.testing.assert_close(torch.stack(found, dim=1), torch.linalg.solve(A, rhs)[..., 0])


@pytest.mark.parametrize("memory", [1, 2, 3, 5])
def test_anderson_by_the_library(memory):
    """A few steps against least squares by the library on differences of the iterates."""
    layer, x = Mixing(), inputs(requires_grad=False)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]])
    real = mask[..., None].double()
    with torch.no_grad():
        ys, gs = [x], [(x + layer(x)) / 2]
        for k in range(6):
            d, y = [g - y for y, g in zip(ys, gs, strict=True)], gs[-1]
            if k:
                dd = torch.stack([(d[i + 1] - d[i]) * real for i in range(k)][-memory:], dim=-1).flatten(1, 2)
                dg = torch.stack([gs[i + 1] - gs[i] for i in range(k)][-memory:], dim=-1)
                w = torch.linalg.lstsq(dd, (d[-1] * real).flatten(1)[..., None]).solution[..., 0]
                y = y - (dg * w[:, None, None]).sum(dim=-1)
            ys.append(y)
            gs.append((x + layer(y)) / 2)
        setting = {"solver": Anderson(memory=memory), "gradient": Implicit(), "initial_guess": "previous", "mask": mask}
        for k in range(1, 6):
            value = step(layer, x, iterations=k, **setting).value
            torch.testing.assert_close(value, ys[k], rtol=1e-5, atol=1e-6)


def test_parallel_differences_do_not_blow_up():
    relation = Relation(torch.zeros(1, 2, 3, dtype=torch.float64), 1.0, 1.0)
    solver, y = Anderson(), torch.ones(1, 2, 3, dtype=torch.float64)
    state = None
    for k in range(5):
        y_next, state = solver.step(relation, y - 0.5**k, y - 0.5**k / 2, None, state)
    assert (y_next - y).abs().max() < 1e-3  # and the mixture finds the limit


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_differences_at_the_size_of_rounding_errors_get_little_weight(dtype):
    """A step from a converged iterate stays there, whatever its last digits say."""
    generator = torch.Generator().manual_seed(0)
    y = 1 + torch.rand(3, 4, 5, dtype=torch.float64, generator=generator)
    relation = Relation(torch.zeros(3, 4, 5, dtype=dtype), 1.0, 1.0)
    solver, eps = Anderson(), torch.finfo(dtype).eps
    state = None
    for _ in range(6):
        noise = eps * torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=generator)
        y_next, state = solver.step(relation, (y + noise[0]).to(dtype), (y + noise[1]).to(dtype), None, state)
    assert ((y_next.double() - y).abs() / y).max() < 8 * eps


@pytest.mark.parametrize(("theta", "order"), [(0.0, 1), (0.5, 2), (1.0, 1)])
def test_observed_order_by_halving_the_step(theta, order):
    # y' = f(y) = A y from 0 to 1 in n steps; the error falls by 2^order when n doubles.
    layer, x = Linear(scale=0.4), inputs(batch=1)
    exact = x @ torch.matrix_exp(layer.weight.T - torch.eye(5, dtype=x.dtype))

    def error(n):
        y = x
        for _ in range(n):
            y = step(
                layer, y, step_size=1 / n, theta=theta, solver=Anderson(), gradient=Implicit(), iterations=20
            ).value
        return relative_error(y, exact)

    assert math.log2(error(16) / error(32)) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("solver", [Anderson(memory=1), GradientDescent(0.002)])
def test_stiff_decay_is_damped_where_the_explicit_step_and_the_plain_map_blow_up(solver):
    # f(y) = -20 y: explicit Euler multiplies by 1 - 20 = -19, implicit Euler by 1 / 21; |dg/dy| = 20 / 1 > 1.
    class Stiff(nn.Module):
        def forward(self, h):
            return -20 * h

    x = torch.ones(1, 1, 1, dtype=torch.float64)
    setting = {"vector_field": "layer", "gradient": Implicit()}
    assert step(Stiff(), x, theta=0.0, solver=solver, iterations=0, **setting).value.item() == -19
    assert step(Stiff(), x, solver=solver, iterations=30, **setting).value.item() == pytest.approx(1 / 21, rel=1e-6)
    plain = step(Stiff(), x, solver=FixedPoint(), iterations=30, **setting)
    assert plain.value.abs().item() > 1e6
    assert not plain.converged.any()


@pytest.mark.parametrize("gradient", [Unrolled(), Implicit(), OneStep()])
@pytest.mark.parametrize("solver", [FixedPoint(), Anderson(), GradientDescent()])
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("kind", ["module", "callable"])
def test_evaluations_are_exactly_counted(solver, gradient, requires_grad, kind):
    x = inputs(requires_grad=requires_grad)
    for iterations, guess, theta in itertools.product((0, 1, 2, 5), INITIAL_GUESSES, (1.0, 0.5)):
        layer = Mixing().requires_grad_(requires_grad)
        F = layer if kind == "module" else lambda h, layer=layer: layer(h)
        solution = step(F, x, solver=solver, gradient=gradient, iterations=iterations, initial_guess=guess, theta=theta)
        shared = guess == "previous" and theta == 1  # F(x) is the first iteration's
        expected = max(iterations, 1) if shared else iterations + 1
        expected += shared and iterations > 0 and not requires_grad  # tells that nothing has a gradient
        kept = gradient == Implicit() and iterations > 0 and requires_grad  # the evaluation at the value returned
        assert layer.evaluations == expected + kept
        assert (solution.num_steps == iterations).all()
        _ = solution.residual, solution.residual, solution.converged
        assert layer.evaluations == expected + 1  # the residual of the value returned, once, on request
        if requires_grad:
            solution.value.sum().backward()
            assert layer.evaluations == expected + 1


def test_pullbacks_are_counted(monkeypatch):
    calls = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append(1) or grad(*a, **k))
    for guess in INITIAL_GUESSES:
        calls.clear()
        gradient = Implicit(5)
        value = step(Mixing(), inputs(), solver=GradientDescent(), gradient=gradient, iterations=4, initial_guess=guess)
        assert len(calls) == 4
        value.value.sum().backward()
        assert len(calls) == 4 + 5


class _NoHostRead(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        reads = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        assert func not in reads, "a tensor was read on the host"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("solver", [FixedPoint(), Anderson(), GradientDescent()])
def test_tolerance_0_reads_nothing_on_the_host(solver):
    with _NoHostRead():
        step(Mixing(), inputs(), solver=solver, gradient=Implicit(), iterations=4).value.sum().backward()
    with pytest.raises(AssertionError, match="read on the host"), _NoHostRead():
        step(Mixing(), inputs(), solver=solver, gradient=Implicit(), iterations=4, tolerance=1e-3)


@pytest.mark.parametrize("solver", [FixedPoint(), Anderson(), GradientDescent(0.2)])
def test_tolerance_stops_each_example_by_itself(solver):
    layer, x = Mixing(), inputs(batch=4, requires_grad=False)
    x = x * torch.tensor([0.1, 1.0, 3.0, 10.0], dtype=x.dtype).view(-1, 1, 1)
    setting = {"solver": solver, "gradient": Implicit(), "iterations": 50, "tolerance": 1e-3}
    together = step(layer, x, **setting)
    assert together.converged.all()
    assert len(set(together.num_steps.tolist())) > 1
    for i in range(4):
        alone = step(layer, x[i : i + 1], **setting)
        torch.testing.assert_close(alone.value[0], together.value[i], rtol=1e-12, atol=1e-12)
        assert alone.num_steps.item() == together.num_steps[i].item()
        if alone.num_steps > 0:  # and not a step later than needed
            fewer = step(layer, x[i : i + 1], **{**setting, "tolerance": 0.0, "iterations": alone.num_steps.item() - 1})
            assert fewer.residual.item() > 1e-3


def test_tolerance_not_reached_keeps_the_best_iterate():
    solutions = [
        step(Linear(scale=1.5), inputs(), solver=FixedPoint(), gradient=Implicit(), iterations=k) for k in range(9)
    ]
    residuals = torch.stack([s.residual for s in solutions])
    assert (residuals.argmin(0) < 8).any()  # this iteration diverges for some example
    layer = Linear(scale=1.5)
    best = step(layer, inputs(), solver=FixedPoint(), gradient=Implicit(), iterations=8, tolerance=1e-12)
    torch.testing.assert_close(best.residual, residuals.min(0).values)
    assert (best.num_steps == 8).all()
    assert not best.converged.any()


class Rows(nn.Module):
    """F(h) = a h with an a for each row, so that rows converge, or diverge, at their own pace."""

    selects, training = True, False

    def __init__(self, a):
        super().__init__()
        self.a, self.evaluated = torch.tensor(a, dtype=torch.float64).view(-1, 1, 1), []
        self.train(False)

    def select(self, rows):
        part = Rows(self.a[rows].flatten().tolist())
        part.evaluated = self.evaluated
        return part

    def forward(self, h):
        self.evaluated.append(len(h))
        return self.a * h


@pytest.mark.parametrize("solver", [FixedPoint(), GradientDescent(0.2)])
def test_rows_that_stopped_are_left_alone(solver):
    """With s > 1 whatever stands in for their F(y) would drive them out of range."""
    layer, x = Rows([0.0, 0.05, 0.5]), torch.ones(3, 2, 2, dtype=torch.float64)
    setting = {"vector_field": "layer", "step_size": 10.0, "tolerance": 1e-6, "iterations": 1000}
    with torch.no_grad():
        solution = step(layer, x, solver=solver, gradient=Implicit(), **setting)
    assert solution.finite[:2].all()
    assert solution.converged[:2].all()
    torch.testing.assert_close(solution.value[0], x[0])
    torch.testing.assert_close(solution.value[1], 2 * x[1], rtol=1e-5, atol=0)
    assert not solution.finite[2]
    assert set(layer.evaluated) > {1, 3}


@pytest.mark.parametrize("solver", [FixedPoint(), Anderson(), GradientDescent()])
@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
def test_an_empty_batch(solver, tolerance):
    layer, x = Mixing(), inputs(batch=3)[:0]
    mask = torch.ones(x.shape[:2])
    solution = step(layer, x, solver=solver, gradient=Implicit(), iterations=3, tolerance=tolerance, mask=mask)
    assert (solution.value.shape, solution.num_steps.shape, solution.residual.shape) == ((0, 4, 5), (0,), (0,))


class Exploding(nn.Module):
    """F(h) = h^3: from |h| > 1 the layer field's map leaves float range within a few iterations."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, h):
        return self.weight * h**3


@pytest.mark.parametrize("gradient", [Unrolled(), Implicit(2), OneStep()])
@pytest.mark.parametrize("solver", [FixedPoint(), GradientDescent(1.0)])
@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
def test_divergence_keeps_the_best_finite_iterate_and_says_so(solver, gradient, tolerance):
    layer = Exploding()
    x = torch.tensor([0.01, 50.0, 0.02], dtype=torch.float64).view(3, 1, 1).requires_grad_()
    setting = {"solver": solver, "gradient": gradient, "vector_field": "layer", "tolerance": tolerance}
    solution = step(layer, x, iterations=12, **setting)
    assert solution.value.isfinite().all()
    assert solution.finite.tolist() == [True, False, True]
    assert solution.converged.tolist() == [True, False, True]
    # The guess; with a tolerance the least residual among the iterates that were evaluated.
    residuals = [step(layer, x[1:2], iterations=k, **{**setting, "tolerance": 0.0}).residual.item() for k in range(4)]
    kept = residuals.index(min(residuals)) if tolerance else 0
    assert solution.residual[1].item() == pytest.approx(residuals[kept])
    assert solution.num_steps[1].item() == kept
    # The others are untouched by their neighbour, in value and gradient.
    quiet = step(layer, x[::2], iterations=12, **setting)
    torch.testing.assert_close(quiet.value, solution.value[::2])
    expected = torch.autograd.grad(quiet.value.sum(), x)[0]
    actual, weight = torch.autograd.grad(solution.value[::2].sum(), (x, layer.weight))
    torch.testing.assert_close(actual[::2], expected[::2])
    # Unrolled differentiates F where it overflowed, and 0 * inf is not a number: loud, as with a NaN in BERT.
    assert weight.isfinite() or gradient == Unrolled()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_input_is_flagged_and_stays_alone(bad):
    layer, x = Mixing(), inputs(requires_grad=False)
    clean = step(layer, x, **PLAIN)
    spoilt = x.clone()
    spoilt[1, 0, 0] = bad
    solution = step(layer, spoilt, **PLAIN)
    assert solution.finite.tolist() == [True, False, True]
    assert solution.converged[1].item() is False
    assert solution.residual[1].item() == float("inf")
    torch.testing.assert_close(solution.value[::2], clean.value[::2], rtol=0, atol=0)


@pytest.mark.parametrize("solver", [FixedPoint(), Anderson()])
def test_the_residual_counts_real_tokens_only(solver):
    # F acts token by token, so tokens do not see each other: padded ones may hold anything.
    layer, x = Linear(), inputs(requires_grad=False)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]])
    noisy = torch.where(mask.bool()[..., None], x, 1e6)
    setting = {**PLAIN, "solver": solver, "iterations": 4, "mask": mask}
    clean, loud = step(layer, x, **setting), step(layer, noisy, **setting)
    torch.testing.assert_close(clean.residual, loud.residual)
    torch.testing.assert_close(clean.value[mask.bool()], loud.value[mask.bool()])
    y, relation_r = clean.value[0, :2], (2 * clean.value - x - layer(clean.value))[0, :2]
    assert clean.residual[0].item() == pytest.approx((relation_r.norm() / y.norm()).item())


def test_wrong_options_of_solvers_and_gradients():
    for make, message in (
        (lambda: FixedPoint(0.0), "damping must be a number > 0 and <= 1, got 0.0"),
        (lambda: Anderson(damping=math.nan), "damping must be"),
        (lambda: Anderson(memory=0), "memory must be an integer >= 1, got 0"),
        (lambda: GradientDescent(-1.0), "learning_rate must be a finite number > 0, got -1.0"),
        (lambda: Implicit(-1), "iterations must be an integer >= 0 or None, got -1"),
        (lambda: Implicit(3, GradientDescent()), "solver must be FixedPoint or Anderson"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_no_real_token_is_nothing_to_solve():
    solution = step(Mixing(), inputs(), mask=torch.zeros(3, 4), **PLAIN)
    assert solution.converged.all()
    assert (solution.residual == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vector_field": "euler"}, r"vector_field must be one of \['increment', 'layer'\], got 'euler'"),
        ({"initial_guess": "zero"}, r"initial_guess must be one of \['explicit', 'previous'\], got 'zero'"),
        ({"step_size": 0.0}, "step_size must be a finite number > 0, got 0.0"),
        ({"step_size": math.inf}, "step_size must be a finite number > 0, got inf"),
        ({"theta": 1.5}, "theta must be a number from 0 to 1, got 1.5"),
        ({"theta": math.nan}, "theta must be"),
        ({"iterations": -1}, "iterations must be an integer >= 0, got -1"),
        ({"iterations": 2.5}, "iterations must be an integer >= 0, got 2.5"),
        ({"tolerance": -1.0}, "tolerance must be a finite number >= 0, got -1.0"),
        ({"mask": torch.ones(3, 5)}, r"mask must have the shape \(3, 4\)"),
    ],
)
def test_wrong_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        step(Linear(), inputs(), **{**PLAIN, **change})
    with pytest.raises(ValueError, match="x must be a floating point tensor"):
        step(Linear(), torch.ones(2, 3, 5, dtype=torch.int64), **PLAIN)
