"""A tiny random BERT and a few made-up rows to run examples/finetune.py on."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tokenizer_of
from transformers import BertConfig, BertForPreTraining


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    from finetuning import FIELDS, write_rows  # not above: its libraries are not what all files of this folder need

    folder = tmp_path_factory.mktemp("data")
    for task in FIELDS:
        write_rows(folder / task / "train.jsonl", task, 24)
        for split in ["validation_matched", "validation_mismatched"] if task == "mnli" else ["validation"]:
            write_rows(folder / task / f"{split}.jsonl", task, 10)
    return folder


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    from finetuning import WORDS

    folder = tmp_path_factory.mktemp("bert")
    tokenizer = tokenizer_of(WORDS)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=2,
        hidden_size=32,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    BertForPreTraining(config).save_pretrained(folder)
    # The names of google-bert/bert-base-uncased; transformers 5 reads them, and would write them into every checkpoint.
    old_names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    weights = load_file(folder / "model.safetensors")
    for name in list(weights):
        for new, old in old_names.items():
            if new in name:
                weights[name.replace(new, old)] = weights.pop(name)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def arguments(bert, data, tmp_path):
    """A function from what a test adds to a full command line; the last of two values of an argument holds."""

    def words(*more, task="sst2"):
        return [
            *("--model_name_or_path", str(bert), "--data_dir", str(data), "--task", task),
            *("--output_dir", str(tmp_path / "out"), "--num_train_epochs", "1", "--learning_rate", "1e-3"),
            *("--per_device_train_batch_size", "8", "--use_cpu", "--disable_tqdm", "True"),
            *("--dataloader_pin_memory", "False", *more),
        ]

    return words
