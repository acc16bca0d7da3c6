"""IM-ELECTRA: ELECTRA with layers that take an implicit step. Drop-in: its parameters, heads, arguments and outputs.

The connection stands in layers_imbert.py, once for all families. This file travels with every checkpoint of the
family, and imports all that travel with it, so that older loaders copy them too. MaskedLM is the generator's head.
"""

from typing import ClassVar

from transformers.models.electra.modeling_electra import (
    ElectraEncoder,
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
from .gradients_imbert import implicit_step  # noqa: F401 - so that it travels, as solvers_imbert
from .layers_imbert import ImplicitEncoder, ImplicitLayer, ImplicitPreTrainedModel, ImplicitSelfAttention, forward_of
from .outputs_imbert import (
    IMElectraModelOutput,
    IMMaskedLMOutput,
    IMQuestionAnsweringModelOutput,
    IMSequenceClassifierOutput,
    IMTokenClassifierOutput,
)
from .solvers_imbert import Solver  # noqa: F401


class IMElectraSelfAttention(ImplicitSelfAttention, ElectraSelfAttention):
    pass


class IMElectraLayer(ImplicitLayer, ElectraLayer):
    pass


class IMElectraEncoder(ImplicitEncoder, ElectraEncoder):
    pass


class IMElectraPreTrainedModel(ImplicitPreTrainedModel, ElectraPreTrainedModel):
    config_class = IMElectraConfig
    _no_split_modules = ["ElectraEmbeddings", "IMElectraLayer"]  # noqa: RUF012 - as transformers declares it
    implicit_classes: ClassVar[dict[type, type]] = {
        ElectraSelfAttention: IMElectraSelfAttention,
        ElectraLayer: IMElectraLayer,
        ElectraEncoder: IMElectraEncoder,
    }


class IMElectraModel(IMElectraPreTrainedModel, ElectraModel):
    forward = forward_of(ElectraModel.forward, IMElectraModelOutput, encoder=True)


IMElectraPreTrainedModel.implicit_classes[ElectraModel] = IMElectraModel


class IMElectraForMaskedLM(IMElectraPreTrainedModel, ElectraForMaskedLM):
    forward = forward_of(ElectraForMaskedLM.forward, IMMaskedLMOutput)


class IMElectraForSequenceClassification(IMElectraPreTrainedModel, ElectraForSequenceClassification):
    forward = forward_of(ElectraForSequenceClassification.forward, IMSequenceClassifierOutput)


class IMElectraForTokenClassification(IMElectraPreTrainedModel, ElectraForTokenClassification):
    forward = forward_of(ElectraForTokenClassification.forward, IMTokenClassifierOutput)


class IMElectraForQuestionAnswering(IMElectraPreTrainedModel, ElectraForQuestionAnswering):
    forward = forward_of(ElectraForQuestionAnswering.forward, IMQuestionAnsweringModelOutput)


__all__ = [
    "IMElectraForMaskedLM",
    "IMElectraForQuestionAnswering",
    "IMElectraForSequenceClassification",
    "IMElectraForTokenClassification",
    "IMElectraModel",
    "IMElectraPreTrainedModel",
]
