"""Spectrum of the Jacobian J = dF/dh of a map h -> F(h), from its products with vectors alone.

J of a BERT layer on one sentence is square, tokens x hidden on a side: too large to write down, cheap to multiply. The
leading eigenvalues, complex ones too, come from the implicitly restarted Arnoldi method (ARPACK, through scipy), the
norm from the power iteration on J^T J.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigs
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from imbert_hf.evaluation.report import at_least


Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Eigenvalues:
    """Leading eigenvalues of a Jacobian.

    Attributes:
        values: (found,) complex128, the largest in magnitude first, of a conjugate pair the one above the real axis.
        products: Jacobian-vector products made.
        converged: whether all that were asked for were found; else `values` holds those that were, maybe none.
    """

    values: numpy.ndarray
    products: int
    converged: bool

    @property
    def radius(self) -> float | None:
        """The spectral radius, max |lambda|; None where no eigenvalue was found."""
        return float(abs(self.values[0])) if len(self.values) else None


@dataclass(frozen=True)
class Norm:
    """The largest singular value of a Jacobian.

    Attributes:
        value: ||J v|| for the last v, never above the norm but by rounding.
        iterations: products with J, and as many with J^T.
        converged: whether the relative residual of J^T J v = value^2 v came down to the tolerance.
    """

    value: float
    iterations: int
    converged: bool


def jacobian(function: Map, x: Tensor) -> tuple[Map, Map]:
    """The products v -> J v and u -> J^T u with J = dF/dh at x; each costs about two evaluations of F.

    J^T u is linear in u, so that its own transposed product is J v: exact as forward mode is, and four times as fast on
    a BERT layer, where F is not evaluated again. Both need attention's math kernel: the fused ones have neither forward
    mode nor second derivatives.

    Args:
        function: F, h -> F(h) of the shape of h, without random parts.
        x: of any shape; float32 or float64, in which the products are made.

    Raises:
        ValueError: F changes the shape, another dtype, or a value of F(x) that is not finite.
    """
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x must be float32 or float64, got {x.dtype}.")
    x = x.detach()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        Fx, pullback, *_ = torch.func.vjp(function, x)
        if Fx.shape != x.shape:
            raise ValueError(f"function must keep the shape {tuple(x.shape)}, got {tuple(Fx.shape)}.")
        if not Fx.isfinite().all():
            raise ValueError("function(x) must be finite, got a value that is not.")
        _, pushforward, *_ = torch.func.vjp(lambda u: pullback(u)[0], torch.zeros_like(x))
    return lambda v: pushforward(v)[0], lambda u: pullback(u)[0]


def leading_eigenvalues(
    function: Map, x: Tensor, count: int = 6, *, tolerance: float = 1e-3, restarts: int = 30, seed: int = 0
) -> Eigenvalues:
    """The eigenvalues of largest magnitude of J = dF/dh at x.

    Args:
        function, x: as `jacobian` takes them.
        count: how many, >= 1; fewer than x has elements are returned where there are not as many.
        tolerance: of ARPACK, relative residual of an eigenpair.
        restarts: of the Arnoldi method, at most.
        seed: of the random start vector.

    Raises:
        ValueError: count < 1, and what `jacobian` raises.
    """
    at_least(1, count=count)
    push, _ = jacobian(function, x)
    n, basis = x.numel(), max(2 * count + 1, 20)
    products = 0

    def matvec(v: numpy.ndarray) -> numpy.ndarray:
        nonlocal products
        products += 1
        with torch.no_grad():
            return push(torch.from_numpy(v).to(x).view_as(x)).flatten().cpu().numpy()

    converged = True
    if n <= basis:  # ARPACK wants room; so small a matrix is written down
        values = numpy.linalg.eigvals(numpy.stack([matvec(column) for column in numpy.eye(n)], axis=1))
    else:
        start = _start(x, seed).flatten().cpu().numpy()
        operator = LinearOperator((n, n), matvec=matvec, dtype=start.dtype)
        try:
            values = eigs(
                operator, count, v0=start, ncv=basis, maxiter=restarts, tol=tolerance, return_eigenvectors=False
            )
        except ArpackNoConvergence as error:
            values, converged = error.eigenvalues, False
        except ArpackError:  # such as a Jacobian of zeros, which leaves no direction to go on with
            values, converged = numpy.zeros(0), False
    values = values.astype(numpy.complex128)
    order = numpy.lexsort((-values.imag, -abs(values).round(12)))
    return Eigenvalues(values[order][:count], products, converged)


def jacobian_norm(function: Map, x: Tensor, *, tolerance: float = 1e-2, iterations: int = 100, seed: int = 0) -> Norm:
    """||J||, the largest singular value of J = dF/dh at x, by the power iteration v <- J^T J v / ||J^T J v||.

    A relative residual rho of J^T J v = sigma^2 v says that sigma is within about rho / 2, relative, of a singular
    value, which is the largest but where v started nearly at right angles to it.

    Args:
        function, x: as `jacobian` takes them.
        tolerance: relative residual to stop at.
        iterations: at most, >= 1.
        seed: of the random start vector.

    Raises:
        ValueError: iterations < 1, and what `jacobian` raises.
    """
    at_least(1, iterations=iterations)
    push, pull = jacobian(function, x)
    v = _start(x, seed)
    sigma = 0.0
    with torch.no_grad():
        for k in range(1, iterations + 1):
            v = v / v.norm()
            image = push(v)
            back = pull(image)
            sigma = image.norm().item()
            if sigma == 0 or (back - sigma**2 * v).norm().item() <= tolerance * sigma**2:
                return Norm(sigma, k, True)
            v = back
    return Norm(sigma, iterations, False)


def _start(x: Tensor, seed: int) -> Tensor:
    return torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(seed)).to(x.device)


def stability_function(z: Any, theta: float) -> Any:
    """R(z) = (1 + (1 - theta) z) / (1 - theta z), by which the theta method multiplies y in one step of y' = lambda y.

    z, complex or an array of such, is the step size times lambda; the step is stable where |R(z)| <= 1. theta 0 is
    explicit Euler, stable in the unit disc around -1; 1/2 the trapezoidal rule, stable in the left half-plane; 1
    implicit Euler, stable outside the unit disc around 1: it damps what decays or turns fast, but what grows slowly,
    a small z right of 0, it makes grow more than explicit Euler does, up to the pole at 1.
    """
    return (1 + (1 - theta) * z) / (1 - theta * z)
