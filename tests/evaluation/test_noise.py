"""Noise: what it changes, how much, and that it is the same twice."""

import re

import numpy
import pytest
from tiny import bert_config, lively
from transformers import BertForSequenceClassification, BertTokenizer

from imbert_hf.evaluation.attacks.noise import CLAUSES, KINDS, NEIGHBOURS, noise, perturb
from imbert_hf.evaluation.data.classifier import Prediction, load_classifier, predict
from imbert_hf.evaluation.data.tasks import Row, find_task
from imbert_hf.evaluation.report import Journal


TYPING = KINDS[:-1]
# Twelve words of four letters or more, all different; punctuation, digits and short words between them.
TEXT = "Well-made  films, 1234 of the CAPTIVATING kind, don't bore; Stories about people\twho travel delight audiences!"
LONG = re.compile(r"[^\W\d_]{4,}")


def words(text):
    return re.split(r"([^\W\d_]+)", text)


def changed(text, other):
    """Indices of the pieces (words and what lies between them) that differ."""
    assert len(words(text)) == len(words(other))
    return {i for i, (a, b) in enumerate(zip(words(text), words(other), strict=True)) if a != b}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [TEXT, "", "a b c 1 2", "!!!", "film"])
def test_strength_zero_is_the_identity(kind, text):
    assert perturb(text, kind, 0, 0) == text


@pytest.mark.parametrize("kind", TYPING)
def test_strength_is_the_share_of_long_words_rounded_up(kind):
    n = len(LONG.findall(TEXT))
    assert n == 12
    for strength, count in ((0.01, 1), (0.25, 3), (0.3, 4), (0.5, 6), (1.0, 12), (1, 12)):
        noisy = perturb(TEXT, kind, strength, 5)
        found = changed(TEXT, noisy)
        assert len(found) == count
        assert all(LONG.fullmatch(words(TEXT)[i]) for i in found)


@pytest.mark.parametrize("kind", TYPING)
def test_a_stronger_one_contains_the_weaker(kind):
    for seed in range(5):
        weak, strong, full = (perturb(TEXT, kind, strength, seed) for strength in (0.2, 0.6, 1.0))
        for less, more in ((weak, strong), (strong, full)):
            assert all(words(less)[i] == words(more)[i] for i in changed(TEXT, less))


@pytest.mark.parametrize("kind", KINDS)
def test_seed_kind_and_text_decide(kind):
    once = perturb(TEXT, kind, 0.5, 1)
    perturb("another text", kind, 0.3, 7)  # no state is shared
    assert perturb(TEXT, kind, 0.5, 1) == once
    assert len({perturb(TEXT, kind, 0.5, seed) for seed in range(8)}) > 4


def test_known_values():
    # Fixed, so that numbers of another day or machine can be compared.
    text = "a charming and often affecting journey"
    expected = {
        "keyboard": "a charmkng and often avfecting journey",
        "swap": "a charming and otfen affecting joruney",
        "deletion": "a charming and oten affecting jourey",
        "case": "a CHARMING and often AFFECTING journey",
        "clause": "a charming and often affecting journey Ten is more than nine. Monday comes before Tuesday.",
    }
    assert {kind: perturb(text, kind, 0.2 if kind == "clause" else 0.4, 0) for kind in KINDS} == expected


def edits(kind, text=TEXT, seeds=20):
    """Pairs of a word and what became of it."""
    for seed in range(seeds):
        noisy = perturb(text, kind, 1.0, seed)
        for i in changed(text, noisy):
            yield words(text)[i], words(noisy)[i]


def test_swap_keeps_letters_and_ends():
    for old, new in edits("swap"):
        assert sorted(old) == sorted(new)
        assert (old[0], old[-1]) == (new[0], new[-1])
        i = next(i for i in range(len(old)) if old[i] != new[i])
        assert new == old[:i] + old[i + 1] + old[i] + old[i + 2 :]
    assert perturb("moot aaaa", "swap", 1.0, 0) == "moot aaaa"  # nothing differs inside


def test_keyboard_hits_a_neighbour_and_keeps_case_and_ends():
    assert NEIGHBOURS["q"] == "wa"
    assert set(NEIGHBOURS["g"]) == set("ftyhvb")
    assert all(a in NEIGHBOURS[b] for a, neighbours in NEIGHBOURS.items() for b in neighbours)
    assert len(NEIGHBOURS) == 26
    for old, new in edits("keyboard"):
        (i,) = (i for i in range(len(old)) if old[i] != new[i])
        assert 0 < i < len(old) - 1
        assert new[i].lower() in NEIGHBOURS[old[i].lower()]
        assert new[i].isupper() == old[i].isupper()
    cyrillic = "\u0444\u0438\u043b\u044c\u043c"
    assert perturb(f"{cyrillic} film", "keyboard", 1.0, 0).startswith(cyrillic)


