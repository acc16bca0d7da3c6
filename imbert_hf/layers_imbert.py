"""The implicit connection as classes to stand before a family's self-attention, layer and encoder.

A layer computes y = x + gamma [(1 - theta) f(x) + theta f(y)] by a solve inside forward (step_imbert.py), around the
family's unchanged layer as F. No parameter is added, none renamed: the family's checkpoints load, and load back.

This file travels with every checkpoint: it imports torch, the standard library and its sisters alone.
"""

import contextlib
import copy
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .evaluations_imbert import RandomState, functional
from .pass_imbert import Pass, token_mask


def may_draw(modules: Iterable[nn.Module]) -> bool:
    """Of modules in training. A compiler has to know beforehand; else the first evaluation tells."""
    return not torch.compiler.is_compiling() or any(getattr(module, "p", 0) > 0 for module in modules)


class LayerMap:
    """h -> F(h), the plain layer under one forward's mask and arguments; what implicit_step calls the layer."""

    attended: Any = None  # what the last evaluation's attention returned, its weights last
    training = draws = twice = False

    def __init__(self, layer: Any, args: tuple, kwargs: dict, im_pass: Pass):
        self.plain, self.args, self.kwargs, self.attention = layer.plain, args, kwargs, im_pass.attention
        self.rows = layer.im_rows
        self.parts: list[nn.Module] = []
        solves = im_pass.method.theta > 0 and im_pass.iterations[layer.training] > 0
        if solves or im_pass.rows or im_pass.statistics is not None:  # else F is evaluated once
            self._look_at(layer)
        if solves and im_pass.solver.needs_pullback:
            # Twice differentiated; in training with a graph or not, since reentrant checkpointing runs both.
            self.twice = im_pass.gradient.unrolled and (self.training or torch.is_grad_enabled())
            if not functional() and torch.is_inference_mode_enabled():
                with torch.inference_mode(False):  # a product cannot save what was made in it
                    self.args, self.kwargs = torch.utils._pytree.tree_map_only(Tensor, torch.clone, (args, kwargs))

    def _look_at(self, layer: nn.Module) -> None:
        level = [layer]
        while level := [child for part in level for child in part._modules.values() if child is not None]:
            self.parts += level  # layer.modules() takes ten times as long
        self.training = layer.training or any(part.training for part in self.parts)
        self.draws = self.training and may_draw(self.parts)

    @property
    def selects(self) -> bool:
        # Other kinds of attention report weights of the whole batch, or know its rows by more than the mask; hooks may.
        hooked = any(part._forward_hooks or part._forward_pre_hooks for part in self.parts)
        return not hooked and self.attention == "sdpa" and all(len(t) == 1 for t in self.kwargs.get(self.rows, ()))

    def select(self, rows: Tensor) -> "LayerMap":
        part, (mask, *rest) = copy.copy(self), self.args
        part.args = (mask if mask is None or len(mask) == 1 else mask[rows], *rest)
        return part

    def modules(self) -> list[nn.Module]:
        """What an evaluation calls, hooks and all: the parts of the layer."""
        return self.parts

    @property
    def reported(self) -> list[Tensor]:
        return [] if self.attended is None else [self.attended[-1]]

    def __call__(self, hidden_states: Tensor) -> Tensor:
        if not self.twice:
            return self.plain(hidden_states, *self.args, im_map=self, **self.kwargs)
        with sdpa_kernel(SDPBackend.MATH):
            return self.plain(hidden_states, *self.args, im_map=self, **self.kwargs)


class ImplicitSelfAttention:
    """The family's, reporting its weights once a solve: transformers records what this module returns at every call."""

    def forward(self, hidden_states: Any, *args: Any, im_map: Any = None, im_report: Any = None, **kwargs) -> Any:
        if im_report is not None:
            return im_report
        output, weights = super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]
        if im_map is None or weights is None:
            return output, weights
        im_map.attended = output, weights
        return output, None


