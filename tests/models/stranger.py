"""A process in which imbert_hf cannot be imported, and the files that travel with a checkpoint."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import imbert_hf


PACKAGE = Path(imbert_hf.__file__).parent
TRAVELLING = sorted(path.name for path in PACKAGE.glob("*_imbert.py"))
ENTRIES = {
    "Bert": "modeling_imbert.py",
    "Roberta": "modeling_roberta_imbert.py",
    "Electra": "modeling_electra_imbert.py",
    "XLMRoberta": "modeling_xlm_roberta_imbert.py",
    "DebertaV2": "modeling_deberta_v2_imbert.py",
    "DistilBert": "modeling_distilbert_imbert.py",
    "ModernBert": "modeling_modernbert_imbert.py",
}


def files_of(family):
    """The names of the files that travel with a checkpoint of a family."""
    return sorted({*TRAVELLING} - {*ENTRIES.values()} | {ENTRIES[family]})


STRANGER = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "imbert_hf":
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Absent())
try:
    import imbert_hf
except ImportError:
    pass
else:
    raise SystemExit("imbert_hf could be imported")
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline
"""

# Each piece of code runs in a fork of its own: as in a new process, but for the seconds that its imports take.
SERVER = """
import json
import os
import traceback
import transformers.dynamic_module_utils

for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if not child:
        code = 1
        try:
            for stream in (1, 2):
                os.dup2(os.open(asked["streams"][stream - 1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
            transformers.dynamic_module_utils.HF_MODULES_CACHE = asked["modules"]
            sys.argv[1:] = asked["words"]
            exec(asked["code"], {**globals(), "source": sys.argv[1], "target": sys.argv[2]})
            code = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@contextlib.contextmanager
def running(folder):
    """A function from code and its arguments to what it prints; `modules` is its cache of remote code.

    The code calls the first two arguments source and target.
    """
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    streams = [folder / "stdout", folder / "stderr"]
    command = [sys.executable, "-I", "-W", "ignore", "-c", STRANGER + SERVER]
    process = subprocess.Popen(command, text=True, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(code, *args, modules):
        asked = {"code": code, "words": [str(word) for word in args], "modules": str(modules)}
        process.stdin.write(json.dumps(asked | {"streams": [str(path) for path in streams]}) + "\n")
        process.stdin.flush()
        hung = threading.Timer(300, process.kill)
        hung.start()
        status = process.stdout.readline()
        hung.cancel()
        assert status == "0\n", (status, streams[1].exists() and streams[1].read_text()[-3000:])
        return streams[0].read_text()

    with process:
        yield run
        process.stdin.close()
