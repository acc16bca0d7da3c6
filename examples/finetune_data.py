"""What finetune.py trains and evaluates on: a GLUE task, or a table of one's own. A module of that script."""

from dataclasses import dataclass, field
from pathlib import Path

import datasets
from finetune_problems import MULTI, PROBLEMS, SINGLE, Cells, flag, problem_of
from sklearn.model_selection import train_test_split

from imbert_hf.evaluation.data.tables import SUFFIXES, read_table
from imbert_hf.evaluation.data.tasks import TASKS as GLUE
from imbert_hf.evaluation.data.tasks import Row, Task, check_columns, read_rows, texts_of


TASKS = [name for name in GLUE if name != "mnli-mm"]  # that one is MNLI's other validation split


@dataclass(kw_only=True)
class DataArguments:
    task: str | None = field(default=None, metadata={"choices": TASKS, "help": "Of GLUE; None: data of your own"})
    train_file: str | None = field(default=None, metadata={"help": "A table of your own: " + ", ".join(SUFFIXES)})
    validation_file: str | None = field(
        default=None,
        metadata={
            "help": "The same; None: a tenth of the rows to train on, stratified where they are single-label, by "
            "--data_seed or else --seed"
        },
    )
    test_file: str | None = field(default=None, metadata={"help": "The same, evaluated at the end too"})
    dataset_name: str | None = field(
        default=None,
        metadata={"help": "In place of files: of the Hub, whose split train is read, or a folder of splits"},
    )
    text_column_names: str | None = field(default=None, metadata={"help": "One, or two with a comma between"})
    label_column_name: str = field(
        default="label",
        metadata={
            "help": "Of the same table; or several with commas between, of 0 and 1 or false and true, for multi-label"
        },
    )
    problem_type: str | None = field(
        default=None,
        metadata={
            "choices": [*PROBLEMS],
            "help": "As Transformers has it. None: lists or several columns are multi-label, and a column of numbers, "
            "some of which have fractions, is regression; anything else is single-label, integers too",
        },
    )
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


OWN = ("train_file", "validation_file", "test_file", "dataset_name", "text_column_names", "problem_type")


def own_splits(args: DataArguments, seed: int) -> tuple[Task, dict[str, list[Row]]]:
    """The task that a table's columns and the labels in it make, and its rows."""
    if (args.train_file is None) == (args.dataset_name is None):
        raise ValueError("--task, --train_file or --dataset_name must say what to train on, one of them.")
    source = str(args.train_file or args.dataset_name)
    table = read_table(source, "train")
    if args.text_column_names is None:
        raise ValueError(f"--text_column_names is missing: it must name columns of {source}, of {', '.join(table[0])}.")
    texts, wanted = args.text_column_names.split(","), args.label_column_name.split(",")
    texts, columns = ([name.strip() for name in names] for names in (texts, wanted))
    if args.label_column_name in table[0]:  # with a comma in its name
        columns = [args.label_column_name]
    if len(texts) > 2:
        raise ValueError(f"--text_column_names must name one column or, for pairs, two, got {args.text_column_names}.")
    if len({*texts, *columns}) < len(texts) + len(columns):
        given = f"{args.text_column_names} and {args.label_column_name}"
        raise ValueError(f"--text_column_names and --label_column_name must name each column once, got {given}.")
    table = gathered(source, table, texts, columns)
    kind = args.problem_type or problem_of(table, columns)
    if len(columns) > 1 and kind != MULTI:
        raise ValueError(f"--label_column_name must name one column for --problem_type {kind}, got {len(columns)}.")
    name = ",".join(columns)
    labels = columns if len(columns) > 1 else PROBLEMS[kind].names(source, table, name)
    task = Task(Path(source).stem, tuple(texts), tuple(labels), name, problem_type=kind)
    data = {"train": rows_of(source, table, task)}
    for split, asked in (("validation", args.validation_file), ("test", args.test_file)):
        # The other splits of a folder are taken where no file is given.
        own = [str(path) for path in Path(source).glob(f"{split}.*") if path.suffix.lower() in SUFFIXES]
        if file := asked or next(iter(own), None):
            data[split] = rows_of(file, gathered(file, read_table(file), texts, columns), task)
        elif split == "validation":
            data["train"], data["validation"] = held_out(data["train"], task, seed)
    return task, data


def gathered(source: str, table: list[Cells], texts: list[str], columns: list[str]) -> list[Cells]:
    """The table; where several columns say which labels a row has, with a column of lists of these."""
    check_columns(source, table, [*texts, *columns])
    if len(columns) == 1:
        return table
    lists = ([name for name in columns if flag(place, row, name)] for place, row in placed(source, table))
    return [row | {",".join(columns): names} for row, names in zip(table, lists, strict=True)]


def rows_of(source: str, table: list[Cells], task: Task) -> list[Row]:
    label, rows = PROBLEMS[task.problem_type].label, placed(source, table)
    return [Row(texts_of(place, row, task.fields), label(place, row, task)) for place, row in rows]


def placed(source: str, table: list[Cells]) -> list[tuple[str, Cells]]:
    """The rows, and what a sentence about one calls it."""
    return [(f"{source}, row {i}", row) for i, row in enumerate(table, start=1)]


def held_out(rows: list[Row], task: Task, seed: int) -> tuple[list[Row], list[Row]]:
    """Nine tenths and a tenth of the rows, of a single label with the same shares of every one."""
    tenth, few = round(len(rows) / 10), "too few to keep some for validation."
    if task.problem_type != SINGLE:
        if len(rows) < 2:
            raise ValueError(f"--validation_file is missing, and there is one row: {few}")
        train, validation = train_test_split(rows, test_size=max(1, tenth), random_state=seed)
        return train, validation
    gold = [row.label for row in rows]
    try:
        size = max(len(task.labels), tenth)
        train, validation = train_test_split(rows, test_size=size, random_state=seed, stratify=gold)
    except ValueError:  # a label has a single row, or there are fewer rows than labels
        rare = min(range(len(task.labels)), key=gold.count)
        raise ValueError(
            f"--validation_file is missing, and label {task.labels[rare]!r} has {gold.count(rare)} of {len(rows)} "
            f"rows: {few}"
        ) from None
    return train, validation
