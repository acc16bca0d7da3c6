"""What every command here ends as: 0 when done, 1 where a run failed or was interrupted, 2 for wrong arguments.

It imports nothing that may not be installed. `main` is the entry point of imbert-eval.
"""

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False} | kwargs)  # or --im_layer would be taken for --im_layers

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            option = next((word for word in unknown if word.startswith("-")), "")
            self.error(f"unrecognized arguments: {' '.join(unknown)}{nearest(option, self.options_of(found))}")
        return found

    def options_of(self, found: Any) -> list[str]:
        """The options; where a command was given, its own."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction) and (given := getattr(found, action.dest, None)):
                return action.choices[given].options_of(found)
        return [option for action in self._actions for option in action.option_strings]

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")  # argparse would first print the usage


def nearest(word: str, names: Sequence[str]) -> str:
    """What to add to a sentence about an option that is none of `names`."""
    near = difflib.get_close_matches(word.partition("=")[0], names, n=1, cutoff=0.75)
    return f"; did you mean {near[0]}?" if near else ""


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
