"""The implicit connection as classes to stand before those of a family like BERT, from self-attention to models.

A layer computes y = x + gamma [(1 - theta) f(x) + theta f(y)] by a solve inside forward (gradients_imbert.py), around
the family's unchanged layer as F. No parameter is added, none renamed: the family's checkpoints load, and load back.

This file travels with every checkpoint: it imports torch, transformers, the standard library and its sisters alone.
"""

import contextlib
import copy
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput
from transformers.utils import find_labels

from .gradients_imbert import Gradient, Implicit, OneStep, RandomState, Unrolled, checked_step, functional
from .outputs_imbert import divergence, with_statistics
from .solvers_imbert import Anderson, FixedPoint, GradientDescent, Solution, Solver, ThetaMethod, wide


# Of the fields of a config, vars(config).
SOLVERS: dict[str, Callable[[dict], Solver]] = {
    "gradient_descent": lambda fields: GradientDescent(fields["im_learning_rate"]),
    "fixed_point": lambda fields: FixedPoint(fields["im_damping"]),
    "anderson": lambda fields: Anderson(fields["im_damping"], fields["im_anderson_memory"]),
}
GRADIENTS: dict[str, Callable[[dict], Gradient]] = {
    "unrolled": lambda fields: Unrolled(),
    "implicit": lambda fields: Implicit(fields["im_gradient_iterations"], adjoint_solver(fields["im_solver"], fields)),
    "one_step": lambda fields: OneStep(),
}


def adjoint_solver(solver: str, fields: dict) -> Solver:
    """The plain iteration keeps no history, but diverges where the map does: it is for those who iterate the map."""
    return FixedPoint() if solver == "fixed_point" else Anderson(memory=fields["im_anderson_memory"])


# Random states cannot be recorded: a graph breaks there. What is compiled in pieces within torch.func is wrong with
# torch 2.6, which cannot compile a BERT as one.
_eagerly = torch.compiler.disable(checked_step)
NO_PIECES = not hasattr(torch.compiler, "is_exporting")


# What a model hands to a part of it whose forward takes no keywords that it does not know: the part, and those.
_handed: ContextVar[tuple[Any, dict[str, Any]]] = ContextVar("im_handed", default=(None, {}))


@contextlib.contextmanager
def handed(part: Any, **keywords: Any) -> Iterator[None]:
    token = _handed.set((part, keywords))
    try:
        yield
    finally:
        _handed.reset(token)


def handed_to(part: Any) -> dict[str, Any]:
    known, keywords = _handed.get()
    return keywords if known is part else {}


