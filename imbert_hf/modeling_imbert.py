"""IM-BERT: BERT with layers that take an implicit step. Drop-in: its parameters, heads, arguments and outputs.

The connection stands in layers_imbert.py, once for all families. This file travels with every checkpoint, and imports
all that travel with it, so that older loaders copy them too.
"""

from typing import ClassVar

from transformers.models.bert.modeling_bert import (
    BertEncoder,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertLayer,
    BertModel,
    BertPreTrainedModel,
    BertSelfAttention,
)

from .configuration_imbert import IMBertConfig
from .gradients_imbert import implicit_step  # noqa: F401 - so that it travels, as solvers_imbert
from .layers_imbert import ImplicitEncoder, ImplicitLayer, ImplicitPreTrainedModel, ImplicitSelfAttention, forward_of
from .outputs_imbert import (
    IMBertForPreTrainingOutput,
    IMBertModelOutput,
    IMMaskedLMOutput,
    IMMultipleChoiceModelOutput,
    IMNextSentencePredictorOutput,
    IMQuestionAnsweringModelOutput,
    IMSequenceClassifierOutput,
    IMTokenClassifierOutput,
)
from .solvers_imbert import Solver  # noqa: F401


class IMBertSelfAttention(ImplicitSelfAttention, BertSelfAttention):
    pass


class IMBertLayer(ImplicitLayer, BertLayer):
    pass


class IMBertEncoder(ImplicitEncoder, BertEncoder):
    pass


class IMBertPreTrainedModel(ImplicitPreTrainedModel, BertPreTrainedModel):
    config_class = IMBertConfig
    _no_split_modules = ["BertEmbeddings", "IMBertLayer"]  # noqa: RUF012 - as transformers declares it
    implicit_classes: ClassVar[dict[type, type]] = {
        BertSelfAttention: IMBertSelfAttention,
        BertLayer: IMBertLayer,
        BertEncoder: IMBertEncoder,
    }


class IMBertModel(IMBertPreTrainedModel, BertModel):
    forward = forward_of(BertModel.forward, IMBertModelOutput, encoder=True)


IMBertPreTrainedModel.implicit_classes[BertModel] = IMBertModel


class IMBertForPreTraining(IMBertPreTrainedModel, BertForPreTraining):
    forward = forward_of(BertForPreTraining.forward, IMBertForPreTrainingOutput)


class IMBertForMaskedLM(IMBertPreTrainedModel, BertForMaskedLM):
    forward = forward_of(BertForMaskedLM.forward, IMMaskedLMOutput)


class IMBertForNextSentencePrediction(IMBertPreTrainedModel, BertForNextSentencePrediction):
    forward = forward_of(BertForNextSentencePrediction.forward, IMNextSentencePredictorOutput)


class IMBertForSequenceClassification(IMBertPreTrainedModel, BertForSequenceClassification):
    forward = forward_of(BertForSequenceClassification.forward, IMSequenceClassifierOutput)


class IMBertForMultipleChoice(IMBertPreTrainedModel, BertForMultipleChoice):
    forward = forward_of(BertForMultipleChoice.forward, IMMultipleChoiceModelOutput)


class IMBertForTokenClassification(IMBertPreTrainedModel, BertForTokenClassification):
    forward = forward_of(BertForTokenClassification.forward, IMTokenClassifierOutput)


class IMBertForQuestionAnswering(IMBertPreTrainedModel, BertForQuestionAnswering):
    forward = forward_of(BertForQuestionAnswering.forward, IMQuestionAnsweringModelOutput)


__all__ = [
    "IMBertForMaskedLM",
    "IMBertForMultipleChoice",
    "IMBertForNextSentencePrediction",
    "IMBertForPreTraining",
    "IMBertForQuestionAnswering",
    "IMBertForSequenceClassification",
    "IMBertForTokenClassification",
    "IMBertModel",
    "IMBertPreTrainedModel",
]
