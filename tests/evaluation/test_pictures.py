"""Pictures: a look for each model in every panel, names that fit, intervals, and nothing that stands for nothing."""

import json

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from imbert_hf.evaluation.advglue import command as advglue
from imbert_hf.evaluation.attacks import report as attack
from imbert_hf.evaluation.pictures import draw_bars, draw_line, legend, looks, panels_of
from imbert_hf.evaluation.statistics import accuracy_interval, share_interval


def test_long_names_are_cut_and_stay_apart():
    names = [
        "outputs/" + 9 * "long-" + "name",
        "other/" + 9 * "long-" + "name",
        "a$b$",
        "_x",
        "\u017c\u00f3\u0142\u0107",
    ]
    look = looks([*names, names[0]])
    labels = [of.label for of in look.values()]
    assert list(look) == names
    assert len({*labels}) == len(labels)
    assert max(map(len, labels)) <= 31
    assert labels[0].endswith("long-name")
    assert labels[2:] == [r"a\$b\$", " _x", "\u017c\u00f3\u0142\u0107"]
    assert len({(of.color, of.marker, of.shift) for of in look.values()}) == len(names)


def test_bars_and_curves_have_their_intervals():
    look = looks(["a", "b"])
    axes = Figure().subplots()
    draw_bars(axes, look, [("clean", [("a", (0.5, (0.25, 0.75))), ("b", (None, None))])])
    (bar,), (whisker,) = axes.patches, axes.collections
    assert (bar.get_height(), to_hex(bar.get_facecolor())) == (50, "#1f77b4")
    assert whisker.get_segments()[0][:, 1].tolist() == [25, 75]
    axes = Figure().subplots()
    for name in "ab":
        draw_line(axes, look[name], [(0.0, (0.5, (0.4, 0.6))), (0.2, (0.5, (0.3, 0.7)))], [0.0, 0.1, 0.2])
    a, b = (container.lines[0] for container in axes.containers)
    assert a.get_ydata().tolist() == b.get_ydata().tolist() == [50, 50]
    assert a.get_xdata()[0] < 0 < b.get_xdata()[0]  # beside each other
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "0.1", "0.2"]


def test_no_panel_is_left_empty_and_the_legend_covers_none():
    assert [len(panels_of([lambda axes: None] * n).axes) for n in (1, 4, 5, 7)] == [1, 4, 5, 7]
    picture = panels_of([lambda axes: axes.plot([0, 1])] * 5)
    legend(picture, looks([f"model number {i}" for i in range(7)]), lines=True)
    picture.draw_without_rendering()
    box = picture.legends[0].get_window_extent()
    assert all(box.y1 <= axes.get_window_extent().y0 for axes in picture.axes)
    assert (box.x0, box.x1) == pytest.approx((max(box.x0, 0), min(box.x1, picture.bbox.x1)))


def entry(model, **more):
    return {"model": model, "task": "sst2", "n": 20, "clean_accuracy": 0.9, "clean_accuracy_ci95": [0.7, 1.0], **more}


def test_a_model_has_one_colour_in_every_panel():
    point = {"radius": 0.1, "accuracy": 0.5, "accuracy_ci95": [0.3, 0.7], "transfer_accuracy": None}
    query = {"accuracy": 0.9, "attack": "character", "accuracy_under_attack": 0.1}
    query["accuracy_under_attack_ci95"] = [0.0, 0.3]
    noise = {"kind": "swap", "strength": 0.2, "accuracy": 0.8, "accuracy_ci95": [0.6, 0.9]}
    data = {
        "embedding": [entry(m, curve=[point], checks=[{"passed": m == "a"}]) for m in "ab"],
        "query": [entry(m, **query) for m in "ba"],
        "noise": [entry("b", **noise)],
        "comparisons": [],
    }
    picture = attack.figure(json.loads(json.dumps(data)))
    curves, bars, swaps = picture.axes
    blue, orange = "#1f77b4", "#ff7f0e"
    assert [to_hex(c.lines[0].get_color()) for c in curves.containers] == [blue, orange]
    assert [to_hex(bar.get_facecolor()) for bar in bars.patches] == [orange, blue] * 2
    assert [to_hex(c.lines[0].get_color()) for c in swaps.containers] == [orange]
    assert [c.lines[0].get_fillstyle() for c in curves.containers] == ["full", "none"]
    shown = [text.get_text() for text in picture.legends[0].get_texts()]
    assert shown == ["a", "b", "checks for gradient masking failed"]
    assert picture.get_suptitle() == "sst2, n = 20; whiskers: 95 % intervals"


def test_seeds_of_a_model_share_its_colour_and_what_is_not_known_is_not_drawn():
    known = {"accuracy": 0.5, "accuracy_ci95": [0.3, 0.7], "majority_accuracy": 0.6}
    known |= {"clean_accuracy": None, "clean_accuracy_ci95": None, "robust_accuracy": None}
    known |= {"robust_accuracy_ci95": None, "task": "sst2", "n": 20}
    (axes,) = advglue.figure([{**known, "model": name} for name in ("x", "x", "y")]).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["attacked"]
    assert [to_hex(bar.get_facecolor()) for bar in axes.patches] == ["#1f77b4", "#1f77b4", "#ff7f0e"]


def test_the_interval_of_a_share_is_that_of_its_values():
    assert share_interval(0.3, 10) == pytest.approx(accuracy_interval([1] * 3 + [0] * 7))
