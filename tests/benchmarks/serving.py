"""What a served text costs on a CPU: BERT and IM-BERT, each eager, compiled, and exported to onnxruntime.

Every classifier has the same weights. A round runs each of them in each engine once, so that what else the machine does
meets all alike, and ratios are of times in one round.
"""

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import export
import numpy
import torch
from bench import Record, record
from torch import Tensor

from imbert_hf.evaluation.attacks.ascent import Batch
from imbert_hf.evaluation.cost.measures import interleave, ratio
from imbert_hf.evaluation.cost.settings import make_batch
from imbert_hf.evaluation.cost.variants import floor_of, plain_bert


# classifier -> im_layers
CLASSIFIERS: dict[str, Any] = {
    "BERT": None,
    "IM-BERT, no implicit layer": [],
    "IM-BERT, last layer": [-1],
    "IM-BERT, all layers": "all",
}
ENGINES = ("eager", "torch.compile", "onnxruntime", "onnxruntime int8")
ITERATIONS = 3
BOUND = 1.05  # on time / floor in onnxruntime
Logits = Callable[[Batch], Tensor]


def classifiers(model: Any) -> dict[str, Any]:
    """A model of its own by each name, with the weights of `model`, an IM-BERT."""
    found = {}
    for name, layers in CLASSIFIERS.items():
        one = found[name] = plain_bert(model) if layers is None else copy.deepcopy(model)
        if layers is not None:
            one.config.im_layers, one.config.im_iterations = layers, ITERATIONS
    return found


def engines(model: Any, tokenizer: Any, folder: Path) -> Iterator[tuple[str, Logits, float]]:
    """Engine, what computes logits, and the megabytes that lie on disk."""
    compiled = torch.compile(model, dynamic=True)
    model.save_pretrained(folder / "torch")
    size = export.megabytes(folder / "torch")
    yield "eager", partial(_torch_logits, model), size
    yield "torch.compile", partial(_torch_logits, compiled), size
    for name in ENGINES[2:]:
        (folder / name).mkdir()
    first, int8 = (folder / name / "model.onnx" for name in ENGINES[2:])
    export.to_onnx(model, tokenizer, first.parent)
    int8.write_bytes(first.read_bytes())
    export.quantise(int8)
    for file in (first, int8):
        yield file.parent.name, partial(_onnx_logits, _session(file)), export.megabytes(file.parent)


@torch.no_grad()
def _torch_logits(model: Any, batch: Batch) -> Tensor:
    return model(**batch).logits


def _onnx_logits(session: Any, batch: Batch) -> Tensor:
    names = [given.name for given in session.get_inputs()]
    return torch.from_numpy(session.run(None, {name: batch[name].numpy() for name in names})[0])


def _session(file: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Its threads would go on spinning while the next engine is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def inputs(model: Any, rows: int, length: int, seed: int) -> Batch:
    """Random tokens without padding, as a tokenizer of BERT gives them."""
    batch = make_batch(model, None, None, rows, length, seed)
    return {
        "input_ids": batch["input_ids"],
        "token_type_ids": torch.zeros_like(batch["input_ids"]),
        "attention_mask": batch["attention_mask"],
    }


def floor(model: Any) -> float:
    """The layers' work at inference in units of BERT's."""
    if not hasattr(model.config, "implicit_layers"):
        return 1.0
    share = len(model.config.implicit_layers) / model.config.num_hidden_layers
    return floor_of(model, "fixed_point", "implicit", ITERATIONS, 1.0).to_bert(False, share)


def serve(
    model: Any, tokenizer: Any, batches: dict[str, tuple[int, int, int]], seed: int = 0, progress: bool = False
) -> list[dict[str, Any]]:
    """Time and size of every classifier in every engine.

    Args:
        model: IMBertForSequenceClassification in float32 on the CPU.
        batches: name -> rows, tokens and rounds.
        seed: of random tokens.

    Returns:
        One record an engine and classifier: engine; classifier; floor; megabytes; size_ratio; difference, the largest
        of a logit from the same model's in eager mode; batches, by name rows, median and p99 in seconds, texts a
        second, and ratio, quartiles and p99_ratio to BERT's times in this engine.
    """
    given = {name: inputs(model, rows, length, seed) for name, (rows, length, _) in batches.items()}
    records, run = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        models = classifiers(model)
        for k, (classifier, one) in enumerate(models.items()):
            folder = Path(temporary, str(k))
            folder.mkdir()
            for engine, logits, size in engines(one, tokenizer, folder):
                # The first call of each size is compiled.
                apart = [(logits(batch) - _torch_logits(one, batch)).abs().max().item() for batch in given.values()]
                run[engine, classifier] = logits
                about = {"engine": engine, "classifier": classifier, "floor": floor(one), "megabytes": size}
                records.append({**about, "difference": max(apart), "batches": {}})
        for name, (rows, _, rounds) in batches.items():
            actions = {key: partial(contextlib.nullcontext, partial(f, given[name])) for key, f in run.items()}
            interleave(actions, 1)
            seconds = interleave(actions, rounds, progress=progress)
            for found in records:
                own, bert = (seconds[found["engine"], what] for what in (found["classifier"], "BERT"))
                found["batches"][name] = _latency(own, bert, rows)
    base = {found["engine"]: found["megabytes"] for found in records if found["classifier"] == "BERT"}
    for found in records:
        found["size_ratio"] = found["megabytes"] / base[found["engine"]]
    return sorted(records, key=lambda found: ENGINES.index(found["engine"]))


def _latency(seconds: list[float], bert: list[float], rows: int) -> dict[str, Any]:
    timing = ratio(seconds, bert)
    median, p99 = numpy.quantile(seconds, (0.5, 0.99)).tolist()
    about = {"median": median, "p99": p99, "texts_per_second": rows / median}
    return {"rows": rows, **about, **timing, "p99_ratio": p99 / float(numpy.quantile(bert, 0.99))}


def targets(records: list[dict[str, Any]]) -> list[Record]:
    """Of each IM-BERT in onnxruntime: time / floor against its bound."""
    return [
        record(
            "onnxruntime / floor",
            f"{found['classifier']}, {name}",
            timing["ratio"] / found["floor"],
            BOUND,
            quartiles=[value / found["floor"] for value in timing["quartiles"]],
        )
        for found in records
        if found["engine"] == "onnxruntime" and found["classifier"] != "BERT"
        for name, timing in found["batches"].items()
    ]
