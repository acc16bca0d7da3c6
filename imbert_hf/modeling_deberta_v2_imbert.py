"""IM-DeBERTa: DeBERTa-v2 and -v3 with layers that take an implicit step. Drop-in: its parameters, heads and outputs.

The family's forwards take no keywords that they do not know. So what one forward shares reaches the encoder by way of
`handed`, and the layers beside their relative positions, which the encoder hands on as they are.

The connection stands once for all families, in layers_imbert.py and models_imbert.py. This file travels with every
checkpoint of the family, and imports all that travel with it, so that older loaders copy them too.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers.models.deberta_v2 import modeling_deberta_v2 as family

from .configuration_imbert import IMDebertaV2Config
from .evaluations_imbert import FixedMap  # noqa: F401 - so that it travels, as the next ones
from .gradients_imbert import Gradient  # noqa: F401
from .layers_imbert import ImplicitLayer, LayerMap
from .models_imbert import ImplicitPreTrainedModel
from .outputs_imbert import with_statistics  # noqa: F401
from .pass_imbert import Pass, handed_to, token_mask
from .solvers_imbert import Solver  # noqa: F401
from .step_imbert import implicit_step  # noqa: F401


class IMDebertaV2Layer(ImplicitLayer, family.DebertaV2Layer):
    @property
    def im_attention(self) -> Any:
        return self.attention

    @property
    def plain(self) -> Callable:
        return self._plain

    def _plain(self, h: Tensor, *args, im_map: Any = None, attentions: Any = None, **kwargs) -> Tensor:
        y, weights = family.DebertaV2Layer.forward(self, h, *args, **kwargs)
        if im_map is not None:
            im_map.attended = None if weights is None else (weights,)
        elif attentions is not None:
            attentions.append(weights)
        return y

    def report_attention(self, F: LayerMap, x: Tensor, attended: tuple[Tensor, ...]) -> None:
        F.kwargs["attentions"].append(attended[-1])

    @staticmethod
    def own_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
        positions = kwargs.get("relative_pos")
        return {**kwargs, "relative_pos": positions[0] if isinstance(positions, tuple) else positions}

    def forward(self, hidden_states: Tensor, attention_mask: Any = None, *args, **kwargs) -> Any:
        positions, attentions = kwargs.get("relative_pos"), []  # type: ignore[var-annotated]
        im_pass = positions[1] if isinstance(positions, tuple) else None
        own = self.own_arguments(kwargs)
        y = super().forward(hidden_states, attention_mask, *args, im_pass=im_pass, attentions=attentions, **own)
        return y, attentions[-1] if attentions else None


class IMDebertaV2Conv(family.ConvLayer):
    """Of the encoder's input, beside layer 0: the same for both branches of im_consistency that this one hands on."""

    def forward(self, hidden_states: Tensor, residual_states: Tensor, input_mask: Tensor) -> Tensor:
        branches = residual_states.view(-1, *hidden_states.shape)  # one, or two
        return super().forward(hidden_states, branches, input_mask).flatten(0, 1)


class IMDebertaV2Encoder(family.DebertaV2Encoder):
    layer: Any

    def forward(self, hidden_states: Any, attention_mask: Any, *args, relative_pos: Any = None, **kwargs) -> Any:
        im_pass = handed_to(self).get("im_pass")
        if im_pass is None:
            im_pass = Pass(self.layer[0].attention.config, mask=token_mask(attention_mask))
        im_pass.enter(self.layer, hidden_states.shape[0])
        positions = self.get_rel_pos(hidden_states, kwargs.get("query_states"), relative_pos)
        kwargs["relative_pos"] = positions, im_pass
        return super().forward(hidden_states, attention_mask, *args, **kwargs)


class IMDebertaV2PreTrainedModel(ImplicitPreTrainedModel, family.DebertaV2PreTrainedModel):
    """The base of the models below, as DebertaV2PreTrainedModel of its own: weights, loading and saving."""

    config_class = IMDebertaV2Config
    im_hands = True
    _no_split_modules = ["DebertaV2Embeddings", "IMDebertaV2Layer"]  # noqa: RUF012 - the family declares none
    implicit_classes = {  # noqa: RUF012
        family.DebertaV2Layer: IMDebertaV2Layer,
        family.ConvLayer: IMDebertaV2Conv,
        family.DebertaV2Encoder: IMDebertaV2Encoder,
    }


class IMDebertaV2Model(IMDebertaV2PreTrainedModel, family.DebertaV2Model): ...


class IMDebertaV2ForMaskedLM(IMDebertaV2PreTrainedModel, family.DebertaV2ForMaskedLM): ...


class IMDebertaV2ForSequenceClassification(IMDebertaV2PreTrainedModel, family.DebertaV2ForSequenceClassification): ...


class IMDebertaV2ForTokenClassification(IMDebertaV2PreTrainedModel, family.DebertaV2ForTokenClassification): ...


class IMDebertaV2ForQuestionAnswering(IMDebertaV2PreTrainedModel, family.DebertaV2ForQuestionAnswering): ...


class IMDebertaV2ForMultipleChoice(IMDebertaV2PreTrainedModel, family.DebertaV2ForMultipleChoice): ...
