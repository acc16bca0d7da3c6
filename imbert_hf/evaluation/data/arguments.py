"""Arguments that several subcommands share."""

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imbert_hf.evaluation.data.classifier import model_labels
from imbert_hf.evaluation.data.tables import SPLITS, SUFFIXES, read_table
from imbert_hf.evaluation.data.tasks import TASKS, Row, Task, find_task, own_task, read_rows
from imbert_hf.evaluation.report import table


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that every subcommand which runs a model has."""
    parser.add_argument("--batch-size", type=int, default=32, help="rows (default: %(default)s)")
    parser.add_argument("--max-length", type=int, help="tokens (default: the model's longest)")
    parser.add_argument("--max-rows", type=int, help="random rows of the data, by --seed (default: all)")
    parser.add_argument("--label-map", help="such as negative=0,positive=1: the model's outputs by the data's labels")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with a checkpoint")
    add_run_arguments(parser, "float32", "bfloat16", "float16")


def add_attack_arguments(parser: argparse.ArgumentParser) -> None:
    """Of a subcommand that attacks several models on the same data: which, on what, and where the texts go."""
    parser.add_argument(
        "--model", action="append", required=True, metavar="[NAME=]PATH", help="folder or Hub id; may be repeated"
    )
    add_data_arguments(parser)
    parser.add_argument(
        "--export",
        type=Path,
        metavar="FILE.csv",
        help="each attacked or noisy text beside its original, with both predictions; - prints them. The embedding "
        "attack makes no text and is left out",
    )


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """What to evaluate on: a task of GLUE, or a table of one's own."""
    parser.add_argument("--task", help=f"one of {', '.join(TASKS)}; without it --data is a table of your own")
    parser.add_argument(
        "--data",
        required=True,
        help=f"{', '.join(SUFFIXES)} (a text, a tab and a label a line), a folder of splits or a Hub id; with --task, "
        "its columns are GLUE's, or it is AdvGLUE's",
    )
    add_text_column(parser)
    parser.add_argument("--label-column", help="of --data (default: label)")
    parser.add_argument("--split", help="of a folder or Hub id (default: the first of " + ", ".join(SPLITS) + ")")


def add_text_column(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text-column", action="several", default=[], help="of --data; give it twice for pairs")


def read_data(args: argparse.Namespace, model: str) -> tuple[Task, list[Row]]:
    """The task that the arguments name, or that the columns and the labels of the checkpoint `model` make, and rows."""
    if args.task is None:
        return read_own(args, model)
    refuse_columns(args)
    return (task := find_task(args.task)), read_rows(args.data, task, limit=args.max_rows, seed=args.seed)


OWN = ("text_column", "original_column", "label_column", "split")  # arguments of a table of one's own


def refuse_columns(args: argparse.Namespace) -> None:
    if given := [name for name in OWN if getattr(args, name, None)]:
        option = f"--{given[0].replace('_', '-')}"
        raise ValueError(f"{option} is of a table of your own; --task has columns and labels of its own.")


def read_own(args: argparse.Namespace, model: str) -> tuple[Task, list[Row]]:
    """The task that the columns and the labels in the checkpoint `model` make, and its rows."""
    if not args.text_column:
        columns = ", ".join(map(repr, read_table(args.data, args.split)[0]))
        raise ValueError(f"--text-column is missing: it must name one or two columns of {args.data}, of {columns}.")
    labels = model_labels(model, parse_label_map(args.label_map, own=True), args.trust_remote_code)
    originals = getattr(args, "original_column", ())
    task = own_task(args.data, args.text_column, args.label_column or "label", labels, originals)
    return task, read_rows(args.data, task, args.split, limit=args.max_rows, seed=args.seed)


def add_run_arguments(parser: argparse.ArgumentParser, *dtypes: str) -> None:
    """The arguments of whatever computes; the first of `dtypes` is the default."""
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda where there is one)")
    parser.add_argument("--dtype", default=dtypes[0], choices=dtypes)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def parse_label_map(text: str | None, own: bool = False) -> dict[str, int] | None:
    """ "negative=0,positive=1" as a dictionary; of GLUE's labels, or of those of one's own data."""
    if text is None:
        return None
    try:
        pairs = [(name.strip(), int(index)) for name, index in (pair.split("=") for pair in text.split(","))]
    except ValueError:
        raise ValueError(f"--label-map must read like negative=0,positive=1, got {text!r}.") from None
    known = {name for name, _ in pairs} if own else {label for task in TASKS.values() for label in task.labels}
    indices = [index for _, index in pairs]
    if twice := [index for index in indices if own and indices.count(index) > 1]:
        raise ValueError(f"--label-map must use each index once, got {twice[0]} twice.")
    if wrong := [n for n, _ in pairs if not n or n not in known or sum(n == other for other, _ in pairs) > 1]:
        of = "" if own else f", of {', '.join(sorted(known))}"
        raise ValueError(f"--label-map must name each label once{of}, got {wrong[0]!r}.")
    return dict(pairs)


