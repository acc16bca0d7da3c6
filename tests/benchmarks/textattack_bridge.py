"""Lets TextAttack attack a classifier of this environment from an environment of its own, over a pipe.

TextAttack cannot be installed beside transformers 5, because its dependency flair wants an older one. So it gets an
environment to itself, and this file, loaded there, starts a server here that answers texts with probabilities:

    python -m venv textattack-env && textattack-env/bin/pip install textattack
    export IMBERT_PYTHON=$(which python)        # of the environment with imbert_hf
    export IMBERT_MODEL=outputs/sst2-im-bert    # any sequence classifier, a folder or a Hub id
    export IMBERT_TASK=sst2                     # of imbert_hf.evaluation
    export IMBERT_DATA=validation.jsonl         # rows in GLUE's fields, or a file in AdvGLUE's format
    textattack-env/bin/textattack attack --model-from-file tests/benchmarks/textattack_bridge.py \
        --dataset-from-file tests/benchmarks/textattack_bridge.py --recipe textfooler --num-examples 100

To run TextAttack's recipe DeepWordBug and the character attack of imbert_hf.evaluation on the same rows, with the same
stop words and nothing to download:

    python tests/benchmarks/textattack_bridge.py compare --textattack textattack-env/bin/textattack \
        --model outputs/sst2-im-bert --task sst2 --data validation.jsonl --rows 100
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


try:  # in TextAttack's environment
    from textattack.models.wrappers import ModelWrapper
except ImportError:
    ModelWrapper = object


class PipedClassifier(ModelWrapper):
    """A classifier that lives in another process, which is started here and ends with this one.

    Requests and answers are JSON, a line each: a list of rows, a row being its list of texts, and a list of
    probabilities a row. The server speaks first, of its task.

    Attributes:
        labels, fields: of the task.
        rows: of IMBERT_DATA, as (texts, label).
    """

    def __init__(self) -> None:
        for name in ("IMBERT_PYTHON", "IMBERT_MODEL"):
            if name not in os.environ:
                raise ValueError(f"the environment variable {name} is not set; {__file__} says what it means.")
        self.server = subprocess.Popen(
            [os.environ["IMBERT_PYTHON"], __file__, "serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self.model = self  # TextAttack looks at its class
        hello = self._receive()
        self.labels, self.fields, self.rows = hello["labels"], hello["fields"], hello["rows"]

    def __call__(self, inputs: list[Any], **_: Any) -> list[list[float]]:
        """Probabilities of texts, or of tuples of texts for a task with two fields."""
        assert self.server.stdin is not None
        rows = [[text] if isinstance(text, str) else list(text) for text in inputs]
        self.server.stdin.write(json.dumps(rows) + "\n")
        self.server.stdin.flush()
        return self._receive()

    def _receive(self) -> Any:
        assert self.server.stdout is not None
        line = self.server.stdout.readline()
        if not line:
            self.close()
            raise RuntimeError(f"the server of {os.environ['IMBERT_MODEL']} has ended; its message stands above.")
        return json.loads(line)

    def close(self) -> None:
        self.server.communicate()  # the server ends with its input


def __getattr__(name: str) -> Any:
    """`model` and `dataset`, which TextAttack takes from a file; made when asked for, not on import."""
    if name == "model":
        return PipedClassifier()
    if name == "dataset":
        from textattack.datasets import Dataset

        piped = PipedClassifier()
        piped.close()
        rows = [(texts[0] if len(texts) == 1 else tuple(texts), label) for texts, label in piped.rows]
        return Dataset(rows, input_columns=piped.fields, label_names=piped.labels)
    raise AttributeError(name)


def serve() -> None:
    """Answers requests until standard input ends."""
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    import numpy
    from scipy.special import softmax

    from imbert_hf.evaluation.data.classifier import load_classifier, predict
    from imbert_hf.evaluation.data.tasks import find_task, read_rows

    def answer(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    data = os.environ.get("IMBERT_DATA")
    try:
        task = find_task(os.environ.get("IMBERT_TASK", "sst2"))
        classifier = load_classifier(os.environ["IMBERT_MODEL"], task)
        rows = [(row.texts, row.label) for row in read_rows(data, task)] if data else []
    except ValueError as error:
        sys.exit(str(error))
    answer({"labels": task.labels, "fields": task.fields, "rows": rows})
    for line in sys.stdin:
        logits = predict(classifier, [tuple(texts) for texts in json.loads(line)], residuals="none").logits
        answer(softmax(logits.astype(numpy.float64), axis=1).tolist())


def compare(args: argparse.Namespace) -> None:
    """Prints TextAttack's DeepWordBug and the character attack of imbert_hf.evaluation on the same rows."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    from imbert_hf.evaluation.attacks.candidates import CharacterEdits
    from imbert_hf.evaluation.attacks.query import query_attack, summarise
    from imbert_hf.evaluation.data.classifier import load_classifier
    from imbert_hf.evaluation.data.tasks import find_task, read_rows
    from imbert_hf.evaluation.report import table

    task = find_task(args.task)
    classifier = load_classifier(args.model, task)
    rows = read_rows(args.data, task)[: args.rows]
    environment = {
        **os.environ,
        "IMBERT_PYTHON": sys.executable,
        "IMBERT_MODEL": args.model,
        "IMBERT_TASK": args.task,
        "IMBERT_DATA": str(args.data),
    }
    with tempfile.TemporaryDirectory() as folder:
        # NLTK looks here first, so that TextAttack's recipe reads our stop words in place of those it downloads.
        environment["NLTK_DATA"] = folder
        stop_words = Path(folder, "corpora", "stopwords", "english")
        stop_words.parent.mkdir(parents=True)
        stop_words.write_text("\n".join(sorted(ENGLISH_STOP_WORDS)) + "\n")
        summary = Path(folder, "summary.json")
        files = [f"--model-from-file={__file__}", f"--dataset-from-file={__file__}", f"--log-summary-to-json={summary}"]
        options = [
            "--recipe=deepwordbug",
            f"--num-examples={len(rows)}",
            f"--random-seed={args.seed}",
            "--disable-stdout",
        ]
        subprocess.run([args.textattack, "attack", *options, *files], env=environment, stdout=sys.stderr, check=True)
        found = json.loads(summary.read_text())["Attack Results"]
    columns = {
        "accuracy": "Original accuracy:",
        "under attack": "Accuracy under attack:",
        "success rate": "Attack success rate:",
        "mean queries": "Avg num queries:",
        "words changed": "Average perturbed word %:",
    }
    lines = [{"attack": "TextAttack, DeepWordBug", "n": len(rows)} | {c: found[key] for c, key in columns.items()}]
    for title, inner, share in (
        ("the same: any letter, all words", False, 1.0),
        ("inner letters, all words", True, 1.0),
        ("inner letters, 20 % of the words", True, 0.2),
    ):
        edits = CharacterEdits(seed=args.seed, inner=inner)
        result = summarise(query_attack(classifier, rows, candidates=edits, max_share=share, progress=True))
        shares = ("accuracy", "accuracy_under_attack", "success_rate", "mean_changed_share")
        accuracy, under, rate, changed = (None if result[key] is None else 100 * result[key] for key in shares)
        values = (accuracy, under, rate, result["mean_queries"], changed)
        lines.append({"attack": title, "n": len(rows)} | dict(zip(columns, values, strict=True)))
    print(table(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="what PipedClassifier starts; reads the environment variables")
    arguments = commands.add_parser(
        "compare", help="TextAttack's DeepWordBug beside ours; all numbers but queries in %%"
    )
    arguments.add_argument("--textattack", required=True, help="the command textattack of its environment")
    arguments.add_argument("--model", required=True, help="folder or Hub id of a sequence classifier")
    arguments.add_argument("--task", default="sst2")
    arguments.add_argument("--data", required=True, type=Path, help="rows in GLUE's fields, or in AdvGLUE's format")
    arguments.add_argument("--rows", type=int, default=100, help="the first of the data (default: %(default)s)")
    arguments.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.command == "serve":
        serve()
    else:
        compare(args)


if __name__ == "__main__":
    main()
