"""The serving command on a tiny model: what it measures of every engine, and what it refuses."""

import json
from functools import partial

import pytest
import serving
import torch
from classifiers import imbert, save
from run import run


pytest.importorskip("onnxscript", reason="onnxscript is not installed")
# Of torch's own: the ONNX exporter's functions, and tracing.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


NAMES = ("BERT", "IM-BERT, last layer")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving")
    checkpoint = save(folder / "model", imbert(num_hidden_layers=2, hidden_size=96))
    words = f"serving --model {checkpoint} --text-length 5 --text-rounds 3 --batch 2 --length 6 --rounds 2 --quiet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "CLASSIFIERS", {name: serving.CLASSIFIERS[name] for name in NAMES})  # seconds each
        eager = partial(torch.compile, backend="eager")  # inductor takes a minute
        patch.setattr(serving.torch, "compile", eager)
        run([*words.split(), "--output", str(folder / "serving.json")])
    return json.loads((folder / "serving.json").read_text())


def test_every_classifier_in_every_engine(found):
    pairs = [(one["engine"], one["classifier"]) for one in found["records"]]
    assert pairs == [(engine, name) for engine in serving.ENGINES for name in NAMES]
    for one in found["records"]:
        single, several = one["batches"]["1 x 5"], one["batches"]["2 x 6"]
        assert (len(single["seconds"]), len(several["seconds"])) == (3, 2)
        for timing in (single, several):
            assert 0 < timing["median"] <= timing["p99"]
            assert timing["texts_per_second"] == pytest.approx(timing["rows"] / timing["median"])
            if one["classifier"] == "BERT":
                assert (timing["ratio"], timing["p99_ratio"], one["size_ratio"]) == (1, 1, 1)


def test_the_engines_compute_the_same_model(found):
    for one in found["records"]:
        exact = one["engine"] in ("eager", "torch.compile")
        assert one["difference"] <= {True: 0, False: 1e-4}[exact] or one["engine"] == "onnxruntime int8"
    int8 = [one for one in found["records"] if one["engine"] == "onnxruntime int8"]
    assert all(0 < one["difference"] < 1 for one in int8)


def test_the_floor_counts_evaluations(found):
    """Three more in one of two layers."""
    floors = {one["classifier"]: one["floor"] for one in found["records"]}
    assert list(floors.values()) == [1, (2 + 3) / 2]
    timed = next(one for one in found["records"] if one["engine"] == "onnxruntime" and one["floor"] == 2.5)
    _, last = found["targets"]
    assert last["setting"] == "IM-BERT, last layer, 2 x 6"
    assert last["measured"] == pytest.approx(timed["batches"]["2 x 6"]["ratio"] / 2.5)


def test_it_says_where_it_was_measured(found):
    assert found["machine"].keys() == {"cpu", "onnxruntime", "commit", "dirty"}
    assert found["settings"]["versions"].keys() >= {"torch", "transformers"}
    assert found["settings"]["threads"] == 1


@pytest.mark.parametrize("name", ["text-length", "text-rounds", "batch", "length", "rounds"])
def test_bad_input_is_refused(name, capsys):
    with pytest.raises(SystemExit):
        run(["serving", f"--{name}", "0"])
    assert f"--{name} must be an integer >= " in capsys.readouterr().err
