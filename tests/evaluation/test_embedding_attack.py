"""The white-box attack on a linear model, whose worst case is known, and on models that hide their gradient."""

from dataclasses import replace

import numpy
import pytest
import torch
from classifiers import WORDS, Linear, bert, classifier, imbert

from imbert_hf import pass_imbert
from imbert_hf.evaluation.attacks.ascent import (
    Ascent,
    ascend,
    attacked,
    embedding_norm,
    exact_gradients,
    margin,
    moved_embeddings,
    words_of,
)
from imbert_hf.evaluation.attacks.embedding import embedding_attack, gradient_errors, masking_checks
from imbert_hf.evaluation.data.classifier import predict
from imbert_hf.evaluation.data.tasks import Row


def rows(model, n=16, seed=0, task="sst2"):
    """Random texts under the model's own predictions, so that all are right without an attack."""
    rng = numpy.random.default_rng(seed)
    texts = [(" ".join(rng.choice(WORDS, rng.integers(2, 9))),) for _ in range(n)]
    return [Row(t, int(label)) for t, label in zip(texts, predict(classifier(model, task), texts).labels, strict=True)]


def batch_of(model, some):
    c = classifier(model)
    return c, c.collate(c.encode([r.texts for r in some])), torch.tensor([r.label for r in some])


def worst_radius(model, some):
    """Of the linear model: |margin| / (||w|| sqrt(words)), relative to the norm of the words' embeddings."""
    c, batch, labels = batch_of(model, some)
    with torch.no_grad():
        gap = margin(c.logits(batch), labels)
        reach = model.w.norm() * words_of(c, batch).sum(dim=1).sqrt()
        return (gap / reach / embedding_norm(c, batch)).numpy()


def test_worst_case_of_a_linear_model():
    model = Linear()
    some = rows(model)
    exact = worst_radius(model, some)
    for radius in numpy.quantile(exact, [0.22, 0.5, 0.78]):  # each between two rows of 16, not on one
        survived = attacked(classifier(model), some, radius, Ascent(steps=5, restarts=1))
        assert survived.tolist() == (exact > radius).tolist()


def test_the_movement_is_along_w_in_words_alone_and_reaches_the_sphere():
    model = Linear()
    some = rows(model)
    c, batch, labels = batch_of(model, some)
    radius = 0.3 * embedding_norm(c, batch).detach()
    delta = ascend(c, batch, labels, radius, Ascent(steps=4, restarts=1), stop=False)
    words = words_of(c, batch)
    assert (words.sum(dim=1) == torch.tensor([len(r.texts[0].split()) for r in some])).all()
    assert delta[~words].abs().max() == 0
    assert delta.flatten(1).norm(dim=1).numpy() == pytest.approx(radius.numpy(), rel=1e-5)
    towards = torch.where(labels == 1, -1.0, 1.0)[:, None, None] * model.w.detach() / model.w.detach().norm()
    expected = towards * words[..., None] * (radius / words.sum(dim=1).sqrt())[:, None, None]
    assert delta.numpy() == pytest.approx(expected.detach().numpy(), abs=1e-5)


@pytest.mark.parametrize("make", [bert, imbert])
def test_no_movement_leaves_the_ball_or_depends_on_batch_mates(make):
    model = make()
    some = rows(model, 6)
    c, batch, labels = batch_of(model, some)
    radius = 0.2 * embedding_norm(c, batch).detach()
    delta = ascend(c, batch, labels, radius, Ascent(steps=3, restarts=1), stop=False)
    assert (delta.flatten(1).norm(dim=1) <= radius * (1 + 1e-5)).all()
    _, alone, label = batch_of(model, some[:1])
    own = ascend(c, alone, label, radius[:1], Ascent(steps=3, restarts=1), stop=False)
    assert own[0].numpy() == pytest.approx(delta[0, : own.shape[1]].numpy(), abs=1e-3 * float(radius[0]))


