"""The cost command: counts and floors by hand, references against the package and against formulas; never a time."""

import contextlib
import copy
import json
from types import SimpleNamespace

import pytest
import torch
from classifiers import imbert, save, tokenizer
from conftest import imbert_config, lively
from problems import Mixing, inputs, step
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from imbert_hf import Anderson, FixedPoint, GradientDescent, IMBertForSequenceClassification, Implicit, Unrolled
from imbert_hf.evaluation import cost as module
from imbert_hf.evaluation import cost_measures, cost_references
from imbert_hf.evaluation.cli import Parser
from imbert_hf.evaluation.commands import cost as command
from imbert_hf.evaluation.cost import cost, make_batch
from imbert_hf.evaluation.cost_measures import (
    PeakMemory,
    converged_gradient,
    count,
    gradient_errors,
    interleave,
    parameter_gradient,
    peak_bytes,
    ratio,
    residual,
)
from imbert_hf.evaluation.cost_references import (
    Equation,
    find_torchdeq,
    freelb_losses,
    literal,
    plain_bert,
    plain_losses,
    r3f_losses,
    through_torchdeq,
)
from imbert_hf.evaluation.cost_rows import GRADIENTS, SOLVERS, floor, make_rows
from imbert_hf.evaluation.report import Journal


needs_torchdeq = pytest.mark.skipif(find_torchdeq() is None, reason="torchdeq is not installed")
RELATIONS = [
    {"theta": theta, "vector_field": field, "step_size": size, "initial_guess": guess}
    for theta, field, size, guess in [
        (1.0, "increment", 1.0, "explicit"),
        (0.6, "increment", 0.8, "explicit"),
        (1.0, "layer", 0.5, "previous"),
        (0.5, "layer", 0.5, "explicit"),
    ]
]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return lively(IMBertForSequenceClassification(imbert_config(num_hidden_layers=2))).eval()


@pytest.fixture(scope="module")
def small(model):
    return make_batch(model, None, None, 3, 6)


def by_name(rows):
    return {row.name: row for row in rows}


# -- work --


def expected_work(solver, gradient, T, theta, guess):
    """README's cost table: evaluations and products forward; evaluations, products, second products backward."""
    evaluations = T + 1 if guess == "explicit" else T
    products = T if solver == "gradient_descent" else 0
    if gradient == "unrolled":
        return (evaluations, products), (0, evaluations, products)
    Fx = int(theta < 1 and not (gradient == "one_step" and guess == "previous" and T == 1))
    return (evaluations, products), ((1, T + 1 + Fx, 0) if gradient == "implicit" else (0, 1 + Fx, 0))


@pytest.mark.parametrize("guess", ["explicit", "previous"])
@pytest.mark.parametrize("theta", [1.0, 0.5])
def test_work_is_that_of_the_cost_table(model, small, theta, guess):
    model.config.im_initial_guess = guess
    try:
        for row in make_rows(model, iterations=(1, 3), theta=theta):
            found = count(row, small, True, (0, 1))
            forward, backward = (tuple(found[phase].values()) for phase in ("forward", "backward"))
            if not row.setting:
                assert (forward, backward) == ((1, 0, 0), (0, 1, 0))
                assert (row.floor.inference, row.floor.training) == (1, 3)
                continue
            solver, gradient, T = (row.setting[name] for name in ("solver", "gradient", "iterations"))
            expected = expected_work(solver, gradient, T, theta, guess)
            assert (forward[:2], backward) == expected, row.name
            assert forward[2] == 0
            assert count(row, small, False, (0, 1)) == {"forward": found["forward"]}
            # The floor prices each at 1, second products at 2, and the gradients of weights at 1 more per evaluation
            # that has them, and per product that is sent back.
            tracked = backward[1] - (T if gradient == "implicit" else 0)
            assert row.floor.inference == sum(forward)
            assert row.floor.training == sum(forward) + backward[0] + backward[1] + tracked + 2 * backward[2]
    finally:
        model.config.im_initial_guess = "explicit"
    assert not any(layer.attention.output._forward_hooks for layer in model.bert.encoder.layer)


