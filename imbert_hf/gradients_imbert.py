"""The ways to differentiate an implicit step.

In the letters of solvers_imbert.py the step solves c y = b + s F(y). By the implicit function theorem a cotangent v of
y reaches b as w / c, and F(y), for the parameters, as (s / c) w, where

    (I - (s / c) dF/dy)^T w = v.

This file travels with every checkpoint: it imports torch, the standard library and its sisters alone.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import get_gradient_edge

from .evaluations_imbert import FixedMap, Held, functional, in_vmap, nowhere, product_of, with_pullback
from .solvers_imbert import Anderson, Relation, Solution, Solver, iterate, require, solve, solve_to


@dataclass
class Problem:
    """One solve, as the gradient modes see it."""

    F: FixedMap
    x: Tensor
    relation: Relation
    solver: Solver
    guess: Tensor
    iterations: int
    tolerance: float

    def evaluate(self, y: Tensor, last: bool = False, rows: Tensor | None = None) -> tuple[Tensor, Any]:
        """F(y) and where the solver needs it u -> (dF/dy)^T u, by `rows` (n,) alone where that is the same."""
        F = self.F
        # Not where others would draw their masks, nor within a graph.
        if rows is None or len(rows) == len(y) or F.random or torch.is_grad_enabled() or not F.selects:
            return with_pullback(F, y) if self.solver.needs_pullback else (F(y), None)
        Fy, pullback = replace(self, F=F.select(rows)).evaluate(y[rows])

        def whole(t: Tensor) -> Tensor:
            return y.index_copy(0, rows, t.to(y.dtype))

        return whole(Fy), None if pullback is None else lambda u: whole(pullback(u[rows]))

    def solve(self, evaluate: Callable | None = None) -> Solution:
        evaluate = self.evaluate if evaluate is None else evaluate  # no `or`: torch 2.11 compiles none of a function
        problem = (self.relation, evaluate, self.solver, self.guess, self.iterations)
        if not self.tolerance:
            return solve(*problem)
        return solve_to(*problem, self.tolerance, on_host=not (functional() or torch.jit.is_tracing()))


@dataclass(frozen=True)
class Unrolled:
    """Differentiates through every iteration, as the paper does. Memory grows with the iterations.

    With gradient_descent this differentiates F twice, which fused attention kernels do not support.
    """

    unrolled, products = True, False

    def solve(self, problem):
        held = Held()
        with held(problem.solver.needs_pullback):
            solution = problem.solve()
        held.release()
        return solution


@dataclass(frozen=True)
class Implicit:
    """Implicit function theorem at the value returned: solves (I - (s / c) dF/dy)^T w = v in backward, from w = c v.

    Costs one evaluation of F at the value, whose graph is kept, and `iterations` vector-Jacobian products and one for
    the parameters in backward; memory does not grow with the iterations of either solve. The layer, its mode, hooks and
    adapters are those of the forward. A second derivative through it is refused.

    Args:
        iterations: vector-Jacobian products of the adjoint solve; None: the iterations of the forward solve.
        solver: FixedPoint or Anderson, for the adjoint solve.
    """

    iterations: int | None = None
    solver: Solver = field(default_factory=Anderson)
    unrolled, products = False, True

    def __post_init__(self):
        ok = self.iterations is None or (isinstance(self.iterations, int) and self.iterations >= 0)
        require(ok, "iterations must be an integer >= 0 or None", self.iterations)
        ok = not self.solver.needs_pullback
        require(ok, "solver must be FixedPoint or Anderson for the adjoint relation", self.solver)

    def solve(self, problem):
        if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
            raise RuntimeError("The gradient mode 'implicit' has no forward mode; 'unrolled' and 'one_step' have.")
        with torch.no_grad():
            solution = problem.solve()
        relation, F, value = problem.relation, problem.F, solution.value
        s, c, padding, b = relation.s, relation.c, relation.padding, relation.b
        iterations = problem.iterations if self.iterations is None else self.iterations
        if functional():  # where no graph is at hand: F is evaluated again, which a compiler sees and shares
            Fy = F(value)
            products: Any = _refused if in_vmap() else partial(_by_transform, F, value)
        else:
            held, leaf = Held(), value.detach().requires_grad_()
            leaf.register_post_accumulate_grad_hook(_drop_grad)
            with held():
                Fy = F(leaf)
            held.release()
            reported = [weakref.ref(t) for t in getattr(F.layer, "reported", ())]
            edges = (get_gradient_edge(Fy), get_gradient_edge(leaf)) if Fy.requires_grad else ()
            products = partial(_by_graph, *edges, held, reported) if edges else lambda: nowhere

        def cotangents(v):
            # An overflow shows as in any backward pass: loss scaling of float16 relies on it.
            product = products()
            adjoint = Relation(v, s / c, 1.0, padding)
            w = iterate(adjoint, lambda w, last: (product(w), None), self.solver, c * v, iterations)
            return w / c, s / c * w

        found, value = Fy.detach(), _HandedOnce.apply(value, cotangents, b, Fy)
        return replace(solution, value=value, measure=lambda y: relation.relative_residual(y, found))


def _drop_grad(leaf: Tensor) -> None:
    leaf.grad = None


class _Handed(torch.autograd.Function):
    """`value`, whose cotangent v is handed to the carriers as cotangents(v)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value, cotangents, *carriers):
        return value.clone()  # what a user changes in place is not what F was evaluated at

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.cotangents = inputs[1]

    @staticmethod
    def backward(ctx, v):
        return None, None, *ctx.cotangents(v)


