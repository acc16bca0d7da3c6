"""Tasks, those of AdvGLUE with GLUE's fields and labels or of a table of one's own, and their rows."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from imbert_hf.evaluation.data.tables import objects, read_table
from imbert_hf.evaluation.report import at_least


@dataclass(frozen=True)
class Task:
    """A task: the columns of its texts, one or two, and of its label, and the labels' names.

    Attributes:
        name: what tables call it.
        fields: columns of the texts.
        labels: names in the order of the data's integers, GLUE's or a model's.
        label_column: of the label.
        originals: columns of the texts before they were attacked, in the order of `fields`; () where there are none.
        problem_type: as Transformers has them.
    """

    name: str
    fields: tuple[str, ...]
    labels: tuple[str, ...]
    label_column: str = "label"
    originals: tuple[str, ...] = ()
    problem_type: str = "single_label_classification"

    @property
    def own(self) -> bool:
        """Whether it is none of GLUE's, but of a table of the user's."""
        return self is not TASKS.get(self.name)


_NLI = ("entailment", "neutral", "contradiction")
TASKS = {
    name: Task(name, fields, labels, originals=tuple(f"original_{field}" for field in fields))
    for name, fields, labels in (
        ("sst2", ("sentence",), ("negative", "positive")),
        ("qqp", ("question1", "question2"), ("not_duplicate", "duplicate")),
        ("mnli", ("premise", "hypothesis"), _NLI),
        ("mnli-mm", ("premise", "hypothesis"), _NLI),
        ("qnli", ("question", "sentence"), ("entailment", "not_entailment")),
        ("rte", ("sentence1", "sentence2"), ("entailment", "not_entailment")),
    )
}
HUB = "AI-Secure/adv_glue"


def find_task(name: str) -> Task:
    if name not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {name!r}.")
    return TASKS[name]


def own_task(
    data: str, text_columns: Sequence[str], label_column: str, labels: Sequence[str], originals: Sequence[str] = ()
) -> Task:
    """The task of a table: its columns, and what the model's outputs are called, in their order."""
    if not 1 <= len(text_columns) <= 2 or len({*text_columns}) < len(text_columns):
        raise ValueError(f"--text-column must be given once or, for pairs, twice, got {', '.join(text_columns)}.")
    if len(originals) not in (0, len(text_columns)):
        raise ValueError(f"--original-column must be given once for each --text-column, got {', '.join(originals)}.")
    return Task(Path(data).stem, tuple(text_columns), tuple(labels), label_column, tuple(originals))


@dataclass(frozen=True)
class Row:
    """One example.

    Attributes:
        texts: the task's fields, in its order.
        label: GLUE's integer, or the index of a model's output.
        original: the texts before they were attacked, where the data tells; else None.
        construction: "word", "sentence" or "human", where annotated.
        method: the attack that made the row, where annotated.
        index: of the row in the data, from 0.
    """

    texts: tuple[str, ...]
    label: int
    original: tuple[str, ...] | None = None
    construction: str | None = None
    method: str | None = None
    index: int | None = None


def read_rows(
    data: str | Path, task: Task, split: str | None = None, *, limit: int | None = None, seed: int = 0
) -> list[Row]:
    """The rows of a table as those of a task.

    Args:
        data: what `read_table` reads; for a task of GLUE also a JSON file of AdvGLUE, task -> list of rows (dev.json,
            dev_ann.json, test_ann.json), and the Hub id "AI-Secure/adv_glue". Columns `method` and `data_construction`
            are those of AdvGLUE.
        task: whose columns and labels are read.
        split: of a folder or a dataset of the Hub; None: as `read_table` chooses.
        limit: keep that many rows, drawn with `seed` and kept in the data's order; None: all.

    Raises:
        ValueError: what `read_table` raises; a column is missing; a row has no text or a label that is no label of the
            task. Labels are names, whatever their case and punctuation, or indices.
    """
    if limit is not None:
        at_least(1, max_rows=limit)
    rows = _of_hub(task) if str(data) == HUB and not task.own else read_table(str(data), split)
    if not task.own and len(rows) == 1 and (there := [name for name in rows[0] if name in TASKS]):
        if task.name not in there:
            raise ValueError(f"{data} has no task {task.name!r}; the tasks there: {', '.join(there)}.")
        try:
            rows = objects(rows[0][task.name])
        except ValueError as error:
            raise ValueError(f"{data}, {task.name}: {error}.") from None
        if not rows:
            raise ValueError(f"{data} holds no row of {task.name}.")
    check_columns(data, rows, [*task.fields, task.label_column, *(task.originals if task.own else ())])
    return drawn([_row(f"{data}, row {i + 1}", i, row, task) for i, row in enumerate(rows)], limit, seed)


