"""examples/jacobians.py: of maps whose Jacobians are known, and of a tiny BERT in its own forward."""

import re
from importlib import import_module

import pytest
import torch


pytest.importorskip("tabulate")

from classifiers import bert, save
from tiny import refused
from transformers import AutoModel


@pytest.fixture(scope="module")
def jacobians():
    return import_module("jacobians")


def test_of_a_linear_map(jacobians):
    """Not normal: y = (2 I - A)^-1 x."""
    A = torch.tensor([[0.9, 0.3], [0.0, 0.2]], dtype=torch.float64)
    found = jacobians.steps(lambda h: h @ A.T, torch.tensor([[[0.3, -0.7]]], dtype=torch.float64))
    inverse = torch.linalg.inv(2 * torch.eye(2, dtype=torch.float64) - A)
    for name, expected in (("explicit", A), ("implicit", inverse)):
        torch.testing.assert_close(found[name], expected)
        singular = torch.linalg.svdvals(expected)
        assert jacobians.gain(found[name]) == pytest.approx(float(singular.square().mean().sqrt()))
        assert jacobians.worst(found[name]) == pytest.approx(float(singular[0]))


def test_the_implicit_steps_jacobian_is_at_its_solution(jacobians):
    """F(h) = h^2 / 4, so that y = 4 - sqrt(16 - 4 x), and dy/dx = 2 / sqrt(16 - 4 x) against dF/dh = x / 2."""
    x = torch.tensor([[[1.0, 2.0, -3.0]]], dtype=torch.float64)
    found = jacobians.steps(lambda h: h.square() / 4, x)
    torch.testing.assert_close(found["explicit"], torch.diag(x.flatten() / 2))
    torch.testing.assert_close(found["implicit"], torch.diag(2 / (16 - 4 * x.flatten()).sqrt()), rtol=1e-4, atol=1e-6)


def test_a_step_without_a_solution(jacobians):
    found = jacobians.steps(lambda h: 2 * h, torch.ones(1, 1, 2))  # y = x + y
    assert found["implicit"] is None
    torch.testing.assert_close(found["explicit"], 2 * torch.eye(2))


def test_layers_see_what_they_see_in_the_checkpoints_own_forward(jacobians, tmp_path, capsys, monkeypatch):
    path = save(tmp_path / "bert", bert())
    seen = []

    def steps(F, x):
        seen.append(x)
        return {"explicit": torch.eye(2), "implicit": None}

    monkeypatch.setattr(jacobians, "steps", steps)
    jacobians.main(["--model", path, "--sentences", "1"])
    head, _, *table = capsys.readouterr().out.splitlines()
    plain = AutoModel.from_pretrained(path).eval()
    tokenizer = jacobians.load_encoder(path)[1]
    monkeypatch.setattr(jacobians, "load_encoder", lambda path: (plain, tokenizer))
    own, seen = seen, []
    jacobians.main(["--model", path, "--sentences", "1"])
    assert head == f"bert, sentences of {seen[0].shape[1]} tokens"
    assert all(torch.equal(a, b) for a, b in zip(own, seen, strict=True))
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    assert cells[0] == ["layer", "gain, explicit", "worst, explicit", "gain, implicit", "worst, implicit", "solved"]
    assert cells[2:] == [[str(i), "1.00", "1.0", "", "", "0 of 1"] for i in range(plain.config.num_hidden_layers)]


def test_wrong_arguments(jacobians, tmp_path):
    said = refused(jacobians.main, ["--sentences", "0", "--model", str(tmp_path)])
    assert re.fullmatch(r"jacobians.py: error: --sentences must be from 1 to \d+, got 0\.", said)
    said = refused(jacobians.main, ["--model", str(tmp_path / "absent")])
    assert re.match(r"jacobians.py: error: .*absent", said)
