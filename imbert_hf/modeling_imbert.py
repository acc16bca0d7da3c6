"""IM-BERT: BERT whose layers take an implicit step. Drop-in: BERT's parameters, heads, arguments and outputs.

A layer computes y = x + gamma [(1 - theta) f(x) + theta f(y)] by a solve inside forward (gradients_imbert.py), around
the unchanged BertLayer as F. No parameter is added, none renamed: a BERT checkpoint loads, and loads back.

This file travels with every checkpoint, and imports all that travel with it, so that older loaders copy them too.
"""

import warnings
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import (
    BertEmbeddings,
    BertEncoder,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertLayer,
    BertModel,
    BertOnlyMLMHead,
    BertOnlyNSPHead,
    BertPooler,
    BertPreTrainedModel,
    BertPreTrainingHeads,
    BertSelfAttention,
)

from .configuration_imbert import IMBertConfig
from .connection_imbert import LayerMap, Pass, report_non_finite, token_mask
from .fixed_map_imbert import FixedMap  # noqa: F401 - so that it travels
from .gradients_imbert import implicit_step
from .outputs_imbert import (
    IMBertForPreTrainingOutput,
    IMBertModelOutput,
    IMMaskedLMOutput,
    IMMultipleChoiceModelOutput,
    IMNextSentencePredictorOutput,
    IMQuestionAnsweringModelOutput,
    IMSequenceClassifierOutput,
    IMTokenClassifierOutput,
    forward_of,
)
from .solvers_imbert import Solver  # noqa: F401 - so that it travels


class IMBertSelfAttention(BertSelfAttention):
    """BERT's, reporting its weights once a solve: transformers records what this module returns at every call."""

    def forward(self, hidden_states: Any, *args: Any, im_weights: Any = None, im_report: bool = False, **kwargs) -> Any:
        if im_report:
            return None, im_weights.pop().clone()  # the copy leaves the scope of torch.func, where it may come from
        result: Any = super().forward(hidden_states, *args, **kwargs)
        output, weights = result
        if im_weights is None:
            return output, weights
        im_weights[:] = [] if weights is None else [weights]
        return output, None


class IMBertLayer(BertLayer):
    """A BERT layer as F of an implicit step, where config.im_layers names it; else the plain layer."""

    def __init__(self, config: IMBertConfig, layer_idx: int):
        super().__init__(config, layer_idx=layer_idx)
        self.config = config
        self.layer_idx = layer_idx
        # Not built anew: that would draw other random numbers for the weights than BERT does.
        self.attention.self.__class__ = IMBertSelfAttention

    def forward(self, hidden_states: Tensor, attention_mask: Any = None, *args, im_pass: Any = None, **kwargs) -> Any:
        im_pass = im_pass or Pass(self.config)
        if self.layer_idx not in im_pass.layers:
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        options, iterations = im_pass.options, im_pass.iterations[self.training]
        # In training, whether a graph is recorded or not: reentrant checkpointing runs both with the same kernels.
        twice = options["solver"].needs_pullback and options["gradient"].unrolled
        twice = twice and (self.training or torch.is_grad_enabled())
        attention = im_pass.config._attn_implementation
        if twice and attention not in ("eager", "sdpa"):
            raise ValueError(
                f"attn_implementation {attention!r} has no second derivative, which im_solver 'gradient_descent' with "
                "im_gradient 'unrolled' needs in training; use 'sdpa' or 'eager', or another im_gradient."
            )
        # With SDPA transformers hands on no mask where nothing is padded.
        mask = None if attention_mask is None and attention == "sdpa" else im_pass.mask
        if mask is not None and mask.shape[0] == 1:  # one mask for all rows
            mask = mask.expand(hidden_states.shape[:2])
        weights: list[Tensor] = []
        math_attention = twice and iterations > 0 and options["theta"] > 0
        solution = implicit_step(
            LayerMap(self, (attention_mask, *args), {**kwargs, "im_weights": weights}, math_attention),
            hidden_states,
            iterations=iterations,
            mask=mask,
            **options,
        )
        if weights:  # before the statistics evaluate the layer once more
            self.attention.self(None, im_weights=weights, im_report=True)
        im_pass.finite.append(solution.finite)
        if im_pass.statistics is not None:
            im_pass.statistics.append((solution.residual, solution.num_steps))
        return solution.value


