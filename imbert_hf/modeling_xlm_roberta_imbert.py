"""IM-XLM-RoBERTa: XLM-RoBERTa with layers that take an implicit step. Drop-in: its parameters, heads and outputs.

The connection stands once for all families, in layers_imbert.py and models_imbert.py. This file travels with every
checkpoint of the family, and imports all that travel with it, so that older loaders copy them too.
"""

from transformers.models.xlm_roberta import modeling_xlm_roberta as family

from .configuration_imbert import IMXLMRobertaConfig
from .evaluations_imbert import FixedMap  # noqa: F401 - so that it travels, as the next ones
from .gradients_imbert import Gradient  # noqa: F401
from .layers_imbert import ImplicitEncoder, ImplicitLayer, ImplicitSelfAttention
from .models_imbert import ImplicitPreTrainedModel
from .outputs_imbert import with_statistics  # noqa: F401
from .pass_imbert import Pass  # noqa: F401
from .solvers_imbert import Solver  # noqa: F401
from .step_imbert import implicit_step  # noqa: F401


class IMXLMRobertaSelfAttention(ImplicitSelfAttention, family.XLMRobertaSelfAttention): ...


class IMXLMRobertaLayer(ImplicitLayer, family.XLMRobertaLayer): ...


class IMXLMRobertaEncoder(ImplicitEncoder, family.XLMRobertaEncoder): ...


class IMXLMRobertaPreTrainedModel(ImplicitPreTrainedModel, family.XLMRobertaPreTrainedModel):
    """The base of the models below, as XLMRobertaPreTrainedModel of its own: weights, loading and saving."""

    config_class = IMXLMRobertaConfig
    _no_split_modules = ["XLMRobertaEmbeddings", "IMXLMRobertaLayer"]  # noqa: RUF012 - as transformers declares it
    implicit_classes = {  # noqa: RUF012
        family.XLMRobertaSelfAttention: IMXLMRobertaSelfAttention,
        family.XLMRobertaLayer: IMXLMRobertaLayer,
        family.XLMRobertaEncoder: IMXLMRobertaEncoder,
    }


class IMXLMRobertaModel(IMXLMRobertaPreTrainedModel, family.XLMRobertaModel): ...


class IMXLMRobertaForMaskedLM(IMXLMRobertaPreTrainedModel, family.XLMRobertaForMaskedLM): ...


class IMXLMRobertaForSequenceClassification(
    IMXLMRobertaPreTrainedModel, family.XLMRobertaForSequenceClassification
): ...


class IMXLMRobertaForTokenClassification(IMXLMRobertaPreTrainedModel, family.XLMRobertaForTokenClassification): ...


class IMXLMRobertaForQuestionAnswering(IMXLMRobertaPreTrainedModel, family.XLMRobertaForQuestionAnswering): ...
