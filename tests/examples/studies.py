"""A small study for the tests of examples/study: made-up rows, and a plan with every kind of model."""

import json
import os
import random
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from classifiers import WORDS


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MODELS = {
    "BERT": {"connection": "bert"},
    "IM-BERT": {"im_iterations": 2},
    "R3F": {"connection": "bert", "defence": "r3f"},
    "one at inference": {"of": "IM-BERT", "im_eval_iterations": 1},
    "switched": {"of": "BERT", "im_iterations": 1},
    "distilled": {"teacher": "IM-BERT", "num_train_epochs": 2},
}
DERIVED = ["one at inference", "switched", "distilled"]
PARTS = {
    "search": {"seeds": [0, 1], "models": ["BERT", "IM-BERT"], "stages": ["choice"]},
    "main": {"seeds": [0], "models": ["BERT", "IM-BERT", "R3F"], "stages": ["test", "query", "layers", "cost"]},
    "derived": {"seeds": [0], "models": DERIVED, "stages": ["choice"]},
    "half": {"seeds": [0], "models": ["IM-BERT"], "stages": ["choice"], "autocast": "bfloat16"},
}


def rows(count, seed):
    draw = random.Random(seed)
    return [{"sentence": " ".join(draw.choices(WORDS, k=6)), "label": i % 2} for i in range(count)]


def write_data(folder):
    (folder / "sst2").mkdir()
    for name, count in (("train", 540), ("validation", 24)):
        (folder / "sst2" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(count, name)))
    attacked = [{"idx": i, **row, "original_sentence": row["sentence"][:-2]} for i, row in enumerate(rows(12, "adv"))]
    del attacked[3]["original_sentence"]
    (folder / "adv_glue").mkdir()
    (folder / "adv_glue" / "dev_ann.json").write_text(json.dumps({"sst2": attacked}))
    return folder


def write_plan(folder):
    common = {"model_name_or_path": "hub/name", "max_train_samples": 16, "num_train_epochs": 1, "max_seq_length": 32}
    parts = {name: {"tasks": ["sst2"], **part} for name, part in PARTS.items()}
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({"common": common, "models": MODELS, "parts": parts}, sort_keys=False))
    return path


def start(plan, data, model, runs, *more):
    """`python examples/study run` as a person starts it."""
    command = [sys.executable, str(EXAMPLES / "study"), "run", str(plan), "--data", str(data), "--runs", str(runs)]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([*command, "--model", model, *more], capture_output=True, text=True, env=env, check=False)


@pytest.fixture(scope="module")
def study():
    """The modules of the study."""
    names = ("estimate", "files", "kept", "layers", "plan", "report", "run", "stages")
    return SimpleNamespace(**{name: import_module(f"study.{name}") for name in names})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return write_plan(tmp_path_factory.mktemp("plan"))
