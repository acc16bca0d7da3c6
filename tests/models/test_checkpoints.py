"""Checkpoints carry their code: loaded, saved and loaded again where imbert_hf cannot be imported."""

import json
from pathlib import Path

import pytest
import torch
from families import OTHERS, inputs_for, pair_of
from stranger import files_of
from tiny import TINY, imbert_config, lively, tokenizer_of
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

import imbert_hf


@pytest.fixture
def checkpoint(tmp_path):
    """A classifier with a tokenizer, and its logits for one sentence."""
    folder = tmp_path / "checkpoint"
    tokenizer = tokenizer_of(["a", "fine", "film", "not"])
    config = imbert_config(im_solver="anderson", num_labels=3, id2label={0: "bad", 1: "fair", 2: "good"})
    config.im_consistency = 0.5
    model = lively(imbert_hf.IMBertForSequenceClassification(config)).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with torch.no_grad():
        logits = model(**tokenizer("not a fine film", return_tensors="pt")).logits
    return folder, logits


def check_files(folder, family="Bert"):
    assert sorted(path.name for path in folder.glob("*.py")) == files_of(family)
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"] == getattr(imbert_hf, f"IM{family}Config").auto_map_of_family
    assert config["architectures"] == [f"IM{family}ForSequenceClassification"]
    assert config["im_version"] == imbert_hf.__version__


def test_a_stranger_loads_saves_and_loads_again(checkpoint, tmp_path, run_stranger):
    folder, logits = checkpoint
    check_files(folder)
    code = """
tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=True)
model = AutoModelForSequenceClassification.from_pretrained(source, trust_remote_code=True, im_damping=1.0)
assert type(model).__module__.startswith("transformers_modules."), type(model)
inputs = tokenizer("not a fine film", return_tensors="pt")
with torch.no_grad():
    outputs = model(**inputs, output_im_statistics=True)
assert len(outputs.im_residuals) == 3
classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
assert classify("a film")[0]["label"] in ("bad", "fair", "good")
body = AutoModel.from_pretrained(source, trust_remote_code=True)
assert type(body).__name__ == "IMBertModel"
for auto_class, reference in model.config.auto_map.items():
    options = {} if auto_class == "AutoConfig" else {"ignore_mismatched_sizes": True}  # one choice, three labels
    head = getattr(transformers, auto_class).from_pretrained(source, trust_remote_code=True, **options)
    assert type(head).__name__ == reference.split(".")[1], (auto_class, type(head))
outputs_in_training = model.train()(**inputs, labels=torch.tensor([1]))
outputs_in_training.loss.backward()
assert outputs_in_training.im_consistency_loss > 0
model.save_pretrained(target)
tokenizer.save_pretrained(target)
print(outputs.logits.tolist())
"""
    first, second = tmp_path / "first", tmp_path / "second"
    modules = tmp_path / "modules"
    printed = run_stranger(code, folder, first, modules=modules)
    torch.testing.assert_close(torch.tensor(json.loads(printed)), logits, rtol=0, atol=1e-6)
    check_files(first)
    printed = run_stranger(code, first, second, modules=modules)
    torch.testing.assert_close(torch.tensor(json.loads(printed)), logits, rtol=0, atol=1e-6)
    check_files(second)


