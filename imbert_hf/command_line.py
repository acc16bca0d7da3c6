"""What every command here ends as: 0 when done, 1 where a run failed or was interrupted, 2 for wrong arguments.

It imports nothing that may not be installed. `main` is the entry point of imbert-eval.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")  # argparse would first print the usage


def run(prog: str, command: Callable[..., Any], *args: Any) -> None:
    """Calls the command. An interruption is one line in place of a traceback."""
    try:
        command(*args)
    except KeyboardInterrupt:
        sys.exit(f"{prog}: interrupted")


def main() -> None:
    run("imbert-eval", _evaluate)


def _evaluate() -> None:
    try:
        from imbert_hf.evaluation import cli, processes

        processes.join()
        cli.main()
    except ImportError as error:
        if {"-h", "--help"} & {*sys.argv[1:]}:
            print(f"imbert-eval measures how robust, stable and costly a sequence classifier is.\n\n{error}")
            return
        sys.exit(f"imbert-eval: error: {error}")
