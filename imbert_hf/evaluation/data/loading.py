"""Checkpoints with their tokenizers, and what tells two of them apart."""

import hashlib
import inspect
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import MODEL_MAPPING, AutoTokenizer, PretrainedConfig

from imbert_hf import (
    IMBertConfig,
    IMDebertaV2Config,
    IMDistilBertConfig,
    IMElectraConfig,
    IMModernBertConfig,
    IMRobertaConfig,
    IMXLMRobertaConfig,
)


# model_type of a family -> the config of its implicit models
FAMILIES: dict[str, Any] = {
    config.plain_model_type(): config
    for config in (
        IMBertConfig,
        IMRobertaConfig,
        IMElectraConfig,
        IMXLMRobertaConfig,
        IMDebertaV2Config,
        IMDistilBertConfig,
        IMModernBertConfig,
    )
}
TITLES = {  # what sentences call them
    "bert": "BERT",
    "roberta": "RoBERTa",
    "electra": "ELECTRA",
    "xlm-roberta": "XLM-RoBERTa",
    "deberta-v2": "DeBERTa",
    "distilbert": "DistilBERT",
    "modernbert": "ModernBERT",
}
NAMES = " or ".join([", ".join([*TITLES.values()][:-1]), [*TITLES.values()][-1]])
# What predictions depend on, among the files of a folder.
_TELLING = (
    "*.safetensors",
    "pytorch_model*.bin",
    "config.json",
    "adapter_config.json",
    "*.py",
    "token*",
    "vocab*",
    "merges.txt",
    "*.model",
)


def load_pretrained(
    model_class: Any, path: str, what: str, *, dtype: str, device: str, trust_remote_code: bool = False, **kwargs
) -> tuple[Any, Any]:
    """Model, in eval mode, and tokenizer.

    Args:
        model_class: with from_pretrained.
        path: folder or Hub id.
        what: it is to be, for the message.
        dtype, device: as torch names them.
        trust_remote_code: run code that comes with the checkpoint.
        kwargs: of from_pretrained.

    Raises:
        ValueError: it cannot be loaded, lacks weights that such a model has, or a tokenizer.
    """
    check_path(path, what)
    try:
        loaded = model_class.from_pretrained(
            path,
            dtype=getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **kwargs,
        )
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        model, loading = loaded
        missing = sorted(set(loading["missing_keys"]) - load_magnitudes(model, path))
        model = model.to(device).eval()
    except Exception as error:  # broken files, other shapes, unknown devices: each library raises its own
        raise ValueError(f"{path} cannot be loaded as a {what}: {first_line(error)}") from None
    if missing:
        raise ValueError(f"{path} is no trained {what}: its checkpoint lacks {missing[0]}.")
    # Without a vocabulary file, transformers 5 makes one of special tokens alone.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ValueError(f"{path} holds no tokenizer; save the model's own there.")
    known, largest = len(model.get_input_embeddings().weight), max(tokenizer.get_vocab().values())
    if largest >= known:
        raise ValueError(f"the tokenizer of {path} gives tokens up to {largest}, and the model knows {known}.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token  # hidden by the attention mask
    if tokenizer.pad_token is None:
        raise ValueError(f"the tokenizer of {path} has no token to pad with.")
    return model, tokenizer


def layers_of(model: Any) -> nn.ModuleList:
    """The list of layers of a model of one of the families, whatever its name and place there."""
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList))


def load_encoder(path: str, *, dtype: str = "float32", device: str = "cpu") -> tuple[Any, Any]:
    """The encoder of a checkpoint of one of the families, plain or implicit, and its tokenizer.

    The encoder is its family's implicit model, in eval mode; a plain checkpoint has no implicit layer.

    Raises:
        ValueError: it cannot be loaded, is of another family, lacks weights or a tokenizer.
    """
    what = f"checkpoint of {NAMES}"
    check_path(path, what)
    try:
        found = PretrainedConfig.get_config_dict(path)[0].get("model_type", "")
        family = FAMILIES.get(found.removeprefix("im"))
        config = family and family.from_pretrained(path, **({} if found.startswith("im") else {"im_layers": []}))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be loaded as a {what}: {first_line(error)}") from None
    if config is None:
        known = ", ".join(name for plain in FAMILIES for name in (plain, f"im{plain}"))
        raise ValueError(f"{path} holds a checkpoint of model_type {found!r}; it must be one of {known}.")
    model_class: Any = MODEL_MAPPING[type(config)]
    # A pooler is no part of the encoder, and not every checkpoint has one.
    plain = inspect.signature(model_class.__bases__[-1].__init__).parameters
    options: dict[str, Any] = {"add_pooling_layer": False} if "add_pooling_layer" in plain else {}
    return load_pretrained(model_class, path, what, dtype=dtype, device=device, config=config, **options)


def load_magnitudes(model: Any, path: str) -> set[str]:
    """Loads the magnitudes of a DoRA adapter and returns their names.

    transformers (seen with 5.23) looks for them under another name than PEFT saves, and takes those of the base model.
    """
    names = {name for name, _ in model.named_parameters() if "lora_magnitude_vector" in name}
    if names:
        from peft import load_peft_weights

        saved = load_peft_weights(path, device="cpu")
        with torch.no_grad():
            for name in names:
                model.get_parameter(name).copy_(saved[f"base_model.model.{name.removesuffix('.default.weight')}"])
    return names


def check_path(path: str, what: str) -> None:
    """Raises ValueError for a folder that is not there, though its parent may be, and would be taken for a Hub id."""
    here = Path(path).parent != Path() and Path(path).parent.is_dir()
    if not Path(path).exists() and (here or path.startswith(("/", ".", "~")) or path.count("/") > 1):
        raise ValueError(f"{path} cannot be loaded as a {what}: there is no such folder.")


def first_line(error: BaseException) -> str:
    """What an error says, without the lines that follow."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def longest_input(model: Any, tokenizer: Any) -> int:
    """Tokens that model and tokenizer take."""
    positions = getattr(model.config, "max_position_embeddings", None) or -1
    for name, module in model.named_modules():
        # RoBERTa and its kin count positions from behind the padding index.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            positions -= module.padding_idx + 1
    limits = [limit for limit in (positions, tokenizer.model_max_length) if 0 < limit < 10**6]
    return min(limits, default=512)


def adapted(path: str) -> str | None:
    """The base model of a folder that holds an adapter of PEFT; None for any other."""
    told = Path(path, "adapter_config.json")
    return json.loads(told.read_bytes()).get("base_model_name_or_path") if told.is_file() else None


def fingerprint(path: str, config: Any = None) -> str:
    """A hash of the files of a folder that predictions depend on, or of a commit on the Hub.

    Args:
        path: folder or Hub id.
        config: as loaded from the Hub, which knows the commit.
    """
    told = hashlib.sha256()
    folder = Path(path)
    for file in sorted({file for pattern in _TELLING for file in folder.glob(pattern) if file.is_file()}):
        told.update(f"{file.name} {file.stat().st_size} ".encode())
        with file.open("rb") as content:
            while chunk := content.read(1 << 20):
                told.update(chunk)
    if (base := adapted(path)) is not None:
        told.update(fingerprint(base).encode())
    if not folder.is_dir():
        told.update(repr((path, getattr(config, "_commit_hash", None))).encode())
    return told.hexdigest()[:16]