@pytest.mark.parametrize("family", OTHERS)
def test_a_stranger_loads_the_other_families(family, tmp_path, batch, run_stranger):
    name = f"{family}ForSequenceClassification"
    _, model = pair_of(name)
    model.save_pretrained(tmp_path / "first")
    check_files(tmp_path / "first", family)
    inputs = {k: v for k, v in inputs_for(name, batch).items() if k != "labels"}
    torch.save(inputs, tmp_path / "inputs.pt")
    code = """
inputs = torch.load(sys.argv[3])
model = AutoModelForSequenceClassification.from_pretrained(source, trust_remote_code=True)
for auto_class, reference in model.config.auto_map.items():
    options = {"trust_remote_code": True, "ignore_mismatched_sizes": True}  # multiple choice has one label
    head = getattr(transformers, auto_class).from_pretrained(source, **options)
    assert type(head).__name__ == reference.split(".")[1], (auto_class, type(head))
model.save_pretrained(target)
again = AutoModelForSequenceClassification.from_pretrained(target, trust_remote_code=True)
with torch.no_grad():
    assert torch.equal(model(**inputs).logits, again(**inputs).logits)
    print(again(**inputs).logits.tolist())
"""
    printed = run_stranger(
        code, tmp_path / "first", tmp_path / "second", tmp_path / "inputs.pt", modules=tmp_path / "m"
    )
    check_files(tmp_path / "second", family)
    with torch.no_grad():
        logits = model(**inputs).logits
    torch.testing.assert_close(torch.tensor(json.loads(printed)), logits, rtol=0, atol=1e-6)


def test_a_config_of_another_release_says_so(checkpoint, tmp_path, run_stranger):
    folder, _ = checkpoint
    path = folder / "config.json"
    path.write_text(path.read_text().replace(f'"im_version": "{imbert_hf.__version__}"', '"im_version": "0.0.9"'))
    with pytest.warns(UserWarning, match=r"config.json is of imbert_hf 0.0.9, this code of"):
        config = AutoConfig.from_pretrained(folder)
    assert config.im_version == imbert_hf.__version__  # what it will be saved with
    code = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    AutoModel.from_pretrained(source, trust_remote_code=True)
print([str(w.message).split(":")[0] for w in caught if "is of imbert_hf" in str(w.message)])
"""
    printed = run_stranger(code, folder, "-", modules=tmp_path / "modules")
    assert f"config.json is of imbert_hf 0.0.9, this code of {imbert_hf.__version__}" in printed


def test_local_code_loads_a_checkpoint_that_carries_its_own(checkpoint):
    folder, _ = checkpoint
    assert type(AutoConfig.from_pretrained(folder)) is imbert_hf.IMBertConfig
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert type(model) is imbert_hf.IMBertForSequenceClassification
    assert model.config.im_solver == "anderson"
    assert type(AutoModel.from_pretrained(folder)) is imbert_hf.IMBertModel


def test_an_edited_config_is_refused_where_only_the_checkpoint_is(checkpoint, tmp_path, run_stranger):
    folder, _ = checkpoint
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"im_solver": "anderson"', '"im_solver": "newton"'))
    code = """
try:
    AutoModel.from_pretrained(source, trust_remote_code=True)
except ValueError as error:
    print(error)
"""
    printed = run_stranger(code, folder, "-", modules=tmp_path / "modules")
    assert "im_solver must be one of 'gradient_descent', 'fixed_point', 'anderson', got 'newton'." in printed


def test_config_alone_round_trips_for_a_stranger(tmp_path, run_stranger):
    imbert_hf.IMBertConfig(**TINY, im_theta=0.25).save_pretrained(tmp_path / "config")
    code = """
config = AutoConfig.from_pretrained(source, trust_remote_code=True)
print(type(config).__name__, config.im_theta)
"""
    printed = run_stranger(code, tmp_path / "config", "-", modules=tmp_path / "modules")
    assert printed.split() == ["IMBertConfig", "0.25"]


OLD = Path(__file__).parent / "checkpoint_of_0.1.0"  # written by commit 1e0b0f5, with its logits


@pytest.mark.parametrize("setting", json.loads((OLD / "logits.json").read_text()))
def test_a_checkpoint_of_before_has_the_same_logits(setting):
    solver, tolerance = setting.split()
    model = AutoModelForSequenceClassification.from_pretrained(
        OLD, im_solver=solver, im_tolerance=float(tolerance)
    ).eval()
    ids = torch.tensor([[5, 6, 7, 8, 0, 0], [9, 10, 11, 12, 13, 14]])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=(ids != 0).long()).logits
    expected = torch.tensor(json.loads((OLD / "logits.json").read_text())[setting])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)
