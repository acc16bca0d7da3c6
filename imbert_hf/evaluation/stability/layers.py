"""How a small change of the input travels through BERT, EX-BERT and IM-BERT with the same weights, and why.

Everything is computed for one sentence at a time, so that there is no padding and every norm is over real tokens.
"""

import copy
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from imbert_hf.evaluation.report import Journal, finite
from imbert_hf.evaluation.stability.growth import connected, connections, growth
from imbert_hf.evaluation.stability.solves import convergence, residual_history
from imbert_hf.evaluation.stability.spectrum import Map, jacobian_norm, leading_eigenvalues, stability_function
from imbert_hf.layers_imbert import SOLVERS
from imbert_hf.solvers_imbert import VECTOR_FIELDS


# For layers by their index: F, and its input.
Layers = Mapping[int, tuple[Map, Tensor]]
THETAS = (0.0, 0.5, 1.0)  # of the regions of stability: explicit Euler, trapezoidal rule, implicit Euler


class PlainLayer(nn.Module):
    """h -> F(h), (batch, length, hidden), of an implicit layer under a fixed attention mask, in eval mode."""

    def __init__(self, layer: Any, attention_mask: Tensor | None = None):
        super().__init__()
        self.layer, self.attention_mask = layer, attention_mask
        self.eval()

    def forward(self, h: Tensor) -> Tensor:
        return self.layer.plain(h, self.attention_mask)


