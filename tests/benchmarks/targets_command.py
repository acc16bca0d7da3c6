"""The targets for the speed and memory of IM-BERT, each measured on this machine and held against its bound.

It takes about an hour on two cores for 6 layers of width 384. What is finished is kept beside --output, and the same
command goes on where it was stopped.
"""

import argparse
import re
from collections.abc import Sequence
from typing import Any

import torch
from bench import Record
from machine import machine, minilm
from targets import FIELDS, GROUPS, SENTENCE_LENGTH, measure_targets

from imbert_hf.evaluation.cost.command import load_model
from imbert_hf.evaluation.cost.variants import KEPT, SOLVERS
from imbert_hf.evaluation.data.arguments import add_run_arguments, add_text_column
from imbert_hf.evaluation.data.loading import fingerprint, longest_input
from imbert_hf.evaluation.data.tasks import TASKS
from imbert_hf.evaluation.report import Journal, Report, at_least, table
from imbert_hf.evaluation.stability.command import read_texts


HELP = "the targets for speed and memory, met or missed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="a checkpoint of BERT or IM-BERT, folder or Hub id (default: all-MiniLM-L6-v2)")
    parser.add_argument("--data", required=True, help="real text: one sentence a line; with --task, rows of a task")
    parser.add_argument("--task", help=f"one of {', '.join(TASKS)}")
    add_text_column(parser)
    parser.add_argument("--batch", type=int, default=32, help="rows (default: %(default)s)")
    parser.add_argument("--length", type=int, default=64, help="tokens a row, padded to it (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of timing (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=list(GROUPS), metavar="GROUP", help=f"of {', '.join(GROUPS)}")
    add_run_arguments(parser, "float32", "bfloat16", "float64")


def run(args: argparse.Namespace, journal: Journal) -> Report:
    for name, least in (("batch", 1), ("length", 3), ("repeats", 1)):
        at_least(least, **{f"--{name}": getattr(args, name)})
    texts = read_texts(args.data, args.task, args.text_column, limit=args.batch, seed=args.seed)
    path = args.model or minilm()
    model, tokenizer = load_model(path, device=args.device, dtype=args.dtype, seed=args.seed)
    if args.length > (longest := longest_input(model, tokenizer)):
        raise ValueError(f"--length must be at most {longest} for {path}, got {args.length}.")
    if longest < SENTENCE_LENGTH:
        raise ValueError(f"--model must take {SENTENCE_LENGTH} tokens or more, {path} takes {longest}.")
    marked = fingerprint(path, model.config)
    journal.common["machine"] = made = machine(device=args.device)  # no part of another commit is taken up
    targets = measure_targets(
        model,
        tokenizer,
        texts,
        batch=args.batch,
        length=args.length,
        repeats=args.repeats,
        seed=args.seed,
        only=args.only or list(GROUPS),
        keep=lambda key, compute: journal.part({**key, "model": marked}, compute),
        progress=not args.quiet,
    )
    data: dict[str, Any] = {
        "machine": made,
        "fingerprint": marked,
        "connection": {**{name: getattr(model.config, name) for name in KEPT}, **FIELDS},
        "targets": targets,
    }
    head = [args.model or "all-MiniLM-L6-v2", args.dtype, args.device, f"{torch.get_num_threads()} threads"]
    head += [f"{args.repeats} rounds", f"batch {args.batch} x {args.length}"]
    return Report(data, text(data, ", ".join(head)))


def text(data: dict[str, Any], head: str) -> str:
    """The table, what it comes to, and how to read it."""
    return "\n\n".join([head, table([columns(row) for row in data["targets"]]), verdicts(data["targets"])])


def verdicts(records: Sequence[Record]) -> str:
    found = [row["verdict"] for row in records]
    met, missed, absent = (found.count(name) for name in ("met", "missed", "not measured"))
    return (
        f"{met} of {met + missed} met, {absent} not measured.\n\n"
        "In brackets the quartiles of the rounds. A busy machine misleads: measure times on an idle one."
    )


def columns(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the table."""
    measured = None if row["measured"] is None else f"{row['measured']:.3f}"
    if measured and row["quartiles"]:
        low, high = row["quartiles"]
        measured += f" [{low:.3f}, {high:.3f}]"
    bound = None if row["bound"] is None else f"{'<' if row['strict'] else '<='} {row['bound']:.3g}"
    shown = {"target": row["target"], "setting": row["setting"], "measured": measured, "bound": bound}
    return {**shown, "verdict": row["verdict"], "note": row["note"]}


# Such as "fixed_point T 3, implicit" or "gradient_descent T 1 lr 0.02"
SETTING = re.compile(rf"({'|'.join(SOLVERS)})(?: T (\d+(?: \d+)*))?(?: lr [0-9.e-]+)?(, \w+)?")


def rows(data: dict[str, Any]) -> list[dict[str, str]]:
    """Of the README's table: a line a target and gradient, a column a solver, with the range of values over T."""
    found: dict[str, dict[str, list[tuple[str, Record]]]] = {}
    for row in data["targets"]:
        known = SETTING.fullmatch(row["setting"])
        solver, T, gradient = known.groups("") if known else ("", "", f", {row['setting']}")
        found.setdefault(row["target"] + gradient, {}).setdefault(solver, []).append((T, row))
    solvers = [solver for solver in SOLVERS if any(solver in of_target for of_target in found.values())]
    return [
        {
            "": target,
            "bound": "; ".join(dict.fromkeys(bound(row) for of_solver in by.values() for _, row in of_solver)),
            **{solver: cell(by.get(solver, [])) for solver in solvers},
        }
        | ({"another": cell(by[""])} if "" in by else {})
        for target, by in found.items()
    ]


def bound(row: Record) -> str:
    return "" if row["bound"] is None else f"{row['bound']:.3g}"


def cell(found: Sequence[tuple[str, Record]]) -> str:
    """The range of values; what is missed or not measured, and with what T where that differs."""
    measured = [row["measured"] for _, row in found if row["measured"] is not None]
    low, high = (f"{value:.2f}" for value in (min(measured), max(measured))) if measured else ("", "")
    shown = [low if low == high else f"{low} to {high}"] if measured else []
    for verdict in ("missed", "not measured"):
        if of_verdict := [T for T, row in found if row["verdict"] == verdict]:
            shown.append(verdict if len(of_verdict) == len(found) else f"{verdict} at T {' '.join(of_verdict)}")
    return ", ".join(shown)
