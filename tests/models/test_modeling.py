"""The models against transformers' BERT with the same weights, and what must not change a prediction."""

import copy
import inspect
import itertools
import pickle
from types import SimpleNamespace

import pytest
import torch
import transformers
from families import pair_of
from tiny import PAIRS, imbert_config

from imbert_hf import IMBertForSequenceClassification, pass_imbert


@pytest.mark.parametrize(
    ("labels", "num_labels", "problem_type"),
    [
        (torch.tensor([0, 2, 1]), 3, "single_label_classification"),
        (torch.tensor([0.5, -1.0, 2.0]), 1, "regression"),
        (torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]), 2, "multi_label_classification"),
    ],
)
def test_problem_types(batch, labels, num_labels, problem_type):
    model = IMBertForSequenceClassification(imbert_config(num_labels=num_labels))
    outputs = model(**batch, labels=labels)
    assert model.config.problem_type == problem_type
    assert outputs.logits.shape == (3, num_labels)
    outputs.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_layer_solves_the_relation_of_bert_layers(batch):
    # y = (x + F(y)) / 2 for every layer, F being transformers' own.
    bert, model = pair_of("BertModel", im_iterations=60, im_solver="anderson", attn_implementation="eager")
    bert, model = bert.double(), model.double()
    bert.set_attn_implementation("eager")
    with torch.no_grad():
        hidden = model(**batch, output_hidden_states=True).hidden_states
        mask = torch.where(batch["attention_mask"].bool(), 0.0, -torch.inf)[:, None, None].double()
        for layer, x, y in zip(bert.encoder.layer, hidden, hidden[1:], strict=False):
            real = batch["attention_mask"].bool()
            torch.testing.assert_close(y[real], ((x + layer(y, mask)) / 2)[real], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("solver", "gradient"), PAIRS)
def test_hidden_states_and_attentions_are_as_many_as_berts(solver, gradient, batch):
    bert, model = pair_of("BertModel", im_solver=solver, im_gradient=gradient)
    for m in (bert, model):
        m.set_attn_implementation("eager")
    for train, layers in itertools.product((False, True), ("all", [1])):
        model.config.im_layers = layers
        expected = bert.train(train)(**batch, output_attentions=True, output_hidden_states=True)
        actual = model.train(train)(**batch, output_attentions=True, output_hidden_states=True)
        assert len(actual.hidden_states) == len(expected.hidden_states) == 4
        assert [a.shape for a in actual.attentions] == [a.shape for a in expected.attentions]
        assert torch.equal(actual.hidden_states[-1], actual.last_hidden_state)
        if not train:
            for a in actual.attentions:
                torch.testing.assert_close(a.sum(-1), torch.ones(a.shape[:-1]))
    model.eval().config.im_layers = "all"
    model.config.im_iterations = 0
    exact = model(**batch, output_attentions=True).attentions
    torch.testing.assert_close(exact, bert.eval()(**batch, output_attentions=True).attentions, rtol=0, atol=0)


@pytest.mark.parametrize(("solver", "gradient"), PAIRS)
def test_contexts_give_the_same_logits(solver, gradient, batch):
    _, model = pair_of("BertForSequenceClassification", im_solver=solver, im_gradient=gradient, im_eval_iterations=2)
    reference = model(**batch).logits
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, reference, rtol=0, atol=1e-6)
    with torch.inference_mode():
        torch.testing.assert_close(model(**batch).logits, reference, rtol=0, atol=1e-6)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    mask = batch["attention_mask"]
    torch.testing.assert_close(model(inputs_embeds=embeds, attention_mask=mask).logits, reference, rtol=0, atol=1e-6)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(**batch).logits, reference, rtol=0, atol=1e-5)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model(**batch).logits.float(), reference, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(("solver", "gradient"), PAIRS)
def test_every_pair_trains(solver, gradient, batch):
    _, model = pair_of("BertForSequenceClassification", im_solver=solver, im_gradient=gradient, im_learning_rate=0.02)
    labels = torch.tensor([0, 1, 1])
    before = model(**batch, labels=labels).loss.item()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    torch.manual_seed(0)
    for _ in range(8):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert model.eval()(**batch, labels=labels).loss.item() < 0.6 * before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", ["fixed_point", "anderson", "gradient_descent"])
