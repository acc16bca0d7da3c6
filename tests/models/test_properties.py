"""Random configs and batches on tiny models: no crash, no harm to batch-mates, no silent failure.

The default run makes the same CASES cases every time. IMBERT_CASES=200000 pytest tests/models/test_properties.py makes
as many others, which differ from run to run; hypothesis prints the smallest case that fails.
"""

import contextlib
import functools
import itertools
import math
import os
import warnings

import pytest
import torch
from families import FAMILIES, base_of, config_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers
from tiny import lively

import imbert_hf
from imbert_hf import IMBertConfig
from imbert_hf.evaluation.data.loading import layers_of


# Else it draws constants of whatever modules are loaded, and the same cases come with the same neighbours alone.
providers._get_local_constants = providers.Constants
CASES = int(os.environ.get("IMBERT_CASES", 5200))
shares: list[float] = []

WIDTH = 8
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
HARM = ("NaN", "inf", "-inf", "1e30", "1e4", "masked")


def cases(share, **strategies):
    """A property of all cases that `strategies` describe, which fails where fewer than this share of CASES ran."""
    shares.append(share)

    def decorate(test):
        due, ran = math.ceil(share * CASES), itertools.count()

        def counted(**kwargs):
            next(ran)
            test(**kwargs)

        counted.__name__, counted.__qualname__ = test.__name__, test.__qualname__  # what the cases are drawn by
        options = {"max_examples": due, "derandomize": "IMBERT_CASES" not in os.environ}
        search = settings(**options, deadline=None, database=None)(given(**strategies)(counted))

        def whole():
            search()
            assert next(ran) >= due

        whole.__name__, whole.__doc__ = test.__name__, test.__doc__
        return whole

    return decorate


def number(*special, least, most):
    return st.one_of(st.sampled_from(special), st.floats(least, most))


FIELDS = {
    "im_theta": number(1.0, 0.0, 0.5, least=0.0, most=1.0),
    "im_vector_field": st.sampled_from(["increment", "layer"]),
    "im_step_size": number(1.0, 1e-3, 0.5, 1e3, least=1e-3, most=1e3),
    "im_solver": st.sampled_from(["fixed_point", "anderson", "gradient_descent"]),
    "im_iterations": st.sampled_from([0, 1, 1, 2, 2, 3, 3, 4, 8]),
    "im_eval_iterations": st.sampled_from([None, None, None, 0, 2, 5]),
    "im_tolerance": number(0.0, 0.0, 1e-3, 1e-1, least=0.0, most=10.0),
    "im_initial_guess": st.sampled_from(["explicit", "previous"]),
    "im_learning_rate": number(0.1, 1e-3, 1e3, least=1e-3, most=1e3),
    "im_damping": number(1.0, 0.5, least=1e-6, most=1.0),
    "im_anderson_memory": st.integers(1, 8),
    "im_gradient": st.sampled_from(["unrolled", "implicit", "one_step"]),
    "im_gradient_iterations": st.sampled_from([None, None, 0, 1, 3, 8]),
}
CONFIGS = st.fixed_dictionaries(FIELDS)
# layers of the model, and which of them are implicit
LAYERS = st.sampled_from([(1, "all"), (1, "all"), (1, [0]), (1, []), (2, "all"), (2, [1]), (2, [-2]), (2, [1, 0])])
# real tokens of each row, the first of which is the one that harm comes to
LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=4)
LONG = st.sampled_from([False] * 49 + [True])  # a row of 512 tokens
SEEDS = st.integers(0, 2**31)
ATTENTION = st.sampled_from(["sdpa", "eager"])


# Not ModernBERT, whose own eager attention makes NaN of a row that is padding alone.
FAMILY = st.sampled_from(["Bert", "Bert", *(family for family in FAMILIES if family != "ModernBert")])
SIZES = {"vocab_size": 20, "hidden_size": WIDTH, "num_attention_heads": 2, "num_labels": 3}
SIZES |= {"intermediate_size": 16, "hidden_dim": 16, "embedding_size": WIDTH, "max_position_embeddings": 514}
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "mlp_dropout")


@functools.cache
def _model(family, layers, dtype, attention, dropout):
    name = f"IM{family}ForSequenceClassification"
    kwargs = {**dict.fromkeys(DROPOUTS, dropout), **SIZES, "num_hidden_layers": layers, "seq_classif_dropout": dropout}
    config = config_of(name, **kwargs, attn_implementation="eager" if family == "DebertaV2" else attention)
    torch.manual_seed(0)
    return lively(getattr(imbert_hf, name)(config)).to(dtype).eval()


