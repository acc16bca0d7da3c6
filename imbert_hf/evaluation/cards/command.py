"""A model card from a checkpoint and the JSON of its runs; a number that no JSON holds does not appear."""

import argparse
from pathlib import Path

from imbert_hf.evaluation.cards.card import render, write
from imbert_hf.evaluation.cards.results import read_results
from imbert_hf.evaluation.report import Journal, Report, check_destination


HELP = "a model card from a checkpoint and the JSON of its runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="folder of the checkpoint")
    parser.add_argument(
        "--results",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE.json",
        help="what check, advglue, attack, stability and cost wrote; only this checkpoint's entries are shown",
    )
    parser.add_argument("--training", type=Path, metavar="FILE.json", help="results.json of examples/finetune.py")
    parser.add_argument("--license", help='of the checkpoint, as the Hub spells it: "apache-2.0", "mit", ...')
    parser.add_argument("--base-license", help="of the checkpoint that was fine-tuned")
    parser.add_argument("--base-model", metavar="ID", help="of the Hub (default: as --training tells)")
    parser.add_argument(
        "--example", action="append", default=[], metavar="TEXT", help="to show the model's use on; twice for a pair"
    )
    parser.add_argument("--repo-id", metavar="NAME/REPO", help="where the checkpoint is, or will be, on the Hub")
    parser.add_argument("--card", type=Path, metavar="FILE.md", help="default: DIR/README.md")
    parser.add_argument("--overwrite", action="store_true", help="replace a README.md that this command did not write")


def run(args: argparse.Namespace, journal: Journal) -> Report:
    path = args.card or args.model / "README.md"
    check_destination(path, "--card")
    files = [*args.results, *([args.training] if args.training else [])]
    results = read_results(args.model, files)
    try:
        card = render(
            args.model,
            results,
            repo_id=args.repo_id,
            license=args.license,
            base_license=args.base_license,
            base_model=args.base_model,
            example=args.example,
        )
    except (KeyError, TypeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else f"holds a value of another type: {error}"
        raise ValueError(f"config.json or an entry of the JSON files {what}.") from None
    write(card, path, overwrite=args.overwrite)
    lines = [f"warning: {warning}" for warning in results.warnings] + [f"The card is in {path}."]
    return Report({"card": str(path), "warnings": results.warnings}, "\n".join(lines))
