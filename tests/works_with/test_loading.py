"""save_pretrained and from_pretrained with their options: shards, new tokens, dtypes, offloading, attention."""

import json
import shutil

import pytest
import torch
import transformers
from families import MODELS, family_of, inputs_for, pair_of
from tiny import NO_DROPOUT, PAIRS, SOLVERS, imbert_config, lively
from transformers import BertForMaskedLM, BertForSequenceClassification

from imbert_hf import IMBertForSequenceClassification


@pytest.fixture
def saved(tmp_path):
    """A folder with a lively IM-BERT classifier in shards."""
    model = lively(IMBertForSequenceClassification(imbert_config(im_learning_rate=0.02)))
    model.save_pretrained(tmp_path / "saved", max_shard_size="20KB")
    return tmp_path / "saved"


def again(model, folder):
    """The model after a save in one file and a load."""
    model.save_pretrained(folder)
    assert (folder / "model.safetensors").is_file()
    return type(model).from_pretrained(folder)


@pytest.mark.parametrize("head", ["BertForMaskedLM", "BertForPreTraining", "BertForSequenceClassification"])
def test_shards_are_safetensors_that_both_families_load(head, tmp_path, batch):
    """The same tensors in the same shards as BERT's, from a new model and a loaded one; the code beside them."""
    bert, model = pair_of(head)
    saves = tmp_path / "saves"
    for source, plain in ((model, bert), (again(model, tmp_path / "model"), again(bert, tmp_path / "bert"))):
        shutil.rmtree(saves, ignore_errors=True)
        weight_maps = []
        for m, folder in ((plain, saves / "bert"), (source, saves / "imbert")):
            m.save_pretrained(folder, max_shard_size="20KB")
            index = json.loads((folder / "model.safetensors.index.json").read_text())
            weight_maps.append(index["weight_map"])
        assert weight_maps[0] == weight_maps[1]
        shards = set(weight_maps[1].values())
        assert len(shards) > 3
        assert all(name.endswith(".safetensors") for name in shards)
        names = {path.name for path in folder.iterdir()}
        code = {path.name for path in (tmp_path / "model").glob("*.py")}
        assert names == {"config.json", "model.safetensors.index.json", *shards, *code}
    assert "modeling_imbert.py" in code
    for cls in (type(model), getattr(transformers, head)):
        loaded, info = cls.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    loaded = type(model).from_pretrained(folder)
    torch.testing.assert_close(loaded(**batch)[0], model(**batch)[0], rtol=0, atol=0)


