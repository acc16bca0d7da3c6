"""torch.func's transforms, traces, and functions inside a layer that torch.func does not know."""

import pytest
import torch
from test_edited_models import model_of
from tiny import PAIRS, SOLVERS, imbert_model
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, stack_module_state, vmap


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


@pytest.mark.parametrize(("solver", "gradient"), PAIRS)
def test_forward_mode_is_the_derivative_or_refused(solver, gradient):
    """By torch.autograd.forward_ad. Where no graph is recorded every mode runs the same iterations."""
    model = imbert_model(im_layers=[-1], im_solver=solver, im_gradient=gradient, attn_implementation="eager").double()
    x, t = torch.randn(2, 2, 6, 32, dtype=torch.float64)

    def f(x):
        return model(inputs_embeds=x).logits

    def tangent():
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(f(forward_ad.make_dual(x, t))).tangent

    with torch.no_grad():
        expected = (f(x + 1e-5 * t) - f(x - 1e-5 * t)) / 2e-5
        torch.testing.assert_close(tangent(), expected, rtol=1e-6, atol=1e-8)
    if gradient == "implicit":
        with pytest.raises(RuntimeError, match="'implicit' has no forward mode; 'unrolled' and 'one_step' have"):
            tangent()
    elif gradient == "unrolled":
        torch.testing.assert_close(tangent(), expected, rtol=1e-6, atol=1e-8)
    else:
        torch.testing.assert_close(tangent(), torch.func.jvp(f, (x,), (t,))[1])
