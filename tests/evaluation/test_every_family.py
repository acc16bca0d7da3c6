"""stability and cost on checkpoints of every family, plain and implicit."""

import json

import pytest
import torch
from classifiers import WORDS, save
from families import FAMILIES, pair_of

from imbert_hf.evaluation import cli
from imbert_hf.evaluation.cost.command import load_model
from imbert_hf.evaluation.data.loading import load_encoder


IDS = torch.tensor([[2, 5, 6, 7, 10, 8, 3]])


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    """Folders of a plain and an implicit classifier with the same weights, and the two models."""
    folder = tmp_path_factory.mktemp(request.param)
    models = pair_of(f"{request.param}ForSequenceClassification", im_layers=[-1])
    return [save(folder / name, model) for name, model in zip(("plain", "implicit"), models, strict=True)], models


def test_encoders_are_the_checkpoints(pair):
    for path, model in zip(*pair, strict=True):
        encoder, _ = load_encoder(path)
        with torch.no_grad():
            expected = model.base_model(IDS, output_hidden_states=True).hidden_states
            found = encoder(IDS, output_hidden_states=True).hidden_states
        assert all(map(torch.equal, found, expected))
        assert encoder.config.implicit_layers == getattr(model.config, "implicit_layers", frozenset())
        classifier, _ = load_model(path)
        with torch.no_grad():
            states = classifier(IDS, output_hidden_states=True).hidden_states
        assert torch.equal(states[-2], expected[-2])


def run(tmp_path, command, *words):
    out = tmp_path / f"{command}.json"
    cli.main([command, *map(str, words), "--device", "cpu", "--quiet", "--output", str(out), "--overwrite"])
    return json.loads(out.read_text())


def test_stability(pair, tmp_path):
    (tmp_path / "texts.txt").write_text(f"{' '.join(WORDS[:5])}\n{' '.join(WORDS[3:9])}\n")
    few = ["--directions", 2, "--restarts", 1, "--steps", 1, "--eigenvalues", 1, "--iterations", 3, "--max-length", 16]
    found = {
        path: run(tmp_path, "stability", "--model", path, "--data", tmp_path / "texts.txt", *few) for path in pair[0]
    }
    plain, implicit = found.values()
    assert plain["connections"]["IM-BERT"]["im_layers"] == "all"
    assert implicit["connections"]["IM-BERT"]["im_layers"] == [-1]
    for of_plain, of_implicit in zip(plain["growth"], implicit["growth"], strict=True):
        if of_plain["connection"] == "BERT":
            assert of_plain == of_implicit
    assert len(plain["summary"]["spectrum"]) == pair[1][0].config.num_hidden_layers


def test_cost(pair, tmp_path):
    few = ["--batch", 2, "--length", 8, "--repeats", 1, "--gradient-rows", 2, "--iterations", 2]
    found = run(tmp_path, "cost", "--model", pair[0][1], *few, "--implicit-layers", 1, "--solver", "fixed_point")
    rows = {row["name"]: row for row in found["cells"][0]["rows"]}
    assert rows["fixed_point T 2, implicit"]["inference"]["forward"]["evaluations"] == 3
    assert 0 < rows["fixed_point T 2, implicit"]["residual"] < 1
