"""The outcome of a check as one page that needs nothing else: the table, the picture, and texts before and after."""

import io
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from imbert_hf.evaluation.attacks.changes import changes
from imbert_hf.evaluation.pictures import write


SHOWN = 50  # texts of a model and method

# Every value is escaped. Nothing is loaded, and no script runs.
TEMPLATE = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 70rem; padding: 1rem; overflow-wrap: anywhere }
.wide { overflow-x: auto }
table { border-collapse: collapse }
th, td { border-bottom: 1px solid color-mix(in srgb, currentColor 25%, transparent); padding: .3rem .6rem;
  text-align: left; vertical-align: top; overflow-wrap: normal }
.texts td:nth-child(2) { min-width: 16rem; overflow-wrap: anywhere; white-space: pre-wrap }
mark { background: #ffd54d; color: #000; text-decoration: underline }
.before { opacity: .75 }
svg { background: #fff; max-width: 100%; height: auto }
summary { cursor: pointer; padding: .3rem 0 }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>{{ about }}</p>
<div class="wide"><table>
<thead><tr>{% for name in columns %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}
<tr>{% for name in columns %}<td>{{ row[name] if row[name] is not none else "n/a" }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table></div>
<dl>
{% for word, meaning in words.items() %}
<dt>{{ word }}</dt><dd>{{ meaning }}</dd>
{% endfor %}
</dl>
{% for line in lines %}
<p>{{ line }}</p>
{% endfor %}
{% for said, picture in pictures %}
<figure aria-label="{{ said }}">{{ picture }}</figure>
{% endfor %}
<h2>Texts before and after</h2>
{% for group in groups %}
<details>
<summary>{{ group.model }}, {{ group.method }}: {{ group.fell }} of {{ group.right }} right answers became
wrong</summary>
{% if group.left %}
<p>{{ group.pairs | length }} of {{ group.pairs | length + group.left }} texts; --export writes all.</p>
{% endif %}
<div class="wide"><table class="texts">
<thead><tr><th scope="col">row</th><th scope="col">text, and what became of it</th><th scope="col">label</th>
<th scope="col">before</th><th scope="col">after</th></tr></thead>
<tbody>
{% for pair in group.pairs %}
<tr><td>{{ pair.index }}</td><td>
{%- for before, pieces in pair.texts -%}
<div class="before">{{ before }}</div><div>
{%- for piece, changed in pieces -%}
{% if changed %}<mark>{{ piece }}</mark>{% else %}{{ piece }}{% endif %}
{%- endfor -%}
</div>
{%- endfor -%}
</td><td>{{ pair.label }}</td>
<td>{{ pair.prediction_before }}, {{ "%.0f" | format(100 * pair.probability_before) }} %</td>
<td>{{ pair.prediction_after }}, {{ "%.0f" | format(100 * pair.probability_after) }} %</td></tr>
{% endfor %}
</tbody>
</table></div>
</details>
{% endfor %}
</body>
</html>
""")


def page(
    title: str,
    about: str,
    rows: Sequence[dict[str, Any]],
    words: dict[str, str],
    lines: Sequence[str],
    figures: Sequence[tuple[str, Figure]],
    pairs: Sequence[dict[str, Any]],
) -> str:
    """HTML.

    Args:
        title, about: the heading, and the sentence below it.
        rows: of the table, each of the same columns; None: not measured.
        words: what they mean that the table has.
        lines: what the table does not say.
        figures: drawn into the page, each with what is said of it to who cannot see it.
        pairs: of attacks.pairs, those of one model and method one after another.
    """
    groups = [group(list(some)) for _, some in groupby(pairs, lambda pair: (pair["model"], pair["method"]))]
    table = {"columns": list(rows[0]), "rows": rows, "words": words}
    drawn = [(said, Markup(svg(figure, number))) for number, (said, figure) in enumerate(figures)]
    return TEMPLATE.render(title=title, about=about, **table, lines=lines, pictures=drawn, groups=groups)


def group(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """The pairs of one model and method; those whose answer became wrong come first."""
    right = [pair for pair in pairs if pair["prediction_before"] == pair["label"]]
    fell = sum(map(became_wrong, pairs))
    shown = [pair | {"texts": texts_of(pair)} for pair in sorted(pairs, key=became_wrong, reverse=True)[:SHOWN]]
    about = {"model": pairs[0]["model"], "method": pairs[0]["method"], "right": len(right), "fell": fell}
    return {**about, "pairs": shown, "left": len(pairs) - len(shown)}


def became_wrong(pair: dict[str, Any]) -> bool:
    return pair["prediction_before"] == pair["label"] != pair["prediction_after"]


def texts_of(pair: dict[str, Any]) -> list[tuple[str, list[tuple[str, bool]]]]:
    """Each text, and what became of it in pieces that are changed or not."""
    fields = [name.removeprefix("original_") for name in pair if name.startswith("original_")]
    texts = [(pair[f"original_{field}"], pair[f"attacked_{field}"]) for field in fields]
    return [(before, changes(before, after)) for before, after in texts]


def svg(figure: Figure, number: int) -> str:
    """Letters are drawn: a page for other people has no fonts to count on."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": f"imbert-eval {number}"}):  # the same names in it every time
        write(figure, text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
