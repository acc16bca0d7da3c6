"""IM-ModernBERT: ModernBERT with layers that take an implicit step. Drop-in: its parameters, heads and outputs.

A layer of it adds what it computes to its input, with no norm behind: f(h) = F(h) - h is what it adds, and the family's
own step is the explicit one, as the theory has it.

The connection stands once for all families, in layers_imbert.py and models_imbert.py. This file travels with every
checkpoint of the family, and imports all that travel with it, so that older loaders copy them too.
"""

from typing import Any

from transformers import __version__


# Of 5.0 it takes inputs without padding, knows its rows by that, and compiles parts of itself as it is imported.
if __version__.startswith("5.0."):
    raise ImportError(f"IM-ModernBERT needs transformers >= 5.1, got {__version__}.")

from transformers.models.modernbert import modeling_modernbert as family

from .configuration_imbert import IMModernBertConfig
from .evaluations_imbert import FixedMap  # noqa: F401 - so that it travels, as the next ones
from .gradients_imbert import Gradient  # noqa: F401
from .layers_imbert import ImplicitLayer, ImplicitSelfAttention
from .models_imbert import ImplicitPreTrainedModel
from .outputs_imbert import with_statistics  # noqa: F401
from .pass_imbert import Pass  # noqa: F401
from .solvers_imbert import Solver  # noqa: F401
from .step_imbert import implicit_step  # noqa: F401


class IMModernBertSelfAttention(ImplicitSelfAttention, family.ModernBertAttention): ...


class IMModernBertLayer(ImplicitLayer, family.ModernBertEncoderLayer):
    im_rows = "position_embeddings"

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


class IMModernBertModel(IMModernBertPreTrainedModel, family.ModernBertModel): ...


class IMModernBertForMaskedLM(IMModernBertPreTrainedModel, family.ModernBertForMaskedLM): ...


class IMModernBertForSequenceClassification(
    IMModernBertPreTrainedModel, family.ModernBertForSequenceClassification
): ...


class IMModernBertForTokenClassification(IMModernBertPreTrainedModel, family.ModernBertForTokenClassification): ...


class IMModernBertForQuestionAnswering(IMModernBertPreTrainedModel, family.ModernBertForQuestionAnswering): ...


class IMModernBertForMultipleChoice(IMModernBertPreTrainedModel, family.ModernBertForMultipleChoice): ...