class Pass:
    """What the implicit layers of one forward share: the config, read once; the token mask; and what they report.

    The outermost model makes it, from the config that a save of it writes.
    """

    def __init__(self, config: Any, statistics: list | None = None, mask: Tensor | None = None):
        self.config, self.mask = config, mask
        self.statistics: list[tuple[Tensor, Tensor]] | None = statistics
        self.records = False  # whether attentions are asked for
        self._padding: Tensor | None = None
        self.places: dict[Any, int] = {}  # of each layer, in this forward
        self.carries: tuple[bool, ...] = ()
        self.solved: list[Tensor] = []  # each (batch, 1, 1)
        self.explicit: Solution | None = None  # the last step that solved nothing
        # With im_consistency, in training with labels, layers from the first implicit one on hand on a batch of twice
        # the rows: behind the implicit branch the explicit one, whose layers have 0 iterations.
        self.consistent = False  # whether the head asks for it
        self.rows = 0  # of the implicit branch; 0: there is no other
        self.left = False  # whether the two were taken apart
        # The explicit one, and what the implicit one's head drew.
        self.branch: tuple[Tensor, RandomState | None] | None = None
        fields = config.__dict__  # to ask the config itself takes as long as an operation
        self.method = ThetaMethod(fields["im_theta"], fields["im_step_size"], fields["im_vector_field"])
        self.solver, self.gradient = SOLVERS[fields["im_solver"]](fields), GRADIENTS[fields["im_gradient"]](fields)
        self.initial_guess, self.tolerance = fields["im_initial_guess"], fields["im_tolerance"]
        training, evaluation = fields["im_iterations"], fields["im_eval_iterations"]
        self.iterations = {True: training, False: training if evaluation is None else evaluation}  # by `training`

    def step(self, layer: "LayerMap", x: Tensor, training: bool, track_guess: bool = False) -> Solution:
        """The implicit step of one layer."""
        solve = checked_step
        if torch.compiler.is_compiling() and (layer.draws or (NO_PIECES and self.solver.needs_pullback)):
            solve = _eagerly
        options = self.initial_guess, self.iterations[training], self.tolerance
        # With SDPA transformers hands on no mask where nothing is padded.
        padding = None if layer.args[0] is None and self.attention == "sdpa" else self.padding(x)
        return solve(layer, x, self.method, self.solver, self.gradient, *options, padding, track_guess)

    def guess(self, layer: "LayerMap", x: Tensor) -> Tensor:
        """The step with 0 iterations."""
        return self.method.euler(x, layer(x), self.method.step_size) if self.initial_guess == "explicit" else x

    def choose(self, n: int) -> None:
        """For an encoder of n layers."""
        implicit, self.attention = self.config.implicit_layers_of(n), self.config._attn_implementation
        # By place, whether the layer carries the connection: of an integer that changed a compiler makes a symbol, and
        # holds that none of a tuple is equal to one that is known.
        self.carries = tuple(i in implicit for i in range(n))

    def enter(self, layers: Any, rows: int) -> None:
        """Tells each layer of an encoder's list its place in it, as the list is now."""
        n = len(layers)
        self.choose(n)
        if self.consistent and any(self.carries) and self.method.theta > 0 and self.iterations[True] > 0:
            self.rows = rows
        if any(self.carries) and len({*layers}) < n:
            raise ValueError(f"im_layers must be [] where one layer stands twice in the encoder, got {n} places.")
        for i, entry in enumerate(layers):
            layer: Any = entry  # or what a wrapper holds
            if not isinstance(entry, ImplicitLayer):
                layer = next((m for m in entry.modules() if isinstance(m, ImplicitLayer)), None)
            if layer is not None:
                self.places[layer] = i
                if layer.im_place != (i, n):
                    layer.im_place = (i, n)
            elif self.carries[i]:
                name, allowed = type(entry).__name__, "a layer of this model's own class"
                raise ValueError(f"im_layers names layer {i}, which must be {allowed}, got a {name}.")
            elif self.rows and any(self.carries[:i]):
                why = f"layer {i}, above an implicit one, is a {type(entry).__name__}"
                raise ValueError(f"im_consistency must be 0 where {why}, got {self.config.im_consistency}.")

    def padding(self, x: Tensor) -> Tensor | None:
        """(batch, length, 1), True for padded tokens of x, or None. Made once, but for layers on several devices."""
        if self.mask is None:
            return None
        if self._padding is None or self._padding.device != x.device:
            # There may be one mask for all rows.
            self._padding = (self.mask == 0).to(x.device).expand(x.shape[:2])[..., None]
        return self._padding

    def add(self, solution: Solution) -> None:
        if solution.solved is None:
            self.explicit = solution  # what is not finite there is so in the end: one look a forward
        else:
            self.solved.append(solution.solved)
        if self.statistics is not None:
            self.statistics.append((solution.residual, solution.num_steps))

    def leave(self, outputs: Any) -> None:
        """Takes what an encoder, or the model around it, returns of both branches apart."""
        self.left = True
        if self.rows:
            outputs["last_hidden_state"], explicit = outputs.last_hidden_state.split(self.rows)
            self.branch = explicit, None if torch.compiler.is_compiling() else RandomState(explicit.device)
        self.report()

    def report(self) -> None:
        """Warns where a solve met non-finite values."""
        if not any(self.carries) or functional() or torch.jit.is_tracing():
            return
        if self.solved:
            _report_non_finite(torch.stack([solved.to(self.solved[0].device) for solved in self.solved]).all())
        if self.explicit is not None:
            value = self.explicit.value.detach()
            _report_non_finite(torch.linalg.vector_norm(value, dtype=wide(value)) < torch.inf)


