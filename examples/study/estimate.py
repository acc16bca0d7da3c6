"""About how long the missing runs of a plan take, from a few steps of each model on this machine."""

import json
import math
from collections import Counter
from contextlib import nullcontext
from functools import cache, partial
from statistics import mean, median
from typing import Any

import finetune
import torch
import transformers
from finetune_arguments import im_values, parse
from robust_losses import DEFENCES
from tabulate import tabulate

from imbert_hf.evaluation.cost.measures import interleave, waiting
from imbert_hf.evaluation.cost.settings import make_batch
from imbert_hf.evaluation.cost.variants import plain_losses
from imbert_hf.evaluation.data.tasks import find_task, read_rows
from study.files import Files
from study.kept import read_run
from study.plan import ATTACKED, CHOICE, LENGTH, NOISE, QUERIED, STEPS, STIFF, VALIDATION, Run, words_of


ROUNDS, READ, COST = 3, 200, 60.0  # of timing; rows, for the mean length of a task's; seconds of the stage `cost`
SIZES = ("max_train_samples", "num_train_epochs", "learning_rate")  # arguments that a step's time does not depend on
PASSES = 3 * STEPS + 3  # forwards of a row under the attack on the embeddings and in its growth; a gradient is two more
EVALUATED = {  # forwards of rows; AdvGLUE's sets and their originals have up to 600, and a row is asked about 23 times
    "choice": (1 + len(NOISE)) * CHOICE + PASSES * ATTACKED,
    "test": (1 + len(NOISE)) * VALIDATION + PASSES * ATTACKED + 600,
    "advglue_test": 2000,
    "query": 23 * QUERIED,
    "layers": 12 * STIFF + 5000,  # some hundred products an eigenvalue
}


def estimate(runs: list[Run], files: Files, workers: int) -> str:
    """A line a model, and the sum; "" where nothing is missing. What runs share is counted once, with the first."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    hours: dict[str, float] = {}
    unknown: dict[str, str] = {}
    counts: Counter[str] = Counter()
    shared: set[str] = set()
    done: set[tuple[str, str]] = set()
    for run in runs:
        missing = {(run.digest, stage) for stage in run.missing(read_run(files.runs, run))} - done
        done |= missing
        counts[run.model] += bool(missing)
        if missing and run.model not in unknown:
            try:
                seconds = seconds_of(run, {stage for _, stage in missing}, files, shared)
                hours[run.model] = hours.get(run.model, 0.0) + seconds / 3600
            except ValueError as error:  # its runs will say so, too
                unknown[run.model] = f"not known: {error}"
    said = {model: f"{of_model:.2f}" for model, of_model in hours.items()} | unknown
    lines = [{"": model, "runs": count, "hours": said[model]} for model, count in counts.items() if count]
    if not lines:
        return ""
    device, at_once = "the CPU", 1  # whose cores the workers share, and the timing has had
    if torch.cuda.is_available():
        device, at_once = torch.cuda.get_device_name(), min(workers, torch.cuda.device_count())
    table = tabulate(lines, "keys", disable_numparse=True)
    least = "at least" if unknown else "about"
    total = sum(hours.values()) / at_once
    return f"{table}\n{least} {total:.2f} hours with --workers {workers}, from a few steps on {device}"


def seconds_of(run: Run, missing: set[str], files: Files, shared: set[str]) -> float:
    """What is missing of one run, but for trainings of the keys `shared`, to which its own are added."""
    tokens = mean_length(run.task, files)
    step, forward = pace(json.dumps(run.taught_by.arguments | dict.fromkeys(SIZES)), files)
    seconds = COST * ("cost" in missing) + tokens * forward * sum(EVALUATED.get(stage, 0) for stage in missing)
    for one in (run.taught_by, run.trained) if "train" in missing else ():  # a student at its teacher's pace
        if one.key not in shared and not (files.weights / one.key / "results.json").exists():
            rows = min(one.arguments.get("max_train_samples") or math.inf, rows_to_train_on(one.task, files))
            seconds += tokens * step * one.arguments.get("num_train_epochs", 3) * rows / files.processes
        shared.add(one.key)
    return seconds


@cache
def rows_to_train_on(task: str, files: Files) -> int:
    return len(files.train(task)) - CHOICE


@cache
def mean_length(task: str, files: Files) -> float:
    """Tokens of a row, a token to a word and a third."""
    rows = read_rows(files.data / task / "train.jsonl", find_task(task), limit=READ)
    return mean(2 + 4 / 3 * sum(len(text.split()) for text in row.texts) for row in rows)


@cache
def pace(arguments: str, files: Files) -> tuple[float, float]:
    """Seconds a token of a training step, the optimiser's part too, and of a forward."""
    given = json.loads(arguments) | ({"model_name_or_path": files.model} if files.model else {})
    words = words_of({**given, "task": "sst2", "output_dir": "none", "report_to": "none"})
    own, data, training = parse(words + ([] if torch.cuda.is_available() else ["--use_cpu", "True"]))
    model, tokenizer = finetune.load_model(
        own.model_name_or_path, own.connection, im_values(own), find_task("sst2"), data.max_seq_length
    )
    rows = training.train_batch_size if torch.cuda.is_available() else 4
    batch = make_batch(model.to(training.device), tokenizer, None, rows, LENGTH)
    losses = DEFENCES[own.defence].losses if own.defence else plain_losses
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def step() -> None:
        with torch.autocast(training.device.type, torch.bfloat16, enabled=training.bf16):
            for loss in losses(model.train(), batch):
                loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def forward() -> None:
        with torch.autocast(training.device.type, torch.bfloat16, enabled=training.bf16):
            model.eval()(**batch)

    actions: Any = {"step": partial(nullcontext, step), "forward": partial(nullcontext, forward)}
    interleave(actions, 1, synchronise=waiting(training.device))
    seconds = interleave(actions, ROUNDS, synchronise=waiting(training.device))
    return median(seconds["step"]) / (rows * LENGTH), median(seconds["forward"]) / (rows * LENGTH)