def spectra(layers: Layers, *, step_size: float, vector_field: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Leading eigenvalues and norm of the Jacobian of F at its input, and what the theta method makes of them.

    Args:
        layers: of one sentence.
        step_size, vector_field: gamma and f of the connection.
        count: of eigenvalues a layer.
        seed: of the start vectors.

    Returns:
        One record a layer: layer; eigenvalues [[real, imaginary], ...] of dF/dh; spectral_radius; norm;
        eigenvalues_converged; norm_converged; z, gamma times the eigenvalues of df/dh; amplification, by theta (0, 0.5,
        1) the largest |R(z)| of them.
    """
    records = []
    for index, (F, x) in layers.items():
        found, norm = leading_eigenvalues(F, x, count, seed=seed), jacobian_norm(F, x, seed=seed)
        z = step_size * (found.values - VECTOR_FIELDS[vector_field])
        with numpy.errstate(divide="ignore", invalid="ignore"):
            largest = [max(abs(stability_function(z, theta)), default=math.nan) for theta in THETAS]
        records.append(
            {
                "layer": index,
                "eigenvalues": [[value.real, value.imag] for value in found.values.tolist()],
                "spectral_radius": found.radius,
                "norm": norm.value,
                "eigenvalues_converged": found.converged,
                "norm_converged": norm.converged,
                "z": [[value.real, value.imag] for value in z.tolist()],
                "amplification": dict(zip((f"{theta:g}" for theta in THETAS), finite(largest), strict=True)),
            }
        )
    return records


def stability(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str | tuple[str, ...]],
    *,
    radius: float = 0.05,
    directions: int = 4,
    restarts: int = 2,
    steps: int = 10,
    eigenvalues: int = 4,
    iterations: int = 16,
    step_sizes: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0),
    thetas: Sequence[float] = (0.5, 1.0),
    max_length: int = 128,
    seed: int = 0,
    journal: Journal | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """The paper's claim made visible: growth of a perturbation, spectra, residuals and convergence on real sentences.

    Growth compares BERT, EX-BERT and IM-BERT (see `connections`) on the weights of one model. Spectra and solves are of
    each layer F at its true input in the forward of that IM-BERT.

    Args:
        model: IM-BERT with or without a head; IMBertModel.from_pretrained makes one of any BERT. Left as it was.
        tokenizer: the model's.
        texts: sentences, or tuples of a sentence or of a pair.
        radius: > 0, norm of the perturbation relative to that of the sentence's word embeddings, over the tokens that
            are not special; the special ones are not moved.
        directions: random perturbations a sentence, >= 1.
        restarts, steps: of the search of the worst perturbation; from 1 to `directions`, and >= 0.
        eigenvalues: leading ones a layer and sentence, >= 1.
        iterations: >= 1, of each solver for its residuals, and at most of the solves of the grid.
        step_sizes, thetas: > 0, the grid on which the model's solver is tried with tolerance 1e-2.
        max_length: tokens; what is longer is truncated.
        seed: of directions and start vectors.
        journal: keeps finished parts, a sentence and a measurement each.
        progress: show a bar.

    Returns:
        What JSON can hold; a number that is not finite is None. connections, the im_ fields of the three; sentences
        [text, tokens]; growth [sentence, connection, a record of `growth`]; spectrum [sentence, a record of `spectra`];
        residuals [sentence, layer, solver, residual]; convergence [sentence, layer, theta, step_size, converged].

    Raises:
        ValueError: an argument outside what is listed above, a model of another family, a text without tokens.
    """
    found = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if found != "imbert":
        raise ValueError(f"model must be an IM-BERT, or a BERT loaded as one, got {found!r}.")
    if not (math.isfinite(radius) and radius > 0):
        raise ValueError(f"radius must be a finite number > 0, got {radius}.")
    for name, value, least in (
        ("directions", directions, 1),
        ("steps", steps, 0),
        ("eigenvalues", eigenvalues, 1),
        ("iterations", iterations, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be an integer >= {least}, got {value}.")
    if not 1 <= restarts <= directions:
        raise ValueError(f"restarts must be an integer from 1 to directions, {directions}, got {restarts}.")
    for name, values in (("step_sizes", step_sizes), ("thetas", thetas)):
        if not values or min(values) <= 0:
            raise ValueError(f"{name} must hold numbers > 0, got {list(values)}.")
    if isinstance(texts, str) or not texts:
        raise ValueError(f"texts must be a list of one sentence or more, got {texts!r}.")

    model = model.base_model
    longest = model.config.max_position_embeddings
    if not 8 <= max_length <= longest:
        raise ValueError(f"max_length must be from 8 to {longest}, got {max_length}.")
    encoded = [_encode(tokenizer, text, max_length, model.device) for text in texts]
    compared = connections(model.config)
    config = copy.deepcopy(model.config)
    for name, value in compared["IM-BERT"].items():
        setattr(config, name, value)
    solvers = {name: SOLVERS[name](vars(config)) for name in ("fixed_point", "anderson", "gradient_descent")}
    field = {"vector_field": config.im_vector_field}
    relation = {**field, "initial_guess": config.im_initial_guess}
    own = {"step_size": config.im_step_size, "theta": config.im_theta}
    # All that a part depends on beside its own options.
    common = {"weights": _fingerprint(model), "config": model.config.to_dict(), "implicit": compared["IM-BERT"]}
    journal = journal or Journal()
    data: dict[str, Any] = {"connections": compared}
    data["sentences"] = [{"text": t, "tokens": len(free)} for t, (_, free) in zip(texts, encoded, strict=True)]
    data |= {name: [] for name in ("growth", "spectrum", "residuals", "convergence")}
    bar = tqdm(total=6 * len(texts), desc="sentences x measurements", disable=not progress)

    def measure(sentence: int, what: str, labels: dict, options: dict, compute: Callable) -> None:
        tokens = encoded[sentence][0]["input_ids"].tolist()
        key = {"what": what, "tokens": tokens, **labels, **options, **common}
        data[what] += [{"sentence": sentence, **labels, **r} for r in journal.part(key, partial(compute, **options))]
        bar.update()

    def residuals(layers: Layers, **options) -> list[dict[str, Any]]:
        return [
            {"layer": i, "solver": name, "residual": finite(residual_history(F, x, solver, **options)[:, 0])}
            for i, (F, x) in layers.items()
            for name, solver in solvers.items()
        ]

    def converged(layers: Layers, **options) -> list[dict[str, Any]]:
        return [
            {"layer": i, "theta": theta, "step_size": step_size, "converged": solves[j][k][0]}
            for i, (F, x) in layers.items()
            for solves in [convergence(F, x, solvers[config.im_solver], **options).tolist()]
            for j, theta in enumerate(thetas)
            for k, step_size in enumerate(step_sizes)
        ]

    training = model.training
    model.eval()
    try:
        for i, (inputs, free) in enumerate(encoded):
            options = {
                "radius": radius,
                "directions": directions,
                "restarts": restarts,
                "steps": steps,
                "seed": seed + i,
            }
            for name, fields in compared.items():
                with connected(model.config, fields):
                    measure(i, "growth", {"connection": name}, options, partial(growth, model, inputs, free))
            with torch.no_grad(), connected(model.config, compared["IM-BERT"]):
                states = model(**inputs, output_hidden_states=True).hidden_states
            layers = {k: (PlainLayer(layer), states[k]) for k, layer in enumerate(model.encoder.layer)}
            solved = {k: layers[k] for k in sorted(config.implicit_layers)}
            options = {"step_size": config.im_step_size, **field, "count": eigenvalues, "seed": seed}
            measure(i, "spectrum", {}, options, partial(spectra, layers))
            measure(i, "residuals", {}, {"iterations": iterations, **own, **relation}, partial(residuals, solved))
            grid = {"step_sizes": step_sizes, "thetas": thetas, "iterations": iterations, **relation}
            measure(i, "convergence", {}, grid, partial(converged, solved))
    finally:
        model.train(training)
        bar.close()
    return data


def _encode(tokenizer: Any, text: str | tuple[str, ...], max_length: int, device) -> tuple[dict[str, Tensor], Tensor]:
    """The model's inputs, one row, and which of its tokens are not special, (length,) bool."""
    fields = (text,) if isinstance(text, str) else text
    encoding = tokenizer(
        *fields, truncation=True, max_length=max_length, return_special_tokens_mask=True, return_tensors="pt"
    ).to(device)
    free = ~encoding.pop("special_tokens_mask")[0].bool()
    if not free.any():
        raise ValueError(f"each text must have a token that may be moved, got {text!r}.")
    return dict(encoding), free


def _fingerprint(model: nn.Module) -> str:
    """A hash of the weights."""
    found = hashlib.sha256()
    for tensor in model.state_dict().values():
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]
