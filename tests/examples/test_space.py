"""The page of examples/space without a browser: readings, solves, attacks, counts, and hostile texts and links."""

import gc
import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from urllib.parse import parse_qsl

import numpy
import pytest
import torch


pytest.importorskip("sklearn")

import answers
import attacks
import render
from answers import Reading, probabilities
from spaces import FOLDER, REVIEWS, save_pair
from tiny import refused


TEXT = "The soup was cold and the waiter never came back, but the view made up for all of it."
OWN = Reading(3, 1.0, 1.0)
HOSTILE = "<script>alert(1)</script> & <img src=x onerror='alert(2)'> \"waiter\" <mark>never</mark>"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return [str(folder) for folder in save_pair(tmp_path_factory.mktemp("pair"))]


@pytest.fixture(scope="module")
def models(folders):
    return answers.load(*folders)


@pytest.fixture(scope="module")
def page():
    return pytest.importorskip("page", reason="gradio is not installed")


@pytest.fixture(scope="module")
def app():
    pytest.importorskip("gradio", reason="gradio is not installed")
    return pytest.importorskip("app")


def test_with_no_iterations_im_bert_answers_as_bert_does(models):
    assert models.reading == OWN
    bert, explicit = models.pair(Reading(0, 1.0, 1.0))
    _, implicit = models.pair(OWN)
    expected = probabilities(bert, [TEXT])
    numpy.testing.assert_array_equal(probabilities(explicit, [TEXT]), expected)
    assert numpy.abs(probabilities(implicit, [TEXT]) - expected).max() > 1e-3


def test_readings_at_the_same_time_do_not_see_each_other(models):
    readings = [Reading(k, theta, gamma) for k in (0, 1, 3) for theta in (0.5, 1.0) for gamma in (0.5, 1.0)]

    def read(reading):
        _, im_bert = models.pair(reading)
        return probabilities(im_bert, [TEXT])[0, 0], [s.residual for s in answers.solves(im_bert, TEXT)]

    alone = [read(reading) for reading in readings]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, readings)) == alone
    assert len({probability for probability, _ in alone}) > 6
    assert models.reading == OWN
    pair = [c.model for c in (models.im_bert, models.pair(OWN)[1])]
    for one, other in zip(*(model.parameters() for model in pair), strict=True):
        assert one is other  # the weights are in memory once


def test_a_curve_holds_the_residual_that_the_model_reports_after_as_many_iterations(models):
    for k in (0, 1, 4):
        _, im_bert = models.pair(Reading(k, 0.7, 0.8))
        with torch.no_grad():
            batch = im_bert.collate(im_bert.encode([(TEXT,)]))
            reported = torch.cat(im_bert.model(**batch, output_im_statistics=True).im_residuals)
        found = answers.solves(im_bert, TEXT)
        assert [solve.layer for solve in found] == [0, 2]
        assert [len(solve.residual) for solve in found] == [answers.CURVE + 1] * 2
        torch.testing.assert_close(torch.tensor([solve.residual[k] for solve in found]), reported, rtol=1e-3, atol=1e-6)
    assert answers.solves(models.pair(Reading(3, 0.0, 1.0))[1], TEXT) == []
    assert "nothing is solved" in render.solve([], Reading(3, 0.0, 1.0))


def test_the_picture_and_the_words_tell_what_is_read_where(models):
    solves = answers.solves(models.pair(OWN)[1], TEXT)
    html = render.solve([*solves, answers.Solve(7, [1.0, None, *[50.0] * 11])], Reading(1, 1.0, 1.0))
    assert html.count("<svg") == 1
    assert f"{solves[0].residual[1]:.2g} after 1 (read here)" in html
    assert "Layer 7, counted from 0: relative residual 1 after 0, not finite after 1 (read here), 50 after 12" in html
    assert "currentColor" in html
    assert render.INK not in html