@pytest.mark.parametrize("size", [120, 80])
def test_resized_embeddings_are_berts_and_stay_tied(size, tmp_path, batch):
    bert, model = pair_of("BertForMaskedLM")
    inputs = {**batch, "input_ids": batch["input_ids"] % 80}
    with torch.no_grad():
        before = model(**inputs).logits
    for m in (bert, model):
        torch.manual_seed(0)  # new rows are drawn around the mean of the old ones
        m.resize_token_embeddings(size)
    torch.testing.assert_close(model.state_dict(), bert.state_dict(), rtol=0, atol=0)
    kept = min(size, 99)
    torch.testing.assert_close(model(**inputs).logits[..., :kept], before[..., :kept], rtol=0, atol=1e-6)
    loaded = again(model, tmp_path)
    for m in (model, loaded):
        assert m.config.vocab_size == size
        assert m.cls.predictions.decoder.weight is m.get_input_embeddings().weight
        assert m.cls.predictions.decoder.bias is m.cls.predictions.bias
        assert m.cls.predictions.bias.shape == (size,)
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, rtol=0, atol=0)
    back = BertForMaskedLM.from_pretrained(tmp_path)
    torch.testing.assert_close(back.state_dict(), model.state_dict(), rtol=0, atol=0)
    if size > 99:
        new = {**inputs, "input_ids": inputs["input_ids"].clamp(max=10) + size - 11}
        model.train()(**new, labels=new["input_ids"]).loss.backward()
        assert model.get_input_embeddings().weight.grad[99:].abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtypes(dtype, saved, tmp_path, batch):
    load = IMBertForSequenceClassification.from_pretrained
    full, half = load(saved, dtype=torch.float32), load(saved, dtype=dtype)
    rounding = {torch.float16: 5e-3, torch.bfloat16: 3e-2}[dtype]
    assert {p.dtype for p in half.parameters()} == {half.dtype} == {dtype}
    with torch.no_grad():
        outputs = half(**batch, output_im_statistics=True)
        torch.testing.assert_close(outputs.logits.float(), full(**batch).logits, rtol=0, atol=rounding)
    assert outputs.logits.dtype == dtype
    assert {r.dtype for r in outputs.im_residuals} == {torch.float32}
    half.save_pretrained(tmp_path / "half")
    name = str(dtype).removeprefix("torch.")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == name
    for asked, expected in (("auto", dtype), (name, dtype), (torch.float32, torch.float32)):
        loaded = load(tmp_path / "half", dtype=asked)
        assert loaded.dtype == expected
        torch.testing.assert_close(loaded.to(dtype).state_dict(), half.state_dict(), rtol=0, atol=0)
    bert = BertForSequenceClassification.from_pretrained(tmp_path / "half", dtype="auto")
    plain = load(tmp_path / "half", dtype="auto", im_layers=[])
    torch.testing.assert_close(plain(**batch).logits, bert(**batch).logits, rtol=0, atol=0)


def offloaded(saved, **fields):
    """Loaded with the first layer in memory and the others on disk."""
    pytest.importorskip("accelerate")
    model = IMBertForSequenceClassification.from_pretrained(
        saved, device_map="auto", max_memory={"cpu": 100_000}, offload_folder=str(saved.parent / "offload"), **fields
    )
    places = {part: model.hf_device_map[f"bert.encoder.layer.{part}"] for part in range(3)}
    assert places == {0: "cpu", 1: "disk", 2: "disk"}
    return model


@pytest.mark.parametrize("tolerance", [0.0, 1e-2])
@pytest.mark.parametrize("solver", ["fixed_point", "anderson"])
def test_layers_on_disk_give_the_same_predictions(solver, tolerance, saved, batch):
    """accelerate loads the weights around each module's forward, and so once for each evaluation of a layer."""
    fields = {"im_solver": solver, "im_tolerance": tolerance}
    model = offloaded(saved, **fields)
    whole = IMBertForSequenceClassification.from_pretrained(saved, **fields)
    graphs = [(torch.enable_grad, gradient) for gradient in ("unrolled", "implicit", "one_step")]
    for context, gradient in ((torch.no_grad, "implicit"), (torch.inference_mode, "implicit"), *graphs):
        model.config.im_gradient = whole.config.im_gradient = gradient
        with context():
            expected = whole(**batch, output_im_statistics=True)
            outputs = model(**batch, output_im_statistics=True)
        torch.testing.assert_close(outputs.logits, expected.logits, rtol=0, atol=1e-6)
        torch.testing.assert_close(outputs.im_residuals, expected.im_residuals, rtol=1e-3, atol=1e-6)
    assert all(p.is_meta for p in model.bert.encoder.layer[1].parameters())  # and is on the disk again


