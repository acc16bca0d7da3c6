"""The two models of the page, what they answer, and the solves behind an answer."""

import copy
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy
from scipy.special import softmax

from imbert_hf.evaluation.data.classifier import Classifier, load_classifier, predict
from imbert_hf.evaluation.data.tasks import Row, find_task
from imbert_hf.evaluation.report import finite
from imbert_hf.evaluation.stability.own import own_residuals


TASK = find_task("sst2")  # the labels negative and positive
CURVE = 12  # iterations that a curve of residuals shows
STEP_SIZES = (0.1, 3.0)  # of the slider


@dataclass(frozen=True)
class Reading:
    """How IM-BERT reads a text: the iterations of its solves, and the method's theta and step size."""

    iterations: int
    theta: float
    step_size: float


@dataclass(frozen=True)
class Solve:
    """The relative residual of an implicit layer after 0, 1, ... iterations; None where it is not finite."""

    layer: int
    residual: list[float | None]


@dataclass(frozen=True, eq=False)
class Models:
    """Both classifiers. No call changes them, so that calls may overlap."""

    bert: Classifier
    im_bert: Classifier

    @property
    def reading(self) -> Reading:
        """The model's own."""
        config = self.im_bert.model.config
        asked = config.im_eval_iterations
        return Reading(config.im_iterations if asked is None else asked, config.im_theta, config.im_step_size)

    def pair(self, reading: Reading) -> tuple[Classifier, Classifier]:
        """BERT, and IM-BERT as `reading` says.

        The weights are shared and nothing else, neither config nor hooks: who reads at the same time, reads otherwise.
        """
        model = self.im_bert.model
        tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        own = copy.deepcopy(model, tensors)
        own.config.im_eval_iterations = reading.iterations
        own.config.im_theta, own.config.im_step_size = reading.theta, reading.step_size
        return self.bert, replace(self.im_bert, model=own)

    def read_whole(self, text: str) -> bool:
        """Whether no word of the text lies beyond what a model reads."""
        pair = (self.bert, self.im_bert)
        return all(len(c.tokenizer(text, verbose=False)["input_ids"]) <= c.max_length for c in pair)


def load(bert: str, im_bert: str) -> Models:
    """Both models, from folders or the Hub.

    Raises:
        ValueError: one cannot be loaded or has other labels, or the second has no implicit layer.
    """
    models = Models(load_classifier(bert, TASK, name="BERT"), load_classifier(im_bert, TASK, name="IM-BERT"))
    if models.bert.implicit or not models.im_bert.implicit:
        raise ValueError(f"--bert must be a plain model and --im-bert an implicit one, got {bert} and {im_bert}.")
    config, reading = models.im_bert.model.config, models.reading
    shown = {"im_tolerance": 0.0, "im_vector_field": "increment", "im_initial_guess": "explicit"}
    wrong = [f"{name} {value!r}" for name, value in shown.items() if getattr(config, name) != value]
    wrong += [f"at most {CURVE} iterations"] * (reading.iterations > CURVE)
    wrong += ["im_step_size from {} to {}".format(*STEP_SIZES)] * (
        not STEP_SIZES[0] <= reading.step_size <= STEP_SIZES[1]
    )
    if wrong:
        raise ValueError(f"--im-bert {im_bert} must have {', '.join(wrong)}: the page shows no other.")
    return models


def probabilities(classifier: Classifier, texts: Sequence[str]) -> numpy.ndarray:
    """(texts, labels)."""
    logits = predict(classifier, [(text,) for text in texts], residuals="none").logits
    return softmax(logits.astype(numpy.float64), axis=1)


def solves(classifier: Classifier, text: str) -> list[Solve]:
    """Of each implicit layer, for this text; none where theta is 0."""
    found = own_residuals(classifier, [(text,)], CURVE)
    return [Solve(index, finite(found[index][:, 0])) for index in sorted(found)]


def reviews(path: Path, count: int = 20) -> list[Row]:
    """So many rows of the split "test", the same ones always."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    test = [Row((row["sentence"],), row["label"]) for row in rows if row["split"] == "test"]
    return random.Random(0).sample(test, min(count, len(test)))
