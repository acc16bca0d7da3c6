"""IM-BERT: BERT with implicit layers, as a drop-in for Hugging Face Transformers; RoBERTa and ELECTRA too.

An independent implementation of Kim, Park and Kim, EMNLP 2024 (arXiv 2505.06889). Importing it registers the classes
with the Auto classes of Transformers.
"""

import transformers
from transformers import AutoConfig, AutoTokenizer, BertTokenizer, RobertaTokenizer

from . import modeling_electra_imbert, modeling_imbert, modeling_roberta_imbert
from .callbacks import IMBertStatisticsCallback, ThetaScheduleCallback
from .configuration_imbert import IM_VERSION, IMBertConfig, IMElectraConfig, IMRobertaConfig
from .gradients_imbert import Implicit, OneStep, Unrolled, implicit_step
from .modeling_electra_imbert import (
    IMElectraForMaskedLM,
    IMElectraForQuestionAnswering,
    IMElectraForSequenceClassification,
    IMElectraForTokenClassification,
    IMElectraModel,
    IMElectraPreTrainedModel,
)
from .modeling_imbert import (
    IMBertForMaskedLM,
    IMBertForMultipleChoice,
    IMBertForNextSentencePrediction,
    IMBertForPreTraining,
    IMBertForQuestionAnswering,
    IMBertForSequenceClassification,
    IMBertForTokenClassification,
    IMBertModel,
    IMBertPreTrainedModel,
)
from .modeling_roberta_imbert import (
    IMRobertaForMaskedLM,
    IMRobertaForQuestionAnswering,
    IMRobertaForSequenceClassification,
    IMRobertaForTokenClassification,
    IMRobertaModel,
    IMRobertaPreTrainedModel,
)
from .solvers_imbert import Anderson, FixedPoint, GradientDescent, Solution, ThetaMethod


__version__ = IM_VERSION

for config, models, tokenizer in (
    (IMBertConfig, modeling_imbert, BertTokenizer),
    (IMRobertaConfig, modeling_roberta_imbert, RobertaTokenizer),
    (IMElectraConfig, modeling_electra_imbert, BertTokenizer),
):
    AutoConfig.register(config.model_type, config)
    AutoTokenizer.register(config, fast_tokenizer_class=tokenizer)
    for auto_class, path in config.auto_map_of_family.items():
        if auto_class != "AutoConfig":
            getattr(transformers, auto_class).register(config, getattr(models, path.rpartition(".")[2]))

__all__ = [
    "Anderson",
    "FixedPoint",
    "GradientDescent",
    "IMBertConfig",
    "IMBertForMaskedLM",
    "IMBertForMultipleChoice",
    "IMBertForNextSentencePrediction",
    "IMBertForPreTraining",
    "IMBertForQuestionAnswering",
    "IMBertForSequenceClassification",
    "IMBertForTokenClassification",
    "IMBertModel",
    "IMBertPreTrainedModel",
    "IMBertStatisticsCallback",
    "IMElectraConfig",
    "IMElectraForMaskedLM",
    "IMElectraForQuestionAnswering",
    "IMElectraForSequenceClassification",
    "IMElectraForTokenClassification",
    "IMElectraModel",
    "IMElectraPreTrainedModel",
    "IMRobertaConfig",
    "IMRobertaForMaskedLM",
    "IMRobertaForQuestionAnswering",
    "IMRobertaForSequenceClassification",
    "IMRobertaForTokenClassification",
    "IMRobertaModel",
    "IMRobertaPreTrainedModel",
    "Implicit",
    "OneStep",
    "Solution",
    "ThetaMethod",
    "ThetaScheduleCallback",
    "Unrolled",
    "implicit_step",
]
