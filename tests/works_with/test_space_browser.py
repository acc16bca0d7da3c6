"""The page of examples/space in a headless Chromium: wide and as narrow as a phone, by mouse and by keyboard.

Nothing may be asked of another host. BERT and IM_BERT in the environment name other models than the tiny ones, and with
IMBERT_SCREENSHOTS=FOLDER pictures are left there.
"""

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest


pytest.importorskip("playwright", reason="playwright is not installed")
pytest.importorskip("gradio", reason="gradio is not installed")

from launching import free_port
from playwright.sync_api import sync_playwright
from spaces import FOLDER, save_pair


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")
WIDTHS = (1280, 390)
PATIENCE = 120_000  # milliseconds, on a busy machine
BERT, IM_BERT = "#bert .container", "#im-bert .container"
ATTACKED, SOLVE, ROWS, NOTICE = (f"#{name} .shown" for name in ("attacked", "solve", "rows", "notice"))
HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'> a cold soup"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Of the page, started by the command that its README.md gives."""
    folder = tmp_path_factory.mktemp("space")
    words = [] if "BERT" in os.environ else [f"--{place.name}={place}" for place in save_pair(folder)]
    port = free_port()
    env = {**os.environ, "PYTHONPATH": str(FOLDER.parents[1]), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(FOLDER / "app.py"), "--port", str(port), *words]
    log = folder / "log.txt"
    with log.open("w") as file:
        server = subprocess.Popen(command, cwd=Path.cwd(), env=env, stdout=file, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}/"
    patience = time.monotonic() + PATIENCE / 1000
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            break
        except OSError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < patience
            time.sleep(0.2)
    yield url
    server.terminate()
    server.wait(timeout=60)
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def visit(browser, address):
    """Opens the page, as a user of one's own. Afterwards: no host but this one was asked, and no script failed."""
    asked, failed = [], []

    def visit(width=1280, query="", **options):
        page = browser.new_context(viewport={"width": width, "height": 1560}, **options).new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.goto(address + query)
        for part in (ATTACKED, ROWS, SOLVE):
            page.wait_for_selector(part)
        return page

    yield visit
    for context in browser.contexts:
        context.close()
    assert asked
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert failed == []


def changed(page, selector, act):
    """What the part says after `act`, which changes it."""
    before = page.inner_text(selector)
    act()
    is_new = "([at, text]) => ![text, undefined].includes(document.querySelector(at)?.innerText)"
    page.wait_for_function(is_new, arg=[selector, before])
    return page.inner_text(selector)


def type_text(page, text):
    page.fill("#text textarea", text)


def set_slider(page, name, value):
    field = page.locator(f"#{name} input[type=number]")
    field.fill(str(value))
    field.press("Enter")


def attack(page, kind):
    page.get_by_label(kind, exact=True).first.check()
    page.click("#go")


@pytest.mark.parametrize("width", WIDTHS)
def test_types_attacks_and_moves_the_sliders(width, visit):
    page = visit(width)
    answers = {
        changed(page, BERT, lambda text=text: type_text(page, text)) for text in ("A fine film.", "The soup was cold.")
    }
    assert len(answers) == 2
    assert all("positive" in said and "negative" in said and "%" in said for said in answers)
    bert, im_bert = page.locator("#bert").bounding_box(), page.locator("#im-bert").bounding_box()
    assert bert["y"] == im_bert["y"]  # beside each other
    assert bert["x"] + bert["width"] <= im_bert["x"]

    said = changed(page, ATTACKED, lambda: attack(page, "character search"))
    assert re.search(r"Search against BERT; \d+ queries to BERT", said)
    assert "Search against IM-BERT" in said
    assert page.locator("#attacked mark").count() > 0

    assert "after 3 (read here)" in page.inner_text(SOLVE)
    curve = page.inner_html("#solve svg")
    assert "after 0 (read here)" in changed(page, SOLVE, lambda: set_slider(page, "iterations", 0))
    if "BERT" not in os.environ:  # the tiny ones have the same weights
        assert page.inner_text(IM_BERT) == page.inner_text(BERT)
    changed(page, SOLVE, lambda: set_slider(page, "theta", 0.5))
    changed(page, IM_BERT, lambda: set_slider(page, "step_size", 2))
    assert page.inner_html("#solve svg") != curve
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", WIDTHS)
def test_the_counts_stay_when_rows_are_filtered(width, visit):
    page = visit(width)
    counts = page.inner_text("#rows ul")
    assert "20 of 20 rows" in page.inner_text("#rows table")
    for which in ("BERT falls, IM-BERT holds", "IM-BERT falls, BERT holds"):
        (expected,) = re.findall(rf"^{which}: (\d+)$", counts, re.M)
        said = changed(page, "#rows table", lambda which=which: page.get_by_label(which, exact=True).check())
        assert f"{expected} of 20 rows" in said
        assert page.inner_text("#rows ul") == counts
        assert page.locator("#rows tbody tr").count() == int(expected)
        changed(page, "#rows table", lambda: page.get_by_label("all rows").check())
    page.get_by_label("deleted letters").last.check()
    changed(page, "#rows table", lambda: page.click("#check"))


