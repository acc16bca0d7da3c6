"""IM-RoBERTa: RoBERTa with layers that take an implicit step. Drop-in: its parameters, heads, arguments and outputs.

The connection stands in layers_imbert.py, once for all families. This file travels with every checkpoint of the family,
and imports all that travel with it, so that older loaders copy them too.
"""

from typing import ClassVar

from transformers.models.roberta import modeling_roberta as family

from .configuration_imbert import IMRobertaConfig
from .gradients_imbert import implicit_step  # noqa: F401 - so that it travels, as solvers_imbert
from .layers_imbert import ImplicitEncoder, ImplicitLayer, ImplicitPreTrainedModel, ImplicitSelfAttention, forward_of
from .outputs_imbert import (
    IMBertModelOutput,
    IMMaskedLMOutput,
    IMQuestionAnsweringModelOutput,
    IMSequenceClassifierOutput,
    IMTokenClassifierOutput,
)
from .solvers_imbert import Solver  # noqa: F401


class IMRobertaSelfAttention(ImplicitSelfAttention, family.RobertaSelfAttention):
    pass


class IMRobertaLayer(ImplicitLayer, family.RobertaLayer):
    pass


class IMRobertaEncoder(ImplicitEncoder, family.RobertaEncoder):
    pass


class IMRobertaPreTrainedModel(ImplicitPreTrainedModel, family.RobertaPreTrainedModel):
    config_class = IMRobertaConfig
    _no_split_modules = ["RobertaEmbeddings", "IMRobertaLayer"]  # noqa: RUF012 - as transformers declares it
    implicit_classes: ClassVar[dict[type, type]] = {
        family.RobertaSelfAttention: IMRobertaSelfAttention,
        family.RobertaLayer: IMRobertaLayer,
        family.RobertaEncoder: IMRobertaEncoder,
    }


class IMRobertaModel(IMRobertaPreTrainedModel, family.RobertaModel):
    forward = forward_of(family.RobertaModel.forward, IMBertModelOutput, encoder=True)


IMRobertaPreTrainedModel.implicit_classes[family.RobertaModel] = IMRobertaModel


class IMRobertaForMaskedLM(IMRobertaPreTrainedModel, family.RobertaForMaskedLM):
    forward = forward_of(family.RobertaForMaskedLM.forward, IMMaskedLMOutput)


class IMRobertaForSequenceClassification(IMRobertaPreTrainedModel, family.RobertaForSequenceClassification):
    forward = forward_of(family.RobertaForSequenceClassification.forward, IMSequenceClassifierOutput)


class IMRobertaForTokenClassification(IMRobertaPreTrainedModel, family.RobertaForTokenClassification):
    forward = forward_of(family.RobertaForTokenClassification.forward, IMTokenClassifierOutput)


class IMRobertaForQuestionAnswering(IMRobertaPreTrainedModel, family.RobertaForQuestionAnswering):
    forward = forward_of(family.RobertaForQuestionAnswering.forward, IMQuestionAnsweringModelOutput)
