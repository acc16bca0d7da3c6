"""What the tests of the cost command share: a model, a batch for it, and rows by name."""

import pytest
import torch
from tiny import imbert_config, lively

from imbert_hf import IMBertForSequenceClassification
from imbert_hf.evaluation.cost.settings import make_batch


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return lively(IMBertForSequenceClassification(imbert_config(num_hidden_layers=2))).eval()


@pytest.fixture(scope="module")
def small(model):
    return make_batch(model, None, None, 3, 6)


def by_name(rows):
    return {row.name: row for row in rows}
