"""IM-BERT: BERT with layers that take an implicit step. Drop-in: its parameters, heads, arguments and outputs.

The connection stands once for all families, in layers_imbert.py and models_imbert.py. This file travels with every
checkpoint of the family, and imports all that travel with it, so that older loaders copy them too.
"""

from transformers.models.bert import modeling_bert as family

from .configuration_imbert import IMBertConfig
from .evaluations_imbert import FixedMap  # noqa: F401 - so that it travels, as the next ones
from .gradients_imbert import Gradient  # noqa: F401
from .layers_imbert import ImplicitEncoder, ImplicitLayer, ImplicitSelfAttention
from .models_imbert import ImplicitPreTrainedModel
from .outputs_imbert import with_statistics  # noqa: F401
from .pass_imbert import Pass  # noqa: F401
from .solvers_imbert import Solver  # noqa: F401
from .step_imbert import implicit_step  # noqa: F401


class IMBertSelfAttention(ImplicitSelfAttention, family.BertSelfAttention): ...


class IMBertLayer(ImplicitLayer, family.BertLayer): ...


class IMBertEncoder(ImplicitEncoder, family.BertEncoder): ...


class IMBertPreTrainedModel(ImplicitPreTrainedModel, family.BertPreTrainedModel):
    """The base of the models below, as BertPreTrainedModel of its own: weights, loading and saving."""

    config_class = IMBertConfig
    _no_split_modules = ["BertEmbeddings", "IMBertLayer"]  # noqa: RUF012 - as transformers declares it
    implicit_classes = {  # noqa: RUF012
        family.BertSelfAttention: IMBertSelfAttention,
        family.BertLayer: IMBertLayer,
        family.BertEncoder: IMBertEncoder,
    }


class IMBertModel(IMBertPreTrainedModel, family.BertModel): ...


class IMBertForPreTraining(IMBertPreTrainedModel, family.BertForPreTraining): ...


class IMBertForMaskedLM(IMBertPreTrainedModel, family.BertForMaskedLM): ...


class IMBertForNextSentencePrediction(IMBertPreTrainedModel, family.BertForNextSentencePrediction): ...


class IMBertForSequenceClassification(IMBertPreTrainedModel, family.BertForSequenceClassification): ...


class IMBertForMultipleChoice(IMBertPreTrainedModel, family.BertForMultipleChoice): ...


class IMBertForTokenClassification(IMBertPreTrainedModel, family.BertForTokenClassification): ...


class IMBertForQuestionAnswering(IMBertPreTrainedModel, family.BertForQuestionAnswering): ...
