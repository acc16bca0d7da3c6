"""The greedy attack on a bag of words, whose best attack is known by hand, and the bridge to TextAttack."""

import importlib.util
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
from scipy.special import softmax
from tiny import bert_config, lively
from transformers import BatchEncoding, BertForMaskedLM, BertForSequenceClassification, BertTokenizer

from imbert_hf.evaluation.attacks.candidates import CharacterEdits, Word, load_masked_language_model
from imbert_hf.evaluation.attacks.query import QueryAttackResult, query_attack, summarise
from imbert_hf.evaluation.data.classifier import Classifier, load_classifier, predict
from imbert_hf.evaluation.data.tasks import Row, find_task
from imbert_hf.evaluation.statistics import accuracy_interval


BRIDGE = Path(__file__).parents[2] / "examples" / "textattack_bridge.py"


class Words:
    """A tokenizer that splits at spaces."""

    mask_token, unk_token = "[MASK]", None

    def __init__(self):
        self.ids, self.read = {"": 0}, []

    def __call__(self, *columns, **_):
        self.read += zip(*columns, strict=True)
        rows = [" ".join(texts).split() for texts in zip(*columns, strict=True)]
        return {"input_ids": [[self.ids.setdefault(word, len(self.ids)) for word in row] for row in rows]}

    def pad(self, columns, return_tensors):
        rows = [torch.tensor(row) for row in columns["input_ids"]]
        return BatchEncoding({"input_ids": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)})


class BagOfWords(torch.nn.Module):
    """Logits are the sum of the words' weights, a number for label 1 alone, or a tuple."""

    def __init__(self, tokenizer, weights, bias):
        super().__init__()
        self.tokenizer, self.weights, self.bias = tokenizer, weights, bias
        self.config, self.device, self.batches = SimpleNamespace(), torch.device("cpu"), []

    def forward(self, input_ids):
        self.batches.append(len(input_ids))
        found = [self.weights.get(word, 0.0) for word in self.tokenizer.ids]
        weights = torch.tensor([w if isinstance(w, tuple) else (0.0, w, 0.0) for w in found])
        logits = weights[input_ids].sum(dim=1) + torch.tensor([0.0, self.bias, 0.0])
        return SimpleNamespace(logits=logits)


def bag_of_words(weights, bias=0.0, task="sst2"):
    tokenizer = Words()
    model = BagOfWords(tokenizer, weights, bias)
    order = tuple(range(len(find_task(task).labels)))
    return Classifier("bag", "bag", model, tokenizer, find_task(task), order=order, max_length=64)


@dataclass(frozen=True)
class Listed:
    """Candidates from a list."""

    of: dict

    def propose(self, texts, words):
        assert all(texts[w.field][w.start : w.end] == w.text for w in words)
        return [self.of.get(w.text, []) for w in words]


# Score 2 + 1 - 0.5 = 2.5. Eight words; the, is and and are stop words.
TEXT = "The film is great, and truly moving today."
WEIGHTS = {"great,": 2.0, "moving": 1.0, "fine,": 1.0, "odd,": 0.5, "slow": -1.0, "dull": -0.6, "bright": 2.0}
LISTED = Listed({"great": ["fine", "odd"], "moving": ["bright", "dull", "slow"], "film": ["movie"]})


def attack(text=TEXT, label=1, weights=WEIGHTS, candidates=LISTED, bias=-0.5, **kwargs):
    classifier = bag_of_words(weights, bias)
    (result,) = query_attack(classifier, [Row((text,), label)], candidates=candidates, **kwargs)
    return result, [text for (text,) in classifier.tokenizer.read]


def test_best_attack_and_its_queries():
    # great -> odd leaves 0.5 + 1 - 0.5 = 1; then dull -0.6 and slow -1 both flip, slow the furthest.
    result, asked = attack(max_share=0.25)
    assert result.adversarial == ("The film is odd, and truly slow today.",)
    assert (result.label, result.before, result.after) == (1, 1, 0)
    assert (result.changed, result.words) == (2, 8)
    # The text, five masked words, two candidates for great, three for moving.
    assert result.queries == 1 + 5 + 2 + 3 == len(asked)
    assert asked[1:6] == [
        TEXT.replace(word, "[MASK]") for word in ("film", "great", "truly", "moving", "today")
    ]  # punctuation and spaces are kept
    assert asked[6:] == [
        "The film is fine, and truly moving today.",
        "The film is odd, and truly moving today.",
        "The film is odd, and truly bright today.",
        "The film is odd, and truly dull today.",
        "The film is odd, and truly slow today.",
    ]


