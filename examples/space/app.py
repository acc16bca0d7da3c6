"""A page that shows BERT and IM-BERT beside each other: answers, attacks, and the solve behind an answer.

    pip install ".[space]"
    python examples/space/app.py

It takes the two models of examples/quickstart.py, and trains them first where outputs/quickstart is not there, which
takes six minutes on two cores. --bert and --im-bert take others, with the labels negative and positive. On a Space of
the Hub, the variables BERT and IM_BERT name them.

It exits with 1 where a run failed or was interrupted, and with 2 for wrong arguments.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

try:
    import gradio as gr
except ModuleNotFoundError:
    sys.exit("app.py: error: gradio is missing: pip install '.[space]' in a clone.")
import page
import render
from answers import load, reviews

from imbert_hf.command_line import Parser, run


HERE = Path(__file__).parent
# On a Space the quickstart lies beside this file.
QUICKSTART = (HERE if (HERE / "quickstart.py").is_file() else HERE.parent) / "quickstart.py"
TRAINED = Path("outputs", "quickstart")
FONTS = ("system-ui", "Arial", "sans-serif")  # the reader's own: none is loaded


def study() -> str:
    """Markdown that names the study's page, in the repository that requirements.txt names."""
    address = re.search(r"git\+([^\s@#]+)", (HERE / "requirements.txt").read_text(encoding="utf-8"))
    if address is None or "OWNER" in address[1]:
        return "The study (`model_cards/study/README.md` of the repository)"
    return f"[The study]({address[1].removesuffix('.git')}/blob/main/model_cards/study/README.md)"


def make_parser() -> Parser:
    parser = Parser("app.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bert", default=os.environ.get("BERT"), help="folder or Hub id of a plain classifier")
    parser.add_argument("--im-bert", default=os.environ.get("IM_BERT"), help="folder or Hub id of an implicit one")
    parser.add_argument("--port", type=int, help="(default: the first free one from 7860)")
    return parser


def train() -> None:
    """The quickstart's models, where they are not there."""
    if not all((folder / "config.json").is_file() for folder in (TRAINED, TRAINED / "bert")):
        print(f"{TRAINED} lacks the models: training both first, once.", flush=True)
        if subprocess.run([sys.executable, str(QUICKSTART), "--output_dir", str(TRAINED), "--overwrite"]).returncode:
            sys.exit("app.py: error: the quickstart failed; its message stands above.")


def main(argv: list[str] | None = None) -> None:
    args = (parser := make_parser()).parse_args(argv)
    if (args.bert is None) != (args.im_bert is None):
        parser.error("--bert and --im-bert belong together: give both, or neither for those of the quickstart.")
    if not QUICKSTART.is_file():
        parser.error(f"{HERE} lacks quickstart.py and reviews.jsonl, which push_to_hub.py --space sends along.")
    if args.bert is None:
        train()
        args.bert, args.im_bert = str(TRAINED / "bert"), str(TRAINED)
    try:
        models = load(args.bert, args.im_bert)
    except ValueError as error:
        parser.error(str(error))
    blocks = page.build(models, reviews(QUICKSTART.with_name("reviews.jsonl")), study())
    theme = gr.themes.Default(font=FONTS, font_mono=("ui-monospace", "monospace"))
    options: Any = {"theme": theme, "css": render.CSS, "ssr_mode": False, "footer_links": ["gradio", "settings"]}
    blocks.queue(default_concurrency_limit=2).launch(server_port=args.port, **options)


if __name__ == "__main__":
    run("app.py", main)
