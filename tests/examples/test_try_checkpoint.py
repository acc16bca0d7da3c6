"""examples/try_checkpoint.py on tiny checkpoints of three families, and on what is wrong with one."""

import json
import re
from importlib import import_module

import pytest
import torch


pytest.importorskip("tabulate")
pytest.importorskip("accelerate")

from classifiers import save
from families import FAMILIES, pair_of
from safetensors.torch import load_file, save_file
from tiny import refused
from transformers import GPT2Config, GPT2Model


@pytest.fixture(scope="module")
def example():
    return import_module("try_checkpoint")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Sentences, and a table to train on."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "texts.txt").write_text("w1 w2 w3\nw4 w5 w6 w7 w8 w9\n")
    (folder / "rows.csv").write_text("body,label\n" + "".join(f"w{i} w{i + 1},{'ab'[i % 2]}\n" for i in range(20)))
    return folder


@pytest.fixture
def arguments(files):
    rows = ["--train_file", files / "rows.csv", "--text_column_names", "body"]
    return [*map(str, ["--texts", files / "texts.txt", *rows, "--steps", 3])]


@pytest.fixture
def checkpoint(tmp_path):
    """A BERT without a head."""
    return save(tmp_path / "bert", pair_of("BertModel")[0])


def failures(example, capsys, *words):
    """What is printed to standard output, and the lines that say what failed."""
    with pytest.raises(SystemExit) as stop:
        example.main([*words])
    lines = str(stop.value.code).splitlines()
    assert all(line.startswith("failed: ") for line in lines)  # a text: the exit code is 1
    return capsys.readouterr().out, [line.removeprefix("failed: ") for line in lines]


@pytest.mark.parametrize("family", [name for name in ("Bert", "DebertaV2", "ModernBert") if name in FAMILIES])
def test_a_good_checkpoint(example, arguments, tmp_path, capsys, family):
    plain, implicit = pair_of(f"{family}Model")
    path = save(tmp_path / family, plain)
    example.main([path, *arguments])
    said = capsys.readouterr().out
    lines = said.splitlines()
    names = f"{family}ForSequenceClassification", f"IM{family}ForSequenceClassification"
    assert lines[0] == f"{path}: {names[0]} and {names[1]}"
    assert "classifier.weight" in lines[1]
    assert lines[1].startswith("weights drawn anew: ")
    assert lines[3] == "hidden states without implicit layers: 4, largest difference 0.0e+00"
    # The column of three iterations is what a model says that makes as many.
    tokenizer = example.load_encoder(path)[1]
    expected = torch.zeros(3)
    for text in ("w1 w2 w3", "w4 w5 w6 w7 w8 w9"):
        with torch.no_grad():
            found = implicit(**tokenizer(text, return_tensors="pt"), output_im_statistics=True).im_residuals
        expected = torch.maximum(expected, torch.cat(found))
    table = [line.split() for line in lines if re.match(r"(fixed_point|anderson) +\d", line)]
    assert [(row[0], row[1]) for row in table] == [(s, str(i)) for s in ("fixed_point", "anderson") for i in range(3)]
    assert [float(row[5]) for row in table[:3]] == pytest.approx(expected.tolist(), rel=0.06)  # two digits
    trained = [line.split() for line in lines if line.startswith(names)]
    assert [(row[0], row[-1]) for row in trained] == [(name, "finite") for name in names]
    assert lines[-1] == "ok"