class IMBertEncoder(BertEncoder):
    def __init__(self, config: IMBertConfig):
        nn.Module.__init__(self)
        self.config = config
        self.layer = nn.ModuleList([IMBertLayer(config, layer_idx=i) for i in range(config.num_hidden_layers)])


class IMBertPreTrainedModel(BertPreTrainedModel):
    config_class = IMBertConfig
    _no_split_modules = ["BertEmbeddings", "IMBertLayer"]  # noqa: RUF012 - as transformers declares it

    def __init__(self, config: IMBertConfig, *args, **kwargs):
        if getattr(config, "model_type", None) != "imbert":
            raise ValueError(
                f"{type(self).__name__} needs an IMBertConfig, got {type(config).__name__}; "
                "IMBertConfig(**bert_config.to_dict()) or from_pretrained makes one of BERT's."
            )
        config.check_im_fields()
        BertPreTrainedModel.__init__(self, config, *args, **kwargs)

    def _upload_modified_files(self, working_dir: Any, *args, **kwargs) -> Any:
        """What push_to_hub calls between saving and sending: replaces transformers' empty model card by our own.

        That is the README.md of the folder that the model was loaded from, if there is one. It stays here, with a
        warning, where weights or im_ fields are no longer those of the folder: it would tell of another model.
        """
        folder = self.config._name_or_path
        card = Path(folder, "README.md")
        if folder and card.is_file():
            if self._is_saved_in(folder):
                Path(working_dir, card.name).write_bytes(card.read_bytes())
            else:
                warnings.warn(f"{card} is not pushed: the model is not the one in {folder}.", stacklevel=4)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def _is_saved_in(self, folder: str) -> bool:
        saved = type(self).from_pretrained(folder, dtype=self.dtype)
        theirs, own = saved.state_dict(), self.state_dict()
        return (
            {n: v for n, v in vars(saved.config).items() if n.startswith("im_")}
            == {n: v for n, v in vars(self.config).items() if n.startswith("im_")}
            and theirs.keys() == own.keys()
            and all(torch.equal(theirs[n], v.cpu()) for n, v in own.items())
        )


@wraps(BertModel.forward)
def _bert_model_forward(self, input_ids=None, attention_mask=None, *args, im_statistics=None, **kwargs):
    """BertModel.forward, with what its implicit layers share handed on to them."""
    for name in ("past_key_values", "encoder_hidden_states"):
        if kwargs.get(name) is not None:
            raise ValueError(
                f"{name} must be None for IM-BERT: each evaluation of a layer would write the cache again."
            )
    im_pass = Pass(self.config, token_mask(attention_mask), im_statistics)
    outputs = BertModel.forward(self, input_ids, attention_mask, *args, im_pass=im_pass, **kwargs)
    if im_pass.finite:
        report_non_finite(torch.stack(im_pass.finite).all(dim=0))
    return outputs


class IMBertModel(IMBertPreTrainedModel, BertModel):
    _auto_class = "AutoModel"

    def __init__(self, config: IMBertConfig, add_pooling_layer: bool = True):
        IMBertPreTrainedModel.__init__(self, config)
        self.config = config
        self.gradient_checkpointing = False
        self.embeddings = BertEmbeddings(config)
        self.encoder = IMBertEncoder(config)
        self.pooler = BertPooler(config) if add_pooling_layer else None
        self.post_init()

    forward = forward_of(_bert_model_forward, IMBertModelOutput)


