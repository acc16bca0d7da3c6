"""IM-BERT: BERT with layers that take an implicit step. Drop-in: its parameters, heads, arguments and outputs.

The connection stands in layers_imbert.py, once for all families. This file travels with every checkpoint of the family,
and imports all that travel with it, so that older loaders copy them too.
"""

from typing import ClassVar

from transformers.models.bert import modeling_bert as family

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


class IMBertSelfAttention(ImplicitSelfAttention, family.BertSelfAttention):
    pass


class IMBertLayer(ImplicitLayer, family.BertLayer):
    pass


class IMBertEncoder(ImplicitEncoder, family.BertEncoder):
    pass


class IMBertPreTrainedModel(ImplicitPreTrainedModel, family.BertPreTrainedModel):
    config_class = IMBertConfig
    _no_split_modules = ["BertEmbeddings", "IMBertLayer"]  # noqa: RUF012 - as transformers declares it
    implicit_classes: ClassVar[dict[type, type]] = {
        family.BertSelfAttention: IMBertSelfAttention,
        family.BertLayer: IMBertLayer,
        family.BertEncoder: IMBertEncoder,
    }


class IMBertModel(IMBertPreTrainedModel, family.BertModel):
    forward = forward_of(family.BertModel.forward, IMBertModelOutput, encoder=True)


IMBertPreTrainedModel.implicit_classes[family.BertModel] = IMBertModel


class IMBertForPreTraining(IMBertPreTrainedModel, family.BertForPreTraining):
    forward = forward_of(family.BertForPreTraining.forward, IMBertForPreTrainingOutput)


class IMBertForMaskedLM(IMBertPreTrainedModel, family.BertForMaskedLM):
    forward = forward_of(family.BertForMaskedLM.forward, IMMaskedLMOutput)


class IMBertForNextSentencePrediction(IMBertPreTrainedModel, family.BertForNextSentencePrediction):
    forward = forward_of(family.BertForNextSentencePrediction.forward, IMNextSentencePredictorOutput)


class IMBertForSequenceClassification(IMBertPreTrainedModel, family.BertForSequenceClassification):
    forward = forward_of(family.BertForSequenceClassification.forward, IMSequenceClassifierOutput)


class IMBertForMultipleChoice(IMBertPreTrainedModel, family.BertForMultipleChoice):
    forward = forward_of(family.BertForMultipleChoice.forward, IMMultipleChoiceModelOutput)


class IMBertForTokenClassification(IMBertPreTrainedModel, family.BertForTokenClassification):
    forward = forward_of(family.BertForTokenClassification.forward, IMTokenClassifierOutput)


class IMBertForQuestionAnswering(IMBertPreTrainedModel, family.BertForQuestionAnswering):
    forward = forward_of(family.BertForQuestionAnswering.forward, IMQuestionAnsweringModelOutput)
