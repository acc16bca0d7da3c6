"""The bounds for a GPU, each measured and held against its bound: a BERT-base shape with drawn weights.

Without a GPU the rows are printed as "not measured". Install torchdeq for its rows.
"""

import argparse
from typing import Any

import gpu
import torch
from machine import machine
from targets_command import columns, verdicts

from imbert_hf import IMBertConfig, IMBertForSequenceClassification
from imbert_hf.evaluation.report import Journal, Report, at_least, table


HELP = "the bounds on a GPU, met or missed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=20, help="rounds of timing (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace, journal: Journal) -> Report:
    at_least(1, **{"--repeats": args.repeats})
    found = gpu.measure_gpu(base_model(args.seed), repeats=args.repeats, seed=args.seed, progress=not args.quiet)
    data: dict[str, Any] = {"machine": machine() | device(), "targets": found}
    return Report(data, f"{table(rows(data))}\n\n{verdicts(found)}")


def base_model(seed: int) -> Any:
    """A classifier of the shape of BERT-base on the GPU; None where there is none."""
    if not torch.cuda.is_available():
        return None
    torch.manual_seed(seed)
    return IMBertForSequenceClassification(IMBertConfig()).cuda().eval()


def device() -> dict[str, str]:
    return {"device": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}


def rows(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Of the table: a line a bound."""
    return [columns(found) for found in data["targets"]]
