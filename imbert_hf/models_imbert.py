"""The implicit connection as a class to stand before a family's models: what they are asked and return, and saving.

This file travels with every checkpoint: it imports torch, transformers, the standard library and its sisters alone.
"""

import contextlib
import inspect
import warnings
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput
from transformers.utils import find_labels

from .evaluations_imbert import functional
from .layers_imbert import may_draw
from .outputs_imbert import divergence, with_statistics
from .pass_imbert import NO_PIECES, Pass, handed, handed_to, token_mask
from .solvers_imbert import wide


def _add_consistency(model: Any, outputs: Any, im_pass: Pass, labels: Tensor | None, head: Callable) -> None:
    """Adds to a head's loss im_consistency times the divergence of its outputs of the two branches.

    The explicit branch goes through the head with the same dropout masks.
    """
    weight, branch, im_pass.branch = model.config.im_consistency, im_pass.branch, None  # a checkpoint holds the pass
    if outputs.get("loss") is None:
        if torch.is_grad_enabled() and not (model.im_told or functional()):
            model.im_told = True
            warnings.warn(
                f"im_consistency is {weight} and its loss was not added: no labels reached the model, which the "
                "Trainer's label_smoothing_factor and compute_loss_func keep from it. Pass them, or set it to 0.",
                stacklevel=2,
            )
        return
    found = outputs.loss.new_zeros((), dtype=wide(outputs.loss))
    if branch is not None:
        hidden, state = branch
        with contextlib.nullcontext() if state is None else state.again():
            # A head that predicts labelled tokens alone has to know them.
            known = {"labels": labels} if getattr(model, "sparse_prediction", False) else {}
            explicit = head(im_hidden=hidden, **known)
        kind = None
        if isinstance(outputs, SequenceClassifierOutput):  # some heads tell the config what they took it for
            kind = model.config.problem_type or ("regression" if model.config.num_labels == 1 else None)
        found = divergence(outputs, explicit, labels, kind)
    outputs["im_consistency_loss"], outputs["loss"] = found, outputs.loss + weight * found


