"""Fine-tunes BERT, EX-BERT or IM-BERT on a table of one's own or a GLUE task; results go to OUTPUT_DIR/results.json.

    # one's own data: .csv, .tsv, .json, .jsonl, .parquet or .txt; without --validation_file a tenth is kept for that
    python examples/finetune.py --train_file tickets.csv --text_column_names body --label_column_name queue \
        --model_name_or_path google-bert/bert-base-uncased --connection im-bert --output_dir outputs/tickets

    python examples/finetune.py --task sst2 --model_name_or_path google-bert/bert-base-uncased \
        --connection im-bert --learning_rate 2e-5 --per_device_train_batch_size 32 --output_dir outputs/sst2-im-bert

    # plain BERT on 1,000 rows of local files: path/to/data holds rte/train.jsonl and rte/validation.jsonl
    python examples/finetune.py --task rte --model_name_or_path google-bert/bert-base-uncased \
        --connection bert --data_dir path/to/data --max_train_samples 1000 --seed 0 --output_dir outputs/rte-bert

    # half an implicit step in the last four layers; the same from a file: finetune.py settings.json
    python examples/finetune.py --task mnli --model_name_or_path google-bert/bert-base-uncased \
        --im_theta 0.5 --im_layers -4 -3 -2 -1 --im_eval_iterations 5 --output_dir outputs/mnli-half

    # several labels a row, in lists or in columns of 0 and 1; a number a row
    python examples/finetune.py ... --label_column_name urgent,angry,spam --output_dir outputs/multi
    python examples/finetune.py ... --label_column_name stars --problem_type regression --output_dir outputs/stars

    # theta from 0 to 1 over the first half of the training; what else one may take: R3F, FreeLB or R-Drop
    python examples/finetune.py ... --connection im-bert --theta_warmup 0.5 --output_dir outputs/warmup
    python examples/finetune.py ... --connection bert --defence r3f --output_dir outputs/r3f

Every im_ field of IMBertConfig and every field of TrainingArguments is an argument. Each epoch ends with an evaluation
and a checkpoint, and the best model is kept (by accuracy, micro F1 of several labels, or mean squared error), unless
--eval_strategy or --save_strategy is given: then TrainingArguments' defaults hold. --resume_from_checkpoint takes a
checkpoint folder, or "last". Checkpoints of every family that the README names are taken alike.

It exits with 0 when done, with 1 where the run failed or was interrupted, and with 2 for wrong arguments.
"""

import json
import os
import platform
import shutil
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import accelerate
import datasets
import numpy
import torch
import transformers
from finetune_arguments import IM_FIELDS, check_connection, check_folder, im_values, parse
from finetune_data import load_data
from finetune_problems import LOWER_IS_BETTER, PROBLEMS, SINGLE, UNDEFINED
from robust_losses import DEFENCES, Defence
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    EvalPrediction,
    PretrainedConfig,
    SchedulerType,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import ExportableState

import imbert_hf
from imbert_hf import ThetaScheduleCallback, command_line
from imbert_hf.evaluation.data.arguments import digest
from imbert_hf.evaluation.data.loading import FAMILIES, check_path, fingerprint, longest_input
from imbert_hf.evaluation.data.tasks import Task
from imbert_hf.evaluation.report import git_state


def load_model(name: str, connection: str, im: dict[str, Any], task: Task, max_seq_length: int) -> tuple[Any, Any]:
    """Model and tokenizer."""
    labels = {"id2label": dict(enumerate(task.labels)), "label2id": {label: i for i, label in enumerate(task.labels)}}
    try:
        check_path(name, "checkpoint")
    except ValueError as error:
        raise ValueError(f"--model_name_or_path {error}") from None
    try:
        found = PretrainedConfig.get_config_dict(name)[0].get("model_type", "bert")
        family, plain = found.removeprefix("im"), connection == "bert"
        if family not in FAMILIES or (plain and family != found):
            known = [*FAMILIES, *([] if plain else [config.model_type for config in FAMILIES.values()])]
            allowed = ", ".join(map(repr, known))
            raise ValueError(
                f"{name} holds a checkpoint of model_type {found!r}; --connection {connection} loads {allowed}."
            )
        config_class: Any = FAMILIES[family].__bases__[-1] if plain else FAMILIES[family]
        config = config_class.from_pretrained(name, problem_type=task.problem_type, **labels, **im)
        tokenizer = AutoTokenizer.from_pretrained(name)
        # Without a vocabulary file, transformers 5 makes one of special tokens alone.
        if len(tokenizer) <= len(tokenizer.all_special_ids):
            raise ValueError(f"{name} holds no tokenizer; save the model's own there.")
        # float32: a checkpoint in half precision would be trained in it. Sizes: the classifier of a task with other
        # labels is the only weight that can differ, and is drawn anew.
        loaded = AutoModelForSequenceClassification.from_pretrained(
            name, config=config, dtype=torch.float32, ignore_mismatched_sizes=True
        )
    except OSError as error:
        raise ValueError(f"--model_name_or_path {name} cannot be loaded: {str(error).splitlines()[0]}") from None
    # transformers saves a loaded model under the names in the file it came from: LayerNorm.gamma and LayerNorm.beta for
    # google-bert/bert-base-uncased, and on 5.0 for any. The Trainer skips these, without a word, when it loads its best
    # or last checkpoint. A model made here is saved under its own names.
    if not 8 <= max_seq_length <= (longest := longest_input(loaded, tokenizer)):
        raise ValueError(f"--max_seq_length must be from 8 to {longest} for {name}, got {max_seq_length}.")
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    return model, tokenizer


