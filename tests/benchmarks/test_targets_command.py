"""The targets command: what a kept part depends on, a run that goes on where it was stopped, and wrong arguments."""

import json
from types import SimpleNamespace

import bench as bench_module
import costs
import pytest
import targets
import targets_command as command
import torch
from bench import record
from classifiers import imbert, save, tokenizer
from run import run
from targets import GROUPS, measure_targets

from imbert_hf.evaluation.cli import Parser
from imbert_hf.evaluation.cost import measures as cost_measures
from imbert_hf.evaluation.report import Journal


model = costs.model  # a fixture


# -- parts --


def test_a_part_is_known_by_all_that_it_depends_on(model, monkeypatch):
    for name in ("TRAINING", "TRAPEZOIDAL"):
        monkeypatch.setattr(targets, name, {"fixed_point": (1.10, (3,))})
    keys = []

    def keep(key, compute):
        keys.append(json.dumps(key, sort_keys=True))
        if key["measure"].endswith("peak"):
            return 1
        return cost_measures.ratio([1.0], [1.0])

    texts = ["w1 w2"]
    options = {"batch": 2, "length": 5, "repeats": 1, "keep": keep}
    measure_targets(model, tokenizer(), texts, only=["training", "theta"], **options)
    base = keys[:]
    assert len(set(base)) == 2 * 2 + 3  # the rows at theta 1/2 have the names of those at theta 1
    for change in ({"batch": 3}, {"length": 6}, {"repeats": 2}, {"seed": 1}):
        keys.clear()
        measure_targets(model, tokenizer(), texts, only=["training"], **options | change)
        assert not set(keys) & set(base)


def test_targets_are_of_theta_one_whatever_the_model_has(model, monkeypatch):
    before = dict(vars(model.config))
    seen = []

    def look(bench):
        config = bench.model.config
        seen.append((config.im_theta, config.im_layers, config.im_gradient_iterations))
        yield record("a", "b", 1.0, 1.0)

    monkeypatch.setattr(targets, "GROUPS", {"first": look, "second": look, "third": look})
    own = {"im_theta": 0.5, "im_layers": [1], "im_gradient_iterations": 7}
    try:
        for name, value in own.items():
            setattr(model.config, name, value)
        options = {"batch": 2, "length": 5, "only": ["third", "first"]}
        found = measure_targets(model, tokenizer(), ["w1"], **options)
        assert {name: getattr(model.config, name) for name in own} == own
    finally:
        vars(model.config).update(before)
    assert [r["group"] for r in found] == ["first", "third"]
    assert seen == [(1.0, "all", None)] * 2


# -- the command --


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    model = imbert(num_hidden_layers=1)
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.output.LayerNorm.weight.mul_(0.4)  # contracting: converged solves are short
    return save(tmp_path_factory.mktemp("model"), model)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text"
    path.write_text("w1 w2 w3\nw4\n")
    return str(path)


@pytest.fixture
def tiny(monkeypatch):
    """Few settings of each target."""
    for name, limits in {
        "INFERENCE": {"fixed_point": (1.05, (1,))},
        "SENTENCE": {"anderson": (1.15, (1,))},
        "TRAINING": {"anderson": (1.10, (2,))},
        "MEMORY": {"fixed_point": (1.15, (2, 5))},
        "TORCHDEQ": {"fixed_point": (3,)},
    }.items():
        monkeypatch.setattr(targets, name, limits)
    monkeypatch.setitem(targets.LITERAL, "most", 2)
    monkeypatch.setattr(cost_measures, "gc", SimpleNamespace(collect=lambda: None))  # slow beside so little work
    monkeypatch.setattr(targets, "SOLVERS", ("anderson",))
    monkeypatch.setitem(targets.GRADIENT, "grid", (8,))
    monkeypatch.setitem(targets.ADJOINT, "most", 12)


def test_the_command_goes_on_where_it_was_stopped(checkpoint, text, tmp_path, tiny, monkeypatch, capsys):
    output = tmp_path / "targets.json"
    arguments = f"targets --model {checkpoint} --data {text} --batch 2 --length 6 --repeats 1 --device cpu --quiet"
    arguments = [*arguments.split(), "--output", str(output)]
    peak, interleave, timed, measured = bench_module.peak_bytes, bench_module.interleave, [], []

    def stop(row, batch):
        measured.append((row.name, row.fields.get("im_theta")))
        if len(measured) == 3:
            raise KeyboardInterrupt
        return peak(row, batch)

    monkeypatch.setattr(bench_module, "peak_bytes", stop)
    with pytest.raises(SystemExit, match="interrupted; finished parts are kept"):
        run(arguments)
    assert not output.exists()
    monkeypatch.setattr(
        bench_module, "interleave", lambda actions, *a, **k: timed.append(1) or interleave(actions, *a, **k)
    )
    run(arguments)
    data = json.loads(output.read_text())
    assert measured[2] == measured[3]  # the part that was stopped is the first to be measured again
    assert len(set(measured[3:])) == len(measured[3:])
    rows = data["targets"]
    assert list(dict.fromkeys(row["group"] for row in rows)) == list(GROUPS)
    later = list(GROUPS)[list(GROUPS).index("memory") :]
    # Each in two calls, the first to warm up.
    assert len(timed) == 2 * len([row for row in rows if row["quartiles"] and row["group"] in later]) > 0
    assert len([row for row in rows if row["group"] == "gradient" and row["measured"] is not None]) == 4
    assert all(row["measured"] is not None for row in rows if row["group"] in ("residual", "adjoint"))
    assert {row["verdict"] for row in rows} <= {"met", "missed", "not measured", "-"}
    assert all((row["measured"] is None) == (row["quartiles"] is None) for row in rows if "floor" in row["target"])
    assert (data["connection"]["im_theta"], data["connection"]["im_layers"]) == (1, "all")
    assert len(data["fingerprint"]) == 16
    assert data["settings"]["batch"] == 2
    shown = capsys.readouterr().out
    met, missed, absent = (sum(r["verdict"] == v for r in rows) for v in ("met", "missed", "not measured"))
    assert f"{met} of {met + missed} met, {absent} not measured." in shown
    assert "A busy machine misleads" in shown
    assert not output.with_name("targets.json.parts").exists()


