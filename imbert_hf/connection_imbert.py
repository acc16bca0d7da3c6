"""What the implicit layers of one forward share, and a layer as the map that an implicit step is solved for.

This file travels with every checkpoint: it imports torch, transformers, the standard library and its sisters alone.
"""

import contextlib
import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .configuration_imbert import ImplicitConfig
from .gradients_imbert import Gradient, Implicit, OneStep, Unrolled
from .solvers_imbert import Anderson, FixedPoint, GradientDescent, Solver


IM_VERSION = "0.1.0"

SOLVERS: dict[str, Callable[[ImplicitConfig], Solver]] = {
    "gradient_descent": lambda config: GradientDescent(config.im_learning_rate),
    "fixed_point": lambda config: FixedPoint(config.im_damping),
    "anderson": lambda config: Anderson(config.im_damping, config.im_anderson_memory),
}
# The plain adjoint iteration keeps no history, but diverges where the map does: fit for those who iterate the map.
ADJOINT_SOLVERS: dict[str, Callable[[ImplicitConfig], Solver]] = {
    "gradient_descent": lambda config: Anderson(memory=config.im_anderson_memory),
    "fixed_point": lambda config: FixedPoint(),
    "anderson": lambda config: Anderson(memory=config.im_anderson_memory),
}
GRADIENTS: dict[str, Callable[[ImplicitConfig], Gradient]] = {
    "unrolled": lambda config: Unrolled(),
    "implicit": lambda config: Implicit(config.im_gradient_iterations, ADJOINT_SOLVERS[config.im_solver](config)),
    "one_step": lambda config: OneStep(),
}


@dataclass
class Pass:
    """What the implicit layers of one forward share: the config, read once; the token mask; and what they report."""

    config: ImplicitConfig
    mask: Tensor | None = None
    statistics: list[tuple[Tensor, Tensor]] | None = None
    finite: list[Tensor] = field(default_factory=list)

    def __post_init__(self):
        config = self.config
        self.layers = config.implicit_layers
        evaluation = config.im_iterations if config.im_eval_iterations is None else config.im_eval_iterations
        self.iterations = {True: config.im_iterations, False: evaluation}  # by `training`
        self.options: dict[str, Any] = {
            "vector_field": config.im_vector_field,
            "step_size": config.im_step_size,
            "theta": config.im_theta,
            "solver": SOLVERS[config.im_solver](config),
            "gradient": GRADIENTS[config.im_gradient](config),
            "initial_guess": config.im_initial_guess,
            "tolerance": config.im_tolerance,
        }


# Files of modules whose only random numbers are those of dropout, told by its probability `p`.
DROPOUT_ALONE = {
    "torch.nn.modules.activation",
    "torch.nn.modules.dropout",
    "torch.nn.modules.linear",
    "torch.nn.modules.normalization",
    "transformers.activations",
}


def may_draw(layer: nn.Module, parts: list[nn.Module]) -> bool:
    """Whether `layer`, made of `parts`, may draw random numbers in training.

    False is certain: no dropout has p > 0, and no part is unknown, as an adapter's would be. Which mode a module of
    dropout is in counts for nothing: attention takes the p of its own with a mode of its own.
    """
    known = {base.__module__ for base in type(layer).__mro__} | DROPOUT_ALONE
    return any(
        type(part).__module__ not in known
        or isinstance(part, (nn.RReLU, nn.MultiheadAttention))
        or "forward" in part.__dict__
        or getattr(part, "p", 0) > 0
        for part in parts
    )


def token_mask(attention_mask: Tensor | None) -> Tensor | None:
    """(batch, length), True for real tokens, from what BERT takes as attention_mask."""
    if attention_mask is None or attention_mask.dim() == 2:
        return attention_mask
    if attention_mask.dim() != 4:
        raise ValueError(
            "attention_mask must be (batch, length), or (batch, heads or 1, length, length) as the layers take it, got "
            f"{tuple(attention_mask.shape)}."
        )
    # A token is real where some query may attend to it: True in a bool mask, no large negative in an additive one.
    allowed = attention_mask if attention_mask.dtype == torch.bool else attention_mask > -1e3
    return allowed.any(dim=2).any(dim=1)


class LayerMap:
    """h -> F(h), the plain layer under one forward's masks and arguments; what implicit_step calls the layer."""

    def __init__(self, layer: Any, args: tuple, kwargs: dict, math_attention: bool):
        self.layer, self.args, self.kwargs, self.math_attention = layer, args, kwargs, math_attention
        parts = [part for part in layer._modules.values() if part is not None]
        for part in parts:  # which grows, as layer.modules() would, at a tenth of its time
            parts.extend(child for child in part._modules.values() if child is not None)
        hooked = any(part._forward_hooks or part._forward_pre_hooks for part in parts)
        self.training = layer.training or any(part.training for part in parts)
        self.draws = self.training and (hooked or may_draw(layer, parts))
        # Other kinds of attention report weights of the whole batch, or know its rows by more than the mask; hooks may.
        self.selects = not hooked and layer.config._attn_implementation == "sdpa"

    def select(self, rows: Tensor) -> "LayerMap":
        part, (mask, *rest) = copy.copy(self), self.args
        part.args = (mask if mask is None or len(mask) == 1 else mask[rows], *rest)
        return part

    def modules(self) -> list[nn.Module]:
        """What an evaluation calls, hooks and all: the parts of the layer."""
        return [*self.layer.modules()][1:]

    def parameters(self) -> list[Tensor]:
        # Replicas of DataParallel hold theirs under another name.
        return [
            p
            for module in self.layer.modules()
            for p in (*module._parameters.values(), *getattr(module, "_former_parameters", {}).values())
            if p is not None
        ]

    def __call__(self, hidden_states: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH) if self.math_attention else contextlib.nullcontext():
            return self.layer.plain(hidden_states, *self.args, **self.kwargs)


_unread: dict[torch.device, tuple[int, Tensor]] = {}


def report_non_finite(finite: Tensor) -> None:
    """Warns where a solve met non-finite values; (batch,) bool.

    Memory of the host is read at every call. Elsewhere to read waits for the device: the flags are gathered, and read
    at calls 1, 2, 4, ... 64 and every 64 from there on.
    """
    if torch.compiler.is_compiling() or type(finite) is not Tensor:
        return
    if finite.device.type != "cpu":
        calls, flag = _unread.get(finite.device, (0, finite.all()))
        calls, flag = calls + 1, flag & finite.all()
        read = calls % 64 == 0 or calls in (1, 2, 4, 8, 16, 32)
        _unread[finite.device] = calls, torch.ones_like(flag) if read else flag
        if not read:
            return
        finite = flag.reshape(1)
    if not all(finite.tolist()):
        warnings.warn(
            "An implicit layer met non-finite values; the examples concerned keep the best finite iterate, and "
            "output_im_statistics=True shows which. Lower im_step_size or im_learning_rate, or look for NaN in the "
            "input or the weights.",
            RuntimeWarning,
            stacklevel=2,
        )
