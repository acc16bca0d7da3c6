"""The plan of examples/study: its runs, and what is wrong with a plan or an argument is said in one sentence."""

import re
import subprocess
import sys

import pytest


pytest.importorskip("accelerate")
pytest.importorskip("datasets")
pytest.importorskip("sklearn")

import studies
from studies import EXAMPLES
from tiny import refused


study, data, plan = studies.study, studies.data, studies.plan  # fixtures
REST = "tasks: [qqp, mnli, qnli, rte], seeds: [0]"
SCORED = f"""models: {{a: {{}}, b: {{}}}}
parts:
  one: {{tasks: [sst2], seeds: [0], models: [a, b], stages: [test]}}
  all: {{{REST}, models: [a, b], stages: [test]}}
  choice: {{{REST}, models: [a, b], stages: [choice]}}"""


def test_equal_settings_are_one_run_whatever_they_are_called(study, plan):
    every = list(study.plan.runs_of(study.plan.read_plan(plan)))
    assert len(every) == 11
    assert len({run.key for run in every}) == 9
    assert len({run.trained.key for run in every}) == 6
    assert len({run.taught_by.key for run in every}) == 5
    search, main = (
        next(r for r in every if (r.part, r.model, r.seed) == (p, "IM-BERT", 0)) for p in ("search", "main")
    )
    assert search.key == main.key
    assert (search.stages, main.stages) == (("train", "choice"), ("train", "test", "query", "layers", "cost"))
    assert [run.part for run in study.plan.runs_of(study.plan.read_plan(plan), ["main"])] == ["main"] * 3


