"""A backward pass differentiates the forward that was made, whatever has changed since.

The gradient is that without the change, or BERT refuses the change too. Under a checkpoint, which runs the forward
again, it is what becomes of BERT.
"""

import contextlib
import gc
import inspect
from functools import partial

import pytest
import torch
import transformers
from families import FAMILIES, OTHERS, config_of, inputs_for, type_of
from tiny import NO_DROPOUT, PAIRS, TINY, lively
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import imbert_hf
from imbert_hf.evaluation.data.loading import layers_of


V = torch.linspace(-1, 1, 32)  # a loss whose cotangent does not depend on what was computed


# Of a layer: what makes its queries, its two dense layers, and the attention.
PARTS = {
    "DebertaV2": ("attention.self.query_proj", "intermediate.dense", "output.dense", "attention"),
    "DistilBert": ("attention.q_lin", "ffn.lin1", "ffn.lin2", "attention"),
    "ModernBert": ("attn.Wqkv", "mlp.Wi", "mlp.Wo", "attn"),
}
BERTS = ("attention.self.query", "intermediate.dense", "output.dense", "attention")
FAMILY_PAIRS = [("Bert", PAIRS), *((family, [("fixed_point", "implicit")]) for family in OTHERS)]


def layer_of(model):
    return layers_of(model)[-1]


def parts_of(model):
    """The four of the last layer."""
    config = getattr(model, "module", model).config
    names = next((parts for family, parts in PARTS.items() if config.model_type.endswith(type_of(family))), BERTS)
    return [layer_of(model).get_submodule(name) for name in names]


def set_dropout(model, p):
    for module in layer_of(model).modules():
        if isinstance(module, nn.Dropout):
            module.p = p


def swap_weight(model):
    dense = parts_of(model)[2]
    dense.weight = nn.Parameter(2 * dense.weight.detach())


def patch_forward(model):
    dense = parts_of(model)[1]
    dense.forward = lambda h: 0.5 * nn.functional.linear(h, dense.weight, dense.bias)


def double(module, args, output):
    return 2 * output[0], *output[1:]


def in_place(model):
    with torch.no_grad():
        parts_of(model)[2].weight.mul_(2)


def im_fields(model):
    config = getattr(model, "module", model).config
    config.im_theta, config.im_iterations, config.im_gradient, config.im_solver = 0.5, 1, "one_step", "anderson"
    config.im_initial_guess, config.im_tolerance, config.im_step_size = "previous", 0.1, 0.5


# What may happen to a model between its forward and its backward.
CHANGES = {
    "eval()": lambda model: model.eval(),
    "another dropout probability": lambda model: set_dropout(model, 0.6),
    "no dropout": lambda model: set_dropout(model, 0.0),
    "another attention": lambda model: getattr(model, "module", model).set_attn_implementation("eager"),
    "a forward hook": lambda model: parts_of(model)[3].register_forward_hook(double),
    "a hook removed": lambda model: model.hook.remove(),
    "another parameter": swap_weight,
    "another forward of a part": patch_forward,
    "frozen": lambda model: parts_of(model)[0].weight.requires_grad_(False),
    "a weight in place": in_place,
    "a cut list of layers": lambda model: layers_of(model).__delitem__(slice(1, None)),
    "other fields": im_fields,
    "random numbers drawn": lambda model: torch.rand(7),
    "another seed": lambda model: torch.manual_seed(11),
}


def make(solver, gradient, layers=2, family="Bert", **kwargs):
    """A model in training; without a solver transformers' own with the same weights. One part has a hook."""
    library, prefix = (transformers, "") if solver is None else (imbert_hf, "IM")
    fields = {"im_solver": solver, "im_gradient": gradient, "im_iterations": 2, "im_learning_rate": 0.02}
    config = config_of(f"{prefix}{family}", num_hidden_layers=layers, **(fields if solver else {}), **kwargs)
    torch.manual_seed(0)
    model = lively(getattr(library, f"{prefix}{family}Model")(config)).train()
    if hasattr(model, "pooler"):
        model.pooler = None
    if hasattr(model, "final_norm"):  # of ModernBERT; no checkpoint holds it
        model.final_norm = nn.Identity()
    model.hook = parts_of(model)[1].register_forward_hook(lambda module, args, output: 0.7 * output)
    return model


