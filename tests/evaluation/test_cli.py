"""The command line: where results go, what is never lost, exit codes; and what it says without its extra."""

import importlib.util
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import imbert_hf
from imbert_hf import command_line
from imbert_hf.evaluation import cli
from imbert_hf.evaluation.report import Report, explained, git_state, table


class Answer:
    """A command that answers at once."""

    __doc__, HELP = "Answers.", "answers"

    def __init__(self, value=1):
        self.value, self.runs = value, 0

    def add_arguments(self, parser):
        parser.add_argument("--x", type=int, default=0)
        parser.add_argument("--several", action="several", type=int, default=[7])
        parser.add_argument("--export", type=Path)

    def run(self, args, journal):
        self.runs += 1
        if args.x == 13:
            raise KeyboardInterrupt
        if args.x == 14:
            journal.part({}, lambda: 1)
            raise KeyboardInterrupt
        return Report({"value": self.value}, "the table", self.figure, [{"text": "=a\n", "n": 1}])

    def figure(self):
        figure = Figure()
        figure.suptitle("\u6a21\u578b")  # which matplotlib's own font lacks: a warning would be an error here
        return figure


@pytest.fixture
def answer():
    return Answer()


@pytest.fixture
def run(answer):
    return lambda *words: cli.main(["answer", *map(str, words)], commands={"answer": answer}, prog="tool")


def refused(capsys, run, *words):
    with pytest.raises(SystemExit) as error:
        run(*words)
    shown = capsys.readouterr().err
    assert (error.value.code, shown.count("\n")) == (2, 1)
    return shown


def test_a_file_and_a_table(run, tmp_path, capsys):
    run("--output", tmp_path / "out.json")
    assert capsys.readouterr().out == "the table\n"
    data = json.loads((tmp_path / "out.json").read_text())
    assert (data["value"], data["settings"]["x"], data["settings"]["several"]) == (1, 0, [7])
    assert "overwrite" not in data["settings"]


def test_values_given_again_are_collected_once_in_place_of_the_default(run, capsys):
    run("--output", "-", "--several", "2", "--several", "3", "--several", "2")
    assert json.loads(capsys.readouterr().out)["settings"]["several"] == [2, 3]


def test_standard_output_holds_json_alone(run, capsys):
    run("--output", "-", "--x", "4")
    captured = capsys.readouterr()
    assert json.loads(captured.out)["settings"]["x"] == 4
    assert captured.err == ""


def test_a_result_of_other_arguments_is_kept(run, answer, tmp_path, capsys):
    out = tmp_path / "out.json"
    run("--output", out)
    run("--output", out)  # the same command may run again
    shown = refused(capsys, run, "--output", out, "--x", 2)
    assert "out.json is a result of another x, 0; --overwrite replaces it." in shown
    assert answer.runs == 2  # refused before the work
    run("--output", out, "--x", 2, "--overwrite")
    assert json.loads(out.read_text())["settings"]["x"] == 2
    out.write_text("my notes")
    assert "no result of this program" in refused(capsys, run, "--output", out)
    assert out.read_text() == "my notes"


def test_tables_and_pictures_are_replaced_as_results_are(run, answer, tmp_path, capsys):
    out, table, picture = (tmp_path / name for name in ("out.json", "out.csv", "out.png"))
    words = ["--output", out, "--export", table, "--plot", picture]
    run(*words)
    assert table.read_bytes() == b'"text","n"\n"=a\n",1\n'
    assert picture.read_bytes()[:4] == b"\x89PNG"
    run(*words)  # the same command may run again
    for option, path in (("--export", table), ("--plot", picture)):
        before = path.read_bytes()
        assert f"{option} {path} is there; --overwrite replaces it." in refused(capsys, run, option, path)
        other = tmp_path / f"other{path.suffix}"
        other.write_text("my notes")
        assert "is there; --overwrite" in refused(capsys, run, "--output", out, option, other)
        assert (path.read_bytes(), other.read_text()) == (before, "my notes")
        run(option, other, "--overwrite")
        assert other.read_bytes() == before
    assert answer.runs == 4  # refused before the work


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--output", "a", "--export", "a"], "--output and --export must name two files, got a twice"),
        (["--output", "-", "--export", "-"], "--output and --export must name two files, got - twice"),
        (["--export", "-", "--output", "/dev/stdout"], "--output and --export must name two files, got - twice"),
        (["--export", "b.png", "--plot", "./b.png"], "--export and --plot must name two files, got b.png twice"),
    ],
)
def test_files_that_are_one_are_refused(run, capsys, monkeypatch, tmp_path, words, names):
    monkeypatch.chdir(tmp_path)
    assert names in refused(capsys, run, *words)


def test_standard_output_holds_a_table_alone(run, capsys):
    run("--export", "-")
    assert capsys.readouterr().out == '"text","n"\n"=a\n",1\n'
    with pytest.raises(SystemExit, match=r"tool: /dev/full cannot be written: No space left on device"):
        run("--export", "/dev/full")
    assert capsys.readouterr().out == "the table\n"


