"""examples/jacobians.py: what it says of linear maps is known, and its table comes out on a tiny BERT."""

import sys
from pathlib import Path

import numpy
import pytest
import torch


pytest.importorskip("tabulate")

from classifiers import bert, save


@pytest.fixture(scope="module")
def jacobians():
    folder = str(Path(__file__).resolve().parents[1] / "examples")
    sys.path.insert(0, folder)
    try:
        import jacobians
    finally:
        sys.path.remove(folder)
    return jacobians


def rotation(angle, scale=1.0):
    c, s = scale * numpy.cos(angle), scale * numpy.sin(angle)
    return [[c, -s], [s, c]]


@pytest.mark.parametrize(
    ("matrix", "outside"),
    [
        (numpy.diag([0.5, 1.8]), 0),  # z = -0.5 and 0.8
        (numpy.diag([-0.5, 0.5]), 50),  # z = -1.5: implicit Euler multiplies by 0.4
        (numpy.eye(2) + rotation(numpy.pi / 2, 0.5), 100),  # z = +-0.5 i: damped, where the explicit step amplifies
        ([[0.9, 0.3], [0.0, 0.2]], 0),  # not normal
    ],
)
def test_of_a_linear_map(jacobians, matrix, outside):
    J = torch.tensor(numpy.asarray(matrix), dtype=torch.float64)
    found = jacobians.steps(lambda h: h @ J.T, torch.tensor([[[0.3, -0.7]]], dtype=torch.float64))
    implicit = torch.linalg.inv(2 * torch.eye(2, dtype=torch.float64) - J)
    for name, expected in (("explicit", J), ("implicit", implicit)):
        singular = torch.linalg.svdvals(expected)
        assert found[f"gain, {name}"] == pytest.approx(float(singular.square().mean().sqrt()))
        assert found[f"worst, {name}"] == pytest.approx(float(singular[0]))
    z = numpy.linalg.eigvals(numpy.asarray(matrix)) - 1
    assert found["Re z"] == pytest.approx(z.real.max())
    assert found["outside"] == outside == 100 * numpy.mean(abs(1 / (1 - z)) < abs(1 + z))
    assert found["residual"] <= 1e-5


def test_a_step_without_a_solution_is_said(jacobians):
    J = 2 * torch.eye(2)  # z = 1, the pole of implicit Euler
    with pytest.raises(ValueError, match="the implicit step has a relative residual of"):
        jacobians.steps(lambda h: h @ J, torch.ones(1, 1, 2))


def test_the_table(jacobians, tmp_path, capsys):
    model = save(tmp_path / "bert", bert())
    jacobians.main(["--model", model, "--sentences", "1", "--tokens", "32"])
    head, _, *table = capsys.readouterr().out.splitlines()
    assert head == "bert: 1 sentences of at most 32 tokens, explicit, implicit"
    assert [line.split("|")[1].strip() for line in table[2:]] == [str(i) for i in range(bert().config.num_hidden_layers)]
    with pytest.raises(SystemExit, match=r"error: --tokens must be at least \d+ and --sentences at least 1\."):
        jacobians.main(["--model", model, "--tokens", "2"])
