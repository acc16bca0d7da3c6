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

    # theta from 0 to 1 over the first half of the training; what else one may take: R3F with plain BERT
    python examples/finetune.py ... --connection im-bert --theta_warmup 0.5 --output_dir outputs/warmup
    python examples/finetune.py ... --connection bert --r3f --output_dir outputs/r3f

Every im_ field of IMBertConfig and every field of TrainingArguments is an argument. Each epoch ends with an evaluation
and a checkpoint, and the most accurate model is kept, unless --eval_strategy or --save_strategy is given: then
TrainingArguments' defaults hold. --resume_from_checkpoint takes a checkpoint folder, or "last". Checkpoints of BERT,
RoBERTa and ELECTRA are taken alike.
"""

import inspect
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import accelerate
import datasets
import numpy
import torch
import transformers
from finetune_data import DataArguments, load_data
from robust_losses import r3f_losses
from sklearn.metrics import accuracy_score, f1_score
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    HfArgumentParser,
    PretrainedConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

import imbert_hf
from imbert_hf import IMBertConfig, IMElectraConfig, IMRobertaConfig, ThetaScheduleCallback
from imbert_hf.configuration_imbert import ImplicitConfig
from imbert_hf.evaluation.data.arguments import digest
from imbert_hf.evaluation.data.loading import fingerprint, longest_input
from imbert_hf.evaluation.data.tasks import Task


FAMILIES = {config.plain_model_type(): config for config in (IMBertConfig, IMRobertaConfig, IMElectraConfig)}
IM_FIELDS = {name: hint for name, hint in inspect.get_annotations(ImplicitConfig).items() if name.startswith("im_")}
IM_FIELDS["im_layers"] = list[str]  # "all", or indices: read by im_values

IMArguments: Any = make_dataclass(
    "IMArguments",
    [(n, hint | None, field(default=None, metadata={"help": f"IMBertConfig.{n}"})) for n, hint in IM_FIELDS.items()],
)


@dataclass(kw_only=True)
class ModelArguments(IMArguments):
    """An im_ field left out keeps what the checkpoint has, or else IMBertConfig's default; ex-bert sets its own."""

    model_name_or_path: str = field(
        metadata={"help": "Folder or Hub id of a BERT, RoBERTa or ELECTRA, plain or implicit"}
    )
    connection: Literal["bert", "ex-bert", "im-bert"] = "im-bert"
    preset: Literal["paper"] | None = field(
        default=None, metadata={"help": "paper: every im_ field not given is IMBertConfig.paper()'s"}
    )
    theta_warmup: float | None = field(
        default=None, metadata={"help": "Share of the training over which theta rises from 0 to im_theta"}
    )
    r3f: bool = field(default=False, metadata={"help": "Train with the loss of R3F (Aghajanyan et al., ICLR 2021)"})


class Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)  # argparse would first print 200 lines of usage


def parse(argv: list[str]) -> Any:
    """ModelArguments, DataArguments and TrainingArguments."""
    if len(argv) == 1 and argv[0].endswith(".json"):
        argv = words_of(argv[0])
    # With abbreviations --im_layer would be taken for --im_layers.
    parser = Parser((ModelArguments, DataArguments, TrainingArguments), allow_abbrev=False)  # type: ignore[arg-type]
    parser.set_defaults(metric_for_best_model="accuracy")
    given = {word.split("=")[0].lstrip("-").replace("-", "_") for word in argv}
    if not given & {"eval_strategy", "save_strategy"}:
        best = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
        parser.set_defaults(**best, save_total_limit=1)
    *arguments, unknown = parser.parse_args_into_dataclasses(
        argv, return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        own = ", ".join(f"--{f.name}" for kind in (ModelArguments, DataArguments) for f in fields(kind))
        name = unknown[0].partition("=")[0]  # without the value, which may be a token
        raise ValueError(f"{name} is no argument; there are {own}, and those of TrainingArguments.")
    if arguments[2].hub_token is not None:
        raise ValueError("--hub_token would be pickled into training_args.bin and pushed; set HF_TOKEN in its place.")
    return arguments


def words_of(path: str) -> list[str]:
    """The arguments in a .json file as words of a command line, so that both are checked alike."""
    try:
        settings = json.loads(Path(path).read_bytes()).items()
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} must hold a JSON object of arguments: {error}.") from None
    words = []
    for name, value in settings:
        if isinstance(value, list) and value:
            words += [f"--{name}", *map(str, value)]
        elif value is not None:
            words.append(f"--{name}=" + (value if isinstance(value, str) else json.dumps(value) if value != [] else ""))
    return words


