"""Writes a fine-tuned classifier for deployment: as the family's own model, or as ONNX, also with int8 weights.

    pip install '.[eval]' onnxruntime onnxscript          # in a clone; the last two for onnx and onnx-int8

    python examples/export.py my-imbert --to plain --output my-bert
    python examples/export.py my-imbert --to onnx --output my-onnx
    python examples/export.py my-imbert --to onnx-int8 --output my-int8

`plain` is what model.to_plain() gives: the same weights without the connection, which no longer solves anything.
`onnx` keeps the connection, with fixed_point and anderson; rows and tokens are free, and labels.json names the logits.
The logits of both sides are compared on sentences of several lengths, and what was found is printed, with the sizes.
Nothing is left behind where an export fails.

It exits with 0 when done, with 1 where an export failed, and with 2 for wrong arguments.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from imbert_hf.command_line import Parser, run
from imbert_hf.evaluation.data.loading import first_line, load_pretrained


TEXTS = [
    "A good film.",
    "not a bda film, but a long one",
    "It is what it is, and that is all there is to say about it.",
]
Inputs = dict[str, Tensor]


class Logits(nn.Module):
    """(rows, tokens) inputs, in the order of `names`, to (rows, labels)."""

    def __init__(self, model: Any, names: list[str]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(**dict(zip(self.names, inputs, strict=True))).logits


def to_plain(model: Any, tokenizer: Any, folder: Path) -> Callable[[Inputs], Tensor]:
    plain = model.to_plain()
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    loaded = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    return lambda inputs: loaded(**inputs).logits


def to_onnx(model: Any, tokenizer: Any, folder: Path, int8: bool = False) -> Callable[[Inputs], Tensor]:
    import onnxruntime
    from onnxscript.optimizer import fold_constants

    example = tokenizer(TEXTS[:2], padding=True, return_tensors="pt")
    names, file = list(example), folder / "model.onnx"
    sizes = {0: torch.export.Dim("rows", min=1, max=4096), 1: torch.export.Dim("tokens", min=2, max=_longest(model))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own exporter
        program: Any = torch.onnx.export(
            Logits(model, names),
            tuple(example.values()),
            dynamo=True,
            input_names=names,
            output_names=["logits"],
            dynamic_shapes={"inputs": tuple(sizes for _ in names)},
            verbose=False,
        )
        # The exporter transposes a weight of several evaluations as it runs, where int8 would pass it by.
        fold_constants(program.model, should_fold=lambda node: node.op_type == "Transpose" or None)
        program.save(file, external_data=False)
    if int8:
        quantise(file)
    tokenizer.save_pretrained(folder)
    labels = {str(i): label for i, label in model.config.id2label.items()}
    (folder / "labels.json").write_text(json.dumps(labels, indent=2) + "\n", encoding="utf-8")
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda inputs: torch.from_numpy(session.run(None, {name: inputs[name].numpy() for name in names})[0])


def quantise(file: Path) -> None:
    """Makes int8 weights of those that a matrix product takes, and of the embeddings."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # it recommends a preprocessing that fails on dynamic sizes
    quantize_dynamic(file, file.with_name("int8.onnx"), weight_type=QuantType.QInt8)
    logging.getLogger().setLevel(level)
    os.replace(file.with_name("int8.onnx"), file)


def _longest(model: Any) -> int:
    return model.config.max_position_embeddings - 2  # RoBERTa counts positions from 2


EXPORTS: dict[str, Callable[..., Callable[[Inputs], Tensor]]] = {
    "plain": to_plain,
    "onnx": to_onnx,
    "onnx-int8": partial(to_onnx, int8=True),
}


def compare(model: Any, exported: Callable[[Inputs], Tensor], tokenizer: Any) -> tuple[float, int, int]:
    """The largest difference of a logit, and of how many of the rows the label is the same."""
    largest, same, rows = 0.0, 0, 0
    with torch.no_grad():
        for texts in ([text] for text in TEXTS), [TEXTS]:
            for batch in texts:
                inputs = tokenizer(batch, padding=True, return_tensors="pt")
                ours, theirs = model(**inputs).logits, exported(inputs)
                largest = max(largest, (ours - theirs).abs().max().item())
                same, rows = same + int((ours.argmax(1) == theirs.argmax(1)).sum()), rows + len(batch)
    return largest, same, rows


def megabytes(folder: Path) -> float:
    weights = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".onnx", ".data")]
    return sum(path.stat().st_size for path in weights) / 1e6


def main(argv: list[str] | None = None) -> None:
    parser = Parser("export.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="FOLDER", help="of a sequence classifier")
    parser.add_argument("--to", required=True, choices=list(EXPORTS))
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="which is not there yet")
    args = parser.parse_args(argv)
    if not (args.model / "config.json").is_file():
        parser.error(f"{args.model} must be a folder with a config.json.")
    if args.output.exists() or not args.output.resolve().parent.is_dir():
        parser.error(f"--output must name a folder that is not there yet, in one that is, got {args.output}.")
    try:
        model, tokenizer = load_pretrained(
            AutoModelForSequenceClassification, str(args.model), "sequence classifier", dtype="float32", device="cpu"
        )
    except ValueError as error:
        parser.error(str(error))
    if args.to == "plain" and not hasattr(model, "to_plain"):
        parser.error(f"{args.model} holds a {type(model).__name__}, which is plain already.")
    with tempfile.TemporaryDirectory(dir=args.output.resolve().parent, prefix=".export") as part:
        folder = Path(part) / args.output.name
        folder.mkdir()
        try:
            exported = EXPORTS[args.to](model, tokenizer, folder)
            largest, same, rows = compare(model, exported, tokenizer)
        except Exception as error:  # of torch's exporter, or a package that is not installed
            while error.__cause__ is not None:  # the exporter wraps what the model says
                error = error.__cause__  # type: ignore[assignment]
            sys.exit(f"export.py: {args.to} failed: {first_line(error)}")
        os.replace(folder, args.output)
    print(f"{args.output}: {megabytes(args.output):.1f} MB of weights, from {megabytes(args.model):.1f} MB.")
    print(f"Logits differ by at most {largest:.2g}; {same} of {rows} labels are the same.")
    if args.to == "plain":
        print("The plain model solves nothing: measure it again before you use it.")


if __name__ == "__main__":
    run("export.py", main)
