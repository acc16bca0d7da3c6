"""What pictures of several models share: a look for each, shares with intervals, and one legend below."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch


LONGEST = 28  # letters of a name
MARKERS, LINES = "osD^vPX*", ("-", "--", "-.", (0, (3, 1, 1, 1)))

# One colour a solver, in every picture.
SOLVERS = {"fixed_point": "tab:blue", "anderson": "tab:green", "gradient_descent": "tab:red"}

Share = tuple[float | None, Sequence[float] | None]  # from 0 to 1, None: not measured, and its interval


class Look(NamedTuple):
    """A model's, in every panel; curves that coincide are told apart by line and marker and by `shift`, in places."""

    label: str
    color: str
    marker: str
    line: Any
    shift: float


def shortened(name: str, longest: int = LONGEST) -> str:
    """Without its beginning, for the end of a path tells more; what is cut off, and no formula in dollars."""
    return (name if len(name) <= longest else "\u2026" + name[1 - longest :]).replace("$", r"\$")


def panels_of(draws: Sequence[Callable[[Any], None]], width: float = 4.0, columns: int = 4) -> Figure:
    """A panel for each, at most so many columns, in lines of like lengths."""
    lines = -(-len(draws) // columns)
    columns = -(-len(draws) // lines)
    picture = Figure(figsize=(max(width * columns, 6), 0.85 * width * lines + 0.8), layout="constrained")
    axes = list(picture.subplots(lines, columns, squeeze=False).flat)
    for draw, of in zip(draws, axes, strict=False):
        draw(of)
    for unused in axes[len(draws) :]:
        unused.remove()
    return picture


def looks(names: Iterable[str]) -> dict[str, Look]:
    """Of each model."""
    labels: dict[str, str] = {}
    for name in names:
        label = shortened(name)
        label = " " + label if label.startswith("_") else label  # which legends leave out
        alike = sum(name != other and label == known.split(" #")[0] for other, known in labels.items())
        labels.setdefault(name, f"{label} #{alike + 1}" if alike else label)
    step = min(0.1, 0.5 / len(labels))
    return {
        name: Look(label, f"C{i}", MARKERS[i % 8], LINES[i % 4], (i - (len(labels) - 1) / 2) * step)
        for i, (name, label) in enumerate(labels.items())
    }


def draw_bars(axes: Any, look: Mapping[str, Look], groups: Sequence[tuple[str, Sequence[tuple[str, Share]]]]) -> None:
    """A group of bars for each label, a bar a model in the order given; what is None has none."""
    width = 0.8 / max(len(bars) for _, bars in groups)
    for i, (_, bars) in enumerate(groups):
        for k, (name, (share, ci)) in enumerate(bars):
            if share is not None:
                x = i + (k - (len(bars) - 1) / 2) * width
                axes.bar(x, 100 * share, 0.9 * width, color=look[name].color)
                axes.errorbar(x, 100 * share, whiskers([share], [ci]), fmt="none", ecolor="0.2", capsize=3)
    axes.set_xticks(range(len(groups)), [label for label, _ in groups])
    axes.set_ylim(0, 103)


def draw_line(
    axes: Any, look: Look, points: Sequence[tuple[float, Share]], places: Sequence[float], **style: Any
) -> None:
    """A curve through shares over `places`, which stand side by side whatever lies between them."""
    x = [places.index(at) + look.shift for at, _ in points]
    shares, intervals = zip(*(share for _, share in points), strict=True)
    style = {"color": look.color, "marker": look.marker, "linestyle": look.line, "markersize": 5, "alpha": 0.85} | style
    reach = None if None in intervals else whiskers(shares, intervals)
    axes.errorbar(x, [100 * share for share in shares], reach, elinewidth=1, capsize=2, **style)
    axes.set_xticks(range(len(places)), [f"{place:g}" for place in places])
    axes.set_ylim(-3, 103)


def whiskers(shares: Sequence[float], intervals: Sequence[Any]) -> Any:
    """(2, n) how far the intervals reach below and above, percent."""
    low, high = numpy.array([ci or (share, share) for share, ci in zip(shares, intervals, strict=True)]).T
    return 100 * numpy.array([numpy.array(shares) - low, high - numpy.array(shares)]).clip(0)


def write(figure: Figure, file: Any, **options: Any) -> None:
    """Into a path or a file, without a word of letters that the font lacks: those of a name are boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(file, bbox_inches="tight", **options)


def legend(figure: Figure, look: Mapping[str, Look], *, lines: bool, more: Sequence[Any] = ()) -> None:
    """Below the axes, the models first; lines: as lines and markers, else as bars."""
    models = [
        Line2D([], [], color=of.color, marker=of.marker, linestyle=of.line, label=of.label)
        if lines
        else Patch(color=of.color, label=of.label)
        for of in look.values()
    ]
    widest = max(len(handle.get_label()) for handle in [*models, *more])
    columns = int(figure.get_figwidth() * 11 / (widest + 8))  # letters of this size to an inch
    figure.legend(handles=[*models, *more], loc="outside lower center", ncols=max(1, min(columns, 5)), fontsize="small")