def test_the_budget_is_a_fifth_of_the_words_and_at_least_one():
    # int(0.2 * 8) = 1 change: great, ranked first, which does not flip the label alone.
    result, asked = attack()
    assert (result.adversarial, result.before, result.after, result.changed) == (None, 1, 1, 1)
    assert result.queries == len(asked) == 1 + 5 + 2
    short, _ = attack("great, truly", max_share=0.2, weights={"great,": 1.0, "fine,": 0.2, "odd,": 0.3})
    assert (short.changed, short.words, short.adversarial) == (1, 2, ("fine, truly",))
    words = [a + b for a in "bcdfg" for b in "kl"]
    rows = [Row((" ".join(words[:n]),), 1) for n in (4, 5, 9, 10)]
    found = query_attack(
        bag_of_words(dict.fromkeys(words, 1.0)), rows, candidates=Listed({word: ["zz"] for word in words})
    )
    assert [r.changed for r in found] == [1, 1, 1, 2]


def test_a_candidate_that_raises_the_gold_score_is_not_kept():
    candidates = Listed({"great": ["superb"], "moving": ["slow", "bright"]})
    result, asked = attack(candidates=candidates, max_share=1.0, weights={**WEIGHTS, "superb,": 3.0, "today.": 9.0})
    assert (result.changed, result.after) == (1, 1)
    assert asked[-2:] == [TEXT.replace("moving", word) for word in ("slow", "bright")]


def test_a_flip_is_preferred_to_a_lower_gold_score():
    # Gold probabilities: 0.79 before, 0.36 with fine, which stays ahead, and 0.47 with dull, which loses to label 1.
    weights = {"great": (2.0, 0.0, 0.0), "fine": (0.0, -0.1, -0.1), "dull": (1.0, 1.1, -9.0)}
    edits = Listed({"great": ["fine", "dull"]})
    (result,) = query_attack(bag_of_words(weights, task="mnli"), [Row(("great", "xx"), 0)], candidates=edits)
    assert result.adversarial == ("dull", "xx")
    assert (result.before, result.after) == (0, 1)


def test_stop_words_labels_numbers_and_single_letters_are_untouched_and_never_offered():
    text = "The 1970s a positive not Isn't isn\u2019t NEGATIVE 12 x good"
    offered = ["the", "Positive", "negative", "cannot", "don't", "7", "x", "good", "ok", "WELL-made"]
    everything = Listed(dict.fromkeys([*text.split(), "isn\u2019t"], offered))
    result, asked = attack(text, weights={"good": 3.0, "ok": 3.0, "WELL-made": 3.0}, candidates=everything)
    start = text.removesuffix("good")
    assert asked == [text, start + "[MASK]", start + "ok", start + "WELL-made"]
    assert (result.words, result.changed) == (11, 0)


def test_own_stop_words():
    result, _ = attack(stop_words={"great"}, max_share=0.25)
    assert result.changed == 1
    assert result.queries == 1 + 7 + 3 + 1  # the, is and and are masked too; the word film is tried last


def test_ties_are_ranked_from_the_left():
    _, asked = attack(
        "bb cc dd",
        weights={"cc": 1.0, "bb": 1.0},
        bias=5.0,
        candidates=Listed({w: ["zz"] for w in ("bb", "cc", "dd")}),
        max_share=1,
    )
    assert asked[4:] == ["zz cc dd", "zz zz dd", "zz zz zz"]


def test_rows_that_are_wrong_already_are_not_attacked():
    result, asked = attack(label=0)
    assert asked == [TEXT]
    assert result == QueryAttackResult(label=0, before=1, after=1, adversarial=None, queries=1, changed=0, words=8)
    nothing, _ = attack("!!! ...", label=1, bias=1.0)
    assert (nothing.queries, nothing.changed, nothing.words) == (1, 0, 0)


