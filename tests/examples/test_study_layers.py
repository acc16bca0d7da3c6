"""The stiffness of layers that examples/study measures, against what follows from the layers' own outputs."""

from importlib import import_module

import pytest
import torch


pytest.importorskip("accelerate")
pytest.importorskip("datasets")
pytest.importorskip("sklearn")

from classifiers import WORDS, bert, imbert, save

from imbert_hf.evaluation.data.classifier import load_classifier
from imbert_hf.evaluation.data.tasks import Row, find_task


TEXTS = (" ".join(WORDS[:7]), " ".join(WORDS[:3]))


def perturb(text, kind, strength, seed):
    """A typo, to a vocabulary whose words have no letters to confuse."""
    assert (strength, seed) == (0.2, 0)
    return f"{text} {WORDS[len(kind)]}"


@pytest.fixture
def layers(monkeypatch):
    module = import_module("study.layers")
    monkeypatch.setattr(module, "perturb", perturb)
    return module


def measured(layers, model, folder):
    classifier = load_classifier(save(folder, model), find_task("sst2"))
    return classifier, layers.measure_layers(classifier, [Row((text,), 0) for text in TEXTS])


def relative(change, step):
    return float(change.norm() / step.norm())


def test_of_real_layers(layers, tmp_path):
    classifier, found = measured(layers, bert(), tmp_path)
    base, count = classifier.model.bert, classifier.model.config.num_hidden_layers
    every, first, moved, radius = [], [], [], []
    for text in TEXTS:
        with torch.no_grad():
            h, *noisy = (
                base(**classifier.collate(classifier.encode([(words,)])), output_hidden_states=True).hidden_states
                for words in (text, *(perturb(text, kind, 0.2, 0) for kind in ("keyboard", "swap", "deletion")))
            )
            f = [h[i + 1] - h[i] for i in range(count)]
            later = [layer(y0) - y0 for layer, y0 in zip(base.encoder.layer, h[1:], strict=True)]
        every.append([relative(a - b, b) for a, b in zip(later, f, strict=True)])
        first.append([relative((a - b)[0, 0], b[0, 0]) for a, b in zip(later, f, strict=True)])
        moved += [[relative(w[i][0, 0] - h[i][0, 0], h[i][0, 0]) for i in range(1, count + 1)] for w in noisy]
        J = [
            torch.autograd.functional.jacobian(lambda z, F=layer, x=x: F(z.view_as(x)).flatten(), x.flatten())
            for layer, x in zip(base.encoder.layer, h, strict=False)
        ]
        radius.append([torch.linalg.eigvals(one).abs().max().item() for one in J[-2:]])
    for name, rows, error in (
        ("stiffness, clean", every, 1e-4),
        ("first, clean", first, 1e-4),
        ("moved", moved, 1e-4),
        ("radius, clean", radius, 1e-2),
    ):
        assert found[name] == pytest.approx(torch.tensor(rows).mean(dim=0).tolist(), rel=error, abs=1e-5), name
    assert found["stiffness, typos"] != found["stiffness, clean"]
    assert set(found) == {"moved"} | {f"{a}, {b}" for a in ("stiffness", "first", "radius") for b in ("clean", "typos")}


def test_an_implicit_model_is_read_as_bert(layers, tmp_path):
    """The weights alone count, not how the model is connected."""
    model = imbert(im_layers="all")
    _, of_implicit = measured(layers, model, tmp_path / "implicit")
    _, of_plain = measured(layers, model.to_plain(), tmp_path / "plain")
    assert of_implicit == of_plain


def test_a_step_that_does_not_change_is_not_stiff(layers):
    """F(h) = h + a is f(h) = a everywhere; F(h) = A h has the stiffness of A - I along the step."""
    x = torch.ones(1, 2, 3)
    every, first = layers.stiffness([(lambda h: h + 1.0, x, x + 1), (lambda h: 3 * h, x + 1, 3 * (x + 1))])
    assert every == first == [0.0, pytest.approx(2.0)]