@pytest.mark.parametrize("tolerance", [0.0, 1e-2])
def test_a_row_agrees_alone_and_in_any_batch_at_any_padding(solver, dtype, tolerance, batch):
    _, model = pair_of("BertForSequenceClassification", im_solver=solver, im_tolerance=tolerance, im_learning_rate=0.02)
    model.to(dtype)
    atol = 1e-12 if dtype == torch.float64 else {"gradient_descent": 1e-4}.get(solver, 1e-5)
    with torch.no_grad():
        reference = model(**batch).logits
        order = torch.tensor([2, 0, 1])
        torch.testing.assert_close(
            model(**{k: v[order] for k, v in batch.items()}).logits, reference[order], rtol=0, atol=atol
        )
        wider = {k: torch.nn.functional.pad(v, (0, 20)) for k, v in batch.items()}
        torch.testing.assert_close(model(**wider).logits, reference, rtol=0, atol=atol)
        for i, length in enumerate(batch["attention_mask"].sum(1)):
            alone = {k: v[i : i + 1, :length] for k, v in batch.items()}
            torch.testing.assert_close(model(**alone).logits[0], reference[i], rtol=0, atol=atol)
            left = {k: torch.nn.functional.pad(v, (4, 0)) for k, v in alone.items()}
            left["position_ids"] = torch.nn.functional.pad(torch.arange(length), (4, 0))[None]
            states = model.bert(**left).last_hidden_state[0, 4:]
            torch.testing.assert_close(states, model.bert(**alone).last_hidden_state[0], rtol=0, atol=10 * atol)


def test_copies_pickles_and_a_new_config_object(batch):
    _, model = pair_of("BertForSequenceClassification")
    expected = model(**batch).logits
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(**batch).logits, expected, rtol=0, atol=0)
    outputs = model(**batch, output_im_statistics=True)
    leaves, spec = torch.utils._pytree.tree_flatten(outputs)
    assert torch.utils._pytree.tree_unflatten(leaves, spec).im_residuals is not None
    model.bert.config = imbert_config(im_theta=0.0)
    assert not torch.equal(model(**batch).logits, expected)
    model.resize_token_embeddings(120)
    assert model(**batch).logits.shape == expected.shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("solver", "gradient"), PAIRS)
def test_models_in_half_precision(solver, gradient, dtype, batch):
    _, model = pair_of("BertForSequenceClassification", im_solver=solver, im_gradient=gradient, im_learning_rate=0.02)
    expected = model(**batch).logits
    model.to(dtype).train()
    loss = model(**batch, labels=torch.tensor([0, 1, 1])).loss
    loss.backward()
    assert loss.dtype == dtype
    assert all(p.grad.isfinite().all() for p in model.parameters())
    outputs = model.eval()(**batch, output_im_statistics=True)
    torch.testing.assert_close(outputs.logits.float(), expected, rtol=0.1, atol=0.1)
    assert outputs.im_residuals[0].dtype == torch.float32


def replicated(module):
    """What DataParallel hands to a device: parameters are non-leaf copies, and `parameters()` is empty."""
    replica = module._replicate_for_data_parallel()
    replica._former_parameters = {}
    for name, parameter in module._parameters.items():
        copied = None if parameter is None else parameter * 1
        replica._parameters.pop(name, None)
        setattr(replica, name, copied)
        replica._former_parameters[name] = copied
    for name, child in module._modules.items():
        replica._modules[name] = None if child is None else replicated(child)
    return replica


@pytest.mark.parametrize("gradient", ["unrolled", "implicit", "one_step"])
def test_replicas_of_data_parallel_train_every_parameter(gradient, batch):
    _, model = pair_of("BertForSequenceClassification", im_gradient=gradient)
    labels = torch.tensor([0, 1, 1])
    model(**batch, labels=labels).loss.backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    replicated(model)(**batch, labels=labels).loss.backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], expected)


@pytest.mark.parametrize(("solver", "gradient"), PAIRS)
def test_parameters_of_a_functional_call_get_their_gradient(solver, gradient, batch):
    _, model = pair_of("BertModel", im_solver=solver, im_gradient=gradient)
    swapped = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    torch.func.functional_call(model, swapped, (), dict(batch)).last_hidden_state.square().sum().backward()
    assert all(p.grad is None for p in model.parameters())
    model(**batch).last_hidden_state.square().sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(swapped[name].grad, p.grad)


