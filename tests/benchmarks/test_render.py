"""The tables of imbert_hf/README.md are those of the kept results; what cannot be rendered changes nothing."""

import json
import shutil

import pytest
import render_command as command
from run import run


RESULTS = command.ROOT / "tests/benchmarks/results"


def page():
    """The page, without its line breaks."""
    return " ".join((command.ROOT / "imbert_hf/README.md").read_text(encoding="utf-8").split())


def test_the_readme_has_the_tables_of_the_kept_results():
    readme = command.ROOT / "imbert_hf/README.md"
    text = readme.read_text(encoding="utf-8")
    assert command.rendered(readme, RESULTS) == text
    for name in {path.stem for path in RESULTS.glob("*.json")}:
        assert f"<!-- benchmark: {name} -->" in text
        made = json.loads((RESULTS / f"{name}.json").read_text())["machine"]
        assert f"commit {made['commit'][:10]}." in text  # of a clean checkout


def test_the_bound_that_the_readme_states_is_met():
    targets = json.loads((RESULTS / "serving.json").read_text())["targets"]
    assert {(row["bound"], row["verdict"]) for row in targets} == {(1.05, "met")}
    assert "In onnxruntime the medians are at most 1.05 times the floor." in page()


def test_the_exponents_differ_where_the_readme_says():
    found = json.loads((RESULTS / "growth.json").read_text())["growth"]
    differ = {
        (name, measure)
        for name, of_name in found.items()
        for of_phase in of_name["exponents"].values()
        for measure, of_model in of_phase.items()
        if abs(of_model["IM-BERT"] - of_model["BERT"]) > 0.1
    }
    assert differ == {("iterations", "time"), ("implicit_layers", "time")}
    assert "Exponents differ by more than 0.1 in the time over iterations and over implicit layers alone." in page()


def test_a_result_of_changed_files_says_so():
    made = {"cpu": "CPU", "commit": "0123456789abcdef", "dirty": True}
    settings = {"threads": 2, "versions": {"torch": "2.13", "transformers": "5.23", "numpy": "2"}}
    said = command.caption({"machine": made, "settings": settings})
    assert said == "CPU, 2 threads, torch 2.13, transformers 5.23, commit 0123456789 with changes."


def test_a_table_is_written_between_its_marks_alone(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- benchmark: growth -->\nold\n<!-- /benchmark -->\nafter\n")
    shutil.copy(RESULTS / "growth.json", tmp_path)
    run(["render", "--readme", str(page), "--results", str(tmp_path)])
    lines = page.read_text().splitlines()
    assert (lines[0], lines[1], lines[-2], lines[-1]) == (
        *("before", "<!-- benchmark: growth -->"),
        *("<!-- /benchmark -->", "after"),
    )
    rows = command.ROWS["growth"](json.loads((RESULTS / "growth.json").read_text()))
    assert len([line for line in lines if line.startswith("|")]) == len(rows) + 2
    assert "old" not in lines
    assert "growth" in capsys.readouterr().out
    new, kept = ((folder / "growth.png").read_bytes() for folder in (tmp_path, RESULTS))
    assert new[:24] == kept[:24]  # a PNG of the same width and height
    assert len(kept) < 100_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("speed", None, "has a mark for 'speed'; it must be one of targets, references, serving, growth, gpu"),
        ("growth", None, "growth.json cannot be read as a result of run.py growth"),
        ("growth", "{}", "growth.json cannot be read as a result of run.py growth"),
        ("serving", "no JSON", "serving.json cannot be read as a result of run.py serving"),
    ],
)
def test_what_cannot_be_rendered_changes_nothing(name, content, message, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(before := f"<!-- benchmark: {name} -->\nold\n<!-- /benchmark -->\n")
    if content is not None:
        (tmp_path / f"{name}.json").write_text(content)
    with pytest.raises(SystemExit):
        run(["render", "--readme", str(page), "--results", str(tmp_path)])
    assert message in capsys.readouterr().err
    assert page.read_text() == before