def test_deletion_takes_one_inner_letter():
    for old, new in edits("deletion"):
        assert (old[0], old[-1]) == (new[0], new[-1])
        assert new in {old[:i] + old[i + 1 :] for i in range(1, len(old) - 1)}


def test_case():
    assert perturb("Great FILM, it is", "case", 1.0, 0) == "GREAT film, it is"


def test_clauses_surround_the_text_and_say_nothing_of_it():
    for strength, count in ((0.05, 1), (0.1, 1), (0.3, 3), (1.0, 10)):
        noisy = perturb(TEXT, "clause", strength, 2)
        assert TEXT in noisy
        around = noisy.replace(TEXT, "")
        found = [clause for clause in CLAUSES if clause in around]
        assert len(found) == count
        assert len(around) == sum(len(clause) + 1 for clause in found)
    weak, strong = perturb(TEXT, "clause", 0.2, 2), perturb(TEXT, "clause", 0.7, 2)
    assert weak in strong
    places = {perturb("x", "clause", 0.1, seed).startswith("x") for seed in range(10)}
    assert places == {True, False}
    # No word of a label, and no negation.
    loaded = re.compile(r"\b(positive|negative|not|no|never|duplicate|good|bad|great|best|worst)\b", re.I)
    assert not any(loaded.search(clause) for clause in CLAUSES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x", "typo", 0.1, 0), r"kind must be one of keyboard, swap, deletion, case, clause, got 'typo'\."),
        (("x", "swap", 1.5, 0), r"strength must be from 0 to 1, got 1\.5\."),
        (("x", "swap", -0.1, 0), r"strength must be from 0 to 1, got -0\.1\."),
        (("x", "clause", float("nan"), 0), r"strength must be from 0 to 1, got nan\."),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        perturb(*arguments)


@pytest.fixture
def classifier(tmp_path):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "great", "film", "poor", "story", "7", "?"]
    labels = {"id2label": {0: "entailment", 1: "not_entailment"}, "label2id": {"entailment": 0, "not_entailment": 1}}
    lively(BertForSequenceClassification(bert_config(vocab_size=len(vocabulary), **labels))).save_pretrained(tmp_path)
    words = {word: i for i, word in enumerate(vocabulary)}
    BertTokenizer(vocab=words, do_lower_case=True).save_pretrained(tmp_path)  # 5.0 does not by itself
    return load_classifier(str(tmp_path), find_task("qnli"))


def test_noise_rows(classifier):
    texts = [
        ("a great film?", "poor story 7"),
        ("great great story", "film"),
        ("a", "poor poor"),
        ("story?", "a film 7"),
    ]
    clean = predict(classifier, texts).labels
    rows = [Row(pair, int(label)) for pair, label in zip(texts, clean, strict=True)]
    found = noise(classifier, rows, kinds=("keyboard", "case"), strengths=(0, 0.5, 1.0), seed=4, batch_size=3)
    assert [(row["kind"], row["strength"]) for row in found] == [
        (kind, strength) for kind in ("keyboard", "case") for strength in (0, 0.5, 1.0)
    ]
    for row in found:
        assert (row["n"], row["clean_accuracy"]) == (4, 1.0)
        noisy = [tuple(perturb(text, row["kind"], row["strength"], 4) for text in pair) for pair in texts]
        right = predict(classifier, noisy).labels == clean
        assert row["right"] == right.tolist()
        expected = right.mean()
        assert row["accuracy"] == expected
        # The tokenizer lowers case, so that "case" changes nothing; nor does strength 0.
        if row["kind"] == "case" or row["strength"] == 0:
            assert expected == 1.0
    wrong = [Row(row.texts, 1 - row.label) for row in rows]
    assert noise(classifier, wrong, kinds=("case",), strengths=(0.5,))[0]["accuracy"] == 0.0
    with pytest.raises(ValueError, match="noise needs at least one row, got none"):
        noise(classifier, [])


def test_a_kept_part_is_not_computed_again(classifier, monkeypatch, tmp_path):
    rows, journal = [Row(("a great film", "story"), 0), Row(("poor film", "a"), 1)], tmp_path / "journal"

    def run(**kwargs):
        return noise(classifier, rows, kinds=("swap",), keep=Journal(journal).part, **kwargs)

    first = run(strengths=(0.5, 1.0))
    monkeypatch.setattr("imbert_hf.evaluation.attacks.noise.predict", lambda *_, **__: pytest.fail("computed again"))
    assert run(strengths=(0.5, 1.0)) == first
    assert run(strengths=(1.0,)) == first[1:]
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        run(strengths=(1.0,), seed=1)


def test_noise_asks_for_no_residuals(classifier, monkeypatch):
    asked = []

    def spy(model, texts, **kwargs):
        asked.append(kwargs["residuals"])
        return Prediction(numpy.zeros((len(texts), 2)))

    monkeypatch.setattr("imbert_hf.evaluation.attacks.noise.predict", spy)
    noise(classifier, [Row(("a", "b"), 0)], kinds=("swap",), strengths=(0.1,))
    assert asked == ["none", "none"]
