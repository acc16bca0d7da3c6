"""How a small change of the input travels through BERT, EX-BERT and IM-BERT with the same weights, and why.

Everything is computed for one sentence at a time, so that there is no padding and every norm is over real tokens.
"""

import copy
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from imbert_hf.evaluation.data.loading import layers_of, longest_input
from imbert_hf.evaluation.report import Journal, at_least, finite
from imbert_hf.evaluation.stability.growth import connected, connections, growth
from imbert_hf.evaluation.stability.solves import convergence, residual_history
from imbert_hf.evaluation.stability.spectrum import Map, jacobian_norm, leading_eigenvalues, stability_function
from imbert_hf.pass_imbert import SOLVERS
from imbert_hf.solvers_imbert import VECTOR_FIELDS, Solver


# For layers by their index: F, and its input.
Layers = Mapping[int, tuple[Map, Tensor]]
THETAS = (0.0, 0.5, 1.0)  # of the regions of stability: explicit Euler, trapezoidal rule, implicit Euler


class PlainLayer(nn.Module):
    """h -> F(h), (batch, length, hidden), of a layer under fixed arguments, such as its mask, in eval mode."""

    def __init__(self, layer: Any, *args: Any, **kwargs: Any):
        super().__init__()
        self.layer, self.args, self.kwargs = layer, args, kwargs
        self.eval()

    def forward(self, h: Tensor) -> Tensor:
        # No hook of the layer's, nor what an instance put in place of its forward.
        F = getattr(self.layer, "plain", partial(type(self.layer).forward, self.layer))
        y = F(h, *self.args, **self.kwargs)
        return y[0] if isinstance(y, tuple) else y  # of DeBERTa with its attentions


@torch.no_grad()
def plain_layers(model: Any, inputs: Mapping[str, Tensor]) -> list[tuple[PlainLayer, Tensor]]:
    """Each layer's F under the arguments that it has in a forward of the model, and its input there.

    Args:
        model: of a family, plain or implicit, with its head or without, in eval mode.
        inputs: of the model.
    """
    found = []

    def note(layer: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        own = getattr(layer, "own_arguments", dict)(kwargs)
        found.append((PlainLayer(layer, *args[1:], **own), args[0]))

    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers_of(model)]
    try:
        model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


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
        model: of imbert_hf, with or without a head; load_encoder makes one of a plain checkpoint. Left as it was.
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
    at_least(1, directions=directions, eigenvalues=eigenvalues, iterations=iterations)
    at_least(0, steps=steps)
    if not 1 <= restarts <= directions:
        raise ValueError(f"restarts must be an integer from 1 to directions, {directions}, got {restarts}.")
    _check(model, tokenizer, texts, radius, {"step_sizes": step_sizes, "thetas": thetas}, max_length)
    model = model.base_model
    encoded = [_encode(tokenizer, text, max_length, model.device) for text in texts]
    compared = connections(model.config)
    config = copy.deepcopy(model.config)
    for name, value in compared["IM-BERT"].items():
        setattr(config, name, value)
    # All that a part depends on beside its own options.
    common = {"weights": _hash_of_weights(model), "config": model.config.to_dict(), "implicit": compared["IM-BERT"]}
    moves = {"radius": radius, "directions": directions, "restarts": restarts, "steps": steps}
    grid = {"step_sizes": step_sizes, "thetas": thetas, "iterations": iterations}

    journal = journal or Journal()
    data: dict[str, Any] = {"connections": compared}
    data["sentences"] = [{"text": t, "tokens": len(free)} for t, (_, free) in zip(texts, encoded, strict=True)]
    data |= {name: [] for name in ("growth", "spectrum", "residuals", "convergence")}
    training = model.training
    model.eval()
    bar = tqdm(total=6 * len(texts), desc="sentences x measurements", disable=not progress)
    try:
        for i, (inputs, free) in enumerate(encoded):
            grown = _growth_parts(model, inputs, free, compared, {**moves, "seed": seed + i})
            of_layers = _layer_parts(model, inputs, config, compared["IM-BERT"], eigenvalues, grid, seed)
            for part in itertools.chain(grown, of_layers):
                key = {"what": part.what, "tokens": inputs["input_ids"].tolist(), **part.labels, **part.options}
                records = journal.part({**key, **common}, partial(part.compute, **part.options))
                data[part.what] += [{"sentence": i, **part.labels, **record} for record in records]
                bar.update()
    finally:
        model.train(training)
        bar.close()
    return data


