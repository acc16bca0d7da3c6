"""A layer as one fixed function of its input during a solve, and its products.

This file travels with every checkpoint: it imports torch, the standard library and its sister solvers_imbert.py alone.
"""

import contextlib
import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .solvers_imbert import Evaluation


IM_VERSION = "0.1.0"

# How a dropout mask is drawn on a CPU, the second way within torch.func, and how a kept one takes its place.
_DRAWS: dict[Any, Callable[[Tensor, Tensor], Tensor]] = {
    torch.ops.aten.bernoulli_.float: lambda t, mask: t.copy_(mask),
    torch.ops.aten.bernoulli.p: lambda t, mask: mask.to(t.dtype),
}


class _KeepMasks(TorchDispatchMode):
    """Keeps the dropout masks that the CPU draws inside it in `masks`, None where it draws anything else too."""

    supports_higher_order_operators = True  # which have no tags

    def __init__(self):
        super().__init__()
        self.masks: list[Tensor] | None = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in _DRAWS:
            result = func(*args, **kwargs or {})
            if self.masks is not None:
                self.masks.append(result.bool())
            return result
        random = torch.Tag.nondeterministic_seeded in getattr(func, "tags", ())
        state = torch.get_rng_state() if random else None
        result = func(*args, **kwargs or {})
        if state is not None and not torch.equal(state, torch.get_rng_state()):
            self.masks = None
        return result


class _UseMasks(TorchDispatchMode):
    """Hands the kept masks out again, in their order, where they would be drawn."""

    supports_higher_order_operators = True

    def __init__(self, masks: list[Tensor]):
        super().__init__()
        self.masks = masks[::-1]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in _DRAWS:
            return _DRAWS[func](args[0], self.masks.pop())
        return func(*args, **kwargs or {})


class FixedMap:
    """F as one fixed function: every evaluation, in forward and in backward, is the first one again.

    Each replays the random state of the first, so that all draw the same dropout masks, and leaves the state as it
    found it; the first leaves what a plain call of the layer would leave. On a CPU, where to draw the masks takes a
    third of an evaluation, they are kept instead, a byte an element, until an evaluation is told to drop them; a part
    of the layer that backward recomputes (checkpointing inside a layer, not of it) would not find them there. Each runs
    under the autocast setting of the forward.

    Args:
        layer: h -> F(h) of the same shape. Where an attribute `draws`, or else `training`, is false, nothing is
            replayed, and where `selects` is true, layer.select(rows) is the same for some rows of the batch.
        x: a tensor on the layer's device.
    """

    def __init__(self, layer: Any, x: Tensor):
        self.layer = layer
        self.random = getattr(layer, "draws", getattr(layer, "training", True))
        self.device = x.device
        self.state: tuple | None = None
        self.masks: list[Tensor] | None = None
        self.drop_masks = False
        self.grad = torch.is_grad_enabled()
        self.autocast = None
        if torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type):
            self.autocast = torch.get_autocast_dtype(x.device.type)

    def __call__(self, y: Tensor) -> Tensor:
        with self._autocast():
            if not self.random:
                return self.layer(y)
            if self.state is None:
                self.state = self._get_state()
                return self._first(y)
            if self.masks is not None:
                use = _UseMasks(self.masks)
                if self.drop_masks:
                    self.masks = None
                with use:
                    return self.layer(y)
            outer = self._get_state()
            self._set_state(self.state)
            try:
                return self.layer(y)
            finally:
                self._set_state(outer)

    @property
    def selects(self) -> bool:
        """Whether it can leave rows of the batch out: not where others would draw their masks, nor within a graph."""
        if self.random or torch.is_grad_enabled():
            return False
        return getattr(self.layer, "selects", False)

    def select(self, rows: Tensor) -> "FixedMap":
        """The map for the rows of the batch that `rows` (n,) names."""
        part = copy.copy(self)
        part.layer = self.layer.select(rows)
        return part

    def _first(self, y: Tensor) -> Tensor:
        if self.device.type != "cpu" or torch.compiler.is_compiling():
            return self.layer(y)
        assert self.state is not None
        with _KeepMasks() as kept:
            Fy = self.layer(y)
        if not kept.masks and torch.equal(self.state[0], torch.get_rng_state()):
            self.random = False
        elif not self.drop_masks:
            self.masks = kept.masks or None
        return Fy

    def _autocast(self):
        # A weight cast under no_grad must not stay in autocast's cache: a tracked evaluation would find it there,
        # without its gradient.
        if not self.grad or not torch.amp.is_autocast_available(self.device.type):
            return contextlib.nullcontext()
        enabled, cache = self.autocast is not None, torch.is_grad_enabled()
        return torch.autocast(self.device.type, dtype=self.autocast, enabled=enabled, cache_enabled=cache)

    def _get_state(self) -> tuple:
        cpu = torch.get_rng_state()
        if self.device.type == "cpu":
            return (cpu,)
        return cpu, torch.get_device_module(self.device).get_rng_state(self.device)

    def _set_state(self, state: tuple) -> None:
        torch.set_rng_state(state[0])
        if len(state) > 1:
            torch.get_device_module(self.device).set_rng_state(state[1], self.device)


