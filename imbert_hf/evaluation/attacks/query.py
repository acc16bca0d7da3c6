"""Black-box attack by queries: words are replaced greedily until the label flips.

The greedy search that attacks of the field share (Gao et al. 2018, arXiv 1801.04354; Jin et al. 2020, arXiv 1907.11932;
Li et al. 2020, arXiv 2004.09984). It sees probabilities and no gradients, so an approximate backward pass of an
implicit model cannot make it look robust.
"""

import re
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from scipy.special import softmax
from tqdm.auto import tqdm

from imbert_hf.evaluation.attacks.candidates import Candidates, Text, Word
from imbert_hf.evaluation.data.classifier import Classifier, predict
from imbert_hf.evaluation.data.tasks import Row
from imbert_hf.evaluation.report import at_least
from imbert_hf.evaluation.statistics import accuracy_interval


# Letters and digits, with apostrophes (straight or curly) and hyphens inside: don't, well-made.
_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")


@dataclass(frozen=True)
class QueryAttackResult:
    """What the attack did to one row.

    Attributes:
        label: GLUE's integer.
        texts: the last of the attack; the row's own where it was wrong before.
        before, after: labels predicted for the row and for the last texts.
        probability_before, probability_after: of these labels.
        queries: distinct texts of this row that the classifier was asked about, the row itself included.
        changed: words replaced in the last texts.
        words: of the attacked fields, stop words included.
    """

    label: int
    texts: Text
    before: int
    after: int
    probability_before: float
    probability_after: float
    queries: int
    changed: int
    words: int

    @property
    def adversarial(self) -> Text | None:
        """The texts whose label flipped; None where none did or the row was wrong before."""
        return self.texts if self.before == self.label != self.after else None


def query_attack(
    classifier: Classifier,
    rows: Sequence[Row],
    *,
    candidates: Candidates,
    max_share: float = 0.2,
    batch_size: int = 32,
    stop_words: Collection[str] | None = None,
    fields: Sequence[str] | None = None,
    progress: bool = False,
) -> list[QueryAttackResult]:
    """Attacks each row that is classified rightly; one result a row.

    Words are ranked by how far the gold label's probability falls when the tokenizer's mask token (or unknown token)
    stands in their place. In that order all candidates of a word are asked at once: if the label flips under some, the
    one of them with the least gold probability ends the attack; else the one of least gold probability stays, if it
    lowers it. Numbers, single letters, stop words (so negations, n't too) and the words in the task's label names are
    left alone and never put in.

    Rows advance together, so that batches are full and of like lengths, but a row's result depends on no other row
    beyond rounding: a long run may be cut into chunks of rows.

    Args:
        classifier: of load_classifier.
        rows: of its task.
        candidates: CharacterEdits(...) or load_masked_language_model(...).
        max_share: of the words of the attacked fields that may be replaced; one always may.
        batch_size: texts.
        stop_words: in lower case; None: scikit-learn's English list.
        fields: of the task that are attacked; None: all.
        progress: show a bar over rows.
    """
    if not 0 < max_share <= 1:
        raise ValueError(f"max_share must be above 0 and at most 1, got {max_share}.")
    at_least(1, batch_size=batch_size)
    names = classifier.task.fields
    if fields is not None and (not fields or set(fields) - set(names)):
        raise ValueError(f"fields must be of {', '.join(names)}, got {', '.join(fields) or 'none'}.")
    if stop_words is None:
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # here: it takes a second

        stop_words = ENGLISH_STOP_WORDS
    mask = classifier.tokenizer.mask_token or classifier.tokenizer.unk_token
    if mask is None:
        raise ValueError(f"the tokenizer of {classifier.path} has neither a mask token nor an unknown token.")
    labels = {part for label in classifier.task.labels for part in label.split("_")}
    search = _Search(
        fields=tuple(i for i, name in enumerate(names) if fields is None or name in fields),
        untouched=frozenset(stop_words) | labels,
        candidates=candidates,
        mask=mask,
        max_share=max_share,
    )
    results: list[Any] = [None] * len(rows)
    attacks = {i: search.attack(row) for i, row in enumerate(rows)}
    asked = {i: next(attack) for i, attack in attacks.items()}
    bar = tqdm(total=len(rows), desc=f"{classifier.name}, query attack", leave=False, disable=not progress)
    with bar:
        while asked:
            texts = [text for of_row in asked.values() for text in of_row]
            logits = predict(classifier, texts, batch_size=batch_size, residuals="none").logits
            # In double precision a confident label's probability still tells two texts apart.
            answers = iter(softmax(logits.astype(numpy.float64), axis=1))
            pending, asked = asked, {}
            for i, of_row in pending.items():
                try:
                    asked[i] = attacks[i].send([next(answers) for _ in of_row])
                except StopIteration as stop:
                    results[i] = stop.value
                    bar.update()
    return results


