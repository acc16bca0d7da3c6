"""Labelled texts of one's own: any table that `datasets` reads, and the task that its columns make."""

import contextlib
import csv
import logging
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imbert_hf.evaluation.data.tasks import Row, Task


# suffix -> how cells are told apart; a .tsv has no quotation marks but its texts' own, and neither tabs nor newlines
CELLS: dict[str, dict[str, Any]] = {".csv": {}, ".tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE}}
READERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}  # suffix -> the reader of `datasets`
SPLITS = ("test", "validation", "dev", "train")  # in the order in which one is taken to evaluate on


def read_table(data: str, split: str | None = None) -> list[dict[str, Any]]:
    """The rows of a table, by column.

    Args:
        data: a file, .csv or .tsv with a header, .json, .jsonl, .parquet, or .txt, a text, a tab and a label a line
            (columns "text" and "label"); a folder of such files named after their splits; or a dataset's id on the Hub.
        split: of a folder or a dataset; None: the first there is of SPLITS.

    Raises:
        ValueError: it cannot be read, has no such split, or holds no row. The message names the file, and the line
            where the reader tells it.
    """
    path = Path(data)
    if path.is_dir():
        path, split = _of_split(path, split), None
    try:
        rows = _rows(path, split)
    except Exception as error:  # of pandas, pyarrow, the Hub: each raises its own
        while error.__cause__ is not None and "generating the dataset" in str(error):
            error = error.__cause__  # type: ignore[assignment]
        why = " ".join(str(getattr(error, "strerror", None) or error).split()).rstrip(".")
        raise ValueError(f"{path} cannot be read: {why[:300]}.") from None
    if not rows:
        raise ValueError(f"{path} holds no row.")
    return rows


def _of_split(folder: Path, split: str | None) -> Path:
    tables = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in {*CELLS, *READERS, ".txt"}]
    files = {path.stem: path for path in tables}
    if len(files) < len(tables):
        raise ValueError(f"{folder} must hold one table a split, got {', '.join(path.name for path in tables)}.")
    found = next((name for name in ([split] if split else SPLITS) if name in files), None)
    if found is None:
        there = ", ".join(path.name for path in files.values()) or "no table"
        raise ValueError(f"{folder} must hold {split or ' or '.join(SPLITS)} as a table, got {there}.")
    return files[found]


def _rows(path: Path, split: str | None) -> list[dict[str, Any]]:
    suffix = path.suffix.lower()
    if suffix in CELLS:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _cells(csv.DictReader(file, **CELLS[suffix], strict=True))
    if suffix == ".txt":
        return _tabbed(path.read_text(encoding="utf-8-sig"))
    if path.is_file() and path.stat().st_size == 0:
        return []
    if path.is_file() and suffix not in READERS:
        raise ValueError(f"a file must end with one of {', '.join([*CELLS, *READERS, '.txt'])}")
    if not path.is_file() and (suffix in READERS or len(path.parts) > 2):
        raise ValueError("there is no such file or folder")
    import datasets

    with _quiet(datasets), tempfile.TemporaryDirectory() as cache:
        if path.is_file():
            options: Any = {"data_files": str(path), "cache_dir": cache}
            return _named(datasets.load_dataset(READERS[suffix], **options)["train"])
        found = datasets.load_dataset(str(path))
        chosen = split or next((name for name in SPLITS if name in found), next(iter(found)))
        if chosen not in found:
            raise ValueError(f"it has no split {chosen!r}, but {', '.join(found)}")
        return _named(found[chosen])


def _named(rows: Any) -> list[dict[str, Any]]:
    """With the names of a column of class labels, or of lists of these, in place of integers, no model's."""
    kinds = {column: getattr(kind, "feature", kind) for column, kind in rows.features.items()}
    names = {column: kind.int2str for column, kind in kinds.items() if hasattr(kind, "int2str")}

    def named(column: str, value: Any) -> Any:
        if isinstance(value, list):
            return [named(column, one) for one in value]
        return names[column](value) if column in names and value is not None and value >= 0 else value

    return [{column: named(column, value) for column, value in row.items()} for row in rows.to_list()]


