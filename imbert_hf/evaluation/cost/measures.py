"""The measures of one variant: work counted, memory, time in turn with others, residual and error of the gradient."""

import contextlib
import gc
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm.auto import tqdm

from imbert_hf import ThetaMethod
from imbert_hf.evaluation.attacks.ascent import Batch
from imbert_hf.evaluation.cost.variants import Floor, Variant
from imbert_hf.evaluation.data.loading import layers_of
from imbert_hf.evaluation.stability.growth import connected
from imbert_hf.evaluation.stability.layers import PlainLayer
from imbert_hf.solvers_imbert import Relation


QUARTILES = (0.25, 0.5, 0.75)
# Solves to rounding errors, where the relation can be solved at all.
CONVERGED: dict[str, Any] = {
    "im_solver": "anderson",
    "im_damping": 1.0,
    "im_anderson_memory": 10,
    "im_iterations": 200,
    "im_tolerance": 1e-10,
    "im_gradient": "implicit",
    "im_gradient_iterations": 100,
}
CONVERGED_RESIDUAL = 1e-9


class _Noted(torch.autograd.Function):
    """The identity. A cotangent that passes is noted by the first of `kinds`; one that is sent back through that, a
    second derivative, by the next."""

    @staticmethod
    def forward(t, note, kinds):
        return t.view_as(t)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.note, ctx.kinds = inputs

    @staticmethod
    def backward(ctx, v):
        kind, *rest = ctx.kinds
        ctx.note(kind)
        return (_Noted.apply(v, ctx.note, rest) if rest else v), None, None


def count(variant: Variant, batch: Batch, training: bool, indices: Sequence[int]) -> dict[str, dict[str, float]]:
    """Work per layer of those given, by "forward" and, where `training`, "backward" of a step.

    Each is evaluations of F; products, passes of a cotangent through an evaluation, be it for a product with a vector,
    for the parameters or both; second_products, passes back through a product.
    """
    kinds = ("evaluations", "products", "second_products")
    phases = {name: dict.fromkeys(kinds, 0.0) for name in (("forward", "backward") if training else ("forward",))}
    every = layers_of(variant.model)
    phase, layers = "forward", [every[i] for i in indices]

    def note(kind: str) -> None:
        phases[phase][kind] += 1 / len(layers)

    def hook(module, args, kwargs, output):
        if kwargs.get("im_report") is not None:  # attentions, handed on once more
            return output
        note("evaluations")
        return (_Noted.apply(output[0], note, kinds[1:]), *output[1:])

    # Attention is called once an evaluation, on whatever way the layer is entered.
    attentions: list[Any] = [getattr(layer, "attn", None) or layer.attention for layer in layers]
    handles = [attention.register_forward_hook(hook, with_kwargs=True) for attention in attentions]
    try:
        with variant.ready(training):
            if not training:
                variant.infer(batch)
            else:
                for loss in variant.losses(variant.model, batch):
                    phase = "backward"
                    loss.backward()
                    phase = "forward"
    finally:
        for handle in handles:
            handle.remove()
        variant.model.zero_grad()
    return {name: {kind: round(value, 6) for kind, value in phases[name].items()} for name in phases}


