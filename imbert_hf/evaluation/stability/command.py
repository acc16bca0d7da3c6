"""How a small change of the input grows through the layers of BERT, EX-BERT and IM-BERT with the same weights."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from imbert_hf.evaluation.data.arguments import add_run_arguments, add_text_column
from imbert_hf.evaluation.data.loading import NAMES, fingerprint, load_encoder
from imbert_hf.evaluation.data.tables import SUFFIXES
from imbert_hf.evaluation.data.tasks import TASKS, drawn, find_task, own_texts, read_rows
from imbert_hf.evaluation.report import Journal, Report, at_least, explained, percent, table
from imbert_hf.evaluation.stability.layers import THETAS, stability
from imbert_hf.evaluation.stability.picture import columns, figure, groups


HELP = "growth of perturbations, spectra and convergence of the layers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help=f"of {NAMES}, plain or implicit, folder or Hub id")
    parser.add_argument(
        "--data",
        required=True,
        help="a text file, such as .txt, one sentence a line; with --task or --text-column, a table",
    )
    parser.add_argument("--task", help=f"one of {', '.join(TASKS)}")
    add_text_column(parser)
    parser.add_argument("--max-rows", type=int, default=8, help="random ones, by --seed (default: %(default)s)")
    parser.add_argument("--max-length", type=int, default=128, help="tokens (default: %(default)s)")
    parser.add_argument(
        "--radius",
        type=float,
        default=0.05,
        help="of the perturbation, relative to the embeddings (default: %(default)s)",
    )
    parser.add_argument("--directions", type=int, default=4, help="random perturbations (default: %(default)s)")
    parser.add_argument("--restarts", type=int, default=2, help="of the search of the worst one (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="of that search (default: %(default)s)")
    parser.add_argument("--eigenvalues", type=int, default=4, help="leading ones of a layer (default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=16, help="of the solvers (default: %(default)s)")
    add_run_arguments(parser, "float32", "float64")


def run(args: argparse.Namespace, journal: Journal) -> Report:
    texts = read_texts(args.data, args.task, args.text_column, limit=args.max_rows, seed=args.seed)
    model, tokenizer = load_encoder(args.model, device=args.device, dtype=args.dtype)
    names = ("radius", "directions", "restarts", "steps", "eigenvalues", "iterations", "max_length", "seed")
    options = {name: getattr(args, name) for name in names}
    data = stability(model, tokenizer, texts, **options, journal=journal, progress=not args.quiet)
    data["fingerprint"] = fingerprint(args.model, model.config)
    data["summary"] = summarise(data)
    return Report(data, text(data), lambda: figure(data, f"{args.model}, {Path(args.data).name}"))


def read_texts(
    data: str | Path,
    task: str | None = None,
    columns: Sequence[str] = (),
    *,
    limit: int | None = None,
    seed: int = 0,
) -> Sequence[str | tuple[str, ...]]:
    """The sentences of a plain text file, one a line, or the texts of a task's rows or of a table's columns.

    Args:
        data: the file; with a task, whatever `tasks.read_rows` reads, with columns, `tables.read_table`.
        task, columns: name of a task; text columns of a table. Without either `data` is plain text.
        limit: keep that many, drawn with `seed` and kept in the file's order; None: all.

    Raises:
        ValueError: the file cannot be read or holds no text, the task is unknown, or limit < 1.
    """
    if task is not None:
        rows = read_rows(data, find_task(task), limit=limit, seed=seed)
        return [row.texts if len(row.texts) > 1 else row.texts[0] for row in rows]
    if limit is not None:
        at_least(1, max_rows=limit)
    if columns:
        return drawn([texts if len(texts) > 1 else texts[0] for texts in own_texts(str(data), columns)], limit, seed)
    path = Path(data)
    if path.suffix.lower() in SUFFIXES and path.suffix.lower() != ".txt":
        raise ValueError(f"{data} is a table; say with --text-column, or --task, which of its columns hold texts.")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{data} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if not lines:
        raise ValueError(f"{data} is empty; it must hold one sentence a line.")
    return drawn(lines, limit, seed)


def summarise(data: dict[str, Any]) -> dict[str, Any]:
    """Over sentences and random directions: means of growth, medians of spectra and residuals, shares of solves.

    A mean or median is None where a value that it needs was not finite.
    """
    return {
        "growth": [
            {"connection": connection, "direction": direction}
            | {name: columns(fmean, [r[name] for r in rows]) for name in ("ratio", "relative")}
            for (connection, direction), rows in groups(data["growth"], "connection", "direction").items()
        ],
        "spectrum": [
            {"layer": layer}
            | {name: columns(median, [[r[name]] for r in rows])[0] for name in ("spectral_radius", "norm")}
            | {"amplification": {t: columns(median, [[r["amplification"][t]] for r in rows])[0] for t in AMPLIFIED}}
            | {"eigenvalues_converged": fmean(r["eigenvalues_converged"] for r in rows)}
            | {"norm_converged": fmean(r["norm_converged"] for r in rows)}
            for (layer,), rows in groups(data["spectrum"], "layer").items()
        ],
        "residuals": [
            {"layer": layer, "solver": solver, "residual": columns(median, [r["residual"] for r in rows])}
            for (layer, solver), rows in groups(data["residuals"], "layer", "solver").items()
        ],
        "convergence": [
            {"theta": theta, "step_size": step_size, "share": fmean(r["converged"] for r in rows)}
            for (theta, step_size), rows in groups(data["convergence"], "theta", "step_size").items()
        ],
    }


WORDS = {
    "random": "a small change d of the word embeddings in a random direction",
    "worst": "in the direction found to grow most",
    "EX-BERT": "theta 0 and the layer field",
    "spectral radius": "the largest |eigenvalue|",
    "norm": "the most that a vector is enlarged",
    "|R|, theta": "how much a step of that theta enlarges an eigenvector; below 1 it is damped",
    "gamma": "the step size",
}


AMPLIFIED = tuple(f"{theta:g}" for theta in THETAS)


def text(data: dict[str, Any]) -> str:
    """The tables of a run."""
    summary = data["summary"]
    config = data["connections"]["IM-BERT"]
    tokens = sum(s["tokens"] for s in data["sentences"])
    grown = summary["growth"]
    parts = [
        f"{len(data['sentences'])} sentences, {tokens} tokens; IM-BERT: "
        + ", ".join(
            f"{name[3:]} {config[name]}"
            for name in ("im_theta", "im_layers", "im_vector_field", "im_step_size", "im_solver", "im_iterations")
        )
    ]
    for name, title in (
        ("ratio", "Growth, ||h_l(x+d) - h_l(x)|| / ||h_0(x+d) - h_0(x)||"),
        ("relative", "Relative difference, ||h_l(x+d) - h_l(x)|| / ||h_l(x)||"),
    ):
        layers = range(len(grown[0][name]))
        rows = [{"l": k} | {f"{g['connection']} {g['direction']}": g[name][k] for g in grown} for k in layers]
        parts.append(f"{title}, mean (worst: the worst found, a lower bound)\n{table(rows)}")
    rows = [
        {"layer": s["layer"], "spectral radius": s["spectral_radius"], "norm": s["norm"]}
        | {f"|R|, theta {theta}": s["amplification"][theta] for theta in AMPLIFIED}
        for s in summary["spectrum"]
    ]
    parts.append(f"Jacobian of F, and the largest |R(z)| of its leading eigenvalues, median\n{table(rows)}")
    for name, what in (("eigenvalues_converged", "eigenvalues"), ("norm_converged", "norms")):
        missed = sum(not r[name] for r in data["spectrum"])
        if missed:
            parts.append(f"Warning: {missed} of {len(data['spectrum'])} {what} did not converge.")
    last = len(summary["residuals"][0]["residual"]) - 1
    shown = sorted({min(config["im_iterations"], last), last})
    rows = [
        {"layer": layer} | {f"{r['solver']} {k}": r["residual"][k] for r in of_layer for k in shown}
        for (layer,), of_layer in groups(summary["residuals"], "layer").items()
    ]
    parts.append(f"Relative residual after {' and '.join(map(str, shown))} iterations, median\n{table(rows)}")
    rows = [
        {"theta": theta} | {f"gamma {r['step_size']:g}": percent(r["share"]) for r in of_theta}
        for (theta,), of_theta in groups(summary["convergence"], "theta").items()
    ]
    parts.append(f"Solves by {config['im_solver']} that converge in {last} iterations, percent\n{table(rows)}")
    return explained(parts, WORDS)
