"""The rows for a GPU: all there without one, and each a measure of what it says, tried on a CPU with a tiny model."""

import json
from dataclasses import replace

import costs
import gpu
import gpu_command
import pytest
import torch
from gpu import ROWS, Row
from run import run


model = costs.model  # a fixture: two layers


def test_without_a_gpu_every_row_is_printed_as_not_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_command, "base_model", lambda seed: None)
    run(["gpu", "--quiet", "--output", str(tmp_path / "gpu.json")])
    found = json.loads((tmp_path / "gpu.json").read_text())["targets"]
    assert len(found) == len(ROWS) == len({(row["target"], row["setting"]) for row in found})
    assert {(row["verdict"], row["note"]) for row in found} == {("not measured", "no GPU")}
    assert f"0 of 0 met, {len(ROWS)} not measured." in capsys.readouterr().out


def small(row: Row) -> Row:
    return replace(row, shape=(2, 6), iterations=min(row.iterations, 4))


@pytest.mark.parametrize("row", {small(row) for row in ROWS if not row.graph}, ids=str)
def test_each_row_is_measured(model, row):
    if row.against == "torchdeq":
        pytest.importorskip("torchdeq", reason="torchdeq is not installed")
    found = gpu.measured(row, model, repeats=1)
    assert found["measured"] > 0
    assert found["bound"] == row.bound
    assert (found["quartiles"] is None) == (row.phase == "memory")
    assert model.dtype == torch.float32


def test_what_a_row_is_of_and_held_against(model):
    names = {
        row: [variant and variant.name for variant in gpu.pair(row, model)]
        for row in (Row("inference", 1), Row("memory", 1, iterations=4, gradient="one_step", against="T 2"))
    }
    assert list(names.values()) == [
        ["fixed_point T 3, implicit", "BERT"],
        ["fixed_point T 4, one_step", "fixed_point T 2, one_step"],
    ]
    ours, _ = gpu.pair(Row("inference", 1, layers=1), model)
    assert ours.fields["im_layers"] == [1]
    assert gpu.least(Row("inference", 1, layers=1), ours, model) == 1 + 3 / 2  # T 3 in one of two layers
    assert gpu.least(Row("inference", 1), ours, model) == 4
    assert gpu.least(Row("training", 1), ours, model) == pytest.approx((4 + 1 + 3 + 2) / 3)
    assert gpu.least(Row("training", 1, against="torchdeq"), ours, model) == 1


def test_a_graph_is_captured_once_and_replayed_in_every_round(model, monkeypatch):
    captured, replayed = [], []
    monkeypatch.setattr(gpu, "captured", lambda forward: captured.append(forward()) or (lambda: replayed.append(1)))
    gpu.measured(small(Row("inference", 1.06, graph=True)), model, repeats=3)
    assert (len(captured), len(replayed)) == (2, 2 * (1 + 3))  # IM-BERT's and BERT's


def test_a_training_step_is_under_autocast(model):
    seen = []
    hook = model.classifier.register_forward_hook(lambda *a: seen.append(a[-1].dtype))
    ours, _ = gpu.pair(Row("training", 1), model)
    with ours.ready(True):
        ours.step(gpu.make_batch(model, None, None, 2, 6))
    hook.remove()
    model.zero_grad()
    assert seen == [torch.bfloat16]
