"""The stages of one run of a study: fine-tuning, and what is measured of the model.

Which rows a model has right is kept as text, a digit a row: 1 right, 0 wrong, and - where there is nothing to be right
about. report.py compares models on the same rows. Texts and labels of the data are not kept.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import distill
import finetune
import numpy
import torch
import transformers
from robust_losses import DEFENCES
from sklearn.metrics import f1_score

from imbert_hf import IMBertConfig
from imbert_hf.evaluation.advglue import scores as advglue
from imbert_hf.evaluation.attacks.ascent import Ascent, attacked, moved_embeddings
from imbert_hf.evaluation.attacks.ascent import words_of as movable
from imbert_hf.evaluation.attacks.candidates import CharacterEdits
from imbert_hf.evaluation.attacks.noise import noise
from imbert_hf.evaluation.attacks.query import query_attack
from imbert_hf.evaluation.cost.measures import interleave, ratio, timed, waiting
from imbert_hf.evaluation.cost.settings import make_batch
from imbert_hf.evaluation.cost.variants import Floor, Variant, plain_bert, plain_losses
from imbert_hf.evaluation.data.classifier import Classifier, load_classifier, predict
from imbert_hf.evaluation.data.tasks import Row, find_task, read_rows
from imbert_hf.evaluation.report import git_state
from study.files import Files, advglue_sets, validation_file
from study.kept import read_run, write_run
from study.layers import measure_layers
from study.plan import (
    ATTACKED,
    BATCH,
    LENGTH,
    NOISE,
    QUERIED,
    RADIUS,
    ROUNDS,
    STAGES,
    STEPS,
    STIFF,
    STRENGTH,
    VALIDATION,
    Run,
    words_of,
)


ERROR = re.compile(r"(\[rank\d+\]: ?)?[\w.]+(Error|Exception|: error)\b")
ATTACK = Ascent(steps=STEPS, restarts=1)
KEPT = ("metrics", "rows", "steps", "seconds_per_training_step", "im_fields", "device", "versions", "git")


def make_run(run: Run, files: Files) -> None:
    """Makes the stages of a run that are missing, and keeps each as soon as it is done.

    What was measured of other weights is dropped: the same seed, trained again elsewhere, need not give the same ones.
    """
    kept = read_run(files.runs, run) | {"problem": None}
    kept.pop("failed", None)
    weights = files.weights / run.trained.key
    if set(run.missing(kept)) - {"cost"} and not (weights / "model.safetensors").exists():
        kept["stages"].pop("train", None)
    for stage in STAGES:
        if stage not in run.missing(kept):
            continue
        begun = time.perf_counter()
        if stage == "train":
            found = train(run, files, weights)
            digest = hashlib.sha256((weights / "model.safetensors").read_bytes()).hexdigest()[:16]
            if kept.setdefault("weights", digest) != digest:
                kept |= {"weights": digest, "stages": {}, "seconds": {}, "made": {}}
        else:
            options: dict[str, Any] = {"max_length": run.arguments.get("max_seq_length", 128)}
            options["device"] = device = "cuda" if torch.cuda.is_available() else "cpu"
            classifier = load_classifier(
                str(folder_of(run, stage, files)), find_task(run.task), name=run.model, **options
            )
            # No cast that was made under inference_mode may reach the attack's gradients: no cache.
            dtype = getattr(torch, run.autocast or "float32")
            with torch.autocast(device, dtype, enabled=bool(run.autocast) and stage != "cost", cache_enabled=False):
                found = STAGE[stage](run, classifier, files)
        kept["stages"][stage] = found
        kept["seconds"][stage] = round(time.perf_counter() - begun, 1)
        kept.setdefault("made", {})[stage] = made_by() | ({"processes": files.processes} if stage == "train" else {})
        write_run(files.runs, run, kept)


def made_by() -> dict[str, Any]:
    """Code and machine: with others, numbers differ."""
    about = {"torch": torch.__version__, "transformers": transformers.__version__, "threads": torch.get_num_threads()}
    return about | {"git": git_state(), "cuda": torch.cuda.is_available()}


def train(run: Run, files: Files, weights: Path) -> dict[str, Any]:
    """What finetune.py or distill.py writes, without paths; its validation rows are those of `split`.

    The last epoch is kept. Weights that another run has trained with the same arguments are taken as they are.
    """
    if not (weights / "results.json").exists() or not (weights / "model.safetensors").exists():
        fine_tuned(run, files, weights)
    results = json.loads((weights / "results.json").read_text(encoding="utf-8"))
    return {name: results[name] for name in KEPT}


def fine_tuned(run: Run, files: Files, weights: Path) -> None:
    script = distill if run.teacher else finetune
    arguments = dict(run.arguments)
    if run.teacher:
        teacher = weights.with_name(run.taught_by.key)
        train(run.taught_by, files, teacher)
        arguments.pop("model_name_or_path", None)
        arguments["teacher"] = str(teacher)
    elif files.model:
        arguments["model_name_or_path"] = files.model
    words = words_of({**arguments, "task": run.task, "seed": run.seed, "output_dir": str(weights)})
    words += ["--data_dir", str(files.split(run.task)), "--eval_strategy", "no"]
    words += ["--save_strategy", "epoch", "--save_total_limit", "1", "--report_to", "none", "--disable_tqdm", "True"]
    words += [] if torch.cuda.is_available() else ["--use_cpu", "True"]  # bf16 needs to be told
    for checkpoint in weights.glob("checkpoint-*"):
        if not (checkpoint / "trainer_state.json").exists():  # written last: this one was cut off
            shutil.rmtree(checkpoint)
    begun = any(weights.glob("checkpoint-*"))
    words += ["--resume_from_checkpoint", "last"] if begun else ["--overwrite_output_dir"]
    if files.processes == 1:
        script.main(words)
    else:  # on the batches of one process
        together(script, [*words, "--accelerator_config", '{"split_batches": true}'], files.processes)
    for checkpoint in weights.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def folder_of(run: Run, stage: str, files: Files) -> Path:
    """The weights that a stage measures, or a copy of them in which the model has the run's im_ fields.

    A cost does not depend on them, where im_tolerance is 0: if there are none, one step of training makes some.
    """
    weights = files.weights / run.trained.key
    if stage == "cost" and not (weights / "model.safetensors").exists():
        run = run.brief
        weights = files.weights / run.trained.key
        train(run, files, weights)
    if not run.fields:
        return weights
    folder = weights.with_name(run.key)
    shutil.copytree(weights, folder, dirs_exist_ok=True)
    IMBertConfig.from_pretrained(weights, **run.fields).save_pretrained(folder)
    return folder


def together(script: Any, words: list[str], processes: int) -> None:
    """Runs a script in several processes, by accelerate."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command = [*launch, str(script.__file__), *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(done.stdout)
    if done.returncode:  # what a process said, not the launcher's summary below it
        said = [line for line in done.stdout.splitlines() if ERROR.match(line)]
        sys.exit(said[-1] if said else f"ended with {done.returncode}")


