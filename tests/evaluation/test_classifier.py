"""Loading, label order, and predictions that depend on neither order nor batch."""

from types import SimpleNamespace

import numpy
import pytest
import torch
from classifiers import WORDS, bert, classifier, imbert, save, tokenizer
from tiny import TINY, bert_config, imbert_config
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from imbert_hf import IMBertForSequenceClassification
from imbert_hf.evaluation.data.classifier import align_labels, length_sorted, load_classifier, predict
from imbert_hf.evaluation.data.loading import fingerprint, longest_input
from imbert_hf.evaluation.data.tasks import TASKS


def texts(n=13, seed=0):
    rng = numpy.random.default_rng(seed)
    return [(" ".join(rng.choice(WORDS, rng.integers(1, 20))),) for _ in range(n)]


@pytest.mark.parametrize(
    ("names", "task", "order"),
    [
        (("NEGATIVE", "Positive"), "sst2", (0, 1)),
        (("pos", "neg"), "sst2", (1, 0)),
        (("contradiction", "entailment", "neutral"), "mnli", (1, 2, 0)),
        (("not_entailment", "entailment"), "rte", (1, 0)),
        (("Not Entailment", "Entailment"), "qnli", (1, 0)),
        (("not_equivalent", "equivalent"), "qqp", (0, 1)),
    ],
)
def test_labels_are_aligned_by_name(names, task, order):
    assert align_labels("m", dict(enumerate(names)), TASKS[task]) == order


def test_labels_that_do_not_tell_are_asked_for():
    unnamed = {0: "LABEL_0", 1: "LABEL_1"}
    with pytest.raises(ValueError, match=r"LABEL_0, LABEL_1.*--label-map, such as negative=0,positive=1"):
        align_labels("m", unnamed, TASKS["sst2"])
    assert align_labels("m", unnamed, TASKS["sst2"], {"negative": 1, "positive": 0}) == (1, 0)
    with pytest.raises(ValueError, match="label_map must use each of 0 to 1 once"):
        align_labels("m", unnamed, TASKS["sst2"], {"negative": 1, "positive": 1})
    with pytest.raises(ValueError, match="contradicts the names in m: negative, positive"):
        align_labels("m", {0: "negative", 1: "positive"}, TASKS["sst2"], {"negative": 1, "positive": 0})
    with pytest.raises(ValueError, match="label-map"):  # two outputs of one name
        align_labels("m", {0: "positive", 1: "pos"}, TASKS["sst2"])
    with pytest.raises(ValueError, match="label-map"):  # an alias of another task's label says nothing here
        align_labels("m", {0: "entailment", 1: "neutral"}, TASKS["sst2"])
    with pytest.raises(ValueError, match=r"has 3 labels .* and rte has 2"):
        align_labels("m", {0: "a", 1: "b", 2: "c"}, TASKS["rte"])


@pytest.mark.parametrize("make", [bert, imbert])
def test_predictions_are_the_models_own_in_glues_order(tmp_path, make):
    path = save(tmp_path, make(labels=("positive", "negative")))
    found = load_classifier(path, TASKS["sst2"], name="mine")
    model, rows = found.model, texts()
    prediction = predict(found, rows, batch_size=4)
    for (text,), logits in zip(rows, prediction.logits, strict=True):
        with torch.no_grad():
            own = model(**tokenizer()(text, return_tensors="pt")).logits[0]
        assert logits == pytest.approx(own.flip(0).numpy(), abs=1e-5)
    assert prediction.labels.tolist() == prediction.logits.argmax(axis=1).tolist()
    assert found.name == "mine"
    assert not model.training


def test_order_and_batch_size_do_not_matter():
    found, rows = classifier(imbert()), texts()
    reference = predict(found, rows, batch_size=13).logits
    assert predict(found, rows, batch_size=1).logits == pytest.approx(reference, abs=1e-5)
    assert predict(found, rows[::-1], batch_size=4).logits[::-1] == pytest.approx(reference, abs=1e-5)
    assert predict(found, []).logits.shape == (0, 2)


def test_batches_are_sorted_by_length_and_hold_every_row_once():
    encodings = classifier(bert()).encode(texts(30))
    batches = length_sorted(encodings, 7)
    assert sorted(i for batch in batches for i in batch) == list(range(30))
    lengths = [len(encodings[i]["input_ids"]) for batch in batches for i in batch]
    assert lengths == sorted(lengths, reverse=True)


def test_residuals_are_the_models_own():
    model = imbert(im_iterations=2)
    rows = texts(8)
    everything = predict(classifier(model), rows, batch_size=2, residuals="all")
    with torch.no_grad():
        own = model(**tokenizer()([t for (t,) in rows], padding=True, return_tensors="pt"), output_im_statistics=True)
    expected = torch.stack(own.im_residuals, dim=1).numpy()
    assert numpy.sort(everything.residuals, axis=0) == pytest.approx(numpy.sort(expected, axis=0), rel=1e-3, abs=1e-6)
    assert (everything.converged == (everything.residuals <= 1e-2)).all()
    model.config.im_tolerance = 0.5
    assert (predict(classifier(model), rows, residuals="all").converged).all()
    sample = predict(classifier(model), rows, batch_size=2)
    assert sample.residuals.shape == (2, 3)  # one batch in four
    assert predict(classifier(model), rows, residuals="none").residuals.size == 0
    assert len(predict(classifier(model), rows[:1]).residuals) == 1  # a single batch is not left out