def test_caches_and_cross_attention_are_refused(batch):
    _, model = pair_of("BertModel")
    # Its names before transformers 5.24, and since.
    for name in {"past_key_values", "cache"} & {*inspect.signature(transformers.BertModel.forward).parameters}:
        with pytest.raises(ValueError, match=f"{name} must be None"):
            model(**batch, **{name: transformers.DynamicCache()})
    with pytest.raises(ValueError, match="encoder_hidden_states must be None"):
        model(**batch, encoder_hidden_states=torch.zeros(3, 9, 32))
    positional = [batch["input_ids"], batch["attention_mask"], None, None, None, torch.zeros(3, 9, 32)]
    with pytest.raises(ValueError, match="encoder_hidden_states must be None for 'imbert', got a Tensor"):
        model(*positional)


def test_masks_that_layers_take(batch):
    _, model = pair_of("BertForSequenceClassification", im_solver="anderson", im_tolerance=1e-3, im_iterations=30)
    expected = model(**batch, output_im_statistics=True)
    mask = batch["attention_mask"]
    four = mask[:, None, None, :].bool().expand(-1, 1, 9, -1)
    additive = torch.where(four, 0.0, torch.finfo(torch.float32).min)
    for other in (mask.bool(), mask.float(), four, additive, torch.where(four, -0.5, -10000.5)):
        outputs = model(batch["input_ids"], attention_mask=other, output_im_statistics=True)
        torch.testing.assert_close(outputs.logits, expected.logits, rtol=0, atol=1e-5)
        assert torch.equal(torch.stack(outputs.im_iterations_used), torch.stack(expected.im_iterations_used))
    with pytest.raises(ValueError, match=r"attention_mask must be \(batch, length\)"):
        model(batch["input_ids"], attention_mask=mask[:, None].expand(-1, 9, -1))
    same = {"input_ids": batch["input_ids"][:1].repeat(3, 1), "attention_mask": mask[:1].repeat(3, 1)}
    shared = torch.where(mask[:1, None, None, :].bool(), 0.0, -1e9).expand(1, 1, 9, 9)
    torch.testing.assert_close(model(same["input_ids"], attention_mask=shared).logits, model(**same).logits)
    whole = model(batch["input_ids"][:1, :5])
    torch.testing.assert_close(whole.logits, expected.logits[:1], rtol=0, atol=1e-5)


def test_tolerance_and_eval_iterations_are_read_at_every_forward(batch):
    _, model = pair_of("BertModel", im_solver="anderson")
    model.config.im_eval_iterations = 5
    assert (model(**batch, output_im_statistics=True).im_iterations_used[0] == 5).all()
    assert (model.train()(**batch, output_im_statistics=True).im_iterations_used[0] == 3).all()
    model.eval().config.im_eval_iterations = 60
    model.config.im_tolerance = 1e-4
    outputs = model(**batch, output_im_statistics=True)
    assert all((r <= 1e-4).all() for r in outputs.im_residuals)
    assert all((k < 60).all() for k in outputs.im_iterations_used)
    model.config.im_theta = 0.0
    assert all((r == 0).all() for r in model(**batch, output_im_statistics=True).im_residuals)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize(("solver", "gradient"), PAIRS)
def test_gradient_checkpointing_changes_nothing_and_recomputes_once(solver, gradient, use_reentrant, batch):
    _, model = pair_of("BertForSequenceClassification", im_solver=solver, im_gradient=gradient, im_learning_rate=0.02)
    model.train()
    calls = [0]
    model.bert.encoder.layer[1].intermediate.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            model._set_gradient_checkpointing(
                True, lambda f, *a, **k: torch.utils.checkpoint.checkpoint(f, *a, use_reentrant=use_reentrant, **k)
            )
        model.zero_grad()
        calls[0] = 0
        torch.manual_seed(3)
        loss = model(**batch, labels=torch.tensor([0, 1, 1])).loss
        forward = calls[0]
        loss.backward()
        results.append((loss.detach(), [p.grad for p in model.parameters()], forward, calls[0] - forward))
    (loss, grads, forward, backward), (ck_loss, ck_grads, ck_forward, ck_backward) = results
    torch.testing.assert_close(ck_loss, loss, rtol=0, atol=1e-6)
    torch.testing.assert_close(ck_grads, grads, rtol=1e-3, atol=1e-5)
    kept = gradient == "implicit"  # the evaluation at the value, whose graph backward finds again
    assert forward == 4 + kept
    assert backward == 0
    assert ck_forward == forward - (kept and use_reentrant)  # where no gradient is recorded
    assert ck_backward == forward


