"""The bridge to TextAttack: a model served over a pipe."""

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy
import pytest
from classifiers import bert
from scipy.special import softmax
from tiny import tokenizer_of

from imbert_hf.evaluation.data.classifier import load_classifier, predict
from imbert_hf.evaluation.data.tasks import find_task


BRIDGE = Path(__file__).with_name("textattack_bridge.py")
WORDS = ["a", "film", "great", "the", "7", "!", "slow"]


def save_classifier(folder):
    tokenizer = tokenizer_of(WORDS)
    bert(("positive", "negative"), vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def load_bridge():
    specification = importlib.util.spec_from_file_location("bridge", BRIDGE)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_bridge_answers_over_a_pipe(tmp_path, monkeypatch):
    data = tmp_path / "rows.jsonl"
    data.write_text('{"sentence": "a great film", "label": 1}\n{"sentence": "slow \u2013 7!", "label": 0}\n', "utf-8")
    monkeypatch.setenv("IMBERT_PYTHON", sys.executable)
    monkeypatch.setenv("IMBERT_MODEL", save_classifier(tmp_path))
    monkeypatch.setenv("IMBERT_DATA", str(data))
    piped = load_bridge().model
    try:
        assert piped.labels == ["negative", "positive"]
        assert piped.fields == ["sentence"]
        assert piped.rows == [[["a great film"], 1], [["slow \u2013 7!"], 0]]
        texts = ["a great film", "slow\nfilm \u2013 \u00e9", "the"]
        classifier = load_classifier(str(tmp_path), find_task("sst2"))
        expected = softmax(predict(classifier, [(text,) for text in texts]).logits.astype(float), axis=1)
        for _ in range(2):
            numpy.testing.assert_allclose(piped(texts), expected, atol=1e-6)
        numpy.testing.assert_allclose(piped([("the",)]), expected[2:], atol=1e-6)
    finally:
        piped.close()
    assert piped.server.returncode == 0


def test_bridge_says_what_is_missing(monkeypatch):
    monkeypatch.delenv("IMBERT_PYTHON", raising=False)
    bridge = load_bridge()
    with pytest.raises(ValueError, match="the environment variable IMBERT_PYTHON is not set"):
        _ = bridge.model
    with pytest.raises(AttributeError):
        _ = bridge.nothing
    monkeypatch.setenv("IMBERT_PYTHON", shutil.which("false"))
    monkeypatch.setenv("IMBERT_MODEL", "nowhere")
    with pytest.raises(RuntimeError, match="the server of nowhere has ended; its message stands above"):
        _ = bridge.model
