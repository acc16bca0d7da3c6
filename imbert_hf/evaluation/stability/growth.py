"""How a change of the word embeddings grows through the layers of BERT, EX-BERT and IM-BERT with the same weights."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from imbert_hf.evaluation.attacks.ascent import moved_embeddings, norm
from imbert_hf.evaluation.report import finite


def connections(config: Any) -> dict[str, dict[str, Any]]:
    """The im_ fields of the three connections that are compared on the weights of one model.

    IM-BERT has the model's own, or the defaults in all layers where these take no implicit step (theta 0, or no
    layers); EX-BERT has IM-BERT's with theta 0 and the layer field; BERT has no layers.
    """
    own = config if config.im_theta > 0 and config.implicit_layers else type(config)(im_layers="all")
    implicit = {name: value for name, value in own.to_dict().items() if name.startswith("im_")}
    # Exact gradients for the search of the worst direction, whatever the model was trained with.
    implicit["im_gradient"] = "unrolled"
    explicit = {**implicit, "im_theta": 0.0, "im_vector_field": "layer"}
    return {"BERT": {**implicit, "im_layers": []}, "EX-BERT": explicit, "IM-BERT": implicit}


@contextlib.contextmanager
def connected(config: Any, fields: Mapping[str, Any]) -> Iterator[None]:
    """Gives a model's config other im_ fields for a while."""
    before = {name: getattr(config, name) for name in fields}
    try:
        for name, value in fields.items():
            setattr(config, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


def perturbed_states(model: Any, inputs: Mapping[str, Tensor], delta: Tensor) -> tuple[Tensor, ...]:
    """h_0 ... h_L, each (n, length, hidden), of one sentence, its word embeddings moved by each of n perturbations.

    Args:
        model: an encoder of imbert_hf, such as IMBertModel.
        inputs: of the model, one row.
        delta: (n, length, hidden), added to what the word embedding returns; differentiable.
    """
    repeated = {name: value.expand(len(delta), -1) for name, value in inputs.items()}
    with moved_embeddings(model, delta):
        return model(**repeated, output_hidden_states=True).hidden_states


def growth(
    model: Any,
    inputs: Mapping[str, Tensor],
    free: Tensor,
    *,
    radius: float,
    directions: int,
    restarts: int,
    steps: int,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The difference that perturbations of the word embeddings make in every layer, by the model's im_ fields.

    Every perturbation d has the norm `radius` times that of the sentence's embeddings over the free tokens. Random ones
    are Gaussian directions. The worst is found by projected gradient ascent on ||h_L(x + d) - h_L(x)|| from the random
    ones that moved h_L most, each step as long as the ball's radius. The best point met is kept: one that never moves
    h_L less than a random one, and a lower bound of the worst, since ascent ends in local maxima.

    Args:
        model: an encoder of imbert_hf in eval mode.
        inputs: of the model, one row without padding.
        free: (length,) bool, tokens that may be moved.
        radius: > 0, relative.
        directions: random ones.
        restarts: from 1 to `directions`, how many of them the ascent starts from.
        steps: of each ascent.
        seed: of the random directions.

    Returns:
        One record for each perturbation, the worst last: direction ("random" or "worst"), and from layer 0 to L
        difference ||h_l(x + d) - h_l(x)||, ratio of it to layer 0's, and relative, its ratio to ||h_l(x)||.
    """
    with torch.no_grad():
        embedded = model.get_input_embeddings()(inputs["input_ids"]) * free[:, None]
        size = radius * norm(embedded)
        clean = perturbed_states(model, inputs, torch.zeros_like(embedded))
        noise = torch.randn(directions, *embedded.shape[1:], generator=torch.Generator().manual_seed(seed))

        def on_sphere(d: Tensor) -> Tensor:
            d = d * free[:, None]
            return d * (size / norm(d))[:, None, None]

        random = on_sphere(noise.to(embedded))
        states = perturbed_states(model, inputs, random)
    most, starts = norm(states[-1] - clean[-1]).topk(restarts)
    d = best = random[starts]
    for _ in range(steps):
        d = d.requires_grad_()
        distance = norm(perturbed_states(model, inputs, d)[-1] - clean[-1])
        (gradient,) = torch.autograd.grad(distance.sum(), d)
        d, distance, gradient = d.detach(), distance.detach(), gradient.nan_to_num()
        best = torch.where((distance > most)[:, None, None], d, best)
        most = torch.where(distance > most, distance, most)
        # The most that a convex function reaches in a ball it reaches on the sphere, and there the ascent stays.
        d = on_sphere(d + (size / norm(gradient).clamp_min(1e-30))[:, None, None] * gradient)
    with torch.no_grad():
        found = perturbed_states(model, inputs, torch.cat([best, d]))
        last = norm(found[-1] - clean[-1]).nan_to_num(-1).argmax()
        states = tuple(torch.cat([h, w[last, None]]) for h, w in zip(states, found, strict=True))
        difference = torch.stack([norm(h - h0) for h, h0 in zip(states, clean, strict=True)], dim=1)
        norms = torch.cat([norm(h) for h in clean])
    return [
        {
            "direction": "worst" if i == directions else "random",
            "difference": finite(row),
            "ratio": finite(row / row[0]),
            "relative": finite(row / norms),
        }
        for i, row in enumerate(difference)
    ]
