"""IM-DistilBERT: DistilBERT with layers that take an implicit step. Drop-in: its parameters, heads and outputs.

The connection stands once for all families, in layers_imbert.py and models_imbert.py. This file travels with every
checkpoint of the family, and imports all that travel with it, so that older loaders copy them too.
"""

from typing import Any

from transformers.models.distilbert import modeling_distilbert as family

from .configuration_imbert import IMDistilBertConfig
from .evaluations_imbert import FixedMap  # noqa: F401 - so that it travels, as the next ones
from .gradients_imbert import Gradient  # noqa: F401
from .layers_imbert import ImplicitEncoder, ImplicitLayer, ImplicitSelfAttention
from .models_imbert import ImplicitPreTrainedModel
from .outputs_imbert import with_statistics  # noqa: F401
from .pass_imbert import Pass  # noqa: F401
from .solvers_imbert import Solver  # noqa: F401
from .step_imbert import implicit_step  # noqa: F401


class IMDistilBertSelfAttention(ImplicitSelfAttention, family.DistilBertSelfAttention): ...


class IMDistilBertLayer(ImplicitLayer, family.TransformerBlock):
    @property
    def im_attention(self) -> Any:
        return self.attention


class IMDistilBertEncoder(ImplicitEncoder, family.Transformer): ...


class IMDistilBertPreTrainedModel(ImplicitPreTrainedModel, family.DistilBertPreTrainedModel):
    """The base of the models below, as DistilBertPreTrainedModel of its own: weights, loading and saving."""

    config_class = IMDistilBertConfig
    _no_split_modules = ["Embeddings", "IMDistilBertLayer"]  # noqa: RUF012 - the family declares none
    implicit_classes = {  # noqa: RUF012
        family.DistilBertSelfAttention: IMDistilBertSelfAttention,
        family.TransformerBlock: IMDistilBertLayer,
        family.Transformer: IMDistilBertEncoder,
    }


class IMDistilBertModel(IMDistilBertPreTrainedModel, family.DistilBertModel): ...


class IMDistilBertForMaskedLM(IMDistilBertPreTrainedModel, family.DistilBertForMaskedLM): ...


class IMDistilBertForSequenceClassification(
    IMDistilBertPreTrainedModel, family.DistilBertForSequenceClassification
): ...


class IMDistilBertForTokenClassification(IMDistilBertPreTrainedModel, family.DistilBertForTokenClassification): ...


class IMDistilBertForQuestionAnswering(IMDistilBertPreTrainedModel, family.DistilBertForQuestionAnswering): ...


class IMDistilBertForMultipleChoice(IMDistilBertPreTrainedModel, family.DistilBertForMultipleChoice): ...
