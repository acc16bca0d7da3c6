"""Models as people treat them: edited lists, parts called by hand, other configs, own classes, transforms, traces.

Each against what a fresh forward, or a save and a load, says.
"""

import pickle
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.distributed as dist
from families import pair_of
from tiny import NO_DROPOUT, PAIRS, SOLVERS, TINY, imbert_config, lively
from torch import nn
from torch.func import functional_call, grad, jacrev, stack_module_state, vmap
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.bert.modeling_bert import BertLayer

import imbert_hf
from imbert_hf import (
    IMBertConfig,
    IMBertForMultipleChoice,
    IMBertForSequenceClassification,
    IMBertModel,
    IMBertPreTrainedModel,
)


def model_of(layers=4, **kwargs):
    torch.manual_seed(0)
    fields = {"num_hidden_layers": layers, "im_layers": [-1], "im_learning_rate": 0.02, **kwargs}
    return lively(IMBertForSequenceClassification(imbert_config(**fields))).eval()


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


# -- D1: the list of layers --


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


# -- D2: what is saved --

SUBCLASS = """
import sys, torch
from torch import nn
from imbert_hf import (
    IMBertConfig,
    IMBertForMultipleChoice,
    IMBertForSequenceClassification,
    IMBertModel,
    IMBertPreTrainedModel,
)

class Mine(IMBertForSequenceClassification):
    pass

class Head(IMBertPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.bert = IMBertModel(config)
        self.score = nn.Linear(config.hidden_size, 1)
        self.post_init()

config = IMBertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=50)
{kind}(config).save_pretrained(sys.argv[1])
"""


def files_of(folder):
    return {path.name for path in folder.glob("*_imbert.py")}


@pytest.mark.parametrize("kind", ["Mine", "Head"])
@pytest.mark.parametrize("where", ["script", "module"])
def test_models_of_a_users_own_class_carry_the_code(kind, where, tmp_path):
    text = SUBCLASS.replace("{kind}", kind)
    (tmp_path / "mine.py").write_text(text)
    command = ["-m", "mine"] if where == "script" else ["-c", "import mine"]
    subprocess.run([sys.executable, *command, "saved"], cwd=tmp_path, check=True, capture_output=True, timeout=120)
    folder = tmp_path / "saved"
    expected = tmp_path / "ours"
    model_of().save_pretrained(expected)
    assert files_of(folder) == files_of(expected)
    config = IMBertConfig.from_pretrained(folder)
    assert config.auto_map == IMBertConfig().auto_map
    loaded = AutoModel.from_pretrained(folder)
    assert type(loaded) is IMBertModel
    if kind == "Mine":
        assert type(AutoModelForSequenceClassification.from_pretrained(folder)) is IMBertForSequenceClassification


def test_classes_of_a_user_keep_their_forward_and_stand_for_no_other(batch):
    class Own(IMBertPreTrainedModel, BertForSequenceClassification):
        def forward(self, input_ids=None, **kwargs):
            return "own"

    class Logged:
        def forward(self, *args, **kwargs):
            return "logged", super().forward(*args, **kwargs)

    class Mixed(Logged, IMBertForSequenceClassification):
        pass

    class Odd(IMBertPreTrainedModel, BertModel):
        pass

    assert Own(imbert_config())(**batch) == "own"
    assert Mixed(imbert_config())(**batch)[0] == "logged"
    assert type(IMBertForSequenceClassification(imbert_config()).bert) is IMBertModel
    output = lively(Odd(imbert_config())).eval()(**batch)
    assert pickle.loads(pickle.dumps(output)).last_hidden_state.shape == (3, 9, 32)


def test_a_part_of_a_head_may_be_called_encoder(batch):
    class Choice(IMBertForMultipleChoice):
        def __init__(self, config):
            super().__init__(config)
            self.encoder = nn.Linear(2, 2)

    ids, mask = (torch.stack([batch[name]] * 2, dim=1) for name in ("input_ids", "attention_mask"))
    assert Choice(imbert_config())(input_ids=ids, attention_mask=mask).logits.shape == (3, 2)


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


def test_a_plain_encoder_in_a_users_class_becomes_implicit(batch):
    class Head(IMBertPreTrainedModel):
        def __init__(self, config):
            super().__init__(config)
            self.bert = BertModel(config)
            self.post_init()

        def forward(self, **inputs):
            return self.bert(**inputs)

    model = lively(Head(imbert_config())).eval()
    assert type(model.bert) is IMBertModel
    assert model(**batch, output_im_statistics=True).im_residuals is not None


