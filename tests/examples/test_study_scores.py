"""What the tables of examples/study make of rows whose scores are known."""

import re
from importlib import import_module

import numpy
import pytest
import yaml


pytest.importorskip("sklearn")
pytest.importorskip("tabulate")


@pytest.fixture(scope="module")
def tables():
    return import_module("study.tables")


@pytest.fixture(scope="module")
def pictures():
    return import_module("study.pictures")


def kept_of(clean, problem=None, **more):
    stage = {"clean": clean, "noise": {"swap": clean}, "embedding": clean, "growth": 1.0, "residual": None}
    return {"stages": {"choice": {**stage, "majority": 0.5, **more}}, "problem": problem}


def test_pairs_count_where_both_texts_are_right(tables):
    """In both sets of mnli, one after the other."""
    two = {"mnli": {"attacked": "1101", "original": "10-1"}, "mnli-mm": {"attacked": "0", "original": "1"}}
    cell = tables.Cell("m", {0: {"stages": {"test": {"clean": "10", "advglue": two}}}, 1: None})
    # The sets have 4 rows and 1, of which 3 and 1 have an original: each set is half of the mean.
    assert cell.rows("test", "AdvGLUE")[0].tolist() == [0.625, 0.625, 0, 0.625, 0]
    assert cell.rows("test", "originals")[0] == pytest.approx([2 / 3, 0, 2 / 3, 2])
    assert cell.rows("test", "both")[0] == pytest.approx([2 / 3, 0, 2 / 3, 0])
    assert cell.rows("test", "query") == {}
    assert cell.rows("choice", "clean") == {}


def test_the_official_score_of_a_task(tables):
    two = {"mnli": {"attacked": "1101", "f1": None}, "mnli-mm": {"attacked": "01", "f1": None}}
    assert tables.official(two) == (0.75 + 0.5) / 2
    qqp = {"qqp": {"attacked": "1101", "f1": 0.25, "original": "1111", "majority": 0.5}}
    assert tables.official(qqp) == (0.75 + 0.25) / 2
    kept = {"stages": {"test": kept_of("1111")["stages"]["choice"] | {"advglue": qqp}}, "problem": None}
    cells = tables.accuracies(tables.Cell("m", {0: kept}), "test")
    assert (cells["AdvGLUE"], cells["official"]) == ("75.0", "50.0")


def test_a_row_under_noise_scores_the_share_of_the_kinds(tables):
    cell = tables.Cell("m", {0: kept_of("1100", noise={"swap": "1100", "clause": "1010"})})
    assert cell.rows("choice", "noise")[0].tolist() == [1, 0.5, 0.5, 0]


def test_one_seed_resolves_nothing_and_several_may(tables):
    wrong, right = "0" * 100, "1" * 100
    for seeds in (1, 3):
        cells = [tables.Cell(n, {i: kept_of(c) for i in range(seeds)}) for n, c in (("a", wrong), ("b", right))]
        found = tables.differences(cells, "choice")["clean"]["b"]
        assert found == {"difference": 1.0, "ci95": [1.0, 1.0], "resolved": seeds > 1, "seeds": seeds}


def test_failures_are_counted_and_differences_are_over_common_seeds(tables):
    cells = [
        tables.Cell("a", {0: kept_of("1111"), 1: kept_of("0000")}),
        tables.Cell("b", {0: kept_of("1110"), 1: {"stages": {}, "problem": "diverged"}}),
    ]
    table = tables.part_table("title", "note", cells, "choice", "differences")
    assert "| 1 of 2, 1 failed | 75.0 " in tables.markdown(table.lines)
    assert table.apart["clean"]["b"]["difference"] == -0.25
    assert tables.difference_lines(table)[0]["clean"] == "-25.0 [-75.0, +0.0] (1)"


def test_a_picture_of_differences_against_the_cost_of_training(tables, pictures):
    """A dot a model whose cost is known, in every panel where it was measured, of the same colour in all."""

    def cell(model, clean, cost=None, **more):
        kept = kept_of(clean, **more)
        if cost is not None:
            kept["stages"]["cost"] = {what: {"ratio": cost} for what in ("inference", "training")}
        return tables.Cell(model, {0: kept})

    cells = [cell("a", "1100", 1.0), cell("b", "1110", 2.5), cell("c", "1111"), cell("d", "1000", 4.0)]
    table = tables.part_table("title", "note", cells, "choice", "cost")
    del table.apart["worst"]["b"]
    figure = pictures.picture(table)
    assert [ax.get_title() for ax in figure.axes] == ["clean", "noise", "worst", "embedding"]
    for ax in figure.axes:
        shown = {bars.get_label(): bars for bars in ax.containers}
        dots = {model: tuple(bars.lines[0].get_xydata()[0]) for model, bars in shown.items()}
        assert dots == ({} if ax.get_title() == "worst" else {"b": (2.5, 25.0)}) | {"d": (4.0, -25.0)}
        assert shown["d"].lines[0].get_color() == "C1"
        ends = shown["d"].lines[2][0].get_segments()[0][:, 1]
        assert ends == pytest.approx([100 * end for end in table.apart[ax.get_title()]["d"]["ci95"]])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["b", "d"]
    assert not tables.part_table("title", "note", cells[:1], "choice", "cost").drawn


