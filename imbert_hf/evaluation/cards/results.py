"""What the JSON of runs tells of one checkpoint, and of no other."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imbert_hf.configuration_imbert import IM_FIELDS
from imbert_hf.evaluation.check.measures import MEASURES
from imbert_hf.evaluation.data.loading import fingerprint
from imbert_hf.evaluation.data.tasks import HUB


_COMPARISON = ("a", "b", "difference", "ci95", "resolved")
# kind of JSON -> list in it -> what an entry must hold, beside the model and its fingerprint
_REQUIRED: dict[str, dict[str, tuple[str, ...]]] = {
    "advglue": {
        "results": ("task", "n", "accuracy", "accuracy_ci95", "majority_accuracy", "clean_accuracy"),
        "comparisons": ("task", *_COMPARISON),
    },
    "attack": {
        "embedding": ("task", "n", "clean_accuracy", "majority_accuracy", "curve", "checks"),
        "query": ("task", "attack", "n", "accuracy", "majority_accuracy", "accuracy_under_attack", "success_rate"),
        "noise": ("task", "kind", "strength", "n", "accuracy", "clean_accuracy", "majority_accuracy"),
        "comparisons": ("task", *_COMPARISON),
    },
    "check": {"results": ("model", "n", "macro_f1", *MEASURES), "comparisons": ("measure", *_COMPARISON)},
}
_WHOLE = {"stability": "summary", "cost": "cells"}  # kinds of JSON that are of one model, and where their numbers are
_TRAINING = ("task", "connection", "metrics", "rows", "seed", "steps", "arguments")


@dataclass
class Results:
    """What JSON files tell of one checkpoint.

    Attributes:
        entries: "advglue", "embedding", "query", "noise" or "check" -> the checkpoint's own entries.
        comparisons: those that the checkpoint is one side of, which is called "this checkpoint".
        stability: the summary of imbert-eval stability, or None.
        cost: the JSON of imbert-eval cost, or None.
        training: what examples/finetune.py wrote, or None.
        columns: names of the text columns, one or two, where data of one's own was read.
        warnings: what the files hold and a card does not show, and why.
    """

    entries: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    stability: dict[str, Any] | None = None
    cost: dict[str, Any] | None = None
    training: dict[str, Any] | None = None
    columns: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_results(folder: Path, paths: Iterable[Path]) -> Results:
    """Reads JSON files, known by their content: of imbert-eval's other commands, and of finetune.py.

    Results are the checkpoint's where their fingerprint is that of its files, wherever these lay. Without one they are
    taken, with a warning, for those of the folder that they name.

    Raises:
        ValueError: a file is none of these, lacks a key, or holds nothing of the checkpoint in `folder`.
    """
    found, mark = Results(), fingerprint(str(folder))
    for path in paths:
        content = read_json(path)
        settings = content.get("settings")
        command = settings.get("command") if isinstance(settings, dict) else None
        if "connection" in content and "arguments" in content:
            if found.training is not None:
                raise ValueError(f"{path} is a second training; a card shows one.")
            found.training = _check(path, content, _TRAINING)
            _check_training(folder, path, content, mark, found)
        elif command in _WHOLE:
            _check(path, content, (_WHOLE[command],))
            _own(folder, path, [{"model": content["settings"].get("model"), **content}], mark, found)
            if getattr(found, command) is not None:
                raise ValueError(f"{path} is a second result of {command}; a card shows one.")
            setattr(found, command, content if command == "cost" else content["summary"])
        elif command in _REQUIRED:
            _collect(folder, path, content, mark, found)
        else:
            kinds = ", ".join([*_REQUIRED, *_WHOLE])
            raise ValueError(f"{path} is no JSON of imbert-eval ({kinds}), nor of finetune.py.")
    return found


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {getattr(error, 'strerror', None) or error}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}.")
    return content


def _check(path: Path, entry: Any, keys: Iterable[str]) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ValueError(f"{path}: an entry must be a JSON object, got {type(entry).__name__}.")
    if missing := [key for key in keys if key not in entry]:
        raise ValueError(f"{path}: an entry lacks {missing[0]!r}.")
    return entry


def _check_training(folder: Path, path: Path, training: dict[str, Any], mark: str, found: Results) -> None:
    known = training.get("fingerprint")
    if known not in (None, mark):
        raise ValueError(f"{path} is of a training that saved other files than those in {folder} now.")
    columns = training["arguments"].get("data", {}).get("text_column_names")
    found.columns = columns.split(",") if columns else []
    if known is not None:
        return
    found.warnings.append(f"{path} has no fingerprint of what the training saved: it is taken for {folder}'s.")
    config, trained = read_json(folder / "config.json"), training.get("im_fields") or {}
    labels = [config.get("id2label", {}).get(str(i)) for i in range(len(training.get("labels", ())))]
    told = {name: (trained.get(name), config.get(name)) for name in IM_FIELDS}  # im_version is of the code, no setting
    told["labels"] = (training.get("labels", labels), labels)
    if wrong := next((name for name, (then, now) in told.items() if then != now), None):
        then, now = told[wrong]
        raise ValueError(
            f"{path} is of a training with {wrong} {then!r}, and {folder / 'config.json'} has {now!r}: it does not "
            "tell how this checkpoint was made."
        )


def _collect(folder: Path, path: Path, content: dict[str, Any], mark: str, found: Results) -> None:
    """Adds the checkpoint's own entries of a JSON of several models."""
    settings = content["settings"]
    command = settings["command"]
    required = _REQUIRED[command]
    common = {
        "data": _data(settings),
        "task": content.get("task"),
        "own": bool(settings.get("text_column")),
    }
    entries = [
        {**common, "list": command if name == "results" else name, **_check(path, entry, keys)}
        for name, keys in required.items()
        if name != "comparisons"
        for entry in content.get(name) or ()
    ]
    called = set()  # names of this checkpoint, task by task
    for entry in _own(folder, path, entries, mark, found):
        if entry["list"] == "advglue" and entry["clean_accuracy"] is None:
            found.warnings.append(
                f"{path}: the accuracy on {entry['task']} is left out, since no clean accuracy stands beside it."
            )
        else:
            found.entries.setdefault(entry["list"], []).append(entry)
            called.add((entry.get("model"), entry["task"]))
    found.columns = found.columns or settings.get("text_column") or []
    for comparison in content.get("comparisons") or ():
        shown = {**common, **_check(path, comparison, required["comparisons"])}
        sides = {side: (shown[side], shown["task"]) for side in "ab"}
        if called & set(sides.values()):
            seeds = shown.get("seeds", 1)
            found.comparisons.append(shown | {s: _side(key[0], key in called, seeds) for s, key in sides.items()})


