"""Projected gradient ascent on the word embeddings of a text (Madry et al., ICLR 2018, arXiv 1706.06083).

In the l2 norm, with gradients of the very function that predicts: through every iteration of an implicit layer,
whatever gradient it was trained with.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor

from imbert_hf.evaluation.data.classifier import Classifier, length_sorted
from imbert_hf.evaluation.data.tasks import Row
from imbert_hf.evaluation.processes import share
from imbert_hf.evaluation.report import at_least


Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Ascent:
    """Options of the attack: projected gradient ascent.

    Attributes:
        steps: gradient steps of one ascent.
        restarts: ascents a row; the first starts at the text itself, the others at random points of the ball.
        step_size: length of a step as a share of the ball's radius; None: 2.5 / steps, at least a tenth.
        seed: of the random starts.
    """

    steps: int = 10
    restarts: int = 2
    step_size: float | None = None
    seed: int = 0

    def __post_init__(self):
        at_least(1, steps=self.steps, restarts=self.restarts)
        if self.step_size is not None and not 0 < self.step_size < float("inf"):
            raise ValueError(f"step_size must be a number > 0, got {self.step_size!r}.")


@contextmanager
def exact_gradients(model: Any) -> Iterator[None]:
    """Differentiates implicit layers through all their iterations, and gathers no gradients of parameters."""
    trained = [p for p in model.parameters() if p.requires_grad]
    gradient = getattr(model.config, "im_gradient", None)
    for p in trained:
        p.requires_grad_(False)
    if gradient is not None:
        model.config.im_gradient = "unrolled"
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)
        if gradient is not None:
            model.config.im_gradient = gradient


@contextmanager
def moved_embeddings(model: Any, delta: Tensor) -> Iterator[None]:
    """Adds delta (batch, length, width) to the output of the model's word embeddings."""

    def move(module: Any, args: Any, output: Tensor) -> Tensor:
        if output.shape != delta.shape:  # XLNet's have the length first: a batch as long as its rows would pass
            raise ValueError(f"word embeddings must be (batch, length, width), got {tuple(output.shape)}.")
        return output + delta

    handle = model.get_input_embeddings().register_forward_hook(move)
    try:
        yield
    finally:
        handle.remove()


def words_of(classifier: Classifier, batch: Batch) -> Tensor:
    """(batch, length) bool: neither padding nor a special token, but for the unknown word."""
    tokenizer = classifier.tokenizer
    special = [i for i in tokenizer.all_special_ids if i != tokenizer.unk_token_id]
    ids = batch["input_ids"]
    return ~torch.isin(ids, torch.tensor(special, device=ids.device)) & batch["attention_mask"].bool()


def embedding_norm(classifier: Classifier, batch: Batch) -> Tensor:
    """(batch,) l2 norm of the word embeddings of all words of a row; a radius is a multiple of it."""
    embedded = classifier.model.get_input_embeddings()(batch["input_ids"])
    return (embedded * words_of(classifier, batch)[..., None]).flatten(1).norm(dim=1)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """(batch,) the gold logit minus the largest other: negative where the row is classified wrongly.

    Where it is not finite the model has no answer, and that is wrong too: -inf.
    """
    gold = logits.gather(1, labels[:, None])[:, 0]
    found = gold - logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    return torch.where(found.isfinite(), found, -torch.inf)


