"""What IM-BERT's cost is compared with, written as plainly as a user would: other ways to the same solution, and other
ways to a robust BERT.

- The literal reading of the paper: gradient descent on the squared residual by torch.autograd.grad, unrolled.
- The same equation handed to torchdeq (Geng and Kolter 2023), which is optional: `pip install torchdeq`.
- FreeLB, R3F and R-Drop: training steps of plain BERT, see robust_losses.

They are measured, not recommended: with dropout each evaluation of the first two draws masks of its own, and both take
padded tokens for real ones.
"""

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from robust_losses import freelb_losses, r3f_losses, rdrop_losses
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from imbert_hf import ThetaMethod
from imbert_hf.evaluation.cost.variants import (
    BERT_STEP,
    EVALUATION,
    GRADIENTS,
    SOLVERS,
    Floor,
    Variant,
    floor_of,
    last_layers,
    make_variants,
    name_of,
    plain_bert,
    settings,
)
from imbert_hf.evaluation.stability.spectrum import Map


Solve = Callable[[Map, Tensor], Tensor]  # F, and the input of the layer -> its output


def solved_bert(model: Any, solve: Solve, indices: Sequence[int]) -> Any:
    """plain_bert, the outputs of whose layers of `indices` `solve` makes of F, the plain layer, and its input."""
    bert = plain_bert(model)
    for i in indices:
        layer = bert.bert.encoder.layer[i]
        layer.forward = partial(_solved, layer.forward, solve)
    return bert


def _solved(F: Map, solve: Solve, hidden_states: Tensor, *args, **kwargs) -> Tensor:
    return solve(lambda h: F(h, *args, **kwargs), hidden_states)


@dataclass(frozen=True)
class Equation(ThetaMethod):
    """The theta method, and the initial guess of implicit_step."""

    initial_guess: str = "explicit"

    def start(self, F: Map, x: Tensor) -> tuple[Tensor, Tensor]:
        """b = x + gamma (1 - theta) f(x), and the initial guess."""
        if self.theta == 1 and self.initial_guess == "previous":
            return x, x
        fx = F(x) - self.carry * x
        b = x if self.theta == 1 else x + self.step_size * (1 - self.theta) * fx
        return b, x if self.initial_guess == "previous" else x + self.step_size * fx


def literal(equation: Equation, iterations: int, learning_rate: float) -> Solve:
    """The literal reading of the paper: descent on ||r||^2 / 2 by autograd, whose steps stay in the graph."""
    s, c = equation.weights

    def solve(F: Map, x: Tensor) -> Tensor:
        graph = torch.is_grad_enabled()

        def layer(h: Tensor) -> Tensor:
            if not graph:
                return F(h)
            with sdpa_kernel(SDPBackend.MATH):  # fused attention cannot be differentiated twice
                return F(h)

        b, y = equation.start(layer, x)
        y = y.view_as(y)  # for autograd it is none of what b was made of
        for _ in range(iterations):
            with torch.enable_grad():
                y = y if graph and y.requires_grad else y.detach().requires_grad_()
                r = c * y - b - s * layer(y)
                (descent,) = torch.autograd.grad(r.square().sum() / 2, y, create_graph=graph)
            y = y - learning_rate * descent
        return y

    return solve


