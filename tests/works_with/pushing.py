"""A checkpoint to push, the example that pushes it, and processes to run it and others in."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import push_to_hub as example
from classifiers import imbert, tokenizer


SCRIPT = Path(example.__file__)

WORKER = """
import contextlib, io, json, os, runpy, sys, traceback, types
import huggingface_hub.utils._http
huggingface_hub.utils._http.time = types.SimpleNamespace(sleep=lambda seconds: None)  # the client waits between tries
for line in sys.stdin:
    code, values = json.loads(line)
    printed, error = io.StringIO(), ""
    with contextlib.redirect_stdout(printed):
        try:
            exec(code, {"__name__": "__main__", **globals(), **values})
        except SystemExit as stop:
            error = str(stop)
        except Exception:
            error = traceback.format_exc()
    print(json.dumps([printed.getvalue(), error]), flush=True)
"""


class Worker:
    """A process that runs pieces of code, since starting one takes seconds. `said` collects all that they print."""

    def __init__(self, before, folder, env):
        self.log = folder / "stderr.txt"
        env |= {"HF_MODULES_CACHE": str(folder / "modules")}
        env |= {"TRANSFORMERS_VERBOSITY": "debug", "HF_HUB_VERBOSITY": "debug", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        command = [sys.executable, "-W", "ignore", "-c", before + WORKER]
        with self.log.open("w") as log:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
            self.process = subprocess.Popen(command, text=True, cwd=folder, env=env, **pipes)
        self.said = ""

    def run(self, code, **values):
        """What the code prints, and the error it ends with."""
        self.process.stdin.write(json.dumps([code, values], default=str) + "\n")
        self.process.stdin.flush()
        hung = threading.Timer(300, self.process.kill)
        hung.start()
        line = self.process.stdout.readline()
        hung.cancel()
        assert line, self.log.read_text()[-3000:]
        printed, error = json.loads(line)
        self.said += printed + error
        return printed, error

    def __call__(self, code, **values):
        printed, error = self.run(code, **values)
        assert not error, error
        return printed


def save(folder, seed=0, model=None):
    (model or imbert(seed=seed, im_solver="anderson")).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    (folder / "README.md").write_text(f"---\nlibrary_name: transformers\n---\n# A model, seed {seed}\n")
    return folder


def save_among_others(folder):
    """A checkpoint among other files of a training."""
    save(folder)
    for name in ("optimizer.pt", "training_args.bin", "results.json", "checkpoint-1/model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"of the training")
    return folder


def push(user, folder, repo, *words):
    """examples/push_to_hub.py as a script: what it prints, and the sentence that it ends with."""
    code = "sys.argv[:] = words\nrunpy.run_path(words[0], run_name='__main__')"
    return user.run(code, words=[str(SCRIPT), str(folder), "--repo_id", repo, *words])
