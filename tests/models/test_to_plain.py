"""to_plain(): the family's own model with the same weights, which saves no code and no field of the connection."""

import json

import pytest
import torch
from families import FAMILIES, MODELS, config_of, inputs_for, pair_of, type_of
from transformers import AutoModelForSequenceClassification

import imbert_hf
from imbert_hf import IMBertForSequenceClassification, IMBertModel


@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_familys_own_model(name, batch):
    expected, model = pair_of(name)
    state, plain = torch.get_rng_state(), model.to_plain()
    assert torch.equal(torch.get_rng_state(), state)
    assert type(plain) is type(expected)
    kwargs = inputs_for(name, batch)
    with torch.no_grad():
        torch.testing.assert_close(plain(**kwargs).to_tuple(), expected(**kwargs).to_tuple(), rtol=0, atol=0)
    written = {"dtype", "architectures"}  # by a model that is made or saved, not by a config alone
    fields, own = ({k: v for k, v in m.config.to_dict().items() if k not in written} for m in (plain, expected))
    assert fields == own
    next(plain.parameters()).data.add_(1)
    assert not torch.equal(next(plain.parameters()), next(model.parameters()))  # a copy


@pytest.mark.parametrize("family", FAMILIES)
def test_what_it_saves(family, tmp_path):
    name = f"{family}ForSequenceClassification"
    labels = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    model = getattr(imbert_hf, f"IM{name}")(config_of(f"IM{name}", **labels))
    model.to_plain().save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    saved = json.loads((tmp_path / "config.json").read_text())
    assert [key for key in saved if key.startswith("im_") or key == "auto_map"] == []
    assert (saved["model_type"], saved["architectures"]) == (type_of(family), [name])
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert (type(loaded).__name__, loaded.config.id2label) == (name, {0: "a", 1: "b", 2: "c"})
    torch.testing.assert_close(loaded.state_dict(), model.state_dict())


def test_mode_dtype_and_attention_are_kept_also_of_a_class_of_a_user():
    class Mine(IMBertForSequenceClassification): ...

    config = config_of("IMBertForSequenceClassification", attn_implementation="eager")
    plain = Mine(config).bfloat16().train().to_plain()
    assert type(plain).__name__ == "BertForSequenceClassification"
    assert (plain.dtype, plain.training, plain.config._attn_implementation) == (torch.bfloat16, True, "eager")
    assert not Mine(config).eval().to_plain().training


def test_a_head_in_another_dtype_stays_so():
    model = IMBertForSequenceClassification(config_of("IMBertForSequenceClassification")).bfloat16()
    model.classifier.float()
    plain = model.to_plain()
    assert {name: p.dtype for name, p in plain.named_parameters()} == {n: p.dtype for n, p in model.named_parameters()}


@pytest.mark.parametrize("name", ["BertForPreTraining", *(f"{family}ForMaskedLM" for family in FAMILIES)])
def test_tied_weights_stay_tied(name):
    plain = pair_of(name)[1].to_plain()
    assert plain.get_output_embeddings().weight is plain.get_input_embeddings().weight


def test_a_model_without_a_pooler(batch):
    model = IMBertModel(config_of("IMBertModel", im_layers=[]), add_pooling_layer=False).eval()
    plain = model.to_plain()
    assert plain.pooler is None
    assert torch.equal(plain(**batch).last_hidden_state, model(**batch).last_hidden_state)


def test_other_parameters_than_the_familys_are_refused_in_one_sentence():
    """An adapter that was not merged, and layers that the config knows nothing of."""
    model = IMBertForSequenceClassification(config_of("IMBertForSequenceClassification"))
    model.bert.encoder.layer[0].output.dense.lora = torch.nn.Linear(2, 2)
    with pytest.raises(
        ValueError, match=r"^to_plain needs the parameters of BertForSequenceClassification and no"
    ) as why:
        model.to_plain()
    assert "which differ in 2, such as 'bert.encoder.layer.0.output.dense.lora.bias': merge adapters," in str(why.value)
    del model.bert.encoder.layer[0].output.dense.lora
    model.bert.encoder.layer = model.bert.encoder.layer[:2]
    with pytest.raises(ValueError, match=r"which differ in 16, such as 'bert\.encoder\.layer\.2"):
        model.to_plain()
    model.config.num_hidden_layers = 2
    assert len(model.to_plain().bert.encoder.layer) == 2