_unread: dict[torch.device, tuple[int, Tensor]] = {}


def _report_non_finite(solved: Tensor) -> None:
    """Memory of the host is read at every call. Elsewhere to read waits for the device: flags are gathered, and read at
    calls 1, 2, 4, ... 64 and every 64 from there on."""
    if solved.device.type != "cpu":
        # A graph that is being captured can neither wait nor hand its flag to another call.
        if solved.is_meta or (solved.is_cuda and torch.cuda.is_current_stream_capturing()):
            return
        calls, flag = _unread.get(solved.device, (0, solved))
        calls, solved = calls + 1, flag & solved
        read = calls % 64 == 0 or calls in (1, 2, 4, 8, 16, 32)
        _unread[solved.device] = calls, torch.ones_like(solved) if read else solved
        if not read:
            return
    if not solved.tolist():  # which no dispatch sees
        warnings.warn(
            "An implicit layer met non-finite values; the examples concerned keep their initial guess, or with a "
            "tolerance their best iterate, and output_im_statistics=True shows which. Lower im_step_size or "
            "im_learning_rate, or look for NaN in the input or the weights.",
            RuntimeWarning,
            stacklevel=2,
        )


def may_draw(modules: Iterable[nn.Module]) -> bool:
    """Of modules in training. A compiler has to know beforehand; else the first evaluation tells."""
    return not torch.compiler.is_compiling() or any(getattr(module, "p", 0) > 0 for module in modules)


class LayerMap:
    """h -> F(h), the plain layer under one forward's mask and arguments; what implicit_step calls the layer."""

    weights: Tensor | None = None  # of attention, as the last evaluation made them
    training = draws = twice = False

    def __init__(self, layer: Any, args: tuple, kwargs: dict, im_pass: Pass):
        self.plain, self.args, self.kwargs, self.attention = layer.plain, args, kwargs, im_pass.attention
        self.rows = layer.im_rows
        self.parts: list[nn.Module] = []
        solves = im_pass.method.theta > 0 and im_pass.iterations[layer.training] > 0
        if solves or im_pass.rows or im_pass.statistics is not None:  # else F is evaluated once
            self._look_at(layer)
        if solves and im_pass.solver.needs_pullback:
            # Twice differentiated; in training with a graph or not, since reentrant checkpointing runs both.
            self.twice = im_pass.gradient.unrolled and (self.training or torch.is_grad_enabled())
            if not functional() and torch.is_inference_mode_enabled():
                with torch.inference_mode(False):  # a product cannot save what was made in it
                    self.args, self.kwargs = torch.utils._pytree.tree_map_only(Tensor, torch.clone, (args, kwargs))

    def _look_at(self, layer: nn.Module) -> None:
        level = [layer]
        while level := [child for part in level for child in part._modules.values() if child is not None]:
            self.parts += level  # layer.modules() takes ten times as long
        self.training = layer.training or any(part.training for part in self.parts)
        self.draws = self.training and may_draw(self.parts)

    @property
    def selects(self) -> bool:
        # Other kinds of attention report weights of the whole batch, or know its rows by more than the mask; hooks may.
        hooked = any(part._forward_hooks or part._forward_pre_hooks for part in self.parts)
        return not hooked and self.attention == "sdpa" and all(len(t) == 1 for t in self.kwargs.get(self.rows, ()))

    def select(self, rows: Tensor) -> "LayerMap":
        part, (mask, *rest) = copy.copy(self), self.args
        part.args = (mask if mask is None or len(mask) == 1 else mask[rows], *rest)
        return part

    def modules(self) -> list[nn.Module]:
        """What an evaluation calls, hooks and all: the parts of the layer."""
        return self.parts

    @property
    def reported(self) -> list[Tensor]:
        return [] if self.weights is None else [self.weights]

    def __call__(self, hidden_states: Tensor) -> Tensor:
        if not self.twice:
            return self.plain(hidden_states, *self.args, im_map=self, **self.kwargs)
        with sdpa_kernel(SDPBackend.MATH):
            return self.plain(hidden_states, *self.args, im_map=self, **self.kwargs)


