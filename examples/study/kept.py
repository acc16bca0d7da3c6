"""What is kept of a study's runs: a file of JSON lines for each task, one line a run, sorted by name."""

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from study.plan import Run, digest_of


FIELDS = ("name", "settings", "stages", "seconds", "problem")  # that every line has
Lines = dict[str, tuple[str, str]]  # digest of a run's settings -> its name and its line


def read_run(folder: Path, run: Run) -> dict[str, Any]:
    """What is kept of a run: settings, stages, their seconds, and the problem that ended it, if any."""
    path = file_of(folder, run)
    try:
        stat = path.stat()
    except FileNotFoundError:
        lines: Lines = {}
    else:
        lines = _lines_at(path, stat.st_mtime_ns, stat.st_ino, stat.st_size)
    if run.digest in lines:
        return json.loads(lines[run.digest][1])
    return nothing_of(run)


def nothing_of(run: Run) -> dict[str, Any]:
    return {"settings": run.settings, "stages": {}, "seconds": {}, "problem": None}


def write_run(folder: Path, run: Run, kept: dict[str, Any]) -> None:
    """Puts the run's line in its task's file, whole or not at all, beside what other processes have put there."""
    path, part = file_of(folder, run), folder / f".{run.task}.part"
    with FileLock(folder / f".{run.task}.lock"):
        lines = read_lines(path) if path.exists() else {}
        old, _ = lines.pop(run.digest, (run.name, ""))
        # Settings that the name does not tell apart.
        name = f"{old}, {run.digest[:6]}" if old in {other for other, _ in lines.values()} else old
        rest = {key: value for key, value in (nothing_of(run) | kept).items() if key != "name"}
        text = json.dumps(rest, sort_keys=True)
        lines[run.digest] = name, f'{{"name": {json.dumps(name)}, {text[1:]}'  # first, for who reads the file
        with part.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for _, line in sorted(lines.values()))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)


def file_of(folder: Path, run: Run) -> Path:
    return folder / f"{run.task}.jsonl"


def read_lines(path: Path) -> Lines:
    """The lines of a file.

    Raises:
        ValueError: one is no kept run, or is a second one of the same settings.
    """
    lines: Lines = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            name, settings = [json.loads(line)[field] for field in FIELDS][:2]
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{path}: line {number} must be a JSON object with {', '.join(FIELDS)}.") from None
        if (digest := digest_of(settings)) in lines:
            raise ValueError(f"{path}: line {number}, {name!r}, has the settings of {lines[digest][0]!r}; keep one.")
        lines[digest] = name, line.decode()
    return lines


@lru_cache(maxsize=16)
def _lines_at(path: Path, *stamp: int) -> Lines:
    """The lines, read again where the file was replaced: a report asks for hundreds of runs of one file."""
    return read_lines(path)