@pytest.mark.parametrize("solver", ["fixed_point", "anderson", "gradient_descent"])
@pytest.mark.parametrize("gradient", ["unrolled", "implicit", "one_step"])
def test_gradients_are_exact_whatever_the_model_was_trained_with(solver, gradient):
    model = imbert(im_solver=solver, im_gradient=gradient, im_iterations=2, im_learning_rate=0.02)
    some = rows(model, 6)
    for radius in (0.0, 0.2):
        assert max(gradient_errors(classifier(model), some, radius=radius)) < 0.05
    assert model.config.im_gradient == gradient
    c, batch, labels = batch_of(model, some)
    delta = torch.zeros(*batch["input_ids"].shape, 32, requires_grad=True)

    def gradient_of():
        with moved_embeddings(model, delta):
            return torch.autograd.grad(margin(c.logits(batch), labels).sum(), delta)[0]

    with exact_gradients(model):
        assert not any(p.requires_grad for p in model.parameters())
        exact = gradient_of()
    assert all(p.requires_grad for p in model.parameters())
    assert torch.allclose(exact, gradient_of(), rtol=1e-4) == (gradient == "unrolled")


def test_an_attack_that_raises_leaves_the_model_as_it_was():
    model = imbert(im_gradient="implicit")
    with (
        pytest.raises(ValueError, match="word embeddings must be"),
        exact_gradients(model),
        moved_embeddings(model, torch.zeros(1, 1, 7)),
    ):
        model(torch.tensor([[2, 7, 3]]))
    assert model.config.im_gradient == "implicit"
    assert not model.get_input_embeddings()._forward_hooks


ALL = ["large_radius", "larger_radius", "gradient", "more_steps", "transfer"]


def checks(model, source=None, **kwargs):
    some = rows(model)
    found = embedding_attack(
        classifier(model),
        some,
        radii=[0.1, 0.3, 1.0],
        large_radius=kwargs.pop("large_radius", 10.0),
        attack=Ascent(steps=10, restarts=2),
        source=None if source is None else classifier(source, fingerprint="source"),
    )
    assert found["clean_accuracy"] == 1
    return found, [c["name"] for c in found["checks"] if c["passed"] is False]


def test_an_honest_model_passes():
    model = imbert()
    plain = imbert(im_layers=[])
    found, failed = checks(model, plain)
    assert [c["name"] for c in found["checks"]] == ALL
    assert failed == []
    accuracies = [p["accuracy"] for p in found["curve"]]
    assert accuracies[0] > 0.5
    assert accuracies[-1] == 0
    assert accuracies == sorted(accuracies, reverse=True)
    assert [p["radius"] for p in found["curve"]] == [0.1, 0.3, 1.0, 10.0]


def test_a_model_that_detaches_its_solves_is_caught(monkeypatch):
    honest = pass_imbert.checked_step

    def detached(layer, x, *rest):
        solution = honest(layer, x, *rest)
        return replace(solution, value=solution.value.detach() + 1e-3 * (x - x.detach()))

    plain = imbert(im_layers=[])
    monkeypatch.setattr(pass_imbert, "checked_step", detached)
    _, failed = checks(imbert(), plain)
    assert "gradient" in failed
    assert {"large_radius", "transfer"} & set(failed)


class Rounding(Linear):
    """A model without a gradient: it rounds what it reads."""

    def forward(self, input_ids, attention_mask, **_):
        embedded = (torch.round(self.embedding(input_ids) * 4) / 4).detach()
        score = ((embedded @ self.w) * attention_mask).sum(dim=1)
        return type("Output", (), {"logits": torch.stack([torch.zeros_like(score), score], dim=1)})()


def test_a_model_without_a_gradient_is_caught():
    found, failed = checks(Rounding(), Linear())
    assert {"large_radius", "gradient", "transfer"} <= set(failed)
    assert any("for 0.0 % of the rows" in c["message"] for c in found["checks"])


