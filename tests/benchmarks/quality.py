"""The least work that reaches a given quality: of the residual, of the gradient, of the adjoint solve.

Each search makes all layers implicit, keeps the model's other im_ fields, theta among them, and leaves the model as it
was found.
"""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from references import Equation, with_references
from torch import Tensor

from imbert_hf import Unrolled, implicit_step
from imbert_hf.evaluation.attacks.ascent import Batch
from imbert_hf.evaluation.cost.measures import converged_gradient, mean_residual, relative_gradient_errors
from imbert_hf.evaluation.cost.settings import Make
from imbert_hf.evaluation.cost.variants import GRADIENTS, Variant, last_layers, make_variants
from imbert_hf.evaluation.report import finite
from imbert_hf.evaluation.stability.layers import PlainLayer
from imbert_hf.evaluation.stability.spectrum import Map
from imbert_hf.pass_imbert import SOLVERS, adjoint_solver
from imbert_hf.solvers_imbert import Relation, Solution, Solver, solve_to


# Those whose forward and adjoint solves are of one kind.
PAIRED = ("fixed_point", "anderson")
_COUNT = ("an integer >= 1", lambda value: isinstance(value, int) and value >= 1)
_POSITIVE = ("a finite number > 0", lambda value: 0 < value < math.inf)


def equal_residual(
    model: Any,
    batch: Batch,
    *,
    solvers: Sequence[str] = PAIRED,
    learning_rates: Sequence[float] = (0.01, 0.02, 0.05, 0.1, 0.2),
    iterations: int = 5,
    most: int = 20,
) -> dict[str, Any]:
    """The fewest iterations of each solver at which it is as good as the literal reading of the paper.

    Good by the mean over layers and rows of the relative residual at inference, see measures.mean_residual, in the
    model's dtype; the literal reading, see references.literal, at the learning rate that is best for it.

    Args:
        model: IMBertForSequenceClassification in eval mode, theta > 0.
        batch: input_ids, attention_mask and labels.
        solvers: of IMBertConfig.im_solver.
        learning_rates: of the literal reading, > 0.
        iterations: of the literal reading, >= 1.
        most: iterations that are tried of each solver, >= 1.

    Returns:
        What JSON can hold. learning_rate, the best one, and its residual, None where no rate gives a finite one;
        residuals, {rate as text: residual, None where it is not finite}; solvers, {solver: the smallest number of
        iterations whose residual is at most that, None where none up to `most` is}.

    Raises:
        ValueError: an argument outside what is listed above.
    """
    numbers = [("iterations", [iterations], _COUNT), ("most", [most], _COUNT)]
    _check(model, ("solvers", solvers, _one_of(SOLVERS)), ("learning_rates", learning_rates, _POSITIVE), *numbers)
    equation, indices = _equation(model), last_layers(model, None)
    rows = _rows(model, solvers=(), iterations=(iterations,), learning_rates=learning_rates, make=with_references)
    literals = {row.setting["learning_rate"]: row for row in rows if row.kind == "literal"}
    literal = {rate: mean_residual(row, batch, equation, indices) for rate, row in literals.items()}
    best = min(literal, key=lambda rate: literal[rate] if math.isfinite(literal[rate]) else math.inf)
    target = literal[best] if math.isfinite(literal[best]) else None
    found: dict[str, int | None] = dict.fromkeys(solvers)
    if target is not None:
        for row in _settings(_rows(model, solvers=solvers, gradients=("implicit",), iterations=range(1, most + 1))):
            solver = row.setting["solver"]
            if found[solver] is None and mean_residual(row, batch, equation, indices) <= target:
                found[solver] = row.setting["iterations"]
    return {
        "learning_rate": None if target is None else best,
        "residual": target,
        "residuals": dict(zip((str(rate) for rate in literal), finite(literal.values()), strict=True)),
        "solvers": found,
    }


