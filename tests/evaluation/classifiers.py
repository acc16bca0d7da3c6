"""Small classifiers for the tests of the evaluation: saved BERTs, and models whose answers are known by hand."""

from types import SimpleNamespace

import torch
from tiny import TINY, bert_config, imbert_model, lively, tokenizer_of
from transformers import BertForSequenceClassification

from imbert_hf.evaluation.data.classifier import Classifier
from imbert_hf.evaluation.data.tasks import find_task


WORDS = [f"w{i}" for i in range(TINY["vocab_size"] - 5)]


def tokenizer(**kwargs):
    return tokenizer_of(WORDS, model_max_length=64, **kwargs)


def labelled(labels):
    return {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}


def bert(labels=("negative", "positive"), seed=0, **config):
    torch.manual_seed(seed)
    return lively(BertForSequenceClassification(bert_config(**labelled(labels), **config))).eval()


def imbert(labels=("negative", "positive"), seed=0, **config):
    return imbert_model(seed, **labelled(labels), **config)


def save(folder, model):
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def classifier(model, task="sst2", **changes):
    order = tuple(range(len(find_task(task).labels)))
    fields = {"name": "model", "path": "model", "model": model, "tokenizer": tokenizer(), "task": find_task(task)}
    return Classifier(**fields | {"order": order, "max_length": 64, "fingerprint": repr(changes)} | changes)


class Linear(torch.nn.Module):
    """Logits (0, b + sum over words of <w, e>): the margin of a row is linear in its embeddings."""

    def __init__(self, width=4, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embedding = torch.nn.Embedding(TINY["vocab_size"], width)
        self.embedding.weight.data = torch.randn(self.embedding.weight.shape, generator=generator)
        self.w = torch.nn.Parameter(torch.randn(width, generator=generator))
        self.config, self.dtype, self.device = SimpleNamespace(), torch.float32, torch.device("cpu")

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, attention_mask, **_):
        score = ((self.embedding(input_ids) @ self.w) * attention_mask).sum(dim=1)
        return SimpleNamespace(logits=torch.stack([torch.zeros_like(score), score], dim=1))