def test_equal_texts_are_asked_and_counted_once():
    result, asked = attack("great, film", candidates=Listed({"great": ["fine", "fine", "great"]}))
    assert result.queries == len(asked) == 1 + 2 + 1


PAIR = Row(("Where is Rome found?", "Rome is found here."), 0)
PAIR_WEIGHTS = {"found?": -1.0, "here.": -1.0, "Rome": -1.0}


@pytest.mark.parametrize(
    ("fields", "masked", "words"),
    [(None, 4, 8), (("question",), 2, 4), (["sentence"], 2, 4)],
)
def test_fields_of_a_pair(fields, masked, words):
    classifier = bag_of_words(PAIR_WEIGHTS, task="qnli")
    edits = Listed({"Rome": ["Oslo"]})
    (result,) = query_attack(classifier, [PAIR], candidates=edits, fields=fields, stop_words={"where", "is", "here"})
    read = classifier.tokenizer.read
    assert (result.words, result.queries) == (words, 1 + masked + 1)
    assert sum("[MASK]" in question for question, _ in read) == (0 if fields == ["sentence"] else 2)
    assert sum("[MASK]" in sentence for _, sentence in read) == (0 if fields == ("question",) else 2)


def random_rows(n=12, seed=0):
    rng = numpy.random.default_rng(seed)
    vocabulary = ["".join(rng.choice(list("bcdefgh"), 6)) for _ in range(40)]
    weights = dict(zip(vocabulary, rng.normal(size=40), strict=True))
    rows = [Row((" ".join(rng.choice(vocabulary, rng.integers(5, 20))),), int(rng.integers(2))) for _ in range(n)]
    return rows, weights


def test_batch_mates_batch_size_and_order_do_not_matter():
    rows, weights = random_rows()
    edits = CharacterEdits(seed=3)

    def run(rows, **kwargs):
        classifier = bag_of_words(weights)
        return query_attack(classifier, rows, candidates=edits, max_share=0.5, **kwargs), classifier.model.batches

    together, batches = run(rows, batch_size=16)
    assert len({r.before == r.label for r in together}) == 2
    assert len({r.adversarial is None for r in together}) == 2
    assert together == run(rows, batch_size=16)[0]
    assert together == run(rows[::-1], batch_size=3)[0][::-1]
    assert together == [result for row in rows for result in run([row])[0]]
    # Full batches: rounds are as many as the longest search, not the sum over rows.
    assert max(batches) == 16
    assert sum(batches) == sum(r.queries for r in together)
    assert len(batches) < sum(r.queries for r in together) / 3
    assert query_attack(bag_of_words(weights), [], candidates=edits) == []


@pytest.mark.parametrize("inner", [True, False])
def test_character_edits(inner):
    text = "a great ab movie"
    words = [Word(0, 2, 7, "great"), Word(0, 8, 10, "ab"), Word(0, 11, 16, "movie")]
    found = CharacterEdits(seed=1, draws=50, inner=inner).propose((text,), words)
    for word, edits in zip(words, found, strict=True):
        w = word.text
        i = range(1, len(w) - 1) if inner else range(len(w))
        letters = "abcdefghijklmnopqrstuvwxyz"
        swaps = {w[:k] + w[k + 1] + w[k] + w[k + 2 :] for k in i if k + 1 in i}
        substitutions = {w[:k] + x + w[k + 1 :] for k in i for x in letters}
        deletions = {w[:k] + w[k + 1 :] for k in i}
        insertions = {
            w[:k] + x + w[k:] for k in range(1 if inner else 0, len(w) + (0 if inner else 1)) for x in letters
        }
        assert set(edits) <= swaps | substitutions | deletions | insertions
        assert swaps <= set(edits)
        assert deletions <= set(edits)
        assert bool(set(edits) & (substitutions - {w})) == (len(i) > 0)
        assert set(edits) & insertions
    assert len(CharacterEdits().propose((text,), words[:1])[0]) == 4


