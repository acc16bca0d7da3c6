"""IM-RoBERTa: RoBERTa with layers that take an implicit step. Drop-in: its parameters, heads, arguments and outputs.

The connection stands in layers_imbert.py, once for all families. This file travels with every checkpoint of the
family, and imports all that travel with it, so that older loaders copy them too.
"""

from typing import ClassVar

from transformers.models.roberta.modeling_roberta import (
    RobertaEncoder,
    RobertaForMaskedLM,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaLayer,
    RobertaModel,
    RobertaPreTrainedModel,
    RobertaSelfAttention,
)

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


class IMRobertaSelfAttention(ImplicitSelfAttention, RobertaSelfAttention):
    pass


class IMRobertaLayer(ImplicitLayer, RobertaLayer):
    pass


class IMRobertaEncoder(ImplicitEncoder, RobertaEncoder):
    pass


class IMRobertaPreTrainedModel(ImplicitPreTrainedModel, RobertaPreTrainedModel):
    config_class = IMRobertaConfig
    _no_split_modules = ["RobertaEmbeddings", "IMRobertaLayer"]  # noqa: RUF012 - as transformers declares it
    implicit_classes: ClassVar[dict[type, type]] = {
        RobertaSelfAttention: IMRobertaSelfAttention,
        RobertaLayer: IMRobertaLayer,
        RobertaEncoder: IMRobertaEncoder,
    }


class IMRobertaModel(IMRobertaPreTrainedModel, RobertaModel):
    forward = forward_of(RobertaModel.forward, IMBertModelOutput, encoder=True)


IMRobertaPreTrainedModel.implicit_classes[RobertaModel] = IMRobertaModel


class IMRobertaForMaskedLM(IMRobertaPreTrainedModel, RobertaForMaskedLM):
    forward = forward_of(RobertaForMaskedLM.forward, IMMaskedLMOutput)


class IMRobertaForSequenceClassification(IMRobertaPreTrainedModel, RobertaForSequenceClassification):
    forward = forward_of(RobertaForSequenceClassification.forward, IMSequenceClassifierOutput)


class IMRobertaForTokenClassification(IMRobertaPreTrainedModel, RobertaForTokenClassification):
    forward = forward_of(RobertaForTokenClassification.forward, IMTokenClassifierOutput)


class IMRobertaForQuestionAnswering(IMRobertaPreTrainedModel, RobertaForQuestionAnswering):
    forward = forward_of(RobertaForQuestionAnswering.forward, IMQuestionAnsweringModelOutput)


__all__ = [
    "IMRobertaForMaskedLM",
    "IMRobertaForQuestionAnswering",
    "IMRobertaForSequenceClassification",
    "IMRobertaForTokenClassification",
    "IMRobertaModel",
    "IMRobertaPreTrainedModel",
]
