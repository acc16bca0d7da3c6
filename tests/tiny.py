"""Tiny BERTs, so that most tests take milliseconds, and what the tests cross them with."""

import contextlib
import io
import itertools

import pytest
import torch
from transformers import BertConfig, BertTokenizer

from imbert_hf import IMBertConfig, IMBertForSequenceClassification


TINY = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SOLVERS = ("fixed_point", "anderson", "gradient_descent")
GRADIENTS = ("unrolled", "implicit", "one_step")
PAIRS = list(itertools.product(SOLVERS, GRADIENTS))
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def bert_config(**kwargs) -> BertConfig:
    return BertConfig(**{**TINY, **kwargs})


def imbert_config(**kwargs) -> IMBertConfig:
    return IMBertConfig(**{**TINY, "im_layers": "all", **kwargs})


def tokenizer_of(words, **kwargs) -> BertTokenizer:
    """A tokenizer that knows BERT's special tokens and these words, in this order."""
    return BertTokenizer({word: i for i, word in enumerate([*SPECIAL, *words])}, **kwargs)


def lively(model):
    """The model with larger random weights: at BERT's initial 0.02 its layers are nearly the identity."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embeddings" not in name:
                parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
    return model


def imbert_model(seed=0, **fields) -> IMBertForSequenceClassification:
    """A lively classifier in evaluation, the same for the same seed."""
    torch.manual_seed(seed)
    return lively(IMBertForSequenceClassification(imbert_config(**fields))).eval()


def refused(command, *args):
    """The one sentence on stderr with which a command refuses its arguments."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), pytest.raises(SystemExit) as stop:
        command(*args)
    assert stop.value.code == 2
    (line,) = said.getvalue().splitlines()
    return line