@pytest.mark.parametrize("kind", [*attacks.NOISE, attacks.SEARCH])
def test_an_attack_is_repeated_by_its_seed_and_shows_both_models_answers(kind, models):
    found = attacks.attack(models, OWN, TEXT, kind, 0.4, 3)
    assert [one.by for one in found] == (["BERT", "IM-BERT"] if kind == attacks.SEARCH else [""])
    again = attacks.attack(models, OWN, TEXT, kind, 0.4, 3)
    assert [one.text for one in again] == [one.text for one in found]
    texts = {attacks.attack(models, OWN, TEXT, kind, 0.4, seed)[-1].text for seed in range(6)}
    assert len(texts) > 1
    for one in found:
        assert one.text != TEXT
        assert (one.queries > 5) == (kind == attacks.SEARCH)
        for text, answered in ((TEXT, one.before), (one.text, one.after)):
            expected = [probabilities(c, [text])[0] for c in models.pair(OWN)]
            numpy.testing.assert_allclose(answered, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "kind", "sentence"),
    [
        ("", "typos", "There is no text"),
        (" \n\t", attacks.SEARCH, "There is no text"),
        ("soup " * 10_000, "typos", "attack a shorter one"),
        ("soup " * (attacks.WORDS + 1), attacks.SEARCH, f"at most {attacks.WORDS} words, and this one has"),
    ],
)
def test_a_text_that_cannot_be_attacked_is_told_why(text, kind, sentence, models):
    with pytest.raises(ValueError, match=sentence):
        attacks.attack(models, OWN, text, kind, 0.4, 0)


def checked(bert, im_bert):
    """A row, given "right wrong" of each model."""
    before, after = ([said.split()[k] == "right" for said in (bert, im_bert)] for k in range(2))
    return attacks.Checked(answers.Row(("A <b> text.",), 1), "A <b> texxt.", tuple(before), tuple(after))


def test_both_counts_stay_whatever_is_filtered():
    found = [
        *[checked("right wrong", "right right")] * 3,
        *[checked("right right", "right wrong")] * 2,
        checked("right wrong", "right wrong"),
        checked("right wrong", "wrong right"),  # it does not hold what it did not have
        checked("wrong wrong", "right wrong"),
    ]
    for only, rows in {"all rows": 8, attacks.BERT_ALONE: 3, attacks.IM_BERT_ALONE: 2}.items():
        html = render.rows(found, only)
        assert f"{attacks.BERT_ALONE}: 3<" in html
        assert f"{attacks.IM_BERT_ALONE}: 2<" in html
        assert "BERT: 7 right before, 2 after." in html
        assert "IM-BERT: 7 right before, 4 after." in html
        assert html.count("A &lt;b&gt; tex<mark>x</mark>t.") == rows


def test_rows_are_checked_as_the_models_answer(models):
    rows = answers.reviews(REVIEWS)
    assert len(rows) == 20
    assert {row.label for row in rows} == {0, 1}
    found = attacks.check(models, OWN, rows, "deletions", 0.5, 1)
    for i, classifier in enumerate(models.pair(OWN)):
        for k, texts in enumerate(([row.texts[0] for row in rows], [one.changed for one in found])):
            right = probabilities(classifier, texts).argmax(axis=1) == [row.label for row in rows]
            assert [(one.before, one.after)[k][i] for one in found] == right.tolist()
    assert all(one.changed != row.texts[0] for one, row in zip(found, rows, strict=True))