def saved_tensor_hooks_active() -> bool:
    """Whether saved tensors are being intercepted, as non-reentrant checkpointing does."""
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks("probe"):
            return False
    except RuntimeError:
        return True


def _with_pullback(F: FixedMap, y: Tensor) -> Evaluation:
    """F(y) and u -> (dF/dy)^T u, under no_grad, inference_mode and compilation too; differentiable in grad mode."""
    if not saved_tensor_hooks_active():
        Fy, pullback, *_ = torch.func.vjp(F, y)
        return Fy, lambda u: pullback(u)[0]
    # torch.func refuses such hooks. This graph lives within the solve, and checkpointing must not see it: it would
    # recompute the layer for every product.
    direct = torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)
    with torch.enable_grad(), direct:
        leaf = y.detach().requires_grad_()
        Fy = F(leaf)
    return Fy.detach(), lambda u: torch.autograd.grad(Fy, leaf, u)[0]


def evaluation(F: FixedMap, y: Tensor, pullback: bool) -> Evaluation:
    """F(y), and where asked for the map u -> (dF/dy)^T u."""
    return _with_pullback(F, y) if pullback else (F(y), None)


def leaves_of(value: Tensor, entry: Any = None) -> tuple[Tensor, ...]:
    """The leaf tensors in the graph of `value` up to the node `entry`: what a callable depends on beside its input."""
    nodes: list[Any] = [value.grad_fn]
    seen, leaves = {entry, None}, []
    while nodes:
        node = nodes.pop()
        if node not in seen:
            seen.add(node)
            if hasattr(node, "variable"):
                leaves.append(node.variable)
            nodes.extend(next_node for next_node, _ in node.next_functions)
    return tuple(leaves)


def check_layer(layer: Any, parameters: tuple[Tensor, ...] | None, products: bool) -> None:
    """Refuses a layer that cannot be trained, or differentiated inside the forward where `products` are asked for."""
    # Offloaded weights are on the meta device, and elsewhere only while the module that holds them runs.
    if parameters and getattr(layer, "training", True) and any(p.is_meta for p in parameters):
        raise ValueError(
            "A layer whose weights are offloaded (device_map) cannot be trained: they would get no gradient. Keep it "
            "in memory, or freeze it."
        )
    if not products:
        return
    inside = "im_solver 'gradient_descent' differentiates a layer inside the forward, "
    if any(p.is_meta for p in getattr(layer, "parameters", list)()):
        raise ValueError(
            inside
            + "which accelerate cannot do with weights that it offloads; use 'fixed_point' or 'anderson', or keep "
            "the layers in memory (device_map)."
        )
    if any(type(m).__module__.startswith("torch.ao.nn.quantized") for m in getattr(layer, "modules", list)()):
        raise ValueError(inside + "and quantized modules have no derivative; use 'fixed_point' or 'anderson'.")
    if getattr(torch.compiler, "is_exporting", bool)():  # torch 2.6 has no such function, and a message of its own
        raise ValueError(inside + "which torch.export cannot record; use 'fixed_point' or 'anderson'.")


def refuse_sharded_parts(modules: Iterable[Any]) -> None:
    # They hold their parameters within their own call alone: others would get no gradient, and no error tell.
    for module in modules:
        if hasattr(module, "set_reshard_after_forward"):
            raise ValueError(
                f"fully_shard was called on {type(module).__name__.removeprefix('FSDP')}, a part of an implicit layer; "
                "the solver gradient_descent and the gradient mode 'implicit' need the parameters of a layer together. "
                "Call it on whole layers, or take fixed_point or anderson with 'one_step' or 'unrolled'."
            )
