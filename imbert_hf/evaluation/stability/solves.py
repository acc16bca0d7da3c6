"""How the solves of one layer converge: residual by iteration, and which settings converge at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from imbert_hf import ThetaMethod, Unrolled, implicit_step
from imbert_hf.evaluation.stability.spectrum import Map
from imbert_hf.solvers_imbert import Solver


@dataclass(eq=False)
class _Recording:
    """A solver that notes the relative residual of every iterate that it is handed."""

    solver: Solver
    needs_pullback: bool
    residuals: list[Tensor]

    def step(self, relation, y, g, pullback, state):
        self.residuals.append((relation.c * relation.norm(y - g) / relation.norm(y)).flatten())
        return self.solver.step(relation, y, g, pullback, state)


@torch.no_grad()
def residual_history(
    function: Map, x: Tensor, solver: Solver, iterations: int, *, initial_guess: str, **method
) -> Tensor:
    """The relative residual ||r|| / ||y|| after 0, 1, ... `iterations` iterations, (iterations + 1, batch).

    They are those of `implicit_step` with that many iterations at tolerance 0, from one run instead of one for each;
    inf where it would not be finite, and implicit_step fall back to its guess.

    Args:
        function: F, h -> F(h).
        x: (batch, length, width).
        solver: FixedPoint, Anderson or GradientDescent.
        initial_guess: of `implicit_step`.
        method: vector_field, step_size and theta > 0 of `ThetaMethod`.
    """
    recording: Any = _Recording(solver, solver.needs_pullback, [])
    options: dict[str, Any] = {"initial_guess": initial_guess, "iterations": iterations, "tolerance": 0.0}
    solution = implicit_step(function, x, ThetaMethod(**method), solver=recording, gradient=Unrolled(), **options)
    last = torch.where(solution.finite, solution.residual, torch.inf)
    return torch.stack([*recording.residuals, last]).nan_to_num(torch.inf, torch.inf)


@torch.no_grad()
def convergence(
    function: Map,
    x: Tensor,
    solver: Solver,
    *,
    step_sizes: Sequence[float],
    thetas: Sequence[float],
    iterations: int,
    tolerance: float = 1e-2,
    initial_guess: str,
    vector_field: str,
) -> Tensor:
    """Which solves converge: (thetas, step sizes, batch) bool, `Solution.converged` of `implicit_step`.

    Args:
        function, x, solver: as for `residual_history`.
        iterations: at most.
        tolerance: relative residual that counts as converged, > 0.
        initial_guess, vector_field: of `implicit_step` and `ThetaMethod`.
    """
    common: dict[str, Any] = {"solver": solver, "gradient": Unrolled(), "initial_guess": initial_guess}
    common |= {"iterations": iterations, "tolerance": tolerance}
    solves = [
        implicit_step(function, x, ThetaMethod(theta, step_size, vector_field), **common).converged
        for theta in thetas
        for step_size in step_sizes
    ]
    return torch.stack(solves).view(len(thetas), len(step_sizes), len(x))