def compute_metrics(prediction: EvalPrediction, task: Task) -> dict[str, Any]:
    logits, labels = numpy.asarray(prediction.predictions), numpy.asarray(prediction.label_ids)
    return PROBLEMS[task.problem_type].metrics(logits, labels, task)


def settle(args: TrainingArguments, task: Task, label: Any) -> None:
    """What of TrainingArguments follows from the problem type: how the best checkpoint is chosen. `label`: of a row."""
    problem = PROBLEMS[task.problem_type]
    known = {"loss", *problem.metrics(numpy.zeros((1, len(task.labels))), numpy.array([label]), task)}
    args.metric_for_best_model = args.metric_for_best_model or problem.best
    if (name := args.metric_for_best_model.removeprefix("eval_")) not in known:
        raise ValueError(f"--metric_for_best_model must be of {', '.join(sorted(known))}, got {name!r}.")
    if name in UNDEFINED:
        raise ValueError(
            f"--metric_for_best_model {name} has no value where all predictions are equal; take mse or mae."
        )
    if name in LOWER_IS_BETTER:
        args.greater_is_better = False
    if args.lr_scheduler_type == SchedulerType.REDUCE_ON_PLATEAU and args.greater_is_better:
        given: Any = args.lr_scheduler_kwargs or {}
        args.lr_scheduler_kwargs = {"mode": "max", **given}
    if args.label_smoothing_factor and task.problem_type != SINGLE:
        raise ValueError(f"--label_smoothing_factor is of {SINGLE}, and {task.name} is {task.problem_type}.")


class DefenceTrainer(Trainer):
    """A Trainer of the losses of a defence. Each of them takes the Trainer's own way to be scaled and differentiated.

    Args:
        defence: of robust_losses.
        kwargs: of the Trainer.
    """

    def __init__(self, *, defence: Defence, **kwargs):
        super().__init__(**kwargs)
        self.defence = defence

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.losses = self.defence.losses(model, self._prepare_inputs(inputs))
        step = super().training_step
        return sum(step(model, inputs, num_items_in_batch) for _ in range(self.defence.count))

    def compute_loss(self, model, inputs, *args, **kwargs):
        return next(self.losses) if model.training else super().compute_loss(model, inputs, *args, **kwargs)


class Trained(TrainerCallback, ExportableState):
    """Keeps in each checkpoint what its config does not tell of the training, for one that goes on."""

    def __init__(self, defence: str | None):
        self.defence = defence

    def state(self) -> dict[str, Any]:
        return {"args": {"defence": self.defence}, "attributes": {}}


class StepTimer(TrainerCallback):
    """Time within training steps; the Trainer's train_runtime holds evaluations and checkpoints, too."""

    steps, seconds = 0, 0.0

    def _now(self) -> float:
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        return time.perf_counter()

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = self._now()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds += self._now() - self.start
        self.steps += 1


def outcome(trainer: Any, task: Task, data: dict[str, Any], scores: dict[str, Any], timer: StepTimer) -> dict:
    """What results.json holds of a trained and saved model."""
    config, state, folder = trainer.model.config, trainer.state, str(trainer.args.output_dir)
    modules = (torch, transformers, datasets, accelerate, imbert_hf)
    return {
        "task": task.name,
        "problem_type": task.problem_type,
        "labels": list(task.labels),  # what the model's outputs are called
        "fingerprint": fingerprint(folder),  # of what was saved, by which a card knows its own results
        "data": {split: digest(rows.to_dict()) for split, rows in data.items()},
        "metrics": {s: {n.removeprefix("eval_"): v for n, v in score.items()} for s, score in scores.items()},
        "rows": {split: len(rows) for split, rows in data.items()},
        "seed": trainer.args.seed,
        "steps": state.global_step,
        # Of this process: after a resume, of the steps since. Fetching of batches, evaluations and checkpoints are out.
        "steps_timed": timer.steps,
        "seconds_per_training_step": timer.seconds / timer.steps if timer.steps else None,
        "seconds_per_eval_row": {s: score["eval_runtime"] / len(data[s]) for s, score in scores.items()},
        "im_fields": {name: getattr(config, name) for name in IM_FIELDS if hasattr(config, name)} or None,
        "device": str(trainer.args.device),
        "best_checkpoint": state.best_model_checkpoint,
        "history": state.log_history,
        "versions": {"python": platform.python_version()} | {m.__name__: str(m.__version__) for m in modules},
    }