@pytest.mark.parametrize(
    ("solver", "gradient", "theta", "inference", "training"),
    [
        ("fixed_point", "one_step", 1.0, 4, 4 + 2),
        ("anderson", "one_step", 1.0, 4, 4 + 2),
        ("gradient_descent", "one_step", 1.0, 4 + 3, 7 + 2),
        ("fixed_point", "implicit", 1.0, 4, 4 + 1 + 3 + 2),
        ("gradient_descent", "implicit", 1.0, 7, 7 + 1 + 3 + 2),
        ("fixed_point", "unrolled", 1.0, 4, 4 + 4 * 2),
        ("anderson", "unrolled", 0.5, 4, 4 + 4 * 2),
        ("gradient_descent", "unrolled", 1.0, 7, 7 + 4 * 2 + 3 * 2),
        ("fixed_point", "one_step", 0.5, 4, 4 + 2 + 2),
        ("fixed_point", "implicit", 0.5, 4, 4 + 1 + 3 + 2 + 2),
    ],
)
def test_floor_by_hand_for_three_iterations(solver, gradient, theta, inference, training):
    found = floor(solver, gradient, 3, theta=theta)
    assert (found.inference, found.training) == (inference, training)
    more = floor(solver, gradient, 3, theta=theta, gradient_iterations=7).training - training
    assert more == (4 if gradient == "implicit" else 0)


def test_work_of_the_references(model, small):
    rows = by_name(make_rows(model, iterations=(2, 4), with_references=True))
    own = rows["gradient_descent T 4 lr 0.02, unrolled"]
    assert count(rows["literal T 4 lr 0.02"], small, True, (0, 1)) == count(own, small, True, (0, 1))
    for name, passes in (("FreeLB, 3 steps", 3), ("R3F", 2)):
        found = count(rows[name], small, True, (0, 1))
        assert (found["forward"]["evaluations"], found["backward"]["products"]) == (passes, passes)
        assert rows[name].floor.training == 3 * passes
        assert rows[name].inference is None
    torchdeq = [row for row in rows.values() if row.kind == "torchdeq"]
    assert len(torchdeq) == (8 if find_torchdeq() else 0)
    for row in torchdeq:
        if row.setting["solver"] == "fixed_point" or row.setting["iterations"] == 4:
            twin = rows[row.name.removeprefix("torchdeq ")]
            for training in (False, True):
                assert count(row, small, training, (0, 1)) == count(twin, small, training, (0, 1)), row.name


def test_plain_layers_below_the_implicit_ones(model, small):
    rows = make_rows(model, gradients=["unrolled"], iterations=[2], implicit_layers=1, with_references=True)
    solving = [row for row in rows if row.setting]
    assert [row.kind for row in solving] == ["IM-BERT"] * 3 + ["literal"]  # torchdeq has no unrolled gradient
    for row in solving:
        below, last = (count(row, small, True, (i,)) for i in (0, 1))
        assert (below["forward"]["evaluations"], below["backward"]["products"]) == (1, 1)
        assert (last["forward"]["evaluations"], last["backward"]["products"]) == (3, 3)
    options = {"solvers": ["fixed_point"], "gradients": ["one_step"], "iterations": [2], "repeats": 1}
    (cell,) = cost(model, batches=[2], lengths=[5], implicit_layers=[1], gradient_rows=0, **options)
    assert (cell["implicit_layers"], cell["converged"]) == (1, None)
    row = cell["rows"][-1]
    assert row["inference"]["floor"] == (1 + 3) / 2
    assert row["training"]["floor"] == pytest.approx((3 + 5) / 6)
    assert row["training"]["forward"]["evaluations"] == 3
    with pytest.raises(ValueError, match="implicit_layers must be an integer from 1 to 2 for this model, got 3"):
        make_rows(model, implicit_layers=3)


