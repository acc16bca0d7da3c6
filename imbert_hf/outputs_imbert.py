"""The outputs of transformers with the statistics of the solves, and how far two of them lie apart.

This file travels with every checkpoint: it imports torch, transformers and the standard library alone.
"""

from dataclasses import dataclass
from typing import Any

import torch
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
    im_consistency_loss: (), what `loss` has im_consistency times of, see `divergence`. None unless in training, with
        labels and a weight above 0.
    """

    im_residuals: tuple[Tensor, ...] | None = None
    im_iterations_used: tuple[Tensor, ...] | None = None
    im_consistency_loss: Tensor | None = None


OUTPUTS: dict[type, Any] = {}  # transformers' class -> ours


def with_statistics(family_output: type) -> Any:
    """The dataclass of transformers' output and _Statistics, made once."""
    if family_output not in OUTPUTS:
        body = (f"IM{family_output.__name__}", (_Statistics, family_output), {"__module__": __name__})
        OUTPUTS[family_output] = dataclass(type(*body))
    return OUTPUTS[family_output]


# By these names they are pickled, and a compiler, which can make no class, finds them.
IMBaseModelOutput = with_statistics(outputs.BaseModelOutput)
IMBaseModelOutputWithPoolingAndCrossAttentions = with_statistics(outputs.BaseModelOutputWithPoolingAndCrossAttentions)
IMBaseModelOutputWithPastAndCrossAttentions = with_statistics(outputs.BaseModelOutputWithPastAndCrossAttentions)
IMBertForPreTrainingOutput = with_statistics(BertForPreTrainingOutput)
IMMaskedLMOutput = with_statistics(outputs.MaskedLMOutput)
IMNextSentencePredictorOutput = with_statistics(outputs.NextSentencePredictorOutput)
IMSequenceClassifierOutput = with_statistics(outputs.SequenceClassifierOutput)
IMMultipleChoiceModelOutput = with_statistics(outputs.MultipleChoiceModelOutput)
IMTokenClassifierOutput = with_statistics(outputs.TokenClassifierOutput)
IMQuestionAnsweringModelOutput = with_statistics(outputs.QuestionAnsweringModelOutput)


def divergence(implicit: Any, explicit: Any, labels: Any, problem_type: str | None) -> Tensor:
    """KL(p || q) + KL(q || p) of a head's two outputs, () and at least in float32.

    For distributions of one exponential family it is the inner product of the differences of their means and of their
    natural parameters: of softmax(z) and log_softmax(z) for logits z, of sigmoid(z) and z summed over the labels of a
    multi-label problem; of z and z for a regression, normal distributions of variance 1, which is the squared
    difference, summed over targets. The mean is over examples, or over tokens whose label is not -100. Heads with two
    losses treat both alike: question answering takes the mean of the pointers, pretraining the sum.

    Args:
        implicit, explicit: the same output of transformers twice, (..., classes) where a name ends with logits.
        labels: (batch, length) of logits of tokens.
        problem_type: "regression", "multi_label_classification", or other for classes that exclude each other.
    """
    total: Any = 0.0
    for name in (name for name in implicit if name.endswith("logits")):
        p, q = (
            output[name].to(torch.promote_types(output[name].dtype, torch.float32)) for output in (implicit, explicit)
        )
        if problem_type == "regression":
            p, q = (z.reshape(len(z), -1) for z in (p, q))  # some heads drop the dimension of one target
            means = p - q
        elif problem_type == "multi_label_classification":
            means = p.sigmoid() - q.sigmoid()
        else:
            p, q = p.log_softmax(-1), q.log_softmax(-1)
            means = p.exp() - q.exp()
        rows = (means * (p - q)).sum(-1)
        if rows.dim() == 1:
            total = total + rows.mean()
        else:
            known = (labels != -100).view_as(rows)
            total = total + torch.where(known, rows, 0).sum() / known.sum().clamp(min=1)
    return total / 2 if "start_logits" in implicit else total
