"""The bounds for a GPU, each measured and held against its bound: a BERT-base shape with drawn weights.

Without a GPU they are printed as "not measured". Those against torchdeq need it installed. What is finished is kept
beside --output, and the same command goes on where it was stopped.
"""

import argparse
from typing import Any

import gpu
import torch
from machine import machine
from targets_command import columns, verdicts

from imbert_hf import IMBertConfig, IMBertForSequenceClassification
from imbert_hf.evaluation.report import Journal, Report, at_least, table


HELP = "the bounds for a GPU, met or missed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=20, help="rounds of timing (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace, journal: Journal) -> Report:
    at_least(1, **{"--repeats": args.repeats})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    journal.common["machine"] = made = machine(device=device)
    data: dict[str, Any] = {"machine": made}
    if device == "cuda":
        torch.manual_seed(args.seed)
        model = IMBertForSequenceClassification(IMBertConfig()).cuda().eval()
        options = {"repeats": args.repeats, "seed": args.seed, "progress": not args.quiet}
        data["targets"] = gpu.measure_gpu(model, keep=journal.part, **options)
    else:
        data["targets"] = gpu.not_measured()
    return Report(data, f"{table(rows(data))}\n\n{verdicts(data['targets'])}")


def rows(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Of the table: a line a bound."""
    return [columns(found) for found in data["targets"]]
