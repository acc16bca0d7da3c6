"""IM-ELECTRA: ELECTRA with layers that take an implicit step. Drop-in: its parameters, heads, arguments and outputs.

The connection stands in layers_imbert.py, once for all families. This file travels with every checkpoint of the family,
and imports all that travel with it, so that older loaders copy them too. MaskedLM is the generator's head.
"""

from typing import ClassVar

from transformers.models.electra import modeling_electra as family

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


class IMElectraSelfAttention(ImplicitSelfAttention, family.ElectraSelfAttention):
    pass


class IMElectraLayer(ImplicitLayer, family.ElectraLayer):
    pass


class IMElectraEncoder(ImplicitEncoder, family.ElectraEncoder):
    pass


class IMElectraPreTrainedModel(ImplicitPreTrainedModel, family.ElectraPreTrainedModel):
    config_class = IMElectraConfig
    _no_split_modules = ["ElectraEmbeddings", "IMElectraLayer"]  # noqa: RUF012 - as transformers declares it
    implicit_classes: ClassVar[dict[type, type]] = {
        family.ElectraSelfAttention: IMElectraSelfAttention,
        family.ElectraLayer: IMElectraLayer,
        family.ElectraEncoder: IMElectraEncoder,
    }


class IMElectraModel(IMElectraPreTrainedModel, family.ElectraModel):
    forward = forward_of(family.ElectraModel.forward, IMElectraModelOutput, encoder=True)


IMElectraPreTrainedModel.implicit_classes[family.ElectraModel] = IMElectraModel


class IMElectraForMaskedLM(IMElectraPreTrainedModel, family.ElectraForMaskedLM):
    forward = forward_of(family.ElectraForMaskedLM.forward, IMMaskedLMOutput)


class IMElectraForSequenceClassification(IMElectraPreTrainedModel, family.ElectraForSequenceClassification):
    forward = forward_of(family.ElectraForSequenceClassification.forward, IMSequenceClassifierOutput)


class IMElectraForTokenClassification(IMElectraPreTrainedModel, family.ElectraForTokenClassification):
    forward = forward_of(family.ElectraForTokenClassification.forward, IMTokenClassifierOutput)


class IMElectraForQuestionAnswering(IMElectraPreTrainedModel, family.ElectraForQuestionAnswering):
    forward = forward_of(family.ElectraForQuestionAnswering.forward, IMQuestionAnsweringModelOutput)
