"""What an attack or noise changed in a text, letter by letter, to be marked where it is shown."""

import re
from difflib import SequenceMatcher
from itertools import groupby


WORD = re.compile(r"\S+\s*|\s+")
LETTERS = 1_000_000  # product of lengths up to which letters are compared; beyond it whole words are marked


def changes(before: str, after: str) -> list[tuple[str, bool]]:
    """The pieces of `after` in order, each with whether it is changed; together they are `after`.

    Where letters are gone, the letter that stands there now is marked, or the last one.
    """
    old, new = WORD.findall(before), WORD.findall(after)  # the letters of whole texts would take too long
    marked, at = [False] * len(after), 0
    for kind, i, end, j, stop in SequenceMatcher(None, old, new).get_opcodes():
        a, b = "".join(old[i:end]), "".join(new[j:stop])
        spans = [(kind, 0, len(b))]
        if kind == "replace" and len(a) * len(b) <= LETTERS:
            letters = SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
            spans = [(kind, start, end) for kind, _, _, start, end in letters]
        for kind, start, end in spans:
            if kind != "equal" and after:
                first = min(at + start, len(after) - 1)
                marked[first : max(at + end, first + 1)] = [True] * max(at + end - first, 1)
        at += len(b)
    runs = groupby(range(len(after)), marked.__getitem__)
    return [("".join(after[i] for i in run), changed) for changed, run in runs]
