"""examples/finetune_glue.py as a module, a tiny random BERT and a few made-up rows to run it on, and what it wrote."""

import json
import random
from pathlib import Path

import finetune_glue as glue
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tokenizer_of
from transformers import BertConfig, BertForPreTraining

from imbert_hf.configuration_imbert import IM_FIELDS


SCRIPT = Path(glue.__file__)

WORDS = ["a", "the", "film", "book", "is", "was", "good", "bad", "dull", "fine", "not", "very", "never", "it"]
FIELDS = {
    "sst2": ["sentence"],
    "rte": ["sentence1", "sentence2"],
    "qnli": ["question", "sentence"],
    "qqp": ["question1", "question2"],
    "mnli": ["premise", "hypothesis"],
}
LABELS = {
    "sst2": ["negative", "positive"],
    "rte": ["entailment", "not_entailment"],
    "qnli": ["entailment", "not_entailment"],
    "qqp": ["not_duplicate", "duplicate"],
    "mnli": ["entailment", "neutral", "contradiction"],
}


def write_rows(path, task, count):
    draw = random.Random(f"{path.name} {task}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            row = {name: " ".join(draw.choices(WORDS, k=draw.randint(2, 8))) for name in FIELDS[task]}
            file.write(json.dumps({**row, "label": i % len(LABELS[task]), "idx": i}) + "\n")


@pytest.fixture(autouse=True)
def one_thread():
    """Threads cost more than they save at this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for task in FIELDS:
        write_rows(folder / task / "train.jsonl", task, 24)
        for split in ["validation_matched", "validation_mismatched"] if task == "mnli" else ["validation"]:
            write_rows(folder / task / f"{split}.jsonl", task, 10)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
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


def results_of(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def refusal(argv):
    """The sentence with which the script ends; sys.exit writes a str to stderr and exits with 1."""
    with pytest.raises(SystemExit) as exit:
        glue.main(argv)
    assert isinstance(exit.value.code, str)
    assert "\n" not in exit.value.code
    return exit.value.code


def im_fields():
    return [*IM_FIELDS]
