"""How a small change of the input travels through BERT, EX-BERT and IM-BERT with the same weights, and why.

Everything is computed for one sentence at a time, so that there is no padding and every norm is over real tokens.
"""

import contextlib
import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers.models.bert.modeling_bert import BertLayer

from imbert_hf import IMBertConfig, Unrolled, implicit_step
from imbert_hf.gradients_imbert import CARRY
from imbert_hf.modeling_imbert import SOLVERS
from imbert_hf.solvers_imbert import Solver

from .report import Journal
from .spectrum import Map, jacobian_norm, leading_eigenvalues, stability_function


# For layers by their index: F, and its input.
Layers = Mapping[int, tuple[Map, Tensor]]
THETAS = (0.0, 0.5, 1.0)  # of the regions of stability: explicit Euler, trapezoidal rule, implicit Euler


class PlainLayer(nn.Module):
    """h -> F(h), (batch, length, hidden), of a layer of BERT or IM-BERT under a fixed attention mask, in eval mode."""

    def __init__(self, layer: BertLayer, attention_mask: Tensor | None = None):
        super().__init__()
        self.layer, self.attention_mask = layer, attention_mask
        self.eval()

    def forward(self, h: Tensor) -> Tensor:
        return BertLayer.forward(self.layer, h, self.attention_mask)


def connections(config: IMBertConfig) -> dict[str, dict[str, Any]]:
    """The im_ fields of the three connections that are compared on the weights of one model.

    IM-BERT has the model's own, or the defaults where these take no implicit step (theta 0, or no layers); EX-BERT has
    IM-BERT's with theta 0 and the layer field; BERT has no layers.
    """
    own = config if config.im_theta > 0 and config.implicit_layers else IMBertConfig()
    implicit = {name: value for name, value in own.to_dict().items() if name.startswith("im_")}
    # Exact gradients for the search of the worst direction, whatever the model was trained with.
    implicit["im_gradient"] = "unrolled"
    explicit = {**implicit, "im_theta": 0.0, "im_vector_field": "layer"}
    return {"BERT": {**implicit, "im_layers": []}, "EX-BERT": explicit, "IM-BERT": implicit}


