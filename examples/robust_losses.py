"""Losses that train a classifier to be robust: FreeLB and R3F, for any model of Transformers that takes embeddings.

Each function yields losses; every one is to be differentiated at once, before the next is asked for:

    for loss in freelb_losses(model, batch):
        loss.backward()

FreeLB is of Zhu et al., ICLR 2020; R3F of Aghajanyan et al., ICLR 2021.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor


def freelb_losses(
    model: Any,
    batch: Mapping[str, Tensor],
    *,
    steps: int = 3,
    step_size: float = 0.1,
    radius: float = 0.6,
    start: float = 0.05,
) -> Iterator[Tensor]:
    """FreeLB: the mean loss over `steps` points of an ascent on the word embeddings, all of whose gradients are kept.

    Args:
        model: of transformers, with inputs_embeds.
        batch: input_ids, attention_mask, labels.
        steps: forward and backward passes.
        step_size: of the normalised ascent, a row's Euclidean norm.
        radius: of the ball around the embeddings, likewise.
        start: norm that a row's random start has at most.
    """
    rest = {name: value for name, value in batch.items() if name != "input_ids"}
    real = batch["attention_mask"][..., None]
    embed = model.get_input_embeddings()
    shape = (*batch["input_ids"].shape, embed.weight.shape[1])
    delta = (2 * torch.rand(shape, dtype=embed.weight.dtype, device=embed.weight.device) - 1) * real
    size = (real.sum(dim=(1, 2), keepdim=True) * shape[-1]).clamp(min=1)
    delta = start * delta / size.sqrt().to(delta.dtype)
    for step in range(steps):
        delta = delta.detach().requires_grad_()
        yield model(inputs_embeds=embed(batch["input_ids"]) + delta, **rest).loss / steps
        if step < steps - 1:
            assert delta.grad is not None
            with torch.no_grad():
                ascent = delta.grad / _row_norm(delta.grad).clamp(min=torch.finfo(delta.dtype).tiny)
                delta = delta + step_size * ascent * real
                delta = delta * (radius / _row_norm(delta).clamp(min=radius))


def _row_norm(t: Tensor) -> Tensor:
    return torch.linalg.vector_norm(t.flatten(1), dim=1).view(-1, *[1] * (t.dim() - 1))


def r3f_losses(
    model: Any, batch: Mapping[str, Tensor], *, noise: float = 1e-5, weight: float = 1.0
) -> Iterator[Tensor]:
    """R3F: the loss, and `weight` times the symmetric Kullback-Leibler divergence to the outputs for noisy embeddings.

    Args:
        model: of transformers, with inputs_embeds; or DistributedDataParallel around one.
        batch: input_ids, attention_mask, labels.
        noise: half the width of the uniform noise on each component of the word embeddings.
        weight: lambda of the paper.
    """
    rest = {name: value for name, value in batch.items() if name != "input_ids"}
    embedded = getattr(model, "module", model).get_input_embeddings()(batch["input_ids"])
    clean = model(inputs_embeds=embedded, **rest)
    noisy = model(inputs_embeds=embedded + noise * (2 * torch.rand_like(embedded) - 1), **rest)
    p, q = (output.logits.float().log_softmax(dim=-1) for output in (clean, noisy))
    options: dict[str, Any] = {"reduction": "batchmean", "log_target": True}
    yield clean.loss + weight * (functional.kl_div(p, q, **options) + functional.kl_div(q, p, **options))