def test_a_model_after_fully_shard_carries_the_code(tmp_path):
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = model_of()
        for layer in model.bert.encoder.layer:
            fully_shard(layer)
        fully_shard(model)
        state = {name: p.full_tensor().detach() for name, p in model.state_dict().items()}
        assert type(model).__name__ == "FSDPIMBertForSequenceClassification"
        model.save_pretrained(tmp_path, state_dict=state)
    finally:
        dist.destroy_process_group()
    config = IMBertConfig.from_pretrained(tmp_path)
    assert config.auto_map == IMBertConfig().auto_map
    assert "layers_imbert.py" in files_of(tmp_path)


# -- D3: parts called by hand --


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


# -- D4: functions inside a layer that torch.func does not know --


class Old(torch.autograd.Function):
    """h * h, written as such functions were before setup_context."""

    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return h * 1.5

    @staticmethod
    def backward(ctx, v):
        return v * 1.5


@pytest.mark.parametrize("gradient", ["unrolled", "implicit", "one_step"])
def test_gradient_descent_differentiates_old_functions(gradient, batch):
    def run(inner):
        model = model_of(2, im_solver="gradient_descent", im_gradient=gradient).train(False)
        calls = []
        dense = model.bert.encoder.layer[-1].intermediate.dense
        dense.register_forward_hook(lambda module, args, output: inner(output))
        if inner == Old.apply:
            dense.register_full_backward_hook(lambda *_: calls.append(1))
        with torch.inference_mode():
            inferred = model(**batch).logits
        logits = model(**batch).logits
        logits.square().sum().backward()
        return inferred, logits.detach(), [p.grad for p in model.parameters()], calls

    expected = run(lambda h: 1.5 * h)
    found = run(Old.apply)
    torch.testing.assert_close(found[:3], expected[:3])
    assert found[3]


# -- D5: torch.func --


@pytest.mark.parametrize(("solver", "gradient"), PAIRS)
@pytest.mark.parametrize("tolerance", [0.0, 1e-2])
def test_vmap_over_stacked_models(solver, gradient, tolerance, batch):
    fields = {"im_solver": solver, "im_gradient": gradient, "im_tolerance": tolerance, "attn_implementation": "eager"}
    models = [model_of(2, im_layers="all", **fields) for _ in range(2)]
    with torch.no_grad():
        for p in models[1].parameters():
            p.mul_(1.1)
    expected = torch.stack([model(**batch).logits for model in models])
    parameters, buffers = stack_module_state(models)

    def run(p, b):
        return functional_call(models[0], (p, b), (), batch).logits

    with torch.no_grad():
        torch.testing.assert_close(vmap(run)(parameters, buffers), expected, rtol=0, atol=1e-5)
    if solver != "gradient_descent":
        with torch.inference_mode():
            torch.testing.assert_close(vmap(run)(parameters, buffers), expected, rtol=0, atol=1e-5)
    logits = vmap(run)(parameters, buffers)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    if gradient == "implicit":
        with pytest.raises(
            RuntimeError, match=r"no derivative through torch\.func\.vmap; 'unrolled' and 'one_step' have"
        ):
            logits.sum().backward()
        return
    logits.sum().backward()
    for i, model in enumerate(models):
        model.zero_grad()
        model(**batch).logits.sum().backward()
        for name, p in model.named_parameters():
            torch.testing.assert_close(parameters[name].grad[i], p.grad, rtol=1e-3, atol=1e-5)


def test_products_of_torch_func_under_inference_mode_are_refused(batch):
    model = model_of(2, im_solver="gradient_descent", attn_implementation="eager")
    parameters, buffers = stack_module_state([model])
    with torch.inference_mode(), pytest.raises(ValueError, match=r"which torch\.func does not under inference_mode"):
        vmap(lambda p, b: functional_call(model, (p, b), (), batch).logits)(parameters, buffers)


