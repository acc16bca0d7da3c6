"""What an attack or noise changed in a text, letter by letter, to be marked where it is shown."""

import re
from difflib import SequenceMatcher
from itertools import groupby


WORD = re.compile(r"\S+\s*|\s+")
PAIRS = 100_000  # of words or letters that are compared; of more letters whole words are marked


def changes(before: str, after: str) -> list[tuple[str, bool]]:
    """The pieces of `after` in order, each with whether it is changed; together they are `after`.

    Where letters are gone, the letter that stands there now is marked, or the last one.
    """
    old, new = WORD.findall(before), WORD.findall(after)  # the letters of whole texts would take too long
    marked, at = [False] * len(after), 0
    many = len(old) * len(new) > PAIRS  # where frequent words are not compared
    for kind, i, end, j, stop in SequenceMatcher(None, old, new, autojunk=many).get_opcodes():
        a, b = "".join(old[i:end]), "".join(new[j:stop])
        spans = [(kind, 0, len(b))]
        if kind == "replace" and len(a) * len(b) <= PAIRS:
            letters = SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
            spans = [(of, left, right) for of, _, _, left, right in letters]
        for of, left, right in spans:
            if of != "equal" and after:
                first = min(at + left, len(after) - 1)
                marked[first : max(at + right, first + 1)] = [True] * max(at + right - first, 1)
        at += len(b)
    runs = groupby(range(len(after)), marked.__getitem__)
    return [("".join(after[i] for i in run), changed) for changed, run in runs]
