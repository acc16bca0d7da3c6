"""The implicit connection as classes to stand before those of a family like BERT: self-attention, layer, model.

A layer computes y = x + gamma [(1 - theta) f(x) + theta f(y)] by a solve inside forward (gradients_imbert.py), around
the family's unchanged layer as F. No parameter is added, none renamed: the family's checkpoints load, and load back.

This file travels with every checkpoint: it imports torch, transformers, the standard library and its sisters alone.
"""

import inspect
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .configuration_imbert import other_release
from .connection_imbert import LayerMap, Pass, report_non_finite, token_mask
from .gradients_imbert import implicit_step


IM_VERSION = "0.1.0"


class ImplicitSelfAttention:
    """The family's, reporting its weights once a solve: transformers records what this module returns at every call."""

    def forward(self, hidden_states: Any, *args: Any, im_weights: Any = None, im_report: bool = False, **kwargs) -> Any:
        if im_report:
            return None, im_weights.pop().clone()  # the copy leaves the scope of torch.func, where it may come from
        output, weights = super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]
        if im_weights is None:
            return output, weights
        if weights is not None:
            im_weights[:] = [weights]
        return output, None


class ImplicitLayer:
    """The family's layer as F of an implicit step, where config.im_layers names it; else the plain layer."""

    attention: Any
    training: bool

    @property
    def config(self) -> Any:
        return self.attention.self.config

    def plain(self, hidden_states: Tensor, *args, **kwargs) -> Any:
        """F, the family's own layer: (batch, length, width), and its arguments, to (batch, length, width)."""
        return super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]

    def forward(self, hidden_states: Tensor, attention_mask: Any = None, *args, im_pass: Any = None, **kwargs) -> Any:
        im_pass = im_pass or Pass(self.config)
        if self.attention.self.layer_idx not in im_pass.layers:
            return self.plain(hidden_states, attention_mask, *args, **kwargs)
        options, iterations = im_pass.options, im_pass.iterations[self.training]
        # In training, whether a graph is recorded or not: reentrant checkpointing runs both with the same kernels.
        twice = options["solver"].needs_pullback and options["gradient"].unrolled
        twice = twice and (self.training or torch.is_grad_enabled())
        attention = im_pass.config._attn_implementation
        if twice and attention not in ("eager", "sdpa"):
            raise ValueError(
                f"attn_implementation {attention!r} has no second derivative, which im_solver 'gradient_descent' with "
                "im_gradient 'unrolled' needs in training; use 'sdpa' or 'eager', or another im_gradient."
            )
        if attention == "flex_attention" and options["solver"].needs_pullback and hidden_states.device.type == "cpu":
            raise ValueError(
                "attn_implementation 'flex_attention' has no derivative on a CPU, which im_solver 'gradient_descent' "
                "needs at inference too; use 'sdpa' or 'eager', or another im_solver."
            )
        # With SDPA transformers hands on no mask where nothing is padded.
        mask = None if attention_mask is None and attention == "sdpa" else im_pass.mask
        if mask is not None:  # which may be one for all rows, and on the device of another layer
            mask = mask.to(hidden_states.device).expand(hidden_states.shape[:2])
        weights: list[Tensor] = []
        math_attention = twice and iterations > 0 and options["theta"] > 0
        solution = implicit_step(
            LayerMap(self, (attention_mask, *args), {**kwargs, "im_weights": weights}, math_attention),
            hidden_states,
            iterations=iterations,
            mask=mask,
            **options,
        )
        if weights:  # before the statistics evaluate the layer once more
            self.attention.self(None, im_weights=weights, im_report=True)
        im_pass.finite.append(solution.finite)
        if im_pass.statistics is not None:
            im_pass.statistics.append((solution.residual, solution.num_steps))
        return solution.value


def model_forward(family_forward: Callable) -> Callable:
    """The forward of a family's encoder model, with what its implicit layers share handed on to them."""
    names = list(inspect.signature(family_forward).parameters)[3:]  # after self, input_ids and attention_mask

    @wraps(family_forward)
    def forward(self: Any, input_ids=None, attention_mask=None, *args, im_statistics=None, **kwargs):
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        for name in ("past_key_values", "encoder_hidden_states"):
            if given.get(name) is not None:
                raise ValueError(
                    f"{name} must be None for {self.config.model_type!r}, got a {type(given[name]).__name__}: each "
                    "evaluation of a layer would write the cache again."
                )
        im_pass = Pass(self.config, token_mask(attention_mask), im_statistics)
        outputs = family_forward(self, input_ids, attention_mask, *args, im_pass=im_pass, **kwargs)
        if im_pass.finite:
            device = im_pass.finite[0].device  # of the first layer, where layers are on several
            report_non_finite(torch.stack([flags.to(device) for flags in im_pass.finite]).all(dim=0))
        return outputs

    return forward


class ImplicitPreTrainedModel:
    """Before the classes of a family: its modules, built by the family itself, become the implicit ones.

    They are not built anew: that would initialise twice, and draw other random numbers for the weights than the family.
    """

    config_class: Any
    implicit_classes: ClassVar[dict[type, type]]  # of the family: plain class -> implicit class
    # Lists that a forward fills: accelerate's hooks would hand copies of them to the modules.
    _skip_keys_device_placement: Any = ["im_statistics", "im_weights"]  # noqa: RUF012
    # The heads average their losses and ignore num_items_in_batch. The Trainer takes the **kwargs of their forward for
    # the contrary, and would add up the losses of accumulated batches and of processes instead of averaging them.
    accepts_loss_kwargs = False

    def __init__(self, config: Any, *args, **kwargs):
        wanted = self.config_class
        if getattr(config, "model_type", None) != wanted.model_type:
            raise ValueError(
                f"{type(self).__name__} needs an {wanted.__name__}, got {type(config).__name__}; from_pretrained makes "
                f"one of the family's, or {wanted.__name__}(**config.to_dict())."
            )
        config.check_im_fields()
        _check_releases(config.im_version)
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        for module in self.modules():  # type: ignore[attr-defined]
            module.__class__ = self.implicit_classes.get(type(module), type(module))
            if not isinstance(module, PreTrainedModel):
                continue
            # What transformers notes by the class of a model, where it is built, was noted by the family's:
            kind = type(module)
            for name in ("_no_split_modules", "_skip_keys_device_placement"):
                setattr(module, name, list(getattr(kind, name)))
            if module is not self:  # which outputs it can record
                PreTrainedModel.__init__(kind.__new__(kind), config)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args, **kwargs) -> Any:
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)  # type: ignore[misc]
        except Exception as error:
            if type(error).__name__ != "SafetensorError":  # which names no file
                raise
            raise OSError(
                f"The weights in {pretrained_model_name_or_path} cannot be read ({error}): the file is cut off or no "
                "safetensors file. Save or download it again."
            ) from error


def _check_releases(release: str) -> None:
    """Warns where a travelling file beside this one is of another release than the config's."""
    package = __name__.rpartition(".")[0]
    for name, module in list(sys.modules.items()):
        folder, _, file = name.rpartition(".")
        if folder == package and file.endswith("_imbert"):
            version = getattr(module, "IM_VERSION", "of unknown version")
            if version != release:
                warnings.warn(other_release(f"{file}.py", version), stacklevel=3)