class PeakMemory(TorchDispatchMode):
    """The most bytes that tensors made inside it held at one time: exact, where resident size is noise.

    Workspace inside a kernel is not seen.
    """

    def __init__(self):
        super().__init__()
        self.live: dict[int, tuple[Any, int]] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in before:
                self._add(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return result

    def _add(self, storage) -> None:
        key = storage._cdata
        if key not in self.live:
            self.live[key] = weakref.ref(storage, lambda _: self._remove(key)), storage.nbytes()
            self.now += storage.nbytes()

    def _remove(self, key: int) -> None:
        self.now -= self.live.pop(key)[1]


def peak_bytes(variant: Variant, batch: Batch, training: bool = True) -> int:
    """Of one training step, or of inference, beside parameters and their gradients, which are there before."""
    for parameter in variant.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with variant.ready(training), PeakMemory() as memory:
        (variant.step if training else variant.infer)(batch)
    variant.model.zero_grad()
    return memory.peak


def interleave(
    actions: Mapping[str, Callable[[], contextlib.AbstractContextManager[Callable[[], Any]]]],
    repeats: int,
    *,
    synchronise: Callable[[], Any] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    progress: bool = False,
) -> dict[str, list[float]]:
    """Seconds of each action in each of `repeats` rounds.

    A round runs every action once, one after the other, and begins one action later than the round before, so that
    what slows the machine for a while slows all of them.

    Args:
        actions: by name, a context manager that prepares and gives the function to time.
        synchronise: waits for the device; called before each reading of the clock.
    """
    names = list(actions)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    for k in tqdm(range(repeats), desc="rounds", disable=not progress, leave=False):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            with actions[name]() as function:
                synchronise()
                start = clock()
                function()
                synchronise()
                seconds[name].append(clock() - start)
    return seconds


@contextlib.contextmanager
def timed(variant: Variant, batch: Batch, training: bool) -> Iterator[Callable[[], Any]]:
    with variant.ready(training):
        yield partial(variant.step if training else variant.infer, batch)
    variant.model.zero_grad()


def waiting(device: torch.device) -> Callable[[], Any]:
    """What waits until the device has done all that it was given."""
    return (lambda: None) if device.type == "cpu" else torch.get_device_module(device).synchronize


def ratio(seconds: Sequence[float], base: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles of the ratios within each round, and the seconds."""
    low, median, high = numpy.quantile(numpy.divide(seconds, base), QUARTILES).tolist()
    return {"ratio": median, "quartiles": [low, high], "seconds": list(seconds)}


def mean_residual(variant: Variant, batch: Batch, method: ThetaMethod, indices: Sequence[int]) -> float:
    """Mean over the layers given and rows of ||r(y)|| / ||y|| over real tokens, y what a layer returns at inference."""
    s, c = method.weights
    found: list[Tensor] = []

    def hook(module, args, kwargs, y):
        x, *rest = args
        y = y[0] if isinstance(y, tuple) else y
        F = PlainLayer(module, *rest, **getattr(module, "own_arguments", dict)(kwargs))
        b = method.euler(x, F(x), method.step_size - s)
        relation = Relation(b, s, c, (batch["attention_mask"] == 0)[..., None])
        found.append(relation.relative_residual(y, F(y)))

    every = layers_of(variant.model)
    handles = [every[i].register_forward_hook(hook, with_kwargs=True) for i in indices]
    try:
        with variant.ready(False):
            variant.infer(batch)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(found).mean().item()


def parameter_gradient(variant: Variant, batch: Batch) -> Tensor:
    """Gradient of the loss by all parameters that have one, flat; without dropout."""
    with variant.ready(False):
        variant.step(batch)
    found = torch.cat([p.grad.flatten() for p in variant.model.parameters() if p.grad is not None])
    variant.model.zero_grad()
    return found


def converged_gradient(
    model: Any, batch: Batch, theta: float, indices: Sequence[int]
) -> tuple[Tensor | None, list[int], float]:
    """The gradient of the converged solution, the rows that it is of, and the largest residual among these.

    A row of the batch whose relation cannot be solved in every layer is left out. The gradient is None where none is
    left.

    Args:
        model: a sequence classifier of imbert_hf in float64.
        indices: of its implicit layers.
    """
    fields = {**CONVERGED, "im_layers": list(indices), "im_theta": theta, "im_eval_iterations": None}
    with connected(model.config, fields), torch.no_grad():
        residuals = torch.stack(model(**batch, output_im_statistics=True).im_residuals).amax(dim=0)
    rows = [i for i, value in enumerate(residuals.tolist()) if value <= CONVERGED_RESIDUAL]
    if not rows:
        return None, [], residuals.min().item()
    solved = {name: value[rows] for name, value in batch.items()}
    reference = Variant("converged", "IM-BERT", model, Floor(0, 0), fields)
    return parameter_gradient(reference, solved), rows, residuals[rows].max().item()


def relative_gradient_errors(variants: Sequence[Variant], batch: Batch, exact: Tensor) -> dict[str, float]:
    """||g - g*|| / ||g*|| by the name of each variant that solves the relation."""
    solving = [variant for variant in variants if variant.setting]
    return {v.name: ((parameter_gradient(v, batch) - exact).norm() / exact.norm()).item() for v in solving}
