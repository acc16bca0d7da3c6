"""Which letters of a text are marked as changed."""

from itertools import pairwise

import pytest


pytest.importorskip("sklearn")

from hypothesis import given
from hypothesis import strategies as st

from imbert_hf.evaluation.attacks.changes import changes


def marked(before, after):
    return "".join(f"[{piece}]" if changed else piece for piece, changed in changes(before, after))


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        ("a good film", "a good film", "a good film"),
        ("a good film", "a goof film", "a goo[f] film"),
        ("a good film", "a god film", "a g[o]d film"),  # one is gone
        ("good", "goo", "go[o]"),
        ("a good film", "a goxod film", "a go[x]od film"),
        ("a good film", "a good film I paid.", "a good film[ I paid.]"),
        ("a b c", "a c", "a [c]"),
        ("", "new", "[new]"),
        ("gone", "", ""),
        ("a long day " * 100, "a long day " * 50 + "a lonq day " + "a long day " * 49, None),  # words that come often
    ],
)
def test_what_is_marked(before, after, shown):
    assert marked(before, after) == (shown or after.replace("q", "[q]"))


@given(st.text(), st.text())
def test_the_pieces_are_the_text_and_kinds_alternate(before, after):
    pieces = changes(before, after)
    assert "".join(piece for piece, _ in pieces) == after
    assert all(one[1] != other[1] for one, other in pairwise(pieces))
    assert any(changed for _, changed in pieces) == (before != after and after != "")


@pytest.mark.parametrize("words", [["word"] * 10_000, [str(i) for i in range(10_000)], ["x" * 60_000]])
def test_a_long_text_is_marked_without_comparing_all_letters(words):
    before = " ".join(words)
    assert "".join(piece for piece, changed in changes(before, before[:-1] + "q") if changed)[-1] == "q"
