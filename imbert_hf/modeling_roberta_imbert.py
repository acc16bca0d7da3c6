"""IM-RoBERTa: RoBERTa with layers that take an implicit step. Drop-in: its parameters, heads, arguments and outputs.

The connection stands once for all families, in layers_imbert.py and models_imbert.py. This file travels with every
checkpoint of the family, and imports all that travel with it, so that older loaders copy them too.
"""

from transformers.models.roberta import modeling_roberta as family

from .configuration_imbert import IMRobertaConfig
from .evaluations_imbert import FixedMap  # noqa: F401 - so that it travels, as the next ones
from .gradients_imbert import Gradient  # noqa: F401
from .layers_imbert import ImplicitEncoder, ImplicitLayer, ImplicitSelfAttention
from .models_imbert import ImplicitPreTrainedModel
from .outputs_imbert import with_statistics  # noqa: F401
from .pass_imbert import Pass  # noqa: F401
from .solvers_imbert import Solver  # noqa: F401
from .step_imbert import implicit_step  # noqa: F401


class IMRobertaSelfAttention(ImplicitSelfAttention, family.RobertaSelfAttention): ...


class IMRobertaLayer(ImplicitLayer, family.RobertaLayer): ...


class IMRobertaEncoder(ImplicitEncoder, family.RobertaEncoder): ...


class IMRobertaPreTrainedModel(ImplicitPreTrainedModel, family.RobertaPreTrainedModel):
    """The base of the models below, as RobertaPreTrainedModel of its own: weights, loading and saving."""

    config_class = IMRobertaConfig
    _no_split_modules = ["RobertaEmbeddings", "IMRobertaLayer"]  # noqa: RUF012 - as transformers declares it
    implicit_classes = {  # noqa: RUF012
        family.RobertaSelfAttention: IMRobertaSelfAttention,
        family.RobertaLayer: IMRobertaLayer,
        family.RobertaEncoder: IMRobertaEncoder,
    }


class IMRobertaModel(IMRobertaPreTrainedModel, family.RobertaModel): ...


class IMRobertaForMaskedLM(IMRobertaPreTrainedModel, family.RobertaForMaskedLM): ...


class IMRobertaForSequenceClassification(IMRobertaPreTrainedModel, family.RobertaForSequenceClassification): ...


class IMRobertaForTokenClassification(IMRobertaPreTrainedModel, family.RobertaForTokenClassification): ...


class IMRobertaForQuestionAnswering(IMRobertaPreTrainedModel, family.RobertaForQuestionAnswering): ...