def _own(folder: Path, path: Path, entries: list[dict[str, Any]], mark: str, found: Results) -> list[dict[str, Any]]:
    """The entries that were measured on the checkpoint's files."""
    here = [entry for entry in entries if _is_in(folder, entry)]
    unmarked = [entry for entry in here if entry.get("fingerprint") is None]
    own = [entry for entry in entries if entry.get("fingerprint") == mark] or unmarked
    if not own and here:
        raise ValueError(f"{path} was measured on other files than those in {folder} now; measure again.")
    if not own:
        there = ", ".join(dict.fromkeys(str(entry.get("model", entry.get("path"))) for entry in entries)) or "none"
        raise ValueError(f"{path} holds no result of {folder}; the models there: {there}.")
    if own is unmarked:
        found.warnings.append(f"{path} does not tell which weights it was measured on: it is taken for {folder}'s.")
    return own


def _is_in(folder: Path, entry: dict[str, Any]) -> bool:
    place = entry.get("path") or entry.get("model")
    return isinstance(place, str) and Path(place).resolve() == folder.resolve()


def _side(name: str, own: bool, seeds: int) -> str:
    if seeds > 1:
        return f"{_name(name)} ({seeds} checkpoints)"
    return "this checkpoint" if own else str(_name(name))


def _data(settings: dict[str, Any]) -> str | None:
    data = settings.get("data")
    return data if data == HUB else _name(data)


def _name(place: Any) -> str | None:
    """The last part of a path: folders of the machine that measured are nobody's business."""
    return None if place is None else Path(str(place)).name
