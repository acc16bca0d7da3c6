"""The tasks of AdvGLUE, with GLUE's fields and labels, and the rows to evaluate on."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from imbert_hf.evaluation.report import at_least


@dataclass(frozen=True)
class Task:
    """A task: its text fields, and the names of its labels in the order of the data's integers, GLUE's or a model's."""

    name: str
    fields: tuple[str, ...]
    labels: tuple[str, ...]
    label_column: str = "label"
    problem_type: str = "single_label_classification"  # as Transformers has them

    @property
    def own(self) -> bool:
        """Whether it is none of GLUE's, but of a table of the user's."""
        return self is not TASKS.get(self.name)


_NLI = ("entailment", "neutral", "contradiction")
TASKS = {
    task.name: task
    for task in (
        Task("sst2", ("sentence",), ("negative", "positive")),
        Task("qqp", ("question1", "question2"), ("not_duplicate", "duplicate")),
        Task("mnli", ("premise", "hypothesis"), _NLI),
        Task("mnli-mm", ("premise", "hypothesis"), _NLI),
        Task("qnli", ("question", "sentence"), ("entailment", "not_entailment")),
        Task("rte", ("sentence1", "sentence2"), ("entailment", "not_entailment")),
    )
}
HUB = "AI-Secure/adv_glue"


def find_task(name: str) -> Task:
    if name not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {name!r}.")
    return TASKS[name]


@dataclass(frozen=True)
class Row:
    """One example.

    Attributes:
        texts: the task's fields, in its order.
        label: GLUE's integer.
        original: the texts before they were attacked, where the data tells; else None.
        construction: "word", "sentence" or "human", where annotated.
        method: the attack that made the row, where annotated.
    """

    texts: tuple[str, ...]
    label: int
    original: tuple[str, ...] | None = None
    construction: str | None = None
    method: str | None = None


def read_rows(data: str | Path, task: Task, *, limit: int | None = None, seed: int = 0) -> list[Row]:
    """Rows of a task from a file, or from the Hub.

    Args:
        data: a JSON file in AdvGLUE's format (task -> list of rows: dev.json, dev_ann.json, test_ann.json), a JSON
            list of rows, JSON lines in GLUE's fields, or the Hub id "AI-Secure/adv_glue".
        task: whose fields and labels are read.
        limit: keep that many rows, drawn with `seed` and kept in the file's order; None: all.

    Raises:
        ValueError: the file cannot be read, lacks the task, is empty, or a row lacks a text or a label of the task.
    """
    if limit is not None:
        at_least(1, max_rows=limit)
    found = _from_hub(task) if str(data) == HUB else _from_file(Path(data), task)
    rows = [_row(place, row, task) for place, row in found]
    if not rows:
        raise ValueError(f"{data} holds no row of {task.name}.")
    return drawn(rows, limit, seed)


def drawn(rows: Sequence[Any], limit: int | None, seed: int) -> list[Any]:
    """`limit` of the rows, drawn with `seed` and kept in their order; None: all."""
    if limit is None or limit >= len(rows):
        return list(rows)
    return [rows[i] for i in sorted(numpy.random.default_rng(seed).choice(len(rows), limit, replace=False))]


def _from_hub(task: Task) -> Iterable[tuple[str, Any]]:
    import datasets

    name = "adv_" + task.name.replace("-mm", "_mismatched")
    try:
        rows = datasets.load_dataset(HUB, name, split="validation")
    except (OSError, ValueError) as error:
        raise ValueError(f"{HUB} ({name}) cannot be loaded, pass a file: {str(error).splitlines()[0]}") from None
    return ((f"{HUB}, row {i}", row) for i, row in enumerate(rows))


def _from_file(path: Path, task: Task) -> Iterable[tuple[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # of Windows, too
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if not text.strip():
        raise ValueError(f"{path} is empty; it must hold rows of {task.name}.")
    try:
        content = json.loads(text)
    except ValueError:
        return _json_lines(path, text)
    if isinstance(content, dict) and {*task.fields, "label"} & set(content):  # JSON lines, of one line
        content = [content]
    if isinstance(content, dict):
        if task.name not in content:
            there = ", ".join(name for name in content if name in TASKS) or "none of AdvGLUE's"
            raise ValueError(f"{path} has no task {task.name!r}; the tasks there: {there}.")
        content = content[task.name]
    if not isinstance(content, list):
        raise ValueError(f"{path} must hold a list of rows of {task.name}, got {type(content).__name__}.")
    return ((f"{path}, {task.name} row {i}", row) for i, row in enumerate(content))


def _json_lines(path: Path, text: str) -> Iterable[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield f"{path}, line {number}", json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}.") from None


def _row(place: str, row: Any, task: Task) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{place} must be a JSON object, got {type(row).__name__}.")
    for name in task.fields:
        if not isinstance(row.get(name), str):
            raise ValueError(f"{place}: {name!r} must be a text, got {row.get(name)!r}.")
    if not any(row[name].strip() for name in task.fields):  # one of a pair may be
        raise ValueError(f"{place}: {', '.join(task.fields)} must hold a text, got blanks.")
    label = row.get("label")
    if type(label) is not int or not 0 <= label < len(task.labels):
        allowed = ", ".join(f"{i} ({name})" for i, name in enumerate(task.labels))
        raise ValueError(f"{place}: 'label' must be one of {allowed}, got {label!r}.")
    originals = [row.get(f"original_{name}") for name in task.fields]
    return Row(
        texts=tuple(row[name] for name in task.fields),
        label=label,
        # A pair is attacked in one of its texts, and only that one has an original.
        original=tuple(o or row[n] for o, n in zip(originals, task.fields, strict=True)) if any(originals) else None,
        construction=row.get("data_construction"),
        method=row.get("method"),
    )