@pytest.mark.parametrize("gradient", ["unrolled", "implicit", "one_step"])
def test_gradient_descent_is_refused_with_layers_on_disk(gradient, saved, batch):
    model = offloaded(saved, im_solver="gradient_descent", im_gradient=gradient)
    with torch.no_grad(), pytest.raises(ValueError, match=r"im_solver 'gradient_descent' .* use 'fixed_point'"):
        model(**batch)
    model.config.im_layers = [0]  # what solves is in memory
    whole = IMBertForSequenceClassification.from_pretrained(saved, im_solver="gradient_descent", im_layers=[0])
    torch.testing.assert_close(model(**batch).logits, whole(**batch).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("gradient", ["unrolled", "implicit", "one_step"])
def test_training_is_refused_with_layers_on_disk_unless_they_are_frozen(gradient, saved, batch):
    model = offloaded(saved, im_gradient=gradient, **NO_DROPOUT).train()
    with pytest.raises(ValueError, match=r"offloaded \(device_map\) cannot be trained"):
        model(**batch)
    whole = IMBertForSequenceClassification.from_pretrained(saved, im_gradient=gradient, **NO_DROPOUT)
    for m in (model, whole):
        m.bert.encoder.layer[1:].requires_grad_(False)
        m.train()(**batch, labels=torch.tensor([0, 1, 1])).loss.backward()
    grads = [m.bert.encoder.layer[0].output.dense.weight.grad for m in (model, whole)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-7)


def test_statistics_and_attentions_pass_through_accelerates_hooks(saved, batch):
    """A hook around the body hands on copies of all lists among its arguments, but for those that it is told of."""
    pytest.importorskip("accelerate")
    load = IMBertForSequenceClassification.from_pretrained
    whole = load(saved, attn_implementation="eager")
    places = {"bert": "cpu", "dropout": "cpu", "classifier": "disk"}
    model = load(saved, attn_implementation="eager", device_map=places, offload_folder=str(saved.parent / "offload"))
    asked = {"output_im_statistics": True, "output_attentions": True}
    actual, expected = model(**batch, **asked), whole(**batch, **asked)
    torch.testing.assert_close(actual.im_residuals, expected.im_residuals, rtol=0, atol=1e-6)
    torch.testing.assert_close(actual.attentions, expected.attentions, rtol=0, atol=1e-6)


@pytest.mark.parametrize("head", [name for name in MODELS if family_of(name) != "DebertaV2"])  # which has no sdpa
def test_eager_and_sdpa_agree_on_every_head(head, tmp_path, batch):
    _, model = pair_of(head)
    model.save_pretrained(tmp_path)
    kwargs = inputs_for(head, batch)
    if family_of(head) == "ModernBert":  # whose own two differ where a window holds padding alone
        del kwargs["attention_mask"]
    for solver in SOLVERS:
        eager, sdpa = (
            type(model).from_pretrained(
                tmp_path, attn_implementation=kind, im_solver=solver, im_learning_rate=0.02, output_hidden_states=True
            )
            for kind in ("eager", "sdpa")
        )
        assert [m.config._attn_implementation for m in (eager, sdpa)] == ["eager", "sdpa"]
        with torch.no_grad():
            expected, actual = eager(**kwargs), sdpa(**kwargs)
        torch.testing.assert_close(actual.to_tuple(), expected.to_tuple(), rtol=0, atol=1e-4)
        sdpa.set_attn_implementation("eager")
        with torch.no_grad():
            torch.testing.assert_close(sdpa(**kwargs).to_tuple(), expected.to_tuple(), rtol=0, atol=0)


@pytest.mark.parametrize(("solver", "gradient"), PAIRS)
def test_eager_and_sdpa_have_the_same_gradients_in_training(solver, gradient, batch):
    """Twice differentiated with gradient_descent and unrolled: sdpa takes the math kernel by itself there."""
    _, model = pair_of(
        "BertForSequenceClassification",
        im_solver=solver,
        im_gradient=gradient,
        im_learning_rate=0.02,
        **NO_DROPOUT,
    )
    grads = []
    for kind in ("eager", "sdpa"):
        model.train().set_attn_implementation(kind)
        model.zero_grad()
        model(**batch, labels=torch.tensor([0, 1, 1])).loss.backward()
        grads.append({n: p.grad for n, p in model.named_parameters()})
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-5)
    assert grads[0]["bert.encoder.layer.0.attention.self.query.weight"].abs().max() > 1e-4
