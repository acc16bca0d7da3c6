"""What IM-BERT costs beside other ways to the same solution, and to a robust BERT: the literal reading of the paper,
torchdeq where it is installed, FreeLB, R3F and R-Drop. Arguments and measures are those of imbert-eval cost.
"""

import argparse
from dataclasses import replace
from typing import Any

from machine import machine, minilm
from references import find_torchdeq, with_references

from imbert_hf.evaluation.cost import command
from imbert_hf.evaluation.report import Journal, Report


HELP = "time, memory and work of the references, beside those of imbert-eval cost"
figure = command.figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    command.add_arguments(parser)
    parser.add_argument("--model", help="a checkpoint of BERT or IM-BERT, folder or Hub id (default: all-MiniLM-L6-v2)")


def run(args: argparse.Namespace, journal: Journal) -> Report:
    journal.common["machine"] = made = machine(device=args.device)
    journal.common["torchdeq"] = find_torchdeq() is not None
    named = argparse.Namespace(**vars(args) | {"model": args.model or minilm()})
    report = command.run(named, journal, make=with_references)
    missing = absent(args.dtype)
    report.data.update(machine=made, absent=missing)
    return report if not missing else replace(report, text=f"{report.text}\n\nWithout rows: {', '.join(missing)}.")


def absent(dtype: str) -> list[str]:
    """The references that cannot be measured, with the reason."""
    if find_torchdeq() is None:
        return ["torchdeq, which is not installed (pip install torchdeq)"]
    return [f"torchdeq's Anderson, which has no {dtype}"] if dtype == "bfloat16" else []


def rows(data: dict[str, Any]) -> list[dict[str, str]]:
    """Of the README's table: ratios to BERT of every row but BERT's own."""
    return [
        {
            "": row["name"],
            "inference": "" if row["inference"] is None else f"{row['inference']['ratio']:.2f}",
            "training step": f"{row['training']['ratio']:.2f}",
            "memory": f"{row['training']['memory_ratio']:.2f}",
        }
        for cell in data["cells"]
        for row in cell["rows"]
        if row["kind"] != "BERT"
    ]
