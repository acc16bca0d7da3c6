"""What IM-BERT's cost is compared with, written as plainly as a user would: other ways to the same solution, and other
ways to a robust BERT.

- The literal reading of the paper: gradient descent on the squared residual by torch.autograd.grad, unrolled.
- The same equation handed to torchdeq (Geng and Kolter 2023), which is optional: `pip install torchdeq`.
- FreeLB (Zhu et al., ICLR 2020) and R3F (Aghajanyan et al., ICLR 2021): training steps of plain BERT.

They are measured, not recommended: with dropout each evaluation of the first two draws masks of its own, and both take
padded tokens for real ones.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import BertConfig, BertForSequenceClassification

from imbert_hf import ThetaMethod


Batch = Mapping[str, Tensor]
Map = Callable[[Tensor], Tensor]
Solve = Callable[[Map, Tensor], Tensor]  # F, and the input of the layer -> its output


def plain_bert(model: Any, solve: Solve | None = None, indices: Sequence[int] = ()) -> Any:
    """transformers' BertForSequenceClassification, or the same around other layers, with the parameters of `model`.

    Args:
        model: IMBertForSequenceClassification; the parameters are shared, not copied.
        solve: makes a layer's output from F and its input, in the layers that are not to be plain.
        indices: of these layers.
    """
    fields = {name: value for name, value in model.config.to_dict().items() if not name.startswith("im_")}
    config = BertConfig(**{name: fields[name] for name in fields if name not in ("model_type", "auto_map")})
    config._attn_implementation = model.config._attn_implementation
    bert = BertForSequenceClassification(config)
    bert.load_state_dict(model.state_dict(keep_vars=True), assign=True)
    bert.to(model.device)
    if solve is not None:
        layers = bert.bert.encoder.layer
        for i in indices:
            layers[i] = SolvedLayer(layers[i], solve)
    return bert.eval()


class SolvedLayer(nn.Module):
    """A layer whose output some `solve` makes of F, the plain BERT layer, and its input."""

    def __init__(self, layer: nn.Module, solve: Solve):
        super().__init__()
        self.layer, self.solve = layer, solve

    def forward(self, hidden_states: Tensor, *args, **kwargs) -> Tensor:
        return self.solve(lambda h: self.layer(h, *args, **kwargs), hidden_states)


@dataclass(frozen=True)
class Equation(ThetaMethod):
    """The theta method, and the initial guess of implicit_step."""

    initial_guess: str = "explicit"

    def start(self, F: Map, x: Tensor) -> tuple[Tensor, Tensor]:
        """b = x + gamma (1 - theta) f(x), and the initial guess."""
        if self.theta == 1 and self.initial_guess == "previous":
            return x, x
        fx = F(x) - self.carry * x
        b = x if self.theta == 1 else x + self.step_size * (1 - self.theta) * fx
        return b, x if self.initial_guess == "previous" else x + self.step_size * fx


def literal(equation: Equation, iterations: int, learning_rate: float) -> Solve:
    """The literal reading of the paper: descent on ||r||^2 / 2 by autograd, whose steps stay in the graph."""
    s, c = equation.weights

    def solve(F: Map, x: Tensor) -> Tensor:
        graph = torch.is_grad_enabled()

        def layer(h: Tensor) -> Tensor:
            if not graph:
                return F(h)
            with sdpa_kernel(SDPBackend.MATH):  # fused attention cannot be differentiated twice
                return F(h)

        b, y = equation.start(layer, x)
        y = y.view_as(y)  # for autograd it is none of what b was made of
        for _ in range(iterations):
            with torch.enable_grad():
                y = y if graph and y.requires_grad else y.detach().requires_grad_()
                r = c * y - b - s * layer(y)
                (descent,) = torch.autograd.grad(r.square().sum() / 2, y, create_graph=graph)
            y = y - learning_rate * descent
        return y

    return solve


def find_torchdeq() -> Callable[..., Any] | None:
    """The function of torchdeq that makes a DEQ, where the package is installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its docstrings hold invalid escapes
            from torchdeq import get_deq
    except ImportError:
        return None
    return get_deq


TORCHDEQ_SOLVERS = {"fixed_point": "fixed_point_iter", "anderson": "anderson"}
TORCHDEQ_LEAST = {"fixed_point": 1, "anderson": 3}  # evaluations: with fewer its Anderson returns its start
TORCHDEQ_GRADIENTS = ("implicit", "one_step")


def through_torchdeq(
    equation: Equation,
    solver: str,
    gradient: str,
    iterations: int,
    *,
    gradient_iterations: int | None = None,
    damping: float = 1.0,
    memory: int = 3,
) -> Solve:
    """y = (b + s F(y)) / c by torchdeq's DEQ, with as many evaluations as implicit_step makes, where it can.

    It makes more where `iterations` is 1 (one more in training) or, with Anderson, below 4.

    Args:
        solver: "fixed_point" or "anderson", forward and backward.
        gradient: "implicit" (its `ift`) or "one_step" (its phantom gradient of one step).
        iterations: >= 1 evaluations after the guess; in training the last of them is the one that it differentiates.
        gradient_iterations: products of the adjoint solve; None: `iterations`.
        damping, memory: of implicit_step's solvers.
    """
    get_deq = find_torchdeq()
    if get_deq is None:
        raise ValueError("torchdeq is not installed: pip install torchdeq.")
    (s, c), least, name = equation.weights, TORCHDEQ_LEAST[solver], TORCHDEQ_SOLVERS[solver]
    deq = get_deq(
        core="sliced",
        ift=gradient == "implicit",
        f_solver=name,
        b_solver=name,
        f_max_iter=max(iterations - 1, least),
        eval_f_max_iter=max(iterations, least),
        b_max_iter=max(iterations if gradient_iterations is None else gradient_iterations, least),
        f_tol=0.0,
        b_tol=0.0,
    )
    options = {"return_final": True, "tau": damping, "m": memory + 1}

    def solve(F: Map, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and equation.theta < 1):
            b, y = equation.start(F, x)
        b = x if equation.theta == 1 else b
        deq.training = torch.is_grad_enabled()
        values, _ = deq(lambda y: (b + s * F(y)) / c, y.detach(), solver_kwargs=options)
        return values[-1]

    return solve


def plain_losses(model: Any, batch: Batch) -> Iterator[Tensor]:
    """The loss of one training step; each loss that such a function yields is to be differentiated at once."""
    yield model(**batch).loss


def freelb_losses(
    model: Any, batch: Batch, *, steps: int = 3, step_size: float = 0.1, radius: float = 0.6, start: float = 0.05
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


def r3f_losses(model: Any, batch: Batch, *, noise: float = 1e-5, weight: float = 1.0) -> Iterator[Tensor]:
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
