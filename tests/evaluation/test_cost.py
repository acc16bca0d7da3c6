"""The cost command: how it measures time, memory and quality, and what it reports; never a time itself."""

import contextlib
import json

import costs
import pytest
import torch
from classifiers import imbert, save, tokenizer
from tiny import imbert_config
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from imbert_hf import IMBertForSequenceClassification, ThetaMethod
from imbert_hf.evaluation.cli import Parser
from imbert_hf.evaluation.cost import command
from imbert_hf.evaluation.cost import measures as cost_measures
from imbert_hf.evaluation.cost import settings as module
from imbert_hf.evaluation.cost.measures import (
    PeakMemory,
    converged_gradient,
    interleave,
    mean_residual,
    peak_bytes,
    ratio,
    relative_gradient_errors,
)
from imbert_hf.evaluation.cost.settings import cost, make_batch
from imbert_hf.evaluation.cost.variants import GRADIENTS, SOLVERS, make_variants
from imbert_hf.evaluation.report import Journal


model, small = costs.model, costs.small  # fixtures


# -- time and memory --


def test_rounds_run_every_action_in_turn():
    log, now = [], [0.0]

    @contextlib.contextmanager
    def action(name, seconds):
        log.append(f"prepare {name}")

        def run():
            log.append(name)
            now[0] += seconds

        now[0] += 100  # preparing is not timed
        yield run
        log.append(f"clean {name}")

    actions = {name: lambda name=name, s=s: action(name, s) for name, s in (("a", 1), ("b", 2), ("c", 4))}
    waits = []
    found = interleave(actions, 4, synchronise=lambda: waits.append(len(log)), clock=lambda: now[0])
    assert found == {"a": [1] * 4, "b": [2] * 4, "c": [4] * 4}
    order = [name for name in log if len(name) == 1]
    assert order == ["a", "b", "c", "b", "c", "a", "c", "a", "b", "a", "b", "c"]
    assert log[:3] == ["prepare a", "a", "clean a"]
    assert waits[:2] == [1, 2]  # before and after what is timed
    assert len(waits) == 2 * 12


def test_ratio_is_within_rounds():
    found = ratio([2.0, 20.0, 3.0, 4.0, 10.0], [1.0, 10.0, 1.0, 1.0, 2.0])  # 2, 2, 3, 4, 5
    assert (found["ratio"], found["quartiles"]) == (3, [2, 4])


def test_peak_memory_by_hand():
    outside = torch.ones(1000)
    with PeakMemory() as memory:
        a = outside * 2  # 4000 bytes
        a.view(10, 100).add_(1)
        outside.view(10, 100)  # made outside
        b = a + 1  # 8000
        del a
        c = b.double()  # 4000 + 8000
        del b, c
        d = outside[:10].clone()
    assert memory.peak == 12000
    assert memory.now == 40
    del d
    assert memory.now == 0


