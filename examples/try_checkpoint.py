"""Tries a checkpoint of any family: what it loads, how it is solved, and whether it trains.

    python examples/try_checkpoint.py microsoft/deberta-v3-small
    python examples/try_checkpoint.py my-bert --texts sentences.txt --train_file tickets.csv --text_column_names body

The checkpoint is loaded as a classifier of its family and as the implicit one, and then:

    weights        both draw the same ones anew and leave the same ones unread, none of them the encoder's
    hidden states  without implicit layers they are the family's own, bit for bit
    residuals      of each layer at its input in the model, the worst of the sentences, with the defaults in all layers
    fine-tuning    both see the same batches, with the same seed; losses, and whether all gradients were finite

A layer that is not solved is a finding and no failure. The rows to train on are those of quickstart.py, or a table of
your own with a single label a row. The last line is "ok", or lines say what failed. The exit code is 0 when all is
well, 1 where something failed, and 2 for wrong arguments, such as a checkpoint that lacks weights of the encoder.
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from finetune_data import DataArguments, own_splits
from finetune_problems import SINGLE
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from imbert_hf.command_line import Parser, run
from imbert_hf.evaluation.data.loading import NAMES, load_encoder, longest_input
from imbert_hf.evaluation.report import at_least, table
from imbert_hf.evaluation.stability.command import read_texts
from imbert_hf.evaluation.stability.growth import connected
from imbert_hf.evaluation.stability.layers import plain_layers, residuals
from imbert_hf.pass_imbert import SOLVERS


TEXTS = (
    "The train left on time.",
    "She asked for the bill, but nobody came for a quarter of an hour.",
    "Although the first chapters are slow, the book repays the patience it asks of its readers, and the end is superb.",
)
ITERATIONS = (0, 1, 2, 3, 5, 8)
TOLERANCE = 1e-2  # what a residual is held against where im_tolerance is 0


def load_pair(path: str, implicit_class: Any, labels: int, seed: int) -> tuple[list[Any], list[dict[str, set[str]]]]:
    """The family's classifier and the implicit one; which weights each drew anew, and which it left unread."""
    models, loads = [], []
    for model_class in (implicit_class.__bases__[-1], implicit_class):
        set_seed(seed)  # for the head, which the checkpoint may not hold
        options: dict[str, Any] = {"num_labels": labels, "ignore_mismatched_sizes": True, "output_loading_info": True}
        model, told = model_class.from_pretrained(path, dtype=torch.float32, **options)
        drawn = {*told["missing_keys"], *(name for name, *_ in told["mismatched_keys"])}
        models.append(model.eval())
        loads.append({"drawn anew": drawn, "left unread": {*told["unexpected_keys"]}})
    return models, loads


def compare_weights(encoder: Any, loads: list[dict[str, set[str]]]) -> list[str]:
    """Returns what failed, as the next ones do."""
    parts, prefix, failed = {name.split(".")[0] for name in encoder.state_dict()}, f"{encoder.base_model_prefix}.", []
    for what in loads[0]:
        plain, implicit = (load[what] for load in loads)
        print(f"weights {what}: {', '.join(sorted(implicit)) or 'none'}")
        if plain != implicit:
            failed.append(f"not the same weights are {what} in both models: {', '.join(sorted(plain ^ implicit))}")
        if lost := [name for name in sorted(implicit) if name.removeprefix(prefix).split(".")[0] in parts]:
            failed.append(f"weights of the encoder are {what}: {', '.join(lost)}")
    return failed


@torch.no_grad()
def compare_states(plain: Any, encoder: Any, batch: Any) -> list[str]:
    with connected(encoder.config, {"im_layers": []}):
        own, found = (model(**batch, output_hidden_states=True).hidden_states for model in (plain, encoder))
    difference = torch.stack([(a - b).abs().max() for a, b in zip(own, found, strict=True)]).max()  # NaN where one is
    print(f"hidden states without implicit layers: {len(found)}, largest difference {difference:.1e}")
    return [] if difference == 0 else [f"hidden states differ from the family's, by {difference:.1e}"]


