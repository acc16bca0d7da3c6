"""What a run leaves: a journal of its finished parts, files, and a table on the screen."""

import csv
import hashlib
import io
import json
import math
import os
import platform
import re
import reprlib
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

import imbert_hf
from imbert_hf.evaluation import processes


if TYPE_CHECKING:  # it takes a second
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Report:
    """The outcome of a subcommand.

    Attributes:
        data: what is written as JSON, beside `settings`: the arguments, versions and seeds.
        text: what is printed, tables and warnings.
        figure: draws the picture.
        pairs: rows of the table that --export writes.
        page: makes the HTML that --html writes.
    """

    data: dict[str, Any]
    text: str
    figure: Callable[[], "Figure"] | None = None
    pairs: Sequence[dict[str, Any]] = ()
    page: Callable[[], str] = str


# A part's key and what computes it -> its value, new or kept.
Keep = Callable[[dict[str, Any], Callable[[], Any]], Any]


def compute_now(key: dict[str, Any], compute: Callable[[], Any]) -> Any:
    """A Keep that keeps nothing."""
    return compute()


class Journal:
    """Finished parts of a run, kept on disk as JSON lines, so that a run that was stopped goes on where it stopped.

    A part is known by its key, which must name all that it depends on: a part is then never taken for another's, and a
    run with one model more computes that model alone.

    Args:
        path: the file; None: nothing is kept.
        common: what every part depends on, such as versions and device.

    Attributes:
        lost: whether a part could not be written; the run goes on without it.
    """

    def __init__(self, path: Path | None = None, common: dict[str, Any] | None = None):
        self.path, self.common, self.lost = path, common or {}, False
        self.parts: dict[str, Any] = {}
        if path is not None and path.is_file():
            for line in path.read_bytes().splitlines():
                try:
                    record = json.loads(line)
                    self.parts[record["part"]] = record["value"]
                except (ValueError, TypeError, KeyError):  # being written when the run was stopped
                    continue

    def part(self, key: dict[str, Any], compute: Callable[[], Any]) -> Any:
        """The value kept under `key`, or else what `compute` returns, a value that JSON can hold."""
        name = hashlib.sha256(json.dumps([key, self.common], sort_keys=True, default=str).encode()).hexdigest()
        processes.agree(name)
        if name not in self.parts:
            self.parts[name] = json.loads(json.dumps(processes.of_main(compute())))  # times differ
            line = json.dumps({"part": name, "value": self.parts[name]})
            processes.share(self._write, [line])  # of which the main process is the first
        return self.parts[name]

    def _write(self, line: str) -> None:
        if self.path is None:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"\n{line}\n")  # a first newline ends a line that was cut short
        except OSError as error:  # a full disk, which may not be full for the next part
            if not self.lost:
                print(f"warning: parts are not kept in {self.path}: {error.strerror}.", file=sys.stderr)
            self.lost = True

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """Of Python and of the packages that numbers depend on."""
    packages = {name: version(name) for name in ("torch", "transformers", "numpy", "scipy", "matplotlib")}
    packages |= {"sklearn": version("scikit-learn"), "imbert_hf": imbert_hf.__version__}
    return {"python": platform.python_version(), **packages}


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


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as aligned text; columns in the order in which they first appear, floats with 4 digits."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return tabulate([[row.get(c) for c in columns] for row in rows], columns, floatfmt=".4g", missingval="n/a")


# What words of the tables mean.
WORDS = {
    "majority": "the accuracy of always answering the most frequent label",
    "predicted": "how often each label is answered, percent",
    "McNemar p": "of an exact test that the two models are equally good",
    "resolved": "the interval excludes 0, and p is below 0.05 where there is one",
    "n/a": "not measured, or no row to measure it on",
}


def filled(page: str, kind: str, block: Callable[[str], str]) -> str:
    """The text of a page in which block(NAME) stands between each `<!-- kind: NAME -->` and its `<!-- /kind -->`."""

    def marked(match: re.Match[str]) -> str:
        return f"<!-- {kind}: {match[1]} -->\n{block(match[1])}<!-- /{kind} -->"

    return re.sub(rf"<!-- {kind}: (.+?) -->\n.*?<!-- /{kind} -->", marked, page, flags=re.DOTALL)


