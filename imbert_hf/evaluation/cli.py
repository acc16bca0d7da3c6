"""imbert-eval: how robust, stable and costly a sequence classifier is, for IM-BERT and any other of Transformers.

It exits with 0 when done, with 1 where a run failed or was interrupted, and with 2 for wrong arguments.
"""

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

import imbert_hf
from imbert_hf import command_line
from imbert_hf.evaluation import pictures, processes
from imbert_hf.evaluation.advglue import command as advglue
from imbert_hf.evaluation.attacks import command as attack
from imbert_hf.evaluation.cards import command as card
from imbert_hf.evaluation.check import command as check
from imbert_hf.evaluation.cost import command as cost
from imbert_hf.evaluation.report import (
    STANDARD_OUTPUT,
    Journal,
    Report,
    at_least,
    check_apart,
    check_destination,
    check_overwritten,
    is_stream,
    versions,
    write_csv,
    write_json,
    write_text,
    write_whole,
)
from imbert_hf.evaluation.stability import command as stability


COMMANDS = {
    "check": check,
    "advglue": advglue,
    "attack": attack,
    "stability": stability,
    "cost": cost,
    "card": card,
}


FILES = {
    "output": (),
    "export": (),
    "plot": (".png", ".pdf", ".svg", ".jpg"),
    "html": (".html", ".htm"),
}  # option -> suffixes; (): any


class Once(argparse.Action):
    """Stores one value, and refuses a second instead of forgetting the first."""

    def __call__(self, parser, namespace, values, option_string=None):
        given = vars(namespace).setdefault("_given", set())
        if self.dest in given:
            parser.error(f"{option_string} may be given once, got {values!r} too.")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


class Several(argparse.Action):
    """Collects values, each once, in place of the default."""

    def __call__(self, parser, namespace, values, option_string=None):
        given = vars(namespace).setdefault("_given", set())
        before = getattr(namespace, self.dest) if self.dest in given else []
        given.add(self.dest)
        setattr(namespace, self.dest, list(dict.fromkeys([*before, values])))


class Parser(command_line.Parser):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register("action", None, Once)  # where add_argument names no action
        self.register("action", "several", Several)

    def exit(self, status=0, message=None):
        processes.end(status, message or "")

    def _print_message(self, message, file=None):
        if processes.is_main():
            super()._print_message(message, file)


def build_parser(
    commands: Mapping[str, Any] = COMMANDS, prog: str = "imbert-eval", description: str | None = __doc__
) -> Parser:
    parser = Parser(prog=prog, description=description)
    parser.add_argument("--version", action="version", version=f"{prog} {imbert_hf.__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name, command in commands.items():
        about: dict[str, Any] = {"help": command.HELP, "description": command.__doc__}
        sub = subparsers.add_parser(name, **about, conflict_handler="resolve")  # a command may say it better
        sub.add_argument("--output", type=Path, metavar="FILE.json", help="settings and results as JSON; - prints them")
        sub.add_argument("--overwrite", action="store_true", help="replace files that are there, of other settings too")
        if hasattr(command, "figure"):
            sub.add_argument("--plot", type=Path, metavar="FILE.png", help="draw a picture")
        command.add_arguments(sub)
        sub.set_defaults(run=command.run, shared=getattr(command, "SHARED", False))
    return parser


def main(argv: list[str] | None = None, **parser_of: Any) -> None:
    """Runs a command of what build_parser(**parser_of) makes."""
    parser = build_parser(**parser_of)
    args = parser.parse_args(argv)
    run, shared = vars(args).pop("run"), vars(args).pop("shared")
    vars(args).pop("_given", None)
    files = {name: path for name in FILES if (path := getattr(args, name, None)) is not None}
    if not processes.is_main():
        files, args.quiet = {}, True
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    journal = Journal()
    try:
        if processes.count() > 1 and not shared:
            raise ValueError(f"{args.command} is not shared among processes; run it as one process.")
        for name, path in files.items():
            check_destination(path, f"--{name}", FILES[name])
        check_apart(files)
        at_least(0, **{"--seed": getattr(args, "seed", 0)})
        if getattr(args, "device", "") is None:
            args.device = "cuda" if torch.cuda.is_available() else "cpu"
        given = {name: value for name, value in vars(args).items() if name != "overwrite"}
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
        machine = {"threads": torch.get_num_threads(), "versions": versions()}
        if not args.overwrite:
            check_overwritten(files, settings)
        common = {"device": getattr(args, "device", None), "versions": machine["versions"]}
        processes.agree(repr(common))
        path = None
        if "output" in files and not is_stream(files["output"]):
            path = Path(os.path.realpath(files["output"]) + ".parts")  # beside what a link names
        journal = Journal(path, common)
        journal.parts = processes.of_main(journal.parts)
        report = run(args, journal)
    except ValueError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        whole = journal.path is not None and not journal.lost
        kept = f"; finished parts are kept in {journal.path}, the same command goes on" if whole else ""
        sys.exit(f"{parser.prog}: interrupted{kept}" if processes.is_main() else 1)
    if not processes.is_main():
        return
    writers = {
        "output": lambda path: write_json(path, {"settings": settings | machine, **report.data}),
        "export": lambda path: write_csv(path, report.pairs),
        "plot": lambda path: write_picture(path, report),
        "html": lambda path: write_text(path, report.page()),
    }
    path = None
    try:
        for name, path in files.items():
            writers[name](path)
        journal.remove()
        if STANDARD_OUTPUT not in files.values():
            print(report.text, flush=True)
    except BrokenPipeError:  # whoever read has enough, as `head` has; Python would complain again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a full disk: what was measured is shown, and kept for the same command
        print(report.text, flush=True)
        sys.exit(f"{parser.prog}: {error.filename or path} cannot be written: {error.strerror}")


def write_picture(path: Path, report: Report) -> None:
    if report.figure is not None:
        figure = report.figure()
        write_whole(path, lambda part: pictures.write(figure, part, dpi=150))