def test_hostile_text_is_shown_and_not_run(visit):
    page = visit()
    changed(page, SOLVE, lambda: type_text(page, HOSTILE))
    changed(page, ATTACKED, lambda: page.click("#go"))
    assert "<script>" in page.inner_text("#attacked blockquote")
    link = page.get_attribute("#attacked a", "href")
    repeated = visit(query=link)
    assert repeated.input_value("#text textarea") == HOSTILE
    for opened in (page, repeated):
        assert opened.evaluate("window.hacked") is None
        assert opened.locator("#attacked img, #attacked script").count() == 0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("", "Type a text"), ("soup " * 10_000, "tokens alone"), ("汤是冷的。 Суп холодный 🍲", "")],
)
def test_odd_texts_have_a_clear_answer(text, sentence, visit):
    page = visit()
    type_text(page, text)
    if sentence:
        assert sentence in page.inner_text(NOTICE)
    said = changed(page, ATTACKED, lambda: page.click("#go"))
    assert "%" in said or "attack" in said
    assert "Error" not in page.inner_text("body")


def test_a_link_repeats_an_attack(visit):
    page = visit()
    set_slider(page, "theta", 0.5)
    page.fill("#seed input", "7")
    said = changed(page, ATTACKED, lambda: attack(page, "swapped letters"))
    again = visit(query=page.get_attribute("#attacked a", "href"))
    assert again.inner_text(ATTACKED) == said
    assert again.input_value("#seed input") == "7"
    assert again.input_value("#theta input[type=number]") == "0.5"


def test_two_users_do_not_see_each_others_settings(visit):
    one, other = visit(), visit()
    text, before = other.input_value("#text textarea"), other.inner_text(IM_BERT)
    assert "after 0 (read here)" in changed(one, SOLVE, lambda: set_slider(one, "iterations", 0))
    assert "after 3 (read here)" in changed(other, SOLVE, lambda: type_text(other, "A fine film, if slow."))
    changed(other, SOLVE, lambda: type_text(other, text))
    assert other.inner_text(IM_BERT) == before


def test_the_keyboard_is_enough_and_every_field_has_a_name(visit):
    page = visit()
    page.focus("#text textarea")
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.closest('[id]:not([id^=\"range\"])')?.id"))
    assert reached >= {
        "attack",
        "strength",
        "seed",
        "go",
        "iterations",
        "theta",
        "step_size",
        "noise",
        "share",
        "draw",
        "only",
        "check",
    }
    page.focus("#go")
    page.fill("#seed input", "9")
    page.focus("#go")
    changed(page, ATTACKED, lambda: page.keyboard.press("Enter"))
    nameless = """() => [...document.querySelectorAll('input, textarea, button')].filter(field =>
        field.offsetParent && !(field.labels?.length || field.ariaLabel || field.title || field.innerText?.trim())
    ).map(field => field.outerHTML)"""
    assert page.evaluate(nameless) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(scheme, visit, tmp_path):
    folder = Path(os.environ.get("IMBERT_SCREENSHOTS", tmp_path))
    found = []
    for width in WIDTHS:
        page = visit(width, color_scheme=scheme)
        found.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        colour = page.evaluate("getComputedStyle(document.querySelector('#solve svg')).color")
        assert colour != found[-1]
        page.screenshot(path=folder / f"{scheme}-{width}.png", full_page=width < 1000)
    bright = [sum(map(int, re.findall(r"\d+", colour)[:3])) > 3 * 128 for colour in found]
    assert bright == [scheme == "light"] * 2
