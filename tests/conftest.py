"""Shared fixtures: a tiny BERT, so that most tests take milliseconds."""

import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Written for a CPU: with a device Trainer and Accelerator would take it, and processes that a test starts would share
# it. They inherit this. What is measured on a device: `imbert-eval targets` and `cost`.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import torch
import transformers
from transformers import BertConfig

from imbert_hf import IMBertConfig


transformers.logging.disable_progress_bar()
torch.set_num_threads(1)  # tiny tensors: a second thread only waits

TINY = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}


def bert_config(**kwargs) -> BertConfig:
    return BertConfig(**{**TINY, **kwargs})


def imbert_config(**kwargs) -> IMBertConfig:
    return IMBertConfig(**{**TINY, "im_layers": "all", **kwargs})


def lively(model):
    """The model with larger random weights: at BERT's initial 0.02 its layers are nearly the identity."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embeddings" not in name:
                parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def batch():
    """Three rows of 5, 9 and 7 real tokens, padded on the right to 9."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 99, (3, 9), generator=generator)
    mask = torch.arange(9)[None] < torch.tensor([5, 9, 7])[:, None]
    return {"input_ids": ids * mask, "attention_mask": mask.long()}
