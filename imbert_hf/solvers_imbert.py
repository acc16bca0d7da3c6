"""Solvers of the implicit relation of one layer, and the one loop that runs them.

With b and s from the theta method (see gradients_imbert.py) and f(h) = F(h) - e h, where e = 1 is the "increment" and
e = 0 the "layer" field, the relation y = b + s f(y) reads

    c y = b + s F(y),    c = 1 + e s,

its residual r(y) = c y - b - s F(y), and its fixed-point map g(y) = (b + s F(y)) / c, so that r = c (y - g). Everything
below is written in b, s and c, and so serves both fields, and the linear adjoint relation of the implicit gradient too.

A solver is a frozen object that supplies `init` and `step`. The loop owns counting, tolerance, the best iterate and the
check for non-finite values, each per example and over real tokens only, so that no prediction depends on batch-mates or
padding.

This file travels with every checkpoint: it imports torch and the standard library alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor


IM_VERSION = "0.1.0"

# F(y), and where a solver asks for it the map u -> (dF/dy)^T u.
Evaluation = tuple[Tensor, Callable[[Tensor], Tensor] | None]


@dataclass(eq=False)
class Relation:
    """c y = b + s F(y).

    Args:
        b: (batch, length, width), the explicit part.
        s: weight of F.
        c: weight of y.
        mask: (batch, length), True for real tokens; None: all are.
    """

    b: Tensor
    s: float
    c: float
    mask: Tensor | None = None

    def __post_init__(self):
        self._padding = None if self.mask is None else ~self.mask

    def map(self, Fy: Tensor) -> Tensor:
        """g = (b + s F(y)) / c."""
        g = torch.add(self.b, Fy, alpha=self.s)
        return g if self.c == 1 else g.mul_(1 / self.c)

    def real(self, t: Tensor) -> Tensor:
        """`t` (batch, length, width) with zeros for padded tokens."""
        return t if self._padding is None else t.masked_fill(self._padding[..., None], 0)

    def norm(self, t: Tensor) -> Tensor:
        """Euclidean norm per example over real tokens, (batch,), in float32 or the wider dtype of `t`."""
        norms = torch.linalg.vector_norm(t.detach(), dim=-1, dtype=_wide(t))
        if self._padding is not None:
            norms = norms.masked_fill(self._padding, 0)
        return torch.linalg.vector_norm(norms[..., None].flatten(1), dim=1)

    def dots(self, t: Tensor, others: Sequence[Tensor]) -> list[Tensor]:
        """Inner products with each of `others` per example over real tokens, each (batch, 1, 1), wide as in `norm`."""
        t = t.to(_wide(t))
        products = torch.stack([(t * other).sum(dim=-1) for other in others])  # (n, batch, length)
        if self._padding is not None:
            products = products.masked_fill(self._padding, 0)
        sums = products[..., None].flatten(2).sum(dim=2)
        return list(sums[(..., *[None] * (t.dim() - 1))].unbind())

    def relative_residual(self, y: Tensor, Fy: Tensor) -> Tensor:
        """||r(y)|| / ||y|| per example, (batch,); inf where it is not a number."""
        ratio = _ratio(self.c * self.norm(y - self.map(Fy)), self.norm(y))
        return torch.where(ratio.isnan(), torch.inf, ratio)


def _ratio(residual: Tensor, size: Tensor) -> Tensor:
    # No real token at all: 0 / 0, and nothing to solve.
    return residual / size.clamp(min=torch.finfo(size.dtype).tiny)


def _require(ok: bool, what: str, value: Any) -> None:
    if not ok:
        raise ValueError(f"{what}, got {value!r}.")


class Solver(Protocol):
    """What the loop asks of a solver."""

    needs_pullback: bool

    def init(self) -> Any:
        """The state before the first step."""

    def step(self, relation: Relation, y: Tensor, g: Tensor, pullback, state: Any) -> tuple[Tensor, Any]:
        """The next iterate and state from y, g(y) and, where needed, u -> (dF/dy)^T u."""


@dataclass(frozen=True)
class FixedPoint:
    """y <- (1 - damping) y + damping g(y). One evaluation of F a step."""

    damping: float = 1.0
    needs_pullback = False

    def __post_init__(self):
        _require(0 < self.damping <= 1, "damping must be a number > 0 and <= 1", self.damping)

    def init(self) -> None:
        return None

    def step(self, relation, y, g, pullback, state):
        return _damped(y, g, self.damping), None


@dataclass(frozen=True)
class GradientDescent:
    """y <- y - learning_rate (dr/dy)^T r, descent on ||r||^2 / 2, the method of the IM-BERT paper.

    One evaluation of F and one vector-Jacobian product a step. The residual of padded tokens is left out: it would push
    real ones.
    """

    learning_rate: float = 0.02
    needs_pullback = True

    def __post_init__(self):
        _require(0 < self.learning_rate < float("inf"), "learning_rate must be a finite number > 0", self.learning_rate)

    def init(self) -> None:
        return None

    def step(self, relation, y, g, pullback, state):
        r = relation.real(y - g) * relation.c
        descent = relation.c * r - relation.s * pullback(r)
        return y - self.learning_rate * descent, None


@dataclass(frozen=True)
class Anderson:
    """Anderson acceleration of g (type II; Walker and Ni, SIAM J. Numer. Anal. 2011).

    Keeps the last `memory` differences of iterates and of d(y) = g(y) - y, and steps to the mixture whose d is smallest
    in the least-squares sense, found per example. One evaluation of F a step.
    """

    damping: float = 1.0
    memory: int = 3
    needs_pullback = False

    def __post_init__(self):
        _require(0 < self.damping <= 1, "damping must be a number > 0 and <= 1", self.damping)
        _require(isinstance(self.memory, int) and self.memory >= 1, "memory must be an integer >= 1", self.memory)

    def init(self) -> None:
        return None

    def step(self, relation, y, g, pullback, state):
        d, z = g - y, _damped(y, g, self.damping)
        if state is None:
            size = relation.norm(y)
            rounding = (torch.finfo(y.dtype).eps * size).square().clamp(min=torch.finfo(size.dtype).tiny)
            return z, (d, z, [], [], [], rounding.view([-1] + [1] * (y.dim() - 1)))
        d_previous, z_previous, history, A, rhs, rounding = state
        dd, dz = d - d_previous, z - z_previous
        if len(history) == self.memory:
            history, A, rhs = history[1:], [row[1:] for row in A[1:]], rhs[1:]
        *column, size, new = relation.dots(dd, [*(other for other, _ in history), dd, d])
        history = [*history, (dd, dz)]
        A = [[*row, product] for row, product in zip(A, column, strict=True)]
        # Raised, so that nearly parallel differences do not blow up, and mere rounding errors get no weight.
        A.append([*column, torch.add(rounding, size, alpha=1 + torch.finfo(size.dtype).eps ** 0.5)])
        # <dd_i, d> = <dd_i, d_previous> + <dd_i, dd>
        rhs = [*(old + product for old, product in zip(rhs, column, strict=True)), new]
        y_next = z
        for weight, (_, dz) in zip(_eliminate(A, rhs), history, strict=True):
            y_next = torch.addcmul(y_next, weight.to(y.dtype), dz, value=-1)
        return y_next, (d, z, history, A, rhs, rounding)


def _damped(y: Tensor, g: Tensor, damping: float) -> Tensor:
    return g if damping == 1 else torch.lerp(y, g, damping)


def _wide(t: Tensor) -> torch.dtype:
    return torch.promote_types(t.dtype, torch.float32)


def _eliminate(A: list[list[Tensor]], rhs: list[Tensor]) -> list[Tensor]:
    """w with A w = rhs, A symmetric and positive definite, whose entries are tensors: a system an example.

    Gauss's elimination, written out since the systems are tiny: differentiable, and without the host synchronisation of
    a library solve.
    """
    A, w, n = [row[:] for row in A], rhs[:], len(rhs)
    for i in range(n):
        for j in range(i + 1, n):
            factor = A[i][j] / A[i][i]
            for k in range(j, n):
                A[j][k] = torch.addcmul(A[j][k], factor, A[i][k], value=-1)
            w[j] = torch.addcmul(w[j], factor, w[i], value=-1)
    for i in reversed(range(n)):
        for j in range(i + 1, n):
            w[i] = torch.addcmul(w[i], A[i][j], w[j], value=-1)
        w[i] = w[i] / A[i][i]
    return w


@dataclass(frozen=True, eq=False)
class Solution:
    """What a solve returns.

    value: (batch, length, width), the solution, differentiable as the gradient mode says.
    num_steps: (batch,) int64, iterations made; for an example that converged or failed, those behind its `value`.
    finite: (batch,) bool, False where an iterate was not finite and `value` is the best one before it.
    residual: (batch,), the relative residual ||r|| / ||y|| of `value`, at least float32; inf where it is not a number.
        Where the solve did not need it, reading it costs one evaluation of F, once.
    converged: (batch,) bool, residual <= tolerance, or 1e-2 where the tolerance is 0.
    """

    value: Tensor
    num_steps: Tensor
    finite: Tensor
    tolerance: float
    measure: Callable[[], Tensor]

    @cached_property
    def residual(self) -> Tensor:
        with torch.no_grad():
            return self.measure()

    @property
    def converged(self) -> Tensor:
        return self.residual <= (self.tolerance or 1e-2)


def solve(
    relation: Relation,
    evaluate: Callable[[Tensor, bool, Tensor | None], Evaluation],
    solver: Solver,
    y: Tensor,
    first: Evaluation | None,
    iterations: int,
    tolerance: float,
) -> Solution:
    """Runs `solver` from `y` for at most `iterations` steps.

    evaluate(y, last, rows) returns F(y) and the pullback; `last` marks the evaluation that no other will follow, which
    only tolerance 0 can tell; `rows`, where there is a tolerance, are the examples that are looked at: nothing depends
    on what is returned for the others. `first` is the evaluation at the guess, where there is one already.

    Tolerance 0: F is evaluated `iterations` times, nothing is read on the host, and the last iterate is returned.
    Tolerance > 0: an example stops at the first iterate whose relative residual is within it, or keeps the best of all
    iterates, the last one included; the loop ends when every example has stopped, but in a compiled or exported graph,
    which reads nothing on the host: there it goes on to the end, with the same result.
    In both an example with a non-finite iterate keeps its finite evaluated iterate of least residual.
    """
    shape = [-1] + [1] * (y.dim() - 1)
    steps = torch.full(y.shape[:1], iterations, device=y.device)
    size = relation.norm(y)
    moving = size < torch.inf  # and no NaN
    best, best_steps = y, torch.zeros_like(steps)
    best_residual = torch.full_like(size, torch.inf)
    state, rows = solver.init(), None
    for k in range(iterations + (tolerance > 0)):
        last = tolerance == 0 and k == iterations - 1
        Fy, pullback = evaluate(y, last, rows) if first is None else first
        first = None
        g = relation.map(Fy)
        residual = _ratio(relation.c * relation.norm(y - g), size)
        better = (residual < best_residual) & moving
        best = torch.where(better.view(shape), y if tolerance > 0 else y.detach(), best)
        best_steps = torch.where(better, k, best_steps)
        best_residual = torch.where(better, residual, best_residual)
        if tolerance > 0:
            moving = moving & (best_residual > tolerance)
            if k == iterations:
                break
            if not torch.compiler.is_compiling():
                rows = moving.nonzero()[:, 0]
                if len(rows) == 0:
                    break
        y, state = solver.step(relation, y, g, pullback, state)
        del Fy, pullback, g  # and the graph behind them, before the next evaluation
        size = relation.norm(y)
        moving = moving & (size < torch.inf)
        # An example that stopped or failed stays at its best iterate: no later one can come back from a failure, in
        # value or gradient.
        y = torch.where(moving.view(shape), y, best)

    if tolerance > 0:
        reached = best_residual <= tolerance
        steps = torch.where(moving, steps, best_steps)
        return Solution(best, steps, moving | reached, tolerance, lambda: best_residual)

    def measure() -> Tensor:
        return relation.relative_residual(y.detach(), evaluate(y.detach(), False, None)[0])

    return Solution(y, torch.where(moving, steps, best_steps), moving, tolerance, measure)
