"""The growth command: what is measured at a point, exponents of known powers, the table and the picture."""

import json
from types import SimpleNamespace

import growth
import growth_command as command
import pytest
from run import run

from imbert_hf.evaluation.cost import measures


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("growth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, "gc", SimpleNamespace(collect=lambda: None))  # slow beside so little work
        tiny = {"vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
        patch.setattr(growth, "SHAPE", {**tiny, "intermediate_size": 16})
        patch.setattr(growth, "BASE", {"iterations": 2, "length": 4, "batch": 2, "implicit_layers": 2})
        for name, values in {
            "iterations": (1, 2),
            "length": (3, 6),
            "batch": (8, 64),
            "implicit_layers": (0, 1, 2),
        }.items():
            patch.setitem(growth.VARIED, name, values)
        files = ["--output", str(folder / "growth.json"), "--plot", str(folder / "growth.png")]
        run(["growth", "--repeats", "2", "--quiet", *files])
    return {**json.loads((folder / "growth.json").read_text()), "png": (folder / "growth.png").read_bytes()}


def test_every_point_is_measured_beside_bert(found):
    assert {name: [p["value"] for p in of["points"]] for name, of in found["growth"].items()} == {
        "iterations": [1, 2],
        "length": [3, 6],
        "batch": [8, 64],
        "implicit_layers": [0, 1, 2],
    }
    for of_name in found["growth"].values():
        for point in of_name["points"]:
            for phase in growth.PHASES:
                assert [len(point[phase]["time"]["seconds"][name]) for name in ("BERT", "IM-BERT")] == [2, 2]
                memory = point[phase]["memory"]
                assert memory["ratio"] == memory["IM-BERT"] / memory["BERT"]


def test_a_kept_part_is_known_by_the_commit_that_made_it(monkeypatch):
    known = {}
    monkeypatch.setattr(growth, "growth", lambda *args: known.update(args[3].__self__.common) or {})
    run(["growth", "--quiet"])
    assert known["machine"].keys() == {"cpu", "commit", "dirty"}


def test_floors_and_memory_without_an_implicit_layer(found):
    none, one, two = found["growth"]["implicit_layers"]["points"]
    for phase in growth.PHASES:
        assert none[phase]["memory"]["ratio"] == 1  # it is BERT
    # T 2: three evaluations in place of one; in training one more, tracked, and two products
    assert [point["inference"]["time"]["floor"] for point in (none, one, two)] == [1, 2, 3]
    assert [point["training"]["time"]["floor"] for point in (none, one, two)] == [1, (3 + 8) / 6, 16 / 6]


def test_training_needs_more_memory_the_more_rows(found):
    exponents = found["growth"]["batch"]["exponents"]
    assert 0.5 < exponents["training"]["memory"]["BERT"] <= 1.1
    assert found["growth"]["iterations"]["exponents"]["training"]["memory"]["BERT"] == 0  # it has none


def test_exponents_of_known_powers():
    def point(n):
        bytes_ = {"BERT": 5.0 * n, "IM-BERT": 2.0 * n**2}
        slow = [1, 30, 2]  # rounds: what slows one slows both points
        time = {"seconds": {name: [factor * value for factor in slow] for name, value in bytes_.items()}}
        return {"value": n, **{phase: {"time": time, "memory": bytes_} for phase in growth.PHASES}}

    found = growth.exponents([{"value": 1}, point(3), point(12)])
    assert found["training"]["memory"] == pytest.approx({"BERT": 1, "IM-BERT": 2})
    assert found["inference"]["time"] == pytest.approx({"BERT": 1, "IM-BERT": 2})


def test_the_table_and_the_picture(found):
    shown = command.rows(found)
    assert len(shown) == 4 * 2 * 2
    assert shown[0].keys() == {"grows", "of", "BERT", "IM-BERT", "ratio, first to last"}
    assert (shown[0]["grows"], shown[-1]["of"]) == ("iterations, 1 to 2", "memory, training step")
    assert found["png"][:4] == b"\x89PNG"


def test_bad_input_is_refused(capsys):
    with pytest.raises(SystemExit):
        run(["growth", "--repeats", "0"])
    assert "--repeats must be an integer >= 1, got 0" in capsys.readouterr().err
