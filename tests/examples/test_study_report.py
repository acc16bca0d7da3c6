"""The report of examples/study: what it writes of made-up runs, and that model_cards/study is what it writes."""

import re
import shutil
from importlib import import_module

import pytest


pytest.importorskip("sklearn")
pytest.importorskip("tabulate")

from matplotlib.figure import Figure
from studies import EXAMPLES


ROOT = EXAMPLES.parent
NUMBER = re.compile(r"\d+\.\d+")


@pytest.fixture(scope="module")
def report():
    return import_module("study.report")


def test_the_pages_in_the_tree_are_those_of_its_runs(report, tmp_path, monkeypatch):
    """Where another numpy rounds otherwise, but for one in a number's last digit."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(EXAMPLES / "study", "examples/study")
    shutil.copytree(ROOT / "model_cards/study/runs", "model_cards/study/runs")
    shutil.copy(ROOT / "model_cards/README.md", "model_cards")
    monkeypatch.setattr(report, "picture", lambda table: Figure(figsize=(1, 1)))  # their names alone are compared
    words = "examples/study/plan.yaml --runs model_cards/study/runs --output model_cards/study"
    report.main([*words.split(), "--readme", "model_cards/README.md"])
    for name in ("study/README.md", "study/tables.md", "README.md"):
        rendered, written = ((folder / "model_cards" / name).read_text() for folder in (tmp_path, ROOT))
        assert NUMBER.sub("#", rendered) == NUMBER.sub("#", written)
        for a, b in zip(NUMBER.findall(rendered), NUMBER.findall(written), strict=True):
            last = 10.0 ** -len(b.partition(".")[2])
            assert float(a) == pytest.approx(float(b), rel=0, abs=1.01 * last)
    figures = [{path.name for path in (folder / "model_cards/study/figures").iterdir()} for folder in (tmp_path, ROOT)]
    assert figures[0] == figures[1]
    assert len((ROOT / "model_cards/study/README.md").read_text().splitlines()) <= 100
