"""Every model of every family against transformers' own with the same weights."""

import inspect
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers
from families import FAMILIES, MODELS, OTHERS, ROUNDING, base_of, config_of, family_of, inputs_for, pair_of, type_of
from tiny import lively
from transformers import AutoConfig, AutoModelForSequenceClassification

import imbert_hf
from imbert_hf import IMBertForSequenceClassification, outputs_imbert
from imbert_hf.evaluation.data.loading import layers_of
from imbert_hf.evaluation.stability.layers import PlainLayer


HEADS = [name for name in MODELS if name != f"{family_of(name)}Model"]
EXACT = {
    "no implicit layer": {"im_layers": []},
    "no iteration": {"im_iterations": 0},
    "theta 0": {"im_theta": 0.0},
    "theta 0, another solver": {"im_theta": 0.0, "im_solver": "gradient_descent", "im_gradient": "unrolled"},
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("setting", EXACT.values(), ids=EXACT)
def test_exact_settings_are_the_family_bit_for_bit_with_dropout(name, setting, batch):
    plain, model = pair_of(name, **setting)
    kwargs = {**inputs_for(name, batch), "output_hidden_states": True}
    for train in (False, True):
        results = []
        for m in (plain, model):
            m.train(train).zero_grad()
            torch.manual_seed(3)
            outputs = m(**kwargs)
            loss = outputs.loss if name in HEADS else outputs.last_hidden_state.square().mean()
            loss.backward()
            results.append((outputs.to_tuple(), {n: p.grad for n, p in m.named_parameters()}, torch.get_rng_state()))
        expected, actual = results
        torch.testing.assert_close(actual[0], expected[0], rtol=0, atol=0)
        torch.testing.assert_close(actual[1], expected[1], rtol=0, atol=0)
        assert torch.equal(actual[2], expected[2])


@pytest.mark.parametrize("name", MODELS)
def test_modules_that_are_never_split_are_modules_of_the_model(name):
    """FSDP wraps them, and device_map="auto" keeps each of them on one device."""
    _, model = pair_of(name)
    kinds = {type(module).__name__ for module in model.modules()}
    for module in (model, base_of(model)):
        assert f"IM{family_of(name)}Layer" in module._no_split_modules
        assert set(module._no_split_modules) <= kinds
    accelerate = pytest.importorskip("accelerate")
    for version in (1, 2):
        plugin = accelerate.FullyShardedDataParallelPlugin(
            fsdp_version=version, auto_wrap_policy="transformer_based_wrap"
        )
        plugin.set_auto_wrap_policy(model)
        assert type(layers_of(model)[0]) in plugin.auto_wrap_policy.keywords["transformer_layer_cls"]


@pytest.mark.parametrize("name", MODELS)
def test_state_dicts_and_checkpoints_go_both_ways(name, tmp_path):
    plain, model = pair_of(name)
    assert list(model.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(tmp_path / "plain")
    loaded, info = type(model).from_pretrained(tmp_path / "plain", im_theta=0.0, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    torch.testing.assert_close(loaded.state_dict(), plain.state_dict(), rtol=0, atol=0)
    model.save_pretrained(tmp_path / "implicit")
    back, info = type(plain).from_pretrained(tmp_path / "implicit", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    torch.testing.assert_close(back.state_dict(), plain.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_headless_checkpoint_misses_the_head_alone(family, tmp_path):
    head = getattr(imbert_hf, f"IM{family}ForSequenceClassification")
    pair_of(f"{family}Model")[0].save_pretrained(tmp_path)
    _, info = head.from_pretrained(tmp_path, output_loading_info=True)
    plain, _ = pair_of(f"{family}ForSequenceClassification")
    parts = {name for name, part in plain.named_children() if any(True for _ in part.parameters())}
    assert {key.split(".")[0] for key in info["missing_keys"]} == parts - {plain.base_model_prefix}
    assert {key.split(".")[0] for key in info["unexpected_keys"]} <= {"pooler"}


@pytest.mark.parametrize("family", FAMILIES)
def test_tied_weights_stay_tied(family, tmp_path):
    _, model = pair_of(f"{family}ForMaskedLM")
    model.save_pretrained(tmp_path)
    for one in (model, type(model).from_pretrained(tmp_path)):
        assert one.get_output_embeddings().weight is one.get_input_embeddings().weight


@pytest.mark.parametrize("name", MODELS)
def test_forward_takes_and_returns_what_the_family_does_and_the_statistics(name, batch):
    plain, model = pair_of(name)
    signature = inspect.signature(model.forward)
    assert signature.parameters["output_im_statistics"].default is None
    assert [p for p in signature.parameters if p != "output_im_statistics"] == list(
        inspect.signature(plain.forward).parameters
    )
    kwargs = inputs_for(name, batch)
    outputs, expected = model(**kwargs), plain(**kwargs)
    # ELECTRA's model declares this class and returns one with a cache, which is of no use here.
    assert isinstance(outputs, type(expected))
    assert getattr(outputs_imbert, type(outputs).__name__) is type(outputs)  # by this name it is pickled
    assert list(outputs) == list(expected)
    assert outputs.im_residuals is None
    assert outputs.im_iterations_used is None
    model.config.im_layers = [0, 2]
    told = model(**kwargs, output_im_statistics=True)
    rows = 6 if name.endswith("ForMultipleChoice") else 3
    assert len(told.im_residuals) == len(told.im_iterations_used) == 2
    for residual, steps in zip(told.im_residuals, told.im_iterations_used, strict=True):
        assert residual.shape == steps.shape == (rows,)
        assert (residual > 0).all()
        assert (steps == 3).all()
    as_tuple = model(**kwargs, output_im_statistics=True, return_dict=False)
    torch.testing.assert_close(as_tuple[0], told[0])
    assert len(as_tuple) == len(told)
    assert type(model(**kwargs, return_dict=False)) is tuple


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_records_hidden_states_where_its_base_was_never_built_alone(family, batch, monkeypatch):
    head = getattr(imbert_hf, f"IM{family}ForSequenceClassification")
    base = getattr(imbert_hf, f"IM{family}Model")
    new = type("NeverBuilt", (base,), {})
    monkeypatch.setitem(head.implicit_classes, getattr(transformers, f"{family}Model"), new)
    model = head(config_of(f"IM{family}", attn_implementation="eager"))
    assert type(base_of(model)) is new
    outputs = model(batch["input_ids"], output_hidden_states=True, output_attentions=True)
    assert len(outputs.hidden_states) == 4
    assert len(outputs.attentions) == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_arguments_by_place_are_those_by_name(family, batch):
    """Of a base whose forward names them: DeBERTa's takes output_attentions by place."""
    plain, model = pair_of(f"{family}Model", attn_implementation="eager")
    plain.set_attn_implementation("eager")
    given = {**batch, "output_attentions": True}
    takes = [name for name in inspect.signature(type(plain).forward).parameters if name not in ("self", "kwargs")]
    last = max(takes.index(name) for name in given if name in takes)
    places = [given.get(name) for name in takes[: last + 1]]
    rest = {name: value for name, value in given.items() if name not in takes}
    for one in (plain, model):
        outputs, expected = one(*places, **rest), one(**given)
        torch.testing.assert_close(outputs.last_hidden_state, expected.last_hidden_state, rtol=0, atol=0)
        torch.testing.assert_close(outputs.attentions, expected.attentions, rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_solve_the_relation_of_the_familys_layers(family, batch):
    name = f"{family}Model"
    plain, model = pair_of(name, im_iterations=60, im_solver="anderson", im_theta=0.5)
    plain, model = plain.double(), model.double()
    inputs, calls = inputs_for(name, batch), []
    for layer in layers_of(model):
        layer.register_forward_hook(lambda _, args, kwargs, y: calls.append((*args, kwargs, y)), with_kwargs=True)
    real, own_arguments = inputs["attention_mask"].bool(), layers_of(model)[0].own_arguments
    with torch.no_grad():
        model(**inputs)
        assert len(calls) == 3
        for layer, (x, *args, kwargs, y) in zip(layers_of(plain), calls, strict=True):
            given, y = own_arguments(kwargs), y[0] if isinstance(y, tuple) else y
            fx, fy = (PlainLayer(layer, *args, **given)(h) - h for h in (x, y))
            torch.testing.assert_close(y[real], (x + (fx + fy) / 2)[real], rtol=0, atol=1e-8 + ROUNDING[family])


@pytest.mark.parametrize("gradient", ["implicit", "one_step", "unrolled"])
@pytest.mark.parametrize("family", OTHERS)  # of BERT test_modeling asks more
def test_training_reaches_every_parameter_that_the_family_trains(family, gradient, batch):
    name = f"{family}ForSequenceClassification"
    plain, model = pair_of(name, im_gradient=gradient, im_solver="anderson")
    for m in (plain, model):
        m.train()(**inputs_for(name, batch)).loss.backward()
    trained = {n for n, p in plain.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_built_at_a_seed_has_the_weights_of_the_family(family):
    states = []
    for prefix, library in (("", transformers), ("IM", imbert_hf)):
        name = f"{prefix}{family}ForSequenceClassification"
        torch.manual_seed(0)
        states.append(getattr(library, name)(config_of(name)).state_dict())
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_auto_classes(family):
    config = AutoConfig.for_model(f"im{type_of(family)}", num_hidden_layers=1)
    assert type(config) is getattr(imbert_hf, f"IM{family}Config")
    for name, reference in config.auto_map.items():
        if name != "AutoConfig":
            cls = getattr(imbert_hf, reference.split(".")[1])
            assert getattr(transformers, name)._model_mapping[type(config)] is cls
    model = AutoModelForSequenceClassification.from_config(config_of(f"IM{family}"))
    assert type(model) is getattr(imbert_hf, f"IM{family}ForSequenceClassification")
    assert type(base_of(model)) is getattr(imbert_hf, f"IM{family}Model")
    embeddings = type(base_of(model).embeddings).__name__
    assert {f"IM{family}Layer", embeddings} <= set(model._no_split_modules)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_familys_own_checkpoints_are_loaded(family, tmp_path):
    other = "bert" if family != "Bert" else "roberta"
    AutoConfig.for_model(other).save_pretrained(tmp_path)
    config = getattr(imbert_hf, f"IM{family}Config")
    plain = type_of(family)
    own = f"'{plain}' and 'im{plain}'"
    with pytest.raises(ValueError, match=f"of model_type '{other}'; {config.__name__} loads {own}"):
        config.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"model_type must be '{plain}' or 'im{plain}'"):
        config(model_type=other)
    with pytest.raises(ValueError, match=f"needs an {config.__name__}, got"):
        getattr(imbert_hf, f"IM{family}Model")(AutoConfig.for_model(other))


def test_class_swapping_leaves_no_plain_module():
    model = lively(IMBertForSequenceClassification(config_of("IMBert")))
    names = {type(module).__name__ for module in model.modules()}
    assert {"IMBertModel", "IMBertLayer", "IMBertSelfAttention"} <= names
    assert not {"BertModel", "BertLayer", "BertSelfAttention"} & names


@pytest.mark.skipif(not transformers.__version__.startswith("5.0."), reason="later ModernBERTs are taken")
def test_a_modernbert_of_transformers_5_0_is_refused():
    with pytest.raises(ImportError, match=r"^IM-ModernBERT needs transformers >= 5\.1, got 5\.0\.\d+\.$"):
        _ = imbert_hf.IMModernBertModel


@pytest.mark.parametrize("family", FAMILIES)
def test_a_number_among_the_arguments_of_a_forward(family, batch):
    """As the Trainer hands on; rows that converge first still leave the batch."""
    _, model = pair_of(f"{family}ForSequenceClassification", im_tolerance=0.02, im_iterations=8)
    inputs = {**batch, "input_ids": batch["input_ids"]}
    expected = model(**inputs, output_im_statistics=True)
    found = model(**inputs, output_im_statistics=True, num_items_in_batch=torch.tensor(3))
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=0)
    assert all(torch.equal(*pair) for pair in zip(found.im_iterations_used, expected.im_iterations_used, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_without_inputs_is_refused_as_the_family_refuses_it(family, batch):
    said = []
    for model in pair_of(f"{family}Model"):
        with pytest.raises(ValueError, match="specify") as error:
            model()
        said.append(str(error.value))
    assert said[0] == said[1]
    plain, model = pair_of(f"{family}Model", im_layers=[])
    width = plain.get_input_embeddings().weight.shape[1]
    embeds = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(inputs_embeds=embeds)[0], plain(inputs_embeds=embeds)[0], rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_threads_that_share_a_model_do_not_mix(family):
    """Each forward has a mask, statistics and iterations of its own."""
    _, model = pair_of(f"{family}ForSequenceClassification", im_tolerance=0.02, im_iterations=8)
    generator = torch.Generator().manual_seed(0)
    batches = [{"input_ids": torch.randint(5, 99, (n, 4 + n), generator=generator)} for n in range(1, 9)]
    for batch in batches:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"]).index_fill(1, torch.tensor([3]), 0)

    def ask(batch):
        with torch.no_grad():
            outputs = model(**batch, output_im_statistics=True)
        return outputs.logits, outputs.im_iterations_used

    expected = [ask(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for found in [[*pool.map(ask, batches)] for _ in range(5)]:
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


class Held(torch.nn.Module):
    """What a tool puts around a part of a model."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, *args, **kwargs):
        return self.part(*args, **kwargs)

    def __getattr__(self, name):
        return super().__getattr__(name) if name == "part" else getattr(self.part, name)


@pytest.mark.parametrize("where", ["base", "encoder"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_part_that_something_holds_is_told_as_it_is_alone(family, where, batch):
    """The consistency loss and the statistics are those of the model without it."""
    _, model = pair_of(f"{family}ForSequenceClassification", im_consistency=1.0)
    inputs = inputs_for(f"{family}ForSequenceClassification", batch)

    def found():
        torch.manual_seed(0)
        outputs = model.train()(**inputs, output_im_statistics=True)
        return [outputs.loss, outputs.im_consistency_loss, *outputs.im_residuals]

    expected, base = found(), base_of(model)
    owner, name = (model, model.base_model_prefix) if where == "base" else (base, "encoder")
    if name not in owner._modules:
        pytest.skip("the model itself goes through its layers")
    setattr(owner, name, Held(owner._modules[name]))
    assert expected[1] > 0
    torch.testing.assert_close(found(), expected, rtol=0, atol=0)
