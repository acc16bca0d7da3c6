"""Writes the tables of the kept results into imbert_hf/README.md, each between the marks of its name.

    <!-- benchmark: NAME -->
    <!-- /benchmark -->

NAME.json is what --output of `run.py NAME` wrote. growth.png is drawn beside growth.json, small enough for a page.
"""

import argparse
import json
import textwrap
from pathlib import Path

import gpu_command
import growth_command
import references_command
import serving_command
import targets_command
from machine import caption
from tabulate import tabulate

from imbert_hf.evaluation import pictures
from imbert_hf.evaluation.report import Journal, Report, filled, write_text, write_whole


HELP = "tables and the picture of the kept results, for the README"
ROOT = Path(__file__).parents[2]
ROWS = {
    "targets": targets_command.rows,
    "references": references_command.rows,
    "serving": serving_command.rows,
    "growth": growth_command.rows,
    "gpu": gpu_command.rows,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", metavar="FOLDER")
    parser.add_argument("--readme", type=Path, default=ROOT / "imbert_hf" / "README.md", metavar="FILE.md")


def run(args: argparse.Namespace, journal: Journal) -> Report:
    text = rendered(args.readme, args.results)
    write_text(args.readme, text)
    names = [name for name in ROWS if f"<!-- benchmark: {name} -->" in text]
    if "growth" in names:
        figure = growth_command.figure(json.loads((args.results / "growth.json").read_text(encoding="utf-8")))
        write_whole(args.results / "growth.png", lambda part: pictures.write(figure, part, dpi=120))
    return Report({"tables": names}, f"{args.readme}: {', '.join(names) or 'no marks'}.")


def rendered(readme: Path, results: Path) -> str:
    """The text of the file with the tables of the results.

    Raises:
        ValueError: for a mark of no benchmark, or one without a readable result, and for a file that cannot be read.
    """

    def block(name: str) -> str:
        if name not in ROWS:
            raise ValueError(f"{readme} has a mark for {name!r}; it must be one of {', '.join(ROWS)}.")
        path = results / f"{name}.json"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            lines = ROWS[name](data)
            source = textwrap.fill(caption(data), 120, break_on_hyphens=False)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} cannot be read as a result of run.py {name}: {error!r}.") from None
        return f"{source}\n\n{tabulate(lines, 'keys', 'pipe', disable_numparse=True)}\n"

    try:
        text = readme.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--readme {readme} cannot be read: {error.strerror}.") from None
    return filled(text, "benchmark", block)
