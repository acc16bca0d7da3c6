"""The outputs of transformers with the statistics of the solves, and forwards that return them.

This file travels with every checkpoint: it imports torch, transformers and the standard library alone.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import (
    BaseModelOutputWithCrossAttentions,
    BaseModelOutputWithPoolingAndCrossAttentions,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    NextSentencePredictorOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.models.bert.modeling_bert import BertForPreTrainingOutput


IM_VERSION = "0.1.0"


@dataclass
class _Statistics:
    """Fields that every output adds to transformers' own.

    im_residuals: per implicit layer (batch,), the relative residual ||r|| / ||y|| of the solve.
    im_iterations_used: per implicit layer (batch,) int64, iterations of the solve.
    Both are None unless output_im_statistics=True is passed, which costs one more evaluation of each implicit layer.
    """

    im_residuals: tuple[Tensor, ...] | None = None
    im_iterations_used: tuple[Tensor, ...] | None = None


@dataclass
class IMBertModelOutput(_Statistics, BaseModelOutputWithPoolingAndCrossAttentions):
    pass


@dataclass
class IMElectraModelOutput(_Statistics, BaseModelOutputWithCrossAttentions):
    """Without a pooled output, which ELECTRA has not."""


@dataclass
class IMBertForPreTrainingOutput(_Statistics, BertForPreTrainingOutput):
    pass


@dataclass
class IMMaskedLMOutput(_Statistics, MaskedLMOutput):
    pass


@dataclass
class IMNextSentencePredictorOutput(_Statistics, NextSentencePredictorOutput):
    pass


@dataclass
class IMSequenceClassifierOutput(_Statistics, SequenceClassifierOutput):
    pass


@dataclass
class IMMultipleChoiceModelOutput(_Statistics, MultipleChoiceModelOutput):
    pass


@dataclass
class IMTokenClassifierOutput(_Statistics, TokenClassifierOutput):
    pass


@dataclass
class IMQuestionAnsweringModelOutput(_Statistics, QuestionAnsweringModelOutput):
    pass


def forward_of(family_forward: Callable, output_class: type) -> Any:
    """The family's own forward, with output_im_statistics among its arguments and the statistics in its output."""

    @wraps(family_forward)
    def forward(self: Any, *args, output_im_statistics=None, return_dict=None, im_statistics=None, **kwargs):
        if im_statistics is None and output_im_statistics:
            im_statistics = []
        outputs = family_forward(self, *args, im_statistics=im_statistics, return_dict=True, **kwargs)
        outputs = output_class(**outputs)
        if im_statistics is not None:
            outputs["im_residuals"] = tuple(residual for residual, _ in im_statistics)
            outputs["im_iterations_used"] = tuple(steps for _, steps in im_statistics)
        if return_dict is None:
            return_dict = getattr(self.config, "return_dict", True)
        return outputs if return_dict else outputs.to_tuple()

    signature = inspect.signature(family_forward)
    parameters = list(signature.parameters.values())
    added = inspect.Parameter(
        "output_im_statistics", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=bool | None
    )
    has_kwargs = parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    parameters.insert(len(parameters) - has_kwargs, added)
    forward.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return forward