def test_rows_of_torchdeq_are_left_out_where_it_is_not_installed(model, monkeypatch):
    monkeypatch.setattr(cost_references, "find_torchdeq", lambda: None)
    kinds = {row.kind for row in make_rows(model, iterations=(1,), with_references=True)}
    assert kinds == {"BERT", "EX-BERT", "IM-BERT", "literal", "FreeLB", "R3F"}


@needs_torchdeq
def test_half_precision_has_no_anderson_of_torchdeq(model, small):
    half = copy.deepcopy(model).bfloat16()
    rows = make_rows(half, gradients=["implicit"], iterations=[2], with_references=True)
    assert [row.name for row in rows if row.kind == "torchdeq"] == ["torchdeq fixed_point T 2, implicit"]
    for row in rows:
        count(row, small, True, (0, 1))
    assert len(command.absent("bfloat16")) == 1
    assert command.absent("float32") == []


# -- references --


@pytest.mark.parametrize("relation", RELATIONS)
def test_the_literal_reading_is_unrolled_gradient_descent(relation):
    F, x = Mixing(), inputs()
    v = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(9))
    ours = step(F, x, **relation, solver=GradientDescent(0.2), gradient=Unrolled(), iterations=4).value
    theirs = literal(Equation(**relation), 4, 0.2)(F, x)
    torch.testing.assert_close(theirs, ours)
    leaves = (x, *F.parameters())
    expected = torch.autograd.grad(ours, leaves, v)
    torch.testing.assert_close(torch.autograd.grad(theirs, leaves, v), expected)
    with torch.no_grad():
        torch.testing.assert_close(literal(Equation(**relation), 4, 0.2)(F, x), ours.detach())


def test_the_literal_model_is_the_package_in_value_and_gradient(model, small):
    double = IMBertForSequenceClassification(model.config).double()
    double.load_state_dict(model.state_dict())
    double.eval()
    options = {"solvers": ["gradient_descent"], "gradients": ["unrolled"], "iterations": [3]}
    rows = by_name(make_rows(double, **options, with_references=True))
    ours, theirs = rows["gradient_descent T 3 lr 0.02, unrolled"], rows["literal T 3 lr 0.02"]
    with ours.ready(False):
        expected = ours.infer(small).logits
    torch.testing.assert_close(theirs.infer(small).logits, expected)
    torch.testing.assert_close(parameter_gradient(theirs, small), parameter_gradient(ours, small))


@needs_torchdeq
@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_torchdeq_iterates_the_same_map(relation, iterations):
    F, x = Mixing(), inputs(requires_grad=False)
    with torch.no_grad():
        theirs = through_torchdeq(Equation(**relation), "fixed_point", "implicit", iterations)(F, x)
        ours = step(F, x, **relation, solver=FixedPoint(), gradient=Unrolled(), iterations=iterations).value
    torch.testing.assert_close(theirs, ours)


@needs_torchdeq
@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("solver", ["fixed_point", "anderson"])
def test_torchdeq_converges_to_the_same_solution_and_gradient(relation, solver):
    F, x = Mixing(), inputs()
    v = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(9))
    leaves = (x, *F.parameters())
    ours = step(F, x, **relation, solver=Anderson(), gradient=Implicit(60), iterations=60).value
    theirs = through_torchdeq(Equation(**relation), solver, "implicit", 80)(F, x)
    torch.testing.assert_close(theirs, ours, rtol=1e-6, atol=1e-8)
    expected = torch.autograd.grad(ours, leaves, v)
    torch.testing.assert_close(torch.autograd.grad(theirs, leaves, v), expected, rtol=1e-5, atol=1e-7)


def test_plain_bert_shares_the_parameters(model, small):
    bert = plain_bert(model)
    own = dict(model.named_parameters())
    assert all(parameter is own[name] for name, parameter in bert.named_parameters())
    assert type(bert).__name__ == "BertForSequenceClassification"
    assert not bert.training
    model.config.im_layers = []
    try:
        assert torch.equal(bert(**small).logits, model(**small).logits)
    finally:
        model.config.im_layers = "all"


