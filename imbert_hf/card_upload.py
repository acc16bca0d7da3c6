"""What push_to_hub adds to a checkpoint where this package is installed: the model card of its folder.

The files that travel with a checkpoint open no file, so this is no part of them.
"""

import warnings
from pathlib import Path
from typing import Any

import torch

from .implicit_imbert import ImplicitPreTrainedModel


def _upload_modified_files(self: Any, working_dir: Any, *args, **kwargs) -> Any:
    """What push_to_hub calls between saving and sending: replaces transformers' empty model card by our own.

    That is the README.md of the folder that the model was loaded from, if there is one. It stays here, with a warning,
    where weights or im_ fields are no longer those of the folder: it would tell of another model.
    """
    folder = self.config._name_or_path
    card = Path(folder, "README.md")
    if folder and card.is_file():
        if _is_saved_in(folder, self):
            Path(working_dir, card.name).write_bytes(card.read_bytes())
        else:
            warnings.warn(f"{card} is not pushed: the model is not the one in {folder}.", stacklevel=4)
    return super(ImplicitPreTrainedModel, self)._upload_modified_files(working_dir, *args, **kwargs)


def _is_saved_in(folder: str, model: Any) -> bool:
    try:
        saved = type(model).from_pretrained(folder, dtype=model.dtype)
    except (OSError, RuntimeError, ValueError):  # nothing to load, or of another shape
        return False
    theirs, own = saved.state_dict(), model.state_dict()
    if any(value.is_meta for value in own.values()):  # offloaded: not looked at
        return False
    return (
        {n: v for n, v in vars(saved.config).items() if n.startswith("im_")}
        == {n: v for n, v in vars(model.config).items() if n.startswith("im_")}
        and theirs.keys() == own.keys()
        and all(torch.equal(theirs[n], v.cpu()) for n, v in own.items())
    )


def send_cards() -> None:
    """Lets every implicit model of this package send its card."""
    ImplicitPreTrainedModel._upload_modified_files = _upload_modified_files  # type: ignore[attr-defined]
