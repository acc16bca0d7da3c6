"""Two processes of one launch: the files of a run are those of one process, and a refusal is said once."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import processes_worker
import pytest
from classifiers import bert, imbert, labelled, save
from tiny import lively
from transformers import BertForMaskedLM, XLNetConfig, XLNetForSequenceClassification

from imbert_hf.evaluation import cli, processes
from imbert_hf.evaluation.check import command
from imbert_hf.evaluation.report import Journal


pytest.importorskip("accelerate")
pytest.importorskip("psutil")

from launching import ACCELERATE, ROOT, free_port, run_together


LABELS = ("billing", "technical", "other")
OWN = ["--data", "tickets.csv", "--text-column", "body", "--device", "cpu", "--batch-size", "2"]
MODELS = ["--model", "bert=bert", "--model", "im-bert=im-bert", "--model", "xlnet=xlnet"]
FILES = ["--output", "check.json", "--export", "pairs.csv", "--html", "page.html", "--plot", "bars.png"]
RUNS = {
    "check": ["check", *MODELS, *OWN, "--rows", "5", *FILES],
    "fewer rows than processes": ["check", *MODELS, *OWN, "--rows", "1", "--output", "one.json"],
    "a budget": ["check", *MODELS[:2], *OWN, "--budget", "1s", "--output", "budget.json"],
    "resumed": ["check", *MODELS[:2], *OWN, "--budget", "2s", "--output", "resumed.json"],
    "attack": ["attack", *MODELS[:2], *OWN, "--max-rows", "5", "--radii", "0.1", "--steps", "2", "--kinds", "swap",
               "--output", "attack.json"],
    "word": ["attack", *MODELS[2:4], *OWN, "--max-rows", "5", "--attack", "word", "--masked-lm", "words", "--output",
             "word.json"],
    "advglue": ["advglue", *MODELS[2:4], *OWN, "--original-column", "before", "--residuals", "all", "--output",
                "adv.json"],
}  # fmt: skip
CHECK = ["check", "--model", "bert", *OWN]
DIFFER = "the processes differ in models, data, packages, device or arguments."
# what is wrong -> the arguments of the main process, those of the other, and what is said
REFUSED = {
    "a value": ([*CHECK, "--rows", "x"], None, "imbert-eval check: error: argument --rows: invalid int value: 'x'"),
    "a folder": ([*CHECK, "--output", "no/x.json"], None, "--output no/x.json: the folder no does not exist."),
    "the other's alone": (
        CHECK,
        ["none.csv" if word == "tickets.csv" else word for word in CHECK],
        "none.csv cannot be read: No such file or directory.",
    ),
    "other models": (
        [*CHECK[:2], "bert", *OWN, "--rows", "3"],
        [*CHECK[:2], "im-bert", *OWN, "--rows", "3"],
        DIFFER,
    ),
    "another device": (CHECK, ["cpu:0" if word == "cpu" else word for word in CHECK], DIFFER),
    "other packages": (CHECK, None, DIFFER),  # as processes_worker.py says
    "cost": (["cost", "--model", "bert"], None, "cost is not shared among processes; run it as one process."),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models, a table and the files of one process."""
    folder = tmp_path_factory.mktemp("alone")
    config = XLNetConfig(vocab_size=99, d_model=16, n_layer=1, n_head=2, d_inner=16, **labelled(LABELS))
    save(folder / "bert", bert(LABELS))
    save(folder / "im-bert", imbert(LABELS, im_layers=[-1], seed=1))
    save(folder / "words", lively(BertForMaskedLM(bert(LABELS).config)).eval())
    save(folder / "xlnet", XLNetForSequenceClassification(config).eval())  # which no gradient attack takes
    rows = [f"w{i} w{7 * i}{' w1' * i},w{i} w{7 * i},{LABELS[i % 3]}" for i in range(11)]  # each of another length
    (folder / "tickets.csv").write_text("\n".join(["body,before,label", *rows]) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(command, "choose_rows", lambda *args, **kwargs: (3, 2))
        for words in RUNS.values():
            with patch.context() as kept:
                if "resumed.json" in words:
                    kept.setattr(Journal, "remove", lambda self: None)
                cli.main(words)
    return folder


@pytest.fixture(scope="module")
def together(folder, tmp_path_factory):
    """The folder in which two processes ran the same, and what each of them said."""
    there = tmp_path_factory.mktemp("together")
    for name in ("bert", "im-bert", "xlnet", "words"):
        (there / name).symlink_to(folder / name)
    for name in ("tickets.csv", "resumed.json.parts"):
        shutil.copy(folder / name, there)
    commands = {name: [words] * 2 for name, words in RUNS.items()}
    commands |= {name: [main, other or main] for name, (main, other, _) in REFUSED.items()}
    (there / "commands.json").write_text(json.dumps(commands))
    worker = Path(processes_worker.__file__)
    run_together(there, (*ACCELERATE, "--multi_gpu", "--num_processes", 2, worker, "commands.json"))
    return there, [json.loads((there / f"commands.{rank}").read_text()) for rank in range(2)]


def test_no_thread_of_gloo_is_left_to_the_end_of_the_interpreter(together):
    there, _ = together
    ways = "before", "after"
    found = {way: [int((there / f"commands.{way}.{rank}").read_text()) for rank in range(2)] for way in ways}
    assert found["after"] == [0, 0]
    if Path("/proc/self/task").exists():
        assert min(found["before"]) > 0


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_write_what_one_does(name, folder, together):
    there, (main, other) = together
    assert (main[name]["code"], other[name]["code"]) == (0, 0), main[name]["err"] + other[name]["err"]
    files = [word for word in RUNS[name] if word.endswith((".json", ".html", ".png")) or word == "pairs.csv"]
    for file in files:
        assert (there / file).read_bytes() == (folder / file).read_bytes(), file
    assert not (there / f"{files[0]}.parts").exists()


def test_an_error_in_the_work_of_one_process_is_the_reason_in_all(together):
    _, _, xlnet = json.loads((together[0] / "one.json").read_text())["results"]
    assert list(xlnet["reasons"]) == ["embedding"]  # of a single row, which one process has


def test_the_main_process_speaks_alone(together):
    _, (main, other) = together
    assert "bert, radius 0.02: " in main["check"]["err"]  # a bar
    for name in RUNS:
        assert main[name]["out"]
        assert (other[name]["out"], other[name]["err"]) == ("", "")


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_said_once_and_ends_all(name, together):
    _, (main, other) = together
    (said,) = main[name]["err"].splitlines()
    assert said.endswith(REFUSED[name][-1])
    assert (main[name]["code"], other[name]["code"], other[name]["err"]) == (2, 2, "")


def test_a_process_that_dies_ends_the_other():
    """By itself: no attack takes the failure for its own, whichever catches what its model raises."""
    code = """
import os
from imbert_hf.evaluation import processes
processes.join()
try:
    processes.share(lambda item: os._exit(3) if processes._state.process_index else item, range(2))
except Exception:
    print("caught")
"""
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=os.environ | environment | {"RANK": str(rank)}, cwd=ROOT,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    (out, err), _ = (child.communicate(timeout=120) for child in children)
    assert [child.returncode for child in children] == [1, 3]
    assert out == ""
    assert "imbert-eval: the processes could not meet" in err


def test_a_process_that_waits_for_others_says_so():
    """As where a launcher's variables were left in a shell."""
    code = """
import os, sys
from imbert_hf.evaluation import processes
class Said:
    def write(self, text):
        os.write(2, text.encode())
        os._exit(7)
sys.stderr, processes.PATIENCE = Said(), 0.5
processes.join()
"""
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "RANK": "0"}
    words = [sys.executable, "-W", "ignore", "-c", code]
    child = subprocess.run(words, env=os.environ | environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "imbert-eval: waits for 2 processes, as WORLD_SIZE says; without RANK it works alone." in child.stderr
    assert child.returncode == 7


def test_a_process_alone_shares_with_nobody():
    assert (processes.count(), processes.is_main(), processes.of_main(3)) == (1, True, 3)
    assert processes.share(str, range(3)) == ["0", "1", "2"]
    assert processes.share(str, range(0)) == []
    with pytest.raises(ZeroDivisionError):
        processes.share(lambda item: 1 / item, [1, 0])
