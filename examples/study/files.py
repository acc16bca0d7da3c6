"""Where a study reads and writes: rows of the tasks, AdvGLUE's, and the folder of its runs."""

import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy

from study.plan import CHOICE


GLUE, ADVGLUE = "nyu-mll/glue", "AI-Secure/adv_glue"  # of the Hub


@dataclass(frozen=True)
class Files:
    """What the runs of a study share.

    Attributes:
        data: folder of <task>/<split>.jsonl and of adv_glue.
        runs: where the lines are kept; weights in runs/weights.
        model: folder to train from in place of the plan's model_name_or_path.
        advglue_test: AdvGLUE's test set, test_ann.json.
        processes: that train one model together, each on a GPU of its own where there are any.
    """

    data: Path
    runs: Path
    model: str | None = None
    advglue_test: Path | None = None
    processes: int = 1

    @property
    def weights(self) -> Path:
        return self.runs / "weights"

    def advglue_dev(self, name: str) -> Path:
        """AdvGLUE's dev set of that name, with the originals of its rows where the folder has them."""
        files = [self.data / "adv_glue" / file for file in ("dev_ann.json", "dev.json", f"{name}.jsonl")]
        return next((file for file in files if file.exists()), files[0])

    def validation(self, task: str) -> Path:
        return self.data / task / validation_file(task)

    def train(self, task: str) -> list[bytes]:
        """The rows of the train file."""
        source = self.data / task / "train.jsonl"
        rows = source.read_bytes().splitlines()
        if len(rows) <= CHOICE:
            raise ValueError(f"{source} must hold more than {CHOICE} rows, got {len(rows)}.")
        return rows

    def split(self, task: str) -> Path:
        """Rows for finetune.py: CHOICE of the train file to choose settings by, and the others to train on."""
        rows, folder = self.train(task), self.weights
        chosen = set(numpy.random.default_rng(0).choice(len(rows), CHOICE, replace=False).tolist())
        for name, keep in ((validation_file(task), True), ("train.jsonl", False)):
            kept = (row for i, row in enumerate(rows) if (i in chosen) == keep)
            write(folder / task / name, b"".join(row + b"\n" for row in kept))
        return folder


def validation_file(task: str) -> str:
    return "validation_matched.jsonl" if task == "mnli" else "validation.jsonl"


def advglue_sets(task: str) -> tuple[str, ...]:
    """AdvGLUE's sets of a task."""
    return ("mnli", "mnli-mm") if task == "mnli" else (task,)


def write(path: Path, content: bytes) -> None:
    """Whole or not at all; several processes may write the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(content)
    os.replace(part, path)


def fetch(tasks: Iterable[str], folder: Path) -> None:
    """Writes the Hub's GLUE and AdvGLUE into the folder as `Files.data` has them; what is there is not asked for again.

    Raises:
        ValueError: the Hub, or a data set of it, cannot be reached.
    """
    from datasets import load_dataset

    wanted = {}
    for task in tasks:
        for file in ("train.jsonl", validation_file(task)):
            wanted[folder / task / file] = partial(load_dataset, GLUE, task, split=file.removesuffix(".jsonl"))
        for name in advglue_sets(task):
            config = "adv_" + name.replace("-mm", "_mismatched")
            wanted[folder / "adv_glue" / f"{name}.jsonl"] = partial(load_dataset, ADVGLUE, config, split="validation")
    for path, load in wanted.items():
        if path.exists():
            continue
        try:
            rows = load()
        except (OSError, ValueError) as error:
            source, why = " ".join(load.args), next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(f"{source} of the Hub cannot be loaded, pass --data: {why}") from None
        rows.to_json(text := io.BytesIO())
        write(path, text.getvalue())