class ImplicitLayer:
    """The family's layer as F of an implicit step, where config.im_layers names its place; else the plain layer."""

    attention: Any
    training: bool
    im_rows: ClassVar[str] = ""  # a keyword whose tensors may hold a row each, as the mask does
    im_place: tuple[int, int] | None = None  # in the list of its encoder's last forward, and that list's length
    im_carries: bool | None = None  # whether that place carried the connection

    @property
    def im_attention(self) -> Any:
        """The part of the layer whose outputs are attentions."""
        return self.attention.self

    @property
    def im_built(self) -> tuple[int, int]:
        """The place in a list that was built."""
        attention = self.im_attention
        return getattr(attention, "layer_idx", 0), attention.config.num_hidden_layers

    @staticmethod
    def own_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
        """Of the keywords of a forward of this layer, those of the family's."""
        return {name: value for name, value in kwargs.items() if name != "im_pass"}

    @property
    def plain(self) -> Callable:
        """F, the family's own forward: (batch, length, width), and its arguments, to (batch, length, width)."""
        return super().forward  # type: ignore[misc]

    def forward(self, hidden_states: Tensor, attention_mask: Any = None, *args, im_pass: Any = None, **kwargs) -> Any:
        alone = im_pass is None
        if alone:
            im_pass = Pass(self.im_attention.config, mask=token_mask(attention_mask))
        carries = self.im_carries
        # A compiler, whose guard on a place would tell layers apart, is content with what the encoder told.
        if carries is None or not (im_pass.entered and torch.compiler.is_compiling()):
            carries = im_pass.carries_at(self)
        x, *explicit = hidden_states.split(im_pass.rows) if im_pass.rows else (hidden_states,)
        if not carries and not explicit:
            return self.plain(x, attention_mask, *args, **kwargs)
        F = LayerMap(self, (attention_mask, *args), kwargs, im_pass)
        again = RandomState(x.device).again if explicit and F.draws else contextlib.nullcontext
        if carries:
            y, y0 = self._step(F, x, im_pass, track_guess=im_pass.rows > 0 and not explicit)
        else:
            y = self.plain(x, attention_mask, *args, **kwargs)
        for x0 in explicit:
            with again():
                y0 = im_pass.guess(F, x0) if carries else self.plain(x0, attention_mask, *args, im_map=F, **kwargs)
        if alone:
            im_pass.report()
        return torch.cat([y, y0]) if im_pass.rows else y

    def _step(self, F: LayerMap, x: Tensor, im_pass: Pass, track_guess: bool) -> tuple[Tensor, Any]:
        solution = im_pass.step(F, x, self.training, track_guess)
        if F.attended is not None and im_pass.records:  # before the statistics evaluate the layer once more
            attended = F.attended if solution.value.requires_grad else tuple(t.detach() for t in F.attended)
            # The copies leave the scope of torch.func, where they may come from.
            self.report_attention(F, x, tuple(t.clone() for t in attended) if functional() else attended)
        im_pass.add(solution)
        return solution.value, solution.guess

    def report_attention(self, F: LayerMap, x: Tensor, attended: tuple[Tensor, ...]) -> None:
        self.im_attention(x, im_report=attended)


class ImplicitEncoder:
    """The family's stack of layers, each told its place."""

    config: Any
    layer: Any

    def forward(self, hidden_states: Tensor, attention_mask: Any = None, *args, im_pass: Any = None, **kwargs) -> Any:
        for name in ("past_key_values", "cache", "encoder_hidden_states"):
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"{name} must be None for {self.config.model_type!r}, got a {type(kwargs[name]).__name__}: each "
                    "evaluation of a layer would write the cache again."
                )
        if im_pass is None:
            im_pass = Pass(self.config, mask=token_mask(attention_mask))
        im_pass.enter(self.layer, hidden_states.shape[0])  # len() would fix it in an export
        outputs = super().forward(hidden_states, attention_mask, *args, im_pass=im_pass, **kwargs)  # type: ignore[misc]
        im_pass.leave(outputs)
        return outputs
