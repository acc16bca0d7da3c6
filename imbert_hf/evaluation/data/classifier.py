"""A sequence classifier of Transformers, its labels in GLUE's order, and its predictions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from scipy.special import softmax
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification

from imbert_hf.evaluation.data.loading import (
    adapted,
    check_path,
    fingerprint,
    first_line,
    load_pretrained,
    longest_input,
)
from imbert_hf.evaluation.data.tasks import Task, plain_name
from imbert_hf.evaluation.processes import share
from imbert_hf.evaluation.report import at_least


Texts = Sequence[tuple[str, ...]]

# What else the labels of GLUE are called, without case and punctuation.
_ALIASES = {
    "negative": {"neg"},
    "positive": {"pos"},
    "notentailment": {"nonentailment", "noentailment"},
    "notduplicate": {"nonduplicate", "notequivalent", "notparaphrase"},
    "duplicate": {"equivalent", "paraphrase"},
}


@dataclass(frozen=True, eq=False)
class Classifier:
    """A model with what is needed to ask it about texts of a task.

    Attributes:
        name: what tables call it.
        path: folder or Hub id that it was loaded from.
        model: in eval mode; maps input_ids, attention_mask, ... to an output with `logits` (batch, labels).
        tokenizer: the model's.
        task: whose labels it predicts.
        order: order[i] is the model's output for GLUE's label i.
        max_length: tokens; what is longer is truncated.
        fingerprint: tells checkpoints apart, so that a finished part is never taken for another's.
    """

    name: str
    path: str
    model: Any
    tokenizer: Any
    task: Task
    order: tuple[int, ...]
    max_length: int
    fingerprint: str = ""

    @property
    def implicit(self) -> bool:
        """Whether some layer solves an implicit step."""
        config = self.model.config
        return bool(getattr(config, "implicit_layers", ()) and config.im_theta)

    def key(self) -> dict[str, Any]:
        """What its predictions depend on, beside the texts."""
        names = ("fingerprint", "order", "max_length")
        kept = {name: getattr(self, name) for name in names} | {"task": self.task.name, "dtype": str(self.model.dtype)}
        # Set after loading, where a model stands in as plain BERT.
        return kept | {"im_layers": getattr(self.model.config, "im_layers", None)}

    def about(self) -> dict[str, Any]:
        """What results tell of it: labels in the order of its outputs, fingerprint and max_length."""
        labels = [label for _, label in sorted(zip(self.order, self.task.labels, strict=True))]
        return {"label_order": labels, "fingerprint": self.fingerprint, "max_length": self.max_length}

    def encode(self, texts: Texts) -> list[dict[str, list[int]]]:
        """One encoding a row, truncated and unpadded."""
        columns = [list(column) for column in zip(*texts, strict=True)]
        encoded = self.tokenizer(*columns, truncation=True, max_length=self.max_length, padding=False)
        return [{name: encoded[name][i] for name in encoded} for i in range(len(texts))]

    def collate(self, encodings: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        """A batch on the model's device, padded to its longest row."""
        # As a dictionary of columns: tokenizers warn where they are asked to pad a list.
        columns = {name: [encoding[name] for encoding in encodings] for name in encodings[0]}
        return self.tokenizer.pad(columns, return_tensors="pt").to(self.model.device)

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """(batch, labels) in GLUE's order, float32; differentiable."""
        return self.aligned(self.model(**batch).logits)

    def aligned(self, logits: Tensor) -> Tensor:
        return logits[:, list(self.order)].float()


