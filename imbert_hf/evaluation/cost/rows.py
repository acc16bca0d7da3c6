"""What is measured: plain BERT, the settings of IM-BERT, and the references, each with the least that it must cost."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from imbert_hf import GradientDescent
from imbert_hf.evaluation.cost import references
from imbert_hf.evaluation.cost.references import Batch, Equation, plain_bert, plain_losses
from imbert_hf.evaluation.stability.growth import connected


SOLVERS = ("fixed_point", "anderson", "gradient_descent")
GRADIENTS = ("implicit", "one_step", "unrolled")
# The fields of a model that its rows keep
KEPT = (
    "im_vector_field",
    "im_step_size",
    "im_initial_guess",
    "im_damping",
    "im_anderson_memory",
    "im_gradient_iterations",
)
# In units of plain BERT's evaluation of a layer. The backward of a tracked product is priced like an evaluation's.
EVALUATION, PRODUCT, BACKWARD = 1.0, 1.0, 2.0
BERT_STEP = EVALUATION + BACKWARD


@dataclass(frozen=True)
class Floor:
    """The work of inference and of a training step in evaluations of a layer, as if nothing else took time."""

    inference: float
    training: float


def floor(
    solver: str,
    gradient: str,
    iterations: int,
    *,
    theta: float = 1.0,
    initial_guess: str = "explicit",
    gradient_iterations: int | None = None,
) -> Floor:
    """What a solve must cost: 1 for an evaluation or a vector-Jacobian product, 2 for the backward of a tracked one.

    Args:
        solver, gradient, iterations, initial_guess, gradient_iterations: as IMBertConfig has them, iterations >= 1.
        theta: > 0; below 1, F(x) is tracked too.
    """
    evaluations = iterations + (initial_guess == "explicit")
    products = iterations if solver == "gradient_descent" else 0
    forward = EVALUATION * evaluations + PRODUCT * products
    if gradient == "unrolled":
        return Floor(forward, forward + BACKWARD * (evaluations + products))
    single = initial_guess == "previous" and iterations == 1  # F(x) is then the one evaluation that there is
    backward = BACKWARD * (theta < 1 and not (single and gradient == "one_step"))
    if gradient == "one_step":
        return Floor(forward, forward + backward + BACKWARD)
    adjoint = iterations if gradient_iterations is None else gradient_iterations
    return Floor(forward, forward + backward + EVALUATION + PRODUCT * adjoint + BACKWARD)


@dataclass(frozen=True, eq=False)
class Row:
    """One way to compute a batch, and to train on it.

    Attributes:
        name: unique.
        kind: "BERT", "EX-BERT", "IM-BERT", "literal", "torchdeq", "FreeLB" or "R3F".
        model: the classifier.
        floor: see `floor`.
        fields: im_ fields that the model has meanwhile.
        losses: of one training step, see cost_references.plain_losses; None: inference alone.
        inference: name of what is run at inference, shared by rows that differ in training alone; None: nothing.
        setting: what the name tells: solver, gradient, iterations, learning_rate.
    """

    name: str
    kind: str
    model: Any
    floor: Floor
    fields: Mapping[str, Any] = field(default_factory=dict)
    losses: Callable[[Any, Batch], Iterator[Tensor]] = plain_losses
    inference: str | None = None
    setting: Mapping[str, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def ready(self, training: bool) -> Iterator[None]:
        """The model as it is to run."""
        self.model.train(training)
        try:
            with connected(self.model.config, self.fields):
                yield
        finally:
            self.model.eval()

    def infer(self, batch: Batch) -> Any:
        with torch.no_grad():
            return self.model(**batch)

    def step(self, batch: Batch) -> None:
        """Forward and backward; no optimiser."""
        for loss in self.losses(self.model, batch):
            loss.backward()


def make_rows(
    model: Any,
    *,
    solvers: Sequence[str] = SOLVERS,
    gradients: Sequence[str] = GRADIENTS,
    iterations: Sequence[int] = (2, 3, 5),
    learning_rates: Sequence[float] = (GradientDescent.learning_rate,),
    theta: float = 1.0,
    implicit_layers: int | None = None,
    with_references: bool = False,
) -> list[Row]:
    """BERT, EX-BERT, each setting of IM-BERT, and what it is compared with; all with the parameters of `model`.

    Args:
        model: IMBertForSequenceClassification, whose other im_ fields the settings keep.
        solvers, gradients, iterations: of IM-BERT, every combination.
        learning_rates: of gradient_descent.
        theta: > 0 and <= 1.
        implicit_layers: how many, from the last one down; the others are plain. None: all.
        with_references: add those of cost_references; torchdeq's where it is installed.
    """
    config, layers = model.config, last_layers(model, implicit_layers)
    base = {"im_layers": layers, "im_theta": theta, "im_tolerance": 0.0, "im_eval_iterations": None}
    explicit = {**base, "im_theta": 0.0, "im_vector_field": "layer"}
    bert, unit = plain_bert(model), Floor(EVALUATION, BERT_STEP)
    rows = [
        Row("BERT", "BERT", bert, unit, inference="BERT"),
        Row("EX-BERT", "EX-BERT", model, unit, explicit, inference="EX-BERT"),
    ]
    work = partial(
        floor,
        theta=theta,
        initial_guess=config.im_initial_guess,
        gradient_iterations=config.im_gradient_iterations,
    )
    equation = Equation(theta, config.im_step_size, config.im_vector_field, config.im_initial_guess)
    settings = [
        (solver, T, rate)
        for solver in solvers
        for rate in (learning_rates if solver == "gradient_descent" else [None])
        for T in iterations
    ]
    for solver, T, rate in settings:
        fields = {**base, "im_solver": solver, "im_iterations": T} | (
            {} if rate is None else {"im_learning_rate": rate}
        )
        shared = _name(solver, T, rate)
        for gradient in gradients:
            setting = {"solver": solver, "gradient": gradient, "iterations": T, "learning_rate": rate}
            rows.append(
                Row(
                    f"{shared}, {gradient}",
                    "IM-BERT",
                    model,
                    work(solver, gradient, T),
                    {**fields, "im_gradient": gradient},
                    inference=shared,
                    setting=setting,
                )
            )
    if not with_references:
        return rows
    for rate in learning_rates:
        for T in iterations:
            name = f"literal {_name('', T, rate)}"
            setting = {"solver": "gradient_descent", "gradient": "unrolled", "iterations": T, "learning_rate": rate}
            other = plain_bert(model, references.literal(equation, T, rate), layers)
            total = work("gradient_descent", "unrolled", T)
            rows.append(Row(name, "literal", other, total, inference=name, setting=setting))
    if references.find_torchdeq():
        options = {"damping": config.im_damping, "memory": config.im_anderson_memory}
        options["gradient_iterations"] = config.im_gradient_iterations
        for solver, T, _ in settings:
            half = model.dtype in (torch.bfloat16, torch.float16)  # its Anderson calls a solve that has neither
            if solver not in references.TORCHDEQ_SOLVERS or (solver == "anderson" and half):
                continue
            shared = f"torchdeq {_name(solver, T, None)}"
            for gradient in references.TORCHDEQ_GRADIENTS:
                if gradient not in gradients:
                    continue
                setting = {"solver": solver, "gradient": gradient, "iterations": T, "learning_rate": None}
                solve = references.through_torchdeq(equation, solver, gradient, T, **options)
                total = work(solver, gradient, T)
                other = plain_bert(model, solve, layers)
                name = f"{shared}, {gradient}"
                rows.append(Row(name, "torchdeq", other, total, inference=shared, setting=setting))
    rows.append(Row("FreeLB, 3 steps", "FreeLB", bert, Floor(EVALUATION, 3 * BERT_STEP), {}, references.freelb_losses))
    rows.append(Row("R3F", "R3F", bert, Floor(EVALUATION, 2 * BERT_STEP), {}, references.r3f_losses))
    return rows


def last_layers(model: Any, count: int | None) -> list[int]:
    """Indices of the last `count` layers; None: of all."""
    total = model.config.num_hidden_layers
    if count is not None and not 1 <= count <= total:
        raise ValueError(f"implicit_layers must be an integer from 1 to {total} for this model, got {count}.")
    return list(range(total))[-(count or total) :]


def _name(solver: str, iterations: int, rate: float | None) -> str:
    return f"{solver} T {iterations}".strip() + ("" if rate is None else f" lr {rate:g}")
