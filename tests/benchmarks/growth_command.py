"""How time and memory of BERT and IM-BERT grow with the iterations, tokens, rows and implicit layers.

The model is small and drawn at random, so that all takes minutes on two cores. What is finished is kept beside
--output, and the same command goes on where it was stopped.
"""

import argparse
from functools import partial
from typing import Any

import growth
import torch
from machine import machine
from matplotlib.figure import Figure

from imbert_hf.evaluation.cost.picture import AXES
from imbert_hf.evaluation.pictures import panels_of
from imbert_hf.evaluation.report import Journal, Report, at_least, table


HELP = "growth of time and memory with what can grow"
COLOURS = {"inference": "tab:blue", "training": "tab:orange"}
TITLES = {"inference": "inference", "training": "training step"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=11, help="rounds of timing (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace, journal: Journal) -> Report:
    at_least(1, **{"--repeats": args.repeats})
    journal.common["machine"] = made = machine()
    found = growth.growth(growth.small_model(args.seed), args.repeats, args.seed, journal.part, not args.quiet)
    data = {"machine": made, "shape": growth.SHAPE, "base": growth.BASE, "growth": found}
    head = f"{torch.get_num_threads()} threads; exponents between the last two points"
    return Report(data, f"{head}\n\n{table(rows(data))}", lambda: figure(data))


def rows(data: dict[str, Any]) -> list[dict[str, str]]:
    """Of the table: by what grows, phase and measure the exponents, and the ratios at both ends."""
    return [
        {
            "grows": f"{AXES[name]}, {of_name['points'][-2]['value']} to {of_name['points'][-1]['value']}",
            "of": f"{measure}, {TITLES[phase]}",
            "BERT": f"{exponent['BERT']:.2f}",
            "IM-BERT": f"{exponent['IM-BERT']:.2f}",
            "ratio, first to last": " to ".join(
                f"{of_name['points'][k][phase][measure]['ratio']:.2f}" for k in (0, -1)
            ),
        }
        for name, of_name in data["growth"].items()
        for phase, of_phase in of_name["exponents"].items()
        for measure, exponent in of_phase.items()
    ]


def figure(data: dict[str, Any]) -> Figure:
    """A panel for each of what grows: ratios to BERT's, both axes logarithmic where no value is 0."""
    picture = panels_of([partial(_draw, found, name) for name, found in data["growth"].items()], 1.5, columns=1)
    picture.set_size_inches(4, 6)
    handles = picture.axes[0].get_legend_handles_labels()[0]
    picture.legend(handles=handles, loc="outside lower center", ncols=2, fontsize="x-small")
    return picture


def _draw(found: dict[str, Any], name: str, axes: Any) -> None:
    points = found["points"]
    values = [point["value"] for point in points]
    for phase, colour in COLOURS.items():
        times, memory = ([point[phase][measure] for point in points] for measure in growth.MEASURES)
        for style, what, ratios in (
            ("o-", "time", [one["ratio"] for one in times]),
            ("--", "floor of the time", [one["floor"] for one in times]),
            ("x:", "memory", [one["ratio"] for one in memory]),
        ):
            axes.plot(values, ratios, style, color=colour, label=f"{TITLES[phase]}: {what}", markersize=3)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_yscale("log", base=2)
    axes.set_yticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    axes.set_ylim(0.8, 16)
    if 0 not in values:
        axes.set_xscale("log", base=2)
    axes.set_xticks(values, [str(value) for value in values])
    axes.minorticks_off()
    axes.set(xlabel=AXES[name], ylabel="ratio to BERT")