def choice(run: Run, classifier: Classifier, files: Files) -> dict[str, Any]:
    """By these a setting may be chosen: rows of the train file that no run trains on."""
    folder = files.split(run.task)
    return measured(classifier, read_rows(folder / run.task / validation_file(run.task), classifier.task))


def test(run: Run, classifier: Classifier, files: Files) -> dict[str, Any]:
    """To be looked at once, when all is chosen: GLUE's validation rows, and AdvGLUE's dev set."""
    found = measured(classifier, validation_rows(run, classifier, files, VALIDATION))
    return found | {"advglue": attacked_texts(run, classifier, files.advglue_dev)}


def advglue_test(run: Run, classifier: Classifier, files: Files) -> dict[str, Any]:
    """AdvGLUE's test set."""
    return {"advglue": attacked_texts(run, classifier, lambda _: files.advglue_test)}


def attacked_texts(run: Run, classifier: Classifier, file: Callable[[str], Path | None]) -> dict[str, Any]:
    """What is right of AdvGLUE's sets of the task; `file`: name of a set -> the file that holds it."""
    found = {}
    for name in advglue_sets(run.task):
        of_task = replace(classifier, task=find_task(name))
        answers = advglue.run(of_task, read_rows(str(file(name)), of_task.task), residuals="none")
        found[name] = {
            "attacked": bits(answers.right),
            "original": bits(r if p else None for r, p in zip(answers.original_right, answers.paired, strict=True)),
            "majority": majority(answers.rows),
            "f1": float(f1_score(answers.gold, answers.labels, zero_division=0.0)) if name == "qqp" else None,
        }
    return found


def query(run: Run, classifier: Classifier, files: Files) -> dict[str, Any]:
    """The character attack on validation rows."""
    rows = validation_rows(run, classifier, files, QUERIED)
    results = query_attack(classifier, rows, candidates=CharacterEdits())
    return {
        "before": bits(r.before == r.label for r in results),
        "after": bits(r.after == r.label for r in results),
        "queries": [r.queries for r in results],
    }