def model_of(fields, layers=(1, "all"), dtype=torch.float32, attention="sdpa", dropout=0.0, family="Bert"):
    model = _model(family, layers[0], dtype, attention, dropout)
    for name, value in {**fields, "im_layers": layers[1]}.items():
        setattr(model.config, name, value)
    return model.eval()


def whole_batch(fields, attention):
    """A kind of attention with which no row leaves the batch: another number of rows rounds differently."""
    return "eager" if fields["im_tolerance"] > 0 else attention


def batch_of(lengths, seed, dtype=torch.float32, side="right", width=None, scale=1.0):
    """Embeddings, mask and positions of rows with these numbers of real tokens, padded on one side."""
    width = width or max(*lengths, 1)
    generator = torch.Generator().manual_seed(seed)
    embeds, mask = torch.zeros(len(lengths), width, WIDTH, dtype=dtype), torch.zeros(len(lengths), width).long()
    positions = torch.zeros_like(mask)
    for i, n in enumerate(lengths):
        real = slice(0, n) if side == "right" else slice(width - n, width)
        embeds[i, real] = scale * torch.randn(n, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
        mask[i, real] = 1
        positions[i, real] = torch.arange(n)
    return {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": positions}


def of_words(batch, model, kind, seed):
    """The batch with words in place of embeddings; the last word of the vocabulary is the harm."""
    rest = {name: value for name, value in batch.items() if name != "inputs_embeds"}
    weight = model.get_input_embeddings().weight
    if kind != "masked":
        weight.data[-1] = torch.tensor(float(kind)).to(weight.dtype)
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(2, len(weight) - 1, rest["attention_mask"].shape, generator=generator)
    return {"input_ids": words, **rest}


def harmed(batch, kind, row=0):
    """The batch with harm done to one row, to a real token of it; to none where the row has none."""
    batch = {name: value.detach().clone() for name, value in batch.items()}
    if kind == "masked":
        batch["attention_mask"][row] = 0
    elif "input_ids" in batch:
        batch["input_ids"][row, batch["attention_mask"][row].argmax()] = 19  # the last word
    elif batch["attention_mask"][row].any():
        embeds = batch["inputs_embeds"]
        # Torch 2.6 writes no number beyond half precision's.
        embeds[row, batch["attention_mask"][row].argmax()] = torch.tensor(float(kind)).to(embeds.dtype)
    return batch


@contextlib.contextmanager
def announcements():
    """Collects this package's warnings of non-finite values; every other warning is an error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("error")
        warnings.filterwarnings("always", "An implicit layer met non-finite values", RuntimeWarning)
        yield caught


def same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def budget_of(model):
    config = model.config
    return config.im_iterations if model.training or config.im_eval_iterations is None else config.im_eval_iterations


def check_outputs(model, outputs, rows, dtype):
    budget = budget_of(model)
    assert outputs.logits.shape == (rows, 3)
    assert outputs.logits.dtype == dtype
    assert len(outputs.im_residuals) == len(outputs.im_iterations_used) == len(model.config.implicit_layers)
    for residual, used in zip(outputs.im_residuals, outputs.im_iterations_used, strict=True):
        assert residual.shape == used.shape == (rows,)
        assert residual.dtype == torch.promote_types(dtype, torch.float32)
        assert used.dtype == torch.int64
        assert (residual >= 0).all()  # and no NaN
        assert ((used >= 0) & (used <= budget)).all()


@cases(
    0.5,
    fields=CONFIGS,
    layers=LAYERS,
    family=FAMILY,
    dtype=st.sampled_from(DTYPES),
    attention=ATTENTION,
    first=st.integers(1, 9),
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    side=st.sampled_from(["right", "left"]),
    kind=st.sampled_from(HARM),
    scale=st.sampled_from([1.0, 1.0, 0.0, 1e-3, 1e4]),
    words=st.booleans(),
    long=LONG,
    grad=st.booleans(),
    seed=SEEDS,
)
def test_harm_to_one_row_is_announced_and_reaches_no_other(
    fields, layers, family, dtype, attention, first, lengths, side, kind, scale, words, long, grad, seed
):
    """Bit for bit: the harmed batch has the shape of the healthy one."""
    model = model_of(fields, layers, dtype, whole_batch(fields, attention), family=family)
    lengths = [512, *lengths[1:]] if long else lengths
    # One token or more is padded: always with a mask.
    healthy = batch_of([first, *lengths], seed, dtype, side, width=512 if long else 10, scale=scale)
    healthy = of_words(healthy, model, kind, seed) if words else healthy
    with torch.set_grad_enabled(grad), announcements() as before:
        expected = model(**healthy, output_im_statistics=True, output_hidden_states=True)
    batch = harmed(healthy, kind)
    with torch.set_grad_enabled(grad), announcements() as after:
        actual = model(**batch, output_im_statistics=True, output_hidden_states=True)
    for outputs, mask, caught in (
        (expected, healthy["attention_mask"], before),
        (actual, batch["attention_mask"], after),
    ):
        check_outputs(model, outputs, 1 + len(lengths), dtype)
        for layer in model.config.implicit_layers:
            states = outputs.hidden_states[layer + 1][mask.bool()]
            assert caught or states.isfinite().all()
    same(actual.logits[1:], expected.logits[1:])
    for name in ("im_residuals", "im_iterations_used"):
        for a, e in zip(actual[name], expected[name], strict=True):
            same(a[1:], e[1:])


@cases(
    0.34,
    fields=CONFIGS,
    layers=LAYERS,
    family=FAMILY,
    dtype=st.sampled_from(DTYPES),
    lengths=LENGTHS,
    side=st.sampled_from(["right", "left"]),
    long=LONG,
    grad=st.booleans(),
    seed=SEEDS,
)
def test_the_residual_reported_is_that_of_the_states(fields, layers, family, dtype, lengths, side, long, grad, seed):
    """Converged or said not to be: r and y once more from what a layer takes and returns, by the family's own layer."""
    model, calls = model_of(fields, layers, dtype, "eager", family=family), []

    def note(layer, args, kwargs, y):
        calls.append((layer, *args, layer.own_arguments(kwargs), y[0] if isinstance(y, tuple) else y))

    handles = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers_of(model)]
    lengths = [512, *lengths[1:2]] if long else lengths
    batch = batch_of(lengths, seed, dtype, side)
    with torch.set_grad_enabled(grad), announcements() as caught:
        outputs = model(**batch, output_im_statistics=True)
    for handle in handles:
        handle.remove()
    check_outputs(model, outputs, len(lengths), dtype)
    config, real = model.config, batch["attention_mask"].bool()
    carry = 1.0 if config.im_vector_field == "increment" else 0.0
    gamma, theta = config.im_step_size, config.im_theta
    reported = zip(sorted(config.implicit_layers), outputs.im_residuals, outputs.im_iterations_used, strict=True)
    for layer, residual, used in reported:
        module, x, *args, kwargs, y = calls[layer]
        own = next(plain for plain, kind in model.implicit_classes.items() if isinstance(module, kind))
        assert caught or (residual <= config.im_tolerance)[used < budget_of(model)].all()
        with torch.no_grad():
            Fx, Fy = (own.forward(module, h, *args, **kwargs) for h in (x, y))
        if isinstance(Fx, tuple):
            (Fx, _), (Fy, _) = Fx, Fy
        x, y, Fx, Fy = (t.detach().double() for t in (x, y, Fx, Fy))
        Fy = Fy if theta else torch.zeros_like(Fy)
        explicit, implicit = gamma * (1 - theta) * (Fx - carry * x), gamma * theta * (Fy - carry * y)
        parts = [t.masked_fill(~real[..., None], 0).flatten(1) for t in (y, x, explicit, implicit)]
        size = parts[0].norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
        true = (parts[0] - parts[1] - parts[2] - parts[3]).norm(dim=1) / size
        terms = (1 + gamma) * (x.abs() + y.abs() + Fx.abs() + Fy.abs())
        rounding = terms.masked_fill(~real[..., None], 0).flatten(1).norm(dim=1) / size * torch.finfo(dtype).eps
        close = (residual.double() - true).abs() <= 20 * rounding + 1e-3 * true
        assert (close | residual.isinf()).all(), (residual, true, rounding)
        assert caught or (residual.isfinite() | ~true.isfinite()).all()


@cases(
    0.06,
    fields=CONFIGS,
    layers=LAYERS,
    family=FAMILY,
    dtype=st.sampled_from(DTYPES),
    dropout=st.sampled_from([0.0, 0.3]),
    attention=ATTENTION,
    first=st.integers(1, 6),
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=2),
    kind=st.sampled_from(HARM),
    seed=SEEDS,
)
def test_harm_to_one_row_reaches_no_gradient_of_another(
    fields, layers, family, dtype, dropout, attention, first, lengths, kind, seed
):
    """And without harm all gradients are finite, or the forward was announced, or float16 overflowed in backward."""
    fields = {**fields, "im_consistency": float(seed % 2)}
    if dtype == torch.float16:  # where an iterate that is not taken can overflow in backward, at a step of a thousand
        fields["im_step_size"] = min(fields["im_step_size"], 10.0)
    model = model_of(fields, layers, dtype, whole_batch(fields, attention), dropout, family).train()
    healthy = batch_of([first, *lengths], seed, dtype, width=7)
    results = []
    for batch in (healthy, harmed(healthy, kind)):
        model.zero_grad()
        batch["inputs_embeds"].requires_grad_()
        torch.manual_seed(seed)  # of dropout
        with announcements() as caught:
            outputs = model(**batch, labels=torch.arange(1 + len(lengths)), output_im_statistics=True)
            outputs.loss.backward()
        check_outputs(model, outputs, 1 + len(lengths), dtype)
        results.append(batch["inputs_embeds"].grad[1:])
        if batch is healthy and not caught and dtype != torch.float16:
            assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    same(*results)


