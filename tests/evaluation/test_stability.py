"""Growth of perturbations, solves and the stability command, against values known from the mathematics."""

import json
from types import SimpleNamespace

import pytest
import torch
from problems import Mixing, inputs, step
from tiny import bert_config, imbert_config, lively, tokenizer_of
from transformers import BertForSequenceClassification, BertModel, FunnelConfig, FunnelModel

from imbert_hf import Anderson, FixedPoint, GradientDescent, IMBertForSequenceClassification, IMBertModel, Unrolled
from imbert_hf.evaluation.cli import Parser
from imbert_hf.evaluation.data.loading import load_encoder
from imbert_hf.evaluation.report import Journal
from imbert_hf.evaluation.stability import command
from imbert_hf.evaluation.stability import layers as module
from imbert_hf.evaluation.stability.growth import connected, connections, growth, perturbed_states
from imbert_hf.evaluation.stability.layers import PlainLayer, spectra, stability
from imbert_hf.evaluation.stability.solves import convergence, residual_history


WORDS = ["a", "fine", "film", "not", "dull", "and"]
TEXTS = ["a fine film", "not a dull film and not fine"]
SEARCH = {"radius": 0.1, "directions": 3, "restarts": 2, "steps": 4}
SMALL = {**SEARCH, "eigenvalues": 2, "iterations": 3, "max_length": 16, "step_sizes": (0.5, 1.0)}


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of(WORDS)


@pytest.fixture
def model():
    return lively(IMBertModel(imbert_config(), add_pooling_layer=False)).eval()


