"""Models as people treat them: edited lists of layers, parts called by hand, other configs, hooks.

Each against what a fresh forward, or a save and a load, says.
"""

import contextlib
from functools import partial

import pytest
import torch
from families import FAMILIES, pair_of
from families import model_of as model_of_family
from tiny import NO_DROPOUT, PAIRS, SOLVERS, TINY, imbert_model, lively
from torch import nn
from torch.nn.utils import parametrize
from transformers import (
    BertConfig,
    BertModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.bert.modeling_bert import BertLayer

from imbert_hf import (
    IMBertForSequenceClassification,
    IMBertModel,
)
from imbert_hf.evaluation.data.loading import layers_of


def model_of(layers=4, **kwargs):
    return imbert_model(**{"num_hidden_layers": layers, "im_layers": [-1], "im_learning_rate": 0.02, **kwargs})


def places(model, batch):
    """The places of the layers that solved."""
    states = model.bert(**batch, output_hidden_states=True).hidden_states
    mask = batch["attention_mask"][:, None, None].bool()
    real = batch["attention_mask"].bool()
    return [
        i
        for i, (layer, x, y) in enumerate(zip(model.bert.encoder.layer, states, states[1:], strict=False))
        if not torch.allclose(BertLayer.forward(layer, x, mask)[real], y[real], atol=1e-5)
    ]


# -- the list of layers --


def cut(model):
    model.bert.encoder.layer = model.bert.encoder.layer[2:]


def stacked(model):
    layers = [*model.bert.encoder.layer]
    model.bert.encoder.layer = nn.ModuleList([*layers, *IMBertModel(model.config).encoder.layer[:2]])


def reordered(model):
    model.bert.encoder.layer = nn.ModuleList([*model.bert.encoder.layer][::-1])


@pytest.mark.parametrize("edit", [cut, stacked, reordered])
@pytest.mark.parametrize("layers", [[-1], [0, -1], "all", []])
def test_the_connection_follows_the_place_in_the_list(edit, layers, batch, tmp_path):
    assert len(places(model_of(im_layers=layers), batch)) == (4 if layers == "all" else len(layers))
    model = model_of(im_layers=layers)
    edit(model)
    lively(model).eval()
    n = model.config.num_hidden_layers = len(model.bert.encoder.layer)
    expected = list(range(n)) if layers == "all" else sorted({i % n for i in layers})
    assert places(model, batch) == expected
    model.save_pretrained(tmp_path)
    again = IMBertForSequenceClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(**batch).logits, model(**batch).logits, rtol=0, atol=0)
    # A layer called alone has the place of its encoder's last forward.
    x, mask = torch.randn(3, 9, 32), batch["attention_mask"][:, None, None].bool()
    for i, layer in enumerate(model.bert.encoder.layer):
        solves = not torch.allclose(layer(x, mask), BertLayer.forward(layer, x, mask))
        assert solves == (i in expected)


def test_lists_that_have_no_places(batch):
    model = model_of(im_layers=[3])
    cut(model)
    with pytest.raises(ValueError, match="im_layers must hold indices from -2 to 1 for 2 layers, got 3"):
        model(**batch)
    model = model_of()
    model.bert.encoder.layer = nn.ModuleList([model.bert.encoder.layer[0]] * 3)
    with pytest.raises(ValueError, match=r"im_layers must be \[\] where one layer stands twice in the encoder"):
        model(**batch)
    model.config.im_layers = []
    model(**batch)  # as BERT
    model = model_of()
    model.bert.encoder.layer.append(BertModel(BertConfig(**TINY)).encoder.layer[0])
    with pytest.raises(ValueError, match="im_layers names layer 4, which must be a layer of this model's own class"):
        model(**batch)


@pytest.mark.filterwarnings("ignore")  # of torch's tracing
def test_a_compiled_layer_keeps_its_place(batch):
    """Also where the same code was compiled for a layer at another place, whose integers become symbols then."""
    torch._dynamo.reset()
    for layers in ([-1], "all", [0], [-1], [], [1, -1]):
        model = model_of(im_layers=layers)
        expected = model(**batch).logits
        model.bert.encoder.layer[-1] = torch.compile(model.bert.encoder.layer[-1], backend="eager")
        torch.testing.assert_close(model(**batch).logits, expected)