# An attack on one row is a generator: it yields texts to ask about, and is sent their probabilities, (labels,) each.
_Ask = Generator[list[Text], list[numpy.ndarray], Any]


@dataclass(frozen=True)
class _Search:
    fields: tuple[int, ...]
    untouched: frozenset[str]
    candidates: Candidates
    mask: str
    max_share: float

    def attack(self, row: Row) -> _Ask:
        seen: dict[Text, numpy.ndarray] = {}

        def ask(texts: list[Text]) -> _Ask:
            answers = yield texts
            seen.update(zip(texts, answers, strict=True))

        def gold(text: Text) -> float:
            return seen[text][row.label]

        def flipped(text: Text) -> bool:
            return seen[text].argmax() != row.label

        words = [Word(f, *m.span(), m.group()) for f in self.fields for m in _WORD.finditer(row.texts[f])]
        budget = max(1, int(self.max_share * len(words) + 1e-9))
        yield from ask([row.texts])
        current, swaps = row.texts, dict[Word, str]()
        if not flipped(row.texts):
            targets = [word for word in words if self._allowed(word.text)]
            masked = {word: _replaced(row.texts, {word: self.mask}) for word in targets}
            yield from ask(list(masked.values()))
            targets.sort(key=lambda word: gold(masked[word]))
            proposals = self.candidates.propose(row.texts, targets)
            for word, proposed in zip(targets, proposals, strict=True):
                if len(swaps) == budget:
                    break
                tried = {
                    _replaced(row.texts, {**swaps, word: new}): new
                    for new in proposed
                    if new != word.text and self._allowed(new)
                }
                if not tried:
                    continue
                yield from ask(list(tried))
                best = min(tried, key=lambda text: (not flipped(text), gold(text)))
                if flipped(best) or gold(best) < gold(current):
                    current, swaps[word] = best, tried[best]
                if flipped(current):
                    break
        return QueryAttackResult(
            label=row.label,
            texts=current,
            before=int(seen[row.texts].argmax()),
            after=int(seen[current].argmax()),
            probability_before=float(seen[row.texts].max()),
            probability_after=float(seen[current].max()),
            queries=len(seen),
            changed=len(swaps),
            words=len(words),
        )

    def _allowed(self, word: str) -> bool:
        plain = word.lower().replace("\u2019", "'")
        letters = sum(character.isalpha() for character in plain)
        negation = plain.endswith("n't")  # holds a stop word, not
        return letters >= 2 and not negation and not {plain, plain.replace("'", "")} & self.untouched


def _replaced(texts: Text, swaps: dict[Word, str]) -> Text:
    """The texts with each word of `swaps` replaced; spans are those of `texts`."""
    new = list(texts)
    for word in sorted(swaps, key=lambda word: -word.start):  # from the end, so that other spans stay valid
        new[word.field] = new[word.field][: word.start] + swaps[word] + new[word.field][word.end :]
    return tuple(new)


def summarise(results: Sequence[QueryAttackResult]) -> dict[str, Any]:
    """The columns of the field.

    Returns:
        n; accuracy and accuracy_under_attack, with its interval, over all rows; over the rows that were right before,
        success_rate and mean_queries (as TextAttack counts them: the row itself, its masked texts and all candidates,
        rows that failed included); mean_changed_share over successful attacks, words replaced among words of the
        attacked fields. None where there is no row to average over. Shares are from 0 to 1.
    """
    attacked = [r for r in results if r.before == r.label]
    successes = [r for r in attacked if r.after != r.label]

    def mean(values: list[float]) -> float | None:
        return float(numpy.mean(values)) if values else None

    return {
        "n": len(results),
        "accuracy": mean([r.before == r.label for r in results]),
        "accuracy_under_attack_ci95": accuracy_interval([r.after == r.label and r.before == r.label for r in results]),
        "accuracy_under_attack": mean([r.after == r.label and r.before == r.label for r in results]),
        "success_rate": mean([r.after != r.label for r in attacked]),
        "mean_queries": mean([r.queries for r in attacked]),
        "mean_changed_share": mean([r.changed / r.words for r in successes]),
    }
