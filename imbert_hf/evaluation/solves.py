"""How the solves of one layer converge: residual by iteration, and which settings converge at all."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from imbert_hf import Unrolled, implicit_step
from imbert_hf.solvers_imbert import Solver

from .spectrum import Map


@dataclass(eq=False)
class _Recording:
    """A solver that notes the relative residual of every iterate that it is handed."""

    solver: Solver
    needs_pullback: bool
    residuals: list[Tensor]

    def init(self):
        return self.solver.init()

    def step(self, relation, y, g, pullback, state):
        self.residuals.append(relation.c * relation.norm(y - g) / relation.norm(y))
        return self.solver.step(relation, y, g, pullback, state)


@torch.no_grad()
def residual_history(function: Map, x: Tensor, solver: Solver, iterations: int, **relation) -> Tensor:
    """The relative residual ||r|| / ||y|| after 0, 1, ... `iterations` iterations, (iterations + 1, batch).

    They are those of `implicit_step` with that many iterations at tolerance 0, from one run instead of one for each.

    Args:
        function: F, h -> F(h).
        x: (batch, length, width).
        solver: FixedPoint, Anderson or GradientDescent.
        relation: vector_field, step_size, theta > 0 and initial_guess of `implicit_step`.
    """
    recording = _Recording(solver, solver.needs_pullback, [])
    solution = implicit_step(
        function, x, solver=recording, gradient=Unrolled(), iterations=iterations, tolerance=0.0, **relation
    )
    return torch.stack([*recording.residuals, solution.residual])


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
    **relation,
) -> Tensor:
    """Which solves converge: (thetas, step sizes, batch) bool, `Solution.converged` of `implicit_step`.

    Args:
        function, x, solver: as for `residual_history`.
        iterations: at most.
        tolerance: relative residual that counts as converged, > 0.
        relation: vector_field and initial_guess of `implicit_step`.
    """
    common = {"solver": solver, "gradient": Unrolled(), "iterations": iterations, "tolerance": tolerance, **relation}
    solves = [
        implicit_step(function, x, theta=theta, step_size=step_size, **common).converged
        for theta in thetas
        for step_size in step_sizes
    ]
    return torch.stack(solves).view(len(thetas), len(step_sizes), len(x))
