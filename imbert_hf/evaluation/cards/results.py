"""What the JSON of runs tells of one checkpoint, and of no other."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imbert_hf.configuration_imbert import IM_FIELDS
from imbert_hf.evaluation.data.loading import fingerprint
from imbert_hf.evaluation.data.tasks import HUB


_COMPARISON = ("a", "b", "task", "difference", "ci95", "resolved")
# What an entry of each list must hold, beside the model or its path; kind of JSON -> list -> keys.
_REQUIRED: dict[str, dict[str, tuple[str, ...]]] = {
    "advglue": {
        "results": ("task", "n", "accuracy", "accuracy_ci95", "majority_accuracy", "clean_accuracy"),
        "comparisons": _COMPARISON,
    },
    "attack": {
        "embedding": ("task", "n", "clean_accuracy", "majority_accuracy", "curve", "checks"),
        "query": ("task", "attack", "n", "accuracy", "majority_accuracy", "accuracy_under_attack", "success_rate"),
        "noise": ("task", "kind", "strength", "n", "accuracy", "clean_accuracy", "majority_accuracy"),
        "comparisons": _COMPARISON,
    },
}
_TRAINING = ("task", "connection", "metrics", "rows", "seed", "steps", "arguments")


@dataclass
class Results:
    """What JSON files tell of one checkpoint.

    Attributes:
        entries: name of a list ("results", "embedding", "query", "noise") -> the checkpoint's own entries in it.
        comparisons: those that the checkpoint is one side of, which is called "this checkpoint".
        stability: the summary of imbert-eval stability, or None.
        training: what examples/finetune.py wrote, or None.
        warnings: what the files hold and a card does not show, and why.
    """

    entries: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    stability: dict[str, Any] | None = None
    training: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)


def read_results(folder: Path, paths: Iterable[Path]) -> Results:
    """Reads JSON files, known by their content: of imbert-eval advglue, attack and stability, and of finetune.py.

    Raises:
        ValueError: a file is none of these, lacks a key, holds no entry whose path or model is `folder`, or one that
            was measured on other files there; or the training was of other im_ fields than the checkpoint's.
    """
    found = Results()
    for path in paths:
        content = read_json(path)
        settings = content.get("settings")
        command = settings.get("command") if isinstance(settings, dict) else None
        if "connection" in content and "arguments" in content:
            found.training = _check(path, content, _TRAINING)
            _check_training(folder, path, content)
        elif command == "stability":
            _check(path, content, ("summary",))
            if not _is_of(folder, content["settings"]):
                raise _of_others(path, folder, [content["settings"].get("model")])
            _check_weights(folder, path, content, found)
            found.stability = content["summary"]
        elif command in _REQUIRED:
            _collect(folder, path, content, found)
        else:
            raise ValueError(f"{path} is no JSON of imbert-eval advglue, attack or stability, nor of finetune.py.")
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


def _check_training(folder: Path, path: Path, training: dict[str, Any]) -> None:
    trained = training.get("im_fields") or {}
    config = read_json(folder / "config.json")
    for name in IM_FIELDS:  # im_version is of the code, and no setting
        if trained.get(name) != config.get(name):
            raise ValueError(
                f"{path} is of a training with {name} {trained.get(name)!r}, and {folder / 'config.json'} has "
                f"{config.get(name)!r}: it does not tell how this checkpoint was made."
            )


def _collect(folder: Path, path: Path, content: dict[str, Any], found: Results) -> None:
    """Adds the checkpoint's own entries of a JSON of advglue or attack."""
    settings, required = content["settings"], _REQUIRED[content["settings"]["command"]]
    entries = [
        (name, _check(path, entry, ()))
        for name in required
        if name != "comparisons"
        for entry in content.get(name) or ()
    ]
    own = [(name, _check(path, entry, required[name])) for name, entry in entries if _is_of(folder, entry)]
    if not own:
        raise _of_others(path, folder, [entry.get("model", entry.get("path")) for _, entry in entries])
    for entry in {entry.get("fingerprint"): entry for _, entry in own}.values():
        _check_weights(folder, path, entry, found)
    data = settings.get("data")
    called = set()  # names of this checkpoint, task by task
    for name, entry in own:
        if name == "results" and entry["clean_accuracy"] is None:
            found.warnings.append(
                f"{path}: the accuracy on {entry['task']} is left out, since no clean accuracy stands beside it."
            )
        else:
            found.entries.setdefault(name, []).append({**entry, "data": data if data == HUB else _name(data)})
            called.add((entry.get("model"), entry["task"]))
    for comparison in content.get("comparisons") or ():
        _check(path, comparison, required["comparisons"])
        seeds, sides = comparison.get("seeds", 1), {side: (comparison[side], comparison["task"]) for side in "ab"}
        if called & set(sides.values()):
            shown = {side: _side(key[0], key in called, seeds) for side, key in sides.items()}
            found.comparisons.append({**comparison, **shown})


def _check_weights(folder: Path, path: Path, entry: dict[str, Any], found: Results) -> None:
    known = entry.get("fingerprint")
    if known is None:
        found.warnings.append(f"{path} does not tell which weights it was measured on: it is taken for {folder}'s.")
    elif known != fingerprint(str(folder)):
        raise ValueError(f"{path} was measured on other files than those in {folder} now; measure again.")


def _side(name: str, own: bool, seeds: int) -> str:
    if seeds > 1:
        return f"{_name(name)} ({seeds} checkpoints)"
    return "this checkpoint" if own else str(_name(name))


def _of_others(path: Path, folder: Path, models: Iterable[Any]) -> ValueError:
    there = ", ".join(dict.fromkeys(map(str, models))) or "none"
    return ValueError(f"{path} holds no result of {folder}; the models there: {there}.")


def _is_of(folder: Path, entry: dict[str, Any]) -> bool:
    place = entry.get("path") or entry.get("model")
    return isinstance(place, str) and Path(place).resolve() == folder.resolve()


def _name(place: Any) -> str | None:
    """The last part of a path: folders of the machine that measured are nobody's business."""
    return None if place is None else Path(str(place)).name
