"""The benchmarks of this project: what its own claims of speed and memory are measured with. No tool of a user's.

python tests/benchmarks/run.py targets --task sst2 --data validation.jsonl
python tests/benchmarks/run.py references --iterations 3
python tests/benchmarks/run.py gpu
python tests/benchmarks/run.py serving
python tests/benchmarks/run.py growth
python tests/benchmarks/run.py render
"""

import sys
from pathlib import Path


sys.path.append(str(Path(__file__).parents[2] / "examples"))  # FreeLB, R3F and R-Drop are examples

import gpu_command
import growth_command
import references_command
import render_command
import serving_command
import targets_command

from imbert_hf.evaluation.cli import main


COMMANDS = {
    "targets": targets_command,
    "references": references_command,
    "gpu": gpu_command,
    "serving": serving_command,
    "growth": growth_command,
    "render": render_command,
}


def run(argv: list[str] | None = None) -> None:
    main(argv, commands=COMMANDS, prog="run.py", description=__doc__)


if __name__ == "__main__":
    run()
