"""Rows of AdvGLUE and GLUE from files, and what is said where a file is wrong."""

import json
from pathlib import Path

import pytest

from imbert_hf.evaluation.data.tasks import TASKS, find_task, read_rows


ADV = Path(__file__).parents[3] / "shared" / "data" / "adv_glue"
ROW = {"idx": 0, "question1": "a ?", "question2": "b ?", "label": 1}


def write(folder, content, name="data.json"):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_formats_agree(tmp_path):
    qqp = TASKS["qqp"]
    rows = [ROW, {**ROW, "label": 0}]
    of_task = read_rows(write(tmp_path, {"sst2": [], "qqp": rows}), qqp)
    as_list = read_rows(write(tmp_path, rows), qqp)
    lines = read_rows(write(tmp_path, "\n\n".join(map(json.dumps, rows)) + "\n"), qqp)
    one_line = read_rows(write(tmp_path, json.dumps(ROW)), qqp)
    assert of_task == as_list == lines
    assert one_line == lines[:1]
    assert [(row.texts, row.label) for row in lines] == [(("a ?", "b ?"), 1), (("a ?", "b ?"), 0)]


def test_only_the_attacked_text_of_a_pair_has_an_original(tmp_path):
    annotated = {**ROW, "original_question2": "c ?", "method": "T3", "data_construction": "sentence"}
    (odd,) = read_rows(write(tmp_path, [{**annotated, "method": [3], "data_construction": None}]), TASKS["qqp"])
    assert (odd.construction, odd.method) == (None, "[3]")
    (row,) = read_rows(write(tmp_path, [annotated]), TASKS["qqp"])
    assert row.original == ("a ?", "c ?")
    assert (row.construction, row.method) == ("sentence", "T3")


def test_line_separators_inside_a_text_end_no_line(tmp_path):
    path = write(
        tmp_path, json.dumps({**ROW, "question1": "a\u2028b\x85c"}, ensure_ascii=False) + "\n" + json.dumps(ROW)
    )
    assert len(read_rows(path, TASKS["qqp"])) == 2


def test_a_task_of_glue_in_any_table_by_index_or_name(tmp_path):
    rows = [ROW, {**ROW, "label": 0}]
    expected = read_rows(write(tmp_path, rows), TASKS["qqp"])
    assert [row.index for row in expected] == [0, 1]
    for label in ((1, 0), ("duplicate", "Not duplicate")):
        lines = [f"question1,question2,label\na ?,b ?,{label[0]}\na ?,b ?,{label[1]}\n"]
        assert read_rows(write(tmp_path, lines[0], "data.csv"), TASKS["qqp"]) == expected


def test_a_mark_of_windows_is_no_part_of_the_rows(tmp_path):
    (tmp_path / "data.json").write_text(json.dumps(ROW), encoding="utf-8-sig")
    assert len(read_rows(tmp_path / "data.json", TASKS["qqp"])) == 1


def test_one_text_of_a_pair_may_be_blank(tmp_path):
    (row,) = read_rows(write(tmp_path, [{**ROW, "question2": ""}]), TASKS["qqp"])
    assert row.texts == ("a ?", "")


def test_limit_is_a_seeded_sample_in_order(tmp_path):
    path = write(tmp_path, [{**ROW, "question1": str(i)} for i in range(50)])

    def chosen(**kwargs):
        return [int(row.texts[0]) for row in read_rows(path, TASKS["qqp"], **kwargs)]

    assert chosen(limit=10) == sorted(chosen(limit=10)) == chosen(limit=10, seed=0) != chosen(limit=10, seed=1)
    assert chosen(limit=80) == list(range(50))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"sst2": []}, "has no task 'qqp'; the tasks there: sst2"),
        ({"other": []}, "has no column 'question1'; the columns there: 'other'"),
        ({"qqp": 3}, "qqp: it must hold a list of rows, got int"),
        ({"qqp": [3]}, "data.json, qqp: row 1 must be a JSON object, got int"),
        ("", "holds no row"),
        ("  \n", "holds no row"),
        ({"qqp": []}, "holds no row of qqp"),
        ([], "holds no row"),
        ("3", "row 1 must be a JSON object, got int"),
        (json.dumps({"question1": "a", "question2": "b"}), "has no column 'label'"),
        ([3], "row 1 must be a JSON object, got int"),
        (json.dumps(ROW) + "\n{", "line 2 is not JSON: Expecting property name .*, column 2"),
        ("[\n{}\n{}]", "cannot be read: Expecting ',' delimiter: line 3 column 1"),
        ([{"question1": "a", "label": 1}], "has no column 'question2'; the columns there: 'question1', 'label'"),
        ([ROW, {"question1": "a", "label": 1}], "row 2 has no 'question2'"),
        ([{**ROW, "question1": " ", "question2": ""}], "row 1: question1, question2 must hold a text, got blanks"),
        ([{**ROW, "question1": 4}], "'question1' must be a text, got 4"),
        ([ROW, {"question1": "a", "question2": "b"}], "row 2: 'label' None is none of"),
        ([{**ROW, "label": 2}], r"'label' 2 is none of 0 \(not_duplicate\), 1 \(duplicate\)\."),
        ([{**ROW, "label": -1}], "'label' -1 is none of"),
        ([{**ROW, "label": True}], "'label' True is none of"),
        ([{**ROW, "original_question1": 7}], "row 1: .original_question1. must be a text, got 7"),
    ],
)
def test_wrong_files(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as error:
        read_rows(write(tmp_path, content), TASKS["qqp"])
    assert "data.json" in str(error.value)


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match=r"task must be one of sst2, .*, got 'cola'"):
        find_task("cola")
    with pytest.raises(ValueError, match=r"missing.json cannot be read: No such file"):
        read_rows(tmp_path / "missing.json", TASKS["qqp"])
    with pytest.raises(ValueError, match="must hold test or validation or dev or train as a table, got no table"):
        read_rows(tmp_path, TASKS["qqp"])
    (tmp_path / "latin.json").write_bytes(b'{"question1": "\xe9"}')
    with pytest.raises(ValueError, match=r"latin.json cannot be read: 'utf-8' codec"):
        read_rows(tmp_path / "latin.json", TASKS["qqp"])
    with pytest.raises(ValueError, match="max_rows must be an integer >= 1, got 0"):
        read_rows(write(tmp_path, [ROW]), TASKS["qqp"], limit=0)


@pytest.mark.skipif(not ADV.exists(), reason="no copy of AdvGLUE on this machine")
def test_advglue_as_published():
    annotated = {name: read_rows(ADV / "dev_ann.json", task) for name, task in TASKS.items()}
    plain = {name: read_rows(ADV / "dev.json", task) for name, task in TASKS.items()}
    sizes = {name: len(rows) for name, rows in plain.items()}
    assert sizes == {"sst2": 148, "qqp": 78, "mnli": 121, "mnli-mm": 162, "qnli": 148, "rte": 81}
    for name in TASKS:
        assert [(r.texts, r.label) for r in annotated[name]] == [(r.texts, r.label) for r in plain[name]]
    assert sum(r.original is not None for rows in annotated.values() for r in rows) == 656
