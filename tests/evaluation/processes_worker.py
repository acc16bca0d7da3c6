"""One of several processes that run commands of imbert-eval together, as test_processes.py tells them to.

A launcher starts it with a JSON file that holds, for each command, the arguments of every process. What this process
said, and the codes with which the commands ended, go to the same name with its rank.
"""

import atexit
import contextlib
import io
import json
import os
import sys
from pathlib import Path

from launching import gloo_threads

from imbert_hf import command_line
from imbert_hf.evaluation import cli
from imbert_hf.evaluation.check import command
from imbert_hf.evaluation.report import versions


def run(words):
    sys.argv = ["imbert-eval", *words]
    code, out, err = 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            command_line.main()
        except SystemExit as end:
            code = end.code
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


if __name__ == "__main__":
    path, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    # At its end: what is registered first is done last.
    atexit.register(lambda: path.with_suffix(f".after.{rank}").write_text(str(gloo_threads())))
    command.choose_rows = lambda *args, **kwargs: (3 + rank, 2)  # no two processes measure the same time
    said = {}
    for name, words in json.loads(path.read_text()).items():
        cli.versions = (lambda: {"torch": "0"}) if name == "other packages" and rank else versions
        said[name] = run(words[rank])
    path.with_suffix(f".before.{rank}").write_text(str(gloo_threads()))
    path.with_suffix(f".{rank}").write_text(json.dumps(said))
