"""Eigenvalues and norms of Jacobians against matrices whose spectrum is known."""

import cmath
import math

import numpy
import pytest
import torch
from tiny import bert_config, lively
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import BertModel

from imbert_hf.evaluation.stability.spectrum import jacobian, jacobian_norm, leading_eigenvalues, stability_function


N = 60


def orthogonal(seed, n=N):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))[0]


def known_spectrum():
    """A matrix, not normal, with eigenvalues 3, 2 e^(+-0.7 i), -1.5, and 56 from -0.8 to 0.8."""
    turn = [[2 * math.cos(0.7), -2 * math.sin(0.7)], [2 * math.sin(0.7), 2 * math.cos(0.7)]]
    blocks = [torch.tensor([[3.0]]), torch.tensor(turn), torch.tensor([[-1.5]])]
    blocks += [torch.diag(torch.linspace(-0.8, 0.8, N - 4))]
    triangle = torch.block_diag(*blocks).double()
    triangle[:4, 4:] = 0.3
    q = orthogonal(0)
    return q @ triangle @ q.T


def linear(matrix):
    return lambda h: (matrix @ h.flatten()).view_as(h)


def bert_layer():
    """F of a small, lively BERT layer, and a point of three tokens; float64."""
    model = lively(BertModel(bert_config(hidden_size=16, intermediate_size=24)).eval()).double()
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 3, 16, dtype=torch.float64, generator=generator)
    return lambda h: model.encoder.layer[0](h), x


def test_eigenvalues_of_a_known_matrix():
    found = leading_eigenvalues(linear(known_spectrum()), torch.zeros(1, 6, 10, dtype=torch.float64), 4, tolerance=1e-9)
    pair = 2 * cmath.exp(0.7j)
    numpy.testing.assert_allclose(found.values, [3, pair, pair.conjugate(), -1.5], atol=1e-7)
    assert found.converged
    assert found.radius == pytest.approx(3)
    assert found.products < 200


def test_eigenvalues_in_float32():
    found = leading_eigenvalues(linear(known_spectrum().float()), torch.zeros(N), 4)
    assert found.radius == pytest.approx(3, rel=1e-3)
    assert found.values[1].imag == pytest.approx(2 * math.sin(0.7), rel=1e-3)


def test_a_rotation_has_a_pair_on_the_unit_circle():
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    found = leading_eigenvalues(linear(turn), torch.ones(2), 2)
    numpy.testing.assert_allclose(found.values, [1j, -1j], atol=1e-6)
    assert leading_eigenvalues(linear(turn), torch.ones(2), 5).values.shape == (2,)


@pytest.mark.parametrize("n", [1, 19, 20, 21, 22, 40])
def test_every_size_gives_the_largest(n):
    values = torch.arange(1, n + 1, dtype=torch.float64)
    found = leading_eigenvalues(lambda h: values * h, torch.zeros(n, dtype=torch.float64), 3, tolerance=1e-8)
    numpy.testing.assert_allclose(found.values, list(range(n, max(n - 3, 0), -1)), rtol=1e-7)


def test_a_search_that_ends_early_says_so():
    close = torch.linspace(0.99, 1, 400, dtype=torch.float64)
    found = leading_eigenvalues(lambda h: close * h, torch.zeros_like(close), 4, tolerance=1e-12, restarts=1)
    assert not found.converged
    assert len(found.values) < 4


def test_norm_of_a_known_matrix():
    u, v = orthogonal(3), orthogonal(4)
    matrix = u @ torch.diag(torch.cat([torch.tensor([5.0, 3.0]), torch.linspace(1, 0, N - 2)]).double()) @ v
    x = torch.zeros(3, 20, dtype=torch.float64)
    found = jacobian_norm(linear(matrix), x, tolerance=1e-10)
    assert found.value == pytest.approx(5, rel=1e-10)
    assert found.converged
    early = jacobian_norm(linear(matrix), x, iterations=2)
    assert not early.converged
    assert (early.iterations, early.value < 5) == (2, True)


def test_a_constant_map_has_norm_zero():
    x = torch.ones(50)
    assert jacobian_norm(lambda h: 0 * h, x).value == 0
    found = leading_eigenvalues(lambda h: 0 * h, x)
    assert (found.radius, found.converged) == (None, False)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # raised by torch.func.jvp, the reference
def test_the_jacobian_of_a_bert_layer():
    F, x = bert_layer()
    with sdpa_kernel(SDPBackend.MATH):
        exact = torch.func.jacrev(F)(x).detach().view(48, 48)
    eigenvalues = sorted(torch.linalg.eigvals(exact).numpy(), key=lambda v: (-round(abs(v), 9), -v.imag))
    found = leading_eigenvalues(F, x, 4, tolerance=1e-10, restarts=500)
    assert found.converged
    numpy.testing.assert_allclose(found.values, eigenvalues[:4], rtol=1e-7)
    norm = jacobian_norm(F, x, tolerance=1e-8, iterations=1000)
    assert norm.value == pytest.approx(torch.linalg.svdvals(exact)[0].item(), rel=1e-8)

    push, pull = jacobian(F, x)
    v = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(push(v).flatten(), exact @ v.flatten())
    torch.testing.assert_close(pull(v).flatten(), exact.T @ v.flatten())
    with sdpa_kernel(SDPBackend.MATH):
        torch.testing.assert_close(push(v), torch.func.jvp(F, (x,), (v,))[1])


def test_the_same_seed_gives_the_same_numbers():
    F, x = bert_layer()
    first, again = (leading_eigenvalues(F, x, 3, seed=7) for _ in range(2))
    assert first.values.tolist() == again.values.tolist()
    assert jacobian_norm(F, x, seed=7) == jacobian_norm(F, x, seed=7)


def test_the_stability_function_by_hand():
    assert stability_function(-1, 1.0) == 1 / 2
    assert stability_function(0.5, 1.0) == 2
    assert stability_function(-3, 0.0) == -2
    assert stability_function(2j, 0.0) == 1 + 2j
    assert stability_function(-2, 0.5) == 0
    numpy.testing.assert_allclose(abs(stability_function(1j * numpy.linspace(-9, 9, 7), 0.5)), 1)
    circle = 1 + numpy.exp(1j * numpy.linspace(0, 6, 7))
    numpy.testing.assert_allclose(abs(stability_function(circle, 1.0)), 1)
    numpy.testing.assert_allclose(abs(stability_function(circle - 2, 0.0)), 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: leading_eigenvalues(lambda h: h, torch.ones(30), 0), "count must be an integer >= 1, got 0"),
        (lambda: jacobian_norm(lambda h: h, torch.ones(30), iterations=0), "iterations must be an integer >= 1, got 0"),
        (lambda: jacobian(lambda h: h, torch.ones(3).half()), "x must be float32 or float64, got torch.float16"),
        (lambda: jacobian(lambda h: h[:2], torch.ones(3)), r"function must keep the shape \(3,\), got \(2,\)"),
        (lambda: jacobian(torch.log, -torch.ones(3)), r"function\(x\) must be finite"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
