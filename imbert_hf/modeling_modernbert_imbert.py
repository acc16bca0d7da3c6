"""IM-ModernBERT: ModernBERT with layers that take an implicit step. Drop-in: its parameters, heads and outputs.

A layer of it adds what it computes to its input, with no norm behind: f(h) = F(h) - h is what it adds, and the family's
own step is the explicit one, as the theory has it.

The connection stands in layers_imbert.py, once for all families. This file travels with every checkpoint of the family,
and imports all that travel with it, so that older loaders copy them too.
"""

import inspect
from typing import Any

import transformers
from transformers.models.modernbert import modeling_modernbert as family

from .configuration_imbert import IMModernBertConfig
from .gradients_imbert import implicit_step  # noqa: F401 - so that it travels, as the next ones
from .layers_imbert import ImplicitLayer, ImplicitPreTrainedModel, ImplicitSelfAttention
from .outputs_imbert import with_statistics  # noqa: F401
from .solvers_imbert import Solver  # noqa: F401


class IMModernBertSelfAttention(ImplicitSelfAttention, family.ModernBertAttention): ...


class IMModernBertLayer(ImplicitLayer, family.ModernBertEncoderLayer):
    @property
    def im_attention(self) -> Any:
        return self.attn


class IMModernBertPreTrainedModel(ImplicitPreTrainedModel, family.ModernBertPreTrainedModel):
    """The base of the models below, as ModernBertPreTrainedModel of its own: weights, loading and saving."""

    config_class = IMModernBertConfig
    im_stack = "layers"
    _no_split_modules = ["ModernBertEmbeddings", "IMModernBertLayer"]  # noqa: RUF012 - as transformers declares it
    implicit_classes = {  # noqa: RUF012
        family.ModernBertAttention: IMModernBertSelfAttention,
        family.ModernBertEncoderLayer: IMModernBertLayer,
    }

    def __init__(self, *args, **kwargs):
        # Those of 5.0 take inputs without padding, and know their rows by it.
        if "cu_seqlens" in inspect.signature(family.ModernBertEncoderLayer.forward).parameters:
            raise ImportError(f"{type(self).__name__} needs transformers >= 5.1, got {transformers.__version__}.")
        super().__init__(*args, **kwargs)


class IMModernBertModel(IMModernBertPreTrainedModel, family.ModernBertModel): ...


class IMModernBertForMaskedLM(IMModernBertPreTrainedModel, family.ModernBertForMaskedLM): ...


class IMModernBertForSequenceClassification(
    IMModernBertPreTrainedModel, family.ModernBertForSequenceClassification
): ...


class IMModernBertForTokenClassification(IMModernBertPreTrainedModel, family.ModernBertForTokenClassification): ...


class IMModernBertForQuestionAnswering(IMModernBertPreTrainedModel, family.ModernBertForQuestionAnswering): ...


class IMModernBertForMultipleChoice(IMModernBertPreTrainedModel, family.ModernBertForMultipleChoice): ...