def find_torchdeq() -> Callable[..., Any] | None:
    """The function of torchdeq that makes a DEQ, where the package is installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its docstrings hold invalid escapes
            from torchdeq import get_deq
    except ImportError:
        return None
    return get_deq


TORCHDEQ_SOLVERS = {"fixed_point": "fixed_point_iter", "anderson": "anderson"}
TORCHDEQ_LEAST = {"fixed_point": 1, "anderson": 3}  # evaluations: with fewer its Anderson returns its start
TORCHDEQ_GRADIENTS = ("implicit", "one_step")


def through_torchdeq(
    equation: Equation,
    solver: str,
    gradient: str,
    iterations: int,
    *,
    gradient_iterations: int | None = None,
    damping: float = 1.0,
    memory: int = 3,
) -> Solve:
    """y = (b + s F(y)) / c by torchdeq's DEQ, with as many evaluations as implicit_step makes, where it can.

    It makes more where `iterations` is 1 (one more in training) or, with Anderson, below 4.

    Args:
        solver: "fixed_point" or "anderson", forward and backward.
        gradient: "implicit" (its `ift`) or "one_step" (its phantom gradient of one step).
        iterations: >= 1 evaluations after the guess; in training the last of them is the one that it differentiates.
        gradient_iterations: products of the adjoint solve; None: `iterations`.
        damping, memory: of implicit_step's solvers.
    """
    get_deq = find_torchdeq()
    if get_deq is None:
        raise ValueError("torchdeq is not installed: pip install torchdeq.")
    (s, c), least, name = equation.weights, TORCHDEQ_LEAST[solver], TORCHDEQ_SOLVERS[solver]
    deq = get_deq(
        core="sliced",
        ift=gradient == "implicit",
        f_solver=name,
        b_solver=name,
        f_max_iter=max(iterations - 1, least),
        eval_f_max_iter=max(iterations, least),
        b_max_iter=max(iterations if gradient_iterations is None else gradient_iterations, least),
        f_tol=0.0,
        b_tol=0.0,
    )
    options = {"return_final": True, "tau": damping, "m": memory + 1}

    def solve(F: Map, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and equation.theta < 1):
            b, y = equation.start(F, x)
        b = x if equation.theta == 1 else b
        deq.training = torch.is_grad_enabled()
        values, _ = deq(lambda y: (b + s * F(y)) / c, y.detach(), solver_kwargs=options)
        return values[-1]

    return solve


def with_references(
    model: Any,
    *,
    solvers: Sequence[str] = SOLVERS,
    gradients: Sequence[str] = GRADIENTS,
    iterations: Sequence[int] = (2, 3, 5),
    learning_rates: Sequence[float] = (0.02,),
    theta: float = 1.0,
    implicit_layers: int | None = None,
) -> list[Variant]:
    """What make_variants makes, and what that is compared with; torchdeq's where it is installed."""
    options: dict[str, Any] = {"solvers": solvers, "gradients": gradients, "iterations": iterations}
    options |= {"learning_rates": learning_rates, "theta": theta}
    variants = make_variants(model, **options, implicit_layers=implicit_layers)
    layers, config = last_layers(model, implicit_layers), model.config
    equation = Equation(theta, config.im_step_size, config.im_vector_field, config.im_initial_guess)
    variants += literal_variants(model, layers, equation, iterations, learning_rates)
    if find_torchdeq():
        variants += torchdeq_variants(model, layers, equation, solvers, gradients, iterations)
    bert = variants[0].model
    three, two = (Floor(EVALUATION, steps * BERT_STEP) for steps in (3, 2))
    return [
        *variants,
        Variant("FreeLB, 3 steps", "FreeLB", bert, three, losses=freelb_losses),
        Variant("R3F", "R3F", bert, two, losses=r3f_losses),
        Variant("R-Drop", "R-Drop", bert, two, losses=rdrop_losses),
    ]


def literal_variants(
    model: Any, layers: Sequence[int], equation: Equation, iterations: Sequence[int], rates: Sequence[float]
) -> Iterator[Variant]:
    for rate, T in itertools.product(rates, iterations):
        name = f"literal {name_of('', T, rate)}"
        setting = {"solver": "gradient_descent", "gradient": "unrolled", "iterations": T, "learning_rate": rate}
        least = floor_of(model, "gradient_descent", "unrolled", T, equation.theta)
        solved = solved_bert(model, literal(equation, T, rate), layers)
        yield Variant(name, "literal", solved, least, inference=name, setting=setting)


def torchdeq_variants(
    model: Any,
    layers: Sequence[int],
    equation: Equation,
    solvers: Sequence[str],
    gradients: Sequence[str],
    iterations: Sequence[int],
) -> Iterator[Variant]:
    config, half = model.config, model.dtype in (torch.bfloat16, torch.float16)
    options = {"damping": config.im_damping, "memory": config.im_anderson_memory}
    options["gradient_iterations"] = config.im_gradient_iterations
    possible = [s for s in solvers if s in TORCHDEQ_SOLVERS]
    possible = [s for s in possible if not (s == "anderson" and half)]  # it calls a solve that has neither
    for solver, T, _ in settings(possible, iterations, ()):
        shared = f"torchdeq {name_of(solver, T, None)}"
        for gradient in TORCHDEQ_GRADIENTS:
            if gradient in gradients:
                setting = {"solver": solver, "gradient": gradient, "iterations": T, "learning_rate": None}
                least = floor_of(model, solver, gradient, T, equation.theta)
                solved = solved_bert(model, through_torchdeq(equation, solver, gradient, T, **options), layers)
                name = f"{shared}, {gradient}"
                yield Variant(name, "torchdeq", solved, least, inference=shared, setting=setting)
