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
    parser.add_argument("--repeats", type=int, default=7, help="rounds of timing (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace, journal: Journal) -> Report:
    at_least(1, **{"--repeats": args.repeats})
    found = growth.growth(growth.small_model(args.seed), args.repeats, args.seed, journal.part, not args.quiet)
    data = {"machine": machine(), "shape": growth.SHAPE, "base": growth.BASE, "growth": found}
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
            "IM-BERT / BERT": " to ".join(f"{of_name['points'][k][phase][measure]['ratio']:.2f}" for k in (0, -1)),
        }
        for name, of_name in data["growth"].items()
        for phase, of_phase in of_name["exponents"].items()
        for measure, exponent in of_phase.items()
    ]


def figure(data: dict[str, Any]) -> Figure:
    """A line of panels for each of what grows: time and memory, as ratios to BERT's."""
    draws = [partial(_draw, data["growth"][name], name, what) for name in data["growth"] for what in growth.MEASURES]
    picture = panels_of(draws, width=3.2, columns=len(growth.MEASURES))
    handles = [*picture.axes[0].get_legend_handles_labels()[0]]
    picture.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize="small")
    return picture


def _draw(found: dict[str, Any], name: str, measure: str, axes: Any) -> None:
    points = found["points"]
    values = [point["value"] for point in points]
    for phase, colour in COLOURS.items():
        of_phase = [point[phase][measure] for point in points]
        axes.plot(values, [one["ratio"] for one in of_phase], "o-", color=colour, label=TITLES[phase], markersize=4)
        if measure == "time":
            floors = [one["floor"] for one in of_phase]
            axes.plot(values, floors, "--", color=colour, alpha=0.6, label=f"{TITLES[phase]}: floor")
    axes.axhline(1, color="black", linewidth=1)
    if 0 not in values:
        axes.set_xscale("log", base=2)
    axes.set_xticks(values, [str(value) for value in values])
    axes.minorticks_off()
    axes.set_ylim(0)
    axes.set(xlabel=AXES[name], ylabel=f"{measure} / BERT")
