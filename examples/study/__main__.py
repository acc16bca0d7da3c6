"""Makes the runs of a plan, or renders what they gave.

    python examples/study run examples/study/plan.yaml --data path/to/data --runs outputs/study
    python examples/study report examples/study/plan.yaml --runs outputs/study --output outputs/report

`python examples/study run --help` and `python examples/study report --help` list the arguments. It exits with 0 when
done, with 1 where a run failed or was interrupted, and with 2 for wrong arguments.
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser("study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "report"), help="what to do; the command's own arguments follow")
    command = parser.parse_args(words[:1]).command
    # Python put this folder on the path: its modules would pass for others of such names, as pandas' `tables`.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import_module(f"study.{command}").main(words[1:])


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("study: interrupted; the same command goes on")
