"""IM-BERT: BERT with implicit layers, as a drop-in for Hugging Face Transformers.

An independent implementation of Kim, Park and Kim, EMNLP 2024 (arXiv 2505.06889). Importing it registers the classes
with the Auto classes of Transformers.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForNextSentencePrediction,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertTokenizer,
)

from .callbacks import IMBertStatisticsCallback
from .configuration_imbert import IMBertConfig
from .gradients_imbert import Implicit, OneStep, Unrolled, implicit_step
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
from .solvers_imbert import Anderson, FixedPoint, GradientDescent, Solution


__version__ = "0.1.0"

AutoConfig.register(IMBertConfig.model_type, IMBertConfig)
AutoTokenizer.register(IMBertConfig, fast_tokenizer_class=BertTokenizer)
AutoModel.register(IMBertConfig, IMBertModel)
AutoModelForPreTraining.register(IMBertConfig, IMBertForPreTraining)
AutoModelForMaskedLM.register(IMBertConfig, IMBertForMaskedLM)
AutoModelForNextSentencePrediction.register(IMBertConfig, IMBertForNextSentencePrediction)
AutoModelForSequenceClassification.register(IMBertConfig, IMBertForSequenceClassification)
AutoModelForMultipleChoice.register(IMBertConfig, IMBertForMultipleChoice)
AutoModelForTokenClassification.register(IMBertConfig, IMBertForTokenClassification)
AutoModelForQuestionAnswering.register(IMBertConfig, IMBertForQuestionAnswering)

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
    "Implicit",
    "OneStep",
    "Solution",
    "Unrolled",
    "implicit_step",
]
