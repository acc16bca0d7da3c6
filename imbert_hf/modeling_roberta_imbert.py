"""IM-RoBERTa: RoBERTa with layers that take an implicit step. Drop-in: its parameters, heads, arguments and outputs.

The connection stands in implicit_imbert.py, once for all families. This file travels with every checkpoint of the
family, and imports all that travel with it, so that older loaders copy them too.
"""

from typing import ClassVar

from transformers.models.roberta.modeling_roberta import (
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
from .connection_imbert import Pass  # noqa: F401 - so that it travels, as those below
from .fixed_map_imbert import FixedMap  # noqa: F401
from .gradients_imbert import implicit_step  # noqa: F401
from .implicit_imbert import ImplicitLayer, ImplicitPreTrainedModel, ImplicitSelfAttention, model_forward
from .outputs_imbert import (
    IMBertModelOutput,
    IMMaskedLMOutput,
    IMQuestionAnsweringModelOutput,
    IMSequenceClassifierOutput,
    IMTokenClassifierOutput,
    forward_of,
)
from .solvers_imbert import Solver  # noqa: F401


IM_VERSION = "0.1.0"


class IMRobertaSelfAttention(ImplicitSelfAttention, RobertaSelfAttention):
    pass


class IMRobertaLayer(ImplicitLayer, RobertaLayer):
    pass


class IMRobertaPreTrainedModel(ImplicitPreTrainedModel, RobertaPreTrainedModel):
    config_class = IMRobertaConfig
    _no_split_modules = ["RobertaEmbeddings", "IMRobertaLayer"]  # noqa: RUF012 - as transformers declares it
    implicit_classes: ClassVar[dict[type, type]] = {
        RobertaSelfAttention: IMRobertaSelfAttention,
        RobertaLayer: IMRobertaLayer,
    }


class IMRobertaModel(IMRobertaPreTrainedModel, RobertaModel):
    _auto_class = "AutoModel"
    forward = forward_of(model_forward(RobertaModel.forward), IMBertModelOutput)


IMRobertaPreTrainedModel.implicit_classes[RobertaModel] = IMRobertaModel


class IMRobertaForMaskedLM(IMRobertaPreTrainedModel, RobertaForMaskedLM):
    _auto_class = "AutoModelForMaskedLM"
    forward = forward_of(RobertaForMaskedLM.forward, IMMaskedLMOutput)


class IMRobertaForSequenceClassification(IMRobertaPreTrainedModel, RobertaForSequenceClassification):
    _auto_class = "AutoModelForSequenceClassification"
    forward = forward_of(RobertaForSequenceClassification.forward, IMSequenceClassifierOutput)


class IMRobertaForTokenClassification(IMRobertaPreTrainedModel, RobertaForTokenClassification):
    _auto_class = "AutoModelForTokenClassification"
    forward = forward_of(RobertaForTokenClassification.forward, IMTokenClassifierOutput)


class IMRobertaForQuestionAnswering(IMRobertaPreTrainedModel, RobertaForQuestionAnswering):
    _auto_class = "AutoModelForQuestionAnswering"
    forward = forward_of(RobertaForQuestionAnswering.forward, IMQuestionAnsweringModelOutput)


__all__ = [
    "IMRobertaForMaskedLM",
    "IMRobertaForQuestionAnswering",
    "IMRobertaForSequenceClassification",
    "IMRobertaForTokenClassification",
    "IMRobertaModel",
    "IMRobertaPreTrainedModel",
]
