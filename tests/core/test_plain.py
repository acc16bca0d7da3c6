"""implicit_step against the mathematics written as plainly as can be, over random settings; float64.

The plain solve knows of no shared evaluation, kept dropout mask, released graph or running inner product.
"""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import Mixing, Plain, check, inputs, step
from torch.autograd import grad

from imbert_hf import Anderson, FixedPoint, GradientDescent, Implicit, OneStep, Unrolled


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
    expected = plain.one_step(ys[-2])
    v = cotangent(x, plain)
    parameters = (x, *layer.parameters())
    check(grad(solution.value, parameters, v), grad(expected, parameters, v), solver)


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