def gradients(model, batch, before=None, between=None, way="plain"):
    """The gradients of a training step with a change before its forward, and one between forward and backward."""
    if "checkpoint" in way:
        model._set_gradient_checkpointing(True, partial(checkpoint, use_reentrant=way == "reentrant checkpoint"))
    if before:
        before(model)
    torch.manual_seed(3)
    run = DistributedDataParallel(model) if way == "ddp" else model
    with torch.autocast("cpu", torch.bfloat16) if way == "autocast" else contextlib.nullcontext():
        loss = (run(**batch).last_hidden_state * V).sum()
    names = dict(model.named_parameters())  # as they are now: a change may take another's place
    if between:
        between(model)
    loss.backward()
    return {name: p.grad for name, p in names.items() if p.grad is not None}


def same(found, expected):
    return all(torch.allclose(found[n], expected[n], rtol=1e-3, atol=1e-5) for n in found)


# What autocast and DDP do hangs on no family.
WAYS = [("plain", *pair) for pair in FAMILY_PAIRS] + [(way, "Bert", PAIRS) for way in ("autocast", "ddp")]


@pytest.mark.parametrize(("way", "family", "pairs"), WAYS, ids=[f"{way}-{family}" for way, family, _ in WAYS])
@pytest.mark.parametrize("change", CHANGES)
def test_the_gradient_is_that_of_the_forward_that_was_made(way, change, family, pairs, batch, process_group):
    refused, batch = [], inputs_for(f"{family}Model", batch)
    for solver, gradient in [(None, None), *pairs]:
        expected = gradients(make(solver, gradient, family=family), batch, way=way)
        model = make(solver, gradient, family=family)
        frozen = next(name for name, p in model.named_parameters() if p is parts_of(model)[0].weight)
        try:
            found = gradients(model, batch, between=CHANGES[change], way=way)
        except RuntimeError:
            refused.append((solver, gradient))
            continue
        if change == "frozen":  # what DDP hands to the frozen one is BERT's too
            for grads in (expected, found):
                grads.pop(frozen, None)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, msg=lambda m: f"{solver} {gradient}: {m}")  # noqa: B023
    # Of all or none: by BERT too. Autocast saves copies of the weights.
    assert len(refused) == (1 + len(pairs) if change == "a weight in place" and way != "autocast" else 0), refused


OF_A_LAYER = [change for change in CHANGES if change not in ("a cut list of layers", "other fields")]


@pytest.mark.parametrize(("family", "pairs"), FAMILY_PAIRS, ids=FAMILIES)
@pytest.mark.parametrize("change", OF_A_LAYER)
@pytest.mark.parametrize("way", ["checkpoint", "reentrant checkpoint"])
def test_under_a_checkpoint_becomes_of_it_what_becomes_of_bert(way, change, family, pairs, batch):
    """Of one layer, whose input a change does not change: an error, the old gradient, that of a model changed before,
    or, where a checkpoint mixes the two, neither."""
    if way == "reentrant checkpoint" and family == "DebertaV2":
        pytest.skip("fails in DeBERTa's own class, whatever changes")
    batch = inputs_for(f"{family}Model", batch)

    def outcome(solver, gradient):
        def of(**when):
            model = make(solver, gradient, layers=1, family=family, hidden_dropout_prob=0.0, dropout=0.0)
            return {name: g for name, g in gradients(model, batch, way=way, **when).items() if "layer" in name}

        try:
            found = of(between=CHANGES[change])
        except RuntimeError:
            return "refused"
        return "old" * same(found, of()) or "new" * same(found, of(before=CHANGES[change])) or "mixed"

    expected = outcome(None, None)
    # Another attention is handed the mask of the one before.
    assert way == "checkpoint" or expected in ("old", "new") or change == "another attention"
    for solver, gradient in pairs:
        found = outcome(solver, gradient)
        assert found == expected or (expected == "mixed" and found != "refused"), (solver, gradient, found)