def gradient_iterations(
    model: Any,
    batch: Batch,
    *,
    solvers: Sequence[str] = PAIRED,
    gradients: Sequence[str] = ("implicit", "unrolled"),
    error: float = 1e-2,
    grid: Sequence[int] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48),
) -> dict[str, Any]:
    """The fewest iterations, as many forward as of the adjoint solve, that give the converged gradient within `error`.

    The error is ||g - g*|| / ||g*||, g the gradient of the loss by all parameters, without dropout and in float64; see
    measures.converged_gradient for g*. Rows of the batch whose relation cannot be solved are left out.

    Args:
        model: IMBertForSequenceClassification in eval mode, theta > 0.
        batch: input_ids, attention_mask and labels; unrolled gradients keep all iterations, so a few rows.
        solvers, gradients: of IMBertConfig.im_solver and im_gradient.
        error: > 0.
        grid: numbers of iterations that are tried, >= 1.

    Returns:
        What JSON can hold. rows and of, how many of the batch the gradient is of; residual, the largest of the
        converged solution; found, {solver: {gradient: {iterations, the smallest of the grid, and error, its own}}},
        both None where none is within `error`.

    Raises:
        ValueError: an argument outside what is listed above.
    """
    names = [("solvers", solvers, _one_of(SOLVERS)), ("gradients", gradients, _one_of(GRADIENTS))]
    _check(model, *names, ("error", [error], _POSITIVE), ("grid", grid, _COUNT))
    double = copy.deepcopy(model).double()
    exact, kept, reached = converged_gradient(double, batch, _equation(model).theta, last_layers(model, None))
    nothing = {"iterations": None, "error": None}
    found: dict[str, Any] = {solver: {gradient: dict(nothing) for gradient in gradients} for solver in solvers}
    if exact is not None:
        solved = {name: value[kept] for name, value in batch.items()}
        for row in _settings(_rows(double, solvers=solvers, gradients=gradients, iterations=sorted(set(grid)))):
            solver, gradient, T = (row.setting[name] for name in ("solver", "gradient", "iterations"))
            if found[solver][gradient]["iterations"] is not None:
                continue
            row = replace(row, fields={**row.fields, "im_gradient_iterations": T})
            value = relative_gradient_errors([row], solved, exact)[row.name]
            if value <= error:
                found[solver][gradient] = {"iterations": T, "error": value}
    return {"rows": len(kept), "of": len(batch["labels"]), "residual": finite([reached])[0], "found": found}


def adjoint_work(
    model: Any,
    batch: Batch,
    *,
    solver: str = "anderson",
    residuals: Sequence[float] = (1e-1, 1e-2, 1e-3),
    most: int = 60,
) -> list[dict[str, Any]]:
    """Evaluations of F that forward solves need against products that adjoint solves need, at equal relative residual.

    Of every layer and row of the batch, in float64: the forward solve from the layer's input in the converged model,
    the adjoint one at its converged output with the cotangent that the loss has there; see `layer_work`. Rows whose
    relation cannot be solved in every layer are left out.

    Args:
        model: IMBertForSequenceClassification in eval mode, theta > 0.
        batch: input_ids, attention_mask and labels.
        solver: "fixed_point" or "anderson", with the model's options; the adjoint solver is the model's to it.
        residuals: relative residuals that are to be reached, > 0.
        most: iterations of either solve, >= 1.

    Returns:
        What JSON can hold, one record a residual: residual; solver; rows and of, how many of the batch were used;
        pairs of a layer and a row; evaluations and products, means over the pairs in which both solves reached the
        residual, None where there are none; more, pairs in which the adjoint solve needed more products than the
        forward solve evaluations, be it more than `most`; unsolved, pairs in which either did not reach the residual.

    Raises:
        ValueError: an argument outside what is listed above.
    """
    _check(model, ("solver", [solver], _one_of(PAIRED)), ("residuals", residuals, _POSITIVE), ("most", [most], _COUNT))
    double, equation, indices = copy.deepcopy(model).double(), _equation(model), last_layers(model, None)
    layers: dict[int, tuple[Map, Tensor, Tensor]] = {}
    cotangents: dict[int, Tensor] = {}

    def hook(index, module, args, y):
        if y.requires_grad:  # the forward that is differentiated, of the rows that are kept
            layers[index] = PlainLayer(module, args[1]), args[0].detach(), y.detach()
            y.register_hook(partial(cotangents.__setitem__, index))

    for i in indices:
        double.bert.encoder.layer[i].register_forward_hook(partial(hook, i))
    _, kept, _ = converged_gradient(double, batch, equation.theta, indices)

    config = double.config
    solves: dict[str, Any] = {
        "solver": SOLVERS[solver](vars(config)),
        "adjoint_solver": adjoint_solver(solver, vars(config)),
    }
    solves |= {"most": most, "mask": batch["attention_mask"][kept].bool()}
    records = []
    for r in residuals:
        work = [layer_work(*layers[i], cotangents[i], equation, tolerance=r, **solves) for i in layers]
        evaluations, products = torch.cat([torch.empty(2, 0, dtype=torch.float64), *work], dim=1)
        both = evaluations.isfinite() & products.isfinite()
        means = finite([evaluations[both].mean(), products[both].mean()])
        records.append(
            {
                "residual": r,
                "solver": solver,
                "rows": len(kept),
                "of": len(batch["labels"]),
                "pairs": len(both),
                "evaluations": means[0],
                "products": means[1],
                "more": int((products > evaluations).sum()),
                "unsolved": int((~both).sum()),
            }
        )
    return records