@cases(
    0.1,
    fields=CONFIGS,
    layers=LAYERS,
    family=FAMILY,
    length=st.integers(1, 6),
    mates=st.lists(st.one_of(st.integers(0, 9), st.sampled_from([0] * 20 + [512])), max_size=3),
    side=st.sampled_from(["right", "left"]),
    kind=st.sampled_from([None, *HARM]),
    seed=SEEDS,
)
def test_a_row_does_not_see_the_others(fields, layers, family, length, mates, side, kind, seed):
    """Neither their number, nor their length, nor harm to the last one, nor when they converge and leave the batch.

    In float64, to within rounding errors; where states explode to millions these decide, and nothing is compared.
    """
    model = model_of(fields, layers, torch.float64, family=family)
    batch = batch_of([length, *mates], seed, torch.float64, side)
    rows = slice(0, length) if side == "right" else slice(batch["attention_mask"].shape[1] - length, None)
    alone = {name: value[:1, rows] for name, value in batch.items()}
    if mates and kind:
        batch = harmed(batch, kind, row=-1)
    with torch.no_grad(), announcements():
        actual, expected = (base_of(model)(**b).last_hidden_state[0] for b in (batch, alone))
    size = expected.norm()
    assert size > 1e7 or (actual[rows] - expected).norm() <= 1e-6 * size


