"""im_consistency: the loss between the implicit and the explicit branch, against both branches run apart.

The implicit branch is the model without the loss, the explicit one the family's own model with the same parameters:
each runs whole, from the same random state, so that both draw the same dropout masks.
"""

import copy
import weakref

import pytest
import torch
from families import FAMILIES, MODELS, OTHERS, ROUNDING, base_of, family_of, inputs_for, model_of, pair_of
from tiny import GRADIENTS, NO_DROPOUT, PAIRS, SOLVERS, imbert_model
from torch.distributions import Bernoulli, Categorical, Independent, Normal, kl_divergence


pytestmark = pytest.mark.filterwarnings("ignore:.gradient_checkpointing.* is deprecated:FutureWarning")
HEADS = [name for name in MODELS if not name.endswith("Model")]
WEIGHT = 0.7
PLACES = {"last": [-1], "middle": [1], "all": "all"}  # of three layers


def symmetric(p, q):
    return kl_divergence(p, q) + kl_divergence(q, p)


def of_classes(implicit, explicit):
    return symmetric(Categorical(logits=implicit), Categorical(logits=explicit))


def plain_of(model):
    """The family's own model with the parameters themselves, not copies."""
    plain = model.to_plain()
    for own, shared in zip(plain.parameters(), model.parameters(), strict=True):
        own.requires_grad_(shared.requires_grad)  # else they would be trained from now on
    plain.load_state_dict(model.state_dict(keep_vars=True), assign=True)
    plain.tie_weights()
    return plain


def apart(model, inputs, divergence, seed=3):
    """The loss without the term, the term, and the implicit outputs, of two forwards."""
    weight, model.config.im_consistency = model.config.im_consistency, 0.0
    torch.manual_seed(seed)
    implicit = model(**inputs)
    model.config.im_consistency = weight
    torch.manual_seed(seed)
    explicit = plain_of(model)(**inputs)
    return implicit.loss, divergence(implicit, explicit), implicit