def test_character_edits_depend_on_seed_text_and_place_alone():
    words = [Word(0, 0, 5, "great"), Word(0, 6, 11, "movie"), Word(0, 12, 17, "great")]
    texts = ("great movie great",)
    first, second, third = CharacterEdits(seed=0).propose(texts, words)
    assert CharacterEdits(seed=0).propose(texts, words[::-1]) == [third, second, first]
    assert first != third
    assert CharacterEdits(seed=1).propose(texts, words) != [first, second, third]
    assert CharacterEdits(seed=0).propose(("great movie great!",), words) != [first, second, third]
    assert repr(CharacterEdits(seed=2)) == "CharacterEdits(seed=2, draws=1, inner=True)"


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIAL, "a", "film", "great", "fine", "##ly", "the", "good", "bad", "7", "!", "slow"]


def save_language_model(folder, bias=None):
    config = bert_config(vocab_size=len(VOCABULARY), max_position_embeddings=12)
    model = lively(BertForMaskedLM(config)).eval()
    if bias is not None:  # the same prediction everywhere
        with torch.no_grad():
            model.cls.predictions.decoder.weight.zero_()
            model.cls.predictions.bias.copy_(torch.tensor([bias.get(word, -1.0) for word in VOCABULARY]))
    model.save_pretrained(folder)
    BertTokenizer(vocab={word: i for i, word in enumerate(VOCABULARY)}).save_pretrained(folder)
    return str(folder)


def test_substitutions_are_whole_words_in_the_case_of_the_old(tmp_path):
    bias = {"##ly": 9.0, "fine": 8.0, "7": 7.0, "[SEP]": 6.0, "great": 5.0, "the": 4.0, "bad": 3.0, "slow": 2.0}
    source = load_masked_language_model(save_language_model(tmp_path, bias), top_k=7)
    text = "a great FILM Finely great"
    words = [Word(0, 2, 7, "great"), Word(0, 8, 12, "FILM"), Word(0, 13, 19, "Finely")]
    expected = ["fine", "great", "the", "bad"]  # slow is the eighth
    assert source.propose((text,), words) == [
        expected,
        [word.upper() for word in expected],
        [word.capitalize() for word in expected],
    ]
    # Stop words and the word itself are not asked about.
    result, asked = attack("good great film", candidates=source, weights={"great": 5.0}, max_share=0.4)
    assert asked[4:] == ["good fine film", "good bad film"]
    assert result.queries == 1 + 3 + 2
    # Beyond the model's 12 tokens nothing can be predicted.
    assert source.propose(("a " * 12 + "film",), [Word(0, 24, 28, "film")]) == [[]]
    assert "top_k=7" in repr(source)
    assert "Bert" not in repr(source)


def test_a_word_is_read_in_place_and_one_of_several_pieces_behind_the_mask(tmp_path):
    source = load_masked_language_model(save_language_model(tmp_path), top_k=9, batch_size=2)
    text = "a great finely slow film!"
    words = [Word(0, 2, 7, "great"), Word(0, 8, 14, "finely"), Word(0, 20, 24, "film")]

    def predictions(sentence, place):
        with torch.no_grad():
            logits = source.model(**source.tokenizer(sentence, return_tensors="pt")).logits
        best = source.tokenizer.convert_ids_to_tokens(logits[0, place].topk(9).indices.tolist())
        return [word for word in best if word.isalpha()]

    # [CLS] a great fine ##ly slow film !
    expected = [predictions(text, 2), predictions("a great [MASK] slow film!", 3), predictions(text, 6)]
    assert len({tuple(words) for words in expected}) == 3
    assert source.propose(("unread", text), [Word(1, w.start, w.end, w.text) for w in words]) == expected


