"""About how long the missing runs of a plan take, from a few steps of each model on this machine."""

import json
import math
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
    """A line a model, and the sum; "" where nothing is missing."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    missing = {run.digest: run for run in runs if run.missing(read_run(files.runs, run))}
    lines, total = [], 0.0
    for model in dict.fromkeys(run.model for run in missing.values()):
        of_model = [run for run in missing.values() if run.model == model]
        try:
            hours = sum(seconds_of(run, files) for run in of_model) / 3600
        except ValueError as error:  # its runs will say so, too
            said = f"not known: {error}"
        else:
            said, total = f"{hours:.2f}", total + hours
        lines.append({"": model, "runs": len(of_model), "hours": said})
    if not lines:
        return ""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU"
    table = tabulate(lines, "keys", disable_numparse=True)
    return f"{table}\nabout {total / workers:.2f} hours with --workers {workers}, from a few steps on {device}"


def seconds_of(run: Run, files: Files) -> float:
    """What is missing of one run. What a distilled model learns is priced as its teacher's training is."""
    missing, tokens = run.missing(read_run(files.runs, run)), mean_length(run.task, files)
    step, forward = pace(json.dumps(run.taught_by.arguments | dict.fromkeys(SIZES)), files)
    seconds = COST * ("cost" in missing) + tokens * forward * sum(EVALUATED.get(stage, 0) for stage in missing)
    if "train" in missing and not (files.weights / run.trained.key / "results.json").exists():
        epochs = sum(of.get("num_train_epochs", 3) for of in (run.arguments, run.teacher) if of)
        rows = min(run.arguments.get("max_train_samples") or math.inf, rows_to_train_on(run.task, files))
        seconds += tokens * step * epochs * rows / files.processes
    return seconds


@cache
def rows_to_train_on(task: str, files: Files) -> int:
    return (files.data / task / "train.jsonl").read_bytes().count(b"\n") - CHOICE


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
