"""examples/finetune.py as a module, the words of made-up rows to run it on, and what it wrote."""

import json
import random
from pathlib import Path

import finetune as glue
from tiny import refused

from imbert_hf.configuration_imbert import IM_FIELDS


SCRIPT = Path(glue.__file__)

WORDS = ["a", "the", "film", "book", "is", "was", "good", "bad", "dull", "fine", "not", "very", "never", "it"]
FIELDS = {
    "sst2": ["sentence"],
    "rte": ["sentence1", "sentence2"],
    "qnli": ["question", "sentence"],
    "qqp": ["question1", "question2"],
    "mnli": ["premise", "hypothesis"],
}
LABELS = {
    "sst2": ["negative", "positive"],
    "rte": ["entailment", "not_entailment"],
    "qnli": ["entailment", "not_entailment"],
    "qqp": ["not_duplicate", "duplicate"],
    "mnli": ["entailment", "neutral", "contradiction"],
}


def write_rows(path, task, count):
    draw = random.Random(f"{path.name} {task}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            row = {name: " ".join(draw.choices(WORDS, k=draw.randint(2, 8))) for name in FIELDS[task]}
            file.write(json.dumps({**row, "label": i % len(LABELS[task]), "idx": i}) + "\n")


def results_of(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def refusal(argv):
    """The sentence with which the script refuses arguments."""
    return refused(glue.main, argv)


def im_fields():
    return [*IM_FIELDS]