@dataclass(frozen=True)
class Prediction:
    """What a classifier said of n rows.

    Attributes:
        logits: (n, labels) float32, in GLUE's order.
        residuals: (m, layers) relative residuals ||r|| / ||y|| of the implicit layers for the m rows on which they were
            measured; (0, 0) where none were.
        converged: (m, layers) bool, residual <= tolerance, or 1e-2 where the tolerance is 0.
    """

    logits: numpy.ndarray
    residuals: numpy.ndarray = field(default_factory=lambda: numpy.zeros((0, 0)))
    converged: numpy.ndarray = field(default_factory=lambda: numpy.zeros((0, 0), dtype=bool))

    @property
    def labels(self) -> numpy.ndarray:
        """(n,) GLUE's integers."""
        return self.logits.argmax(axis=1)

    def answers(self) -> dict[str, Any]:
        """`labels` and their `probabilities`, n each, as JSON can hold them."""
        probabilities = softmax(self.logits.astype(numpy.float64), axis=1).max(axis=1)
        return {"labels": self.labels.tolist(), "probabilities": probabilities.tolist()}


def load_classifier(
    path: str,
    task: Task,
    *,
    name: str | None = None,
    label_map: dict[str, int] | None = None,
    max_length: int | None = None,
    trust_remote_code: bool = False,
    device: str = "cpu",
    dtype: str = "float32",
) -> Classifier:
    """Loads any AutoModelForSequenceClassification, from a folder or the Hub.

    Args:
        path: folder or Hub id.
        task: whose labels the model must have.
        name: what tables call it; None: `path`.
        label_map: GLUE's label name -> index of the model's output, where config.id2label does not tell.
        max_length: tokens; None: the model's longest.
        trust_remote_code: run code that comes with the checkpoint.
        device, dtype: of the model, as torch names them.

    Raises:
        ValueError: it cannot be loaded, is no classifier, lacks a tokenizer, or its labels are not the task's.
    """
    model, tokenizer = load_pretrained(
        AutoModelForSequenceClassification,
        path,
        "sequence classifier",
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    longest = longest_input(model, tokenizer)
    if max_length is not None and not 8 <= max_length <= longest:
        raise ValueError(f"max_length must be from 8 to {longest} for {path}, got {max_length}.")
    return Classifier(
        name=name or path,
        path=path,
        model=model,
        tokenizer=tokenizer,
        task=task,
        order=align_labels(path, model.config.id2label, task, label_map),
        max_length=max_length or longest,
        fingerprint=fingerprint(path, model.config),
    )


def align_labels(
    path: str, id2label: dict[int, str], task: Task, label_map: dict[str, int] | None = None
) -> tuple[int, ...]:
    """order[i], the model's output for the task's label i, by the names in id2label.

    Raises:
        ValueError: another number of labels, names that do not tell, or a label_map that contradicts them.
    """
    names = [id2label[i] for i in sorted(id2label)]
    if task.own:
        names = named(path, names, label_map)
    if len(names) != len(task.labels):
        raise ValueError(
            f"model {path} has {len(names)} labels ({', '.join(names)}), and {task.name} has {len(task.labels)} "
            f"({', '.join(task.labels)})."
        )
    plain, known = [plain_name(name) for name in names], [plain_name(label) for label in task.labels]
    found = [[i for i, name in enumerate(plain) if name in {label} | _ALIASES.get(label, set())] for label in known]
    by_name = tuple(i for (i,) in found) if all(len(places) == 1 for places in found) else None
    if names == list(task.labels):  # also where case or punctuation alone tells two of them apart
        by_name = tuple(range(len(names)))
    if not task.own and label_map is not None and set(task.labels) <= set(label_map):
        order = tuple(label_map[label] for label in task.labels)
        if sorted(order) != list(range(len(names))):
            raise ValueError(f"label_map must use each of 0 to {len(names) - 1} once, got {label_map}.")
        if by_name not in (None, order):
            raise ValueError(f"label_map {label_map} contradicts the names in {path}: {', '.join(names)}.")
        return order
    if by_name is None:
        example = ",".join(f"{label}={i}" for i, label in enumerate(task.labels))
        raise ValueError(
            f"model {path} calls its labels {', '.join(names)}, which does not tell which is which of {task.name}'s; "
            f"say it with --label-map, such as {example}."
        )
    return by_name


def named(path: str, names: Sequence[str], label_map: dict[str, int] | None) -> list[str]:
    """The names of a model's outputs, those of `label_map` (name -> index) in place of the config's."""
    found = list(names)
    for name, index in (label_map or {}).items():
        if not 0 <= index < len(names):
            raise ValueError(
                f"--label-map must hold indices from 0 to {len(names) - 1} for {path}, got {name}={index}."
            )
        if any(plain_name(other) == plain_name(name) and i != index for i, other in enumerate(names)):
            raise ValueError(f"--label-map {name}={index} contradicts the names in {path}: {', '.join(names)}.")
        found[index] = name
    return found


def model_labels(path: str, label_map: dict[str, int] | None = None, trust_remote_code: bool = False) -> list[str]:
    """What the outputs of a single-label classifier are called, in their order."""
    check_path(path, "sequence classifier")
    try:
        config = AutoConfig.from_pretrained(adapted(path) or path, trust_remote_code=trust_remote_code)
    except Exception as error:  # each kind of damage raises its own
        raise ValueError(f"{path} cannot be loaded as a sequence classifier: {first_line(error)}") from None
    if config.num_labels < 2 or config.problem_type not in (None, "single_label_classification"):
        what = config.problem_type or f"of {config.num_labels} output"
        raise ValueError(f"{path} must be a classifier of one label out of two or more, got one for {what}.")
    return named(path, [config.id2label[i] for i in sorted(config.id2label)], label_map)


def length_sorted(encodings: Sequence[dict[str, list[int]]], batch_size: int) -> list[list[int]]:
    """Batches of indices, the longest rows first: little padding, and memory is short at once or never."""
    order = sorted(range(len(encodings)), key=lambda i: -len(encodings[i]["input_ids"]))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


@torch.inference_mode()
def predict(
    classifier: Classifier, texts: Texts, *, batch_size: int = 32, residuals: str = "sample", progress: bool = False
) -> Prediction:
    """Predictions in the order of `texts`, from batches sorted by length, which the processes of a launch share.

    Args:
        classifier: of load_classifier.
        texts: one tuple of the task's fields a row.
        batch_size: rows.
        residuals: of an implicit model's solves, for all rows, a "sample" (every fourth batch, since the measurement
            costs one more evaluation of each implicit layer), or "none".
        progress: show a bar.

    Raises:
        ValueError: the model's answer to some row is not finite.
    """
    at_least(1, batch_size=batch_size)
    encodings = classifier.encode(texts) if texts else []
    batches = length_sorted(encodings, batch_size)
    every = {"all": 1, "sample": 4, "none": 0}[residuals] if classifier.implicit else 0
    logits: Any = numpy.zeros((len(texts), len(classifier.order)), dtype=numpy.float32)

    def answer(number: int) -> list[numpy.ndarray]:
        batch = classifier.collate([encodings[i] for i in batches[number]])
        measure = every > 0 and number % every == min(every // 2, len(batches) - 1)
        outputs = classifier.model(**batch, **({"output_im_statistics": True} if measure else {}))
        found = [classifier.aligned(outputs.logits)]
        if measure:
            found.append(torch.stack(outputs.im_residuals, dim=1).float())
        return [of.cpu().numpy() for of in found]

    measured: list[numpy.ndarray] = []
    answers = share(answer, range(len(batches)), name=classifier.name, progress=progress)
    for rows, (of_rows, *residuals_of_rows) in zip(batches, answers, strict=True):
        logits[rows] = of_rows
        measured += residuals_of_rows
    if broken := int((~numpy.isfinite(logits).all(axis=1)).sum()):
        raise ValueError(f"model {classifier.path} gives logits that are not finite for {broken} of {len(texts)} rows.")
    if not measured:
        return Prediction(logits)
    found = numpy.concatenate(measured)
    return Prediction(logits, found, found <= (classifier.model.config.im_tolerance or 1e-2))