class IMBertForPreTraining(IMBertPreTrainedModel, BertForPreTraining):
    _auto_class = "AutoModelForPreTraining"

    def __init__(self, config: IMBertConfig):
        IMBertPreTrainedModel.__init__(self, config)
        self.bert = IMBertModel(config)
        self.cls = BertPreTrainingHeads(config)
        self.post_init()

    forward = forward_of(BertForPreTraining.forward, IMBertForPreTrainingOutput)


class IMBertForMaskedLM(IMBertPreTrainedModel, BertForMaskedLM):
    _auto_class = "AutoModelForMaskedLM"

    def __init__(self, config: IMBertConfig):
        IMBertPreTrainedModel.__init__(self, config)
        self.bert = IMBertModel(config, add_pooling_layer=False)
        self.cls = BertOnlyMLMHead(config)
        self.post_init()

    forward = forward_of(BertForMaskedLM.forward, IMMaskedLMOutput)


class IMBertForNextSentencePrediction(IMBertPreTrainedModel, BertForNextSentencePrediction):
    _auto_class = "AutoModelForNextSentencePrediction"

    def __init__(self, config: IMBertConfig):
        IMBertPreTrainedModel.__init__(self, config)
        self.bert = IMBertModel(config)
        self.cls = BertOnlyNSPHead(config)
        self.post_init()

    forward = forward_of(BertForNextSentencePrediction.forward, IMNextSentencePredictorOutput)


def _classifier(config: IMBertConfig) -> nn.Linear:
    assert config.num_labels is not None
    return nn.Linear(config.hidden_size, config.num_labels)


def _classifier_dropout(config: IMBertConfig) -> nn.Dropout:
    p = config.classifier_dropout
    return nn.Dropout(config.hidden_dropout_prob if p is None else p)


class IMBertForSequenceClassification(IMBertPreTrainedModel, BertForSequenceClassification):
    _auto_class = "AutoModelForSequenceClassification"

    def __init__(self, config: IMBertConfig):
        IMBertPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.config = config
        self.bert = IMBertModel(config)
        self.dropout = _classifier_dropout(config)
        self.classifier = _classifier(config)
        self.post_init()

    forward = forward_of(BertForSequenceClassification.forward, IMSequenceClassifierOutput)


class IMBertForMultipleChoice(IMBertPreTrainedModel, BertForMultipleChoice):
    _auto_class = "AutoModelForMultipleChoice"

    def __init__(self, config: IMBertConfig):
        IMBertPreTrainedModel.__init__(self, config)
        self.bert = IMBertModel(config)
        self.dropout = _classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.post_init()

    forward = forward_of(BertForMultipleChoice.forward, IMMultipleChoiceModelOutput)


class IMBertForTokenClassification(IMBertPreTrainedModel, BertForTokenClassification):
    _auto_class = "AutoModelForTokenClassification"

    def __init__(self, config: IMBertConfig):
        IMBertPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.bert = IMBertModel(config, add_pooling_layer=False)
        self.dropout = _classifier_dropout(config)
        self.classifier = _classifier(config)
        self.post_init()

    forward = forward_of(BertForTokenClassification.forward, IMTokenClassifierOutput)


class IMBertForQuestionAnswering(IMBertPreTrainedModel, BertForQuestionAnswering):
    _auto_class = "AutoModelForQuestionAnswering"

    def __init__(self, config: IMBertConfig):
        IMBertPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.bert = IMBertModel(config, add_pooling_layer=False)
        self.qa_outputs = _classifier(config)
        self.post_init()

    forward = forward_of(BertForQuestionAnswering.forward, IMQuestionAnsweringModelOutput)


__all__ = [
    "IMBertForMaskedLM",
    "IMBertForMultipleChoice",
    "IMBertForNextSentencePrediction",
    "IMBertForPreTraining",
    "IMBertForQuestionAnswering",
    "IMBertForSequenceClassification",
    "IMBertForTokenClassification",
    "IMBertModel",
    "IMBertPreTrainedModel",
]