@pytest.mark.parametrize(("solver", "gradient"), PAIRS)
@pytest.mark.parametrize("way", ["checkpoint", "reentrant checkpoint"])
def test_a_checkpoint_runs_again_with_the_fields_of_its_forward(way, solver, gradient, batch):
    expected = gradients(make(solver, gradient), batch, way=way)
    found = gradients(make(solver, gradient), batch, between=im_fields, way=way)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def composed(layer, gradient):
    """Two iterations y <- (x + F(y)) / 2 from y = F(x) around a layer of transformers, written plainly."""
    F = partial(inspect.unwrap(type(layer).forward), layer)  # below its own checkpoint

    def forward(x, *args, **kwargs):
        with torch.set_grad_enabled(torch.is_grad_enabled() and gradient == "unrolled"):
            y = (x + F(F(x, *args, **kwargs), *args, **kwargs)) / 2
        if gradient == "unrolled":
            return (x + F(y, *args, **kwargs)) / 2
        Fy = F(y + (x - x.detach()) / 2, *args, **kwargs)
        return (x + Fy) / 2 + (Fy - Fy.detach()) / 2  # the adjoint starts at c v

    return forward


def checkpointed(function, use_reentrant):
    return lambda *args, **kwargs: checkpoint(partial(function, **kwargs), *args, use_reentrant=use_reentrant)


@pytest.mark.parametrize("change", [change for change in OF_A_LAYER if "dropout" not in change])
@pytest.mark.parametrize("gradient", ["unrolled", "one_step"])
@pytest.mark.parametrize("way", ["plain", "checkpoint", "reentrant checkpoint"])
def test_it_is_what_becomes_of_berts_layers_composed(way, gradient, change, batch):
    """Without dropout, whose masks the composition would draw anew."""
    results = []
    for solver in ("fixed_point", None):
        model, inner = make(solver, gradient, **NO_DROPOUT).double(), way
        for layer in model.encoder.layer if solver is None else ():
            run, inner = composed(layer, gradient), "plain"  # its checkpoint stands here
            if way != "plain":
                run = checkpointed(run, "reentrant" in way)
            layer.forward = run
        try:
            results.append(gradients(model, batch, between=CHANGES[change], way=inner))
        except RuntimeError as error:
            results.append(type(error).__name__)
    if isinstance(results[0], str):
        assert results[0] == results[1]
    else:
        torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("solver", "gradient"), PAIRS)
@pytest.mark.parametrize("way", ["plain", "checkpoint", "reentrant checkpoint", "ddp"])
def test_hooks_of_parameters_run_once(solver, gradient, way, batch, process_group):
    expected = gradients(make(solver, gradient), batch, way=way)
    model, calls = make(solver, gradient), []
    for name, p in model.named_parameters():
        p.register_hook(lambda g, name=name: calls.append(name) or -3 * g)
    found = gradients(model, batch, way=way)
    assert sorted(calls) == sorted(expected)
    torch.testing.assert_close(found, {n: -3 * g for n, g in expected.items()})


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT's
@pytest.mark.parametrize(("solver", "gradient"), PAIRS)
def test_adapters_of_two_losses_in_one_backward(solver, gradient, batch):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["query", "value"], r=2, init_lora_weights=False)

    def adapted():
        model = peft.get_peft_model(make(solver, gradient), config, adapter_name="first")
        model.add_adapter("second", config)
        return model

    def loss(model, name):
        model.set_adapter(name)
        for n, p in model.named_parameters():  # it freezes the others, which would then get no gradient of BERT either
            p.requires_grad_("lora" in n)
        torch.manual_seed(3)
        return (model(**batch).last_hidden_state * V).sum()

    def of(model, name):
        return {n: p.grad for n, p in model.named_parameters() if f".{name}." in n}

    torch.manual_seed(0)
    together, alone = adapted(), adapted()
    alone.load_state_dict(together.state_dict())
    (loss(together, "first") + loss(together, "second")).backward()
    for name in ("first", "second"):
        alone.zero_grad()
        loss(alone, name).backward()
        expected = of(alone, name)
        assert all(g is not None and g.abs().sum() > 0 for g in expected.values())
        torch.testing.assert_close(of(together, name), expected)


