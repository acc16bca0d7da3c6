"""torch.compile against eager: one graph in inference, and in training where no dropout is active."""

import copy
import functools
import shutil

import pytest
import torch
from families import FAMILIES, OTHERS, model_of
from tiny import NO_DROPOUT, PAIRS, SOLVERS, bert_config, imbert_config, imbert_model, lively
from torch import nn
from torch._dynamo.exc import Unsupported
from torch._dynamo.testing import CompileCounter
from transformers import BertForSequenceClassification

from imbert_hf import IMBertForSequenceClassification, IMBertStatisticsCallback


# Torch's own tracing warns of how autograd functions are made, and of .grad where it breaks the graph.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

CLOSE = {"rtol": 1e-4, "atol": 1e-6}


def model_with(**kwargs):
    config = imbert_config(**{"num_hidden_layers": 1, "im_iterations": 2, **kwargs})
    return lively(IMBertForSequenceClassification(config))


def compiled(model, backend="aot_eager", **options):
    torch._dynamo.reset()
    return torch.compile(model, backend=backend, **options)


@functools.cache
def why_not_one_graph(family="Bert") -> str:
    """What torch says of the plain family, where it cannot compile it as one graph; else nothing."""
    model = model_of(f"{family}ForSequenceClassification", num_hidden_layers=1)
    ids = torch.tensor([[3, 4, 5]])
    try:
        with torch.no_grad():
            compiled(model, fullgraph=True)(input_ids=ids, attention_mask=torch.ones_like(ids))
    except Unsupported as error:
        return str(error).partition("\n")[0]
    return ""


