"""Exported models against eager ones: torch.export, ONNX and int8, at other sizes than they were traced with."""

import importlib.util
import itertools

import pytest
import torch
from families import FAMILIES, model_of


# Of torch's own: flex_attention's tracing, the ONNX exporter's functions.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

DYNAMIC = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("length", min=2, max=64)}


class Logits(torch.nn.Module):
    def __init__(self, family="Bert", **kwargs):
        super().__init__()
        self.model = model_of(f"IM{family}ForSequenceClassification", **{"num_hidden_layers": 2, **kwargs})

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids, attention_mask).logits


class Together(torch.nn.Module):
    """Several of the above as one program: to export one takes seconds."""

    def __init__(self, *models):
        super().__init__()
        self.models = torch.nn.ModuleList(models)

    def forward(self, input_ids, attention_mask):
        return torch.stack([model(input_ids, attention_mask) for model in self.models])


def sizes():
    """Inputs of several sizes, padded."""
    generator = torch.Generator().manual_seed(0)
    for rows, length in ((3, 9), (1, 4), (5, 17)):
        mask = torch.ones(rows, length, dtype=torch.int64)
        mask[0, length - 1 :] = 0
        yield torch.randint(5, 99, (rows, length), generator=generator), mask


# solver, tolerance
SETTINGS = [("fixed_point", 0.0), ("anderson", 0.0), ("fixed_point", 0.03)]


@pytest.mark.parametrize(("solver", "tolerance"), SETTINGS)
def test_export_with_dynamic_sizes(solver, tolerance):
    model = Logits(im_solver=solver, im_tolerance=tolerance)
    with torch.no_grad():
        program = torch.export.export(
            model, next(sizes()), dynamic_shapes={"input_ids": DYNAMIC, "attention_mask": DYNAMIC}
        )
        for inputs in sizes():
            torch.testing.assert_close(program.module()(*inputs), model(*inputs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_with_dynamic_sizes(family, tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    few = {"num_hidden_layers": 1, "im_iterations": 2}
    settings = SETTINGS if family == "Bert" else SETTINGS[:2]
    model = Together(*(Logits(family, im_solver=solver, im_tolerance=to, **few) for solver, to in settings))
    with torch.no_grad():
        torch.onnx.export(
            model,
            next(sizes()),
            tmp_path / "model.onnx",
            dynamo=True,
            dynamic_shapes={"input_ids": DYNAMIC, "attention_mask": DYNAMIC},
            verbose=False,
        )
        session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
        for inputs in sizes():
            names = [one.name for one in session.get_inputs()]
            found = session.run(None, dict(zip(names, (t.numpy() for t in inputs), strict=True)))[0]
            torch.testing.assert_close(torch.from_numpy(found), model(*inputs), rtol=0, atol=1e-4)


def test_dynamic_int8_is_berts_where_the_connection_is_exact():
    def quantised(model):
        return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)

    plain, implicit = quantised(Logits(im_layers=[])), quantised(Logits())
    exact = quantised(Logits(im_iterations=0))
    reference = Logits()
    with torch.no_grad():
        for inputs in sizes():
            assert torch.equal(exact(*inputs), plain(*inputs))
            change = (implicit(*inputs) - reference(*inputs)).norm() / reference(*inputs).norm()
            assert 0 < change < 0.1


def test_flex_attention_agrees_in_inference():
    model, flex = Logits(), Logits(attn_implementation="flex_attention")
    with torch.no_grad():
        for inputs in itertools.islice(sizes(), 2):  # each size is compiled
            torch.testing.assert_close(flex(*inputs), model(*inputs), rtol=0, atol=1e-5)


def test_what_gradient_descent_cannot_do_is_refused():
    """It differentiates the layer inside the forward: no derivative of int8 linears, none of flex on a CPU."""
    fields = {"im_solver": "gradient_descent", "num_hidden_layers": 1}
    model = Logits(**fields, im_learning_rate=0.02)
    inputs = next(sizes())
    int8 = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    flex = Logits(**fields, attn_implementation="flex_attention")
    with torch.no_grad():
        with pytest.raises(ValueError, match="quantized modules have no derivative; use 'fixed_point' or 'anderson'"):
            int8(*inputs)
        with pytest.raises(ValueError, match="'flex_attention' has no derivative on a CPU"):
            flex(*inputs)
        with pytest.raises(ValueError, match=r"torch.export cannot record; use 'fixed_point' or 'anderson'"):
            torch.export.export(model, inputs)
        if importlib.util.find_spec("onnxscript"):
            with pytest.raises(Exception, match=r"torch.export cannot record; use 'fixed_point' or 'anderson'"):
                torch.onnx.export(model, inputs, dynamo=True, verbose=False)
