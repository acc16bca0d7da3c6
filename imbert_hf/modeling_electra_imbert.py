"""IM-ELECTRA: ELECTRA with layers that take an implicit step. Drop-in: its parameters, heads, arguments and outputs.

The connection stands in implicit_imbert.py, once for all families. This file travels with every checkpoint of the
family, and imports all that travel with it, so that older loaders copy them too. MaskedLM is the generator's head.
"""

from typing import ClassVar

from transformers.models.electra.modeling_electra import (
    ElectraForMaskedLM,
    ElectraForQuestionAnswering,
    ElectraForSequenceClassification,
    ElectraForTokenClassification,
    ElectraLayer,
    ElectraModel,
    ElectraPreTrainedModel,
    ElectraSelfAttention,
)

from .configuration_imbert import IMElectraConfig
from .connection_imbert import Pass  # noqa: F401 - so that it travels, as those below
from .fixed_map_imbert import FixedMap  # noqa: F401
from .gradients_imbert import implicit_step  # noqa: F401
from .implicit_imbert import ImplicitLayer, ImplicitPreTrainedModel, ImplicitSelfAttention, model_forward
from .outputs_imbert import (
    IMElectraModelOutput,
    IMMaskedLMOutput,
    IMQuestionAnsweringModelOutput,
    IMSequenceClassifierOutput,
    IMTokenClassifierOutput,
    forward_of,
)
from .solvers_imbert import Solver  # noqa: F401


IM_VERSION = "0.1.0"


class IMElectraSelfAttention(ImplicitSelfAttention, ElectraSelfAttention):
    pass


class IMElectraLayer(ImplicitLayer, ElectraLayer):
    pass


class IMElectraPreTrainedModel(ImplicitPreTrainedModel, ElectraPreTrainedModel):
    config_class = IMElectraConfig
    _no_split_modules = ["ElectraEmbeddings", "IMElectraLayer"]  # noqa: RUF012 - as transformers declares it
    implicit_classes: ClassVar[dict[type, type]] = {
        ElectraSelfAttention: IMElectraSelfAttention,
        ElectraLayer: IMElectraLayer,
    }


class IMElectraModel(IMElectraPreTrainedModel, ElectraModel):
    _auto_class = "AutoModel"
    forward = forward_of(model_forward(ElectraModel.forward), IMElectraModelOutput)


IMElectraPreTrainedModel.implicit_classes[ElectraModel] = IMElectraModel


class IMElectraForMaskedLM(IMElectraPreTrainedModel, ElectraForMaskedLM):
    _auto_class = "AutoModelForMaskedLM"
    forward = forward_of(ElectraForMaskedLM.forward, IMMaskedLMOutput)


class IMElectraForSequenceClassification(IMElectraPreTrainedModel, ElectraForSequenceClassification):
    _auto_class = "AutoModelForSequenceClassification"
    forward = forward_of(ElectraForSequenceClassification.forward, IMSequenceClassifierOutput)


class IMElectraForTokenClassification(IMElectraPreTrainedModel, ElectraForTokenClassification):
    _auto_class = "AutoModelForTokenClassification"
    forward = forward_of(ElectraForTokenClassification.forward, IMTokenClassifierOutput)


class IMElectraForQuestionAnswering(IMElectraPreTrainedModel, ElectraForQuestionAnswering):
    _auto_class = "AutoModelForQuestionAnswering"
    forward = forward_of(ElectraForQuestionAnswering.forward, IMQuestionAnsweringModelOutput)


__all__ = [
    "IMElectraForMaskedLM",
    "IMElectraForQuestionAnswering",
    "IMElectraForSequenceClassification",
    "IMElectraForTokenClassification",
    "IMElectraModel",
    "IMElectraPreTrainedModel",
]
