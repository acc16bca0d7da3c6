"""What is measured: plain BERT, EX-BERT and the settings of IM-BERT, each with the least that it must cost."""

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from imbert_hf import GradientDescent
from imbert_hf.evaluation.attacks.ascent import Batch
from imbert_hf.evaluation.stability.growth import connected


SOLVERS = ("fixed_point", "anderson", "gradient_descent")
GRADIENTS = ("implicit", "one_step", "unrolled")
# The fields of a model that its variants keep
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

    def to_bert(self, training: bool, share: float = 1.0) -> float:
        """In units of BERT's inference or training step; a `share` of the layers works so, and the rest is BERT's."""
        unit = self.training / BERT_STEP if training else self.inference / EVALUATION
        return 1 + (unit - 1) * share


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


def plain_bert(model: Any) -> Any:
    """transformers' own classifier with the parameters of `model`, such a one or an implicit one, shared."""
    bert = model.to_plain() if hasattr(model, "to_plain") else copy.deepcopy(model)
    bert.load_state_dict(model.state_dict(keep_vars=True), assign=True)
    return bert.eval()


def plain_losses(model: Any, batch: Batch) -> Iterator[Tensor]:
    """The loss of one training step; each loss that such a function yields is to be differentiated at once."""
    yield model(**batch).loss


@dataclass(frozen=True, eq=False)
class Variant:
    """One way to compute a batch, and to train on it.

    Attributes:
        name: unique.
        kind: "BERT", "EX-BERT", "IM-BERT", or what else it is compared with.
        model: the classifier.
        floor: see `floor`.
        fields: im_ fields that the model has meanwhile.
        losses: of one training step, see `plain_losses`.
        inference: name of what is run at inference, shared by variants that differ in training alone; None: nothing.
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


def make_variants(
    model: Any,
    *,
    solvers: Sequence[str] = SOLVERS,
    gradients: Sequence[str] = GRADIENTS,
    iterations: Sequence[int] = (2, 3, 5),
    learning_rates: Sequence[float] = (GradientDescent.learning_rate,),
    theta: float = 1.0,
    implicit_layers: int | None = None,
) -> list[Variant]:
    """BERT, EX-BERT and each setting of IM-BERT; all with the parameters of `model`.

    Args:
        model: a sequence classifier of imbert_hf, whose other im_ fields the settings keep.
        solvers, gradients, iterations: of IM-BERT, every combination.
        learning_rates: of gradient_descent.
        theta: > 0 and <= 1.
        implicit_layers: how many, from the last one down; the others are plain. None: all.
    """
    layers, unit = last_layers(model, implicit_layers), Floor(EVALUATION, BERT_STEP)
    base = {"im_layers": layers, "im_theta": theta, "im_tolerance": 0.0, "im_eval_iterations": None}
    base["im_consistency"] = 0.0  # no part of the floor
    explicit = {**base, "im_theta": 0.0, "im_vector_field": "layer"}
    variants = [
        Variant("BERT", "BERT", plain_bert(model), unit, inference="BERT"),
        Variant("EX-BERT", "EX-BERT", model, unit, explicit, inference="EX-BERT"),
    ]
    for (solver, T, rate), gradient in itertools.product(settings(solvers, iterations, learning_rates), gradients):
        fields = {**base, "im_solver": solver, "im_iterations": T, "im_gradient": gradient}
        fields |= {} if rate is None else {"im_learning_rate": rate}
        setting = {"solver": solver, "gradient": gradient, "iterations": T, "learning_rate": rate}
        shared, least = name_of(solver, T, rate), floor_of(model, solver, gradient, T, theta)
        variants.append(
            Variant(f"{shared}, {gradient}", "IM-BERT", model, least, fields, inference=shared, setting=setting)
        )
    return variants


def settings(
    solvers: Sequence[str], iterations: Sequence[int], learning_rates: Sequence[float]
) -> list[tuple[str, int, float | None]]:
    """Solver, iterations and learning rate, None but of gradient_descent."""
    return [
        (solver, T, rate)
        for solver in solvers
        for rate in (learning_rates if solver == "gradient_descent" else [None])
        for T in iterations
    ]


def floor_of(model: Any, solver: str, gradient: str, iterations: int, theta: float) -> Floor:
    """The floor of a setting with the model's own guess and adjoint iterations."""
    config = model.config
    own = {"initial_guess": config.im_initial_guess, "gradient_iterations": config.im_gradient_iterations}
    return floor(solver, gradient, iterations, theta=theta, **own)


def last_layers(model: Any, count: int | None) -> list[int]:
    """Indices of the last `count` layers; None: of all."""
    total = model.config.num_hidden_layers
    if count is not None and not 1 <= count <= total:
        raise ValueError(f"implicit_layers must be an integer from 1 to {total} for this model, got {count}.")
    return list(range(total))[-(count or total) :]


def name_of(solver: str, iterations: int, rate: float | None) -> str:
    return f"{solver} T {iterations}".strip() + ("" if rate is None else f" lr {rate:g}")
