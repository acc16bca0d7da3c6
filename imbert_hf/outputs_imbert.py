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


OUTPUTS: dict[type, Any] = {}  # transformers' class -> ours


def with_statistics(family_output: type) -> Any:
    """The dataclass of transformers' output and _Statistics, made once."""
    if family_output not in OUTPUTS:
        body = (f"IM{family_output.__name__}", (_Statistics, family_output), {"__module__": __name__})
        OUTPUTS[family_output] = dataclass(type(*body))
    return OUTPUTS[family_output]


# By these names they are pickled.
IMBaseModelOutputWithPoolingAndCrossAttentions = with_statistics(outputs.BaseModelOutputWithPoolingAndCrossAttentions)
IMBaseModelOutputWithPastAndCrossAttentions = with_statistics(outputs.BaseModelOutputWithPastAndCrossAttentions)
IMBertForPreTrainingOutput = with_statistics(BertForPreTrainingOutput)
IMMaskedLMOutput = with_statistics(outputs.MaskedLMOutput)
IMNextSentencePredictorOutput = with_statistics(outputs.NextSentencePredictorOutput)
IMSequenceClassifierOutput = with_statistics(outputs.SequenceClassifierOutput)
IMMultipleChoiceModelOutput = with_statistics(outputs.MultipleChoiceModelOutput)
IMTokenClassifierOutput = with_statistics(outputs.TokenClassifierOutput)
IMQuestionAnsweringModelOutput = with_statistics(outputs.QuestionAnsweringModelOutput)