class _HandedOnce(_Handed):
    @staticmethod
    def backward(ctx, v):
        with torch.no_grad():
            found = ctx.cotangents(v)
        # Not once_differentiable, whose refusal hangs on no input: autograd.grad and torch.func would pass it by.
        return None, None, *(_Twice.apply(t, v) if torch.is_grad_enabled() else t for t in found)


class _Twice(torch.autograd.Function):
    """`t`, made of v, where a graph of that is recorded: its derivative is refused."""

    generate_vmap_rule = True

    @staticmethod
    def forward(t, v):
        return t.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, _):
        raise RuntimeError("The gradient mode 'implicit' has no second derivative; 'unrolled' and 'one_step' have.")


def _carry(value: Tensor, weights: tuple[float, ...], *carriers: Tensor) -> Tensor:
    """`value`, whose cotangent is handed to each of `carriers`, times its weight."""
    if functional():  # forward mode goes through no function of ours; there the zeros added cost little
        moved = [weight * (t - t.detach()) for weight, t in zip(weights, carriers, strict=True)]
        return sum(moved, value.detach())
    return _Handed.apply(value, lambda v: [weight * v for weight in weights], *carriers)


def _by_graph(Fy: Any, leaf: Any, held: Held, reported: list) -> Callable[[Tensor], Tensor]:
    """u -> (dF/dy)^T u by the graph that the forward kept, from F(y) to its leaf y."""
    held.restore()

    def product(u):
        # It hands cotangents to tensors that retain their gradient too: attentions, where they are returned.
        grads = [(t, t.grad) for t in (ref() for ref in reported) if t is not None and t.retains_grad]
        found = product_of(Fy, leaf, u, retain_graph=True)
        for t, grad in grads:
            t.grad = grad
        return found

    return product


def _by_transform(F: FixedMap, y: Tensor) -> Callable[[Tensor], Tensor]:
    """u -> (dF/dy)^T u by torch.func."""
    _, pullback, *_ = torch.func.vjp(F, y)
    return lambda u: pullback(u)[0]


def _refused() -> Any:
    raise RuntimeError(
        "The gradient mode 'implicit' has no derivative through torch.func.vmap; 'unrolled' and 'one_step' have, and "
        "vmap of torch.func.grad."
    )


@dataclass(frozen=True)
class OneStep:
    """Differentiates one evaluation of F, the last of the solve, in which y moves with x: the cheapest mode.

    It cuts the adjoint solve short: F's parameters see its start w = c v, the input sees w after one product,
    dy/dx := (I + s dF/dy) / c. Not the gradient, but a descent direction of about its length; with y held fixed,
    attention would hand no gradient from one token to another.
    """

    unrolled, products = False, False

    def solve(self, problem):
        relation, F, x, held = problem.relation, problem.F, problem.x, Held()
        s, c, inside = relation.s, relation.c, problem.solver.needs_pullback
        tracked: Any = None
        finite: Any = None

        def evaluate(y, last, rows=None):
            nonlocal tracked, finite
            if not last:
                return problem.evaluate(y, last, rows)
            finite = relation.finite(y)
            y = torch.where(finite, y, problem.guess)  # what such an example returns, and is to be differentiated at
            with torch.enable_grad(), held(inside):
                moving = _carry(y, (1 / c,), x)
                tracked, pullback = with_pullback(F, moving, keep=True) if inside else (F(moving), None)
            return tracked.detach(), pullback

        with torch.no_grad():
            solution = problem.solve(evaluate)
        held.release()
        value, solved = solution.value, solution.solved
        if tracked is None:
            tracked = F(_carry(value, (1 / c,), x))
        else:
            value, solved = torch.where(finite, value, problem.guess), solved & finite
        value = _carry(value, (1 / c, s), relation.b, tracked)
        return replace(solution, value=value, solved=solved)


Gradient = Unrolled | Implicit | OneStep
