"""The page: its fields, and what happens when one of them changes."""

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
import render
from answers import CURVE, STEP_SIZES, TASK, Models, Reading, probabilities, solves
from attacks import NOISE, OUTCOMES, SEARCH, attack, check

from imbert_hf.evaluation.data.tasks import Row


TITLE = "IM-BERT beside BERT"
TEXT = "We waited an hour for a table, but the food was lovely."
KINDS = {  # name -> what the page calls it
    "typos": "typos (keyboard)",
    "swaps": "swapped letters",
    "deletions": "deleted letters",
    "clause": "inserted clauses",
    SEARCH: "character search",
}
ABOUT = """# {title}

Two small models judge whether a text is positive or negative: **BERT**, and **IM-BERT**, which takes implicit steps in
some layers. Type a text, attack it, and watch the solve.

**No evidence**: this is one small model of each, and a single seed. Over five tasks IM-BERT's defaults showed no
resolved gain over BERT. {study} has the numbers.
"""
ALL = "all rows"
ITERATIONS = "Iterations (0: read as BERT, at step size 1)"
Settings = Sequence[float | None]  # of a Reading, as the sliders have them; None where one was emptied


def fields_of(query: Mapping[str, str], reading: Reading) -> dict[str, Any]:
    """What a link asks for; whatever it lacks, or has wrong, is the page's own."""

    def number(name: str, default: float, low: float, high: float) -> float:
        try:
            value = float(query.get(name, default))
        except ValueError:
            return default
        return min(max(value, low), high) if value == value else default

    kind = query.get("attack", "")
    return {
        "text": query.get("text", TEXT),
        "attack": kind if kind in KINDS else "typos",
        "strength": number("strength", 0.4, 0, 1),
        "seed": int(number("seed", 0, 0, 2**32 - 1)),
        "iterations": int(number("iterations", reading.iterations, 0, CURVE)),
        "theta": number("theta", reading.theta, 0, 1),
        "step_size": number("step_size", reading.step_size, *STEP_SIZES),
    }


def as_text(value: str | None) -> str:
    """What a field holds, as something that can be encoded: a request may hold half a character."""
    return (value or "").encode("utf-8", "replace").decode("utf-8")


def as_reading(own: Reading, settings: Settings) -> Reading:
    iterations, theta, step_size = (
        mine if value is None else value for value, mine in zip(settings, vars(own).values(), strict=True)
    )
    return Reading(int(iterations), theta, step_size)


def answer(models: Models, text: str | None, settings: Settings) -> tuple[Any, Any, str, str]:
    """What both models say of the text, a notice, and the solves."""
    text = as_text(text)
    if not text.strip():
        return None, None, render.notice("Type a text, and both models answer."), ""
    reading = as_reading(models.reading, settings)
    pair = models.pair(reading)
    bert, im_bert = (dict(zip(TASK.labels, probabilities(c, [text])[0].tolist(), strict=True)) for c in pair)
    longest = min(c.max_length for c in pair)
    whole = "" if models.read_whole(text) else f"This text is long: the models read its first {longest} tokens alone."
    return bert, im_bert, render.notice(whole), render.solve(solves(pair[1], text), reading)


def attacked(
    models: Models, text: str | None, kind: str, strength: float | None, seed: int | None, settings: Settings
) -> str:
    """The attacked text with both models' answers, or why there is none."""
    reading = as_reading(models.reading, settings)
    asked = (as_text(text), kind, strength or 0.0, seed or 0)
    link = dict(zip(fields_of({}, reading), (*asked, *vars(reading).values()), strict=True))
    try:
        found = attack(models, reading, *asked)
    except ValueError as error:
        return render.notice(str(error))
    return render.attack(asked[0], found, link)


def build(models: Models, rows: Sequence[Row], study: str) -> gr.Blocks:
    """The page, with a table of these rows. `study` is Markdown that names where the study is."""
    own = models.reading
    with gr.Blocks(title=TITLE, analytics_enabled=False) as blocks:
        gr.Markdown(ABOUT.format(title=TITLE, study=study))

        text = gr.Textbox(label="Your text, in English", lines=3, max_lines=8, elem_id="text")
        with gr.Row():
            said = [gr.Label(label=name, min_width=140, elem_id=name.lower()) for name in ("BERT", "IM-BERT")]
        notice = gr.HTML(elem_id="notice")

        gr.Markdown("## Attack it")
        kind = gr.Radio(
            [(label, name) for name, label in KINDS.items()], value="typos", label="Attack", elem_id="attack"
        )
        with gr.Row():
            strength = gr.Slider(
                0, 1, 0.4, step=0.05, label="Strength: share of the words", elem_id="strength", min_width=140
            )
            seed = gr.Number(
                0, precision=0, minimum=0, label="Seed: the same one repeats it", elem_id="seed", min_width=140
            )
        button = gr.Button("Attack it", variant="primary", elem_id="go")
        after = gr.HTML(elem_id="attacked")

        gr.Markdown("## The solve\nAn implicit layer looks for its output by iterations, for this very text.")
        with gr.Row():
            with gr.Column():
                sliders = [
                    gr.Slider(0, CURVE, own.iterations, step=1, label=ITERATIONS, elem_id="iterations"),
                    gr.Slider(0, 1, own.theta, step=0.05, label="Theta (0: explicit, 1: implicit)", elem_id="theta"),
                    gr.Slider(*STEP_SIZES, own.step_size, step=0.1, label="Step size", elem_id="step_size"),
                ]
            with gr.Column():
                curve = gr.HTML(elem_id="solve")

        gr.Markdown("## Twenty rows of the test data\nNoise on each. Both counts stay, whatever is filtered.")
        noise = gr.Radio([(KINDS[name], name) for name in NOISE], value="typos", label="Noise", elem_id="noise")
        with gr.Row():
            share = gr.Slider(0, 1, 0.4, step=0.05, label="Strength of the noise", elem_id="share", min_width=140)
            draw = gr.Number(0, precision=0, minimum=0, label="Seed of the noise", elem_id="draw", min_width=140)
        only = gr.Radio([ALL, *OUTCOMES], value=ALL, label="Show", elem_id="only")
        again = gr.Button("Check the rows, with the sliders as they are", elem_id="check")
        listed, checked = gr.HTML(elem_id="rows"), gr.State([])

        fields = [text, kind, strength, seed, *sliders]
        quiet: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last"}

        def read_link(request: gr.Request):
            return [*fields_of(dict(request.query_params), own).values()]

        def show_answer(text, *settings):
            return answer(models, text, settings)

        def show_attack(text, kind, strength, seed, *settings):
            return attacked(models, text, kind, strength, seed, settings)

        def check_rows(noise, share, draw, *settings):
            return check(models, as_reading(own, settings), rows, noise, share or 0.0, draw or 0)

        to_check = {"inputs": [noise, share, draw, *sliders], "outputs": checked}
        changes = [text.change, *(slider.change for slider in sliders)]
        gr.on(changes, show_answer, [text, *sliders], [*said, notice, curve], **quiet)
        attack_it: dict[str, Any] = {"fn": show_attack, "inputs": fields, "outputs": after}
        gr.on([button.click, text.submit], **attack_it)
        blocks.load(read_link, None, fields, show_progress="hidden").then(**attack_it).then(check_rows, **to_check)
        again.click(check_rows, **to_check)
        gr.on([checked.change, only.change], render.rows, [checked, only], listed, show_progress="hidden")
    return blocks
