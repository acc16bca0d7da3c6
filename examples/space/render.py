"""HTML of what the page shows. Whatever a user wrote is escaped."""

import io
from collections.abc import Iterable, Sequence
from html import escape
from urllib.parse import urlencode

from answers import CURVE, TASK, Reading, Solve
from attacks import OUTCOMES, Attacked, Checked, outcome

from imbert_hf.evaluation.attacks.changes import changes


INK = "#010203"  # replaced by the page's colour of text, light or dark
LOWEST, HIGHEST = 1e-7, 10.0  # residuals that are drawn: down to the precision of float32

# Colours are the theme's, and never the only sign of anything.
CSS = """
.gradio-container { max-width: 1100px !important; margin: 0 auto !important; }
.shown table { width: 100%; border-collapse: collapse; margin: .5em 0; }
.shown table, .shown thead, .shown tr, .shown th, .shown td { border: 0 !important; }
.shown th, .shown td { border-bottom: 1px solid var(--border-color-primary) !important;
  padding: .3em .4em; text-align: left; vertical-align: top; font-variant-numeric: tabular-nums; }
@media (max-width: 500px) { .shown table { font-size: .85em; } }
.shown caption { text-align: left; font-weight: 600; }
.shown blockquote { margin: .5em 0; padding: .5em .8em; border-left: 4px solid var(--color-accent);
  background: var(--background-fill-secondary); }
.shown blockquote, #rows td:first-child { overflow-wrap: anywhere; }
.shown mark { background: #ffd591; color: #000; text-decoration: underline; border-radius: 2px; }
.shown .fell { font-weight: 700; }
.shown a { color: var(--link-text-color); text-decoration: underline; }
.shown svg { width: 100%; max-width: 560px; height: auto; color: var(--body-text-color); }
.shown svg text { font-family: inherit !important; }
"""


def shown(*parts: str) -> str:
    return f'<div class="shown">{"".join(parts)}</div>'


def notice(sentence: str) -> str:
    return shown(f'<p role="status">{escape(sentence)}</p>') if sentence else ""


def marked(before: str, after: str) -> str:
    """The text `after`, its changed letters marked."""
    pieces = changes(before, after)
    return "".join(f"<mark>{escape(piece)}</mark>" if new else escape(piece) for piece, new in pieces)


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML."""
    columns = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><caption>{caption}</caption><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table>"


def share(probability: float) -> str:
    return f"{100 * probability:.1f} %"


def said(probabilities: Sequence[float]) -> str:
    """A model's answer."""
    best = max(range(len(probabilities)), key=lambda i: probabilities[i])
    return f"{TASK.labels[best]}, {share(probabilities[best])}"


def attack(text: str, found: Sequence[Attacked], link: dict[str, str | int | float]) -> str:
    """The changed texts, both models' answers before and after, and a link that repeats it."""
    parts = []
    for one in found:
        led = f"Search against {one.by}" if one.by else "Changed text"
        asked = f"{one.queries} queries to {one.by}" if one.by else "no query: noise does not look at a model"
        same = "" if one.text != text else "<p>Nothing was changed.</p>"
        rows = []
        for name, before, after in zip(("BERT", "IM-BERT"), one.before, one.after, strict=True):
            flipped = before.argmax() != after.argmax()
            mark = '<span class="fell">answer changed</span>' if flipped else "same answer"
            rows.append([name, said(before), said(after), mark])
        answers = table(f"{led}; {asked}", ["model", "before", "after", ""], rows)
        parts.append(f"<blockquote>{marked(text, one.text)}</blockquote>{same}{answers}")
    return shown(
        *parts, f'<p><a href="?{escape(urlencode(link))}">Link to this attack</a> (text, seed and settings)</p>'
    )


def rows(checked: Sequence[Checked], only: str) -> str:
    """The counts of all rows, and a table of those with the outcome `only`, or of all."""
    lines = [
        f"<li>{name}: {sum(c.before[i] for c in checked)} right before, {sum(c.after[i] for c in checked)} after.</li>"
        for i, name in enumerate(("BERT", "IM-BERT"))
    ]
    counts = [f"<li><strong>{which}: {sum(outcome(c) == which for c in checked)}</strong></li>" for which in OUTCOMES]
    kept = [c for c in checked if only not in OUTCOMES or outcome(c) == only]
    cells = [
        [marked(c.row.texts[0], c.changed), TASK.labels[c.row.label], *(_right(c, i) for i in range(2))] for c in kept
    ]
    caption = f"{len(kept)} of {len(checked)} rows"
    body = table(caption, ["text after the noise", "label", "BERT", "IM-BERT"], cells)
    return shown(f"<p>Of {len(checked)} rows:</p><ul>{''.join(lines + counts)}</ul>", body)


def _right(checked: Checked, i: int) -> str:
    before, after = ("right" if hit else "wrong" for hit in (checked.before[i], checked.after[i]))
    cell = f"{before} &rarr; {after}"
    return f'<span class="fell">{cell}</span>' if checked.falls[i] else cell


def solve(solves: Sequence[Solve], reading: Reading) -> str:
    """The residuals as a picture and in words."""
    if not solves:
        return shown("<p>With theta 0 the step is explicit: nothing is solved.</p>")
    words = "".join(f"<li>{_words(found, reading.iterations)}</li>" for found in solves)
    return shown(_picture(solves, reading.iterations), f"<ul>{words}</ul>")


def _words(found: Solve, iterations: int) -> str:
    places = dict.fromkeys((0, iterations, CURVE))
    values = [f"{_number(found.residual[k])} after {k}{' (read here)' * (k == iterations)}" for k in places]
    return f"Layer {found.layer}, counted from 0: relative residual {', '.join(values)} iterations."


def _number(residual: float | None) -> str:
    return "not finite" if residual is None else f"{residual:.2g}"


def _picture(solves: Sequence[Solve], iterations: int) -> str:
    from matplotlib import rcParams  # here: it would take a second of the start
    from matplotlib.figure import Figure

    rcParams["svg.fonttype"] = "none"  # text stays text
    figure = Figure(figsize=(5.4, 2.9))
    axes = figure.subplots()
    for found in solves:
        values = [float("nan") if r is None else min(max(r, LOWEST), HIGHEST) for r in found.residual]
        (line,) = axes.semilogy(values, marker=".", label=f"layer {found.layer}")
        axes.plot(iterations, values[iterations], "o", markersize=9, color=line.get_color())
    axes.set_ylim(LOWEST / 2, HIGHEST * 2)
    axes.set_xticks(range(0, CURVE + 1, 2))
    axes.set_xlabel("iterations (large dot: read here)", color=INK)
    axes.set_ylabel("relative residual", color=INK)
    axes.legend(frameon=False, labelcolor=INK)
    axes.tick_params(which="both", colors=INK)
    axes.spines[:].set_color(INK)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight")
    svg = buffer.getvalue().replace(INK, "currentColor")
    label = 'role="img" aria-label="Relative residual against iterations; the same in words below"'
    return svg[svg.index("<svg") :].replace("<svg", f"<svg {label}", 1)
