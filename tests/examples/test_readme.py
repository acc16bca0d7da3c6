"""The README's code runs, its commands are what CI runs, and what the pages name exists and reads easily."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import classifiers
import pytest
import torch
from finetuning import WORDS


ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TESTS = (ROOT / "tests/README.md").read_text(encoding="utf-8")
EXAMPLES = (ROOT / "examples/README.md").read_text(encoding="utf-8")
PAGES = [
    *("README.md", ".github/CONTRIBUTING.md"),
    *(f"{folder}/README.md" for folder in ("imbert_hf", "model_cards", "model_cards/study", "examples", "tests")),
    "examples/study/README.md",
]
HUB_ID = "google-bert/bert-base-uncased"
# What the table "Works with" covers: tests/*/test_<name>.py.
ECOSYSTEM = (
    *("families", "pipelines", "trainer", "loading", "compile", "export", "faults", "properties", "row_agreement"),
    *(
        "edited_models",
        "own_classes",
        "transforms",
        "between_forward_and_backward",
        "gradients_of_families",
        "peft",
        "sentence_transformers",
        "metrics",
        "accelerate",
        "distributed",
        "push_to_hub",
        "checkpoints",
        "consistency",
    ),
)
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def in_bash(tmp_path, monkeypatch):
    """Runs lines of the README where examples/ is, with the programs of this environment and without the Hub."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, words in {"python": "", "imbert-eval": "-m imbert_hf.evaluation"}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (programs / name).chmod(0o755)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)

    def run(lines, model):
        done = subprocess.run(["bash", "-ec", lines.replace(HUB_ID, str(model))], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


def test_the_python_blocks_run_in_order(in_bash, bert):
    for name in ("onnxruntime", "onnxscript"):
        pytest.importorskip(name)
    namespace: dict = {}
    assert len(BLOCKS) == 4
    for block in BLOCKS:
        if "my-onnx" in block:
            (export,) = re.findall(r"(python examples/export\.py .*)", README)
            in_bash(export, bert)
        exec(compile(block.replace(HUB_ID, str(bert)), "README.md", "exec"), namespace)
    tokens = namespace["tokenizer"](["not a bad film"], return_tensors="pt")
    with torch.no_grad():
        expected = namespace["model"](**tokens).logits
    torch.testing.assert_close(torch.tensor(namespace["logits"]), expected, atol=1e-4, rtol=0)


def test_many_rows_are_scored_from_parquet(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    texts = [" ".join(classifiers.WORDS[i : i + 1 + i % 9]) for i in range(70)]
    model = classifiers.imbert(im_layers=[-1])
    with torch.no_grad():  # so that each label is predicted
        logits = model(**classifiers.tokenizer()(texts, padding=True, return_tensors="pt")).logits
        model.classifier.bias -= logits.median(dim=0).values
    classifiers.save("my-imbert", model)
    datasets.Dataset.from_dict({"id": range(70), "text": texts}).to_parquet("texts.parquet")
    (block,) = re.findall(r"^```python\n(.*?)^```", EXAMPLES, flags=re.DOTALL | re.MULTILINE)
    exec(compile(block, "examples/README.md", "exec"), namespace := {})
    scored = datasets.Dataset.from_parquet("scored.parquet", cache_dir=str(tmp_path / "cache"))
    assert (list(scored["id"]), list(scored["text"])) == (list(range(70)), texts)
    alone = [namespace["score"]({"text": [text]})["prediction"][0] for text in texts]
    assert list(scored["prediction"]) == alone
    assert set(alone) == {0, 1}


def test_from_a_csv_to_does_it_hold_up(in_bash, bert, tmp_path):
    """The block of two commands as it stands, on a small BERT in place of one of the Hub."""
    for name in ("accelerate", "datasets", "sklearn", "matplotlib"):
        pytest.importorskip(name)
    for name, rows in {"tickets": 24, "tickets-test": 12}.items():
        lines = [
            f'"{WORDS[i % 14]} {WORDS[3 * i % 14]},\n{WORDS[i % 5]}",{("billing", "sales")[i % 2]}' for i in range(rows)
        ]
        (tmp_path / f"{name}.csv").write_text("\n".join(["body,queue", *lines]))
    (block,) = [
        block for block in re.findall(r"^```bash\n(.*?)^```", README, re.DOTALL | re.MULTILINE) if "csv" in block
    ]
    assert len(block.splitlines()) <= 12
    printed = in_bash(block, bert)
    assert "12 of 12 rows of tickets-test" in printed
    found = json.loads((tmp_path / "check.json").read_text())
    assert [entry["model"] for entry in found["results"]] == ["bert", "im-bert"]
    assert (tmp_path / "check.png").stat().st_size > 1000


def test_set_up_is_two_one_line_commands():
    commands = [line for line in README.splitlines() if line.startswith("pip install -c tests/constraints.txt -e")]
    assert commands == [
        'pip install -c tests/constraints.txt -e ".[demo]" && python examples/quickstart.py',
        'pip install -c tests/constraints.txt -e ".[test]" && pytest',
    ]


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in re.findall(r"(?<![\w/.])(?:examples|tests|imbert_hf|model_cards)/[\w/.-]+\.\w+", text):
        assert (ROOT / name).exists(), name
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / page).parent / link).exists(), link
    anchors = {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in re.findall(r"^#+ (.*)", text, re.M)}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors


