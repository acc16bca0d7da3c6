"""Tables: the rows of a file, a folder of splits or a dataset of the Hub, by column."""

import contextlib
import csv
import json
import logging
import tempfile
from pathlib import Path
from typing import Any


# suffix -> how cells are told apart; a .tsv has no quotation marks but its texts' own, and neither tabs nor newlines
CELLS: dict[str, dict[str, Any]] = {".csv": {}, ".tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE}}
SUFFIXES = (*CELLS, ".json", ".jsonl", ".parquet", ".txt")
SPLITS = ("test", "validation", "dev", "train")  # in the order in which one is taken to evaluate on


def read_table(data: str, split: str | None = None) -> list[dict[str, Any]]:
    """The rows of a table, by column.

    Args:
        data: a file, .csv or .tsv with a header, .json, a list of objects, .jsonl, an object a line, .parquet, or .txt,
            a text, a tab and a label a line (columns "text" and "label"); a folder of such files named after their
            splits; or a dataset's id on the Hub.
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
    tables = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
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
    if suffix in (".json", ".jsonl"):
        return _objects(path.read_text(encoding="utf-8-sig"))
    if path.is_file() and suffix != ".parquet":
        raise ValueError(f"a file must end with one of {', '.join(SUFFIXES)}")
    if not path.is_file() and (suffix == ".parquet" or len(path.parts) > 2):
        raise ValueError("there is no such file or folder")
    import datasets

    with _quiet(datasets), tempfile.TemporaryDirectory() as cache:
        if path.is_file():
            options: Any = {"data_files": str(path), "cache_dir": cache}
            return _named(datasets.load_dataset("parquet", **options)["train"])
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
    rows, names = [], []
    try:
        names = list(reader.fieldnames or ())
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"the header has {twice[0]!r} twice")
        for row in reader:
            if None in row or None in row.values():
                got = sum(value is not None for name, value in row.items() if name is not None) + len(row.get(None, ()))
                raise ValueError(f"line {reader.line_num} has {got} cells, and the header {len(names)}")
            rows.append(row)
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from None
    return rows


def _objects(text: str) -> list[dict[str, Any]]:
    """Of a JSON list, or of JSON lines."""
    try:
        content = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as whole:
        content = []
        for number, line in enumerate(text.split("\n"), start=1):  # U+2028 and its like end no line
            try:
                content += [json.loads(line)] if line.strip() else []
            except json.JSONDecodeError as error:
                if not content:
                    raise whole from None  # which names the line of a list that is broken
                raise ValueError(f"line {number} is not JSON: {error.msg}, column {error.colno}") from None
    return objects(content if isinstance(content, list) else [content])  # JSON lines may be one line


def objects(content: Any) -> list[dict[str, Any]]:
    """What is read of a JSON file, if it is a list of objects."""
    if not isinstance(content, list):
        raise ValueError(f"it must hold a list of rows, got {type(content).__name__}")
    for i, row in enumerate(content, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"row {i} must be a JSON object, got {type(row).__name__}")
    return content


def _tabbed(text: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
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
