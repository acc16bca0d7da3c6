"""IM-BERT: BERT with layers that take an implicit step. Drop-in: its parameters, heads, arguments and outputs.

The connection stands in implicit_imbert.py, once for all families. This file travels with every checkpoint, and imports
all that travel with it, so that older loaders copy them too.
"""

from typing import ClassVar

from transformers.models.bert.modeling_bert import (
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
from .connection_imbert import Pass  # noqa: F401 - so that it travels, as those below
from .fixed_map_imbert import FixedMap  # noqa: F401
from .gradients_imbert import implicit_step  # noqa: F401
from .implicit_imbert import ImplicitLayer, ImplicitPreTrainedModel, ImplicitSelfAttention, model_forward
from .outputs_imbert import (
    IMBertForPreTrainingOutput,
    IMBertModelOutput,
    IMMaskedLMOutput,
    IMMultipleChoiceModelOutput,
    IMNextSentencePredictorOutput,
    IMQuestionAnsweringModelOutput,
    IMSequenceClassifierOutput,
    IMTokenClassifierOutput,
    forward_of,
)
from .solvers_imbert import Solver  # noqa: F401


IM_VERSION = "0.1.0"


class IMBertSelfAttention(ImplicitSelfAttention, BertSelfAttention):
    pass


class IMBertLayer(ImplicitLayer, BertLayer):
    pass


class IMBertPreTrainedModel(ImplicitPreTrainedModel, BertPreTrainedModel):
    config_class = IMBertConfig
    _no_split_modules = ["BertEmbeddings", "IMBertLayer"]  # noqa: RUF012 - as transformers declares it
    implicit_classes: ClassVar[dict[type, type]] = {
        BertSelfAttention: IMBertSelfAttention,
        BertLayer: IMBertLayer,
    }


class IMBertModel(IMBertPreTrainedModel, BertModel):
    _auto_class = "AutoModel"
    forward = forward_of(model_forward(BertModel.forward), IMBertModelOutput)


IMBertPreTrainedModel.implicit_classes[BertModel] = IMBertModel


class IMBertForPreTraining(IMBertPreTrainedModel, BertForPreTraining):
    _auto_class = "AutoModelForPreTraining"
    forward = forward_of(BertForPreTraining.forward, IMBertForPreTrainingOutput)


class IMBertForMaskedLM(IMBertPreTrainedModel, BertForMaskedLM):
    _auto_class = "AutoModelForMaskedLM"
    forward = forward_of(BertForMaskedLM.forward, IMMaskedLMOutput)


class IMBertForNextSentencePrediction(IMBertPreTrainedModel, BertForNextSentencePrediction):
    _auto_class = "AutoModelForNextSentencePrediction"
    forward = forward_of(BertForNextSentencePrediction.forward, IMNextSentencePredictorOutput)


class IMBertForSequenceClassification(IMBertPreTrainedModel, BertForSequenceClassification):
    _auto_class = "AutoModelForSequenceClassification"
    forward = forward_of(BertForSequenceClassification.forward, IMSequenceClassifierOutput)


class IMBertForMultipleChoice(IMBertPreTrainedModel, BertForMultipleChoice):
    _auto_class = "AutoModelForMultipleChoice"
    forward = forward_of(BertForMultipleChoice.forward, IMMultipleChoiceModelOutput)


class IMBertForTokenClassification(IMBertPreTrainedModel, BertForTokenClassification):
    _auto_class = "AutoModelForTokenClassification"
    forward = forward_of(BertForTokenClassification.forward, IMTokenClassifierOutput)


class IMBertForQuestionAnswering(IMBertPreTrainedModel, BertForQuestionAnswering):
    _auto_class = "AutoModelForQuestionAnswering"
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
