"""The outputs of transformers with the statistics of the solves.

This file travels with every checkpoint: it imports torch, transformers and the standard library alone.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import modeling_outputs as outputs
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


def _with_statistics(name: str, family_output: type) -> Any:
    """The dataclass `name` of this module: transformers' output and _Statistics."""
    return dataclass(type(name, (_Statistics, family_output), {"__module__": __name__}))


IMBertModelOutput = _with_statistics("IMBertModelOutput", outputs.BaseModelOutputWithPoolingAndCrossAttentions)
IMElectraModelOutput = _with_statistics("IMElectraModelOutput", outputs.BaseModelOutputWithCrossAttentions)  # no pooler
IMBertForPreTrainingOutput = _with_statistics("IMBertForPreTrainingOutput", BertForPreTrainingOutput)
IMMaskedLMOutput = _with_statistics("IMMaskedLMOutput", outputs.MaskedLMOutput)
IMNextSentencePredictorOutput = _with_statistics("IMNextSentencePredictorOutput", outputs.NextSentencePredictorOutput)
IMSequenceClassifierOutput = _with_statistics("IMSequenceClassifierOutput", outputs.SequenceClassifierOutput)
IMMultipleChoiceModelOutput = _with_statistics("IMMultipleChoiceModelOutput", outputs.MultipleChoiceModelOutput)
IMTokenClassifierOutput = _with_statistics("IMTokenClassifierOutput", outputs.TokenClassifierOutput)
IMQuestionAnsweringModelOutput = _with_statistics(
    "IMQuestionAnsweringModelOutput", outputs.QuestionAnsweringModelOutput
)