def ascend(
    classifier: Classifier, batch: Batch, labels: Tensor, radius: Tensor, attack: Ascent, *, stop: bool = True
) -> Tensor:
    """The worst movement of the embeddings found in the ball, (batch, length, width).

    Args:
        batch: of classifier.collate.
        labels: (batch,) gold, GLUE's integers.
        radius: (batch,) of the ball, absolute.
        stop: leave a row alone as soon as it is classified wrongly; else look for the most wrong.
    """
    model = classifier.model
    words = words_of(classifier, batch)[..., None]
    ids = batch["input_ids"]
    width = model.get_input_embeddings().weight
    best = torch.zeros(*ids.shape, width.shape[1], device=ids.device, dtype=width.dtype)
    least = torch.full(labels.shape, torch.inf, device=ids.device)
    length = attack.step_size or max(2.5 / attack.steps, 0.1)
    generator = torch.Generator().manual_seed(attack.seed)
    for restart in range(attack.restarts):
        delta = torch.zeros_like(best)
        if restart:
            delta = torch.randn(best.shape, generator=generator).to(best) * words
            delta = scaled(delta, radius * torch.rand(len(labels), generator=generator).to(radius))
        for step in range(attack.steps + 1):
            # Rows that have fallen leave the batch: nothing is random here, and rows do not depend on each other.
            rows = torch.arange(len(labels), device=ids.device)[(least >= 0) | (not stop)]
            if not len(rows):
                return best
            moved = delta[rows].requires_grad_()
            with torch.enable_grad(), exact_gradients(model), moved_embeddings(model, moved):
                found = margin(classifier.logits({name: t[rows] for name, t in batch.items()}), labels[rows])
                if step < attack.steps:
                    gradient = gradient_of(found, moved)
            found = found.detach()
            better = rows[found < least[rows]]
            least[rows] = torch.minimum(least[rows], found)
            best[better] = delta[better]
            if step < attack.steps:
                uphill = scaled(-gradient * words[rows], length * radius[rows])
                delta[rows] = projected(delta[rows] + uphill, radius[rows])
    return best


def gradient_of(found: Tensor, delta: Tensor) -> Tensor:
    """Of the sum of `found` with respect to delta; zero where there is no graph between them."""
    if not found.requires_grad:
        return torch.zeros_like(delta)
    (gradient,) = torch.autograd.grad(found.sum(), delta, allow_unused=True)
    return torch.zeros_like(delta) if gradient is None else gradient


def norm(delta: Tensor) -> Tensor:
    return delta.flatten(1).norm(dim=1)


def scaled(delta: Tensor, length: Tensor) -> Tensor:
    """Each row at the given l2 norm; zero stays zero, and what is not finite becomes zero."""
    factor = length / norm(delta).clamp_min(torch.finfo(delta.dtype).tiny)
    return torch.nan_to_num(delta * factor[:, None, None].to(delta.dtype), posinf=0, neginf=0)


def projected(delta: Tensor, radius: Tensor) -> Tensor:
    return scaled(delta, torch.minimum(norm(delta), radius))


def attacked(
    classifier: Classifier,
    rows: Sequence[Row],
    radius: float,
    attack: Ascent,
    *,
    source: Classifier | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> numpy.ndarray:
    """(n,) bool, the row is still classified rightly under the attack.

    Args:
        classifier: the model under attack.
        rows: n rows of its task.
        radius: of the l2 ball, relative to the l2 norm of the word embeddings of the row's words; special tokens and
            padding are not moved.
        attack: its options.
        source: transfer: the movement is made on this model instead, which must share the tokenizer's ids and the
            embeddings' width, and is then applied.
        batch_size: rows.
        progress: show a bar.
    """
    if not 0 < radius < float("inf"):
        raise ValueError(f"radius must be a number > 0, got {radius!r}.")
    if source is not None:
        check_source(source, classifier)
    encodings = classifier.encode([row.texts for row in rows])
    survived = numpy.zeros(len(rows), dtype=bool)
    device = classifier.model.device

    def survivors(chosen: list[int]) -> numpy.ndarray:
        batch = classifier.collate([encodings[i] for i in chosen])
        labels = torch.tensor([rows[i].label for i in chosen], device=device)
        with torch.no_grad():
            size = radius * embedding_norm(classifier, batch)
            delta = ascend(source or classifier, batch, labels, size, attack, stop=source is None)
            right = margin(classifier.logits(batch), labels) >= 0  # an attacker may also change nothing
            with moved_embeddings(classifier.model, delta.to(device)):
                right &= margin(classifier.logits(batch), labels) >= 0
        return right.cpu().numpy()

    batches = length_sorted(encodings, batch_size)
    found = share(survivors, batches, name=f"{classifier.name}, radius {radius:g}", progress=progress)
    for chosen, right in zip(batches, found, strict=True):
        survived[chosen] = right
    return survived


def check_source(source: Classifier, target: Classifier) -> None:
    a, b = (c.model.get_input_embeddings().weight.shape for c in (source, target))
    if a != b or source.tokenizer.get_vocab() != target.tokenizer.get_vocab():
        raise ValueError(
            f"an attack on {source.path} cannot be transferred to {target.path}: their vocabularies or the widths of "
            f"their embeddings differ ({tuple(a)} and {tuple(b)})."
        )
