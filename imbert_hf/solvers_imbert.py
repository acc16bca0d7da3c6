"""The implicit relation of one layer, its solvers, and the loops that run them.

The theta method with step size gamma, for the input x and the output y of a layer F,

    y = x + gamma [ (1 - theta) f(x) + theta f(y) ],    f(h) = F(h) - e h,

where e = 1 is the "increment" and e = 0 the "layer" field, is

    c y = b + s F(y),    b = x + gamma (1 - theta) f(x),    s = gamma theta,    c = 1 + e s,

with the residual r(y) = c y - b - s F(y) and the fixed-point map g(y) = (b + s F(y)) / c, so that r = c (y - g).
Everything below is written in b, s and c, and so serves both fields, and the linear adjoint relation of the implicit
gradient too. A solver is a frozen object: its `step` makes the next iterate and state from y, g(y) and, if it needs
that, u -> (dF/dy)^T u; the first state is None. A loop owns counting, tolerance and the check for non-finite values,
each per example and over real tokens only, so that no prediction depends on batch-mates or padding.

This file travels with every checkpoint: it imports torch and the standard library alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


# e of f(h) = F(h) - e h
VECTOR_FIELDS = {"increment": 1.0, "layer": 0.0}


def require(ok: bool, what: str, value: Any) -> None:
    if not ok:
        raise ValueError(f"{what}, got {value!r}.")


@dataclass(frozen=True)
class ThetaMethod:
    """y = x + gamma [(1 - theta) f(x) + theta f(y)], f(h) = F(h) - e h.

    Args:
        theta: 0 explicit Euler to 1 implicit Euler.
        step_size: gamma > 0.
        vector_field: "increment", f(h) = F(h) - h, or "layer", f(h) = F(h).
    """

    theta: float = 1.0
    step_size: float = 1.0
    vector_field: str = "increment"

    def __post_init__(self):
        fields = list(VECTOR_FIELDS)
        require(0 <= self.theta <= 1, "theta must be a number from 0 to 1", self.theta)
        require(0 < self.step_size < float("inf"), "step_size must be a finite number > 0", self.step_size)
        require(self.vector_field in fields, f"vector_field must be one of {fields}", self.vector_field)

    @property
    def carry(self) -> float:
        """e."""
        return VECTOR_FIELDS[self.vector_field]

    @property
    def weights(self) -> tuple[float, float]:
        """s and c of c y = b + s F(y)."""
        s = self.step_size * self.theta
        return s, 1 + self.carry * s

    def euler(self, x: Tensor, Fx: Tensor, a: float) -> Tensor:
        """x + a f(x); with "increment" and a = 1 it is F(x) itself."""
        kept = 1 - self.carry * a
        if kept == 0 and a == 1:
            return Fx
        return torch.add(x if kept == 1 else x * kept, Fx, alpha=a)


class Relation:
    """c y = b + s F(y). What it measures of an example has the shape (batch, 1, 1), to scale what it was measured of.

    Args:
        b: (batch, length, width), the explicit part.
        s: weight of F.
        c: weight of y, 1 or 1 + s.
        padding: (batch, length, 1), True for padded tokens; None: there are none.
    """

    def __init__(self, b: Tensor, s: float, c: float, padding: Tensor | None = None):
        self.b, self.s, self.c, self.padding = b, s, c, padding
        self._inner = tuple(range(1 - b.dim(), 0))  # all dimensions but the batch's

    def map(self, Fy: Tensor) -> Tensor:
        """g = (b + s F(y)) / c."""
        if self.c == 1:
            return torch.add(self.b, Fy, alpha=self.s)
        b = self.b
        if b.dtype != Fy.dtype:  # under autocast
            kind = torch.promote_types(b.dtype, Fy.dtype)
            b, Fy = b.to(kind), Fy.to(kind)
        return torch.lerp(b, Fy, self.s / self.c)

    def real(self, t: Tensor) -> Tensor:
        """`t` with zeros for padded tokens."""
        return t if self.padding is None else t.masked_fill(self.padding, 0)

    def total(self, t: Tensor) -> Tensor:
        """Sums (..., batch, length, width) over real tokens, at least in float32."""
        return self.real(t).sum(self._inner, keepdim=True, dtype=wide(t))

    def norm(self, t: Tensor) -> Tensor:
        """Euclidean norm over real tokens, at least in float32."""
        return torch.linalg.vector_norm(self.real(t), dim=self._inner, keepdim=True, dtype=wide(t))

    def finite(self, t: Tensor) -> Tensor:
        """bool: whether the norm is a finite number."""
        return self.norm(t.detach()) < torch.inf

    def relative_residual(self, y: Tensor, Fy: Tensor) -> Tensor:
        """||r(y)|| / ||y||, without a gradient; inf where it is not a number."""
        y = y.detach()
        size = self.norm(y)
        # With no real token at all it is 0 / 0, and nothing to solve.
        ratio = self.c * self.norm(y - self.map(Fy).detach()) / size.clamp(min=torch.finfo(size.dtype).tiny)
        return torch.where(ratio.isnan(), torch.inf, ratio)


@dataclass(frozen=True)
class FixedPoint:
    """y <- (1 - damping) y + damping g(y). One evaluation of F a step."""

    damping: float = 1.0
    needs_pullback = False

    def __post_init__(self):
        require(0 < self.damping <= 1, "damping must be a number > 0 and <= 1", self.damping)

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
        require(0 < self.learning_rate < float("inf"), "learning_rate must be a finite number > 0", self.learning_rate)

    def step(self, relation, y, g, pullback, state):
        d = relation.real(y - g)  # r = c d, dr/dy = c - s dF/dy
        slope = torch.sub(d * relation.c, pullback(d), alpha=relation.s)
        return y - slope * (self.learning_rate * relation.c), None


class _Past(NamedTuple):
    """What Anderson keeps: the last d and z, the differences of both, and their normal equations A w = rhs."""

    d: Tensor
    z: Tensor
    differences: tuple[tuple[Tensor, Tensor], ...] = ()
    A: tuple[tuple[Tensor, ...], ...] = ()  # the lower triangle, each (batch, 1, 1)
    rhs: tuple[Tensor, ...] = ()
    floor: Tensor | None = None  # of A's diagonal


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
        require(0 < self.damping <= 1, "damping must be a number > 0 and <= 1", self.damping)
        require(isinstance(self.memory, int) and self.memory >= 1, "memory must be an integer >= 1", self.memory)

    def step(self, relation, y, g, pullback, state):
        d, z = g - y, _damped(y, g, self.damping)
        if state is None:
            return z, _Past(d, z)
        differences, A, rhs, floor = state.differences, state.A, state.rhs, state.floor
        if len(differences) == self.memory:
            differences, A, rhs = differences[1:], tuple(row[1:] for row in A[1:]), rhs[1:]
        dd, dz = d - state.d, z - state.z
        others = torch.stack([*(other for other, _ in differences), dd, d])
        *column, size, new = relation.total(others * dd.to(wide(dd))).unbind()  # the inner products with dd
        if floor is None:
            scale = relation.total(y.detach().to(size.dtype).square()) * torch.finfo(y.dtype).eps ** 2
            floor = scale.clamp(min=torch.finfo(size.dtype).tiny)
        # Raised, so that nearly parallel differences do not blow up, and mere rounding errors get no weight.
        raised = torch.add(floor, size, alpha=1 + torch.finfo(size.dtype).eps ** 0.5)
        # <dd_i, d> = <dd_i, d_previous> + <dd_i, dd>
        rhs = (*(old + product for old, product in zip(rhs, column, strict=True)), new)
        differences, A = (*differences, (dd, dz)), (*A, (*column, raised))
        y_next = z
        for weight, (_, dz) in zip(_eliminate(A, rhs), differences, strict=True):
            y_next = torch.addcmul(y_next, weight.to(y.dtype), dz, value=-1)
        return y_next, _Past(d, z, differences, A, rhs, floor)


Solver = FixedPoint | GradientDescent | Anderson


def _damped(y: Tensor, g: Tensor, damping: float) -> Tensor:
    return g if damping == 1 else torch.lerp(y, g, damping)


def wide(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def _eliminate(lower: Sequence[Sequence[Tensor]], rhs: Sequence[Tensor]) -> list[Tensor]:
    """w with A w = rhs, A symmetric and positive definite, given by its lower triangle of tensors: a system an example.

    Gauss's elimination, written out since the systems are tiny: differentiable, and without the host synchronisation of
    a library solve.
    """
    n, w = len(rhs), list(rhs)
    U = [[lower[j][i] for j in range(i, n)] for i in range(n)]  # U[i][j - i] is A[i][j], j >= i
    for i in range(n):
        for j in range(i + 1, n):
            factor = U[i][j - i] / U[i][0]
            U[j] = [torch.addcmul(U[j][k - j], factor, U[i][k - i], value=-1) for k in range(j, n)]
            w[j] = torch.addcmul(w[j], factor, w[i], value=-1)
    for i in reversed(range(n)):
        for j in range(i + 1, n):
            w[i] = torch.addcmul(w[i], U[i][j - i], w[j], value=-1)
        w[i] = w[i] / U[i][0]
    return w


@dataclass(eq=False)
class Solution:
    """What a solve returns.

    value: (batch, length, width), the solution, differentiable as the gradient mode says.
    guess: (batch, length, width), where the solve began.
    num_steps: (batch,) int64, iterations behind `value`.
    finite: (batch,) bool, False where an iterate was not finite and `value` is one before it.
    residual: (batch,), the relative residual ||r|| / ||y|| of `value`, at least float32; inf where it is not a number.
        Where the solve did not need it, reading it costs one evaluation of F, once.
    converged: (batch,) bool, residual <= tolerance, or 1e-2 where the tolerance is 0.
    """

    value: Tensor
    steps: Tensor | int
    solved: Tensor | None  # (batch, 1, 1), finite; None: nothing was solved
    tolerance: float
    measure: Callable[[Tensor], Tensor]  # of the value
    guess: Tensor | None = None

    @property
    def residual(self) -> Tensor:
        if "_residual" not in self.__dict__:
            with torch.no_grad():
                self._residual = self.measure(self.value.detach()).flatten()
        return self._residual

    @property
    def converged(self) -> Tensor:
        return self.residual <= (self.tolerance or 1e-2)

    @property
    def num_steps(self) -> Tensor:
        if isinstance(self.steps, Tensor):
            return self.steps.flatten()
        return torch.where(self.finite, self.steps, 0)

    @property
    def finite(self) -> Tensor:
        return self.value.detach().flatten(1).isfinite().all(1) if self.solved is None else self.solved.flatten()


def iterate(relation: Relation, evaluate, solver: Solver, y: Tensor, iterations: int) -> Tensor:
    """`iterations` steps of `solver` from `y`: nothing else is computed, nothing read on the host.

    evaluate(y, last) returns F(y) and, where the solver needs it, u -> (dF/dy)^T u; `last` marks the last evaluation.
    """
    state = None
    for k in range(iterations):
        Fy, pullback = evaluate(y, k == iterations - 1)
        g = relation.map(Fy)
        del Fy
        y, state = solver.step(relation, y, g, pullback, state)
        del g, pullback  # and the graph behind them, before the next evaluation
    return y


def solve(relation: Relation, evaluate, solver: Solver, guess: Tensor, iterations: int) -> Solution:
    """The last of `iterations` iterates; the guess for an example where that is not finite."""
    y = iterate(relation, evaluate, solver, guess, iterations)
    solved = relation.finite(y)
    value = torch.where(solved, y, guess)
    return Solution(value, iterations, solved, 0.0, lambda y: relation.relative_residual(y, evaluate(y, False)[0]))


def solve_to(
    relation: Relation, evaluate, solver: Solver, y: Tensor, iterations: int, tolerance: float, on_host: bool
) -> Solution:
    """Stops each example at its first iterate with a relative residual within `tolerance`, or keeps its best one.

    evaluate(y, False, rows) as in `iterate`; nothing depends on what is returned for examples that are not among
    `rows`, their indices (n,). The loop ends when every example has stopped; with `on_host` False, as a recorded graph
    needs it, at the end of the iterations, with the same result. An example with a non-finite iterate keeps its best
    one before it: no later one can come back from a failure, in value or gradient.
    """
    best, state, rows, moving = y, None, None, relation.finite(y)
    best_residual = torch.full_like(moving, torch.inf, dtype=wide(y))
    best_steps = torch.zeros_like(moving, dtype=torch.int64)
    for k in range(iterations + 1):
        Fy, pullback = evaluate(y, False, rows)
        residual = relation.relative_residual(y, Fy)
        better = (residual < best_residual) & moving
        best = torch.where(better, y, best)
        best_steps = torch.where(better, k, best_steps)
        best_residual = torch.where(better, residual, best_residual)
        moving = moving & (best_residual > tolerance)
        if k == iterations:
            break
        if on_host:
            rows = moving.flatten().nonzero()[:, 0]
            if len(rows) == 0:
                break
        g = relation.map(Fy)
        y, state = solver.step(relation, y, g, pullback, state)
        del Fy, pullback, g
        moving = moving & relation.finite(y)
        y = torch.where(moving, y, best)
    steps = torch.where(moving, iterations, best_steps)
    return Solution(best, steps, moving | (best_residual <= tolerance), tolerance, lambda y: best_residual)
