"""The solves of a classifier itself, as its config has them, on given texts."""

from typing import Any

import torch
from torch import Tensor

from imbert_hf.evaluation.data.classifier import Classifier, Texts
from imbert_hf.evaluation.stability.layers import plain_layers
from imbert_hf.evaluation.stability.solves import residual_history
from imbert_hf.pass_imbert import SOLVERS


@torch.no_grad()
def own_residuals(classifier: Classifier, texts: Texts, iterations: int) -> dict[int, Tensor]:
    """Of each implicit layer, by index, the relative residual after 0, 1, ... `iterations` iterations of its solve.

    Each is (iterations + 1, texts); inf where it would not be finite. There is none where theta is 0.
    """
    model, config = classifier.model, classifier.model.config
    if not classifier.implicit:
        return {}
    method: dict[str, Any] = {"theta": config.im_theta, "step_size": config.im_step_size}
    method |= {"vector_field": config.im_vector_field, "initial_guess": config.im_initial_guess}
    solver, found = SOLVERS[config.im_solver](vars(config)), []
    for encoding in classifier.encode(texts):  # one by one, so that none is padded
        layers = plain_layers(model, classifier.collate([encoding]))
        of_text = [layers[i] for i in config.implicit_layers]
        found.append([residual_history(F, x, solver, iterations, **method) for F, x in of_text])
    return {i: torch.cat(of, dim=1) for i, of in zip(config.implicit_layers, zip(*found, strict=True), strict=True)}