def _forward_of(plain: type) -> Any:
    """The family's forward, with output_im_statistics among its arguments, and in its output what we add."""
    family_forward: Callable = plain.forward  # type: ignore[attr-defined]
    signature = inspect.signature(family_forward)
    (_, *names), labels = signature.parameters, find_labels(plain)

    def ask(self: Any, *args, im_pass=None, im_hidden=None, **kwargs) -> Any:
        """The family's forward, and what its parts are told."""
        told = {name: value for name, value in (("im_pass", im_pass), ("im_hidden", im_hidden)) if value is not None}
        if not self.im_hands:
            return family_forward(self, *args, return_dict=True, **told, **kwargs)
        part, ours = self._modules.get(self.base_model_prefix) or self.encoder, tuple(self.implicit_classes.values())
        if not isinstance(part, ours):  # but what holds one
            part = next((module for module in part.modules() if isinstance(module, ours)), part)
        before, handed.now = handed.now, (part, told)
        try:
            return family_forward(self, *args, return_dict=True, **kwargs)
        finally:
            handed.now = before

    @wraps(family_forward)
    def forward(self: Any, *args, output_im_statistics=None, return_dict=None, im_pass=None, im_hidden=None, **kwargs):
        told = handed_to(self) if self.im_hands else {}
        im_pass, im_hidden = told.get("im_pass", im_pass), told.get("im_hidden", im_hidden)
        if im_hidden is not None:  # the explicit branch, of the model that the heads hold
            pooler = getattr(self, "pooler", None)
            return BaseModelOutputWithPooling(im_hidden, pooler(im_hidden) if pooler is not None else None)
        consistency = self.config.im_consistency if self.training and im_pass is None else 0.0
        # A graph would not draw the masks again, and in pieces it loses what is set in an output, or handed on.
        if torch.compiler.is_compiling() and (
            (NO_PIECES and (consistency or self.im_hands)) or (consistency and may_draw(self.modules()))
        ):
            return eager(self, *args, output_im_statistics=output_im_statistics, return_dict=return_dict, **kwargs)
        if im_pass is None:
            im_pass = Pass(self.config, [] if output_im_statistics else None)
        given = {**dict(zip(names, args)), **kwargs} if args else kwargs  # noqa: B905 - torch 2.6 compiles no strict
        if consistency:
            im_pass.consistent = any(given.get(name) is not None for name in labels)
        base = self.base_model_prefix not in self._modules  # the model that the heads hold
        if base:
            asked = given.get("output_attentions")
            im_pass.records = self.config.output_attentions if asked is None else asked
            im_pass.mask = token_mask(given.get("attention_mask"))
        if base and self.im_stack:
            inputs = next((t for t in map(given.get, ("input_ids", "inputs_embeds")) if t is not None), None)
            if inputs is not None:  # else the family refuses
                im_pass.enter(getattr(self, self.im_stack), inputs.shape[0])
        outputs = ask(self, *args, im_pass=im_pass, **kwargs)
        last = outputs.get("last_hidden_state")
        if base and not im_pass.left:
            im_pass.leave(outputs)
        outputs = with_statistics(type(outputs))(**outputs)
        if im_pass.rows and outputs.get("hidden_states"):  # as the layers handed them on
            outputs["hidden_states"] = tuple(
                outputs.get("last_hidden_state") if h is last else h if h is None else im_pass.first(h)
                for h in outputs.hidden_states
            )
        if consistency:
            unlabelled = {name: value for name, value in given.items() if name not in labels}
            _add_consistency(self, outputs, im_pass, given.get("labels"), partial(ask, self, **unlabelled))
        if im_pass.statistics is not None:
            outputs["im_residuals"] = tuple(residual for residual, _ in im_pass.statistics)
            outputs["im_iterations_used"] = tuple(steps for _, steps in im_pass.statistics)
        if return_dict is None:
            return_dict = getattr(self.config, "return_dict", True)
        return outputs if return_dict else outputs.to_tuple()

    eager = torch.compiler.disable(forward)
    own = inspect.Parameter.KEYWORD_ONLY
    asked = inspect.Parameter("output_im_statistics", own, default=None, annotation=bool | None)
    together = sorted([*signature.parameters.values(), asked], key=lambda parameter: parameter.kind)
    forward.__signature__ = signature.replace(parameters=together)  # type: ignore[attr-defined]
    return forward


_DOCUMENTATION = """{plain} with the implicit connection in the layers of config.im_layers.

Parameters, arguments and outputs are {plain}'s, and so are its checkpoints, which from_pretrained loads: forward takes
input_ids and attention_mask, {shape} int64, or inputs_embeds, and what else {plain} takes. With
output_im_statistics=True the output has im_residuals and im_iterations_used too, tuples over the implicit layers of
(rows,) tensors: the relative residual of each solve, and its iterations. They are None unless asked for.

Args:
    config ([`{config}`]): with the fields of the connection.

Example:
    >>> import torch
    >>> from imbert_hf import {config}, {name}
    >>> shape = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    >>> model = {name}({config}(**shape, im_layers=[-1])).eval()
    >>> tokens = torch.randint(5, 99, {tokens})
    >>> outputs = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), output_im_statistics=True)
    >>> [tuple(residual.shape) for residual in outputs.im_residuals]
    [(2,)]
"""