def im_values(args: ModelArguments) -> dict[str, Any]:
    """The im_ fields to set over the checkpoint's."""
    values = {name: getattr(args, name) for name in IM_FIELDS if getattr(args, name) is not None}
    if "im_layers" in values:
        text = " ".join(values["im_layers"]).replace(",", " ").strip()
        try:
            values["im_layers"] = text if text == "all" else [int(word) for word in text.split()]
        except ValueError:
            raise ValueError(f"--im_layers must be all, or layer indices such as 3,4,5, got {text!r}.") from None
    for name in ("preset", "theta_warmup"):
        if getattr(args, name) is not None and args.connection != "im-bert":
            raise ValueError(f"--{name} {getattr(args, name)} needs --connection im-bert, got {args.connection!r}.")
    if args.connection == "bert" and values:
        raise ValueError(f"--{next(iter(values))} has no effect with --connection bert; leave it out or use im-bert.")
    if args.connection == "ex-bert":
        values.setdefault("im_layers", "all")  # as in the paper's EX-BERT, whatever IMBertConfig's default
        # The layer field, since the explicit step of the increment field is BERT itself at step size 1.
        for name, fixed in {"im_theta": 0.0, "im_vector_field": "layer"}.items():
            if values.setdefault(name, fixed) != fixed:
                raise ValueError(f"--{name} must be {fixed!r} with --connection ex-bert, got {values[name]!r}.")
    if args.preset == "paper":
        paper = IMBertConfig.paper()
        values = {name: getattr(paper, name) for name in IM_FIELDS} | values
    return values


def check_folder(folder: Path, overwrite: bool, resume: str | None) -> str | None:
    """Refuses a folder that holds something. Returns the checkpoint to resume from."""
    if resume is not None:
        last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        resume = last if resume.lower() in ("last", "true") else resume
        if resume is None:
            raise ValueError(f"--resume_from_checkpoint: there is no checkpoint in {folder}.")
        if not all((Path(resume) / name).is_file() for name in ("trainer_state.json", "config.json")):
            raise ValueError(f'--resume_from_checkpoint must be "last" or a checkpoint folder, got {resume!r}.')
    elif folder.exists() and not (folder.is_dir() and (overwrite or not any(folder.iterdir()))):
        advice = "choose another, or pass --overwrite_output_dir or --resume_from_checkpoint last"
        raise ValueError(f"--output_dir {folder} is not an empty folder; {advice}.")
    return resume


def check_connection(config: Any, checkpoint: str) -> None:
    """Refuses to go on with another connection, such as another release's defaults; theta may be on its way there."""
    before = json.loads(Path(checkpoint, "config.json").read_bytes())
    for name in [name for name in IM_FIELDS if name in before and name != "im_theta"]:
        if (now := getattr(config, name, None)) != before[name]:
            raise ValueError(f"{checkpoint} was trained with {name} {before[name]!r}, not {now!r}: pass --{name}.")


def load_model(
    name: str, connection: str, im: dict[str, Any], labels: tuple[str, ...], max_seq_length: int
) -> tuple[Any, Any]:
    """Model and tokenizer."""
    label2id = {label: i for i, label in enumerate(labels)}
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
        config = config_class.from_pretrained(name, id2label=dict(enumerate(labels)), label2id=label2id, **im)
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
    # BERT's loss is the mean of a batch whatever the Trainer hands it. The Trainer takes it for a sum over the global
    # batch, already divided by its size, unless told: gradients came out times the processes and accumulation steps.
    model.accepts_loss_kwargs = False
    return model, tokenizer


def compute_metrics(prediction: EvalPrediction, task: Task) -> dict[str, float]:
    predicted, labels = numpy.argmax(prediction.predictions, axis=-1), prediction.label_ids
    metrics = {"accuracy": float(accuracy_score(labels, predicted))}
    if task.own:
        metrics["macro_f1"] = float(f1_score(labels, predicted, average="macro", zero_division=0.0))
    if task.name == "qqp":
        metrics["f1"] = float(f1_score(labels, predicted, zero_division=0.0))
    return metrics


