"""The greedy attack on a bag of words, whose best attack is known by hand."""

import json
from dataclasses import dataclass
from types import SimpleNamespace

import numpy
import pytest
import torch
from scipy.special import expit
from transformers import BatchEncoding

from imbert_hf.evaluation.attacks.candidates import CharacterEdits
from imbert_hf.evaluation.attacks.query import QueryAttackResult, query_attack, summarise
from imbert_hf.evaluation.data.classifier import Classifier
from imbert_hf.evaluation.data.tasks import Row, find_task
from imbert_hf.evaluation.statistics import accuracy_interval


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
    assert (result.probability_before, result.probability_after) == pytest.approx((expit(2.5), expit(1)))
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
    p = pytest.approx(expit(2.5))
    assert result == QueryAttackResult(0, (TEXT,), 1, 1, p, p, queries=1, changed=0, words=8)
    assert result.adversarial is None
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


def test_summary_by_hand():
    results = [
        QueryAttackResult(1, ("x",), 1, 0, 0.9, 0.6, queries=10, changed=1, words=4),
        QueryAttackResult(0, ("y",), 0, 1, 0.9, 0.6, queries=20, changed=1, words=2),
        QueryAttackResult(1, ("z",), 1, 1, 0.9, 0.6, queries=60, changed=3, words=10),
        QueryAttackResult(1, ("z",), 0, 0, 0.9, 0.6, queries=1, changed=0, words=10),
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