class Margin(torch.nn.Module):
    """loss = softplus(-m), the margin m = <w, sum of embeddings> + bias; linear in the embeddings."""

    def __init__(self, width=4):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = torch.nn.Embedding(9, width).double()
        self.w = torch.nn.Parameter(torch.randn(width, dtype=torch.float64, generator=generator))
        self.bias = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, attention_mask, labels, input_ids=None, inputs_embeds=None):
        embedded = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        margin = ((embedded @ self.w) * attention_mask).sum(dim=1) + self.bias
        loss = torch.nn.functional.softplus(-margin).mean()
        return SimpleNamespace(loss=loss, logits=torch.stack([torch.zeros_like(margin), margin], dim=1))


MARGIN_BATCH = {
    "input_ids": torch.tensor([[1, 2, 3], [4, 5, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
    "labels": torch.tensor([1, 1]),
}


def gradients(model, losses):
    model.zero_grad()
    for loss in losses:
        loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_freelb_ascends_by_hand():
    """The gradient by a row's n tokens is along -w: each step lowers the margin by step_size sqrt(n) |w|."""
    model, n = Margin(), torch.tensor([3.0, 2.0], dtype=torch.float64)
    found = gradients(model, freelb_losses(model, MARGIN_BATCH, steps=3, step_size=0.3, radius=0.5, start=0.0))
    margin = model(**MARGIN_BATCH).logits[:, 1].detach()
    distances = (0.0, 0.3, 0.5)  # of the third point the ball keeps 0.5
    moved = torch.stack([margin - d * n.sqrt() * model.w.norm() for d in distances])
    torch.testing.assert_close(found["bias"], -torch.sigmoid(-moved).mean())


def test_freelb_without_steps_is_the_mean_of_plain_gradients():
    model = Margin()
    plain = gradients(model, plain_losses(model, MARGIN_BATCH))
    found = gradients(model, freelb_losses(model, MARGIN_BATCH, step_size=0.0, start=0.0))
    torch.testing.assert_close(found, plain)


def test_freelb_starts_within_its_ball_and_off_padding():
    seen = []

    class Spy(Margin):
        def forward(self, inputs_embeds, **rest):
            seen.append((inputs_embeds - self.embedding(MARGIN_BATCH["input_ids"])).detach())
            return super().forward(inputs_embeds=inputs_embeds, **rest)

    model = Spy()
    gradients(model, freelb_losses(model, MARGIN_BATCH, step_size=0.3, radius=0.4, start=0.2))
    norms = torch.stack([delta.flatten(1).norm(dim=1) for delta in seen])
    assert ((norms[0] > 0) & (norms[0] <= 0.2)).all()
    assert (norms[1:] <= 0.4 + 1e-12).all()
    assert all((delta[1, 2] == 0).all() for delta in seen)


def test_r3f_without_noise_adds_nothing():
    model = Margin()
    plain = gradients(model, plain_losses(model, MARGIN_BATCH))
    (loss,) = list(r3f_losses(model, MARGIN_BATCH, noise=0.0))
    torch.testing.assert_close(loss, model(**MARGIN_BATCH).loss, check_dtype=False)
    found = gradients(model, r3f_losses(model, MARGIN_BATCH, noise=0.0))
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-7)


def test_r3f_adds_the_symmetric_divergence_by_hand(monkeypatch):
    model = Margin()
    monkeypatch.setattr(torch, "rand_like", torch.ones_like)  # noise of +0.1 on each component
    (loss,) = list(r3f_losses(model, MARGIN_BATCH, noise=0.1, weight=2.0))
    margin = model(**MARGIN_BATCH).logits[:, 1]
    moved = margin + 0.1 * torch.tensor([3.0, 2.0], dtype=torch.float64) * model.w.sum()
    p, q = torch.sigmoid(margin), torch.sigmoid(moved)
    # Of two Bernoulli distributions KL(p||q) + KL(q||p) is (p - q) times the difference of their logits.
    expected = model(**MARGIN_BATCH).loss + 2.0 * ((p - q) * (margin - moved)).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)


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
    row = make_rows(model, solvers=["gradient_descent"], gradients=[gradient], iterations=[2])[-1]
    found = peak_bytes(row, small)
    monkeypatch.setattr(cost_measures, "PeakMemory", Rebuilt)
    assert abs(peak_bytes(row, small) - found) < 0.001 * found
    assert all(parameter.grad is None for parameter in model.parameters())


# -- quality --


@pytest.mark.parametrize("theta", [1.0, 0.5])
def test_residuals_are_the_models_own(model, theta, batch):
    batch = {**batch, "labels": torch.tensor([0, 1, 0])}  # padded
    rows = make_rows(model, gradients=["unrolled"], iterations=[2], theta=theta, with_references=True)
    for row in rows:
        if row.kind != "IM-BERT":
            continue
        with row.ready(False), torch.no_grad():
            own = torch.stack(model(**batch, output_im_statistics=True).im_residuals).mean().item()
        assert residual(row, batch, Equation(theta), (0, 1)) == pytest.approx(own, rel=1e-4)
    unpadded = make_batch(model, None, None, 2, 5)
    named = by_name(rows)
    found, own = (residual(named[n], unpadded, Equation(theta), (0, 1)) for n in ("literal T 2 lr 0.02", rows[4].name))
    assert rows[4].name == "gradient_descent T 2 lr 0.02, unrolled"
    assert found == pytest.approx(own, rel=1e-4)


def test_gradient_errors_fall_with_the_iterations():
    torch.manual_seed(0)
    model = IMBertForSequenceClassification(imbert_config(num_hidden_layers=2)).double().eval()
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.output.LayerNorm.weight.mul_(0.4)  # contracting
    batch = make_batch(model, None, None, 3, 5)
    exact, kept, reached = converged_gradient(model, batch, 1.0, (0, 1))
    assert kept == [0, 1, 2]
    assert reached <= 1e-9
    rows = make_rows(model, solvers=["fixed_point", "anderson"], iterations=(2, 20))
    errors = gradient_errors(rows, batch, exact)
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
    more = f"--batch 2 --length 6 --data {text} --random --references --gradient-rows 1 --solver fixed_point".split()
    args = arguments(checkpoint, *SMALL, *more)
    journal = Journal(tmp_path / "parts")
    report = command.run(args, journal)
    data = json.loads(json.dumps(report.data, allow_nan=False))
    assert [(c["text"], c["batch"], c["length"]) for c in data["cells"]] == [("random", 2, 6), ("real", 2, 6)]
    assert [c["tokens"] for c in data["cells"]] == pytest.approx([1, (5 + 3) / 12])
    rows = {row["name"]: row for row in data["cells"][0]["rows"]}
    assert list(rows)[:4] == ["BERT", "EX-BERT", "fixed_point T 1, one_step", "fixed_point T 2, one_step"]
    assert (rows["BERT"]["inference"]["ratio"], rows["BERT"]["training"]["memory_ratio"]) == (1, 1)
    assert rows["BERT"]["residual"] is rows["BERT"]["gradient_error"] is rows["R3F"]["inference"] is None
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
    assert len(data["absent"]) == (find_torchdeq() is None)
    assert "fixed_point T 2, one_step" in report.text
    assert "3F + 1v" in report.text
    assert ("torchdeq, which is not installed" in report.text) == (find_torchdeq() is None)
    # Two batches, each inference and one gradient; growth with the iterations.
    assert sum(axes.get_visible() for axes in report.figure().axes) == 2 * 2 + 1

    def refuse(*args, **kwargs):
        raise AssertionError("measured again")

    monkeypatch.setattr(module, "measure", refuse)
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
    assert "step" not in report.text.split("Times and memory")[0]
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
    cells = cost(model, batches=[2], lengths=[5], iterations=(1,), repeats=1, with_references=True)
    assert {name: value for name, value in model.config.to_dict().items() if name.startswith("im_")} == before
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [row["kind"] for row in cells[0]["rows"]][-2:] == ["FreeLB", "R3F"]
    assert len([row for row in cells[0]["rows"] if row["kind"] == "IM-BERT"]) == len(SOLVERS) * len(GRADIENTS)
