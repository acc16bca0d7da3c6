"""The bounds for a GPU: all there without one, and each a measure of what it says, tried on a CPU with a tiny model."""

import json
from dataclasses import replace

import costs
import gpu
import pytest
import torch
from gpu import TARGETS
from run import run

from imbert_hf.evaluation.report import Journal


model = costs.model  # a fixture: two layers
TINY = [replace(target, shape=(2, 6), iterations=min(target.iterations, 4)) for target in TARGETS]


def needs_torchdeq(target):
    if target.against == "torchdeq":
        pytest.importorskip("torchdeq", reason="torchdeq is not installed")


def test_without_a_gpu_every_bound_is_printed_as_not_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run(["gpu", "--quiet", "--output", str(tmp_path / "gpu.json")])
    found = json.loads((tmp_path / "gpu.json").read_text())["targets"]
    assert len(found) == len(TARGETS) == len({(row["target"], row["setting"]) for row in found})
    assert {(row["verdict"], row["note"]) for row in found} == {("not measured", "no GPU")}
    assert f"0 of 0 met, {len(TARGETS)} not measured." in capsys.readouterr().out


@pytest.mark.parametrize("target", dict.fromkeys(TINY), ids=lambda target: f"{target.name}, {target.setting}")
def test_each_is_what_it_says(model, target, monkeypatch):
    """Ours takes four seconds where what it is held against takes one, and four bytes."""
    needs_torchdeq(target)
    ours, theirs = gpu.variants_of(target, model)
    phases, timed = [], gpu.timed

    def noted(variant, batch, training):
        phases.append((training, tuple(batch["input_ids"].shape)))
        return timed(variant, batch, training)

    def seconds(actions, rounds, synchronise):
        for action in actions.values():
            with action() as function:
                function()
        return {"ours": [4.0, 4.0], "theirs": [1.0, 1.0]}

    monkeypatch.setattr(gpu, "captured", lambda forward: forward)
    monkeypatch.setattr(gpu, "timed", noted)
    monkeypatch.setattr(gpu, "interleave", seconds)
    monkeypatch.setattr(gpu, "peak_bytes", lambda variant, batch: 4 if variant.name == ours.name else 1)
    found = gpu.measure(target, model, repeats=1)
    share = (target.layers or 2) / 2
    T, one_step = target.iterations, target.gradient == "one_step"
    work = (T + 1 + (2 if one_step else 1 + T + 2)) / 3 if target.phase == "training" else T + 1
    least = 1 + (work - 1) * share if target.against == "floor" else 1
    assert found["measured"] == pytest.approx(4 / least)
    assert set(phases) == (
        set() if target.graph or target.phase == "memory" else {(target.phase == "training", (2, 6))}
    )
    assert found["bound"] == target.bound
    assert ours.name == f"{target.solver} T {T}, {target.gradient}"
    names = {"torchdeq": f"torchdeq {ours.name}", "T 2": f"{target.solver} T 2, {target.gradient}"}
    assert theirs.name == names.get(target.against, "BERT")
    assert ours.fields["im_layers"] == ([1] if target.layers else [0, 1])


def test_a_graph_is_captured_once_and_replayed_in_every_round(model, monkeypatch):
    captured, replayed = [], []
    monkeypatch.setattr(gpu, "captured", lambda forward: captured.append(forward()) or (lambda: replayed.append(1)))
    target = next(target for target in TINY if target.graph)
    gpu.measure(target, model, repeats=3)
    assert (len(captured), len(replayed)) == (2, 2 * (gpu.WARM_UP + 3))  # IM-BERT's and BERT's


def test_dtypes(model, monkeypatch):
    """Inference in bfloat16, a training step under its autocast; beside torchdeq, which leaves that, in float32."""
    seen = []
    monkeypatch.setattr(gpu, "measure", lambda target, given, *_: seen.append((target, given)) or {})
    gpu.measure_gpu(model, repeats=1)
    assert [target for target, _ in seen] == list(TARGETS)
    for target, given in seen:
        assert given.dtype == (torch.bfloat16 if target.phase == "inference" else torch.float32)
        if target.phase != "inference" and (target.against != "torchdeq" or gpu.find_torchdeq()):
            for variant in gpu.variants_of(target, model):
                logits = []
                hook = variant.model.classifier.register_forward_hook(lambda *a, logits=logits: logits.append(a[-1]))
                with variant.ready(True):
                    variant.step(gpu.make_batch(model, None, None, 2, 6))
                hook.remove()
                assert logits[0].dtype == (torch.float32 if target.against == "torchdeq" else torch.bfloat16)
    model.zero_grad()


def test_a_run_that_was_stopped_goes_on(model, monkeypatch, tmp_path):
    asked = []

    def measure(target, *_):
        asked.append(target)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return {"target": target.name}

    monkeypatch.setattr(gpu, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        gpu.measure_gpu(model, repeats=1, keep=Journal(tmp_path / "parts").part)
    found = gpu.measure_gpu(model, repeats=1, keep=Journal(tmp_path / "parts").part)
    assert [row["target"] for row in found] == [target.name for target in TARGETS]
    assert asked == [*TARGETS[:3], *TARGETS[2:]]
