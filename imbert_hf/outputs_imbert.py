"""The outputs of transformers with the statistics of the solves.

This file travels with every checkpoint: it imports torch, transformers and the standard library alone.
"""

from dataclasses import dataclass

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


@dataclass
class _Statistics:
    """Fields that every output adds to transformers' own.

    im_residuals: per implicit layer (batch,), the relative residual ||r|| / ||y|| of the solve.
    im_iterations_used: per implicit layer (batch,) int64, iterations of the solve.
    Both are None unless output_im_statistics=True is passed, which costs one more evaluation of each implicit layer,
    but none where a gradient of "implicit" is recorded, or with a tolerance.
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