class ImplicitSelfAttention:
    """The family's, reporting its weights once a solve: transformers records what this module returns at every call."""

    def forward(self, hidden_states: Any, *args: Any, im_map: Any = None, im_report: Any = None, **kwargs) -> Any:
        if im_report is not None:
            return hidden_states, im_report
        output, weights = super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]
        if im_map is None or weights is None:
            return output, weights
        im_map.weights = weights
        return output, None


class ImplicitLayer:
    """The family's layer as F of an implicit step, where config.im_layers names its place; else the plain layer."""

    attention: Any
    training: bool
    im_rows: ClassVar[str] = ""  # a keyword whose tensors may hold a row each, as the mask does
    im_place: tuple[int, int] | None = None  # in the list of its encoder's last forward, and that list's length

    @property
    def im_attention(self) -> Any:
        """The part of the layer whose outputs are attentions."""
        return self.attention.self

    @staticmethod
    def own_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
        """Of the keywords of a forward of this layer, those of the family's."""
        return {name: value for name, value in kwargs.items() if name != "im_pass"}

    @property
    def plain(self) -> Callable:
        """F, the family's own forward: (batch, length, width), and its arguments, to (batch, length, width)."""
        return super().forward  # type: ignore[misc]

    def forward(self, hidden_states: Tensor, attention_mask: Any = None, *args, im_pass: Any = None, **kwargs) -> Any:
        alone = im_pass is None
        attention = self.im_attention
        place, n = self.im_place or (getattr(attention, "layer_idx", 0), attention.config.num_hidden_layers)
        if alone:
            im_pass = Pass(attention.config, mask=token_mask(attention_mask))
        if not im_pass.carries:  # nor where an encoder is not ours
            im_pass.choose(n)
        # A checkpoint's second run of this forward finds the place of this one, whatever came between. A compiler puts
        # no guard on what it looks up by a module.
        if not torch.compiler.is_compiling():
            place = im_pass.places.get(self, place)
        carries = place < len(im_pass.carries) and im_pass.carries[place]
        x, *explicit = hidden_states.split(im_pass.rows) if im_pass.rows else (hidden_states,)
        if not carries and not explicit:
            return self.plain(x, attention_mask, *args, **kwargs)
        F = LayerMap(self, (attention_mask, *args), kwargs, im_pass)
        again = RandomState(x.device).again if explicit and F.draws else contextlib.nullcontext
        if carries:
            y, y0 = self._step(F, x, im_pass, track_guess=im_pass.rows > 0 and not explicit)
        else:
            y = self.plain(x, attention_mask, *args, **kwargs)
        for x0 in explicit:
            with again():
                y0 = im_pass.guess(F, x0) if carries else self.plain(x0, attention_mask, *args, im_map=F, **kwargs)
        if alone:
            im_pass.report()
        return torch.cat([y, y0]) if im_pass.rows else y

    def _step(self, F: LayerMap, x: Tensor, im_pass: Pass, track_guess: bool) -> tuple[Tensor, Any]:
        solution = im_pass.step(F, x, self.training, track_guess)
        if F.weights is not None and im_pass.records:  # before the statistics evaluate the layer once more
            weights = F.weights if solution.value.requires_grad else F.weights.detach()
            # The copy leaves the scope of torch.func, where it may come from.
            self.report_attention(F, x, weights.clone() if functional() else weights)
        im_pass.add(solution)
        return solution.value, solution.guess

    def report_attention(self, F: LayerMap, x: Tensor, weights: Tensor) -> None:
        self.im_attention(x, im_report=weights)


