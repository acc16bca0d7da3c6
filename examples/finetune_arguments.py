"""What finetune.py takes, on the command line or in a settings file. A module of that script."""

import inspect
import json
import math
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any, Literal

from finetune_data import DataArguments
from robust_losses import DEFENCES
from transformers import HfArgumentParser, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from imbert_hf import IMBertConfig, command_line
from imbert_hf.configuration_imbert import ImplicitConfig
from imbert_hf.evaluation.data.loading import NAMES


ABOUT = """Fine-tunes BERT, EX-BERT or IM-BERT; the script's docstring has examples. It exits with 0 when done, with 1
where the run failed or was interrupted, and with 2 for wrong arguments."""
IM_FIELDS = {name: hint for name, hint in inspect.get_annotations(ImplicitConfig).items() if name.startswith("im_")}
IM_FIELDS["im_layers"] = list[str]  # "all", or indices: read by im_values

IMArguments: Any = make_dataclass(
    "IMArguments",
    [(n, hint | None, field(default=None, metadata={"help": f"IMBertConfig.{n}"})) for n, hint in IM_FIELDS.items()],
)


@dataclass(kw_only=True)
class ModelArguments(IMArguments):
    """An im_ field left out keeps what the checkpoint has, or else IMBertConfig's default; ex-bert sets its own."""

    model_name_or_path: str = field(metadata={"help": f"Folder or Hub id of a {NAMES}, plain or implicit"})
    connection: Literal["bert", "ex-bert", "im-bert"] = field(
        default="im-bert", metadata={"help": "What to train; bert is the plain model (default: im-bert)"}
    )
    preset: Literal["paper"] | None = field(
        default=None, metadata={"help": "paper: every im_ field not given is IMBertConfig.paper()'s"}
    )
    theta_warmup: float | None = field(
        default=None, metadata={"help": "Share of the training over which theta rises from 0 to im_theta"}
    )
    defence: str | None = field(
        default=None,
        metadata={
            "choices": [*DEFENCES],
            "help": "Train with the losses of R3F (Aghajanyan et al., ICLR 2021), FreeLB (Zhu et al., ICLR 2020) or "
            "R-Drop (Liang et al., NeurIPS 2021)",
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Stop after so many evaluations without a better --metric_for_best_model; counted anew after a "
            "resume, but with --restore_callback_states_from_checkpoint"
        },
    )


class Parser(command_line.Parser, HfArgumentParser):
    pass


def parse(argv: list[str], prog: str = "finetune.py") -> Any:
    """ModelArguments, DataArguments and TrainingArguments."""
    if len(argv) == 1 and argv[0].endswith(".json"):
        argv = words_of(argv[0])
    kinds: Any = (ModelArguments, DataArguments, TrainingArguments)
    parser = Parser(kinds, prog=prog, description=ABOUT)
    parser.set_defaults(metric_for_best_model="")  # settle in finetune.py has the default of each problem type
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
        meant = command_line.nearest(name, parser.options_of(None))
        raise ValueError(f"{name} is no argument{meant or f'; there are {own}, and those of TrainingArguments.'}")
    check_training(arguments[0], arguments[2])
    return arguments


# Of TrainingArguments, what leaves the script without its inputs, labels or metrics; ...: any value.
UNUSABLE = {
    "batch_eval_metrics": True,
    "prediction_loss_only": True,
    "eval_do_concat_batches": False,
    "remove_unused_columns": False,
    "label_names": ...,
}
# TrainingArguments does not check these: the least that each may be
LEAST = {
    "learning_rate": 0.0,
    "num_train_epochs": 0.0,
    "weight_decay": 0.0,
    "max_grad_norm": 0.0,
    "adam_epsilon": 0.0,
    "label_smoothing_factor": 0.0,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
}


def check_training(own: ModelArguments, args: TrainingArguments) -> None:
    for name, least in LEAST.items():
        if not least <= getattr(args, name) < math.inf:
            kind = "an integer" if isinstance(least, int) else "a finite number"
            raise ValueError(f"--{name} must be {kind} >= {least}, got {getattr(args, name)}.")
    if args.hub_token is not None:
        raise ValueError("--hub_token would be pickled into training_args.bin and pushed; set HF_TOKEN in its place.")
    if own.early_stopping_patience is not None:
        if own.early_stopping_patience < 1:
            raise ValueError(f"--early_stopping_patience must be an integer >= 1, got {own.early_stopping_patience}.")
        if not args.load_best_model_at_end:
            raise ValueError("--early_stopping_patience has no effect without --load_best_model_at_end.")
    for name, value in UNUSABLE.items():
        if getattr(args, name) == value or (value is ... and getattr(args, name)):
            raise ValueError(f"--{name} {getattr(args, name)} cannot be used here: leave it out.")
    if own.defence and args.label_smoothing_factor:
        raise ValueError(f"--label_smoothing_factor has no effect with --defence {own.defence}; leave one of them out.")


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


def check_connection(config: Any, checkpoint: str, defence: str | None) -> None:
    """Refuses to go on with another connection, such as another release's defaults; theta may be on its way there.

    So it does with another problem type, other labels or another defence.
    """
    before = json.loads(Path(checkpoint, "config.json").read_bytes())
    kept = json.loads(Path(checkpoint, "trainer_state.json").read_bytes()).get("stateful_callbacks", {})
    labels = list(before.get("id2label", config.id2label).values())
    trained = {"defence": kept.get("Trained", {"args": {"defence": defence}})["args"]["defence"], "labels": labels}
    for name, now in {"defence": defence, "labels": list(config.id2label.values())}.items():
        if now != trained[name]:
            raise ValueError(f"{checkpoint} was trained with {name} {trained[name]!r}, not {now!r}.")
    for name in [name for name in (*IM_FIELDS, "problem_type") if name in before and name != "im_theta"]:
        if (now := getattr(config, name, None)) != before[name]:
            raise ValueError(f"{checkpoint} was trained with {name} {before[name]!r}, not {now!r}: pass --{name}.")