@pytest.fixture
def sentence():
    """[CLS], five words, [SEP]; and which of them may be moved."""
    ids = torch.tensor([[2, 5, 6, 7, 10, 8, 3]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.tensor([0, 1, 1, 1, 1, 1, 0]).bool()


def test_im_layers_empty_is_bert(model, sentence):
    encoded, _ = sentence
    bert = BertModel(bert_config(), add_pooling_layer=False).eval()
    bert.load_state_dict(model.state_dict())
    delta = 0.1 * torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), connected(model.config, connections(model.config)["BERT"]):
        states = perturbed_states(model, encoded, delta)
        moved = bert.embeddings.word_embeddings(encoded["input_ids"]) + delta
        expected = bert(inputs_embeds=moved, output_hidden_states=True).hidden_states
        assert len(states) == 4
        for found, exact in zip(states, expected, strict=True):
            assert torch.equal(found, exact)
        for k, layer in enumerate(model.encoder.layer):  # the layers whose spectra are taken
            torch.testing.assert_close(PlainLayer(layer)(states[k]), states[k + 1])
            assert not PlainLayer(layer).training


def test_the_hook_is_gone_after_an_error(model, sentence):
    with pytest.raises(ValueError, match="word embeddings must be"):
        perturbed_states(model, sentence[0], torch.zeros(1, 3, 5))
    assert not model.get_input_embeddings()._forward_hooks


def test_growth_through_layers_that_keep_their_input(sentence):
    """Without output weights a layer is LayerNorm: F(h) = h on h_0, which is normalised, and on its multiples h_0."""
    model = IMBertModel(imbert_config(), add_pooling_layer=False).eval().double()
    with torch.no_grad():
        for layer in model.encoder.layer:
            for dense in (layer.attention.output.dense, layer.output.dense):
                dense.weight.zero_()
    expected = {"BERT": [1, 1, 1, 1], "EX-BERT": [1, 2, 3, 4], "IM-BERT": [1, 1, 1, 1]}
    for name, fields in connections(model.config).items():
        with connected(model.config, fields):
            records = growth(model, *sentence, **SEARCH)
        assert [r["direction"] for r in records] == ["random", "random", "random", "worst"]
        for record in records:
            assert record["ratio"] == pytest.approx(expected[name], rel=1e-6)
            assert record["relative"] == pytest.approx([record["relative"][0]] * 4, rel=1e-6)
            assert record["difference"][1] == pytest.approx(expected[name][1] * record["difference"][0], rel=1e-6)


class LinearModel:
    """h_1 = h_0 A per token, h_0 being the word embeddings."""

    def __init__(self, matrix):
        self.embedding = torch.nn.Embedding(11, len(matrix), dtype=matrix.dtype)
        self.matrix = matrix

    def get_input_embeddings(self):
        return self.embedding

    def __call__(self, input_ids, attention_mask, output_hidden_states):
        h = self.embedding(input_ids)
        return SimpleNamespace(hidden_states=(h, h @ self.matrix))


def test_the_worst_perturbation_of_a_linear_model(sentence):
    matrix = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = LinearModel(matrix)
    records = growth(model, *sentence, radius=0.3, directions=3, restarts=2, steps=300)
    largest = torch.linalg.svdvals(matrix)[0].item()
    assert records[-1]["ratio"][1] == pytest.approx(largest, rel=1e-6)
    assert all(r["ratio"][1] < largest for r in records[:-1])
    free = model.embedding.weight[sentence[0]["input_ids"][0, 1:-1]]
    for record in records:  # as long as was asked for
        assert record["difference"][0] == pytest.approx(0.3 * free.norm().item())


@pytest.mark.parametrize("connection", ["BERT", "EX-BERT", "IM-BERT"])
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_no_random_direction_moves_more_than_the_worst(model, sentence, connection, steps):
    with connected(model.config, connections(model.config)[connection]):
        *random, worst = growth(model, *sentence, **{**SEARCH, "steps": steps})
    most = max(r["difference"][-1] for r in random)
    assert worst["difference"][-1] >= most * (1 - 1e-5)
    if steps == 5:
        assert worst["difference"][-1] > 1.1 * most


def test_special_tokens_are_not_moved(model, sentence, monkeypatch):
    encoded, free = sentence
    seen = []

    def spy(model, inputs, delta):
        seen.append(delta.detach())
        return perturbed_states(model, inputs, delta)

    monkeypatch.setattr("imbert_hf.evaluation.stability.growth.perturbed_states", spy)
    growth(model, encoded, free, **SEARCH)
    clean, *moved = seen
    size = 0.1 * model.get_input_embeddings()(encoded["input_ids"])[0, free].norm()
    assert not clean.any()
    for delta in torch.cat(moved):
        assert not delta[~free].any()
        torch.testing.assert_close(delta.norm(), size)


def test_growth_leaves_nothing_behind(model, sentence):
    first = growth(model, *sentence, **SEARCH)
    assert first == growth(model, *sentence, **SEARCH)
    assert first != growth(model, *sentence, **SEARCH, seed=1)
    assert all(p.grad is None for p in model.parameters())


def test_connections():
    own = connections(imbert_config(im_theta=0.5, im_layers=[-1], im_step_size=2.0, im_gradient="one_step"))
    assert own["BERT"]["im_layers"] == []
    implicit = {"im_theta": 0.5, "im_layers": [-1], "im_step_size": 2.0, "im_gradient": "unrolled"}
    assert {name: own["IM-BERT"][name] for name in implicit} == implicit
    assert (own["EX-BERT"]["im_theta"], own["EX-BERT"]["im_vector_field"], own["EX-BERT"]["im_layers"]) == (
        0,
        "layer",
        [-1],
    )
    for explicit in ({"im_theta": 0.0, "im_vector_field": "layer"}, {"im_layers": []}):
        found = connections(imbert_config(**explicit))["IM-BERT"]
        assert (found["im_theta"], found["im_layers"], found["im_vector_field"]) == (1, "all", "increment")


def test_fields_come_back_after_an_error():
    config = imbert_config(im_theta=0.25)
    with connected(config, {"im_theta": 1.0, "im_layers": []}):
        assert (config.im_theta, config.im_layers) == (1, [])
    with pytest.raises(ValueError, match="im_layers"), connected(config, {"im_theta": 1.0, "im_layers": "none"}):
        pass
    assert (config.im_theta, config.im_layers) == (0.25, "all")


@pytest.mark.parametrize("solver", [FixedPoint(0.7), Anderson(), GradientDescent(0.1), GradientDescent(1e200)])
@pytest.mark.parametrize("field", ["increment", "layer"])
@pytest.mark.parametrize("guess", ["explicit", "previous"])
def test_residuals_are_those_of_implicit_step(solver, field, guess):
    F, x = Mixing(), inputs(requires_grad=False)
    relation = {"vector_field": field, "step_size": 1.5, "theta": 0.6, "initial_guess": guess}
    history = residual_history(F, x, solver, 5, **relation)
    assert history.shape == (6, 3)
    for k in range(6):
        solution = step(F, x, **relation, solver=solver, gradient=Unrolled(), iterations=k)
        expected = torch.where(solution.finite, solution.residual, torch.inf)
        torch.testing.assert_close(history[k], expected)


@pytest.mark.parametrize("theta", [0.5, 1.0])
def test_the_fixed_point_converges_up_to_a_known_step(theta):
    """F(h) = -3 h: the map of the increment contracts by 3 s / (1 + s), below 1 where s = theta gamma < 1/2."""
    x = inputs(requires_grad=False)
    step_sizes = [value / theta for value in (0.1, 0.4, 0.48, 0.52, 0.6, 2.0)]
    options = {"iterations": 600, "tolerance": 1e-3, "initial_guess": "explicit"}
    found = convergence(
        lambda h: -3 * h, x, FixedPoint(), step_sizes=step_sizes, thetas=[theta], vector_field="increment", **options
    )
    assert found.shape == (1, 6, 3)
    assert found[0].all(dim=1).tolist() == [True, True, True, False, False, False]
    # For the layer field the map contracts by 3 s.
    found = convergence(
        lambda h: -3 * h, x, FixedPoint(), step_sizes=[0.32, 0.35], thetas=[1.0], vector_field="layer", **options
    )
    assert found[0, :, 0].tolist() == [True, False]


@pytest.mark.parametrize(("field", "carry"), [("increment", 1), ("layer", 0)])
def test_spectra_of_a_known_layer(field, carry):
    """F(h) = h times 0.5, 2.5 and, once, -1.2."""
    scale = torch.full((4, 5), 0.5, dtype=torch.float64)
    scale[0, 0], scale[2, 1] = 2.5, -1.2
    layers = {3: (lambda h: scale * h, torch.ones(1, 4, 5, dtype=torch.float64))}
    (record,) = spectra(layers, step_size=2.0, vector_field=field, count=2)
    assert record["layer"] == 3
    assert record["eigenvalues"] == [[pytest.approx(2.5), 0], [pytest.approx(-1.2), 0]]
    assert (record["spectral_radius"], record["norm"]) == (pytest.approx(2.5), pytest.approx(2.5, rel=1e-2))
    z = [2 * (2.5 - carry), 2 * (-1.2 - carry)]
    assert [value for value, _ in record["z"]] == pytest.approx(z)
    assert record["amplification"]["0"] == pytest.approx(max(abs(1 + v) for v in z))
    assert record["amplification"]["0.5"] == pytest.approx(max(abs((1 + v / 2) / (1 - v / 2)) for v in z))
    assert record["amplification"]["1"] == pytest.approx(max(abs(1 / (1 - v)) for v in z))


def test_a_pole_is_no_number():
    layers = {0: (lambda h: 2 * h, torch.ones(1, 2, 3, dtype=torch.float64))}
    (record,) = spectra(layers, step_size=1.0, vector_field="increment", count=1)
    assert record["z"] == [[1, 0]]
    assert record["amplification"] == {"0": 2, "0.5": 3, "1": None}


def test_stability_of_a_small_model(tokenizer, tmp_path, monkeypatch):
    classifier = lively(IMBertForSequenceClassification(imbert_config(im_layers=[0, 2], im_gradient="implicit")))
    classifier.train()
    journal = Journal(tmp_path / "parts")
    data = stability(classifier, tokenizer, TEXTS, **SMALL, journal=journal)
    json.dumps(data, allow_nan=False)
    assert [s["tokens"] for s in data["sentences"]] == [5, 9]
    assert len(data["growth"]) == 2 * 3 * 4
    assert [(r["sentence"], r["layer"]) for r in data["spectrum"]] == [(i, k) for i in (0, 1) for k in (0, 1, 2)]
    assert len(data["residuals"]) == 2 * 2 * 3
    assert all(len(r["residual"]) == 4 for r in data["residuals"])
    assert {(r["layer"], r["theta"], r["step_size"]) for r in data["convergence"]} == {
        (k, theta, size) for k in (0, 2) for theta in (0.5, 1.0) for size in (0.5, 1.0)
    }
    # left as it was
    assert classifier.training
    assert all(module.training for module in classifier.modules())
    assert (classifier.config.im_layers, classifier.config.im_gradient) == ([0, 2], "implicit")

    # The residuals are those that the model's own forward reports.
    classifier.eval()
    with torch.no_grad():
        own = classifier(**tokenizer(TEXTS[1], return_tensors="pt"), output_im_statistics=True).im_residuals
    found = [r["residual"] for r in data["residuals"] if (r["sentence"], r["solver"]) == (1, "fixed_point")]
    assert [r[3] for r in found] == pytest.approx([r.item() for r in own], rel=1e-3)

    def never(*args, **kwargs):
        raise AssertionError("a finished part was computed again")

    for name in ("growth", "spectra", "residual_history", "convergence"):
        monkeypatch.setattr(module, name, never)
    again = stability(classifier, tokenizer, TEXTS, **SMALL, journal=Journal(tmp_path / "parts"))
    assert again == data
    with torch.no_grad():
        classifier.bert.encoder.layer[0].output.dense.bias += 1
    with pytest.raises(AssertionError, match="computed again"):
        stability(classifier, tokenizer, TEXTS, **SMALL, journal=Journal(tmp_path / "parts"))


def parse(*argv):
    parser = Parser()
    command.add_arguments(parser)
    args = parser.parse_args([*argv, "--quiet", "--device", "cpu", "--max-length", "16", "--iterations", "3"])
    args.steps = 1
    return args


@pytest.fixture
def checkpoint(tokenizer, tmp_path):
    """A BERT classifier."""
    lively(BertForSequenceClassification(bert_config())).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_the_command(checkpoint, tmp_path):
    (tmp_path / "text.txt").write_text("a fine film\n\nnot a dull film\n", encoding="utf-8")
    args = parse("--model", str(checkpoint), "--data", str(tmp_path / "text.txt"), "--dtype", "float64")
    report = command.run(args, Journal())
    json.dumps(report.data, allow_nan=False)
    assert [s["text"] for s in report.data["sentences"]] == ["a fine film", "not a dull film"]
    found = report.data["connections"]
    layers = {"BERT": [], "EX-BERT": "all", "IM-BERT": "all"}
    assert {name: fields["im_layers"] for name, fields in found.items()} == layers  # of a plain BERT
    assert found["IM-BERT"]["im_theta"] == 1
    for shown in ("2 sentences, 11 tokens", "IM-BERT worst", "spectral radius", "fixed_point 3", "gamma 0.5"):
        assert shown in report.text
    assert max(map(len, report.text.splitlines())) <= 130
    grown = [g for g in report.data["growth"] if (g["connection"], g["direction"]) == ("BERT", "worst")]
    mean = sum(g["relative"][2] for g in grown) / 2
    assert report.data["summary"]["growth"][1]["relative"][2] == pytest.approx(mean)
    figure = report.figure()
    assert len(figure.axes) == 5  # four panels and the colours of the layers
    figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_a_value_that_is_not_finite_is_not_averaged_away():
    assert command.columns(max, [[1.0, None], [2.0, 3.0]]) == [2.0, None]


def test_rows_of_a_task(tmp_path):
    rows = [{"sentence": f"film {i}", "label": 1} for i in range(9)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert command.read_texts(tmp_path / "rows.jsonl", "sst2", limit=9) == [f"film {i}" for i in range(9)]
    (tmp_path / "rows.txt").write_text("\n".join(row["sentence"] for row in rows), encoding="utf-8")
    some = command.read_texts(tmp_path / "rows.txt", limit=4, seed=1)
    assert some == sorted(some)
    assert len(set(some)) == 4
    pair = [{"question1": "a film", "question2": "film", "label": 0}]
    (tmp_path / "pair.json").write_text(json.dumps({"qqp": pair}), encoding="utf-8")
    assert command.read_texts(tmp_path / "pair.json", "qqp") == [("a film", "film")]


def test_bad_files(tmp_path):
    (tmp_path / "empty.txt").write_text(" \n", encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text('{"sentence": "a film", "label": 1}', encoding="utf-8")
    for name, limit, message in (
        ("empty.txt", None, "is empty; it must hold one sentence a line"),
        ("none.txt", None, "cannot be read: No such file or directory"),
        ("rows.jsonl", None, "is a table; say with --text-column, or --task"),
        ("empty.txt", 0, "max_rows must be an integer >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            command.read_texts(tmp_path / name, limit=limit)


def test_models_of_another_family(tmp_path, tokenizer, checkpoint):
    sizes = {"vocab_size": 99, "d_model": 16, "block_sizes": [1], "n_head": 2, "d_head": 8, "d_inner": 16}
    other = FunnelModel(FunnelConfig(**sizes))
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(
        ValueError, match=r"other holds a checkpoint of model_type 'funnel'; it must be one of bert, imbert, "
    ):
        load_encoder(str(tmp_path / "other"))
    with pytest.raises(
        ValueError, match="model must be an implicit one, or a plain one loaded as such, got FunnelModel"
    ):
        stability(other, tokenizer, TEXTS, **SMALL)
    with pytest.raises(
        ValueError,
        match=r"nothing cannot be loaded as a checkpoint of BERT, RoBERTa, .* or ModernBERT: there is no such folder",
    ):
        load_encoder(str(tmp_path / "nothing"))
    for path in checkpoint.glob("*token*"):
        path.unlink()
    with pytest.raises(ValueError, match="holds no tokenizer"):
        load_encoder(str(checkpoint))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"radius": 0.0}, "radius must be a finite number > 0, got 0.0"),
        ({"radius": -1.0}, "radius must be a finite number > 0, got -1.0"),
        ({"radius": float("nan")}, "radius must be a finite number > 0, got nan"),
        ({"directions": 0}, "directions must be an integer >= 1, got 0"),
        ({"restarts": 4}, "restarts must be an integer from 1 to directions, 3, got 4"),
        ({"steps": -1}, "steps must be an integer >= 0, got -1"),
        ({"eigenvalues": 0}, "eigenvalues must be an integer >= 1, got 0"),
        ({"iterations": 0}, "iterations must be an integer >= 1, got 0"),
        ({"step_sizes": ()}, "step_sizes must hold numbers > 0, got"),
        ({"thetas": (0.0,)}, "thetas must hold numbers > 0"),
        ({"max_length": 99}, "max_length must be from 8 to 64, got 99"),
        ({"texts": []}, "texts must be a list of one sentence or more"),
        ({"texts": "a film"}, "texts must be a list of one sentence or more"),
        ({"texts": [" "]}, "each text must have a token that may be moved, got ' '"),
    ],
)
def test_bad_values(model, tokenizer, change, message):
    options = {"texts": TEXTS, **SMALL, **change}
    with pytest.raises(ValueError, match=message):
        stability(model, tokenizer, **options)
