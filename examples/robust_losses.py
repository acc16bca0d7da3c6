"""Losses that train a classifier to be robust: R3F, FreeLB and R-Drop, for any model of Transformers.

Each function takes a model and a batch and yields losses; every one is to be differentiated at once, before the next
is asked for:

    for loss in freelb_losses(model, batch):
        loss.backward()

A row has one label, several, or a number, as the problem_type of the model's config says. FreeLB and R3F move the word
embeddings, and R-Drop compares dropout masks. FreeLB is of Zhu et al., ICLR 2020; R3F of Aghajanyan et al., ICLR 2021;
R-Drop of Liang et al., NeurIPS 2021.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from imbert_hf import outputs_imbert


def divergence(model: Any, batch: Mapping[str, Tensor], first: Any, second: Any) -> Tensor:
    """KL(p || q) + KL(q || p) of two outputs of a model, by its config's problem_type: that of im_consistency."""
    return outputs_imbert.divergence(first, second, batch["labels"], unwrapped(model).config.problem_type)


def unwrapped(model: Any) -> Any:
    """The model in DistributedDataParallel."""
    return getattr(model, "module", model)


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
        model: of transformers, with inputs_embeds; or DistributedDataParallel around one.
        batch: input_ids, attention_mask, labels.
        steps: forward and backward passes.
        step_size: of the normalised ascent, a row's Euclidean norm.
        radius: of the ball around the embeddings, likewise.
        start: norm that a row's random start has at most.
    """
    rest = {name: value for name, value in batch.items() if name != "input_ids"}
    real = batch["attention_mask"][..., None]
    embed = unwrapped(model).get_input_embeddings()
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
    """R3F: the loss, and `weight` times the divergence to the outputs for noisy embeddings.

    Args:
        model: of transformers, with inputs_embeds; or DistributedDataParallel around one.
        batch: input_ids, attention_mask, labels.
        noise: half the width of the uniform noise on each component of the word embeddings.
        weight: lambda of the paper.
    """
    rest = {name: value for name, value in batch.items() if name != "input_ids"}
    embedded = unwrapped(model).get_input_embeddings()(batch["input_ids"])
    clean = model(inputs_embeds=embedded, **rest)
    noisy = model(inputs_embeds=embedded + noise * (2 * torch.rand_like(embedded) - 1), **rest)
    yield clean.loss + weight * divergence(model, batch, clean, noisy)


def rdrop_losses(model: Any, batch: Mapping[str, Tensor], *, weight: float = 1.0) -> Iterator[Tensor]:
    """R-Drop: the mean loss of two forwards, whose dropout masks differ, and `weight` / 2 times their divergence.

    The paper adds the two losses, and alpha / 2 times the divergence. This is half of that at alpha = 2 `weight`:
    without dropout it is the plain loss, so that learning rates carry over.

    Args:
        model: of transformers, with dropout; or DistributedDataParallel around one.
        batch: its inputs, labels among them.
        weight: of the divergence.
    """
    first, second = model(**batch), model(**batch)
    yield (first.loss + second.loss) / 2 + weight / 2 * divergence(model, batch, first, second)


@dataclass(frozen=True)
class Defence:
    """A way to train: its losses, and how many of them a batch has."""

    losses: Callable[[Any, Mapping[str, Tensor]], Iterator[Tensor]]
    count: int = 1


DEFENCES = {"r3f": Defence(r3f_losses), "freelb": Defence(freelb_losses, 3), "rdrop": Defence(rdrop_losses)}
