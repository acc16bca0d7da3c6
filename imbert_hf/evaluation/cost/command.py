"""Time, memory and work of IM-BERT's solvers and gradients against plain BERT with the same weights, in one process.

A busy machine misleads: every row is timed in turn, round after round, and the ratios are of neighbours in time, but
what else runs takes more from some rows than from others. Measure on an idle machine, and look at the quartiles.
"""

import argparse
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from imbert_hf import GradientDescent
from imbert_hf.evaluation.cost.picture import figure
from imbert_hf.evaluation.cost.settings import Make, cost
from imbert_hf.evaluation.cost.variants import GRADIENTS, KEPT, SOLVERS, make_variants
from imbert_hf.evaluation.data.arguments import add_run_arguments, add_text_column
from imbert_hf.evaluation.data.loading import NAMES, fingerprint, load_encoder, longest_input
from imbert_hf.evaluation.data.tasks import TASKS
from imbert_hf.evaluation.report import Journal, Report, at_least, explained, table
from imbert_hf.evaluation.stability.command import read_texts


HELP = "time, memory and work against plain BERT"
DEFAULTS: dict[str, list] = {
    "batch": [32],
    "length": [64],
    "solver": list(SOLVERS),
    "gradient": list(GRADIENTS),
    "iterations": [2, 3, 5],
    "learning_rate": [GradientDescent.learning_rate],
    "implicit_layers": [None],
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help=f"of {NAMES}, plain or implicit, folder or Hub id")
    parser.add_argument(
        "--data",
        help="a text file, such as .txt, one sentence a line; with --task or --text-column, a table (default: random)",
    )
    parser.add_argument("--task", help=f"one of {', '.join(TASKS)}")
    add_text_column(parser)
    parser.add_argument("--random", action="store_true", help="random tokens too, beside --data")
    for name, kind, choices, what in (
        ("batch", int, None, "rows"),
        ("length", int, None, "tokens a row, padded to it"),
        ("solver", str, SOLVERS, "of IM-BERT"),
        ("gradient", str, GRADIENTS, "of IM-BERT"),
        ("iterations", int, None, "of the solver"),
        ("learning-rate", float, None, "of gradient_descent"),
        ("implicit-layers", int, None, "how many, from the last one down"),
    ):
        default = DEFAULTS[name.replace("-", "_")]
        shown = " ".join("the checkpoint's, or all" if value is None else str(value) for value in default)
        text = f"{what}; may be given again (default: {shown})"
        parser.add_argument(f"--{name}", action="several", default=default, type=kind, choices=choices, help=text)
    parser.add_argument("--theta", type=float, default=1.0, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=7, help="rounds of timing (default: %(default)s)")
    parser.add_argument("--no-train", action="store_true", help="inference alone")
    parser.add_argument(
        "--gradient-rows",
        type=int,
        default=4,
        help="rows for the error of the gradient, in float64; 0: not measured (default: %(default)s)",
    )
    add_run_arguments(parser, "float32", "bfloat16", "float64")


def run(args: argparse.Namespace, journal: Journal, make: Make = make_variants) -> Report:
    check(args)
    texts = None
    if args.data is not None:
        texts = read_texts(args.data, args.task, args.text_column, limit=max(args.batch), seed=args.seed)
    model, tokenizer = load_model(args.model, device=args.device, dtype=args.dtype, seed=args.seed)
    if max(args.length) > (longest := longest_input(model, tokenizer)):
        raise ValueError(f"--length must be at most {longest} for {args.model}, got {max(args.length)}.")
    total, own = model.config.num_hidden_layers, len(model.config.implicit_layers)
    args.implicit_layers = [own or total if count is None else count for count in args.implicit_layers]
    if wrong := [count for count in args.implicit_layers if not 1 <= count <= total]:
        raise ValueError(f"--implicit-layers must be an integer from 1 to {total} for {args.model}, got {wrong[0]}.")
    marked = fingerprint(args.model, model.config)
    cells = cost(
        model,
        tokenizer,
        texts,
        batches=args.batch,
        lengths=args.length,
        implicit_layers=args.implicit_layers,
        random=texts is None or args.random,
        solvers=args.solver,
        gradients=args.gradient,
        iterations=args.iterations,
        learning_rates=args.learning_rate,
        theta=args.theta,
        repeats=args.repeats,
        train=not args.no_train,
        gradient_rows=args.gradient_rows,
        seed=args.seed,
        make=make,
        keep=lambda key, compute: journal.part({**key, "model": marked}, compute),
        progress=not args.quiet,
    )
    data: dict[str, Any] = {
        "fingerprint": marked,
        "connection": {name: getattr(model.config, name) for name in KEPT},
        "cells": cells,
    }
    head = f"{args.model}, {args.dtype}, {args.device}, {torch.get_num_threads()} threads, theta {args.theta:g}"
    return Report(data, text(data, f"{head}, {args.repeats} rounds"), lambda: figure(data, head))