def test_nothing_is_solved_and_nothing_measured_without_an_implicit_step():
    assert not classifier(bert()).implicit
    assert not classifier(imbert(im_layers=[])).implicit
    assert not classifier(imbert(im_theta=0.0, im_vector_field="layer")).implicit
    assert predict(classifier(imbert(im_theta=0.0)), texts()).residuals.size == 0


def test_evaluation_makes_one_forward_a_batch_and_measures_in_one_of_four(monkeypatch):
    calls = []
    model = imbert()
    original = IMBertForSequenceClassification.forward

    def forward(self, *args, **kwargs):
        calls.append(kwargs.get("output_im_statistics", False))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(IMBertForSequenceClassification, "forward", forward)
    predict(classifier(model), texts(32), batch_size=4)
    assert len(calls) == 8
    assert sum(calls) == 2


def test_what_is_no_classifier_is_refused(tmp_path):
    sst2 = TASKS["sst2"]
    with pytest.raises(ValueError, match="nowhere cannot be loaded as a sequence classifier"):
        load_classifier(str(tmp_path / "nowhere"), sst2)
    for i, model in enumerate((BertModel(bert_config()), BertForMaskedLM(bert_config()))):
        path = save(tmp_path / f"{i}", model)
        with pytest.raises(ValueError, match="is no trained sequence classifier: its checkpoint lacks"):
            load_classifier(path, sst2)
    bert().save_pretrained(tmp_path / "untokenized")
    with pytest.raises(ValueError, match="tokenizer"):
        load_classifier(str(tmp_path / "untokenized"), sst2)
    three = save(tmp_path / "three", BertForSequenceClassification(bert_config(num_labels=3)))
    with pytest.raises(ValueError, match="has 3 labels"):
        load_classifier(three, sst2)
    with pytest.raises(ValueError, match=r"max_length must be from 8 to 64 .*, got 65"):
        load_classifier(save(tmp_path / "short", bert()), sst2, max_length=65)


def test_a_changed_checkpoint_is_another(tmp_path):
    path = save(tmp_path, bert())
    first = load_classifier(path, TASKS["sst2"]).key()
    assert load_classifier(path, TASKS["sst2"]).key() == first
    save(tmp_path, bert(seed=1))
    assert load_classifier(path, TASKS["sst2"]).key() != first
    assert load_classifier(path, TASKS["sst2"], max_length=9).key() != load_classifier(path, TASKS["sst2"]).key()


def test_answers_that_are_not_finite_are_refused():
    model = bert()
    model.classifier.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="gives logits that are not finite for 5 of 5 rows"):
        predict(classifier(model), texts(5))


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="gives tokens up to 98, and the model knows 50"):
        load_classifier(save(tmp_path, bert(vocab_size=50)), TASKS["sst2"])


def test_broken_checkpoints_are_refused_in_one_sentence(tmp_path):
    path = save(tmp_path / "cut", bert())
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be loaded as a sequence classifier"):
        load_classifier(path, TASKS["sst2"])
    path = save(tmp_path / "shape", bert())
    config = tmp_path / "shape" / "config.json"
    config.write_text(config.read_text().replace('"hidden_size": 32', '"hidden_size": 16'))
    with pytest.raises(ValueError, match="cannot be loaded as a sequence classifier"):
        load_classifier(path, TASKS["sst2"])
    with pytest.raises(ValueError, match="cannot be loaded as a sequence classifier"):
        load_classifier(save(tmp_path / "device", bert()), TASKS["sst2"], device="nowhere")


def test_positions_of_roberta_begin_behind_its_padding():
    config = RobertaConfig(**{**TINY, "max_position_embeddings": 66}, pad_token_id=1)
    model = RobertaForSequenceClassification(config)
    words = tokenizer()
    words.model_max_length = int(1e30)
    assert longest_input(model, words) == 64
    model(torch.full((1, 64), 7))  # and one more would not do
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, 65), 7))
    config.max_position_embeddings = -1  # XLNet says so where there is no limit
    assert longest_input(SimpleNamespace(config=config, named_modules=list), words) == 512


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")  # within PEFT
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("kind", [bert, imbert])
def test_adapters_answer_as_they_were_trained(kind, dora, tmp_path):
    peft = pytest.importorskip("peft")
    base = save(tmp_path / "base", kind())
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], use_dora=dora)
    trained = peft.get_peft_model(AutoModelForSequenceClassification.from_pretrained(base), config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    folder = str(tmp_path / "adapter")
    trained.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    classifier = load_classifier(folder, TASKS["sst2"])
    batch = classifier.collate(classifier.encode([("a fine film",)]))
    with torch.no_grad():
        torch.testing.assert_close(classifier.logits(batch), trained(**batch).logits, rtol=0, atol=0)


def test_fingerprints_are_of_contents(tmp_path):
    path = save(tmp_path, bert())
    first = fingerprint(path)
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "README.md").write_text("")
    assert fingerprint(path) == first
    for name in ("vocab.txt", "modeling_other.py"):
        (tmp_path / name).write_text("x")
        assert fingerprint(path) != first
        (tmp_path / name).unlink()
    config = (tmp_path / "config.json").read_text()
    save(tmp_path, bert())
    assert ((tmp_path / "config.json").read_text() == config) == (fingerprint(path) == first)


def test_the_config_of_a_checkpoint_is_kept(tmp_path):
    path = save(tmp_path, imbert(im_iterations=1, im_layers=[-1]))
    assert load_classifier(path, TASKS["sst2"]).model.config.im_layers == imbert_config(im_layers=[-1]).im_layers