def sentences(text):
    """Of the prose alone: no code, tables, headings, pictures, or what the study renders."""
    for pattern in (r"<!-- study.*?/study -->", r"```.*?```", r"^(?:    |\||#|!\[).*$"):
        text = re.sub(pattern, "\n", text, flags=re.DOTALL | re.MULTILINE if "```" not in pattern else re.DOTALL)
    for paragraph in re.split(r"\n\s*\n|\n\s*[-*] ", text):
        yield from re.split(r"(?<=[.:?;]) ", " ".join(paragraph.split()))


@pytest.mark.parametrize("page", PAGES)
def test_pages_read_easily(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    too_long = [sentence for sentence in sentences(text) if len(sentence.split()) > 25]
    assert too_long == []
    assert page != "README.md" or len(text.splitlines()) <= 200


def file_of(name):
    (path,) = (ROOT / "tests").glob(f"*/test_{name}.py")
    return path


def works_with():
    """Rows of the table: what, what was run, result, test."""
    section = TESTS.split("\n## Works with\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    assert lines[0] == "| what | what was run | result | test |"
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_row_of_works_with_is_a_test_and_every_such_test_a_row():
    named = [row[3] for row in works_with()]
    assert set(named) == {str(file_of(name).relative_to(ROOT)) for name in ECOSYSTEM}
    for what, run, result, test in works_with():
        assert what, test
        assert run, test
        assert result, test
        assert re.search(r"^def test_", (ROOT / test).read_text(encoding="utf-8"), flags=re.MULTILINE), test


def test_what_works_with_names_is_run():
    """With both releases, nothing left out by a mark, and every library that a test skips without is installed."""
    lines = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    run = " ".join(line for line in lines if line.startswith(("core=", '"$bare/python" -m pytest')))
    folders = [ROOT / "tests" / name for name in re.findall(r"tests/(\w+)(?=[ )]|$)", run)]
    at_lowest = {path.stem for folder in folders for path in folder.iterdir()}
    assert at_lowest >= {f"test_{name}" for name in ECOSYSTEM}
    extras = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[project.optional-dependencies]")[1]
    for name in ECOSYSTEM:
        text = file_of(name).read_text(encoding="utf-8")
        assert not re.search(r"mark\.(skip|xfail|slow)\b", text), name
        for module in re.findall(r"importorskip\(\s*\"(\w+)", text):
            assert {"sklearn": "scikit-learn"}.get(module, module.replace("_", "-")) in extras, module


def test_versions_of_works_with_are_those_that_are_run():
    lines = (ROOT / "tests/constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    section = TESTS.split("\n## Works with\n")[1].split("\n## ")[0]
    lowest = re.search(r"^lowest=(\S+)$", (ROOT / ".ci/run").read_text(encoding="utf-8"), flags=re.MULTILINE)[1]
    assert f"transformers {lowest} and {pinned['transformers']} with torch {pinned['torch']}" in " ".join(
        section.split()
    )
    assert f"transformers>={lowest.removesuffix('.0')},<6" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for what, *_ in works_with():
        name, _, version = what.lower().partition(" ")
        if name in pinned and version:
            assert pinned[name].startswith(f"{version}."), what


def test_the_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    subprocess.run([sys.executable, ROOT / "examples/damping.py", "--output", tmp_path / "new.png"], check=True)
    new, kept = (path.read_bytes() for path in (tmp_path / "new.png", ROOT / "examples/damping.png"))
    assert new[:8] == kept[:8] == b"\x89PNG\r\n\x1a\n"
    assert new[16:24] == kept[16:24]  # width and height