class Rebuilt(TorchDispatchMode):
    """The same, slowly: after each operation the sum over all that lives."""

    def __init__(self):
        super().__init__()
        self.made, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        result = func(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            if isinstance(t, torch.Tensor) and t.untyped_storage()._cdata not in given:
                storage = t.untyped_storage()
                self.made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.made = {key: item for key, item in self.made.items() if not item[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.made.values()))
        return result


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_peak_memory_of_a_step(model, small, gradient, monkeypatch):
    row = make_variants(model, solvers=["gradient_descent"], gradients=[gradient], iterations=[2])[-1]
    found = peak_bytes(row, small)
    monkeypatch.setattr(cost_measures, "PeakMemory", Rebuilt)
    assert abs(peak_bytes(row, small) - found) < 0.001 * found
    assert all(parameter.grad is None for parameter in model.parameters())


# -- quality --


@pytest.mark.parametrize("theta", [1.0, 0.5])
def test_residuals_are_the_models_own(model, theta, batch):
    batch = {**batch, "labels": torch.tensor([0, 1, 0])}  # padded
    rows = make_variants(model, gradients=["unrolled"], iterations=[2], theta=theta)
    for row in (row for row in rows if row.setting):
        with row.ready(False), torch.no_grad():
            own = torch.stack(model(**batch, output_im_statistics=True).im_residuals).mean().item()
        assert mean_residual(row, batch, ThetaMethod(theta), (0, 1)) == pytest.approx(own, rel=1e-4)


def test_relative_gradient_errors_fall_with_the_iterations():
    torch.manual_seed(0)
    model = IMBertForSequenceClassification(imbert_config(num_hidden_layers=2)).double().eval()
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.output.LayerNorm.weight.mul_(0.4)  # contracting
    batch = make_batch(model, None, None, 3, 5)
    exact, kept, reached = converged_gradient(model, batch, 1.0, (0, 1))
    assert kept == [0, 1, 2]
    assert reached <= 1e-9
    rows = make_variants(model, solvers=["fixed_point", "anderson"], iterations=(2, 20))
    errors = relative_gradient_errors(rows, batch, exact)
    assert len(errors) == 2 * 3 * 2
    for solver in ("fixed_point", "anderson"):
        for gradient in ("implicit", "unrolled"):
            assert errors[f"{solver} T 20, {gradient}"] < 1e-4 < errors[f"{solver} T 2, {gradient}"]
        assert errors[f"{solver} T 20, one_step"] > 1e-3
    assert model.config.im_iterations == 3


def test_rows_without_a_converged_solve_are_left_out(model, small, monkeypatch):
    double = IMBertForSequenceClassification(model.config).double().eval()
    monkeypatch.setitem(cost_measures.CONVERGED, "im_iterations", 1)
    exact, kept, reached = converged_gradient(double, small, 1.0, (0, 1))
    assert exact is None
    assert kept == []
    assert reached > 1e-9


# -- all of it --


def test_batches(model):
    words = tokenizer()
    batch = make_batch(model, words, ["w1 w2", "w3 w4 w5 w6 w7 w8"], 3, 6)
    # [CLS] 2, [SEP] 3, the first word 5
    assert batch["input_ids"].tolist() == [[2, 6, 7, 3, 0, 0], [2, 8, 9, 10, 11, 3], [2, 6, 7, 3, 0, 0]]
    assert batch["attention_mask"].sum(dim=1).tolist() == [4, 6, 4]
    pairs = make_batch(model, words, [("w1", "w2")], 1, 6)
    assert pairs["input_ids"].tolist() == [[2, 6, 3, 7, 3, 0]]
    assert torch.equal(
        make_batch(model, None, None, 2, 4)["input_ids"], make_batch(model, None, None, 2, 4)["input_ids"]
    )


def arguments(folder, *more):
    parser = Parser()
    command.add_arguments(parser)
    return parser.parse_args(["--model", str(folder), "--device", "cpu", "--quiet", *more])


SMALL = ["--repeats", "2", "--iterations", "1", "--iterations", "2", "--gradient", "one_step"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model"), imbert(num_hidden_layers=2))


def test_the_command(checkpoint, tmp_path, monkeypatch):
    text = tmp_path / "text"
    text.write_text("w1 w2 w3\nw4\n")
    monkeypatch.setitem(cost_measures.CONVERGED, "im_iterations", 20)  # time
    more = f"--batch 2 --length 6 --data {text} --random --gradient-rows 1 --solver fixed_point".split()
    args = arguments(checkpoint, *SMALL, *more)
    journal = Journal(tmp_path / "parts")
    report = command.run(args, journal)
    data = json.loads(json.dumps(report.data, allow_nan=False))
    assert [(c["text"], c["batch"], c["length"]) for c in data["cells"]] == [("random", 2, 6), ("real", 2, 6)]
    assert [c["tokens"] for c in data["cells"]] == pytest.approx([1, (5 + 3) / 12])
    rows = {row["name"]: row for row in data["cells"][0]["rows"]}
    assert list(rows)[:4] == ["BERT", "EX-BERT", "fixed_point T 1, one_step", "fixed_point T 2, one_step"]
    assert (rows["BERT"]["inference"]["ratio"], rows["BERT"]["training"]["memory_ratio"]) == (1, 1)
    assert rows["BERT"]["residual"] is rows["BERT"]["gradient_error"] is None
    own = rows["fixed_point T 2, one_step"]
    assert (own["solver"], own["gradient"], own["iterations"]) == ("fixed_point", "one_step", 2)
    assert own["training"]["forward"]["evaluations"] == 3
    assert own["training"]["floor"] == pytest.approx(5 / 3)
    assert own["inference"]["floor"] == 3
    assert own["inference"]["to_floor"] == pytest.approx(own["inference"]["ratio"] / 3)
    assert len(own["training"]["seconds"]) == 2
    low, high = own["training"]["quartiles"]
    assert low <= own["training"]["ratio"] <= high
    assert 0 < own["residual"] < rows["fixed_point T 1, one_step"]["residual"]
    assert "fixed_point T 2, one_step" in report.text
    assert "3F + 1v" in report.text
    # Two batches, each inference and one gradient; growth with the iterations.
    assert sum(axes.get_visible() for axes in report.figure().axes) == 2 * 2 + 1

    def refuse(*args, **kwargs):
        raise AssertionError("measured again")

    monkeypatch.setattr(module, "measure_batch", refuse)
    assert command.run(args, Journal(tmp_path / "parts")).data == report.data
    with pytest.raises(AssertionError, match="measured again"):
        command.run(arguments(checkpoint, *SMALL, "--batch", "2", "--length", "7"), Journal(tmp_path / "parts"))


def test_inference_alone(checkpoint):
    report = command.run(
        arguments(checkpoint, "--no-train", "--repeats", "1", "--iterations", "1", "--batch", "2", "--length", "5"),
        Journal(),
    )
    (cell,) = report.data["cells"]
    names = [row["name"] for row in cell["rows"]]
    assert names == ["BERT", "EX-BERT", "fixed_point T 1", "anderson T 1", "gradient_descent T 1 lr 0.02"]
    assert all(row["training"] is None and row["gradient_error"] is None for row in cell["rows"])
    assert cell["bert"]["training_seconds"] is None
    assert "step" not in report.text.split("time: ")[0]  # where words are explained
    assert len(report.figure().axes) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batch", "0"], "--batch must be an integer >= 1, got 0"),
        (["--implicit-layers", "3"], "--implicit-layers must be an integer from 1 to 2 for .*, got 3"),
        (["--length", "2"], "--length must be an integer >= 3, got 2"),
        (["--length", "65"], "--length must be at most 64 for .*, got 65"),
        (["--iterations", "0"], "--iterations must be an integer >= 1, got 0"),
        (["--learning-rate", "-1"], "--learning-rate must be a finite number > 0, got -1"),
        (["--theta", "0"], "--theta must be a number > 0 and <= 1, got 0"),
        (["--theta", "nan"], "--theta must be a number > 0 and <= 1, got nan"),
        (["--repeats", "0"], "--repeats must be an integer >= 1, got 0"),
        (["--gradient-rows", "-1"], "--gradient-rows must be an integer >= 0, got -1"),
        (["--task", "sst2"], "--task needs --data"),
        (["--random"], "--random needs --data"),
        (["--data", "/nowhere/text"], "cannot be read"),
    ],
)
def test_bad_input_is_one_sentence(checkpoint, more, message):
    with pytest.raises(ValueError, match=message) as error:
        command.run(arguments(checkpoint, *more), Journal())
    assert len(str(error.value).splitlines()) == 1


def test_the_state_of_the_model_is_left_alone(model, monkeypatch):
    monkeypatch.setitem(cost_measures.CONVERGED, "im_iterations", 20)  # time
    before = {name: value for name, value in model.config.to_dict().items() if name.startswith("im_")}
    cells = cost(model, batches=[2], lengths=[5], iterations=(1,), repeats=1)
    assert {name: value for name, value in model.config.to_dict().items() if name.startswith("im_")} == before
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    kinds = [row["kind"] for row in cells[0]["rows"]]
    assert kinds == ["BERT", "EX-BERT"] + ["IM-BERT"] * len(SOLVERS) * len(GRADIENTS)
