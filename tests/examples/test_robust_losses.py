"""FreeLB, R3F and R-Drop against what they come to by hand for a model whose margin is linear in its embeddings."""

from types import SimpleNamespace

import pytest
import torch
from robust_losses import DEFENCES, divergence, freelb_losses, r3f_losses, rdrop_losses
from tiny import bert_config
from torch.distributions import Bernoulli, Categorical, Independent, Normal, kl_divergence
from transformers import BertForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from imbert_hf.evaluation.cost.variants import plain_losses


class Margin(torch.nn.Module):
    """loss = softplus(-m), the margin m = <w, sum of embeddings> + bias; linear in the embeddings."""

    def __init__(self, width=4):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = torch.nn.Embedding(9, width).double()
        self.w = torch.nn.Parameter(torch.randn(width, dtype=torch.float64, generator=generator))
        self.bias = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.config = SimpleNamespace(problem_type="single_label_classification")

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, attention_mask, labels, input_ids=None, inputs_embeds=None):
        embedded = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        margin = ((embedded @ self.w) * attention_mask).sum(dim=1) + self.bias
        loss = torch.nn.functional.softplus(-margin).mean()
        return SequenceClassifierOutput(loss=loss, logits=torch.stack([torch.zeros_like(margin), margin], dim=1))


