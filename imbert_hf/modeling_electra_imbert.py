"""IM-ELECTRA: ELECTRA with layers that take an implicit step. Drop-in: its parameters, heads, arguments and outputs.

The connection stands once for all families, in layers_imbert.py and models_imbert.py. This file travels with every
checkpoint of the family, and imports all that travel with it, so that older loaders copy them too. MaskedLM is the
generator's head.
"""

from transformers.models.electra import modeling_electra as family

from .configuration_imbert import IMElectraConfig
from .evaluations_imbert import FixedMap  # noqa: F401 - so that it travels, as the next ones
from .gradients_imbert import Gradient  # noqa: F401
from .layers_imbert import ImplicitEncoder, ImplicitLayer, ImplicitSelfAttention
from .models_imbert import ImplicitPreTrainedModel
from .outputs_imbert import with_statistics  # noqa: F401
from .pass_imbert import Pass  # noqa: F401
from .solvers_imbert import Solver  # noqa: F401
from .step_imbert import implicit_step  # noqa: F401


class IMElectraSelfAttention(ImplicitSelfAttention, family.ElectraSelfAttention): ...


class IMElectraLayer(ImplicitLayer, family.ElectraLayer): ...


class IMElectraEncoder(ImplicitEncoder, family.ElectraEncoder): ...


class IMElectraPreTrainedModel(ImplicitPreTrainedModel, family.ElectraPreTrainedModel):
    """The base of the models below, as ElectraPreTrainedModel of its own: weights, loading and saving."""

    config_class = IMElectraConfig
    _no_split_modules = ["ElectraEmbeddings", "IMElectraLayer"]  # noqa: RUF012 - as transformers declares it
    implicit_classes = {  # noqa: RUF012
        family.ElectraSelfAttention: IMElectraSelfAttention,
        family.ElectraLayer: IMElectraLayer,
        family.ElectraEncoder: IMElectraEncoder,
    }


class IMElectraModel(IMElectraPreTrainedModel, family.ElectraModel): ...


class IMElectraForMaskedLM(IMElectraPreTrainedModel, family.ElectraForMaskedLM): ...


class IMElectraForSequenceClassification(IMElectraPreTrainedModel, family.ElectraForSequenceClassification): ...


class IMElectraForTokenClassification(IMElectraPreTrainedModel, family.ElectraForTokenClassification): ...


class IMElectraForQuestionAnswering(IMElectraPreTrainedModel, family.ElectraForQuestionAnswering): ...