def _check(
    model: Any, tokenizer: Any, texts: Any, radius: float, grids: Mapping[str, Sequence[float]], max_length: int
) -> None:
    """Raises ValueError for the first of these arguments of `stability` that is not allowed."""
    if not hasattr(getattr(model, "config", None), "im_layers"):
        raise ValueError(f"model must be an implicit one, or a plain one loaded as such, got {type(model).__name__}.")
    if not (math.isfinite(radius) and radius > 0):
        raise ValueError(f"radius must be a finite number > 0, got {radius}.")
    for name, values in grids.items():
        if not values or min(values) <= 0:
            raise ValueError(f"{name} must hold numbers > 0, got {list(values)}.")
    if isinstance(texts, str) or not texts:
        raise ValueError(f"texts must be a list of one sentence or more, got {texts!r}.")
    longest = longest_input(model, tokenizer)
    if not 8 <= max_length <= longest:
        raise ValueError(f"max_length must be from 8 to {longest}, got {max_length}.")


class _Part(NamedTuple):
    """One measurement of one sentence: the list of `data` that it goes to, and compute(**options), its records."""

    what: str
    compute: Callable[..., list[dict[str, Any]]]
    options: dict[str, Any]
    labels: dict[str, Any] = {}  # noqa: RUF012 - of each record


def _growth_parts(
    model: Any, inputs: dict[str, Tensor], free: Tensor, compared: Mapping[str, Mapping], options: dict[str, Any]
) -> Iterator[_Part]:
    """Of each connection, which the model has until the next one is asked for."""
    for name, fields in compared.items():
        with connected(model.config, fields):
            yield _Part("growth", partial(growth, model, inputs, free), options, {"connection": name})


def _layer_parts(
    model: Any,
    inputs: dict[str, Tensor],
    config: Any,
    implicit: Mapping[str, Any],
    eigenvalues: int,
    grid: dict[str, Any],
    seed: int,
) -> Iterator[_Part]:
    """Of each layer F at its input in the forward of IM-BERT, whose fields `implicit` and whose `config` are given."""
    with connected(model.config, implicit):
        layers = dict(enumerate(plain_layers(model, inputs)))
    solved = {k: layers[k] for k in sorted(config.implicit_layers)}
    solvers = {name: SOLVERS[name](vars(config)) for name in ("fixed_point", "anderson", "gradient_descent")}
    field = {"vector_field": config.im_vector_field}
    relation = {**field, "initial_guess": config.im_initial_guess}
    own = {"step_size": config.im_step_size, "theta": config.im_theta, "iterations": grid["iterations"]}
    spectrum = {"step_size": config.im_step_size, **field, "count": eigenvalues, "seed": seed}
    yield _Part("spectrum", partial(spectra, layers), spectrum)
    yield _Part("residuals", partial(residuals, solved, solvers), {**own, **relation})
    yield _Part("convergence", partial(converged, solved, solvers[config.im_solver]), {**grid, **relation})


def residuals(layers: Layers, solvers: Mapping[str, Solver], **options) -> list[dict[str, Any]]:
    """One record a layer and solver: layer; solver; residual by iteration, see `residual_history`."""
    return [
        {"layer": i, "solver": name, "residual": finite(residual_history(F, x, solver, **options)[:, 0])}
        for i, (F, x) in layers.items()
        for name, solver in solvers.items()
    ]


def converged(
    layers: Layers, solver: Solver, *, thetas: Sequence[float], step_sizes: Sequence[float], **options
) -> list[dict[str, Any]]:
    """One record a layer and point of the grid: layer; theta; step_size; converged, see `convergence`."""
    records = []
    for i, (F, x) in layers.items():
        solves = convergence(F, x, solver, thetas=thetas, step_sizes=step_sizes, **options)[:, :, 0].flatten().tolist()
        points = itertools.product(thetas, step_sizes)
        records += [
            {"layer": i, "theta": theta, "step_size": step_size, "converged": solve}
            for (theta, step_size), solve in zip(points, solves, strict=True)
        ]
    return records


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


def _hash_of_weights(model: nn.Module) -> str:
    found = hashlib.sha256()
    for tensor in model.state_dict().values():
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]