def words_in(text: str, words: Iterable[str]) -> list[str]:
    return [word for word in words if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text)]


def explained(parts: Iterable[str], words: dict[str, str]) -> str:
    """The parts of a text, each of `words` with its meaning below the first part that shows it."""
    left, shown = words | WORDS, []
    for part in parts:
        found = words_in(part, left)
        shown += [part, *(["\n".join(f"{word.strip()}: {left.pop(word)}." for word in found)] if found else [])]
    return "\n\n".join(shown)


def finite(values: Iterable[Any]) -> list[float | None]:
    """Numbers as JSON can hold them: None for what is not finite."""
    return [value if math.isfinite(value) else None for value in map(float, values)]


def percent(value: float | None) -> float | None:
    """A share as percent with one digit, for tables."""
    return None if value is None else round(100 * value, 1)


def at_least(least: int, **values: int) -> None:
    """Raises ValueError for the first of `values`, by name, that is less."""
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} must be an integer >= {least}, got {value!r}.")


STANDARD_OUTPUT = Path("-")


def is_stream(path: Path) -> bool:
    """Whether it is standard output, a device or a pipe: what is written there replaces nothing."""
    return path in (STANDARD_OUTPUT, Path("/dev/stdout"), Path("/dev/stderr")) or (
        path.exists() and not path.is_file() and not path.is_dir()
    )


def check_destination(path: Path | None, option: str, suffixes: Sequence[str] = ()) -> None:
    """Raises ValueError where a file cannot be written to `path`, or its suffix is none of `suffixes`."""
    if path is None or (path == STANDARD_OUTPUT and not suffixes):
        return
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"{option} {path} must end with one of {', '.join(suffixes)}.")
    folder = Path(os.path.realpath(path)).parent if path.is_symlink() else path.parent  # of what a link names
    if not folder.is_dir() and not is_stream(path):
        raise ValueError(f"{option} {path}: the folder {folder} does not exist.")
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder; it must name a file.")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise ValueError(f"{option} {path} cannot be written.")


def check_apart(files: dict[str, Path]) -> None:
    """Raises ValueError where two of `files`, by option, are one."""
    seen: dict[str, str] = {}
    for name, path in files.items():
        real = os.path.realpath("/dev/stdout" if path == STANDARD_OUTPUT else path)
        if real in seen:
            raise ValueError(f"--{seen[real]} and --{name} must name two files, got {path} twice.")
        seen[real] = name


def check_overwritten(files: dict[str, Path], settings: dict[str, Any]) -> None:
    """Raises ValueError where `files`, by option, are there and not of an earlier run of the same arguments."""
    there = {name: path for name, path in files.items() if path.exists() and not is_stream(path)}
    found: dict[str, Any] = {}
    if path := there.pop("output", None):
        try:
            found = {**json.loads(path.read_bytes())["settings"]}
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                f"--output {path} is there, and no result of this program; --overwrite replaces it."
            ) from None
        for name, value in json.loads(json.dumps(settings)).items():
            if name not in ("output", "export", "plot", "html", "quiet") and found.get(name) != value:
                known = reprlib.repr(found.get(name))  # which cuts what is long
                raise ValueError(f"--output {path} is a result of another {name}, {known}; --overwrite replaces it.")
    for name, path in there.items():
        if found.get(name) != str(path):
            raise ValueError(f"--{name} {path} is there; --overwrite replaces it.")


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` fill a file beside `path`, then puts it in place: whole or not at all. A stream is written to."""
    if is_stream(path):
        write(path)
        return
    path = Path(os.path.realpath(path))  # a link stays one
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, data: dict[str, Any]) -> None:
    # Without NaN, which is no JSON: what could not be measured is null.
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows of the same columns; texts in quotation marks, as they are."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0], quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_text(path: Path, text: str) -> None:
    if path == STANDARD_OUTPUT:
        print(text, end="", flush=True)
    else:
        write_whole(path, lambda part: part.write_text(text, encoding="utf-8", newline=""))
