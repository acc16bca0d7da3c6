"""IM-BERT: BERT with implicit layers, as a drop-in for Hugging Face Transformers; six families more.

An independent implementation of Kim, Park and Kim, EMNLP 2024 (arXiv 2505.06889). Importing it registers the classes
with the Auto classes of Transformers.
"""

from typing import Any

import transformers
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertTokenizer,
    DebertaV2Tokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

from . import (
    modeling_deberta_v2_imbert,
    modeling_distilbert_imbert,
    modeling_electra_imbert,
    modeling_imbert,
    modeling_roberta_imbert,
    modeling_xlm_roberta_imbert,
)
from .callbacks import IMBertStatisticsCallback, ThetaScheduleCallback
from .configuration_imbert import (
    IM_VERSION,
    IMBertConfig,
    IMDebertaV2Config,
    IMDistilBertConfig,
    IMElectraConfig,
    IMModernBertConfig,
    IMRobertaConfig,
    IMXLMRobertaConfig,
)
from .gradients_imbert import Implicit, OneStep, Unrolled
from .modeling_deberta_v2_imbert import (
    IMDebertaV2ForMaskedLM,
    IMDebertaV2ForMultipleChoice,
    IMDebertaV2ForQuestionAnswering,
    IMDebertaV2ForSequenceClassification,
    IMDebertaV2ForTokenClassification,
    IMDebertaV2Model,
    IMDebertaV2PreTrainedModel,
)
from .modeling_distilbert_imbert import (
    IMDistilBertForMaskedLM,
    IMDistilBertForMultipleChoice,
    IMDistilBertForQuestionAnswering,
    IMDistilBertForSequenceClassification,
    IMDistilBertForTokenClassification,
    IMDistilBertModel,
    IMDistilBertPreTrainedModel,
)
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
from .modeling_xlm_roberta_imbert import (
    IMXLMRobertaForMaskedLM,
    IMXLMRobertaForQuestionAnswering,
    IMXLMRobertaForSequenceClassification,
    IMXLMRobertaForTokenClassification,
    IMXLMRobertaModel,
    IMXLMRobertaPreTrainedModel,
)
from .solvers_imbert import Anderson, FixedPoint, GradientDescent, Solution, ThetaMethod
from .step_imbert import implicit_step


try:
    from . import modeling_modernbert_imbert
    from .modeling_modernbert_imbert import (
        IMModernBertForMaskedLM,
        IMModernBertForMultipleChoice,
        IMModernBertForQuestionAnswering,
        IMModernBertForSequenceClassification,
        IMModernBertForTokenClassification,
        IMModernBertModel,
        IMModernBertPreTrainedModel,
    )
except ImportError as error:  # of transformers 5.0
    modeling_modernbert_imbert = None  # type: ignore[assignment]
    _no_modernbert = str(error)


def __getattr__(name: str) -> Any:
    if modeling_modernbert_imbert is None and name.startswith("IMModernBert"):
        raise ImportError(_no_modernbert)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__version__ = IM_VERSION

for config, models, tokenizer in (
    (IMBertConfig, modeling_imbert, BertTokenizer),
    (IMRobertaConfig, modeling_roberta_imbert, RobertaTokenizer),
    (IMElectraConfig, modeling_electra_imbert, BertTokenizer),
    (IMXLMRobertaConfig, modeling_xlm_roberta_imbert, XLMRobertaTokenizer),
    (IMDebertaV2Config, modeling_deberta_v2_imbert, DebertaV2Tokenizer),
    (IMDistilBertConfig, modeling_distilbert_imbert, BertTokenizer),
    (IMModernBertConfig, modeling_modernbert_imbert, PreTrainedTokenizerFast),
):
    AutoConfig.register(config.model_type, config)
    AutoTokenizer.register(config, fast_tokenizer_class=tokenizer)
    for auto_class, path in config.auto_map_of_family.items():
        if auto_class != "AutoConfig" and models is not None:
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
    "IMDebertaV2Config",
    "IMDebertaV2ForMaskedLM",
    "IMDebertaV2ForMultipleChoice",
    "IMDebertaV2ForQuestionAnswering",
    "IMDebertaV2ForSequenceClassification",
    "IMDebertaV2ForTokenClassification",
    "IMDebertaV2Model",
    "IMDebertaV2PreTrainedModel",
    "IMDistilBertConfig",
    "IMDistilBertForMaskedLM",
    "IMDistilBertForMultipleChoice",
    "IMDistilBertForQuestionAnswering",
    "IMDistilBertForSequenceClassification",
    "IMDistilBertForTokenClassification",
    "IMDistilBertModel",
    "IMDistilBertPreTrainedModel",
    "IMElectraConfig",
    "IMElectraForMaskedLM",
    "IMElectraForQuestionAnswering",
    "IMElectraForSequenceClassification",
    "IMElectraForTokenClassification",
    "IMElectraModel",
    "IMElectraPreTrainedModel",
    "IMModernBertConfig",
    "IMModernBertForMaskedLM",
    "IMModernBertForMultipleChoice",
    "IMModernBertForQuestionAnswering",
    "IMModernBertForSequenceClassification",
    "IMModernBertForTokenClassification",
    "IMModernBertModel",
    "IMModernBertPreTrainedModel",
    "IMRobertaConfig",
    "IMRobertaForMaskedLM",
    "IMRobertaForQuestionAnswering",
    "IMRobertaForSequenceClassification",
    "IMRobertaForTokenClassification",
    "IMRobertaModel",
    "IMRobertaPreTrainedModel",
    "IMXLMRobertaConfig",
    "IMXLMRobertaForMaskedLM",
    "IMXLMRobertaForQuestionAnswering",
    "IMXLMRobertaForSequenceClassification",
    "IMXLMRobertaForTokenClassification",
    "IMXLMRobertaModel",
    "IMXLMRobertaPreTrainedModel",
    "Implicit",
    "OneStep",
    "Solution",
    "ThetaMethod",
    "ThetaScheduleCallback",
    "Unrolled",
    "implicit_step",
]
if modeling_modernbert_imbert is None:
    __all__ = [name for name in __all__ if name in globals()]
