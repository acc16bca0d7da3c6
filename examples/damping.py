"""Draws what one implicit step does to a small change, beside BERT's explicit step.

    python examples/damping.py --output examples/damping.png

A change along an eigenvector of f's Jacobian with the eigenvalue z leaves the explicit step |1 + z| times as large and
the implicit one 1 / |1 - z| times. The shaded band holds the real parts of the leading eigenvalues that `imbert-eval
stability` found in a BERT fine-tuned on SST-2: a region of stability says little about where a model really is.
"""

from pathlib import Path

import matplotlib
import numpy

from imbert_hf.command_line import Parser


matplotlib.use("agg")
from matplotlib import pyplot


def main() -> None:
    parser = Parser("damping.py", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="a picture, .png or .svg")
    parser.add_argument("--band", type=float, nargs=2, default=(-0.05, 1.35), help="measured real parts of z")
    args = parser.parse_args()

    z = numpy.linspace(-4, 3, 1401)
    figure, axes = pyplot.subplots(figsize=(7, 2.8), layout="constrained")
    axes.axvspan(*args.band, color="0.9", label="measured in a fine-tuned BERT")
    axes.axhline(1, color="0.6", linewidth=0.8)
    axes.plot(z, numpy.abs(1 + z), label="BERT, explicit: |1 + z|")
    with numpy.errstate(divide="ignore"):
        axes.plot(z, 1 / numpy.abs(1 - z), label="IM-BERT, implicit: 1 / |1 - z|")
    axes.set(xlim=(-4, 3), xlabel="z, an eigenvalue of f's Jacobian", ylim=(0, 4), ylabel="growth of a small change")
    axes.legend(loc="upper left", fontsize="small")
    figure.savefig(args.output, dpi=110, metadata={"Software": None} if args.output.suffix == ".png" else None)


if __name__ == "__main__":
    main()
