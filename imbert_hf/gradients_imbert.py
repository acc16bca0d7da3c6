"""The implicit step of one layer, and the ways to differentiate it.

The theta method with step size gamma, for the input x and the output y of a layer F,

    y = x + gamma [ (1 - theta) f(x) + theta f(y) ],    f(h) = F(h) - e h,

is c y = b + s F(y) with b = x + gamma (1 - theta) f(x), s = gamma theta and c = 1 + e s (see solvers_imbert.py). By the
implicit function theorem a cotangent v of y reaches b as w / c, and F's parameters through (s / c) w, where

    (I - (s / c) dF/dy)^T w = v.

This file travels with every checkpoint: it imports torch, the standard library and its sisters alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .fixed_map_imbert import (
    FixedMap,
    check_layer,
    evaluation,
    leaves_of,
    refuse_sharded_parts,
    saved_tensor_hooks_active,
)
from .solvers_imbert import Anderson, Evaluation, Relation, Solution, Solver, solve


IM_VERSION = "0.1.0"

# e of f(h) = F(h) - e h
CARRY = {"increment": 1.0, "layer": 0.0}
INITIAL_GUESSES = ("explicit", "previous")


class _Carry(torch.autograd.Function):
    """`value`, with the gradient handed to each of `carriers`, times its weight."""

    @staticmethod
    def forward(ctx, value, weights, *carriers):
        ctx.weights = weights
        return value.detach()

    @staticmethod
    def backward(ctx, v):
        return None, None, *(weight * v for weight in ctx.weights)


@dataclass
class _Problem:
    """One solve, as the gradient modes see it."""

    F: FixedMap
    x: Tensor
    relation: Relation
    solver: Solver
    guess: Tensor | None  # this and the next until the solve takes them: they are not held beside later iterates
    first: Evaluation | None  # at the guess, where there is one
    iterations: int
    tolerance: float
    parameters: tuple[Tensor, ...]  # what F depends on beside its input; known where the gradient mode asks for it

    def evaluate(self, y: Tensor, last: bool = False, rows: Tensor | None = None) -> Evaluation:
        if rows is None or len(rows) == len(y) or not self.F.selects:
            return evaluation(self.F, y, self.solver.needs_pullback)
        Fy, pullback = evaluation(self.F.select(rows), y[rows], self.solver.needs_pullback)

        def whole(part: Tensor) -> Tensor:
            return y.index_copy(0, rows, part.to(y.dtype))

        return whole(Fy), None if pullback is None else lambda u: whole(pullback(u[rows]))

    def solve(self, evaluate: Callable[[Tensor, bool, Tensor | None], Evaluation]) -> Solution:
        take = self._take
        return solve(
            self.relation, evaluate, self.solver, take("guess"), take("first"), self.iterations, self.tolerance
        )

    def _take(self, name: str) -> Any:
        value = getattr(self, name)
        setattr(self, name, None)
        return value


class Gradient(Protocol):
    """What implicit_step asks of a gradient mode."""

    unrolled: bool  # whether every iteration is part of the graph
    needs_parameters: bool  # whether it asks for _Problem.parameters

    def solve(self, problem: _Problem) -> Solution:
        """The solution, differentiable. Called in grad mode only."""


@dataclass(frozen=True)
class Unrolled:
    """Differentiates through every iteration, as the paper does. Memory grows with the iterations.

    With gradient_descent this differentiates F twice, which fused attention kernels do not support.
    """

    unrolled = True
    needs_parameters = False

    def solve(self, problem):
        return problem.solve(problem.evaluate)


@dataclass(frozen=True)
class Implicit:
    """Implicit function theorem at the value returned: solves (I - (s / c) dF/dy)^T w = v in backward, from w = c v.

    Costs one re-evaluation of F, `iterations` vector-Jacobian products and one for the parameters; memory does not grow
    with the iterations of either solve. A second derivative through it is refused.

    Args:
        iterations: vector-Jacobian products of the adjoint solve; None: the iterations of the forward solve.
        solver: FixedPoint or Anderson, for the adjoint solve.
    """

    iterations: int | None = None
    solver: Solver = Anderson()  # noqa: RUF009 - frozen
    unrolled = False
    needs_parameters = True

    def __post_init__(self):
        if self.iterations is not None and not (isinstance(self.iterations, int) and self.iterations >= 0):
            raise ValueError(f"iterations must be an integer >= 0 or None, got {self.iterations!r}.")
        if self.solver.needs_pullback:
            raise ValueError(f"solver must be FixedPoint or Anderson for the adjoint relation, got {self.solver!r}.")

    def solve(self, problem):
        with torch.no_grad():
            solution = problem.solve(problem.evaluate)
        if saved_tensor_hooks_active():
            problem.F.masks = None  # a checkpoint, which will solve anew, is not to hold them
        iterations = problem.iterations if self.iterations is None else self.iterations
        b, s, c, mask = (getattr(problem.relation, name) for name in ("b", "s", "c", "mask"))
        solve_adjoint = partial(_solve_adjoint, s, c, mask, self.solver, iterations)
        if torch.compiler.is_compiling():
            # torch.autograd.grad, which goes on to the parameters, would break the graph. They have their gradient from
            # an evaluation here, which the compiler shares with the one in backward.
            carriers: tuple[Tensor, ...] = (problem.F(solution.value),)
            adjoint = partial(_adjoint_in_graph, problem.F, s, c, solve_adjoint)
        else:
            carriers = problem.parameters
            adjoint = partial(_adjoint, problem.F, carriers, s, c, solve_adjoint)
        value = _ImplicitGradient.apply(solution.value, b, adjoint, *carriers)
        return replace(solution, value=value)


def _solve_adjoint(s, c, mask, solver, iterations, pullback, v) -> Tensor:
    """w of (I - (s / c) dF/dy)^T w = v, where `pullback` is u -> (dF/dy)^T u."""

    def evaluate(w, last, rows):
        return pullback(w), None

    solution = solve(Relation(v, s / c, 1.0, mask), evaluate, solver, c * v, None, iterations, tolerance=0.0)
    # An overflow shows as in any backward pass: loss scaling of float16 relies on it.
    finite = solution.finite.view([-1] + [1] * (v.dim() - 1))
    return torch.where(finite, solution.value, torch.nan)


def _adjoint(F, parameters, s, c, solve_adjoint, y, v) -> tuple[Tensor | None, ...]:
    """Gradients of b and of the parameters from the cotangent v of the solution y."""
    F.drop_masks = True
    with torch.enable_grad():
        leaf = y.detach().requires_grad_()
        Fy = F(leaf)

    def pullback(u):
        return torch.autograd.grad(Fy, leaf, u, retain_graph=True, materialize_grads=True)[0]

    w = solve_adjoint(pullback, v)
    if not parameters:
        return (w / c,)
    grads = torch.autograd.grad(Fy, parameters, (s / c) * w, retain_graph=True, allow_unused=True)
    if all(grad is None for grad in grads):
        raise RuntimeError(
            "The layer's parameters were replaced between forward and backward, as torch.func.functional_call does; "
            "use the gradient mode 'unrolled' or 'one_step' there."
        )
    return w / c, *grads


def _adjoint_in_graph(F, s, c, solve_adjoint, y, v) -> tuple[Tensor | None, ...]:
    """Gradients of b and of F(y) from the cotangent v of the solution y."""
    _, pullback, *_ = torch.func.vjp(F, y)
    w = solve_adjoint(lambda u: pullback(u)[0], v)
    return w / c, (s / c) * w


class _ImplicitGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, b, adjoint, *carriers):
        ctx.save_for_backward(value)
        ctx.adjoint = adjoint  # holds the parameters: checkpointing would hand saved ones back as detached copies
        return value.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, v):
        grad_b, *grads = ctx.adjoint(*ctx.saved_tensors, v)
        return None, grad_b, None, *grads


@dataclass(frozen=True)
class OneStep:
    """Differentiates one evaluation of F, the last of the solve, in which y moves with x: the cheapest mode.

    It cuts the adjoint solve short: F's parameters see its start w = c v, the input sees w after one product,
    dy/dx := (I + s dF/dy) / c. Not the gradient, but a descent direction of about its length; with y held fixed,
    attention would hand no gradient from one token to another.
    """

    unrolled = False
    needs_parameters = False

    def solve(self, problem):
        relation = problem.relation
        along = (1 / relation.c,)
        # With the guess "previous" and theta < 1 the one evaluation of a single iteration is F(x), tracked already.
        single = problem.first is not None and problem.iterations == 1 and problem.tolerance == 0
        tracked = problem.first[0] if single else None

        def evaluate(y, last, rows):
            nonlocal tracked
            if not last:
                return problem.evaluate(y, last, rows)
            with torch.enable_grad():
                moving = _Carry.apply(y, along, problem.x)
                if problem.solver.needs_pullback and saved_tensor_hooks_active():
                    tracked = problem.F(moving)  # one evaluation more: the graph of a product stays out of a checkpoint
                    return problem.evaluate(y)
                problem.F.drop_masks = True
                tracked, pullback = problem.evaluate(moving)
            return tracked.detach(), pullback

        with torch.no_grad():
            solution = problem.solve(evaluate)
        if tracked is None:
            tracked = problem.F(_Carry.apply(solution.value, along, problem.x))
        value = _Carry.apply(solution.value, (1 / relation.c, relation.s), relation.b, tracked)
        return replace(solution, value=value)


class _Recomputed(torch.autograd.Function):
    """run(x), which backward runs again with a graph: checkpointing for a solve that differentiates inside itself.

    Nothing is saved through autograd's hooks, so that an outer non-reentrant checkpoint has nothing to recompute: its
    own way would run the whole solve again for every product inside it.
    """

    @staticmethod
    def forward(ctx, run, x, *parameters):
        ctx.run, ctx.x, ctx.parameters = run, x.detach(), parameters
        return run(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, v):
        with torch.enable_grad():
            x = ctx.x.requires_grad_()
            value = ctx.run(x)
        return None, *torch.autograd.grad(value, (x, *ctx.parameters), v, allow_unused=True)


def implicit_step(
    layer: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    vector_field: str,
    step_size: float,
    theta: float,
    solver: Solver,
    gradient: Gradient,
    initial_guess: str,
    iterations: int,
    tolerance: float,
    mask: Tensor | None = None,
) -> Solution:
    """One step of the theta method around a layer: y = x + gamma [(1 - theta) f(x) + theta f(y)].

    The one numerical entry point: IMBertLayer, the diagnostics and the benchmark call it.

    Args:
        layer: F, h -> F(h) of the same shape and dtype; a module, or any callable. Random layers (dropout) draw the
            same masks in every evaluation; an attribute `training` or `draws` that is false says that there is nothing
            random.
            With a true attribute `selects` it has a method select(rows) that gives the same for some examples, by
            their indices (n,): those that reached the tolerance are then evaluated no more, outside of a graph.
        x: (batch, length, width), floating point.
        vector_field: "increment", f(h) = F(h) - h, or "layer", f(h) = F(h).
        step_size: gamma > 0.
        theta: 0 explicit Euler to 1 implicit Euler.
        solver: FixedPoint, Anderson or GradientDescent.
        gradient: Unrolled, Implicit or OneStep. With 0 iterations or theta 0 nothing is solved, and the expression is
            differentiated directly.
        initial_guess: "explicit", y0 = x + gamma f(x), or "previous", y0 = x.
        iterations: steps of the solver after the guess.
        tolerance: relative residual at which an example stops; 0: all iterations and no host synchronisation.
        mask: (batch, length), nonzero for real tokens; None: all are.

    Returns:
        Solution. F is evaluated iterations + 1 times with guess "explicit" and max(iterations, 1) times with "previous"
        at tolerance 0; gradient_descent adds `iterations` vector-Jacobian products.

    Raises:
        ValueError: an argument outside what is listed above.
    """
    _check(x, vector_field, step_size, theta, initial_guess, iterations, tolerance, mask)
    # What F depends on beside its input: a module tells; for another callable it is found where it is needed.
    parameters = None
    if torch.is_grad_enabled() and hasattr(layer, "parameters"):
        parameters = tuple(p for p in layer.parameters() if p.requires_grad)
        if solver.needs_pullback or gradient.needs_parameters:
            refuse_sharded_parts(layer.modules())  # type: ignore[attr-defined]
    tracked = torch.is_grad_enabled() and (x.requires_grad or parameters != ())
    if iterations > 0 and theta > 0 and not x.is_meta:
        check_layer(layer, parameters, solver.needs_pullback)
    with torch.set_grad_enabled(tracked):
        F = FixedMap(layer, x)
        mask = None if mask is None else mask.bool()

        def step(x: Tensor) -> Solution:
            carry = CARRY[vector_field]

            def euler(Fx: Tensor, a: float) -> Tensor:  # x + a f(x)
                return torch.add(x * (1 - carry * a), Fx, alpha=a)

            graph = torch.is_grad_enabled()
            s, previous = step_size * theta, initial_guess == "previous"
            solved = iterations > 0 and theta > 0
            first: Any = None
            b = guess = entry = x
            search = parameters is None and graph and solved and gradient.needs_parameters
            if search or not (solved and previous and theta == 1):  # else F(x) is evaluated by the first iteration
                entry = _Carry.apply(x.detach(), (1.0,), x) if search else x
                with torch.set_grad_enabled(graph and (search or not solved or theta < 1 or gradient.unrolled)):
                    first = evaluation(F, entry, solved and previous and solver.needs_pullback)
                b = x if theta == 1 else euler(first[0], step_size * (1 - theta))
                guess = x if previous else euler(first[0], step_size)
            relation = Relation(b, s, 1 + carry * s, mask)
            if not solved:
                return _explicit(F, relation, b if theta == 0 else guess, tolerance)
            found = leaves_of(first[0], entry.grad_fn) if search else parameters
            first = first if previous else None
            problem = _Problem(F, x, relation, solver, guess, first, iterations, tolerance, found or ())
            del guess, first
            return gradient.solve(problem) if graph else problem.solve(problem.evaluate)

        if not (tracked and gradient.unrolled and solver.needs_pullback and saved_tensor_hooks_active()):
            return step(x)
        solutions: list[Solution] = []

        def run(x: Tensor) -> Tensor:
            solution = step(x)
            if not solutions:  # the recomputed one holds a graph
                solutions.append(solution)
            return solution.value

        if parameters is None:
            parameters = leaves_of(F(x.detach()))
        value = _Recomputed.apply(run, x, *parameters)
        return replace(solutions[0], value=value)


def _explicit(F: FixedMap, relation: Relation, value: Tensor, tolerance: float) -> Solution:
    """The Solution of a step that has nothing to solve."""
    steps = torch.zeros(value.shape[:1], dtype=torch.int64, device=value.device)

    def measure() -> Tensor:
        return relation.relative_residual(value, F(value) if relation.s else torch.zeros_like(value))

    return Solution(value, steps, relation.norm(value).isfinite(), tolerance, measure)


def _check(x, vector_field, step_size, theta, initial_guess, iterations, tolerance, mask) -> None:
    for name, value, ok, allowed in (
        ("vector_field", vector_field, vector_field in CARRY, f"one of {list(CARRY)}"),
        ("initial_guess", initial_guess, initial_guess in INITIAL_GUESSES, f"one of {list(INITIAL_GUESSES)}"),
        ("step_size", step_size, 0 < step_size < float("inf"), "a finite number > 0"),
        ("theta", theta, 0 <= theta <= 1, "a number from 0 to 1"),
        ("iterations", iterations, isinstance(iterations, int) and iterations >= 0, "an integer >= 0"),
        ("tolerance", tolerance, 0 <= tolerance < float("inf"), "a finite number >= 0"),
    ):
        if not ok:
            raise ValueError(f"{name} must be {allowed}, got {value!r}.")
    if x.dim() < 2 or not x.is_floating_point():
        shape = tuple(x.shape)
        raise ValueError(f"x must be a floating point tensor (batch, length, width), got {x.dtype} of shape {shape}.")
    if mask is not None and mask.shape != x.shape[:-1]:
        raise ValueError(
            f"mask must have the shape {tuple(x.shape[:-1])} of x without its width, got {tuple(mask.shape)}."
        )