@pytest.mark.parametrize(("solver", "gradient"), PAIRS)
@pytest.mark.parametrize(
    "hooks",
    [
        lambda: torch.autograd.graph.save_on_cpu(),
        lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t),
        lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t.clone()),
    ],
    ids=["save_on_cpu", "identity", "copies"],
)
def test_hooks_of_saved_tensors_through_forward_and_backward(solver, gradient, hooks, batch):
    expected = gradients(make(solver, gradient), batch)
    for change in (None, CHANGES["eval()"], CHANGES["another attention"]):
        with hooks():
            found = gradients(make(solver, gradient), batch, between=change)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def tensors():
    return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())


@pytest.mark.parametrize(("solver", "gradient"), PAIRS)
@pytest.mark.parametrize("way", ["plain", "checkpoint", "reentrant checkpoint", "save_on_cpu"])
def test_a_training_step_leaves_no_cycle_behind(solver, gradient, way, batch):
    def run(model):
        with torch.autograd.graph.save_on_cpu() if way == "save_on_cpu" else contextlib.nullcontext():
            gradients(model, batch, way=way)

    def left(model):
        run(model)  # which makes the gradients
        gc.disable()
        gc.freeze()  # what is there already, millions of objects, is neither searched nor counted
        try:
            run(model)
            return tensors()
        finally:
            gc.unfreeze()
            gc.enable()

    assert left(make(solver, gradient)) <= max(0, left(make(None, None)))


@pytest.mark.parametrize(("solver", "gradient"), PAIRS)
def test_several_backward_passes_through_one_forward(solver, gradient, batch):
    expected = gradients(make(solver, gradient), batch)
    for way in ("plain", "checkpoint"):
        model = make(solver, gradient)
        for _ in range(2):
            found = gradients(model, batch, way=way)
        torch.testing.assert_close(found, {n: 2 * g for n, g in expected.items()}, rtol=1e-4, atol=1e-7)
        model.zero_grad()
        torch.manual_seed(3)
        loss = (model(**batch).last_hidden_state * V).sum()
        for _ in range(2):
            loss.backward(retain_graph=True)
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        torch.testing.assert_close(found, {n: 2 * g for n, g in expected.items()}, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("solver", "gradient"), PAIRS)
def test_attentions_and_hidden_states_keep_their_gradient(solver, gradient, batch):
    """As transformers' own test_retain_grad_hidden_states_attentions asks of every model."""
    model = make(solver, gradient).eval()
    model.set_attn_implementation("eager")
    outputs = model(**batch, output_attentions=True, output_hidden_states=True)
    for t in (*outputs.hidden_states, *outputs.attentions):
        t.retain_grad()
    outputs.last_hidden_state.flatten()[0].backward(retain_graph=True)
    assert all(t.grad is not None and t.grad.isfinite().all() for t in (*outputs.hidden_states, *outputs.attentions))
    # The derivative of the output by the attention alone: products of the adjoint solve leave no trace in it.
    found = [t.grad.clone() for t in outputs.attentions]
    for t, grad in zip(outputs.attentions, found, strict=True):
        expected = torch.autograd.grad(outputs.last_hidden_state.flatten()[0], t, retain_graph=True)[0]
        torch.testing.assert_close(grad, expected)
        assert grad.abs().sum() > 0


def test_the_tiny_model_is_what_these_tests_need():
    assert TINY["num_attention_heads"] == 4
    model = make(None, None)
    assert model.training
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.1}
