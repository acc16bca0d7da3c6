"""What the implicit layers of one forward share, and how it reaches them.

This file travels with every checkpoint: it imports torch, the standard library and its sisters alone.
"""

import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .evaluations_imbert import RandomState, functional
from .gradients_imbert import Gradient, Implicit, OneStep, Unrolled
from .solvers_imbert import Anderson, FixedPoint, GradientDescent, Solution, Solver, ThetaMethod, wide
from .step_imbert import checked_step


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


class _ForParts(threading.local):  # no ContextVar: a compiler breaks the graph there
    """What a model hands to a part of it whose forward takes no keywords that it does not know: the part, and those."""

    now: tuple[Any, dict[str, Any]] = (None, {})


handed = _ForParts()


def handed_to(part: Any) -> dict[str, Any]:
    known, keywords = handed.now
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
        self.entered = False  # whether the encoder told them
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

    def step(self, layer: Any, x: Tensor, training: bool, track_guess: bool = False) -> Solution:
        """The implicit step of one layer."""
        solve = checked_step
        if torch.compiler.is_compiling() and (layer.draws or (NO_PIECES and self.solver.needs_pullback)):
            solve = _eagerly
        options = self.initial_guess, self.iterations[training], self.tolerance
        # With SDPA transformers hands on no mask where nothing is padded.
        padding = None if layer.args[0] is None and self.attention == "sdpa" else self.padding(x)
        return solve(layer, x, self.method, self.solver, self.gradient, *options, padding, track_guess)

    def guess(self, layer: Any, x: Tensor) -> Tensor:
        """The step with 0 iterations."""
        return self.method.euler(x, layer(x), self.method.step_size) if self.initial_guess == "explicit" else x

    def choose(self, n: int) -> None:
        """For an encoder of n layers."""
        implicit, self.attention = self.config.implicit_layers_of(n), self.config._attn_implementation
        # By place, whether the layer carries the connection: of an integer that changed a compiler makes a symbol, and
        # holds that none of a tuple is equal to one that is known.
        self.carries = tuple(i in implicit for i in range(n))

    def carries_at(self, layer: Any) -> bool:
        """Whether a layer's place carries the connection."""
        place, n = layer.im_place or layer.im_built
        if not self.carries:  # of a layer alone, or of an encoder that is not ours
            self.choose(n)
        # A checkpoint's second run of a forward finds the place of the first, whatever came between. A compiler puts no
        # guard on what it looks up by a module.
        if not torch.compiler.is_compiling():
            place = self.places.get(layer, place)
        return place < len(self.carries) and self.carries[place]

    def enter(self, layers: Any, rows: int) -> None:
        """Tells each layer of an encoder's list its place in it, as the list is now."""
        n = len(layers)
        self.choose(n)
        self.entered = True
        if self.consistent and any(self.carries) and self.method.theta > 0 and self.iterations[True] > 0:
            self.rows = rows
        if any(self.carries) and len({*layers}) < n:
            raise ValueError(f"im_layers must be [] where one layer stands twice in the encoder, got {n} places.")
        for i, entry in enumerate(layers):
            found: list[Any] = [entry]
            if not hasattr(type(entry), "im_place"):  # but what a wrapper holds
                found = [module for module in entry.modules() if hasattr(type(module), "im_place")]
            for layer in found:
                self.places[layer] = i
                if layer.im_place != (i, n):
                    layer.im_place = (i, n)
                # A compiler would guard what it was.
                if torch.compiler.is_compiling() or layer.im_carries != self.carries[i]:
                    layer.im_carries = self.carries[i]
            if not found and self.carries[i]:
                name, allowed = type(entry).__name__, "a layer of this model's own class"
                raise ValueError(f"im_layers names layer {i}, which must be {allowed}, got a {name}.")
            if not found and self.rows and any(self.carries[:i]):
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

    def first(self, h: Tensor) -> Tensor:
        """(rows, ...) of the implicit branch; h itself where there is no other, so that a loss on it is one."""
        return h if h.shape[0] == self.rows else h[: self.rows]

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
