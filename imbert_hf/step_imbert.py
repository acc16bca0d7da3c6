"""The implicit step of one layer: what is asked, what is refused, and what is solved.

This file travels with every checkpoint: it imports torch, the standard library and its sisters alone.
"""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .evaluations_imbert import FixedMap, functional
from .gradients_imbert import Gradient, Problem
from .solvers_imbert import Relation, Solution, Solver, ThetaMethod, require


INITIAL_GUESSES = ("explicit", "previous")


def implicit_step(
    layer: Callable[[Tensor], Tensor],
    x: Tensor,
    method: ThetaMethod,
    *,
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
            same masks in every evaluation; an attribute `training` or `draws` that is false says that nothing is
            random. With a true attribute `selects` it has a method select(rows) that gives the same for the examples
            of indices `rows` (n,): those that reached the tolerance are then left out, where no graph is recorded.
        x: (batch, length, width), floating point.
        method: the equation: theta, step size and vector field.
        solver: FixedPoint, Anderson or GradientDescent.
        gradient: Unrolled, Implicit or OneStep; where nothing is solved the expression is differentiated directly.
        initial_guess: "explicit", y0 = x + gamma f(x), or "previous", y0 = x.
        iterations: steps of the solver after the guess; with 0, or theta 0, nothing is solved.
        tolerance: relative residual at which an example stops; 0: all iterations and no host synchronisation.
        mask: (batch, length), nonzero for real tokens; None: all are.

    Returns:
        Solution. F is evaluated iterations + 1 times at tolerance 0, and max(iterations, 1) times with the guess
        "previous" and theta 1; once more in grad mode with Implicit, or with "previous" and an x without gradient.
        gradient_descent adds `iterations` vector-Jacobian products.

    Raises:
        ValueError: an argument outside what is listed above.

    Example: y = x + f(y) with f(h) = -h / 2, whose solution is x / 1.5.
        >>> import torch
        >>> from imbert_hf import FixedPoint, ThetaMethod, Unrolled, implicit_step
        >>> how = dict(solver=FixedPoint(), gradient=Unrolled(), initial_guess="explicit")
        >>> x = torch.ones(1, 3, 4)
        >>> solution = implicit_step(lambda h: h / 2, x, ThetaMethod(theta=1.0), **how, iterations=20, tolerance=1e-6)
        >>> round(solution.value[0, 0, 0].item(), 4), solution.converged.tolist()
        (0.6667, [True])
    """
    guesses = list(INITIAL_GUESSES)
    require(initial_guess in guesses, f"initial_guess must be one of {guesses}", initial_guess)
    require(isinstance(iterations, int) and iterations >= 0, "iterations must be an integer >= 0", iterations)
    require(0 <= tolerance < float("inf"), "tolerance must be a finite number >= 0", tolerance)
    shape, ok = tuple(x.shape), x.dim() >= 2 and x.is_floating_point()
    require(ok, "x must be a floating point tensor (batch, length, width)", f"{x.dtype} of shape {shape}")
    ok = mask is None or mask.shape == shape[:-1]
    require(ok, f"mask must have the shape {shape[:-1]} of x without its width", mask is None or tuple(mask.shape))
    padding = None if mask is None else (mask == 0)[..., None]
    return checked_step(layer, x, method, solver, gradient, initial_guess, iterations, tolerance, padding)


def checked_step(
    layer, x, method, solver, gradient, initial_guess, iterations, tolerance, padding, track_guess=False
) -> Solution:
    """implicit_step with arguments that are right, and the padding (batch, length, 1) for its mask.

    With `track_guess` Solution.guess has its gradient in every mode.
    """
    (s, c), explicit = method.weights, initial_guess == "explicit"
    if s == 0 or iterations == 0:
        F = FixedMap(layer, x) if s else layer
        Fx = F(x)  # with the guess "previous" for the attentions and the random state that it leaves

        def measure(y: Tensor) -> Tensor:
            b = method.euler(x, Fx, method.step_size - s)
            return Relation(b, s, c, padding).relative_residual(y, F(y) if s else y)

        guess = method.euler(x, Fx, method.step_size) if s == 0 or explicit else x
        return Solution(guess, 0, None, tolerance, measure, guess)
    _refuse(layer, x, solver, gradient)
    F, graph = FixedMap(layer, x), torch.is_grad_enabled()
    tracked = method.theta < 1 or gradient.unrolled or track_guess
    known = x.requires_grad or functional()  # whose tensors do not tell
    if explicit or method.theta < 1 or (graph and not known):
        # Where x has no gradient F(x) tells whether F itself has: a frozen layer builds no graph.
        with _grad_mode(graph and (tracked or not known)):
            Fx = F(x)
        graph = graph and (known or Fx.requires_grad)
        if graph and not tracked:
            Fx = Fx.detach()
    with _grad_mode(graph):
        b = x if method.theta == 1 else method.euler(x, Fx, method.step_size - s)
        guess = method.euler(x, Fx, method.step_size) if explicit else x
        problem = Problem(F, x, Relation(b, s, c, padding), solver, guess, iterations, tolerance)
        return replace(gradient.solve(problem) if graph else problem.solve(), guess=guess)


def _grad_mode(wanted: bool):
    # No argument of set_grad_enabled: where theta has changed it is a symbol of a compiler.
    return contextlib.nullcontext() if wanted or not torch.is_grad_enabled() else torch.no_grad()


def _refuse(layer: Any, x: Tensor, solver: Solver, gradient: Gradient) -> None:
    """Raises ValueError for a layer that cannot be solved for, or differentiated, as asked."""
    inside, graph = solver.needs_pullback, torch.is_grad_enabled()
    if x.is_meta or not (graph or inside):
        return
    modules = list(getattr(layer, "modules", list)())
    weights = [p for module in modules for p in module._parameters.values() if p is not None]
    training, kind = getattr(layer, "training", True), getattr(layer, "attention", "eager")
    # Offloaded weights are on the meta device, and elsewhere only while the module that holds them runs.
    if graph and training and any(p.is_meta and p.requires_grad for p in weights):
        raise ValueError(
            "A layer whose weights are offloaded (device_map) cannot be trained: they would get no gradient. Keep it "
            "in memory, or freeze it."
        )
    # Sharded parts hold their weights within their own call alone, and products would call for them out of turn.
    parts = [type(m).__name__.removeprefix("FSDP") for m in modules if hasattr(m, "set_reshard_after_forward")]
    if parts and graph and (inside or gradient.products):
        raise ValueError(
            f"fully_shard was called on {parts[0]}, a part of an implicit layer; the solver gradient_descent and the "
            "gradient mode 'implicit' need the weights of a layer together. Call it on whole layers, or take "
            "fixed_point or anderson with 'one_step' or 'unrolled'."
        )
    if not inside:
        return
    # In training, whether a graph is recorded or not: reentrant checkpointing runs both with the same kernels.
    if gradient.unrolled and (graph or training) and kind not in ("eager", "sdpa"):
        raise ValueError(
            f"attn_implementation {kind!r} has no second derivative, which im_solver 'gradient_descent' with "
            "im_gradient 'unrolled' needs in training; use 'sdpa' or 'eager', or another im_gradient."
        )
    transformed, tracing = functional() and not torch.compiler.is_compiling(), torch.jit.is_tracing()
    exporting = getattr(torch.compiler, "is_exporting", bool)() and not torch.compiler.is_dynamo_compiling()
    quantized = ("torch.ao.nn.quantized", "torch.nn.quantized")
    made_here = not functional() and any(p.is_inference() for p in weights)
    for why, refused in {
        "which accelerate cannot do with weights that it offloads (device_map)": any(p.is_meta for p in weights),
        "and weights made under torch.inference_mode have no derivative": made_here,
        "and quantized modules have no derivative": any(type(m).__module__.startswith(quantized) for m in modules),
        # Before torch 2.13 it would be wrong in silence.
        "which torch.func does not under inference_mode, but no_grad": transformed
        and torch.is_inference_mode_enabled(),
        f"and {kind!r} has no derivative on a CPU": kind == "flex_attention" and x.device.type == "cpu",
        f"which {'torch.jit.trace' if tracing else 'torch.export'} cannot record": tracing or exporting,
    }.items():
        if refused:
            raise ValueError(
                f"im_solver 'gradient_descent' differentiates a layer inside the forward, {why}; use 'fixed_point' or "
                "'anderson'."
            )