def test_an_encoder_that_is_not_ours_runs_our_layers_as_they_were_built(batch):
    class Encoder(nn.Module):
        def __init__(self, layers):
            super().__init__()
            self.layer = layers

        def forward(self, h, attention_mask=None, **kwargs):
            for layer in self.layer:
                h = layer(h, attention_mask, **kwargs)
            return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=h)

    model = model_of(3).eval()
    expected = model(**batch).logits
    model.bert.encoder = Encoder(model.bert.encoder.layer)
    for layer in model.bert.encoder.layer:
        layer.im_place = None
    torch.testing.assert_close(model(**batch).logits, expected, rtol=0, atol=1e-6)


# -- parts called by hand --


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_an_encoder_or_layer_called_by_hand_reads_the_mask_it_is_given(solver, attention, batch):
    model = model_of(2, im_solver=solver, im_layers="all", im_learning_rate=0.1, attn_implementation=attention)
    states = model.bert(**batch, output_hidden_states=True).hidden_states
    mask = batch["attention_mask"][:, None, None].bool()
    real = batch["attention_mask"].bool()
    if attention == "eager":
        mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
    by_hand = model.bert.encoder(states[0], mask).last_hidden_state
    torch.testing.assert_close(by_hand[real], states[-1][real], rtol=0, atol=1e-5)
    layer = model.bert.encoder.layer[1]
    for found in (layer(states[1], mask), layer(states[1], attention_mask=mask)):
        torch.testing.assert_close(found[real], states[2][real], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="attention_mask must be"):
        layer(states[1], mask[:, 0])


# -- other configs and encoders --


@pytest.mark.parametrize("edit", ["config", "bert", "bert.config"])
def test_the_forward_reads_what_is_saved(edit, batch, tmp_path):
    model, other = model_of(), model_of(im_layers="all", im_iterations=1, im_theta=0.7)
    if edit == "config":
        model.config = other.config
    elif edit == "bert":
        model.bert = other.bert
    else:
        model.bert.config = other.config
    expected = model(**batch).logits
    assert torch.equal(expected, other(**batch).logits) == (edit == "config")
    model.save_pretrained(tmp_path)
    again = IMBertForSequenceClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(**batch).logits, expected, rtol=0, atol=0)


# -- other --


def test_frozen_layers_build_no_graph_and_hooks_outside_of_them_are_seen(batch):
    """What tells whether a layer has a gradient is an evaluation, not a list of its parameters."""
    model = model_of(2).requires_grad_(False)
    assert not model(**batch).logits.requires_grad
    outside = nn.Linear(32, 32)
    model.bert.encoder.layer[-1].attention.self.query.register_forward_hook(lambda m, a, output: output + outside(a[0]))
    for model.config.im_gradient in ("implicit", "one_step", "unrolled"):
        outside.zero_grad()
        model(**batch).logits.square().sum().backward()
        assert outside.weight.grad.abs().sum() > 0


def test_one_config_of_a_pair_is_of_use_to_these_tests(batch):
    bert, model = pair_of("BertForSequenceClassification", im_layers=[])
    torch.testing.assert_close(model(**batch).logits, bert(**batch).logits, rtol=0, atol=0)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_checkpoint_runs_again_at_the_place_of_its_forward(use_reentrant, batch):
    """Two forwards with a cut between them, and one backward."""
    expected = []
    for checkpointing in (False, True):
        model = model_of(3, **NO_DROPOUT).train()
        if checkpointing:
            options = {"use_reentrant": use_reentrant}
            model._set_gradient_checkpointing(True, partial(torch.utils.checkpoint.checkpoint, **options))
        first = model(**batch).logits.square().sum()
        model.bert.encoder.layer = model.bert.encoder.layer[:2]
        (first + model(**batch).logits.square().sum()).backward()
        expected.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_hooks_on_attention_and_changes_of_the_output_in_place(solver, batch):
    for gradient in ("unrolled", "implicit", "one_step"):
        model = model_of(2, im_solver=solver, im_gradient=gradient, attn_implementation="eager")
        attention = model.bert.encoder.layer[-1].attention.self
        attention.register_forward_hook(lambda module, args, output: (2 * output[0], *output[1:]))
        attention.register_forward_pre_hook(lambda module, args: (args[0] * 2, *args[1:]))
        model.bert.encoder.layer[-1].register_forward_hook(lambda module, args, output: output.add_(1))
        assert len(model(**batch, output_attentions=True).attentions) == 2
        model(**batch).logits.sum().backward()
        assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("solver", SOLVERS)
