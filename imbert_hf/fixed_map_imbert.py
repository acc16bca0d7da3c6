"""A layer as one fixed function of its input during a solve, and its products.

This file travels with every checkpoint: it imports torch, the standard library and its sister solvers_imbert.py alone.
"""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor

from .solvers_imbert import Evaluation


class FixedMap:
    """F as one fixed function: every evaluation, in forward and in backward, is the first one again.

    Each replays the random state of the first, so that all draw the same dropout masks, and leaves the state as it
    found it; the first leaves what a plain call of the layer would leave. Each runs under the autocast setting of the
    forward.

    Args:
        layer: h -> F(h) of the same shape. Where it has an attribute `training` that is false, nothing is replayed.
        x: a tensor on the layer's device.
    """

    def __init__(self, layer: Callable[[Tensor], Tensor], x: Tensor):
        self.layer = layer
        self.random = getattr(layer, "training", True)
        self.device = x.device
        self.state: tuple | None = None
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
                return self.layer(y)
            outer = self._get_state()
            self._set_state(self.state)
            try:
                return self.layer(y)
            finally:
                self._set_state(outer)

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