def test_which_setting_converges(example, checkpoint, capsys, monkeypatch):
    """Residuals that are halved by each iteration, from 1 and from 1e-3."""
    encoder, _ = example.load_encoder(checkpoint)
    halved = [{"layer": 0, "solver": "fixed_point", "residual": [0.5**n for n in range(9)]}]
    quick = [{"layer": 0, "solver": "anderson", "residual": [1e-3 * 0.5**n for n in range(9)]}]
    late = [{"layer": 1, "solver": "anderson", "residual": [0.09 * 0.5**n for n in range(9)]}]
    monkeypatch.setattr(example, "residuals", lambda *_, **__: halved + quick + late)
    monkeypatch.setattr(example, "plain_layers", lambda *_: [])
    assert example.measure(encoder, [{}]) == []
    said = capsys.readouterr().out
    assert "fixed_point: below 0.01 in all layers after 8 iterations\n" in said  # 2 ** -8 = 0.004, 2 ** -5 = 0.03
    assert "anderson: below 0.01 in all layers after 5 iterations\n" in said  # 0.09 / 8 = 0.011, 0.09 / 32 = 0.003
    late[0]["residual"] = [1.0] * 9
    example.measure(encoder, [{}])
    assert "anderson: below 0.01 in all layers but 1 after 8 iterations\n" in capsys.readouterr().out


def test_weights_that_no_model_reads(example, arguments, checkpoint, tmp_path, capsys):
    """A config with fewer layers than the checkpoint has."""
    config = tmp_path / "bert/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 2}))
    _, failed = failures(example, capsys, checkpoint, *arguments)
    assert len(failed) == 1
    assert failed[0].startswith("weights of the encoder are left unread: encoder.layer.2.attention")


@pytest.mark.filterwarnings("ignore:An implicit layer met non-finite values")
def test_weights_that_are_not_finite(example, arguments, checkpoint, tmp_path, capsys):
    path = tmp_path / "bert/model.safetensors"
    weights = load_file(path)
    weights["encoder.layer.1.output.dense.bias"][0] = torch.nan
    save_file(weights, path, metadata={"format": "pt"})
    said, failed = failures(example, capsys, checkpoint, *arguments)
    assert failed[0] == "hidden states differ from the family's, by nan"
    assert "fixed_point: a residual of layer 1 is not finite" in failed
    assert "BertForSequenceClassification: loss or gradients are not finite, first at step 1" in failed
    assert failed[-1] == "IMBertForSequenceClassification: loss or gradients are not finite, first at step 1"
    assert "ok" not in said.splitlines()


def test_a_load_that_differs(example, checkpoint):
    encoder, _ = example.load_encoder(checkpoint)
    head, layer = "classifier.weight", "bert.encoder.layer.0.output.dense.weight"
    loads = [{"drawn anew": {head}}, {"drawn anew": {head, layer}}]
    assert example.compare_weights(encoder, loads[:1] * 2) == []
    assert example.compare_weights(encoder, loads) == [
        f"not the same weights are drawn anew in both models: {layer}",
        f"weights of the encoder are drawn anew: {layer}",
    ]


def test_hidden_states_that_differ(example, checkpoint, tmp_path):
    encoder, tokenizer = example.load_encoder(checkpoint)
    plain = pair_of("BertModel")[0]
    batch = tokenizer("w1 w2", return_tensors="pt")
    assert example.compare_states(plain, encoder, batch) == []
    with torch.no_grad():
        plain.encoder.layer[2].output.LayerNorm.bias += 0.5
    assert example.compare_states(plain, encoder, batch) == ["hidden states differ from the family's, by 5.0e-01"]


def test_wrong_arguments(example, arguments, checkpoint, tmp_path):
    other = save(tmp_path / "gpt2", GPT2Model(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=99)))
    known = "it must be one of bert, imbert, roberta, imroberta, electra"
    for path, words, expected in (
        (other, [], f"'gpt2'; {known}"),
        (str(tmp_path / "absent"), [], "there is no such folder"),
        (checkpoint, ["--steps", "0"], "--steps must be an integer >= 1, got 0."),
        (checkpoint, ["--text_column_names", "text"], "has no column 'text'; the columns there: 'body', 'label'."),
        (checkpoint, ["--train_file", "absent.csv"], "absent.csv cannot be read: No such file or directory."),
        (checkpoint, ["--texts", "absent.txt"], "absent.txt cannot be read: No such file or directory."),
    ):
        said = refused(example.main, [path, *arguments, *words])
        assert said.startswith("try_checkpoint.py: error: ")
        assert expected in said