def compiled_whole(model, family="Bert", **options):
    """As one graph where BERT and the plain family are; else in pieces, whose numbers must be right all the same."""
    whole = not (why_not_one_graph() or why_not_one_graph(family))
    return compiled(model, fullgraph=whole, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plain_family_is_one_graph(family):
    """If not, the tests below say nothing of graphs."""
    if why := why_not_one_graph(family):
        pytest.skip(f"torch {torch.__version__} breaks the graph of transformers' {family}: {why}")


@pytest.mark.parametrize("family", OTHERS)
def test_inference_of_every_family_is_one_graph(family, batch):
    model = model_of(f"IM{family}ForSequenceClassification", num_hidden_layers=1, im_iterations=2)
    with torch.no_grad():
        found = compiled_whole(model, family)(**batch)
        torch.testing.assert_close(found.logits, model(**batch).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tolerance", [0.0, 1e-2])
@pytest.mark.parametrize("solver", SOLVERS)
def test_inference_is_one_graph(solver, tolerance, batch):
    model = model_with(im_solver=solver, im_tolerance=tolerance, im_learning_rate=0.02).eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled_whole(model)(**batch).logits, model(**batch).logits, rtol=0, atol=1e-5)


class Two(torch.nn.Module):
    """A layer twice, as a user wraps one."""

    def __init__(self, layer):
        super().__init__()
        self.layers = torch.nn.ModuleList([layer, copy.deepcopy(layer)])

    def forward(self, hidden_states, *args, **kwargs):
        for layer in self.layers:
            hidden_states = layer(hidden_states, *args, **kwargs)
        return hidden_states


@torch.no_grad()
def test_layers_that_a_wrapper_holds(batch):
    """Each carries the connection, compiled too."""
    model = model_with(num_hidden_layers=2, im_layers=[-1]).eval()
    layers = model.bert.encoder.layer
    layers[1] = Two(layers[1])
    eager = model(**batch, output_im_statistics=True)
    assert len(eager.im_residuals) == 2
    assert_same(eager.logits, compiled(model)(**batch).logits)


@pytest.mark.parametrize(("solver", "gradient"), PAIRS)
def test_training_without_dropout_is_one_graph(solver, gradient, batch):
    model = model_with(im_solver=solver, im_gradient=gradient, im_learning_rate=0.02, **NO_DROPOUT)
    assert_same(*trained(model, compiled_whole(model), batch))


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler")
def test_training_compiled_to_machine_code(batch):
    def both(model):
        return trained(model, compiled_whole(model, backend="inductor"), batch)

    found = both(model_with(**NO_DROPOUT))
    if wrong := differing(*found):
        plain = differing(*both(lively(BertForSequenceClassification(bert_config(num_hidden_layers=1, **NO_DROPOUT)))))
        if wrong <= plain:  # inductor's own: torch 2.6 loses gradients of embeddings whose ids repeat
            pytest.skip(f"torch {torch.__version__} gets these of plain BERT wrong too: {', '.join(sorted(wrong))}")
    assert_same(*found)


@pytest.mark.parametrize("solver", ["fixed_point", "gradient_descent"])
def test_training_with_dropout_breaks_the_graph_and_has_the_same_gradients(solver, batch):
    model = model_with(im_solver=solver, im_learning_rate=0.02)
    assert_same(*trained(model, compiled(model), batch))


def test_noise_that_says_so_by_an_attribute_p_is_one_draw_a_solve(batch):
    """As the limits tell authors of such modules: a compiler cannot see what draws."""

    class Noise(nn.Module):
        p = 0.3

        def forward(self, h):
            return h + self.p * torch.randn_like(h)

    model = imbert_model(im_layers=[-1], im_iterations=40, im_step_size=0.3, **NO_DROPOUT).train()
    output = model.bert.encoder.layer[-1].output
    output.dense = nn.Sequential(output.dense, Noise())
    for forward in (model, compiled(model)):
        assert forward(**batch, output_im_statistics=True).im_residuals[0].max() < 1e-5


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("solver", ["fixed_point", "gradient_descent"])
def test_training_with_im_consistency(solver, dropout, batch):
    """As one graph without dropout, and eagerly with it."""
    rates = {} if dropout else NO_DROPOUT
    model = model_with(im_solver=solver, im_learning_rate=0.02, im_consistency=1.0, **rates)
    assert_same(*trained(model, compiled(model) if dropout else compiled_whole(model), batch))


SIZES = [(3, 9), (5, 17), (2, 12), (5, 17), (3, 9)]  # rows and tokens
SETTINGS = {
    "last layer": {"num_hidden_layers": 2, "im_layers": [-1], "im_iterations": 1},
    "all layers": {"num_hidden_layers": 2, "im_iterations": 1},
    "anderson": {"im_solver": "anderson"},
}


def frames_compiled(function, inputs, **options):
    """How many in all, after each of the inputs."""
    counter = CompileCounter()
    found = []
    with torch.no_grad():
        other = compiled(function, backend=counter, **options)
        for one in inputs:
            other(**one)
            found.append(counter.frame_count)
    return found


def batches():
    for rows, tokens in SIZES:
        ids = torch.arange(rows * tokens).reshape(rows, tokens) % 90 + 5
        mask = torch.ones_like(ids)
        mask[0, -2:] = 0
        yield {"input_ids": ids, "attention_mask": mask}


@functools.cache
def frames_of_bert(dynamic):
    plain = lively(BertForSequenceClassification(bert_config(num_hidden_layers=1))).eval()
    return frames_compiled(plain, batches(), dynamic=dynamic)


@pytest.mark.skipif(bool(why_not_one_graph()), reason="this torch breaks the graph of transformers' BERT")
@pytest.mark.parametrize(("setting", "dynamic"), [*((name, True) for name in SETTINGS), ("last layer", None)])
def test_sizes_compile_no_more_than_bert_does(setting, dynamic):
    """With dynamic=True one graph; by default a second, with symbols, at the second size. A size again: none."""
    model = model_with(**SETTINGS[setting]).eval()
    frames = frames_compiled(model, batches(), dynamic=dynamic, fullgraph=True)
    assert frames == frames_of_bert(dynamic) == [1, *[1 if dynamic else 2] * (len(SIZES) - 1)]


@pytest.mark.skipif(bool(why_not_one_graph()), reason="this torch breaks the graph of transformers' BERT")
def test_gradient_descent_compiles_a_size_once():
    """Torch's own vjp makes numbers of the sizes of a linear layer with a bias, and so of gradient_descent's."""
    linear = torch.nn.Linear(4, 4)

    def product(input_ids, **_):
        Fy, pullback = torch.func.vjp(linear, input_ids[..., None].expand(*input_ids.shape, 4).float())
        return pullback(Fy)

    bare = frames_compiled(product, batches(), dynamic=True)
    assert (bare[0], bare[3:]) == (1, bare[2:3] * 2)  # a size again compiles nothing
    model = model_with(im_solver="gradient_descent", im_iterations=1).eval()
    assert frames_compiled(model, batches(), dynamic=True, fullgraph=True) == bare


def test_dropout_breaks_the_graph_once_a_layer(batch):
    """What runs beside implicit layers, which are eager: a graph a plain layer, made once for all, and some around."""

    def graphs(plain, implicit):
        """How many are made, and how many a forward runs."""

        def backend(graph, example_inputs):
            made.append(graph)

            def run(*args):
                ran.append(graph)
                return graph.forward(*args)

            return run

        im_layers, made, ran = [*range(plain, plain + implicit)], [], []
        model = model_with(**{"num_hidden_layers": plain + implicit, "im_layers": im_layers}).train()
        other = compiled(model, backend=backend)
        for _ in range(2):  # the first call runs what it compiles
            ran.clear()
            other(**batch).logits.sum().backward()
        return len(made), len(ran)

    (_, one), (_, two) = graphs(plain=0, implicit=1), graphs(plain=0, implicit=2)
    assert one == two <= 4
    made, ran = graphs(plain=1, implicit=1)
    assert ran == one + 1
    assert graphs(plain=3, implicit=1) == (made, ran + 2)


def trained(model, other, batch):
    """The loss and the gradients of the model, and those that the same model makes compiled."""
    found = []
    for one in (model.train(), other):
        model.zero_grad()
        torch.manual_seed(0)
        loss = one(**batch, labels=torch.tensor([0, 1, 1])).loss
        loss.backward()
        found.append({"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters()})
    return found


def assert_same(eager, other):
    torch.testing.assert_close(other, eager, **CLOSE)


def differing(eager, other):
    return {name for name, value in eager.items() if not torch.allclose(other[name], value, **CLOSE)}


@pytest.mark.parametrize("gradient", ["implicit", "one_step", "unrolled"])
def test_theta_changes_while_compiled(gradient, batch):
    """As ThetaScheduleCallback does it: the compiler makes a symbol of a float that changed."""
    model = model_with(im_gradient=gradient, **NO_DROPOUT)
    # Torch 2.6 traces no backward of a symbol; there Dynamo alone is asked.
    other = compiled(model, "aot_eager" if hasattr(torch.compiler, "is_exporting") else "eager")
    for theta in (1.0, 0.9, 0.5, 0.0):
        model.config.im_theta = theta
        found = []
        for one in (model.train(), other):
            model.zero_grad()
            loss = one(**batch, labels=torch.tensor([0, 1, 1])).loss
            loss.backward()
            found.append({"loss": loss.detach()} | {name: p.grad.clone() for name, p in model.named_parameters()})
        assert_same(*found)


@pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="torch 2.6 compiles again as a list grows")
def test_with_the_callback_a_model_is_compiled_twice_measured_and_not(batch):
    model = imbert_model(num_hidden_layers=1, im_layers=[0], **NO_DROPOUT).train()
    callback, counter, frames = IMBertStatisticsCallback(every=2), CompileCounter(), []
    forward = compiled(model, counter)
    callback.on_train_begin(None, None, None, model=model)
    for _ in range(6):
        callback.on_step_begin(None, None, None)
        forward(**batch)
        frames.append(counter.frame_count)
    assert frames == [frames[0], *[frames[1]] * 5]
    assert len(callback._residuals) == 3