def test_a_picture_shows_a_defence_by_colour_and_a_connection_by_mark(pictures):
    looks = pictures.looks(["last layer", "R3F", "R3F, last layer", "FreeLB", "FreeLB, last layer", "EX-BERT"])
    color, mark = ({model: look[name] for model, look in looks.items()} for name in ("color", "fmt"))
    assert color["R3F, last layer"] == color["R3F"]
    assert color["FreeLB, last layer"] == color["FreeLB"]
    assert len({color[m] for m in ("last layer", "R3F", "FreeLB", "EX-BERT")}) == 4
    assert mark["R3F, last layer"] == mark["FreeLB, last layer"] == mark["last layer"]
    assert mark["R3F"] == mark["FreeLB"] == mark["EX-BERT"] != mark["last layer"]
    many = pictures.looks([f"model {i}" for i in range(30)])
    assert len({(look["color"], look["fmt"]) for look in many.values()}) == 30
    many = [name for i in range(12) for name in (f"model {i}", f"model {i}, last layer", f"model {i}, all layers")]
    assert len({(look["color"], look["fmt"]) for look in pictures.looks(many).values()}) == 36
    assert pictures.looks([]) == {}


def test_a_picture_of_differences_leaves_out_what_has_none(tables, pictures):
    """A line a model that was compared, at the place of its name; a row of panels holds three."""
    kept = {"a": kept_of("1100"), "none": None, "b": kept_of("1110")}
    table = tables.part_table(
        "title", "note", [tables.Cell(model, {0: one}) for model, one in kept.items()], "choice", "differences"
    )
    figure = pictures.picture(table)
    assert [ax.get_title() for ax in figure.axes] == ["clean", "noise", "worst", "embedding"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["b"]
    ends = [[pytest.approx(100 * end), 0] for end in table.apart["clean"]["b"]["ci95"]]
    for ax in figure.axes:
        line, dot, _ = ax.get_lines()
        assert dot.get_xydata().tolist() == [[25.0, 0]]
        assert line.get_xydata().tolist() == ends
    assert [ax.get_subplotspec().rowspan.start for ax in figure.axes] == [0, 0, 0, 1]


def test_a_picture_of_layers_has_typos_dashed_in_the_panel_of_their_measure(tables, pictures):
    def made(by):
        return {"moved": [0.0, by], "first, clean": [1.0, 1.0 + by], "first, typos": [1.0, 2.0 + by]}

    kept = {seed: {"stages": {"layers": made(seed)}, "problem": None} for seed in (0, 1)}
    cells = [tables.Cell("a", kept), tables.Cell("none", {0: None}), tables.Cell("b", {0: kept[1]})]
    layers_table = import_module("study.layers").layers_table
    table = layers_table("title", "note", cells)
    assert [line.get("first, typos") for line in table.lines] == ["2.50 ± 0.71", None, "3.00"]
    figure = pictures.picture(table)
    assert [ax.get_title() for ax in figure.axes] == ["movement by typos", "stiffness, first token"]
    lines = {bars.get_label(): bars.lines[0] for bars in figure.axes[1].containers}
    shown = {name: (line.get_linestyle(), *line.get_ydata()) for name, line in lines.items()}
    assert shown == {
        "a": ("-", 1.0, 1.5),
        "b": ("-", 1.0, 2.0),
        "a, typos": ("--", 1.0, 2.5),
        "b, typos": ("--", 1.0, 3.0),
    }
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(shown)
    assert table.drawn
    assert not layers_table("title", "note", cells[1:2]).drawn


def kept_test(task, right):
    """A run of which so many of 20 validation rows are right, and fewer under noise, the attack, and on AdvGLUE."""
    clean, noise, embedding, attacked = ("1" * (right - less) + "0" * (20 - right + less) for less in (0, 2, 4, 6))
    stage = kept_of(clean, noise={"swap": noise}, embedding=embedding, majority=0.5)["stages"]["choice"]
    f1 = 0.9 if task == "qqp" else None
    sets = {task: {"attacked": attacked, "original": clean, "majority": 0.6, "f1": f1}}
    if task == "mnli":
        sets["mnli-mm"] = {"attacked": attacked * 3 + "1" * 20, "original": "1" * 80, "majority": 0.8, "f1": None}
    return {"stages": {"test": stage | {"advglue": sets}}, "problem": None}


RIGHT = {"sst2": 10, "qqp": 8, "mnli": 9, "qnli": 7, "rte": 6}  # of 20, by model a with seed 0


@pytest.fixture
def scored(tmp_path):
    """A plan with runs but those absent: b has two rows more right than a, each seed as many more as its number."""
    plan_of, kept = import_module("study.plan"), import_module("study.kept")
    part = {"seeds": [0, 1, 2, 3], "models": ["a", "b", "d"], "stages": ["test"]}
    parts = {"one": part | {"tasks": ["sst2"]}, "rest": part | {"tasks": ["qqp", "mnli", "qnli", "rte"]}}
    models = {"a": {"x": 0}, "b": {"x": 1}, "d": {"x": 2}}
    plan = {"models": models, "parts": parts, "scores": {"all": {"parts": ["one", "rest"]}}}
    absent = {("a", 1), ("b", 2), ("b", 1, "rte"), *(("d", seed, "rte") for seed in range(4))}
    for run in plan_of.runs_of(plan):
        if not {(run.model, run.seed), (run.model, run.seed, run.task)} & absent:
            kept.write_run(tmp_path, run, kept_test(run.task, RIGHT[run.task] + 2 * (run.model == "b") + run.seed))
    return plan, tmp_path


def test_the_score_over_all_tasks(scored):
    """Tasks weigh the same whatever their seeds, and MNLI's sets the same; QQP's is the mean of accuracy and F1."""
    table = import_module("study.means").score_table(scored[0], "all", scored[1])
    cells, apart, head = table.cells, table.apart, list(table.lines[0])
    a, b, d, frequent = (list(line.values()) for line in table.lines)
    assert head == ["", "seeds", "clean", "noise", "worst", "embedding", "AdvGLUE", "official"]
    seeds_a, seeds_b, last_b = 5 / 3, 4 / 3, 3 / 2  # means of the seeds' numbers
    clean_a, clean_b = (8 + seeds_a) / 20, (8 + 2 + (4 * seeds_b + last_b) / 5) / 20
    mnli = ((3 + seeds_a) / 20 + (3 * (3 + seeds_a) + 20) / 80) / 2
    attacked = ((4 + 2 + 1 + 0 + 4 * seeds_a) / 20 + mnli) / 5
    official = attacked + (0.9 - (2 + seeds_a) / 20) / 2 / 5
    shares = [clean_a, clean_a - 0.1, clean_a - 0.1, clean_a - 0.2, attacked, official]
    assert a == ["a", "3, 3, 3, 3, 3", *(f"{100 * share:.1f}" for share in shares)]
    assert b[:6] == ["b", "3, 3, 3, 3, 2", *(f"{100 * (clean_b - less):.1f}" for less in (0, 0.1, 0.1, 0.2))]
    assert d == ["d", "4, 4, 4, 4, 0", *["not run"] * 6]
    assert frequent == ["most frequent label", "", "50.0", "", "", "", "62.0", ""]
    assert [cell.model for cell in cells] == ["a", "b", "d"]
    assert {measure: list(of) for measure, of in apart.items()} == {m: ["b"] for m in head[2:7]}
    for measure, expected in (("clean", 0.1), ("noise", 0.1), ("embedding", 0.1), ("AdvGLUE", (0.4 + 0.0875) / 5)):
        one = apart[measure]["b"]
        assert one["difference"] == pytest.approx(expected)
        assert one["seeds"] == 2  # 0 and 3 are of both
        assert one["ci95"][0] < expected < one["ci95"][1]


def test_one_seed_of_any_task_resolves_nothing(tables):
    found = tables.difference(numpy.ones((3, 5)), numpy.zeros((1, 4)))
    assert found == {"difference": 0.5, "ci95": [0.5, 0.5], "resolved": False, "seeds": 1}
    assert tables.difference(numpy.ones((3, 5)), numpy.zeros((2, 4)))["resolved"] is True


def test_no_score_without_the_first_model_or_another(scored):
    plan, folder = scored
    score_table = import_module("study.means").score_table
    for names, shown in ((["a", "b"], True), (["a", "d"], False), (["d", "a", "b"], False), (["b", "a"], True)):
        scores = {"some": {"parts": ["rest"], "models": names}}
        found = score_table(plan | {"scores": scores}, "some", folder)
        assert [cell.model for cell in found.cells] == names if shown else found is None


def test_a_score_over_models_of_its_own(scored):
    """A line a model names what it is compared with; the numbers are those of a score of these two alone."""
    plan, folder = scored
    score_table, tables, report = (import_module(f"study.{n}") for n in ("means", "tables", "report"))
    score_table, parts = score_table.score_table, {"parts": ["rest"]}
    scores = {
        "own": parts | {"over": {"b": "a", "a": "b", "d": "a"}},
        "one": parts | {"models": ["b", "a"]},
        "none": parts | {"over": {"d": "a"}},
        "base": parts | {"over": {"a": "b"}},
    }
    plan = plan | {"scores": scores}
    assert score_table(plan, "none", folder) is None  # d lacks a task
    own, one, base = (score_table(plan, name, folder) for name in ("own", "one", "base"))
    assert own.base == "the model that each line names"
    lines = {line[""]: line for line in tables.difference_lines(own)}
    assert {model: line["over"] for model, line in lines.items()} == {"b": "a", "a": "b", "d": "a"}
    (line,) = tables.difference_lines(one)
    assert lines["a"] == {"": "a", "over": "b"} | line
    assert lines["d"]["clean"] == "not run"
    assert own.apart["clean"]["b"]["difference"] == -own.apart["clean"]["a"]["difference"]
    assert (base.base, tables.difference_lines(base)) == ("b", [line])
    assert report.shown(base) == f"{base.caption}\n\nPoints over b:\n\n{tables.markdown([line])}\n"
    page = import_module("study.page")
    said = page.answers({"All": own})
    assert said.startswith("- **All**, over the model that each line names. `b` over `a`: better in clean")
    assert "seeds of a model" not in own.note
    assert "seeds of a model" in one.note
    assert page.summary_lines(own) == list(lines.values())


def test_the_report_shows_the_score(scored, tmp_path):
    """On its page too, with what is resolved in words; a part of several tasks has a table each below one heading."""
    plan, runs = scored
    summary = {"Five tasks": "all", "One": "one"}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan | {"about": "Which?", "summary": summary}, sort_keys=False))
    words = [str(tmp_path / "plan.yaml"), "--runs", str(runs), "--output", str(tmp_path / "report")]
    import_module("study.report").main(words)
    lines = (tmp_path / "report/tables.md").read_text().splitlines()
    assert [line for line in lines if line.startswith("#")] == ["# Every table", "## all", "## one", "## rest"]
    assert sum(line.startswith("Task ") for line in lines) == 5
    assert any(line.startswith("Means over sst2, qqp, mnli, qnli, rte, of weight one each") for line in lines)
    assert any(re.match(r"\| b +\| .*\+10\.0 \[.+, .+\] \(2\)", line) for line in lines)
    figures = {
        "all",
        *(f"{part}-validation" for part in ("one-sst2", "rest-qqp", "rest-mnli", "rest-qnli", "rest-rte")),
    }
    assert {path.stem for path in (tmp_path / "report/figures").iterdir()} == figures
    page = (tmp_path / "report/README.md").read_text()
    assert "Which?" in page
    answer = "- **Five tasks**, over a. `b`: better in clean, noise, worst, embedding and AdvGLUE.\n"
    assert answer in page
    table = page.split("## Five tasks")[1].split("\n\n")[2].splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == ["a", "b"]  # d lacks a task
    assert re.search(r"\| a +\| 3 of 4 +\| 58\.3 ± 7\.6 ", page.split("## One")[1])
    assert "45 of the 60 planned runs were made." in page


def test_a_page_of_one_seed_has_accuracies_and_says_why_no_differences(scored):
    """Found on a small run of paper.yaml: a heading without an answer, and a table of one empty line."""
    plan, runs = scored
    plan["parts"] = {name: part | {"seeds": [0]} for name, part in plan["parts"].items()}
    table = import_module("study.means").score_table(plan, "all", runs)
    page = import_module("study.page")
    assert page.answers({"All": table}) == "- **All**, over a. No differences: they take two seeds of every task."
    assert [line[""] for line in page.summary_lines(table)] == ["a", "b", "d", "most frequent label"]
    assert page.summary_lines(table)[1]["clean"] == f"{100 * (8 + 2) / 20:.1f}"


def test_a_report_without_differences_has_its_tables(tmp_path, scored):
    plan, runs = scored
    parts = {"one": plan["parts"]["one"] | {"models": ["a"]}}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({"models": plan["models"], "parts": parts}))
    report = tmp_path / "report"
    import_module("study.report").main([str(tmp_path / "plan.yaml"), "--runs", str(runs), "--output", str(report)])
    assert re.search(r"\| a +\| 3 of 4 +\|", (report / "README.md").read_text())
    assert list((report / "figures").iterdir()) == []
