"""examples/export.py: what it writes, loaded again, gives the logits that it says; a failure leaves nothing behind."""

import json
import re
from collections import Counter

import export
import pytest
import torch
from classifiers import bert, imbert, save, tokenizer
from tiny import refused
from transformers import AutoModelForSequenceClassification

from imbert_hf import IMBertForSequenceClassification


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "im-bert", imbert(num_hidden_layers=1))


def test_plain(folder, tmp_path, capsys):
    out = tmp_path / "plain"
    export.main([folder, "--to", "plain", "--output", str(out)])
    assert "auto_map" not in json.loads((out / "config.json").read_text())
    assert not list(out.glob("*.py"))
    model = AutoModelForSequenceClassification.from_pretrained(out).eval()
    assert type(model).__name__ == "BertForSequenceClassification"
    ours = IMBertForSequenceClassification.from_pretrained(folder).eval()
    inputs = tokenizer()("w1 w2 w3", return_tensors="pt")
    ours.config.im_layers = []
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, ours(**inputs).logits)
    shown = capsys.readouterr().out
    assert "6 labels are the same" in shown
    assert "measure it again" in shown


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("kind", "within"), [("onnx", 1e-4), ("onnx-int8", 0.2)])
def test_onnx(folder, kind, within, tmp_path, capsys):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    out = tmp_path / "onnx"
    export.main([folder, "--to", kind, "--output", str(out)])
    assert sorted(path.name for path in out.iterdir()) == [
        *("labels.json", "model.onnx", "tokenizer.json", "tokenizer_config.json")
    ]
    session = onnxruntime.InferenceSession(out / "model.onnx")
    model = IMBertForSequenceClassification.from_pretrained(folder).eval()
    largest = 0.0
    for texts in (["w1"], ["w1 w2 w3 w4 w5", "w6", "w7 w8"]):
        inputs = tokenizer()(texts, padding=True, return_tensors="pt")
        (found,) = session.run(["logits"], {name: value.numpy() for name, value in inputs.items()})
        with torch.no_grad():
            largest = max(largest, (torch.from_numpy(found) - model(**inputs).logits).abs().max().item())
    assert 0 < largest < within
    assert "Logits differ by at most" in capsys.readouterr().out


WORK = re.compile("LayerNormalization|Gelu|MatMul|Gemm|Softmax|Attention|Quantize")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_evaluations_are_fused_and_quantised_as_layers_of_bert_are(tmp_path):
    """One layer evaluated three times leaves onnxruntime the work of three layers, kind by kind."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    import onnx
    import onnxruntime

    def kinds(model, name):
        folder = tmp_path / name
        folder.mkdir()
        export.to_onnx(model, tokenizer(), folder)
        for found in (Counter(), Counter()):
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3  # it warns that the optimised model is of this machine
            options.optimized_model_filepath = str(folder / "optimised.onnx")
            onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
            nodes = onnx.load(folder / "optimised.onnx").graph.node
            found.update(node.op_type for node in nodes if WORK.search(node.op_type))
            yield found
            export.quantise(folder / "model.onnx")

    wide = {"hidden_size": 96, "intermediate_size": 96}  # the exporter itself folds what is smaller
    floats, int8 = kinds(bert(num_hidden_layers=3, **wide), "bert")
    assert (floats["SkipLayerNormalization"], floats["BiasGelu"]) == (6, 3)
    assert int8["MatMulIntegerToFloat"] + int8["DynamicQuantizeMatMul"] > 3 * 5
    assert [floats, int8] == list(kinds(imbert(num_hidden_layers=1, im_iterations=2, **wide), "im-bert"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_failure_is_one_sentence_and_leaves_nothing(tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    folder = save(tmp_path / "im-bert", imbert(num_hidden_layers=1, im_solver="gradient_descent"))
    with pytest.raises(SystemExit, match=r"onnx failed: .*use 'fixed_point' or 'anderson'") as error:
        export.main([folder, "--to", "onnx", "--output", str(tmp_path / "onnx")])
    assert len(str(error.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["im-bert"]


def test_wrong_arguments(folder, tmp_path):
    plain = save(tmp_path / "bert", bert())
    headless = save(tmp_path / "headless", bert().base_model)
    for words, message in (
        ([str(tmp_path), "--to", "plain", "--output", "x"], "must be a folder with a config.json"),
        ([folder, "--to", "plain", "--output", folder], "--output must name a folder that is not there yet"),
        ([plain, "--to", "plain", "--output", str(tmp_path / "x")], "holds a BertForSequenceClassification"),
        ([headless, "--to", "plain", "--output", str(tmp_path / "x")], "is no trained sequence classifier"),
        ([folder, "--to", "gguf", "--output", "x"], "invalid choice: 'gguf'"),
    ):
        assert message in refused(export.main, words)