class R3FTrainer(Trainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        if not model.training:
            return super().compute_loss(model, inputs, *args, **kwargs)
        return next(r3f_losses(model, inputs))


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


def git_state() -> dict[str, Any] | None:
    """Commit of the checkout that imbert_hf is imported from, and whether files differ from it; None without one."""
    root = Path(imbert_hf.__file__).resolve().parents[1]

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        # Not of a repository further up, in which a virtual environment may lie.
        if (root / ".git").exists():
            return {"commit": git("rev-parse", "HEAD"), "dirty": git("status", "--porcelain") != ""}
    except (OSError, subprocess.CalledProcessError):
        pass
    return None


def main(argv: list[str] | None = None, trainer_class: Any = None, about: dict[str, Any] | None = None) -> None:
    """The script, for another that has a Trainer of its own, and something to tell of it in results.json."""
    # What can be wrong is found before the output folder is touched, and said in one sentence.
    try:
        model_args, data_args, args = parse(sys.argv[1:] if argv is None else argv)
        im = im_values(model_args)
        folder = Path(args.output_dir)
        resume = check_folder(folder, data_args.overwrite_output_dir, args.resume_from_checkpoint)
        task, data = load_data(data_args, args.seed if args.data_seed is None else args.data_seed)
        set_seed(args.seed)  # the Trainer's own comes after the classifier is drawn
        name, connection = model_args.model_name_or_path, model_args.connection
        model, tokenizer = load_model(name, connection, im, task.labels, data_args.max_seq_length)
        if resume is not None:
            check_connection(model.config, resume)
        callbacks: list[TrainerCallback] = []
        if model_args.theta_warmup is not None:
            callbacks.append(ThetaScheduleCallback(0.0, model.config.im_theta, model_args.theta_warmup))
    except ValueError as error:
        sys.exit(f"finetune.py: error: {' '.join(str(error).split())}")
    git = git_state()

    def tokenize(rows):
        return tokenizer(
            *(rows[f"text{i}"] for i in range(len(task.fields))), truncation=True, max_length=data_args.max_seq_length
        )

    inputs = {split: rows.map(tokenize, batched=True) for split, rows in data.items()}  # the Trainer drops the texts
    evaluated = [split for split in data if split != "train"]
    timer = StepTimer()
    if model_args.r3f:  # two forwards a backward, between which DDP would write the first one's position ids anew
        args.ddp_broadcast_buffers = False
    trainer = (trainer_class or (R3FTrainer if model_args.r3f else Trainer))(
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
    modules = (torch, transformers, datasets, accelerate, imbert_hf)
    results = {
        "task": task.name,
        "labels": list(task.labels),
        "fingerprint": fingerprint(str(folder)),  # of what was saved, by which a card knows its own results
        "data": {split: digest(rows.to_dict()) for split, rows in data.items()},
        "connection": connection,
        "metrics": {s: {n.removeprefix("eval_"): v for n, v in score.items()} for s, score in scores.items()},
        "rows": {split: len(rows) for split, rows in data.items()},
        "seed": args.seed,
        "steps": trainer.state.global_step,
        # Of this process: after a resume, of the steps since. Fetching of batches, evaluations and checkpoints are out.
        "steps_timed": timer.steps,
        "seconds_per_training_step": timer.seconds / timer.steps if timer.steps else None,
        "seconds_per_eval_row": {s: score["eval_runtime"] / len(data[s]) for s, score in scores.items()},
        "train_runtime": training.metrics["train_runtime"],
        "im_fields": {name: getattr(model.config, name) for name in IM_FIELDS if hasattr(model.config, name)} or None,
        "arguments": {"model": asdict(model_args), "data": asdict(data_args), "training": args.to_dict()},
        "device": str(args.device),
        "resumed_from": resume,
        "best_checkpoint": trainer.state.best_model_checkpoint,
        "history": trainer.state.log_history,
        "versions": {"python": platform.python_version()} | {m.__name__: str(m.__version__) for m in modules},
        "git": git,
        **(about or {}),
    }
    part = folder / "results.json.part"
    part.write_text(json.dumps(results, indent=2, default=str) + "\n", encoding="utf-8")
    os.replace(part, folder / "results.json")  # whole or not at all
    print(f"{json.dumps(results['metrics'])} in {folder / 'results.json'}")


if __name__ == "__main__":
    main()
    # Left to the end of the interpreter, gloo's threads can abort a process whose work is done.
    accelerate.PartialState().destroy_process_group()