def cost(run: Run, classifier: Classifier, files: Files) -> dict[str, Any]:
    """Times of inference and of a training step to plain BERT's with the same weights, in turns."""
    batch = make_batch(classifier.model, classifier.tokenizer, None, BATCH, LENGTH)
    defence = run.arguments.get("defence")
    losses = DEFENCES[defence].losses if defence else plain_losses
    one = Floor(1.0, 1.0)  # not looked at
    rows = {
        "own": Variant("own", "own", classifier.model, one, losses=losses),
        "BERT": Variant("BERT", "BERT", plain_bert(classifier.model), one),
    }
    found: dict[str, Any] = {"batch": [BATCH, LENGTH], "threads": torch.get_num_threads()}
    wait = waiting(classifier.model.device)
    for what, training in (("inference", False), ("training", True)):
        actions = {name: partial(timed, row, batch, training) for name, row in rows.items()}
        interleave(actions, 1, synchronise=wait)
        seconds = interleave(actions, ROUNDS, synchronise=wait)
        found[what] = ratio(seconds["own"], seconds["BERT"])
    return found


def layers(run: Run, classifier: Classifier, files: Files) -> dict[str, Any]:
    """The stiffness of the layers."""
    with torch.autocast(classifier.model.device.type, enabled=False):
        return measure_layers(classifier, validation_rows(run, classifier, files, STIFF))


STAGE = {
    "choice": choice,
    "test": test,
    "advglue_test": advglue_test,
    "query": query,
    "layers": layers,
    "cost": cost,
}


def validation_rows(run: Run, classifier: Classifier, files: Files, limit: int) -> list[Row]:
    return read_rows(files.validation(run.task), classifier.task, limit=limit)


def measured(classifier: Classifier, rows: list[Row]) -> dict[str, Any]:
    """Clean, under natural noise, under the attack on the embeddings; growth of a perturbation, and residuals."""
    prediction = predict(classifier, [row.texts for row in rows])
    right = [label == row.label for label, row in zip(prediction.labels, rows, strict=True)]
    noisy = noise(
        classifier,
        rows,
        kinds=NOISE,
        strengths=(STRENGTH,),
        keep=lambda key, make: make() if key["strength"] else prediction.answers(),  # strength 0 is the clean text
    )
    few = rows[:: max(1, len(rows) // ATTACKED)][:ATTACKED]
    # The difference is near the rounding of half precision.
    with torch.autocast(classifier.model.device.type, enabled=False):
        grown = mean_growth(classifier, few)
    return {
        "clean": bits(right),
        "majority": majority(rows),
        "noise": {entry["kind"]: bits(entry["right"]) for entry in noisy},
        "embedding": bits(attacked(classifier, few, RADIUS, ATTACK)),
        "growth": grown,
        "residual": float(prediction.residuals.mean()) if prediction.residuals.size else None,
        "converged": float(prediction.converged.mean()) if prediction.converged.size else None,
    }


@torch.no_grad()
def mean_growth(classifier: Classifier, rows: list[Row]) -> float | None:
    """Mean over rows of ||h_L' - h_L|| / ||h_L|| to ||h_0' - h_0|| / ||h_0||, for one random movement of the words."""
    generator = torch.Generator().manual_seed(0)
    ratios: list[float] = []
    for row in rows:
        batch = classifier.collate(classifier.encode([row.texts]))
        embedded = classifier.model.get_input_embeddings()(batch["input_ids"])
        delta = torch.randn(embedded.shape, generator=generator).to(embedded) * movable(classifier, batch)[..., None]
        states = classifier.model(**batch, output_hidden_states=True).hidden_states
        with moved_embeddings(classifier.model, delta * (RADIUS * embedded.norm() / delta.norm().clamp_min(1e-9))):
            moved = classifier.model(**batch, output_hidden_states=True).hidden_states
        first, *_, last = [float((m - h).norm() / h.norm()) for h, m in zip(states, moved, strict=True)]
        ratios += [last / first] if first else []
    ratios = [r for r in ratios if numpy.isfinite(r)]
    return float(numpy.mean(ratios)) if ratios else None


def bits(right: Iterable[Any]) -> str:
    return "".join("-" if r is None else "01"[bool(r)] for r in right)


def majority(rows: Sequence[Row]) -> float:
    """Accuracy of always the most frequent label."""
    return float(numpy.bincount([row.label for row in rows]).max() / len(rows))