def _number(value):
    return type(value) in (int, float) and math.isfinite(value)


def _count(value, least=0, none=False):
    return (none and value is None) or (type(value) is int and value >= least)


def _indices(value):
    """Of two layers."""
    return type(value) is list and all(-2 <= i < 2 for i in value) and len({i % 2 for i in value}) == len(value)


ALLOWED = {
    "im_theta": lambda v: _number(v) and 0 <= v <= 1,
    "im_layers": lambda v: v == "all" or _indices(v),
    "im_vector_field": lambda v: v in ("increment", "layer"),
    "im_step_size": lambda v: _number(v) and v > 0,
    "im_solver": lambda v: v in ("gradient_descent", "fixed_point", "anderson"),
    "im_iterations": _count,
    "im_eval_iterations": lambda v: _count(v, none=True),
    "im_tolerance": lambda v: _number(v) and v >= 0,
    "im_initial_guess": lambda v: v in ("explicit", "previous"),
    "im_learning_rate": lambda v: _number(v) and v > 0,
    "im_damping": lambda v: _number(v) and 0 < v <= 1,
    "im_anderson_memory": lambda v: _count(v, least=1),
    "im_gradient": lambda v: v in ("unrolled", "implicit", "one_step"),
    "im_gradient_iterations": lambda v: _count(v, none=True),
    "im_consistency": lambda v: _number(v) and v >= 0,
}
NAMES = ("all", "increment", "layer", "anderson", "fixed_point", "explicit", "previous", "implicit", "one_step")
ANYTHING = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.integers(-3, 3), st.floats(), st.floats(-2, 2), st.text(max_size=5)),
    *(st.lists(st.integers(-3, 3), max_size=3), st.dictionaries(st.text(max_size=2), st.integers(), max_size=1)),
    st.sampled_from(NAMES),
)


@cases(0.1, name=st.sampled_from(sorted(ALLOWED)), value=ANYTHING)
def test_any_value_of_a_field_is_taken_or_refused_by_name(name, value):
    if ALLOWED[name](value):
        assert getattr(IMBertConfig(num_hidden_layers=2, **{name: value}), name) == value
    else:
        with pytest.raises(ValueError, match=rf"^{name} must "):
            IMBertConfig(num_hidden_layers=2, **{name: value})


def test_all_shares_make_the_whole():
    """The last is of a config alone, and not counted."""
    assert sum(shares[:-1]) >= 1
