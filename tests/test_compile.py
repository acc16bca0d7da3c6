"""torch.compile against eager: one graph in inference, and in training where no dropout is active."""

import shutil

import pytest
import torch
from conftest import imbert_config, lively
from test_modeling import PAIRS

from imbert_hf import IMBertForSequenceClassification


# Torch's own tracing warns of how autograd functions are made, and of .grad where it breaks the graph.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SOLVERS = ("fixed_point", "anderson", "gradient_descent")


def model_with(**kwargs):
    return lively(IMBertForSequenceClassification(imbert_config(num_hidden_layers=1, im_iterations=2, **kwargs)))


def compiled(model, backend="aot_eager", **options):
    torch._dynamo.reset()
    return torch.compile(model, backend=backend, **options)


@pytest.mark.parametrize("tolerance", [0.0, 1e-2])
@pytest.mark.parametrize("solver", SOLVERS)
def test_inference_is_one_graph(solver, tolerance, batch):
    model = model_with(im_solver=solver, im_tolerance=tolerance, im_learning_rate=0.02).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(model, fullgraph=True)(**batch).logits, model(**batch).logits, rtol=0, atol=1e-5
        )


@pytest.mark.parametrize(("solver", "gradient"), PAIRS)
def test_training_without_dropout_is_one_graph(solver, gradient, batch):
    check_training(solver, gradient, batch)


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler")
def test_training_compiled_to_machine_code(batch):
    check_training("fixed_point", "implicit", batch, backend="inductor")


def check_training(solver, gradient, batch, **options):
    model = model_with(im_solver=solver, im_gradient=gradient, im_learning_rate=0.02, **NO_DROPOUT).train()
    labels = torch.tensor([0, 1, 1])
    found = []
    for one in (model, compiled(model, fullgraph=True, **options)):
        model.zero_grad()
        loss = one(**batch, labels=labels).loss
        loss.backward()
        found.append((loss.detach(), [p.grad for p in model.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("solver", ["fixed_point", "gradient_descent"])
def test_training_with_dropout_breaks_the_graph_and_has_the_same_gradients(solver, batch):
    model = model_with(im_solver=solver, im_learning_rate=0.02).train()
    labels = torch.tensor([0, 1, 1])
    found = []
    for one in (model, compiled(model)):
        model.zero_grad()
        torch.manual_seed(0)
        loss = one(**batch, labels=labels).loss
        loss.backward()
        found.append((loss.detach(), [p.grad for p in model.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
