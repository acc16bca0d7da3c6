"""What an attack may put in a word's place: edits of its letters, or words that a masked language model predicts."""

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from transformers import AutoModelForMaskedLM

from imbert_hf.evaluation.data.loading import fingerprint, load_pretrained
from imbert_hf.evaluation.processes import share
from imbert_hf.evaluation.report import at_least


Text = tuple[str, ...]  # the fields of one row


@dataclass(frozen=True)
class Word:
    """A word of a row: texts[field][start:end] == text."""

    field: int
    start: int
    end: int
    text: str


class Candidates(Protocol):
    """A source of replacements. Its repr tells all that they depend on, so that it may stand in a journal's key."""

    def propose(self, texts: Text, words: Sequence[Word]) -> list[list[str]]:
        """Replacements for each of `words`, best first, from the unattacked texts of one row alone."""


@dataclass(frozen=True)
class CharacterEdits:
    """The edits of DeepWordBug (Gao et al. 2018): two neighbours swapped, a letter substituted, deleted or inserted.

    Attributes:
        seed: the places and letters depend on it, on the row's texts and on the word's place, and on nothing else.
        draws: candidates of each of the four kinds; the paper and TextAttack take one.
        inner: the first and the last letter stay, which keeps a word readable; TextAttack's recipe edits them too.
    """

    seed: int = 0
    draws: int = 1
    inner: bool = True

    def __post_init__(self) -> None:
        at_least(1, draws=self.draws)

    def propose(self, texts: Text, words: Sequence[Word]) -> list[list[str]]:
        return [self._edits(w.text, random.Random(repr((self.seed, texts, w.field, w.start)))) for w in words]

    def _edits(self, word: str, rng: random.Random) -> list[str]:
        first, last = (1, len(word) - 1) if self.inner else (0, len(word))
        swaps = [i for i in range(first, last - 1) if word[i] != word[i + 1]]
        found: list[str] = []
        for _ in range(self.draws):
            letter, other = rng.choices(string.ascii_lowercase, k=2)
            if swaps:
                i = rng.choice(swaps)
                found.append(word[:i] + word[i + 1] + word[i] + word[i + 2 :])
            if first < last:
                i = rng.randrange(first, last)
                found.append(word[:i] + letter + word[i + 1 :])
                i = rng.randrange(first, last)
                found.append(word[:i] + word[i + 1 :])
            if first <= last:
                i = rng.randint(first, last)
                found.append(word[:i] + other + word[i:])
        return found


@dataclass(frozen=True)
class MaskedLanguageModel:
    """Substitutions that a masked language model predicts, as in BERT-Attack (Li et al. 2020).

    As in the paper: the model reads the unattacked sentence with the word in place, and its top_k predictions there are
    the candidates, without pieces of words and without stop words.
    Unlike the paper: a word of several pieces is hidden behind one mask token, where the paper combines predictions for
    the pieces by perplexity; antonyms are not filtered out (the paper does it for sentiment, by a dictionary), so that
    a candidate may change the true label: read samples before believing a rate; words are ranked under the classifier's
    mask token, and all candidates of a word are asked in one batch and counted, as in TextAttack.

    Attributes:
        path: folder or Hub id.
        fingerprint: tells checkpoints apart.
        top_k: predictions a word.
        batch_size: sentences the model reads at once.
        model, tokenizer: in eval mode; a fast tokenizer with a mask token.
        word_start: what marks the tokens that begin a word ("Ġ", "▁"); "" where pieces are marked instead (##).
    """

    path: str
    fingerprint: str
    top_k: int
    batch_size: int = field(repr=False)
    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    word_start: str = field(repr=False)

    def propose(self, texts: Text, words: Sequence[Word]) -> list[list[str]]:
        batches = [words[i : i + self.batch_size] for i in range(0, len(words), self.batch_size)]
        return [of_word for batch in share(partial(self._predictions, texts), batches) for of_word in batch]

    @torch.inference_mode()
    def _predictions(self, texts: Text, words: Sequence[Word]) -> list[list[str]]:
        mask = self.tokenizer.mask_token
        sentences = [texts[w.field] for w in words]
        pieces = self._pieces(sentences, [(w.start, w.end) for w in words])
        for i, (word, places) in enumerate(zip(words, pieces, strict=True)):
            if len(places) != 1:
                sentences[i] = sentences[i][: word.start] + mask + sentences[i][word.end :]
        pieces = self._pieces(sentences, [(w.start, w.start + 1) for w in words])
        distinct = list(dict.fromkeys(sentences))  # one reading serves all words that stay in place
        logits = self.model(**self._encode(distinct, return_tensors="pt").to(self.model.device)).logits
        found: list[list[str]] = []
        for word, sentence, places in zip(words, sentences, pieces, strict=True):
            if not places:  # truncated away
                found.append([])
                continue
            best = logits[distinct.index(sentence), places[0]].topk(min(self.top_k, logits.shape[-1])).indices
            tokens = self.tokenizer.convert_ids_to_tokens(best.tolist())
            found.append([_like(word.text, token) for token in map(self._whole_word, tokens) if token])
        return found

    def _encode(self, sentences: list[str], **kwargs: Any) -> Any:
        longest = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)
        return self.tokenizer(sentences, truncation=True, max_length=longest, padding=True, **kwargs)

    def _pieces(self, sentences: list[str], spans: list[tuple[int, int]]) -> list[list[int]]:
        """Positions of the tokens that overlap each span of characters."""
        offsets = self._encode(sentences, return_offsets_mapping=True)["offset_mapping"]
        return [
            [i for i, (a, b) in enumerate(row) if a < end and start < b and a < b]
            for row, (start, end) in zip(offsets, spans, strict=True)
        ]

    def _whole_word(self, token: str) -> str | None:
        """The word that a token of the vocabulary is; None for a piece of one, a number or a sign."""
        word = token.removeprefix(self.word_start)
        return word if token.startswith(self.word_start) and word.isalpha() else None


def load_masked_language_model(
    path: str,
    *,
    top_k: int = 48,
    batch_size: int = 16,
    trust_remote_code: bool = False,
    device: str = "cpu",
) -> MaskedLanguageModel:
    """Loads any AutoModelForMaskedLM with a fast tokenizer, from a folder or the Hub.

    Args:
        path: folder or Hub id.
        top_k: predictions a word; 48 is the paper's.
        batch_size: sentences the model reads at once.
        trust_remote_code: run code that comes with the checkpoint.
        device: as torch names it.

    Raises:
        ValueError: it cannot be loaded, its checkpoint holds no language-model head, or its tokenizer has no mask token
            or does not tell where in the text a token stands.
    """
    at_least(1, top_k=top_k)
    what = "masked language model"
    model, tokenizer = load_pretrained(
        AutoModelForMaskedLM, path, what, dtype="float32", device=device, trust_remote_code=trust_remote_code
    )
    if not tokenizer.is_fast or tokenizer.mask_token is None:
        raise ValueError(f"masked language model {path} needs a fast tokenizer with a mask token.")
    second = tokenizer.tokenize("the the")[-1]
    return MaskedLanguageModel(
        path=path,
        fingerprint=fingerprint(path, model.config),
        top_k=top_k,
        batch_size=batch_size,
        model=model,
        tokenizer=tokenizer,
        word_start=second[0] if second[0] in "Ġ▁" else "",
    )


def _like(old: str, new: str) -> str:
    """`new` in the case of `old`."""
    if len(old) > 1 and old.isupper():
        return new.upper()
    return new[:1].upper() + new[1:] if old[0].isupper() else new.lower()
