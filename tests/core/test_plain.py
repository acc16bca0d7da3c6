"""implicit_step against the mathematics written as plainly as can be, over random settings; float64.

The plain solve knows of no shared evaluation, kept dropout mask, released graph or running inner product.
"""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import Mixing, inputs, step
from torch.autograd import grad

from imbert_hf import Anderson, FixedPoint, GradientDescent, Implicit, OneStep, Unrolled
from imbert_hf.solvers_imbert import VECTOR_FIELDS


SETTINGS = st.fixed_dictionaries(
    {
        "vector_field": st.sampled_from(["increment", "layer"]),
        "theta": st.sampled_from([0.3, 0.5, 1.0]),
        "step_size": st.sampled_from([0.4, 1.0]),
        "initial_guess": st.sampled_from(["explicit", "previous"]),
        "iterations": st.integers(1, 5),
        "tolerance": st.sampled_from([0.0, 1e-3, 0.1]),
    }
)
SOLVERS = st.one_of(
    st.builds(FixedPoint, st.sampled_from([0.7, 1.0])),
    st.builds(Anderson, st.sampled_from([0.7, 1.0]), st.integers(1, 3)),
    st.builds(GradientDescent, st.sampled_from([0.05, 0.1])),
)
MASKS = st.sampled_from([None, [[1, 1, 1, 1], [1, 1, 1, 0], [0, 1, 1, 0]]])


class Plain:
    """F with the masks of one seed, and the relation y = x + gamma [(1 - theta) f(x) + theta f(y)] around it."""

    def __init__(self, layer, x, mask, vector_field, theta, step_size):
        self.layer, self.x, self.e = layer, x, VECTOR_FIELDS[vector_field]
        self.theta, self.gamma = theta, step_size
        self.real = torch.ones(x.shape[:2], dtype=x.dtype) if mask is None else mask.to(x.dtype)

    def F(self, h):
        torch.manual_seed(5)
        return self.layer(h)

    def f(self, h):
        return self.F(h) - self.e * h

    def residual(self, y):
        return y - self.x - self.gamma * ((1 - self.theta) * self.f(self.x) + self.theta * self.f(y))

    def map(self, y):
        """The g of y = g(y): the relation solved for the y outside of F."""
        s = self.gamma * self.theta
        return y - self.residual(y) / (1 + self.e * s)

    def guess(self, name):
        return self.x.view_as(self.x) if name == "previous" else self.x + self.gamma * self.f(self.x)

    def relative(self, y):
        def size(t):
            return (t * self.real[..., None]).flatten(1).norm(dim=1)

        return size(self.residual(y)) / size(y)

    def iterates(self, solver, y, n):
        """The guess and n iterates."""
        ys = [y]
        for _ in range(n):
            y, g = ys[-1], self.map(ys[-1])
            if isinstance(solver, GradientDescent):
                half = (self.residual(y) * self.real[..., None]).square().sum() / 2
                (slope,) = grad(half, y, create_graph=True)
                y = y - solver.learning_rate * slope
            else:
                y = y + solver.damping * (g - y)
                history = getattr(solver, "memory", 0)
                for_mixing = range(max(0, len(ys) - 1 - history), len(ys) - 1)
                if for_mixing:
                    d = [self.map(u) - u for u in ys]
                    dd = torch.stack([(d[i + 1] - d[i]) for i in for_mixing], dim=-1)
                    dy = torch.stack([(ys[i + 1] - ys[i]) for i in for_mixing], dim=-1)
                    D = (dd * self.real[..., None, None]).flatten(1, 2)
                    target = (d[-1] * self.real[..., None]).flatten(1)[..., None]
                    w = torch.linalg.solve(D.mT @ D, D.mT @ target)[:, None]
                    y = y - ((dy + solver.damping * dd) @ w)[..., 0]
            ys.append(y)
        return ys

    def solve(self, solver, guess, iterations, tolerance):
        """The value for tolerance 0: the last iterate; else an example's first within it, or its best."""
        ys = self.iterates(solver, guess, iterations)
        if not tolerance:
            return ys[-1]
        residuals = torch.stack([self.relative(y).detach() for y in ys])
        within = residuals <= tolerance
        chosen = torch.where(within.any(dim=0), within.int().argmax(dim=0), residuals.argmin(dim=0))
        return torch.stack([ys[k][i] for i, k in enumerate(chosen.tolist())])


