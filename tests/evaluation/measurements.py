"""What the other commands write of a small model, as JSON, and the card that is rendered of it."""

import argparse
import json
from pathlib import Path

from classifiers import labelled
from huggingface_hub import ModelCard
from tiny import lively, tokenizer_of

from imbert_hf.configuration_imbert import IM_FIELDS
from imbert_hf.evaluation.cards import command
from imbert_hf.evaluation.data.loading import fingerprint
from imbert_hf.evaluation.report import Journal


LABELS = labelled(("negative", "positive"))


def save(folder, model_class, config):
    lively(model_class(config)).save_pretrained(folder)
    tokenizer_of(["a", "film", "fine", "not"]).save_pretrained(folder)
    return folder


def advglue(folder, **changes):
    part = {
        "n": 57,
        "accuracy": 0.4561,
        "clean_accuracy": 0.8246,
        "robust_accuracy": 0.386,
        "attack_success_rate": 0.532,
    }
    entry = {
        "model": "ours",
        "path": str(folder),
        "fingerprint": fingerprint(str(folder)),
        "task": "sst2",
        "n": 148,
        "pairs": 139,
        "accuracy": 0.4189,
        "accuracy_ci95": [0.3378, 0.5012],
        "clean_accuracy": 0.8311,
        "clean_accuracy_ci95": [0.7635, 0.8851],
        "robust_accuracy": 0.3514,
        "robust_accuracy_ci95": [0.2757, 0.4324],
        "attack_success_rate": 0.5772,
        "majority_accuracy": 0.5135,
        "predicted_share": {"negative": 0.2905, "positive": 0.7095},
        "by_construction": {"word": part},
        "by_method": {},
        "mean_residual": 0.0231,
        "unconverged_rate": 0.6149,
    }
    other = {**entry, "model": "plain", "path": str(folder) + "-other", "fingerprint": "0123"}
    other |= {"accuracy": 0.6622, "mean_residual": None}
    comparison = {"a": "plain", "b": "ours", "task": "sst2", "difference": 0.0473, "ci95": [-0.0203, 0.1149]}
    comparison |= {"mcnemar_p": 0.2101, "resolved": False}
    return {
        "settings": {"command": "advglue", "data": "/data/dev_ann.json"},
        "results": [{**entry, **changes}, other],
        "comparisons": [comparison, {**comparison, "a": "plain", "b": "third", "difference": 0.3333}],
    }


def attack(folder):
    own = {"model": "ours", "path": str(folder), "task": "sst2", "majority_accuracy": 0.5769}
    own["fingerprint"] = fingerprint(str(folder))
    curve = [
        {
            "radius": 0.05,
            "accuracy": 0.6923,
            "accuracy_ci95": [0.5001, 0.8349],
            "transfer_accuracy": 0.7308,
            "steps": 20,
        },
        {"radius": 3.0, "accuracy": 0.2692, "transfer_accuracy": 0.1154, "steps": 20},
    ]
    curve[0]["accuracy_ci95"] = [0.5001, 0.8349]
    checks = [
        {"name": "large_radius", "passed": False, "message": "26.92 % of the rows survive radius 3."},
        {"name": "more_steps", "passed": True, "message": "no worse."},
    ]
    comparison = {"a": "ours", "b": "/path/to/plain", "task": "sst2", "attack": "embedding 0.05", "difference": 0.1923}
    comparison |= {"ci95": [0.0385, 0.3462], "mcnemar_p": 0.0313, "resolved": True}
    query = {
        "attack": "characters",
        "n": 26,
        "accuracy": 0.8077,
        "accuracy_under_attack": 0.2308,
        "success_rate": 0.7143,
        "mean_queries": 41.64,
        "mean_changed_share": 0.1372,
    }
    return {
        "settings": {"command": "attack"},
        "embedding": [{**own, "n": 26, "clean_accuracy": 0.8462, "curve": curve, "checks": checks}],
        "query": [{**own, **query}],
        "comparisons": [comparison],
        "noise": [{**own, "kind": "swap", "strength": 0.15, "n": 26, "accuracy": 0.6538, "clean_accuracy": 0.8462}],
    }


