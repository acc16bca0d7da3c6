"""F, the layer of an implicit step, as one fixed function; its evaluations, and products with its Jacobian.

This file travels with every checkpoint: it imports torch and the standard library alone.
"""

import contextlib
import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils import parametrize


def functional() -> bool:
    """Whether a compiler, a transform of torch.func or forward mode follows: products are torch.func's there."""
    followed = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    return followed or forward_ad._current_level >= 0


def _autocast(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def _caches(kind: str) -> bool:
    """Whether something keeps what it makes of weights, between the calls of a layer."""
    return _autocast(kind) or parametrize._cache_enabled > 0


@contextlib.contextmanager
def _without_caches(kind: str):
    """What is made of a weight under no_grad must not be kept: a tracked evaluation would find it without gradient."""
    found, parametrize._cache_enabled = parametrize._cache_enabled, 0
    try:
        on = _autocast(kind)
        dtype = torch.get_autocast_dtype(kind) if on else None
        with torch.autocast(kind, dtype=dtype, cache_enabled=False) if on else contextlib.nullcontext():
            yield
    finally:
        parametrize._cache_enabled = found


def in_vmap() -> bool:
    """Whether the innermost transform is vmap, whose tensors are gone when what is around it differentiates."""
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return False
    return torch._C._functorch.peek_interpreter_stack().key() == torch._C._functorch.TransformType.Vmap


class RandomState:
    """The random state that a device's layers draw from, as it is now.

    Within `again` it is set once more: the same calls draw the same masks, and leave the state as it was found.
    """

    def __init__(self, device: torch.device):
        self.sources: list[tuple[Callable, Callable]] = [(torch.get_rng_state, torch.set_rng_state)]
        if device.type not in ("cpu", "meta"):
            module, where = torch.get_device_module(device), {"device": device} if device.type != "mps" else {}
            self.sources.append((partial(module.get_rng_state, **where), partial(module.set_rng_state, **where)))
        self.states = self._get()

    def _get(self) -> list[Tensor]:
        return [get() for get, _ in self.sources]

    def _set(self, states: list[Tensor]) -> None:
        for (_, put), state in zip(self.sources, states, strict=True):
            put(state)

    @property
    def moved(self) -> bool:
        return any(not torch.equal(new, old) for new, old in zip(self._get(), self.states, strict=True))

    @contextlib.contextmanager
    def again(self):
        found = self._get()
        try:
            self._set(self.states)
            yield
        finally:
            self._set(found)


class FixedMap:
    """F as one fixed function: every evaluation in a forward is the first one again.

    Each replays the random state of the first, so that all draw the same dropout masks, and leaves the state as it
    found it; the first leaves what a plain call of the layer would leave.

    Args:
        layer: h -> F(h) of the same shape. Where an attribute `draws`, or else `training`, is false, nothing is
            replayed, and where `selects` is true, layer.select(rows) is the same for some rows of the batch.
        x: a tensor on the layer's device.
    """

    def __init__(self, layer: Any, x: Tensor):
        self.layer, self.device, self.kind = layer, x.device, x.device.type
        self.random = getattr(layer, "draws", getattr(layer, "training", True))
        self.state: RandomState | None = None
        self.caches = torch.is_grad_enabled() and not functional() and _caches(self.kind)

    def __call__(self, y: Tensor) -> Tensor:
        evaluate = self._replayed if self.random else self.layer
        if not self.caches or torch.is_grad_enabled():
            return evaluate(y)
        with _without_caches(self.kind):
            return evaluate(y)

    def _replayed(self, y: Tensor) -> Tensor:
        if self.state is not None:
            with self.state.again():
                return self.layer(y)
        self.state, Fy = RandomState(self.device), self.layer(y)
        if not torch.compiler.is_compiling():  # what drew nothing has nothing to replay
            self.random = self.state.moved
        return Fy

    @property
    def selects(self) -> bool:
        return getattr(self.layer, "selects", False)

    def select(self, rows: Tensor) -> "FixedMap":
        """The map for the rows of the batch that `rows` (n,) names."""
        part = copy.copy(self)
        part.layer = self.layer.select(rows)
        return part


class _Keep(torch.autograd.Function):
    """Saves `t` through the hooks that are active: its node unpacks it again."""

    @staticmethod
    def forward(ctx, anchor, t):
        ctx.save_for_backward(t)
        return anchor.view_as(anchor)

    @staticmethod
    def backward(ctx, v):
        return v, None


class Held:
    """Where saved-tensor hooks are active, keeps what a graph saves at hand while products need it.

    A checkpoint would run its whole region again for every product, and an offload move every tensor. So each tensor
    goes to their hooks and stays here too, until `release`, after which it comes from them; `restore` fetches all of
    them once, for the products of backward. Without hooks around nothing happens.
    """

    def __init__(self):
        self.slots: list[list] = []  # [what _Keep returned, tensor at hand or None]

    @contextlib.contextmanager
    def _packing(self):
        known: dict[str, Any] = {"slots": self.slots}

        def pack(t):
            t = t.data  # a detached tensor would hold its base, and that the graph
            known["hooks"].__exit__()  # the hooks around are active now
            try:
                with torch.enable_grad():
                    kept = _Keep.apply(torch.empty(0, requires_grad=True), t)
            finally:
                known["hooks"].__enter__()
            known["slots"].append([kept, t])
            return known["slots"][-1]

        known["hooks"] = saved_tensors_hooks(pack, _unpack)
        try:
            with known["hooks"]:
                yield
        finally:
            known.clear()  # `pack` lives as long as the graph: it would hold all of that, and itself

    def __call__(self, wanted: bool = True):
        return self._packing() if wanted and not functional() and _hooks_active() else contextlib.nullcontext()

    def release(self) -> None:
        for slot in self.slots:
            slot[1] = None

    def restore(self) -> None:
        for slot in self.slots:
            slot[1] = _unpack(slot)
        self.slots.clear()  # from now on the graph alone holds them


def _unpack(slot: list) -> Tensor:
    return slot[0].grad_fn.saved_tensors[0] if slot[1] is None else slot[1]


def _hooks_active() -> bool:
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks("probe"):
            return False
    except RuntimeError:
        return True


def product_of(Fy: Any, y: Any, u: Tensor, **options) -> Tensor:
    """(dF/dy)^T u by autograd, of tensors or their gradient edges."""
    kind = u.device.type  # a backward pass casts nothing
    with torch.autocast(kind, enabled=False) if _autocast(kind) else contextlib.nullcontext():
        return torch.autograd.grad(Fy, y, u, materialize_grads=True, **options)[0]


def nowhere(u: Tensor) -> Tensor:
    """(dF/dy)^T u of an F that does not depend on y, as where a hook returns what it kept."""
    return torch.zeros_like(u)


def with_pullback(F: FixedMap, y: Tensor, keep: bool = False) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """F(y) and u -> (dF/dy)^T u, under no_grad and inference_mode too; differentiable in grad mode, unless `keep`."""
    if functional():
        Fy, pullback, *_ = torch.func.vjp(F, y)
        return Fy, lambda u: pullback(u)[0]
    if torch.is_grad_enabled():
        y = y if y.requires_grad else y.detach().requires_grad_()
        Fy = F(y)
        if not Fy.requires_grad:
            return Fy, nowhere
        return Fy, lambda u: product_of(Fy, y, u, create_graph=not keep, retain_graph=True)
    inference = torch.is_inference_mode_enabled()
    hidden = saved_tensors_hooks(lambda t: t.data, lambda t: t)  # from a checkpoint: the graph lives in here alone
    with torch.inference_mode(False), torch.enable_grad(), hidden if _hooks_active() else contextlib.nullcontext():
        leaf = (y.clone() if inference else y.detach()).requires_grad_()
        Fleaf = F(leaf)

    def product(u):
        with torch.inference_mode(False):
            return product_of(Fleaf, leaf, u.clone() if inference else u)

    return Fleaf.detach(), product if Fleaf.requires_grad else nowhere