@contextlib.contextmanager
def connected(config: IMBertConfig, fields: Mapping[str, Any]) -> Iterator[None]:
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
        model: an IMBertModel.
        inputs: of the model, one row.
        delta: (n, length, hidden), added to what the word embedding returns; differentiable.
    """
    hook = model.get_input_embeddings().register_forward_hook(lambda module, args, output: output + delta)
    try:
        repeated = {name: value.expand(len(delta), -1) for name, value in inputs.items()}
        return model(**repeated, output_hidden_states=True).hidden_states
    finally:
        hook.remove()


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
        model: an IMBertModel in eval mode.
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
        size = radius * _norm(embedded)
        clean = perturbed_states(model, inputs, torch.zeros_like(embedded))
        noise = torch.randn(directions, *embedded.shape[1:], generator=torch.Generator().manual_seed(seed))

        def on_sphere(d: Tensor) -> Tensor:
            d = d * free[:, None]
            return d * (size / _norm(d))[:, None, None]

        random = on_sphere(noise.to(embedded))
        states = perturbed_states(model, inputs, random)
    most, starts = _norm(states[-1] - clean[-1]).topk(restarts)
    d = best = random[starts]
    for _ in range(steps):
        d = d.requires_grad_()
        distance = _norm(perturbed_states(model, inputs, d)[-1] - clean[-1])
        (gradient,) = torch.autograd.grad(distance.sum(), d)
        d, distance, gradient = d.detach(), distance.detach(), gradient.nan_to_num()
        best = torch.where((distance > most)[:, None, None], d, best)
        most = torch.where(distance > most, distance, most)
        # The most that a convex function reaches in a ball it reaches on the sphere, and there the ascent stays.
        d = on_sphere(d + (size / _norm(gradient).clamp_min(1e-30))[:, None, None] * gradient)
    with torch.no_grad():
        found = perturbed_states(model, inputs, torch.cat([best, d]))
        last = _norm(found[-1] - clean[-1]).nan_to_num(-1).argmax()
        states = tuple(torch.cat([h, w[last, None]]) for h, w in zip(states, found, strict=True))
        difference = torch.stack([_norm(h - h0) for h, h0 in zip(states, clean, strict=True)], dim=1)
        norms = torch.cat([_norm(h) for h in clean])
    return [
        {
            "direction": "worst" if i == directions else "random",
            "difference": _numbers(row),
            "ratio": _numbers(row / row[0]),
            "relative": _numbers(row / norms),
        }
        for i, row in enumerate(difference)
    ]


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
        z = step_size * (found.values - CARRY[vector_field])
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
                "amplification": dict(zip((f"{theta:g}" for theta in THETAS), _numbers(largest), strict=True)),
            }
        )
    return records


@dataclass(eq=False)
class _Recording:
    """A solver that notes the relative residual of every iterate that it is handed."""

    solver: Solver
    needs_pullback: bool
    residuals: list[Tensor]

    def init(self):
        return self.solver.init()

    def step(self, relation, y, g, pullback, state):
        self.residuals.append(relation.c * relation.norm(y - g) / relation.norm(y))
        return self.solver.step(relation, y, g, pullback, state)


@torch.no_grad()
def residual_history(function: Map, x: Tensor, solver: Solver, iterations: int, **relation) -> Tensor:
    """The relative residual ||r|| / ||y|| after 0, 1, ... `iterations` iterations, (iterations + 1, batch).

    They are those of `implicit_step` with that many iterations at tolerance 0, from one run instead of one for each.

    Args:
        function: F, h -> F(h).
        x: (batch, length, width).
        solver: FixedPoint, Anderson or GradientDescent.
        relation: vector_field, step_size, theta > 0 and initial_guess of `implicit_step`.
    """
    recording = _Recording(solver, solver.needs_pullback, [])
    solution = implicit_step(
        function, x, solver=recording, gradient=Unrolled(), iterations=iterations, tolerance=0.0, **relation
    )
    return torch.stack([*recording.residuals, solution.residual])


@torch.no_grad()
def convergence(
    function: Map,
    x: Tensor,
    solver: Solver,
    *,
    step_sizes: Sequence[float],
    thetas: Sequence[float],
    iterations: int,
    tolerance: float = 1e-2,
    **relation,
) -> Tensor:
    """Which solves converge: (thetas, step sizes, batch) bool, `Solution.converged` of `implicit_step`.

    Args:
        function, x, solver: as for `residual_history`.
        iterations: at most.
        tolerance: relative residual that counts as converged, > 0.
        relation: vector_field and initial_guess of `implicit_step`.
    """
    common = {"solver": solver, "gradient": Unrolled(), "iterations": iterations, "tolerance": tolerance, **relation}
    solves = [
        implicit_step(function, x, theta=theta, step_size=step_size, **common).converged
        for theta in thetas
        for step_size in step_sizes
    ]
    return torch.stack(solves).view(len(thetas), len(step_sizes), len(x))


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
    solvers = {name: SOLVERS[name](config) for name in ("fixed_point", "anderson", "gradient_descent")}
    field = {"vector_field": config.im_vector_field}
    relation = {**field, "initial_guess": config.im_initial_guess}
    own = {"step_size": config.im_step_size, "theta": config.im_theta}
    # All that a part depends on beside its own options.
    common = {"weights": _fingerprint(model), "max_length": max_length, "implicit": compared["IM-BERT"]}
    journal = journal or Journal()
    data: dict[str, Any] = {"connections": compared}
    data["sentences"] = [{"text": t, "tokens": len(free)} for t, (_, free) in zip(texts, encoded, strict=True)]
    data |= {name: [] for name in ("growth", "spectrum", "residuals", "convergence")}
    bar = tqdm(total=6 * len(texts), desc="sentences x measurements", disable=not progress)

    def measure(sentence: int, what: str, labels: dict, options: dict, compute: Callable) -> None:
        key = {"what": what, "text": texts[sentence], **labels, **options, **common}
        data[what] += [{"sentence": sentence, **labels, **r} for r in journal.part(key, partial(compute, **options))]
        bar.update()

    def residuals(layers: Layers, **options) -> list[dict[str, Any]]:
        return [
            {"layer": i, "solver": name, "residual": _numbers(residual_history(F, x, solver, **options)[:, 0])}
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


def _norm(t: Tensor) -> Tensor:
    """Euclidean, per row, (n,)."""
    return torch.linalg.vector_norm(t.flatten(1), dim=1)


def _numbers(values: Tensor | Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in map(float, values)]