def stability(folder):
    summary = {
        "growth": [{"connection": "BERT", "direction": "worst", "ratio": [1.0, 7.123], "relative": [0.05, 0.321]}],
        "spectrum": [{"layer": 0, "spectral_radius": 1.357, "norm": 11.37}],
        "convergence": [{"theta": 0.5, "step_size": 4.0, "share": 0.625}],
    }
    settings = {"command": "stability", "model": str(folder)}
    return {"settings": settings, "fingerprint": fingerprint(str(folder)), "summary": summary}


def check(folder):
    """On a table of one's own; the embedding attack was not made."""
    shares = {"clean": 0.8966, "noise": 0.7211, "worst": 0.2272, "characters": 0.7033}
    measures = {name: {"accuracy": share, "ci95": [share / 2, 0.9512], "n": 37} for name, share in shares.items()}
    own = {"model": "ours", "fingerprint": fingerprint(str(folder)), "n": 542, "macro_f1": 0.8909, **measures}
    own |= {"embedding": None, "reasons": {"embedding": "no gradient."}, "warnings": [], "majority_accuracy": 0.2841}
    comparison = {"a": "plain", "b": "ours", "measure": "worst", "difference": 0.0617, "ci95": [-0.011, 0.1344]}
    return {
        "settings": {"command": "check", "data": "/home/me/tickets.csv", "text_column": ["body"]},
        "task": "tickets",
        "results": [own, {**own, "model": "plain", "fingerprint": "0123", "macro_f1": 0.6622}],
        "comparisons": [comparison | {"mcnemar_p": 0.42, "resolved": False}],
    }


def cost(folder):
    """The default connection of the checkpoint, and another solver."""
    timing = {"ratio": 1.634, "quartiles": [1.611, 1.652], "memory_ratio": 1.087}
    row = {"kind": "IM-BERT", "solver": "anderson", "gradient": "implicit", "iterations": 3}
    row |= {"inference": timing, "training": {**timing, "ratio": 1.417}}
    other = {**row, "solver": "gradient_descent", "inference": {**timing, "ratio": 6.622}}
    cell = {"batch": 32, "length": 64, "text": "random", "implicit_layers": 1, "rows": [row, other]}
    settings = {"command": "cost", "model": "/home/me/elsewhere", "device": "cpu", "dtype": "float32", "threads": 2}
    return {"settings": settings, "fingerprint": fingerprint(str(folder)), "cells": [cell]}


def training(folder):
    config = json.loads((folder / "config.json").read_text())
    return {
        "task": "sst2",
        "labels": ["negative", "positive"],
        "fingerprint": fingerprint(str(folder)),
        "connection": "im-bert",
        "metrics": {"validation": {"accuracy": 0.8177, "loss": 0.4242}},
        "rows": {"train": 1003, "validation": 872},
        "seed": 13,
        "steps": 161,
        "seconds_per_training_step": 0.4567,
        "seconds_per_eval_row": {"validation": 0.00891},
        "train_runtime": 2345.6,
        "im_fields": {name: value for name, value in config.items() if name in IM_FIELDS},  # as finetune.py
        "arguments": {
            "model": {"model_name_or_path": "google-bert/bert-base-uncased"},
            "data": {"max_seq_length": 129},
            "training": {
                "learning_rate": 2e-5,
                "num_train_epochs": 6.0,
                "optim": "adamw",
                "output_dir": "/home/me/out",
            },
        },
        "device": "cpu",
        "versions": {"torch": "2.99.1"},
        "git": {"commit": "abc", "dirty": False},
    }


CONTENTS = {
    "check": check,
    "advglue": advglue,
    "attack": attack,
    "stability": stability,
    "cost": cost,
    "training": training,
}


def write(folder, **contents):
    paths = []
    for name, content in contents.items():
        paths.append(str(folder.parent / f"{name}.json"))
        Path(paths[-1]).write_text(json.dumps(content))
    return paths


def run(folder, *words):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(["--model", str(folder), *map(str, words)]), Journal())


def rendered(folder, *kinds, words=()):
    paths = write(folder, **{kind: CONTENTS[kind](folder) for kind in kinds})
    run(folder, *(["--results", *paths] if paths else []), *words)
    return ModelCard.load(folder / "README.md")
