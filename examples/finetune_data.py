"""What finetune.py trains and evaluates on: a GLUE task, or a table of one's own. A module of that script."""

from dataclasses import dataclass, field
from pathlib import Path

import datasets
from sklearn.model_selection import train_test_split

from imbert_hf.evaluation.data.tables import SUFFIXES, read_table
from imbert_hf.evaluation.data.tasks import TASKS as GLUE
from imbert_hf.evaluation.data.tasks import Row, Task, check_columns, own_task, read_rows


TASKS = [name for name in GLUE if name != "mnli-mm"]  # that one is MNLI's other validation split


@dataclass(kw_only=True)
class DataArguments:
    task: str | None = field(default=None, metadata={"choices": TASKS, "help": "Of GLUE; None: data of your own"})
    train_file: str | None = field(default=None, metadata={"help": "A table of your own: " + ", ".join(SUFFIXES)})
    validation_file: str | None = field(
        default=None,
        metadata={"help": "The same; None: a tenth of the rows to train on, stratified, by --data_seed or else --seed"},
    )
    test_file: str | None = field(default=None, metadata={"help": "The same, evaluated at the end too"})
    dataset_name: str | None = field(
        default=None, metadata={"help": "On the Hub, in place of files, or a folder of splits"}
    )
    text_column_names: str | None = field(default=None, metadata={"help": "One, or two with a comma between"})
    label_column_name: str = field(default="label", metadata={"help": "Of the same table"})
    data_dir: str | None = field(
        default=None, metadata={"help": "DIR that holds DIR/<task>/<split>.jsonl; None: nyu-mll/glue of the Hub"}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Random rows, by --data_seed or else --seed"})
    max_eval_samples: int | None = field(default=None, metadata={"help": "The same, of each evaluation split"})
    max_seq_length: int = field(default=128, metadata={"help": "Tokens; what is longer is truncated"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Deletes the checkpoints in --output_dir"})


def load_data(args: DataArguments, seed: int) -> tuple[Task, dict[str, datasets.Dataset]]:
    """The task, and split -> rows: train, then what to evaluate on; the first of these chooses the best checkpoint."""
    task, found = glue_rows(args) if args.task is not None else own_splits(args, seed)
    data = {}
    for split, rows in found.items():
        columns = {f"text{i}": [row.texts[i] for row in rows] for i in range(len(task.fields))}
        data[split] = datasets.Dataset.from_dict({**columns, "label": [row.label for row in rows]})
        name = "max_train_samples" if split == "train" else "max_eval_samples"
        limit = getattr(args, name)
        if limit is not None:
            if limit < 1:
                raise ValueError(f"--{name} must be an integer >= 1, got {limit}.")
            data[split] = data[split].shuffle(seed=seed).select(range(min(limit, len(rows))))
    return task, data


def glue_rows(args: DataArguments) -> tuple[Task, dict[str, list[Row]]]:
    if own := next((name for name in OWN if getattr(args, name) is not None), None):
        raise ValueError(f"--{own} is of data of your own, and --task {args.task} of GLUE: leave one of them out.")
    task, splits = GLUE[str(args.task)], ["train", "validation"]
    if args.task == "mnli":
        splits = ["train", "validation_matched", "validation_mismatched"]
    data = {}
    for split in splits:
        if args.data_dir is None:
            try:
                rows = datasets.load_dataset("nyu-mll/glue", args.task, split=split)
            except (OSError, ValueError) as error:
                raise ValueError(f"nyu-mll/glue cannot be loaded, pass --data_dir for local files: {error}") from None
            data[split] = [Row(tuple(row[name] for name in task.fields), row["label"]) for row in rows]
        elif (
            path := Path(args.data_dir, str(args.task), f"{split}.jsonl")
        ).exists() or split != "validation_mismatched":
            data[split] = read_rows(path, task)
    return task, data


OWN = ("train_file", "validation_file", "test_file", "dataset_name", "text_column_names")


def own_splits(args: DataArguments, seed: int) -> tuple[Task, dict[str, list[Row]]]:
    """The task that a table's columns and the labels in it make, and its rows."""
    if (args.train_file is None) == (args.dataset_name is None):
        raise ValueError("--task, --train_file or --dataset_name must say what to train on, one of them.")
    source = str(args.train_file or args.dataset_name)
    table = read_table(source, None if args.train_file else "train")
    if args.text_column_names is None:
        raise ValueError(f"--text_column_names is missing: it must name columns of {source}, of {', '.join(table[0])}.")
    columns = [name.strip() for name in args.text_column_names.split(",")]
    check_columns(source, table, [*columns, args.label_column_name])
    labels = {str(row[args.label_column_name]).strip() for row in table}
    if len(labels) < 2 or "" in labels:
        raise ValueError(
            f"{source}: {args.label_column_name!r} must hold two labels or more and no blank, got {sorted(labels)}."
        )
    names = sorted(labels, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
    task = own_task(source, columns, args.label_column_name, names)
    data = {"train": read_rows(source, task, None if args.train_file else "train")}
    if args.validation_file is not None:
        data["validation"] = read_rows(args.validation_file, task)
    else:
        data["train"], data["validation"] = held_out(data["train"], task, seed)
    if args.test_file is not None:
        data["test"] = read_rows(args.test_file, task)
    return task, data


def held_out(rows: list[Row], task: Task, seed: int) -> tuple[list[Row], list[Row]]:
    """Nine tenths and a tenth of the rows, with the same shares of every label."""
    gold = [row.label for row in rows]
    size = max(len(task.labels), round(len(rows) / 10))
    try:
        train, validation = train_test_split(rows, test_size=size, random_state=seed, stratify=gold)
    except ValueError:  # a label has a single row, or there are fewer rows than labels
        rare = min(range(len(task.labels)), key=gold.count)
        raise ValueError(
            f"--validation_file is missing, and label {task.labels[rare]!r} has {gold.count(rare)} of {len(rows)} "
            "rows: too few to keep some for validation."
        ) from None
    return train, validation