@pytest.mark.parametrize(("solver", "gradient"), PAIRS)
@pytest.mark.parametrize("tolerance", [0.0, 1e-2])
def test_func_grad_and_jacrev_are_autograds(solver, gradient, tolerance, batch):
    fields = {"im_solver": solver, "im_gradient": gradient, "im_tolerance": tolerance, "attn_implementation": "eager"}
    model = model_of(2, im_layers="all", **fields)
    labels = torch.tensor([0, 1, 1])
    model(**batch, labels=labels).loss.backward()
    detached = {name: p.detach() for name, p in model.named_parameters()}
    found = grad(lambda p: functional_call(model, p, (), {**batch, "labels": labels}).loss)(detached)
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-4, atol=1e-6)
    embeds = model.get_input_embeddings()(batch["input_ids"]).detach()

    def first(embeds):
        return model(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits[0]

    jacobian = jacrev(first)(embeds)
    leaf = embeds.clone().requires_grad_()
    rows = [torch.autograd.grad(row, leaf, retain_graph=True)[0] for row in first(leaf)]
    torch.testing.assert_close(jacobian, torch.stack(rows), rtol=1e-4, atol=1e-6)


# -- D6: traces --


@pytest.mark.filterwarnings("ignore")  # of tracing, and of what transformers deprecates
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("tolerance", [0.0, 1e-1])
def test_a_trace_makes_every_step(solver, tolerance, batch):
    fields = {"im_solver": solver, "im_tolerance": tolerance, "im_iterations": 12, "im_layers": "all"}
    model = model_of(2, return_dict=False, attn_implementation="eager", **fields)
    easy = torch.zeros_like(batch["input_ids"])
    if solver == "gradient_descent":
        with pytest.raises(ValueError, match=r"which torch\.jit\.trace cannot record; use 'fixed_point' or 'anderson'"):
            torch.jit.trace(model, (easy,), check_trace=False)
        return
    with torch.no_grad():
        traced = torch.jit.trace(model, (easy, batch["attention_mask"]), check_trace=False)
        for other in (easy, batch["input_ids"]):
            expected = model(other, batch["attention_mask"])[0]
            torch.testing.assert_close(traced(other, batch["attention_mask"])[0], expected, rtol=0, atol=1e-5)


# -- D7: other configs and encoders --


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


# -- D8: misspelt fields --


@pytest.mark.parametrize("family", ["Bert", "Roberta", "Electra"])
def test_fields_without_their_prefix_are_refused(family, tmp_path):
    config_class = getattr(imbert_hf, f"IM{family}Config")
    config_class().save_pretrained(tmp_path)
    for name in imbert_hf.configuration_imbert.IM_FIELDS:
        bare = name.removeprefix("im_")
        for wrong in (bare, f"im{bare}", name.capitalize(), name.upper(), bare.replace("_", ""), f"im__{bare}"):
            if wrong == name:
                continue
            for make in (config_class, lambda **kw: config_class.from_pretrained(tmp_path, **kw), config_class.paper):
                with pytest.raises(ValueError, match=f"'{wrong}' is no field of .*did you mean '{name}'"):
                    make(**{wrong: 1})


def test_other_keywords_and_keys_of_a_file_go_where_berts_go(tmp_path):
    config = IMBertConfig(my_note="a", tied=3)
    assert (config.my_note, config.tied) == ("a", 3)
    BertConfig(solver="lbfgs", layers=12, Theta=1, **TINY).save_pretrained(tmp_path)
    config = IMBertConfig.from_pretrained(tmp_path, im_theta=0.5)
    assert (config.solver, config.layers, config.Theta, config.im_theta) == ("lbfgs", 12, 1, 0.5)
    config.save_pretrained(tmp_path / "again")
    assert IMBertConfig.from_pretrained(tmp_path / "again").solver == "lbfgs"


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


def test_importing_the_package_replaces_nothing_of_transformers():
    code = """
import torch, transformers
from transformers import PreTrainedModel, PretrainedConfig, Trainer
from transformers.utils import hub
classes = (PreTrainedModel, PretrainedConfig, Trainer, hub.PushToHubMixin, transformers.BertModel)
before = [dict(vars(c)) for c in classes] + [dict(vars(hub)), dict(vars(torch.nn.Module))]
import imbert_hf
after = [dict(vars(c)) for c in classes] + [dict(vars(hub)), dict(vars(torch.nn.Module))]
print([k for a, b in zip(before, after) for k in b if k not in a or a[k] is not b[k]])
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done


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


def test_a_class_that_a_user_registers_stays_in_the_auto_map(tmp_path):
    entry = {
        "AutoModelForSequenceClassification": "mine.Mine",
        "AutoModel": "someone/else--modeling_imbert.IMBertModel",
    }
    imbert_config(auto_map=entry).save_pretrained(tmp_path)
    found = IMBertConfig.from_pretrained(tmp_path).auto_map
    assert found == {**IMBertConfig().auto_map, "AutoModelForSequenceClassification": "mine.Mine"}