def arguments(*more):
    parser = Parser()
    command.add_arguments(parser)
    return parser.parse_args(["--device", "cpu", "--quiet", *more])


def test_some_groups_alone(checkpoint, text):
    more = ["--model", checkpoint, "--data", text, "--batch", "2", "--length", "6", "--repeats", "1"]
    report = command.run(arguments(*more, "--only", "consistency"), Journal())
    assert {row["group"] for row in report.data["targets"]} == {"consistency"}


def test_the_table():
    rows = [
        record("time", "a", 1.0456, 1.05, quartiles=[1.0, 1.1]),
        record("memory", "b", 0.9, 1 / 3, strict=True, note="why"),
        record("memory", "c", 1.2, None),
        record("time", "d", None, 1.0),
    ]
    first, second, third, fourth = (tuple(command.columns(row).values()) for row in rows)
    assert first == ("time", "a", "1.046 [1.000, 1.100]", "<= 1.05", "met", "")
    assert second == ("memory", "b", "0.900", "< 0.333", "missed", "why")
    assert third == ("memory", "c", "1.200", None, "-", "")
    assert fourth == ("time", "d", None, "<= 1", "not measured", "")
    shown = command.text({"targets": rows}, "head")
    assert shown.startswith("head\n")
    assert "1 of 2 met, 1 not measured." in shown


def test_the_table_of_the_readme_has_ranges_over_the_iterations():
    found = [
        record("time", "anderson T 1", 1.0, 1.05),
        record("time", "anderson T 12", 1.0612, 1.05),
        record("time", "gradient_descent T 1 lr 0.02", 1.004, 1.3),
        record("time", "gradient_descent T 3 lr 0.02", 1.0, 1.3),
        record("spread", "fixed_point T 2 8 50, one_step", 0.07, 0.03),
        record("memory", "fixed_point T 3, implicit / fixed_point T 8, unrolled", 2.0, None),
        record("memory", "anderson", None, 1.0, note="not installed"),
        record("step", "anderson T 3, implicit", 0.9, 1.0),
        record("step", "anderson T 5, implicit", None, 1.0),
    ]
    first, second, third, fourth, fifth = command.rows({"targets": found})
    assert first == {
        "": "time",
        "bound": "1.05; 1.3",
        "fixed_point": "",
        "anderson": "1.00 to 1.06, missed at T 12",
        "gradient_descent": "1.00",
    }
    assert (second[""], second["bound"], second["fixed_point"]) == ("spread, one_step", "0.03", "0.07, missed")
    assert third[""] == "memory, fixed_point T 3, implicit / fixed_point T 8, unrolled"
    assert (third["bound"], third["another"]) == ("", "2.00")
    assert (fourth[""], fourth["anderson"]) == ("memory", "not measured")
    assert (fifth[""], fifth["anderson"]) == ("step, implicit", "0.90, not measured at T 5")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batch", "0"], "--batch must be an integer >= 1, got 0"),
        (["--length", "2"], "--length must be an integer >= 3, got 2"),
        (["--length", "65"], "--length must be at most 64 for .*, got 65"),
        (["--repeats", "0"], "--repeats must be an integer >= 1, got 0"),
        (["--data", "/nowhere/text"], "cannot be read"),
        (["--task", "sst3"], "sst3"),
    ],
)
def test_bad_input_is_one_sentence(checkpoint, text, more, message):
    data = [] if "--data" in more else ["--data", text]
    with pytest.raises(ValueError, match=message) as error:
        command.run(arguments("--model", checkpoint, *data, *more), Journal())
    assert len(str(error.value).splitlines()) == 1


def test_a_model_of_very_short_inputs_is_refused(tmp_path, text):
    path = save(tmp_path / "short", imbert(num_hidden_layers=1, max_position_embeddings=12))
    with pytest.raises(ValueError, match=r"--model must take 16 tokens or more, .* takes 12"):
        command.run(arguments("--model", path, "--data", text, "--length", "8"), Journal())


def test_an_unknown_group_is_refused(capsys):
    with pytest.raises(SystemExit):
        arguments("--model", "m", "--data", "d", "--only", "speed")
    assert "invalid choice: 'speed'" in capsys.readouterr().err
