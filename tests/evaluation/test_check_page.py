"""imbert-eval check --html: one page that needs nothing else, whatever the texts and names hold."""

import html
import re
from html.parser import HTMLParser

import pytest
from classifiers import bert, imbert, save

from imbert_hf.evaluation import cli
from imbert_hf.evaluation.check import measures
from imbert_hf.evaluation.check.page import SHOWN, group


LABELS = ("billing", "technical")
HOSTILE = "w1 <script>alert(1)</script> <img src=http://x.example/a.png> {{ 7 * 7 }} & \u4f60\u597d \u202e w2"
VOID = {"meta", "img", "br", "path", "use", "rect"}


class Page(HTMLParser):
    """The elements, and whether each that is opened is closed in turn."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.text, self.marked = [], [], "", []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert tag in VOID or self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if "mark" in self.open:
            self.marked.append(data)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("check")
    table, path = folder / "tickets.csv", folder / "check.html"
    lines = [f'"w{i} w{(7 * i) % 80} {HOSTILE}",{LABELS[i % 2]}' for i in range(12)]
    table.write_text("\n".join(["body,queue", *lines]) + "\n", encoding="utf-8")
    model = save(folder / "bert", bert(LABELS))
    words = ["--data", str(table), "--text-column", "body", "--label-column", "queue", "--device", "cpu", "--quiet"]
    implicit = save(folder / "im-bert", imbert(LABELS, im_layers=[0, -1]))
    words += ["--model", f"<b>one={model}", "--model", f"two={implicit}", "--rows", "6", "--html", str(path)]
    cli.main(["check", *words])
    return path.read_text(encoding="utf-8")


def test_it_loads_and_runs_nothing(made):
    seen = Page(made).seen
    assert not {tag for tag, _ in seen} & {"script", "link", "img", "iframe", "object", "base", "form"}
    for _, attributes in seen:
        assert not [name for name in attributes if name.startswith("on") or name == "src"]
        assert all(value.startswith("#") for name, value in attributes.items() if name.endswith("href"))
    assert not re.search(r"url\((?!#)|@import", made)
    assert "default-src 'none'" in html.unescape(made)


def test_texts_and_names_are_shown_as_they_are(made):
    page = Page(made)
    assert HOSTILE in page.text
    assert "<b>one, characters: " in page.text
    assert "49" not in HOSTILE
    assert "{{ 7 * 7 }}" in page.text


def test_the_table_the_picture_and_the_changed_letters_are_on_it(made, capsys):
    page = Page(made)
    tags = [tag for tag, _ in page.seen]
    assert tags.count("svg") == 2  # bars, and the implicit model's solves
    assert "6 of 12 rows of tickets, 6 of them attacked" in page.text
    assert tags.count("details") == 2 * (len(measures.NOISE) + 1)
    assert {"lang": "en"} in [attributes for tag, attributes in page.seen if tag == "html"]
    assert len(page.marked) > 6


def test_answers_that_became_wrong_come_first_and_the_rest_is_counted():
    def pair(i, before, after):
        texts = {"original_text": f"row {i}", "attacked_text": f"r0w {i}"}
        told = {"prediction_before": before, "prediction_after": after}
        return {"index": i, "model": "m", "method": "swap", **texts, "label": "a", **told}

    some = [pair(i, "a", "a") for i in range(SHOWN)] + [pair(98, "b", "b"), pair(99, "a", "b")]
    found = group(some)
    assert (found["fell"], found["right"], found["left"]) == (1, SHOWN + 1, 2)
    assert [shown["index"] for shown in found["pairs"]] == [99, *range(SHOWN - 1)]
    assert found["pairs"][0]["texts"] == [("row 99", [("r", False), ("0", True), ("w 99", False)])]


def test_a_page_is_no_picture(capsys, tmp_path):
    with pytest.raises(SystemExit):
        cli.main(["check", "--model", "m", "--data", "d", "--html", str(tmp_path / "a.png")])
    assert "a.png must end with one of .html, .htm." in capsys.readouterr().err
