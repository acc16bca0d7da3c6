"""What a word may be replaced by: edits of its characters, and words of a masked language model."""

import pytest
import torch
from classifiers import bert, save
from test_query_attack import attack, bag_of_words
from tiny import SPECIAL, bert_config, lively, tokenizer_of
from transformers import BertForMaskedLM

from imbert_hf.evaluation.attacks.candidates import CharacterEdits, Word, load_masked_language_model
from imbert_hf.evaluation.attacks.query import query_attack


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


WORDS = ["a", "film", "great", "fine", "##ly", "the", "good", "bad", "7", "!", "slow"]


def save_language_model(folder, bias=None):
    vocabulary = [*SPECIAL, *WORDS]
    config = bert_config(vocab_size=len(vocabulary), max_position_embeddings=12)
    model = lively(BertForMaskedLM(config)).eval()
    if bias is not None:  # the same prediction everywhere
        with torch.no_grad():
            model.cls.predictions.decoder.weight.zero_()
            model.cls.predictions.bias.copy_(torch.tensor([bias.get(word, -1.0) for word in vocabulary]))
    model.save_pretrained(folder)
    tokenizer_of(WORDS).save_pretrained(folder)
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


def test_bad_sources(tmp_path):
    with pytest.raises(ValueError, match=r"draws must be an integer >= 1, got 0\."):
        CharacterEdits(draws=0)
    with pytest.raises(ValueError, match=r"top_k must be an integer >= 1, got 0\."):
        load_masked_language_model("anything", top_k=0)
    with pytest.raises(ValueError, match=r"nowhere cannot be loaded as a masked language model"):
        load_masked_language_model(str(tmp_path / "nowhere"))
    folder = save(tmp_path, bert())
    with pytest.raises(ValueError, match="is no trained masked language model: its checkpoint lacks cls"):
        load_masked_language_model(folder)
    classifier = bag_of_words({})
    classifier.tokenizer.mask_token = None
    with pytest.raises(ValueError, match="tokenizer of bag has neither a mask token nor an unknown token"):
        query_attack(classifier, [], candidates=CharacterEdits())