class Tags(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.found, self.links = set(), []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.found.add(tag)
        self.links += [value for name, value in attributes if name == "href"]


def test_hostile_text_is_text(models, page):
    html = page.attacked(models, HOSTILE, "typos", 1.0, 5, (3, 1.0, 1.0))
    tags = Tags(html)
    assert tags.found <= {
        *("div", "blockquote", "p", "a", "mark", "span"),
        *("table", "caption", "thead", "tbody", "tr", "th", "td"),
    }
    (link,) = tags.links
    query = dict(parse_qsl(link.removeprefix("?")))
    asked = page.fields_of(query, OWN)
    assert asked == {"text": HOSTILE, "attack": "typos", "strength": 1.0, "seed": 5} | vars(OWN)
    repeated = page.attacked(
        models, asked["text"], asked["attack"], asked["strength"], asked["seed"], tuple(vars(OWN).values())
    )
    assert repeated == html


@pytest.mark.parametrize(
    "text", ["", "   ", "soup " * 10_000, "Суп был холодным 汤是冷的 🍲\u200d", "\ud800 soup", "\x00", HOSTILE]
)
def test_any_text_has_an_answer(text, models, page):
    bert, im_bert, notice, solve = page.answer(models, text, (3, 1.0, 1.0))
    assert 'class="shown"' in page.attacked(models, text, "typos", None, None, (None, None, None))
    if text.strip():
        assert sum(bert.values()) == pytest.approx(1)
        assert sum(im_bert.values()) == pytest.approx(1)
        assert "<svg" in solve
        assert ("its first 64 tokens" in notice) == (len(text) > 10_000)
    else:
        assert bert is im_bert is None
        assert "Type a text" in notice


@pytest.mark.parametrize("value", ["", "nan", "inf", "-1", "1e99", "<b>", "2**9"])
def test_a_damaged_link_opens_the_page(value, page):
    names = ["attack", "strength", "seed", "iterations", "theta", "step_size"]
    asked = page.fields_of(dict.fromkeys(names, value), OWN)
    assert asked["attack"] == "typos"
    assert 0 <= asked["strength"] <= 1
    assert 0 <= asked["seed"] < 2**32
    assert 0 <= asked["iterations"] <= answers.CURVE
    assert 0 <= asked["theta"] <= 1
    assert 0.1 <= asked["step_size"] <= 3
    assert page.fields_of({}, OWN)["text"] == page.TEXT


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # event loops of gradio's
def test_the_page_is_built(models, page):
    blocks = page.build(models, answers.reviews(REVIEWS), "The study")
    labels = {getattr(block, "label", None) for block in blocks.blocks.values()}
    assert {"BERT", "IM-BERT", "Attack", "Theta (0: explicit, 1: implicit)"} <= labels
    del blocks
    gc.collect()  # while they may be left open


def test_wrong_models_are_refused_in_one_sentence(folders, app, tmp_path, monkeypatch):
    for name in ("BERT", "IM_BERT"):
        monkeypatch.delenv(name, raising=False)
    bert, im_bert = folders
    assert "belong together" in refused(app.main, ["--bert", bert])
    assert "there is no such folder" in refused(app.main, ["--bert", str(tmp_path / "none"), "--im-bert", im_bert])
    monkeypatch.undo()
    assert "--im-bert an implicit one" in refused(app.main, ["--bert", bert, "--im-bert", bert])
    monkeypatch.setattr(app, "QUICKSTART", tmp_path / "quickstart.py")
    assert "lacks quickstart.py" in refused(app.main, [])


def test_the_quickstart_makes_models_that_are_not_there(app, tmp_path, monkeypatch):
    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda words: asked.append(words) or subprocess.CompletedProcess(words, 1))
    with pytest.raises(SystemExit, match="the quickstart failed"):
        app.train()
    words = [str(FOLDER.with_name("quickstart.py")), "--output_dir", str(app.TRAINED), "--overwrite"]
    assert asked[0][1:] == words
    for folder in (app.TRAINED, app.TRAINED / "bert"):  # of a run that was stopped between the two, the first is there
        folder.mkdir(parents=True)
        (folder / "config.json").touch()
        if folder == app.TRAINED:
            with pytest.raises(SystemExit, match="the quickstart failed"):
                app.train()
    app.train()
    assert len(asked) == 2


def test_the_study_is_linked_once_the_repository_has_an_address(app, tmp_path, monkeypatch):
    assert "](" not in app.study()
    monkeypatch.setattr(app, "HERE", tmp_path)
    (tmp_path / "requirements.txt").write_text("imbert-hf[eval] @ git+https://host/me/imbert_hf.git@v1.0\n")
    assert app.study() == "[The study](https://host/me/imbert_hf/blob/main/model_cards/study/README.md)"


def test_the_start_waits_for_no_pictures_and_no_scikit_learn(app):
    code = "import sys, app; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, capture_output=True, text=True, check=True).stdout
    assert not {"matplotlib", "sklearn"} & {*loaded.split()}


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("im_tolerance", 0.1, "im_tolerance 0.0"),
        ("im_vector_field", "layer", "im_vector_field 'increment'"),
        ("im_eval_iterations", 13, "at most 12 iterations"),
        ("im_step_size", 5.0, "im_step_size from 0.1 to 3.0"),
    ],
)
def test_a_model_that_the_page_cannot_show_is_refused(folders, tmp_path, field, value, wanted):
    bert, im_bert = folders
    shutil.copytree(im_bert, tmp_path / "other")
    config = json.loads((tmp_path / "other/config.json").read_text())
    (tmp_path / "other/config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(ValueError, match=re.escape(wanted)):
        answers.load(bert, str(tmp_path / "other"))


def test_the_space_and_its_requirements_name_one_gradio():
    version = re.search(r"^sdk_version: (\S+)$", (FOLDER / "README.md").read_text("utf-8"), re.M)[1]
    assert f"\ngradio=={version}\n" in (FOLDER / "requirements.txt").read_text("utf-8")