def test_randomness_that_is_no_dropout_module_is_one_draw_a_solve(solver, batch):
    model = model_of(1, im_solver=solver, im_iterations=300, im_learning_rate=0.2).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    layer = model.bert.encoder.layer[0]
    feed_forward = layer.feed_forward_chunk
    layer.feed_forward_chunk = lambda h: feed_forward(h) + 0.3 * torch.randn_like(h)
    outputs = model(**batch, output_im_statistics=True)
    assert (outputs.im_residuals[0] < 1e-2).all()


def test_a_layer_that_is_skipped_is_no_fault(batch):
    model = model_of(2)
    layer = model.bert.encoder.layer[-1]
    layer.forward = lambda hidden_states, *args, **kwargs: hidden_states
    assert model(**batch).logits.isfinite().all()


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.1))

    def forward(self, weight):
        return weight * self.scale


@pytest.mark.parametrize(("solver", "gradient"), PAIRS)
def test_cached_parametrizations_have_their_gradient(solver, gradient, batch):
    """What an evaluation under no_grad puts into the cache would have none, and a tracked one would take it."""
    found = []
    for within in (contextlib.nullcontext, parametrize.cached):
        model = model_of(2, im_solver=solver, im_gradient=gradient).double()
        for layer in model.bert.encoder.layer:
            parametrize.register_parametrization(layer.output.dense, "weight", Scaled().double())
        with within():
            model(**batch).logits.square().sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    assert len(found[0]) > 30
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(("solver", "gradient"), PAIRS)
def test_a_layer_whose_output_a_hook_replaces_has_the_gradient_of_what_is_left(solver, gradient, batch):
    """F is a constant K, as in activation patching: y = (x + K) / 2, and what made F gets no gradient."""
    model = model_of(2, im_solver=solver, im_gradient=gradient, im_learning_rate=0.25)
    layer, K = model.bert.encoder.layer[-1], torch.randn(*batch["input_ids"].shape, 32)
    layer.output.register_forward_hook(lambda module, args, output: K)
    states = model.bert(**batch, output_hidden_states=True).hidden_states
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(states[-1][real], (states[-2] + K)[real] / 2)
    v = torch.linspace(-1, 1, 32)
    (dx,) = torch.autograd.grad(states[-1], states[-2], v * real[..., None])
    torch.testing.assert_close(dx, v / 2 * real[..., None])
    model(**batch).logits.sum().backward()
    assert all(p.grad is None for p in layer.parameters())
    for no_graph in (torch.no_grad, torch.inference_mode):
        with no_graph():
            torch.testing.assert_close(model.bert(**batch).last_hidden_state[real], states[-1][real])


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "DebertaV2"])
def test_a_hook_on_attention_sees_no_other_output_where_weights_are_asked_for(family, batch):
    """One call more, which transformers records: what it returns is what the last evaluation returned."""
    model = model_of_family(f"IM{family}Model", im_layers=[-1], attn_implementation="eager")
    seen = []
    layers_of(model)[-1].im_attention.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    with torch.no_grad():
        model(**batch)
        plain = list(seen)
        seen.clear()
        model(**batch, output_attentions=True)
    assert len(seen) == len(plain) + 1
    torch.testing.assert_close(seen, [*plain, plain[-1]], rtol=0, atol=0)