def gradients_of(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(model, inputs, divergence, seed=3, atol=1e-12):
    loss, term, implicit = apart(model, inputs, divergence, seed)
    assert term > 1e-6
    expected = gradients_of(model, loss + WEIGHT * term)
    torch.manual_seed(seed)
    outputs = model(**inputs)
    torch.testing.assert_close(outputs.im_consistency_loss, term, rtol=0, atol=atol)
    torch.testing.assert_close(outputs.loss, loss + WEIGHT * term, rtol=0, atol=atol)
    torch.testing.assert_close(gradients_of(model, outputs.loss), expected, rtol=0, atol=atol)
    for name in implicit:
        if name.endswith("logits"):
            assert torch.equal(outputs[name], implicit[name])
    return outputs


def classifier(**fields):
    return imbert_model(im_consistency=WEIGHT, **fields).double().train()


def of_logits(implicit, explicit):
    return of_classes(implicit.logits, explicit.logits).mean()


# -- the formula --


@pytest.mark.parametrize("dropout", [NO_DROPOUT, {}], ids=["no dropout", "dropout"])
@pytest.mark.parametrize("layers", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize(("solver", "gradient"), PAIRS)
def test_value_and_gradients_of_every_solver_and_gradient(solver, gradient, layers, dropout, labelled):
    model = classifier(im_solver=solver, im_gradient=gradient, im_layers=layers, **dropout)
    assert_same(model, labelled, of_logits)


@pytest.mark.parametrize("fields", [{"im_theta": 0.5}, {"im_tolerance": 1e-2, "im_iterations": 8}], ids=str)
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_other_settings(gradient, fields, labelled):
    assert_same(classifier(im_gradient=gradient, **fields), labelled, of_logits)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_the_explicit_branch_has_the_models_own_guess(gradient, labelled):
    """Where BERT is not that: the step with 0 iterations."""
    for fields in ({"im_initial_guess": "previous"}, {"im_step_size": 0.5}, {"im_vector_field": "layer"}):
        model = classifier(im_gradient=gradient, im_layers=[0, 1], **fields)
        model.config.im_consistency = 0.0
        torch.manual_seed(3)
        implicit = model(**labelled)
        model.config.im_iterations = 0
        torch.manual_seed(3)
        term = of_logits(implicit, model(**labelled))
        expected = gradients_of(model, implicit.loss + WEIGHT * term)
        model.config.im_consistency, model.config.im_iterations = WEIGHT, 3
        torch.manual_seed(3)
        outputs = model(**labelled)
        torch.testing.assert_close(outputs.im_consistency_loss, term, rtol=0, atol=1e-12)
        torch.testing.assert_close(gradients_of(model, outputs.loss), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layers", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_unrolled_gradient_is_that_of_finite_differences(solver, layers, labelled):
    model = classifier(im_solver=solver, im_gradient="unrolled", im_layers=layers, attn_implementation="eager")
    ids = labelled.pop("input_ids")
    words = model.bert.embeddings.word_embeddings(ids).detach().requires_grad_()

    def loss(words):
        torch.manual_seed(3)
        return model(inputs_embeds=words, **labelled).im_consistency_loss

    torch.autograd.gradcheck(loss, words, fast_mode=True, atol=1e-6)


def in_tokens(implicit, explicit, labels):
    return of_classes(implicit, explicit)[labels != -100].mean()


HEAD = {
    "ForTokenClassification": lambda p, q, x: in_tokens(p.logits, q.logits, x["labels"]),
    "ForMaskedLM": lambda p, q, x: in_tokens(p.logits, q.logits, x["labels"]),
    "ForQuestionAnswering": lambda p, q, x: (
        (of_classes(p.start_logits, q.start_logits) + of_classes(p.end_logits, q.end_logits)).mean() / 2
    ),
    "ForPreTraining": lambda p, q, x: (
        in_tokens(p.prediction_logits, q.prediction_logits, x["labels"])
        + of_classes(p.seq_relationship_logits, q.seq_relationship_logits).mean()
    ),
}


@pytest.mark.parametrize(
    ("name", "layers"), [*((name, [1]) for name in HEADS), *((f"{f}ForSequenceClassification", "all") for f in OTHERS)]
)
def test_every_head(name, layers, batch):
    _, model = pair_of(name, im_consistency=WEIGHT, im_layers=layers)
    inputs = inputs_for(name, batch)
    if name.endswith(("TokenClassification", "MaskedLM", "PreTraining")):
        inputs["labels"] = inputs["labels"].clone().index_fill(1, torch.tensor([1, 4]), -100)
    of_head = next((f for head, f in HEAD.items() if name.endswith(head)), lambda p, q, x: of_logits(p, q))
    rounding = ROUNDING[family_of(name)]
    outputs = assert_same(model.double().train(), inputs, lambda p, q: of_head(p, q, inputs), atol=rounding)
    assert outputs.im_consistency_loss.requires_grad
    assert type(outputs)(**outputs).im_consistency_loss is outputs.im_consistency_loss


@pytest.mark.parametrize(
    ("problem", "classes", "labels", "divergence"),
    [
        (None, 1, torch.rand(3), lambda p, q: (p - q).square().mean()),
        ("regression", 4, torch.rand(3, 4), lambda p, q: symmetric(*(Independent(Normal(z, 1), 1) for z in (p, q)))),
        (None, 4, torch.rand(3, 4), lambda p, q: symmetric(*(Independent(Bernoulli(logits=z), 1) for z in (p, q)))),
        ("single_label_classification", 4, torch.tensor([3, 0, 1]), of_classes),
    ],
    ids=["regression", "of several targets", "multi-label", "classes"],
)
def test_every_kind_of_classification(problem, classes, labels, divergence, batch):
    model = classifier(problem_type=problem, num_labels=classes, im_layers=[-1])
    labels = labels.double() if labels.is_floating_point() else labels
    assert_same(model, {**batch, "labels": labels}, lambda p, q: divergence(p.logits, q.logits).mean())


@pytest.mark.parametrize("problem", [None, "regression"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_regression_of_every_family(family, problem, batch):
    """DeBERTa's head tells the config nothing, and drops a dimension of its logits where it has labels."""
    name = f"{family}ForSequenceClassification"
    model = model_of(f"IM{name}", im_consistency=WEIGHT, im_layers=[-1], num_labels=1, problem_type=problem)
    inputs = {**inputs_for(name, batch), "labels": torch.rand(3, dtype=torch.float64)}

    def squared(p, q):
        return (p.logits - q.logits).square().mean()

    assert_same(model.double().train(), inputs, squared, atol=ROUNDING[family])


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_half_precision_has_the_loss_in_float32(gradient, labelled):
    model = classifier(im_gradient=gradient).float()

    def in_float(implicit, explicit):
        return of_classes(implicit.logits.float(), explicit.logits.float()).mean()

    with torch.autocast("cpu", torch.bfloat16):
        outputs = assert_same(model, labelled, in_float, atol=2e-2)
    half = copy.deepcopy(model).bfloat16()
    loss, term, _ = apart(half, labelled, in_float)
    torch.manual_seed(3)
    found = half(**labelled)
    torch.testing.assert_close(found.loss, loss + WEIGHT * term)
    assert {o[name].dtype for o in (outputs, found) for name in ("loss", "im_consistency_loss")} == {torch.float32}


# -- one forward, its random state and what it costs --


@pytest.mark.parametrize("layers", PLACES.values(), ids=PLACES)
def test_it_leaves_the_random_state_that_bert_would_leave(layers, labelled):
    model = classifier(im_layers=layers)
    states = []
    for each in (model, plain_of(model)):
        torch.manual_seed(3)
        each(**labelled)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def evaluations(model, inputs):
    """Of each layer, in the forward and in the backward of a step."""
    layers, phase, counts = base_of(model).encoder.layer, 0, [[0, 0] for _ in base_of(model).encoder.layer]

    def note(place):
        def hook(*_):
            counts[place][phase] += 1

        return hook

    hooks = [layer.attention.output.register_forward_hook(note(i)) for i, layer in enumerate(layers)]
    loss = model(**inputs).loss
    phase = 1
    loss.backward()
    for hook in hooks:
        hook.remove()
    return counts


# Beside the solve's T = 3; below the first implicit layer nothing is evaluated again, in it the guess is shared.
@pytest.mark.parametrize(
    ("layers", "implicit", "others"),
    [([-1], [1, 1, 5], [1, 1, 4]), ([1], [1, 5, 2], [1, 4, 2]), ("all", [5, 6, 6], [4, 5, 5]), ([], [1] * 3, [1] * 3)],
    ids=str,
)
def test_evaluations_are_exactly_counted(layers, implicit, others, labelled):
    for gradient in GRADIENTS:
        for solver in SOLVERS:
            model = classifier(im_layers=layers, im_gradient=gradient, im_solver=solver)
            forward = implicit if gradient == "implicit" else others
            assert evaluations(model, labelled) == [[n, 0] for n in forward]
    model = classifier(im_layers=layers)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    # The products' evaluation is made again for them apart.
    assert [n for n, _ in evaluations(model, labelled)] == implicit
    model.gradient_checkpointing_enable({"use_reentrant": True})
    assert [n for n, _ in evaluations(model, labelled)] == others  # what is without a graph needs none to keep


@pytest.mark.parametrize("fields", [{"im_theta": 0.0}, {"im_layers": []}, {"im_iterations": 0}], ids=str)
def test_where_nothing_is_solved_it_is_0_and_nothing_more_is_evaluated(fields, labelled):
    model = classifier(im_eval_iterations=3, **fields)
    torch.manual_seed(3)
    assert evaluations(model, labelled) == [[1, 0]] * 3
    torch.manual_seed(3)
    outputs = model(**labelled)
    assert outputs.im_consistency_loss.item() == 0
    torch.manual_seed(3)
    assert torch.equal(outputs.loss, plain_of(model)(**labelled).loss)


def test_in_evaluation_and_at_weight_0_there_is_none(labelled):
    model = classifier(im_layers=[1])
    assert model.eval()(**labelled).im_consistency_loss is None
    assert evaluations(model, labelled) == [[n, 0] for n in (1, 5, 1)]
    model.train().config.im_consistency = 0.0
    assert model(**labelled).im_consistency_loss is None
    assert evaluations(model, labelled) == [[n, 0] for n in (1, 5, 1)]
    model.config.im_consistency = WEIGHT
    assert len(model(**labelled, return_dict=False)) == 3  # loss, logits and the term
    assert not hasattr(model.to_plain().config, "im_consistency")


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("layers", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_checkpointing_changes_no_gradient(gradient, layers, reentrant, labelled):
    model = classifier(im_gradient=gradient, im_layers=layers)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert_same(model, labelled, of_logits)


def test_a_frozen_body_trains_the_head_alone(labelled):
    model = classifier(im_layers=[1])
    model.bert.encoder.requires_grad_(False)
    model.bert.embeddings.requires_grad_(False)
    assert_same(model, labelled, of_logits)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_forward_leaves_no_graph_behind(checkpointing, labelled):
    """Without a backward either, and not until the garbage collector comes."""
    model = classifier()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    seen = []
    hook = model.bert.encoder.layer[-1].register_forward_hook(lambda *args: seen.append(weakref.ref(args[-1])))
    model(**labelled)
    hook.remove()
    assert seen
    assert seen[0]() is None