def setup(setting, mask, dropout):
    layer, x = Mixing(dropout=dropout), inputs()
    mask = None if mask is None else torch.tensor(mask)
    names = ("vector_field", "theta", "step_size")
    plain = Plain(layer, x, mask, **{name: setting[name] for name in names})

    def run(**kwargs):
        torch.manual_seed(5)
        return step(layer, x, mask=mask, **setting, **kwargs)

    return layer, x, plain, run


def cotangent(x, plain):
    """On real tokens: what is returned for the others is nobody's."""
    v = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(9))
    return v * plain.real[..., None]


def check(actual, expected, solver):
    # Anderson's weights differ by the raised diagonal of its systems, and what amplifies that.
    tolerance = 1e-4 if isinstance(solver, Anderson) else 1e-9
    scale = max(t.abs().max().item() for t in expected)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * scale)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(SETTINGS, SOLVERS, MASKS, st.sampled_from([0.0, 0.3]))
def test_value_and_unrolled_gradient(setting, solver, mask, dropout):
    layer, x, plain, run = setup(setting, mask, dropout)
    guess = plain.guess(setting["initial_guess"])
    expected = plain.solve(solver, guess, setting["iterations"], setting["tolerance"])
    solution = run(solver=solver, gradient=Unrolled())
    real = plain.real[..., None]
    check([solution.value * real], [expected * real], solver)
    check([solution.residual], [plain.relative(solution.value).detach()], FixedPoint())
    for gradient in (Implicit(), OneStep()):  # the same value, up to the order of sums
        torch.testing.assert_close(run(solver=solver, gradient=gradient).value, solution.value)
    with torch.no_grad():
        torch.testing.assert_close(run(solver=solver, gradient=Unrolled()).value, solution.value)
    v = cotangent(x, plain)
    parameters = (x, *layer.parameters())
    check(grad(solution.value, parameters, v), grad(expected, parameters, v), solver)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SETTINGS, SOLVERS, MASKS, st.sampled_from([0.0, 0.3]), st.integers(0, 4))
def test_implicit_gradient_is_a_neumann_sum(setting, solver, mask, dropout, products):
    layer, x, plain, run = setup(setting, mask, dropout)
    solution = run(solver=solver, gradient=Implicit(products, FixedPoint()))
    v = cotangent(x, plain)
    y = solution.value.detach().requires_grad_()
    g = plain.map(y)
    w = (1 + plain.e * plain.gamma * plain.theta) * v
    for _ in range(products):
        w = v + grad(g, y, w, retain_graph=True)[0]
    parameters = (x, *layer.parameters())
    expected = grad(g, parameters, w)  # y held: by the implicit function theorem w is the cotangent of g
    check(grad(solution.value, parameters, v), expected, FixedPoint())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SETTINGS, SOLVERS, MASKS, st.sampled_from([0.0, 0.3]))
def test_one_step_gradient_is_that_of_one_evaluation(setting, solver, mask, dropout):
    layer, x, plain, run = setup({**setting, "tolerance": 0.0}, mask, dropout)
    solution = run(solver=solver, gradient=OneStep())
    with torch.enable_grad():
        ys = plain.iterates(solver, plain.guess(setting["initial_guess"]), setting["iterations"])
    c, s = 1 + plain.e * plain.gamma * plain.theta, plain.gamma * plain.theta
    # The last evaluation, in which y moves with x / c and parameters are seen by c v.
    y = ys[-2].detach() + (x - x.detach()) / c
    b = x + plain.gamma * (1 - plain.theta) * plain.f(x)
    v = cotangent(x, plain)
    parameters = (x, *layer.parameters())
    check(grad(solution.value, parameters, v), grad(b / c + s * plain.F(y), parameters, v), solver)


def test_the_plain_solve_is_exact_where_it_can_be_checked():
    """The judge is judged: on a contraction its iterates meet, and the residual of their limit vanishes."""
    layer, x = Mixing(), inputs(requires_grad=False)
    plain = Plain(layer, x, None, "increment", 1.0, 1.0)
    with torch.no_grad():
        a = plain.iterates(FixedPoint(), x, 60)[-1]
        b = plain.iterates(Anderson(memory=3), x, 12)[-1]
    assert plain.relative(a).max() < 1e-10
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert plain.relative(x).min() > 1e-2