def main(
    argv: list[str] | None = None,
    *,
    prog: str = "finetune.py",
    load: Any = None,
    trainer_class: Any = None,
    **about: Any,
) -> None:
    """The script, for another that has a name, a model and a Trainer of its own, and more to tell in results.json."""
    # What can be wrong is found before the output folder is touched, and said in one sentence.
    try:
        model_args, data_args, args = parse(sys.argv[1:] if argv is None else argv, prog)
        im = im_values(model_args)
        folder = Path(args.output_dir)
        resume = check_folder(folder, data_args.overwrite_output_dir, args.resume_from_checkpoint)
        task, data = load_data(data_args, args.seed if args.data_seed is None else args.data_seed)
        settle(args, task, data["train"][0]["label"])
        set_seed(args.seed)  # the Trainer's own comes after the classifier is drawn
        name, connection = model_args.model_name_or_path, model_args.connection
        model, tokenizer = (load or load_model)(name, connection, im, task, data_args.max_seq_length)
        # BERT's loss is the mean of a batch whatever the Trainer hands it. The Trainer takes it for a sum over the
        # global batch, already divided by its size, unless told: gradients came out times processes and accumulation.
        model.accepts_loss_kwargs = False
        if resume is not None:
            check_connection(model.config, resume, model_args.defence)
        callbacks: list[TrainerCallback] = [Trained(model_args.defence)]
        if model_args.theta_warmup is not None:
            callbacks.append(ThetaScheduleCallback(0.0, model.config.im_theta, model_args.theta_warmup))
    except ValueError as error:
        command_line.Parser(prog).error(str(error))
    if model_args.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(model_args.early_stopping_patience))
    git = git_state()

    def tokenize(rows):
        return tokenizer(
            *(rows[f"text{i}"] for i in range(len(task.fields))), truncation=True, max_length=data_args.max_seq_length
        )

    inputs = {split: rows.map(tokenize, batched=True) for split, rows in data.items()}  # the Trainer drops the texts
    evaluated = [split for split in data if split != "train"]
    timer = StepTimer()
    if model_args.defence:  # two forwards a backward, between which DDP would write the first one's position ids anew
        args.ddp_broadcast_buffers = False
        trainer_class = partial(DefenceTrainer, defence=DEFENCES[model_args.defence])
    trainer = (trainer_class or Trainer)(
        model=model,
        args=args,
        train_dataset=inputs["train"],
        eval_dataset=inputs[evaluated[0]],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda prediction: compute_metrics(prediction, task),
        callbacks=[*callbacks, timer],
    )
    if trainer.is_world_process_zero():
        counts = ", ".join(f"{len(rows)} {split}" for split, rows in data.items())
        print(f"{task.name}: {task.problem_type}, labels {', '.join(task.labels)}; rows: {counts}; {connection}")
        # An earlier run's results must not pass for this one's, nor its checkpoints for points to resume from.
        (folder / "results.json").unlink(missing_ok=True)
        for old in folder.glob("checkpoint-*") if resume is None else ():
            shutil.rmtree(old)

    training = trainer.train(resume_from_checkpoint=resume)
    scores = {split: trainer.evaluate(inputs[split]) for split in evaluated}
    trainer.save_model()
    trainer.save_state()
    if not trainer.is_world_process_zero():
        return
    results = outcome(trainer, task, data, scores, timer) | {
        "connection": connection,
        "train_runtime": training.metrics["train_runtime"],
        "arguments": {"model": asdict(model_args), "data": asdict(data_args), "training": args.to_dict()},
        "resumed_from": resume,
        "git": git,
        **about,
    }
    part = folder / "results.json.part"
    part.write_text(json.dumps(results, indent=2, default=str) + "\n", encoding="utf-8")
    os.replace(part, folder / "results.json")  # whole or not at all
    print(f"{json.dumps(results['metrics'])} in {folder / 'results.json'}")


if __name__ == "__main__":
    command_line.run("finetune.py", main)
    # Left to the end of the interpreter, gloo's threads can abort a process whose work is done.
    accelerate.PartialState().destroy_process_group()