def load_options(args: argparse.Namespace) -> dict[str, Any]:
    """What load_classifier takes of the arguments above."""
    names = ("max_length", "trust_remote_code", "device", "dtype")
    own = bool(getattr(args, "text_column", None))
    return {"label_map": parse_label_map(args.label_map, own)} | {name: getattr(args, name) for name in names}


def numbers(option: str, text: str) -> list[float]:
    """Comma-separated numbers."""
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} must be numbers such as 0.1,0.2, got {text!r}.") from None


def digest(value: Any) -> str:
    """Tells contents apart, in the key of a journal's part."""
    return hashlib.sha256(repr(value).encode()).hexdigest()


def interval(value: float | None, ci: Sequence[float] | None) -> str | None:
    """A share and its interval as percent."""
    return None if value is None or ci is None else f"{100 * value:.1f} [{100 * ci[0]:.1f}, {100 * ci[1]:.1f}]"


def comparison_table(comparisons: Sequence[dict[str, Any]], of: str) -> str:
    """Paired differences; `of` names the key that says of what."""
    return table(
        [
            {
                "a": c["a"],
                "b": c["b"],
                "task": c["task"],
                of: c[of],
                "a - b [95 %]": interval(c["difference"], c["ci95"]),
                "McNemar p": c["mcnemar_p"],
                "": "resolved" if c["resolved"] else "not resolved",
            }
            for c in comparisons
        ]
    )


@dataclass(frozen=True)
class Spec:
    """A --model argument: the name in tables, the task that it is bound to, and where it lies."""

    name: str
    task: str | None
    path: str
    group: str  # whose results together make a score; "" for models that were given no name


def parse_models(texts: Sequence[str], task: str | None) -> list[Spec]:
    """The --model arguments of a run on one task, None: on a table of one's own."""
    specs = [parse_model(text) for text in texts]
    if len({spec.name for spec in specs}) < len(specs):
        raise ValueError(f"--model names must differ, got {', '.join(spec.name for spec in specs)}.")
    check_tasks(specs, task)
    return specs


def check_tasks(specs: Sequence[Spec], task: str | None) -> None:
    """Raises ValueError for a model that is bound to another task."""
    if wrong := [spec for spec in specs if spec.task not in (None, task)]:
        raise ValueError(f"--model {wrong[0].path} is of {wrong[0].task}, and --task is {task or 'not given'}.")


def parse_model(text: str) -> Spec:
    """PATH, NAME=PATH, TASK=PATH or NAME@TASK=PATH."""
    left, equals, path = text.partition("=")
    if not equals or "/" in left or Path(text).exists():  # a path may hold = itself
        return Spec(text, None, text, text)
    name, _, task = ("", "", left) if left in TASKS else left.partition("@")
    if not path or (task and task not in TASKS):
        raise ValueError(
            f"--model must be PATH, NAME=PATH, TASK=PATH or NAME@TASK=PATH, TASK of {', '.join(TASKS)}, got {text!r}."
        )
    return Spec(name or path, task or None, path, name)