class HalfRandom(Linear):
    """A model that answers rightly, and whose gradient is random for some rows."""

    def forward(self, input_ids, attention_mask, **_):
        embedded = self.embedding(input_ids)
        noise = torch.randn(embedded.shape, generator=torch.Generator().manual_seed(3))
        lying = (input_ids.sum(dim=1) % 10 < 4)[:, None, None] * 1.0
        false = embedded.detach() + lying * noise * (embedded - embedded.detach())
        embedded = false + (1 - lying) * (embedded - embedded.detach())
        score = ((embedded @ self.w) * attention_mask).sum(dim=1)
        return type("Output", (), {"logits": torch.stack([torch.zeros_like(score), score], dim=1)})()


def test_a_gradient_that_lies_for_some_rows_is_caught():
    _, failed = checks(HalfRandom())
    assert "gradient" in failed


def test_checks_that_were_not_made_do_not_pass():
    model = Linear()
    found = embedding_attack(classifier(model), rows(model), radii=[0.1], attack=Ascent(steps=1, restarts=1))
    assert {c["name"]: c["passed"] for c in found["checks"]}["transfer"] is None
    assert {c["name"]: c["passed"] for c in found["checks"]}["more_steps"] is None
    assert found["curve"][0]["accuracy_fewer_steps"] is None


def test_accuracy_that_rises_with_the_radius_is_caught():
    points = [(0.1, 0.4), (0.2, 0.6), (3.0, 0.0)]
    curve = [{"radius": r, "accuracy": a, "accuracy_fewer_steps": None, "transfer_accuracy": None} for r, a in points]
    failed = {c["name"] for c in masking_checks(0.9, curve, [0.0] * 20, 20) if c["passed"] is False}
    assert failed == {"larger_radius"}
    failed = {
        c["name"]
        for c in masking_checks(0.9, curve[:1] + curve[2:], [0.0] * 18 + [None, 0.2], 20)
        if c["passed"] is False
    }
    assert failed == {"gradient"}


def test_every_restart_is_made():
    model = imbert()
    some = rows(model, 4)
    c, batch, labels = batch_of(model, some)
    radius = 0.3 * embedding_norm(c, batch).detach()
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    ascend(c, batch, labels, radius, Ascent(steps=2, restarts=3), stop=False)
    handle.remove()
    assert len(calls) == 3 * (2 + 1)


def test_a_row_that_is_wrong_already_is_not_saved_by_the_attack():
    model = Linear()
    some = [replace(r, label=1 - r.label) for r in rows(model)]
    assert not attacked(
        classifier(model), some, 0.5, Ascent(steps=1, restarts=1), source=classifier(Linear(seed=1))
    ).any()


def test_answers_that_are_not_finite_are_no_survivors():
    model = Linear()
    some = rows(model)
    model.w.data.fill_(torch.nan)
    assert not attacked(classifier(model), some, 0.1, Ascent(steps=2, restarts=1)).any()


def test_a_model_that_ignores_its_input_is_not_called_robust():
    model = Linear()
    model.w.data.zero_()
    _, failed = checks(model)
    assert {"large_radius", "gradient"} <= set(failed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"radii": [0.0]}, r"radii must be numbers above 0 and at most large_radius, 3.0, got 0.0"),
        ({"radii": [5.0]}, r"got 5.0"),
        ({"radii": [float("nan")]}, r"got nan"),
    ],
)
def test_wrong_radii(arguments, message):
    model = Linear()
    with pytest.raises(ValueError, match=message):
        embedding_attack(classifier(model), rows(model, 2), **arguments)


def test_wrong_options():
    with pytest.raises(ValueError, match="steps must be an integer >= 1, got 0"):
        Ascent(steps=0)
    with pytest.raises(ValueError, match="step_size must be a number > 0, got -1"):
        Ascent(step_size=-1)
    model = Linear()
    with pytest.raises(ValueError, match=r"cannot be transferred to .*\(99, 5\) and \(99, 4\)"):
        attacked(classifier(model), rows(model, 2), 0.1, Ascent(), source=classifier(Linear(width=5)))