@pytest.mark.parametrize("solver", ["fixed_point", "anderson", "gradient_descent"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rows_that_converged_leave_the_batch(solver, attention, batch, monkeypatch):
    """At inference with a tolerance; the prediction is that of the whole batch, and of each row alone."""
    torch.manual_seed(0)
    _, model = pair_of("BertForSequenceClassification", im_solver=solver, im_iterations=30, im_learning_rate=0.05)
    model.set_attn_implementation(attention)
    evaluated = []
    module = model.bert.encoder.layer[0].output
    forward = module.forward

    def count(hidden_states, input_tensor):
        evaluated.append(len(hidden_states))
        return forward(hidden_states, input_tensor)

    monkeypatch.setattr(module, "forward", count)

    def run(batch):
        evaluated.clear()
        return model(**batch, output_im_statistics=True)

    with torch.no_grad():
        model.config.im_iterations = 4
        model.config.im_tolerance = 1.001 * run(batch).im_residuals[0].median().item()  # the first within 4 iterations
        model.config.im_iterations = 30
        outputs = run(batch)
        used = outputs.im_iterations_used[0]
        assert len(set(used.tolist())) > 1
        # One evaluation for the guess, and for each row one an iteration and one that finds the tolerance reached.
        leaving = [3, *[int((used >= k).sum()) for k in range(used.max() + 1)]]
        assert evaluated == (leaving if attention == "sdpa" else [3] * len(leaving))
        for i in range(3):
            length = int(batch["attention_mask"][i].sum())
            alone = run({name: value[i : i + 1, :length] for name, value in batch.items()})
            torch.testing.assert_close(alone.logits[0], outputs.logits[i], rtol=0, atol=1e-5)
            assert alone.im_iterations_used[0].item() == used[i]
        handle = module.register_forward_hook(lambda *_: None)  # it may know the rows of the batch
        run(batch)
        assert set(evaluated) == {3}
        handle.remove()
        model.train()  # the masks of dropout are of the whole batch
        run(batch)
        assert set(evaluated) == {3}
    model.eval().config.im_gradient = "unrolled"  # and so is a graph
    run(batch)
    assert set(evaluated) == {3}


class _NoHostRead(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "a tensor was read on the host"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("solver", "gradient"), PAIRS)
def test_a_training_step_reads_no_more_on_the_host_than_bert(solver, gradient, batch):
    _, model = pair_of("BertModel", im_solver=solver, im_gradient=gradient)
    model.set_attn_implementation("eager")
    embeds = torch.randn(3, 9, 32)
    with _NoHostRead():
        model.train()(inputs_embeds=embeds).last_hidden_state.sum().backward()


def test_nan_is_never_silent(batch):
    _, model = pair_of("BertForSequenceClassification")
    clean = model(**batch).logits
    embeds = model.get_input_embeddings()(batch["input_ids"]).detach()
    embeds[1, 2] = float("nan")
    with pytest.warns(RuntimeWarning, match="An implicit layer met non-finite values"):
        outputs = model(inputs_embeds=embeds, attention_mask=batch["attention_mask"], output_im_statistics=True)
    torch.testing.assert_close(outputs.logits[::2], clean[::2], rtol=0, atol=1e-6)
    assert [r.isfinite().tolist() for r in outputs.im_residuals] == [[True, False, True]] * 3


def test_a_graph_that_is_captured_reads_no_flag(monkeypatch):
    """A read waits for the device, which a capture refuses: the first call would read."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    flag = SimpleNamespace(device=torch.device("cuda"), is_cuda=True, is_meta=False)  # with nothing to read
    for _ in range(65):
        pass_imbert._report_non_finite(flag)
    assert flag.device not in pass_imbert._unread


def test_the_second_derivative_is_refused_where_a_kernel_has_none():
    _, model = pair_of("BertModel", im_solver="gradient_descent", im_gradient="unrolled")
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="attn_implementation 'flex_attention' has no second derivative"):
        model.train().encoder.layer[0](torch.randn(2, 3, 32))