@torch.no_grad()
def layer_work(
    function: Map,
    x: Tensor,
    y: Tensor,
    v: Tensor,
    equation: Equation,
    *,
    solver: Solver,
    adjoint_solver: Solver,
    tolerance: float,
    most: int,
    mask: Tensor | None = None,
) -> Tensor:
    """Evaluations of F, and products with its Jacobian's transpose, that bring both solves to the relative residual.

    The first are those that make the iterate: one for the explicit guess, one for each iteration; to tell that it is
    good enough takes the evaluation after. Likewise the products are one for each iteration of the adjoint solve of

        (I - (s / c) dF/dy)^T w = v    from w = c v,

    whose residual is relative to ||w||.

    Args:
        function: F, h -> F(h), a module in eval mode or a callable.
        x, y, v: (batch, length, width), the layer's input, its converged output, and the cotangent of that.
        equation: that y solves.
        solver, adjoint_solver: of the two solves, the second without a pullback.
        tolerance: the relative residual, > 0.
        most: iterations of either solve, >= 1.
        mask: (batch, length) bool, True for real tokens; None: all are.

    Returns:
        (2, batch), evaluations and products, inf where an example does not reach the residual; on the CPU.
    """
    s, c = equation.weights
    options: dict[str, Any] = {"gradient": Unrolled(), "iterations": most, "tolerance": tolerance, "mask": mask}
    forward = implicit_step(function, x, equation, solver=solver, initial_guess=equation.initial_guess, **options)
    with torch.enable_grad():
        leaf = y.detach().requires_grad_()
        Fy = function(leaf)

    def product(w, *_):
        return torch.autograd.grad(Fy, leaf, w, retain_graph=True)[0], None

    relation = Relation(v, s / c, 1.0, None if mask is None else ~mask[..., None])
    adjoint = solve_to(relation, product, adjoint_solver, c * v, most, tolerance, on_host=True)
    return torch.stack([_steps(forward) + (equation.initial_guess == "explicit"), _steps(adjoint)]).cpu()


def _steps(solution: Solution) -> Tensor:
    """Iterations made, (batch,), inf where these did not reach the tolerance."""
    return torch.where(solution.converged, solution.num_steps.double(), torch.inf)


def _equation(model: Any) -> Equation:
    config = model.config
    return Equation(config.im_theta, config.im_step_size, config.im_vector_field, config.im_initial_guess)


def _rows(model: Any, make: Make = make_variants, **options) -> list[Variant]:
    rates = (model.config.im_learning_rate,)
    return make(model, theta=model.config.im_theta, **{"learning_rates": rates, **options})


def _settings(rows: Sequence[Variant]) -> list[Variant]:
    """Those of IM-BERT, of each solver and gradient in the order of their iterations."""
    return [row for row in rows if row.kind == "IM-BERT"]


def _one_of(names: Iterable[str]) -> tuple[str, Callable[[Any], bool]]:
    allowed = tuple(names)
    return f"one of {', '.join(map(repr, allowed))}", lambda value: value in allowed


def _check(model: Any, *arguments: tuple[str, Sequence[Any], tuple[str, Callable[[Any], bool]]]) -> None:
    """Raises ValueError for the model, or the first of `arguments`, name, values and what is allowed."""
    if any(module.training for module in model.modules()):
        raise ValueError("model must be in eval mode in all its parts, got one in training mode.")
    if not model.config.im_theta > 0:
        raise ValueError(f"im_theta must be > 0, or there is nothing to solve, got {model.config.im_theta}.")
    for name, values, (allowed, accept) in arguments:
        if not values:
            raise ValueError(f"{name} must hold {allowed}, got nothing.")
        for value in values:
            if not accept(value):
                raise ValueError(f"{name} must be {allowed}, got {value!r}.")