def _of_hub(task: Task) -> list[dict[str, Any]]:
    import datasets

    name = "adv_" + task.name.replace("-mm", "_mismatched")
    try:
        return datasets.load_dataset(HUB, name, split="validation").to_list()
    except (OSError, ValueError) as error:
        raise ValueError(f"{HUB} ({name}) cannot be loaded, pass a file: {str(error).splitlines()[0]}") from None


def drawn(rows: Sequence[Any], limit: int | None, seed: int) -> list[Any]:
    """`limit` of the rows, drawn with `seed` and kept in their order; None: all."""
    if limit is None or limit >= len(rows):
        return list(rows)
    return [rows[i] for i in sorted(numpy.random.default_rng(seed).choice(len(rows), limit, replace=False))]


def own_texts(data: str, text_columns: Sequence[str], split: str | None = None) -> list[tuple[str, ...]]:
    """The texts of a table that need no label."""
    rows = read_table(data, split)
    check_columns(data, rows, text_columns)
    return [texts_of(f"{data}, row {i}", row, text_columns) for i, row in enumerate(rows, start=1)]


def check_columns(data: str | Path, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    if missing := [name for name in columns if name not in rows[0]]:
        raise ValueError(f"{data} has no column {missing[0]!r}; the columns there: {', '.join(map(repr, rows[0]))}.")


def _row(place: str, index: int, row: dict[str, Any], task: Task) -> Row:
    texts = texts_of(place, row, task.fields)
    original = None
    # A pair is attacked in one of its texts, and only that one needs an original.
    if any(row.get(name) for name in task.originals):
        known = {name: row.get(name) or text for name, text in zip(task.originals, texts, strict=True)}
        original = texts_of(place, known, task.originals)
    return Row(
        texts,
        label_index(place, row.get(task.label_column), task),
        original,
        construction=_told(row.get("data_construction")),
        method=_told(row.get("method")),
        index=index,
    )


def _told(value: Any) -> str | None:
    return None if value is None else str(value)


def texts_of(place: str, row: dict[str, Any], columns: Sequence[str]) -> tuple[str, ...]:
    for name in columns:
        if name not in row:  # of JSON, whose rows may differ
            raise ValueError(f"{place} has no {name!r}.")
    texts = tuple("" if row[name] is None else row[name] for name in columns)
    for name, text in zip(columns, texts, strict=True):
        if not isinstance(text, str):
            raise ValueError(f"{place}: {name!r} must be a text, got {text!r:.60}.")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{place}: {name!r} holds half a character, a lone surrogate, in {text!r:.60}.") from None
    if not any(text.strip() for text in texts):  # one of a pair may be empty
        raise ValueError(f"{place}: {', '.join(columns)} must hold a text, got blanks.")
    return texts


def plain_name(label: Any) -> str:
    """A label without case and punctuation, or a number as it is best written; no two of a model's may share it."""
    text = str(label).strip()
    if is_number(text):
        return str(int(float(text)) if float(text).is_integer() else float(text))
    return re.sub(r"\W|_", "", text.casefold())


def is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?\d+(\.\d*)?", text) is not None


def matching(value: Any, labels: Sequence[str]) -> list[int]:
    """The indices of the labels that a label of the data names: by the letter, or else by `plain_name`."""
    text = str(value).strip()
    exact = [i for i, label in enumerate(labels) if label.strip() == text]
    return exact if len(exact) == 1 else [i for i, label in enumerate(labels) if plain_name(label) == plain_name(text)]


def label_index(place: str, value: Any, task: Task) -> int:
    """The index of the label that a label of the data names, or is where no label's name is a number."""
    text, found = str(value).strip(), matching(value, task.labels)
    if len(found) == 1:
        return found[0]
    index = int(plain_name(text)) if re.fullmatch(r"\d+(\.0*)?", text) else len(task.labels)
    if not found and index < len(task.labels) and not any(map(is_number, task.labels)):
        return index
    what = "is several of" if found else "is none of"
    labels, hint = ", ".join(f"{i} ({label})" for i, label in enumerate(task.labels)), ""
    if task.own:
        labels = f"the model's labels, {', '.join(task.labels)}"
        hint = f"; --label-map {text or 'NAME'}=INDEX says which output it is"
    raise ValueError(f"{place}: {task.label_column!r} {value!r:.60} {what} {labels}{hint}.")