def check(args: argparse.Namespace) -> None:
    """Raises ValueError for the first argument that is out of range."""
    for name, least in (("batch", 1), ("length", 3), ("iterations", 1)):
        at_least(least, **{f"--{name}": min(getattr(args, name))})
    if wrong := [value for value in args.learning_rate if not 0 < value < float("inf")]:
        raise ValueError(f"--learning-rate must be a finite number > 0, got {wrong[0]}.")
    if not 0 < args.theta <= 1:
        raise ValueError(
            f"--theta must be a number > 0 and <= 1, got {args.theta}; EX-BERT is theta 0 and always there."
        )
    at_least(1, **{"--repeats": args.repeats})
    at_least(0, **{"--gradient-rows": args.gradient_rows})
    for option, given in {"--task": args.task, "--text-column": args.text_column, "--random": args.random}.items():
        if given and args.data is None:
            raise ValueError(f"{option} needs --data; without it the tokens are random.")


def load_model(path: str, *, device: str = "cpu", dtype: str = "float32", seed: int = 0) -> tuple[Any, Any]:
    """A classifier around the encoder of a checkpoint of one of the families, and its tokenizer.

    The head is a new one of two classes, drawn with `seed`: no cost depends on its weights.

    Raises:
        ValueError: what `load_encoder` raises.
    """
    encoder, tokenizer = load_encoder(path, dtype=dtype, device=device)
    config = encoder.config
    config.num_labels, config.problem_type = 2, None
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config)
    for name, part in encoder.named_children():
        setattr(model.base_model, name, part)
    return model.to(device=encoder.device, dtype=encoder.dtype).eval(), tokenizer


def text(data: dict[str, Any], head: str) -> str:
    """The tables of a run."""
    parts = [head]
    for cell in data["cells"]:
        bert = cell["bert"]
        own = f"BERT itself: inference {milliseconds(bert['inference_seconds'])}"
        if bert["training_seconds"] is not None:
            own += f", training step {milliseconds(bert['training_seconds'])}"
            own += f", {bert['training_bytes'] / 2**20:.3g} MiB beside parameters and their gradients"
        title = f"Batch {cell['batch']} x {cell['length']}, {cell['text']} text, {100 * cell['tokens']:.0f} % tokens "
        title += f"that are no padding, {cell['implicit_layers']} implicit layers"
        parts.append(f"{title}\n{own}\n{table([columns(row, cell) for row in cell['rows']])}")
        if converged := cell["converged"]:
            parts.append(
                f"Gradient error: on the {converged['rows']} of {converged['of']} rows that a converged solve was "
                f"found for (residual {converged['residual'] or float('nan'):.0e})."
            )
    if any(_quartile_width(row) > 0.2 for cell in data["cells"] for row in cell["rows"]):
        parts.append("Warning: some quartiles lie more than 20 % of their median apart; the machine was busy.")
    return explained(parts, WORDS)


WORDS = {
    "inference": "work a layer, of F evaluations, v vector-Jacobian products or backward passes, vv backward passes of "
    "products",
    "time": "of inference, a ratio to BERT's, as step and memory are; in brackets the quartiles of the rounds",
    "/ floor": "to the least that this work can cost: F and v count 1, the backward of a tracked one 2",
    "step": "of training, forward + backward",
    "memory": "peak beside parameters and their gradients",
    "residual": "mean of ||r|| / ||y|| over rows and implicit layers",
    "gradient error": "||g - g*|| / ||g*|| to the gradient g* of converged solves",
    "EX-BERT": "theta 0 and the layer field",
}


def milliseconds(seconds: list[float]) -> str:
    low, middle, high = (f"{1e3 * value:.3g}" for value in seconds)
    return f"{middle} [{low}, {high}] ms"


def columns(row: dict[str, Any], cell: dict[str, Any]) -> dict[str, Any]:
    """A row of the table."""
    shown: dict[str, Any] = {"": row["name"]}
    inference, training = row["inference"], row["training"]
    shown["inference"] = inference and work(inference["forward"])
    shown["time"] = inference and spread(inference)
    shown["/ floor"] = inference and f"{inference['to_floor']:.2f}"
    if cell["bert"]["training_seconds"] is not None:
        shown["forward + backward"] = f"{work(training['forward'])} + {work(training['backward'])}"
        shown["step"] = spread(training)
        shown["step / floor"] = f"{training['to_floor']:.2f}"
        shown["memory"] = f"{training['memory_ratio']:.2f}"
    shown["residual"] = row["residual"] and f"{row['residual']:.1e}"
    if cell["converged"]:
        shown["gradient error"] = row["gradient_error"] and f"{row['gradient_error']:.1e}"
    return shown


def work(phase: dict[str, float]) -> str:
    """Counts, such as 4F 3v."""
    signs = {"evaluations": "F", "products": "v", "second_products": "vv"}
    return " ".join(f"{phase[kind]:g}{sign}" for kind, sign in signs.items() if phase[kind]) or "0"


def spread(timing: dict[str, Any]) -> str:
    low, high = timing["quartiles"]
    return f"{timing['ratio']:.2f} [{low:.2f}, {high:.2f}]"


def _quartile_width(row: dict[str, Any]) -> float:
    timings = [timing for timing in (row["inference"], row["training"]) if timing]
    return max((t["quartiles"][1] - t["quartiles"][0]) / t["ratio"] for t in timings)