def test_the_plan_in_the_tree_does_not_depend_on_the_default_of_im_layers(study):
    """Its runs are known by what it says, and the defaults come from them."""
    for name, model in study.plan.read_plan(EXAMPLES / "study/plan.yaml")["models"].items():
        plain = model.get("connection") in ("bert", "ex-bert")  # the latter in all layers, whatever the default
        of_implicit = model.get("of", model.get("teacher", "BERT")) != "BERT"
        assert plain or of_implicit or model.get("preset") == "paper" or "im_layers" in model, name


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("{", "cannot be read: "),
        ("[]", "must hold 'models', by name"),
        ("models: {a: {}}\nparts: {p: {tasks: [sst2]}}", "part 'p' must hold 'seeds', a list."),
        (
            "models: {a: {}}\nparts: {p: {tasks: [sst2], seeds: [0], models: [b], stages: []}}",
            "models of 'p' must be of a, got 'b'.",
        ),
        (
            "models: {a: {}}\nparts: {p: {tasks: [sst2], seeds: [0], models: [a], stages: [look]}}",
            "stages of 'p' must be of train, choice, test, advglue_test, query, layers, cost, got 'look'.",
        ),
        (
            "models: {a: {}}\nparts: {}\ncomon: {}",
            "may hold about, common, models, parts, scores, summary, got 'comon'.",
        ),
        ("models: {a: {}}\nparts: {}\nscores: [s]", "scores must hold scores by name, got ['s']."),
        (f"{SCORED}\nscores: {{one: {{parts: [one]}}}}", "score 'one' must have another name than every part."),
        (f"{SCORED}\nscores: {{s: [one]}}", "score 's' must hold parts, a list of one, all, choice, got None."),
        (f"{SCORED}\nscores: {{s: {{parts: [two]}}}}", "'s' must hold parts, a list of one, all, choice, got ['two']."),
        (
            f"{SCORED}\nscores: {{s: {{parts: [one], model: [a]}}}}",
            "'s' may hold parts, models, over, picture, got 'model'.",
        ),
        (
            f"{SCORED}\nscores: {{s: {{parts: [one], picture: dots}}}}",
            "picture of score 's' must be one of differences, cost, got 'dots'.",
        ),
        *(
            (
                f"{SCORED}\nscores: {{s: {{parts: [one], {more}}}}}",
                f"over of score 's' must hold models by model, {got}.",
            )
            for more, got in (
                ("over: [a]", "in place of models, got ['a']"),
                ("over: {}", "in place of models, got {}"),
                ("over: {b: [a]}", "in place of models, got {'b': ['a']}"),
                ("over: {1: a}", "in place of models, got {1: 'a'}"),
                ("over: {a: a}", "in place of models, got {'a': 'a'}"),
                ("over: {b: a}, models: [a]", "in place of models, got {'b': 'a'}"),
            )
        ),
        (
            f"{SCORED}\nscores: {{s: {{parts: [one], over: {{b: c}}}}}}",
            "'one' of score 's' must have the stage test, and the models c, b.",
        ),
        (f"{SCORED}\nscores: {{s: {{parts: [one, one]}}}}", "of score 's' must hold a task once, got sst2, sst2."),
        (
            f"{SCORED}\nscores: {{s: {{parts: [one, choice]}}}}",
            "'choice' of score 's' must have the stage test, and the models a, b.",
        ),
        (
            f"{SCORED}\nscores: {{s: {{parts: [one, all], models: [b, c]}}}}",
            "'one' of score 's' must have the stage test, and the models b, c.",
        ),
        (f"{SCORED}\nsummary: [one]", "summary must hold parts or scores by heading, got ['one']."),
        (f"{SCORED}\nsummary: {{Head: two}}", "'Head' of summary must be of one, all, choice, got 'two'."),
        ("models: {a: bert}\nparts: {}", "'a' must hold arguments by name, got 'bert'."),
        ("models: {a: {of: [b]}}\nparts: {}", "of of 'a' must be a model that has neither of nor teacher, got ['b']."),
        (
            "models: {a: {}}\nparts: {p: {tasks: [sst2], seeds: [0], models: [a], stages: [test], argument: {}}}",
            "part 'p' may hold tasks, seeds, models, stages, arguments, autocast, picture, got 'argument'.",
        ),
        (
            "models: {a: {}}\nparts: {p: {tasks: [sst2], seeds: [0], models: [a], stages: [test], autocast: float64}}",
            "autocast of 'p' must be of bfloat16, got 'float64'.",
        ),
        (
            "models: {a: {}}\nparts: {p: {tasks: [sst2], seeds: [0], models: [], stages: [test]}}",
            "models of 'p' must be of a, got none.",
        ),
        ("models: {a: {of: b}}\nparts: {}", "of of 'a' must be a model that has neither of nor teacher, got 'b'."),
        (
            "models: {a: {teacher: b}, b: {of: c}, c: {}}\nparts: {}",
            "teacher of 'a' must be a model that has neither of nor teacher, got 'b'.",
        ),
        (
            "models: {a: {of: b, learning_rate: 1}, b: {}}\nparts: {}",
            "beside of, 'a' may hold im_ fields alone, got 'learning_rate'.",
        ),
    ],
)
def test_a_wrong_plan_is_one_sentence(change, sentence, study, data, tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(change)
    said = refused(study.run.main, [str(path), "--data", str(data), "--runs", str(tmp_path / "runs")])
    assert said.startswith(f"study run: error: {path}")
    assert sentence in said
    assert not (tmp_path / "runs").exists()


def test_wrong_arguments(study, plan, data, tmp_path):
    for words, sentence in (
        (["--parts", "mian"], "--parts must be of search, main, derived, half, got 'mian'."),
        (["--models", "BART"], "--models must be of BERT, IM-BERT, R3F, .*, got 'BART'."),
        (["--workers", "0"], "--workers must be an integer >= 1, got 0."),
        (["--data", str(tmp_path)], f"--data {tmp_path} lacks sst2/train.jsonl."),
        (["--runs", str(plan)], f"--runs {plan} must be a folder."),
    ):
        said = refused(study.run.main, [str(plan), "--data", str(data), "--runs", str(tmp_path / "runs"), *words])
        assert re.fullmatch(f"study run: error: {sentence}", said)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("rows", ["'32'", "0", "1.5"])
def test_a_batch_that_is_none(rows, study, data, tmp_path):
    path = tmp_path / "plan.yaml"
    part = "{tasks: [sst2], seeds: [0], models: [a], stages: [test]}"
    path.write_text(f"models: {{a: {{per_device_train_batch_size: {rows}}}}}\nparts: {{p: {part}}}")
    said = refused(study.run.main, [str(path), "--data", str(data), "--runs", str(tmp_path / "runs")])
    assert said.endswith(f"per_device_train_batch_size of {path} must be an integer >= 1, got {rows}.")


def test_wrong_arguments_of_the_report(study, plan, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/sst2.jsonl").touch()
    unknown = tmp_path / "unknown.md"
    unknown.write_text("<!-- study: mian -->\n<!-- /study -->\n")
    for words, sentence in (
        (["--runs", str(tmp_path)], f"--runs {tmp_path} holds no <task>.jsonl."),
        (["--output", str(plan)], f"--output {plan} must be a folder."),
        (["--readme", str(tmp_path / "no.md")], f"--readme {tmp_path / 'no.md'} must be a file."),
        (["--readme", str(unknown)], f"{unknown} has a mark for 'mian', and the plan no such part with tables."),
    ):
        words = [str(plan), "--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "report"), *words]
        assert re.fullmatch(f"study report: error: {sentence}", refused(study.report.main, words))
        assert not (tmp_path / "report").exists()


def test_a_broken_line_stops_both_commands_before_they_change_anything(study, plan, data, tmp_path):
    (tmp_path / "sst2.jsonl").write_text("{\n")
    report = tmp_path / "report"
    for main, words in (
        (study.run.main, ["--data", str(data)]),
        (study.report.main, ["--output", str(report)]),
    ):
        said = refused(main, [str(plan), "--runs", str(tmp_path), *words])
        assert re.search(r"error: .*sst2\.jsonl: line 1 must be a JSON object with name, .*\.$", said)
    assert [path.name for path in tmp_path.iterdir()] == ["sst2.jsonl"]
    assert (tmp_path / "sst2.jsonl").read_text() == "{\n"


@pytest.mark.parametrize("words", [[], ["train"], ["run"]])
def test_a_command_and_its_arguments_are_required(words):
    said = subprocess.run([sys.executable, EXAMPLES / "study", *words], capture_output=True, text=True, check=False)
    assert said.returncode == 2
    assert "required" in said.stderr or "choose from" in said.stderr
    assert "Traceback" not in said.stderr
