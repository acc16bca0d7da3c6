"""Fixtures of the searches for the least work: a model whose relation can be solved, and a padded batch."""

import pytest
import torch
from tiny import imbert_config

from imbert_hf import IMBertForSequenceClassification
from imbert_hf.evaluation.cost import measures as cost_measures


@pytest.fixture(scope="module")
def contracting():
    """A float32 model whose relation fixed-point iteration solves."""
    torch.manual_seed(0)
    model = IMBertForSequenceClassification(imbert_config(num_hidden_layers=2)).eval()
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.output.LayerNorm.weight.mul_(0.4)
        model.classifier.weight.mul_(20)
    return model


@pytest.fixture(autouse=True)
def few_products(monkeypatch):
    monkeypatch.setitem(cost_measures.CONVERGED, "im_gradient_iterations", 40)  # time; these models need no more


@pytest.fixture
def batch(batch):
    return {**batch, "labels": torch.tensor([0, 1, 0])}  # padded
