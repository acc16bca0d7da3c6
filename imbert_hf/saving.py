"""Saving all or nothing: a save that fails, on a full disk for one, leaves the checkpoint that was there as it was.

Transformers writes in place, file by file: after a failure in the middle the folder holds a new config beside old
weights, or some new shards among old ones, and loads without a word. The files that travel with a checkpoint open no
file, so this is no part of them: without this package a model is saved as transformers saves it.
"""

import re
import tempfile
from pathlib import Path
from typing import Any

from .implicit_imbert import ImplicitPreTrainedModel


_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


def _save_pretrained(
    self: Any,
    save_directory: Any,
    is_main_process: bool = True,
    state_dict: Any = None,
    push_to_hub: bool = False,
    **kwargs,
) -> None:
    """As transformers', but written to a folder within `save_directory` first, and moved from there.

    A save that is sent on at once (push_to_hub) or written by several processes (distributed_checkpoint) is made in
    place.
    """
    save = super(ImplicitPreTrainedModel, self).save_pretrained
    folder = Path(save_directory)
    if push_to_hub or kwargs.get("distributed_checkpoint") or folder.is_file():
        return save(save_directory, is_main_process, state_dict, push_to_hub, **kwargs)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as aside:
        save(aside, is_main_process, state_dict, **kwargs)
        written = {path.replace(folder / path.name).name for path in list(Path(aside).iterdir())}
    if any(map(_WEIGHTS.fullmatch, written)):
        for path in list(folder.iterdir()):  # an earlier save in another number of files: it would be loaded
            if _WEIGHTS.fullmatch(path.name) and path.name not in written:
                path.unlink()


def save_all_or_nothing() -> None:
    """Lets every implicit model of this package save so."""
    ImplicitPreTrainedModel.save_pretrained = _save_pretrained  # type: ignore[attr-defined]