MARGIN_BATCH = {
    "input_ids": torch.tensor([[1, 2, 3], [4, 5, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
    "labels": torch.tensor([1, 1]),
}


def gradients(model, losses):
    model.zero_grad()
    for loss in losses:
        loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_freelb_ascends_by_hand():
    """The gradient by a row's n tokens is along -w: each step lowers the margin by step_size sqrt(n) |w|."""
    model, n = Margin(), torch.tensor([3.0, 2.0], dtype=torch.float64)
    found = gradients(model, freelb_losses(model, MARGIN_BATCH, steps=3, step_size=0.3, radius=0.5, start=0.0))
    margin = model(**MARGIN_BATCH).logits[:, 1].detach()
    distances = (0.0, 0.3, 0.5)  # of the third point the ball keeps 0.5
    moved = torch.stack([margin - d * n.sqrt() * model.w.norm() for d in distances])
    torch.testing.assert_close(found["bias"], -torch.sigmoid(-moved).mean())


def test_freelb_without_steps_is_the_mean_of_plain_gradients():
    model = Margin()
    plain = gradients(model, plain_losses(model, MARGIN_BATCH))
    found = gradients(model, freelb_losses(model, MARGIN_BATCH, step_size=0.0, start=0.0))
    torch.testing.assert_close(found, plain)


def test_freelb_starts_within_its_ball_and_off_padding():
    seen = []

    class Spy(Margin):
        def forward(self, inputs_embeds, **rest):
            seen.append((inputs_embeds - self.embedding(MARGIN_BATCH["input_ids"])).detach())
            return super().forward(inputs_embeds=inputs_embeds, **rest)

    model = Spy()
    gradients(model, freelb_losses(model, MARGIN_BATCH, step_size=0.3, radius=0.4, start=0.2))
    norms = torch.stack([delta.flatten(1).norm(dim=1) for delta in seen])
    assert ((norms[0] > 0) & (norms[0] <= 0.2)).all()
    assert (norms[1:] <= 0.4 + 1e-12).all()
    assert all((delta[1, 2] == 0).all() for delta in seen)


def test_r3f_without_noise_adds_nothing():
    model = Margin()
    plain = gradients(model, plain_losses(model, MARGIN_BATCH))
    (loss,) = list(r3f_losses(model, MARGIN_BATCH, noise=0.0))
    torch.testing.assert_close(loss, model(**MARGIN_BATCH).loss, check_dtype=False)
    found = gradients(model, r3f_losses(model, MARGIN_BATCH, noise=0.0))
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-7)


def test_r3f_adds_the_symmetric_divergence_by_hand(monkeypatch):
    model = Margin()
    monkeypatch.setattr(torch, "rand_like", torch.ones_like)  # noise of +0.1 on each component
    (loss,) = list(r3f_losses(model, MARGIN_BATCH, noise=0.1, weight=2.0))
    margin = model(**MARGIN_BATCH).logits[:, 1]
    moved = margin + 0.1 * torch.tensor([3.0, 2.0], dtype=torch.float64) * model.w.sum()
    p, q = torch.sigmoid(margin), torch.sigmoid(moved)
    # Of two Bernoulli distributions KL(p||q) + KL(q||p) is (p - q) times the difference of their logits.
    expected = model(**MARGIN_BATCH).loss + 2.0 * ((p - q) * (margin - moved)).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)


FAMILIES = {
    "single_label_classification": lambda logits: Categorical(logits=logits),
    "multi_label_classification": lambda logits: Independent(Bernoulli(logits=logits), 1),
    "regression": lambda logits: Independent(Normal(logits, 1.0), 1),
}


@pytest.mark.parametrize("problem_type", FAMILIES)
def test_the_divergence_is_that_of_the_distributions(problem_type):
    generator = torch.Generator().manual_seed(0)
    a, b = (2 * torch.randn(5, 1 if problem_type == "regression" else 3, generator=generator) for _ in range(2))
    model = SimpleNamespace(config=SimpleNamespace(problem_type=problem_type))
    p, q = map(FAMILIES[problem_type], (a, b))
    outputs = [SequenceClassifierOutput(logits=logits) for logits in (a, b)]
    found = divergence(model, {"labels": None}, *outputs)
    torch.testing.assert_close(found, (kl_divergence(p, q) + kl_divergence(q, p)).mean())
    torch.testing.assert_close(divergence(SimpleNamespace(module=model), {"labels": None}, *outputs), found)
    assert divergence(model, {"labels": None}, outputs[0], outputs[0]) == 0


class Noisy(Margin):
    """Margin, in whose forwards the margins are moved by what `moves` holds, in turn."""

    def __init__(self, *moves):
        super().__init__()
        self.moves = iter(moves)

    def forward(self, **inputs):
        bias, move = self.bias, next(self.moves)
        self.bias = torch.nn.Parameter(bias + move)
        try:
            return super().forward(**inputs)
        finally:
            self.bias = bias


def test_rdrop_adds_half_the_divergence_of_two_forwards_by_hand():
    model = Noisy(0.0, 0.7, 0.0)
    (loss,) = rdrop_losses(model, MARGIN_BATCH, weight=3.0)
    margin = model(**MARGIN_BATCH).logits[:, 1]
    moved = margin + 0.7
    plain = (torch.nn.functional.softplus(-margin) + torch.nn.functional.softplus(-moved)).mean() / 2
    apart = ((torch.sigmoid(margin) - torch.sigmoid(moved)) * (margin - moved)).mean()
    torch.testing.assert_close(loss, plain + 1.5 * apart, rtol=1e-4, atol=1e-6)


def test_rdrop_without_dropout_is_the_plain_loss():
    model = Margin()
    plain = gradients(model, plain_losses(model, MARGIN_BATCH))
    torch.testing.assert_close(gradients(model, rdrop_losses(model, MARGIN_BATCH)), plain, rtol=1e-5, atol=1e-7)


LABELS = {
    "single_label_classification": torch.tensor([0, 2]),
    "multi_label_classification": torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]),
    "regression": torch.tensor([0.5, -2.0]),
}


@pytest.mark.parametrize("problem_type", LABELS)
@pytest.mark.parametrize("name", DEFENCES)
def test_every_defence_trains_on_every_problem_type(name, problem_type):
    """As many losses as it says, none below its part of the plain loss where nothing is random, and gradients."""
    torch.manual_seed(0)
    labels = 1 if problem_type == "regression" else 3
    model = BertForSequenceClassification(bert_config(num_labels=labels, problem_type=problem_type)).eval()
    ids = torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]])
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": LABELS[problem_type]}
    found, defence = [], DEFENCES[name]
    for loss in defence.losses(model, batch):
        loss.backward()
        found.append(loss.item())
    assert len(found) == defence.count
    assert sum(found) == pytest.approx(model(**batch).loss.item(), rel=0.1)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