def _cells(reader: csv.DictReader) -> list[dict[str, Any]]:
    """Cells are texts: "NA", "1" and "" are what they look like."""
    rows = []
    try:
        for row in reader:
            if None in row or None in row.values():
                got = sum(value is not None for name, value in row.items() if name is not None) + len(row.get(None, ()))
                raise ValueError(
                    f"line {reader.line_num} has {got} cells, and the header {len(reader.fieldnames or ())}"
                )
            rows.append(row)
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from None
    return rows


def _tabbed(text: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            text, tab, label = line.rpartition("\t")
            if not tab:
                raise ValueError(f"line {number} must be a text, a tab and a label, got {line[:60]!r}")
            rows.append({"text": text, "label": label})
    return rows


@contextlib.contextmanager
def _quiet(datasets: Any):
    """Without progress bars, and without what is logged beside an exception."""
    bars, loggers = (
        datasets.are_progress_bars_disabled(),
        [logging.getLogger(n) for n in ("datasets", "huggingface_hub")],
    )
    levels = [logger.level for logger in loggers]
    datasets.disable_progress_bars()
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()


def own_task(data: str, text_columns: Sequence[str], label_column: str, labels: Sequence[str]) -> Task:
    """The task of a table: its text columns, one or two, and what the model's outputs are called, in their order."""
    if not 1 <= len(text_columns) <= 2 or len({*text_columns}) < len(text_columns):
        raise ValueError(f"--text-column must be given once or, for pairs, twice, got {', '.join(text_columns)}.")
    return Task(Path(data).stem, tuple(text_columns), tuple(labels), label_column)


def own_rows(data: str, task: Task, split: str | None = None) -> list[Row]:
    """The rows of a table as those of a task.

    Raises:
        ValueError: what `read_table` raises; a column is missing; a row has no text or a label that is no label of the
            task. Labels are names, whatever their case and punctuation, or indices of the model's outputs.
    """
    rows = read_table(data, split)
    check_columns(data, rows, [*task.fields, task.label_column])
    return [_own_row(f"{data}, row {i}", row, task) for i, row in enumerate(rows, start=1)]


def own_texts(data: str, text_columns: Sequence[str], split: str | None = None) -> list[tuple[str, ...]]:
    """The texts of a table that need no label."""
    rows = read_table(data, split)
    check_columns(data, rows, text_columns)
    return [texts_of(f"{data}, row {i}", row, text_columns) for i, row in enumerate(rows, start=1)]


def check_columns(data: str, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    if missing := [name for name in columns if name not in rows[0]]:
        raise ValueError(f"{data} has no column {missing[0]!r}; the columns there: {', '.join(map(repr, rows[0]))}.")


def _own_row(place: str, row: dict[str, Any], task: Task) -> Row:
    return Row(texts_of(place, row, task.fields), label_index(place, row[task.label_column], task))


def texts_of(place: str, row: dict[str, Any], columns: Sequence[str]) -> tuple[str, ...]:
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
    """A label without case and punctuation, which no two of a model's may share."""
    return re.sub(r"\W|_", "", str(label).casefold())


def label_index(place: str, value: Any, task: Task) -> int:
    """The index of the model's output that a label of the data names."""
    text = str(value).strip()
    for same in (str.strip, plain_name):
        found = [i for i, label in enumerate(task.labels) if same(label) == same(text)]
        if len(found) == 1:
            return found[0]
    if not found and re.fullmatch(r"\d+(\.0)?", text) and int(float(text)) < len(task.labels):
        return int(float(text))
    what = "is several of" if found else "is none of"
    raise ValueError(
        f"{place}: {task.label_column!r} {value!r} {what} the model's labels, {', '.join(task.labels)}; --label-map "
        f"{text or 'NAME'}=INDEX says which output it is."
    )