def test_summary_by_hand():
    results = [
        QueryAttackResult(1, 1, 0, ("x",), queries=10, changed=1, words=4),
        QueryAttackResult(0, 0, 1, ("y",), queries=20, changed=1, words=2),
        QueryAttackResult(1, 1, 1, None, queries=60, changed=3, words=10),
        QueryAttackResult(1, 0, 0, None, queries=1, changed=0, words=10),
    ]
    assert summarise(results) == {
        "n": 4,
        "accuracy": 0.75,
        "accuracy_under_attack": 0.25,
        "accuracy_under_attack_ci95": accuracy_interval([True, False, False, False]),
        "success_rate": pytest.approx(2 / 3),
        "mean_queries": 30.0,
        "mean_changed_share": 0.375,
    }
    none = summarise(results[3:])
    assert none["accuracy"] == none["accuracy_under_attack"] == 0.0
    assert none["success_rate"] is none["mean_queries"] is none["mean_changed_share"] is None
    json.dumps(summarise(results), allow_nan=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_share": 0.0}, r"max_share must be above 0 and at most 1, got 0\.0\."),
        ({"max_share": 1.5}, r"max_share must be above 0 and at most 1, got 1\.5\."),
        ({"batch_size": 0}, r"batch_size must be an integer >= 1, got 0\."),
        ({"fields": ["premise"]}, r"fields must be of sentence, got premise\."),
        ({"fields": []}, r"fields must be of sentence, got none\."),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        attack(**arguments)


def test_bad_sources(tmp_path):
    with pytest.raises(ValueError, match=r"draws must be an integer >= 1, got 0\."):
        CharacterEdits(draws=0)
    with pytest.raises(ValueError, match=r"top_k must be an integer >= 1, got 0\."):
        load_masked_language_model("anything", top_k=0)
    with pytest.raises(ValueError, match=r"nowhere cannot be loaded as a masked language model"):
        load_masked_language_model(str(tmp_path / "nowhere"))
    folder = save_classifier(tmp_path)
    with pytest.raises(ValueError, match="is no trained masked language model: its checkpoint lacks cls"):
        load_masked_language_model(folder)
    classifier = bag_of_words({})
    classifier.tokenizer.mask_token = None
    with pytest.raises(ValueError, match="tokenizer of bag has neither a mask token nor an unknown token"):
        query_attack(classifier, [], candidates=CharacterEdits())


def save_classifier(folder):
    labels = {"id2label": {0: "positive", 1: "negative"}, "label2id": {"positive": 0, "negative": 1}}
    lively(BertForSequenceClassification(bert_config(vocab_size=len(VOCABULARY), **labels))).save_pretrained(folder)
    BertTokenizer(vocab={word: i for i, word in enumerate(VOCABULARY)}).save_pretrained(folder)
    return str(folder)


def load_bridge():
    specification = importlib.util.spec_from_file_location("bridge", BRIDGE)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_bridge_answers_over_a_pipe(tmp_path, monkeypatch):
    data = tmp_path / "rows.jsonl"
    data.write_text('{"sentence": "a great film", "label": 1}\n{"sentence": "slow \u2013 7!", "label": 0}\n', "utf-8")
    monkeypatch.setenv("IMBERT_PYTHON", sys.executable)
    monkeypatch.setenv("IMBERT_MODEL", save_classifier(tmp_path))
    monkeypatch.setenv("IMBERT_DATA", str(data))
    piped = load_bridge().model
    try:
        assert piped.labels == ["negative", "positive"]
        assert piped.fields == ["sentence"]
        assert piped.rows == [[["a great film"], 1], [["slow \u2013 7!"], 0]]
        texts = ["a great film", "slow\nfilm \u2013 \u00e9", "the"]
        classifier = load_classifier(str(tmp_path), find_task("sst2"))
        expected = softmax(predict(classifier, [(text,) for text in texts]).logits.astype(float), axis=1)
        for _ in range(2):
            numpy.testing.assert_allclose(piped(texts), expected, atol=1e-6)
        numpy.testing.assert_allclose(piped([("the",)]), expected[2:], atol=1e-6)
    finally:
        piped.close()
    assert piped.server.returncode == 0


def test_bridge_says_what_is_missing(monkeypatch):
    monkeypatch.delenv("IMBERT_PYTHON", raising=False)
    bridge = load_bridge()
    with pytest.raises(ValueError, match="the environment variable IMBERT_PYTHON is not set"):
        _ = bridge.model
    with pytest.raises(AttributeError):
        _ = bridge.nothing
    monkeypatch.setenv("IMBERT_PYTHON", shutil.which("false"))
    monkeypatch.setenv("IMBERT_MODEL", "nowhere")
    with pytest.raises(RuntimeError, match="the server of nowhere has ended; its message stands above"):
        _ = bridge.model