class ImplicitEncoder:
    """The family's stack of layers, each told its place."""

    config: Any
    layer: Any

    def forward(self, hidden_states: Tensor, attention_mask: Any = None, *args, im_pass: Any = None, **kwargs) -> Any:
        for name in ("past_key_values", "encoder_hidden_states"):
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"{name} must be None for {self.config.model_type!r}, got a {type(kwargs[name]).__name__}: each "
                    "evaluation of a layer would write the cache again."
                )
        if im_pass is None:
            im_pass = Pass(self.config, mask=token_mask(attention_mask))
        im_pass.enter(self.layer, hidden_states.shape[0])  # len() would fix it in an export
        outputs = super().forward(hidden_states, attention_mask, *args, im_pass=im_pass, **kwargs)  # type: ignore[misc]
        im_pass.leave(outputs)
        return outputs


def token_mask(attention_mask: Any) -> Tensor | None:
    """(batch, length), nonzero for real tokens, from what BERT or its layers take as attention_mask."""
    if isinstance(attention_mask, dict):  # ModernBERT's, by kind of attention
        attention_mask = next(iter(attention_mask.values()))
    if attention_mask is None or (isinstance(attention_mask, Tensor) and attention_mask.dim() == 2):
        return attention_mask
    if not isinstance(attention_mask, Tensor) or attention_mask.dim() != 4:
        got = tuple(attention_mask.shape) if isinstance(attention_mask, Tensor) else type(attention_mask).__name__
        shapes = "(batch, length), or (batch, heads or 1, length, length) as the layers take it"
        raise ValueError(f"attention_mask must be {shapes}, got {got}.")
    # A token is real where some query may attend to it: True in a bool mask, no large negative in an additive one.
    allowed = attention_mask if attention_mask.dtype == torch.bool else attention_mask > -1e3
    return allowed.any(dim=2).any(dim=1)


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
        kind = model.config.problem_type if isinstance(outputs, SequenceClassifierOutput) else None
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
        part = self._modules.get(self.base_model_prefix) or self.encoder
        with handed(part, **told):
            return family_forward(self, *args, return_dict=True, **kwargs)

    @wraps(family_forward)
    def forward(self: Any, *args, output_im_statistics=None, return_dict=None, im_pass=None, im_hidden=None, **kwargs):
        told = handed_to(self) if self.im_hands else {}
        im_pass, im_hidden = told.get("im_pass", im_pass), told.get("im_hidden", im_hidden)
        if im_hidden is not None:  # the explicit branch, of the model that the heads hold
            pooler = getattr(self, "pooler", None)
            return BaseModelOutputWithPooling(im_hidden, pooler(im_hidden) if pooler is not None else None)
        consistency = self.config.im_consistency if self.training and im_pass is None else 0.0
        # A graph would not draw the masks again, and in pieces it loses what is set in an output.
        if consistency and torch.compiler.is_compiling() and (NO_PIECES or may_draw(self.modules())):
            return eager(self, *args, output_im_statistics=output_im_statistics, return_dict=return_dict, **kwargs)
        if im_pass is None:
            im_pass = Pass(self.config, [] if output_im_statistics else None)
        if consistency or self.im_stack:
            given = dict(zip(names, args, strict=False)) | kwargs
        if consistency:
            im_pass.consistent = any(given.get(name) is not None for name in labels)
        base = self.base_model_prefix not in self._modules  # the model that the heads hold
        if base:
            asked = kwargs.get("output_attentions")
            im_pass.records = self.config.output_attentions if asked is None else asked
            im_pass.mask = token_mask(args[1] if len(args) > 1 else kwargs.get("attention_mask"))
        if base and self.im_stack:
            inputs = next((t for t in map(given.get, ("input_ids", "inputs_embeds")) if t is not None), None)
            if inputs is not None:  # else the family refuses
                im_pass.enter(getattr(self, self.im_stack), inputs.shape[0])
        outputs = ask(self, *args, im_pass=im_pass, **kwargs)
        if base and not im_pass.left:
            im_pass.leave(outputs)
        outputs = with_statistics(type(outputs))(**outputs)
        if im_pass.rows and outputs.get("hidden_states"):  # as the layers handed them on
            outputs["hidden_states"] = tuple(h if h is None else h[: im_pass.rows] for h in outputs.hidden_states)
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
        where the solves were of use, measure it again.
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
        model.load_state_dict({name: t.clone() for name, t in self.state_dict().items()}, assign=True)  # dtypes too
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