class ImplicitPreTrainedModel:
    """Before a class of a family, whose forward and place in a model the class made of both takes."""

    config_class: Any
    implicit_classes: ClassVar[dict[type, type]]  # of the family: plain class -> implicit class
    # The heads average their losses and ignore num_items_in_batch. The Trainer takes the **kwargs of their forward for
    # the contrary, and would add up the losses of accumulated batches and of processes instead of averaging them.
    accepts_loss_kwargs = False
    im_told = False  # that im_consistency met no labels
    im_hands = False  # whether the family's forwards hand on no keywords that they do not know
    im_stack: ClassVar[str] = ""  # the list of layers, where no encoder but the model itself goes through it

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if cls.config_class.model_class is None:  # of the family's first class, in the file that its checkpoints open
            cls.config_class.model_class = cls
        plain = cls.__bases__[-1]
        if "forward" in vars(plain) and cls.__module__ == cls.config_class.model_class.__module__:  # no class of a user
            cls.forward = _forward_of(plain)  # type: ignore[attr-defined]
            cls.implicit_classes[plain] = cls
            names = {"name": cls.__name__, "plain": plain.__name__, "config": cls.config_class.__name__}
            shapes = {"shape": "(batch, length)", "tokens": "(2, 8)"}
            if plain.__name__.endswith("MultipleChoice"):  # whose choices are rows
                shapes = {"shape": "(batch, choices, length)", "tokens": "(1, 2, 8)"}
            cls.__doc__ = cls.__doc__ or _DOCUMENTATION.format(**names, **shapes)

    def __init__(self, config: Any, *args, **kwargs):
        wanted = self.config_class
        if getattr(config, "model_type", None) != wanted.model_type:
            raise ValueError(
                f"{type(self).__name__} needs an {wanted.__name__}, got {type(config).__name__}; from_pretrained makes "
                f"one of the family's, or {wanted.__name__}(**config.to_dict())."
            )
        config.check_im_fields()
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]

    def post_init(self) -> None:
        _become_implicit(self)
        super().post_init()  # type: ignore[misc]

    def _initialize_weights(self, module: Any, is_custom_code: bool = False) -> None:
        # Code that is not its own transformers lets draw nothing in a module whose own parameters are all loaded, of
        # which one without any is an instance: but ModernBERT draws its parts' by such a module's kind.
        tensors = [*module.parameters(), *module.buffers()]
        if is_custom_code and all(getattr(tensor, "_is_hf_initialized", False) for tensor in tensors):
            module._is_hf_initialized = True
            return
        super()._initialize_weights(module)  # type: ignore[misc]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args, **kwargs) -> Any:
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)  # type: ignore[misc]
        except Exception as error:
            if type(error).__name__ != "SafetensorError":  # which names no file
                raise
            raise OSError(
                f"The weights in {pretrained_model_name_or_path} cannot be read ({error}): the file is cut off or no "
                "safetensors file. Save or download it again."
            ) from error

    def to_plain(self: Any) -> Any:
        """The family's own model with a copy of these weights, for deployment without this code: it saves none.

        Its config has every field of the family's own. Its layers take the explicit step, as im_layers=[] does here:
        where the solves were of use, measure it again. All of its parameters are trainable.

        Raises:
            ValueError: the parameters are not those of the family's own model.
        """
        plain: Any = next(plain for plain, kind in self.implicit_classes.items() if isinstance(self, kind))
        family = plain.config_class
        fields = {name: value for name, value in self.config.to_dict().items() if not name.startswith("im_")}
        config = family(**{name: fields[name] for name in fields.keys() - {"model_type", "auto_map", "architectures"}})
        options: dict[str, Any] = {"dtype": self.dtype, "attn_implementation": self.config._attn_implementation}
        if getattr(self, "pooler", self) is None:
            options["add_pooling_layer"] = False
        with torch.random.fork_rng(devices=[]):  # the weights that it draws are not kept
            model = plain._from_config(config, **options)
        weights = {name: t.clone() for name, t in self.state_dict().items()}
        if odd := sorted(weights.keys() ^ model.state_dict().keys()):
            raise ValueError(
                f"to_plain needs the parameters of {plain.__name__} and no others, which differ in {len(odd)}, such as "
                f"{odd[0]!r}: merge adapters, remove parametrizations, or set the config to the layers that there are."
            )
        model.load_state_dict(weights, assign=True)  # dtypes too
        model.tie_weights()
        return model.to(self.device).train(self.training)


def _become_implicit(model: Any) -> None:
    """Gives the family's modules our classes.

    They are not built anew: that would draw other random numbers for the weights than the family does.
    torch.nn.utils.parametrize changes module.__class__ in the same way.
    """
    for module in model.modules():
        kind = model.implicit_classes.get(type(module))
        if isinstance(module, nn.ModuleList):
            for i, layer in enumerate(module):
                layer.__dict__["im_place"] = (i, len(module))  # not every family's layer knows
        if kind is None:
            continue
        module.__class__ = kind
        if isinstance(module, PreTrainedModel):  # transformers noted by the family's class, where it was built:
            module._no_split_modules = list(kind._no_split_modules or ())
            PreTrainedModel.__init__(kind.__new__(kind), module.config)  # which outputs it can record
