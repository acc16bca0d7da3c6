"""Saving aside: a save that fails while it writes, on a full disk for one, leaves the checkpoint that was there.

Transformers writes in place, file by file: after a failure in the middle the folder holds a new config beside old
weights, or some new shards among old ones, and loads without a word. Here a save first writes a folder aside,
`_saving-...`, on the same disk, which has to hold both; then each file is renamed, one after the other. A process
killed while it writes leaves that folder, which may be deleted and which the Trainer does not push. The files that
travel with a checkpoint open no file, so this is no part of them: without this package a model is saved as transformers
saves it.
"""

import inspect
import re
import tempfile
from pathlib import Path
from typing import Any

from .implicit_imbert import ImplicitPreTrainedModel


ASIDE = "_saving-"  # the Trainer's pushes leave out what begins with _


def _save_pretrained(self: Any, save_directory: Any, *args, **kwargs) -> None:
    """As transformers', but written to a folder within `save_directory` first, and moved from there.

    A save that is sent on at once (push_to_hub) or written by several processes (distributed_checkpoint) is made in
    place.
    """
    save = super(ImplicitPreTrainedModel, self).save_pretrained
    folder = Path(save_directory)
    given = inspect.signature(save).bind(save_directory, *args, **kwargs).arguments
    given |= given.pop("kwargs", {})
    if given.get("push_to_hub") or given.get("distributed_checkpoint") or folder.is_file():
        return save(save_directory, *args, **kwargs)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=ASIDE, dir=folder) as aside:
        save(aside, *args, **kwargs)
        # What names the others comes last: code and weights, the index of the weights, the config.
        names = [path.name for path in Path(aside).iterdir()]
        names.sort(key=lambda name: (name == "config.json", ".index." in name))
        for name in names:
            Path(aside, name).replace(folder / name)
    weights = _weights(given.get("variant"))
    if given.get("is_main_process", True) and any(map(weights.fullmatch, names)):
        for path in list(folder.iterdir()):  # an earlier save in another number of files: it would be loaded
            if weights.fullmatch(path.name) and path.name not in names:
                path.unlink()


def _weights(variant: str | None) -> re.Pattern[str]:
    """Matches the names that transformers gives to files of weights."""
    of_variant = rf"\.{re.escape(variant)}" if variant else ""
    return re.compile(
        rf"model{of_variant}(-\d{{5}}-of-\d{{5}})?\.safetensors|model\.safetensors\.index{of_variant}\.json"
    )


def save_all_or_nothing() -> None:
    """Lets every implicit model of this package save so."""
    ImplicitPreTrainedModel.save_pretrained = _save_pretrained  # type: ignore[attr-defined]