def measure(encoder: Any, batches: Sequence[Any]) -> list[str]:
    defaults = type(encoder.config)(im_layers="all")
    fields = {name: value for name, value in defaults.to_dict().items() if name.startswith("im_")}
    options = {name: fields[f"im_{name}"] for name in ("theta", "step_size", "vector_field", "initial_guess")}
    options["iterations"] = ITERATIONS[-1]
    solvers = {name: SOLVERS[name](fields) for name in ("fixed_point", "anderson")}
    worst: dict[str, dict[int, list[float]]] = {name: {} for name in solvers}
    with connected(encoder.config, fields):
        for batch in batches:
            for one in residuals(dict(enumerate(plain_layers(encoder, batch))), solvers, **options):
                found = [math.inf if value is None else value for value in one["residual"]]
                of_layer = worst[one["solver"]].setdefault(one["layer"], found)
                of_layer[:] = map(max, of_layer, found)
    print(f"\nrelative residual by iterations, the worst of {len(batches)} sentences")
    shown = [(name, i, values) for name, layers in worst.items() for i, values in layers.items()]
    print(table([{"solver": name, "layer": i} | {f"{n}": f"{v[n]:.1e}" for n in ITERATIONS} for name, i, v in shown]))
    for name, layers in worst.items():
        unsolved = {n: [f"{i}" for i, values in layers.items() if values[n] >= TOLERANCE] for n in ITERATIONS}
        first = next((n for n in ITERATIONS if not unsolved[n]), ITERATIONS[-1])
        where = f"in all layers but {', '.join(unsolved[first])}" if unsolved[first] else "in all layers"
        print(f"{name}: below {TOLERANCE:g} {where} after {first} iterations")
    return [f"{name}: a residual of layer {i} is not finite" for name, i, v in shown if math.inf in v]


def fine_tune(model: Any, tokenizer: Any, features: Any, args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    options: dict[str, Any] = {"logging_steps": 1, "logging_nan_inf_filter": False, "save_strategy": "no"}
    options |= {"report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": False}  # no warnings on a CPU
    with tempfile.TemporaryDirectory() as scratch:
        settings = TrainingArguments(scratch, max_steps=args.steps, seed=args.seed, **options)
        trainer = Trainer(model, settings, train_dataset=features, data_collator=DataCollatorWithPadding(tokenizer))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    steps, name = [line for line in trainer.state.log_history if "loss" in line], type(model).__name__
    losses = {f"loss, step {line['step']}": line["loss"] for line in (steps[0], steps[len(steps) // 2], steps[-1])}
    # The norm is that of all gradients together: finite where each of them is.
    unsound = [line["step"] for line in steps if not math.isfinite(line["loss"] + line["grad_norm"])]
    failed = [f"{name}: loss or gradients are not finite, first at step {unsound[0]}"] if unsound else []
    return {"model": name, **losses, "gradients": "not finite" if failed else "finite"}, failed


def main(argv: list[str] | None = None) -> None:
    parser = Parser("try_checkpoint.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help=f"of {NAMES}, folder or Hub id")
    parser.add_argument("--texts", type=Path, help="a text file, one sentence a line (default: three of our own)")
    parser.add_argument("--train_file", default=str(Path(__file__).with_name("reviews.jsonl")), help="as finetune.py's")
    parser.add_argument("--text_column_names", default="sentence", help="of it; one, or two with a comma between")
    parser.add_argument("--label_column_name", default="label", help="of it")
    parser.add_argument("--steps", type=int, default=50, help="of fine-tuning (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        at_least(1, **{"--steps": args.steps})
        texts = TEXTS if args.texts is None else read_texts(args.texts)
        columns = {name: getattr(args, name) for name in ("train_file", "text_column_names", "label_column_name")}
        # The rows are no validation: own_splits would else keep a tenth of them for that.
        data = DataArguments(**columns, validation_file=args.train_file, problem_type=SINGLE)
        task, splits = own_splits(data, args.seed)
        encoder, tokenizer = load_encoder(args.checkpoint)
    except ValueError as error:
        parser.error(str(error))
    implicit_class = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(encoder.config)]
    models, loads = load_pair(args.checkpoint, implicit_class, len(task.labels), args.seed)
    cut: dict[str, Any] = {"truncation": True, "max_length": min(128, longest_input(encoder, tokenizer))}
    print(f"{args.checkpoint}: {' and '.join(type(model).__name__ for model in models)}")
    failed = compare_weights(encoder, loads)
    batch = tokenizer(list(texts), padding=True, return_tensors="pt", **cut)
    failed += compare_states(models[0].base_model, encoder, batch)
    failed += measure(encoder, [tokenizer(text, return_tensors="pt", **cut) for text in texts])
    features = [{**tokenizer(*row.texts, **cut), "labels": row.label} for row in splits["train"]]
    trained = [fine_tune(model, tokenizer, features, args) for model in models]
    print(f"\nfine-tuning on {len(features)} rows\n{table([line for line, _ in trained])}\n")
    if failed := [*failed, *(what for _, unsound in trained for what in unsound)]:
        sys.exit("\n".join(f"failed: {what}" for what in failed))
    print("ok")


if __name__ == "__main__":
    run("try_checkpoint.py", main)