def test_parts_lie_beside_what_a_link_names(run, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "there" / "real.json")
    with pytest.raises(SystemExit, match=r"finished parts are kept in .*/there/real.json.parts"):
        run("--output", tmp_path / "link.json", "--x", 14)
    assert (tmp_path / "there" / "real.json.parts").exists()
    run("--output", tmp_path / "link.json")
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["real.json"]


def test_a_link_stays_a_link(run, tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "there" / "real.json")
    run("--output", link)
    assert link.is_symlink()
    assert json.loads((tmp_path / "there" / "real.json").read_text())["value"] == 1
    run("--output", link)
    assert link.is_symlink()


def test_what_cannot_be_written_is_shown(run, tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"tool: .*cannot be written: No space left on device"):
        run("--output", "/dev/full")
    assert capsys.readouterr().out == "the table\n"
    (tmp_path / "odd.json").write_text('{"settings": 3}')
    assert "no result of this program" in refused(capsys, run, "--output", tmp_path / "odd.json")


def test_a_pipe_is_written_to_and_never_replaced(run, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE) as reader:
        run("--output", pipe)
        assert json.loads(reader.communicate(timeout=30)[0])["value"] == 1
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_device_is_never_replaced(run):
    before = os.stat("/dev/null")
    run("--output", "/dev/null")
    assert (os.stat("/dev/null").st_ino, stat.S_ISCHR(os.stat("/dev/null").st_mode)) == (before.st_ino, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "nowhere/out.json"], "--output nowhere/out.json: the folder nowhere does not exist"),
        (["--output", "."], "--output . is a folder; it must name a file"),
        (["--zzz", "1"], "unrecognized arguments: --zzz 1\n"),
        (["--outptu", "a.json"], "unrecognized arguments: --outptu a.json; did you mean --output?"),
        (["--version"], "unrecognized arguments: --version\n"),  # it stands before the command
        (["stray", "--outptu"], "unrecognized arguments: stray --outptu; did you mean --output?"),
        (["--x", "one"], "argument --x: invalid int value: 'one'"),
    ],
)
def test_wrong_arguments_are_one_sentence(run, capsys, words, message):
    assert message in refused(capsys, run, *words)


def test_an_interrupted_run_exits_with_1(run, tmp_path):
    with pytest.raises(SystemExit, match="tool: interrupted; finished parts are kept in"):
        run("--x", 13, "--output", tmp_path / "out.json")  # with a message the code is 1
    assert not (tmp_path / "out.json").exists()


def test_the_version(capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(["--version"])
    assert (error.value.code, capsys.readouterr().out) == (0, f"imbert-eval {imbert_hf.__version__}\n")


def test_a_reader_that_has_enough_ends_it_quietly(run, monkeypatch):
    for words in ([], ["--output", "-"]):
        end, start = os.pipe()
        os.close(end)
        with open(start, "w") as pipe, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", pipe)
            run(*words)


def test_words_are_explained_once_below_the_first_table_that_shows_them():
    tables = [table([{"pairs": 3, "x": None}]), table([{"pairs": 4, "attack": "none", "b": 1}]), "none of clean"]
    words = {"pairs": "two", "clean": "as it is", "air": "unseen", "none  ": "nothing"}
    a, of_a, b, of_b, c, of_c = explained(tables, words).split("\n\n")
    assert [a, b, c] == tables
    assert of_a == "pairs: two.\nn/a: not measured, or no row to measure it on."
    assert (of_b, of_c) == ("none: nothing.", "clean: as it is.")


@pytest.mark.parametrize("words", [["--help"], ["cost"]])
def test_without_the_extra_one_sentence_names_the_install_line(words, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("imbert_hf.evaluation")]:
        monkeypatch.delitem(sys.modules, name)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "scipy" else find_spec(name))
    monkeypatch.setattr(sys, "argv", ["imbert-eval", *words])
    sentence = "needs scipy: in a clone of the repository, pip install '.[eval]'."
    if words == ["cost"]:  # a message makes the exit code 1
        with pytest.raises(SystemExit, match=re.escape(sentence)):
            command_line.main()
    else:
        command_line.main()
        assert sentence in capsys.readouterr().out
    assert "\neval = [" in Path(__file__).parents[2].joinpath("pyproject.toml").read_text()


def test_no_option_of_a_script_may_be_abbreviated(capsys):
    """An --im_layer would be taken for --im_layers."""
    parser = command_line.Parser("tool")
    parser.add_argument("--output")
    with pytest.raises(SystemExit):
        parser.parse_args(["--outpu", "a.json"])
    assert capsys.readouterr().err == "tool: error: unrecognized arguments: --outpu a.json; did you mean --output?\n"


def test_git_state(monkeypatch, tmp_path):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    package = tmp_path / "checkout" / "imbert_hf" / "__init__.py"
    package.parent.mkdir(parents=True)
    package.write_text("")
    monkeypatch.setattr(imbert_hf, "__file__", str(package))
    assert git_state() is None

    def git(*words):
        user = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(package.parents[1]), *user, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    assert git_state() is None  # no commit yet
    git("add", ".")
    git("commit", "-m", "first")
    assert git_state() == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    package.write_text("changed = True\n")
    assert git_state()["dirty"] is True
