"""The implicit step of one layer, and the ways to differentiate it.

In the letters of solvers_imbert.py the step solves c y = b + s F(y). By the implicit function theorem a cotangent v of
y reaches b as w / c, and F(y), for the parameters, as (s / c) w, where

    (I - (s / c) dF/dy)^T w = v.

This file travels with every checkpoint: it imports torch, the standard library and its sisters alone.
"""

import contextlib
import copy
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge, saved_tensors_hooks

from .solvers_imbert import Anderson, Relation, Solution, Solver, ThetaMethod, iterate, require, solve, solve_to


INITIAL_GUESSES = ("explicit", "previous")


def functional() -> bool:
    """Whether a compiler or a transform of torch.func records what runs: products are torch.func's there."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _autocast(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def _in_vmap() -> bool:
    """Whether the innermost transform is vmap, whose tensors are gone when what is around it differentiates."""
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return False
    return torch._C._functorch.peek_interpreter_stack().key() == torch._C._functorch.TransformType.Vmap


class RandomState:
    """The random state that a device's layers draw from, as it is now.

    Within `again` it is set once more: the same calls draw the same masks, and leave the state as it was found.
    """

    def __init__(self, device: torch.device):
        self.sources: list[tuple[Callable, Callable]] = [(torch.get_rng_state, torch.set_rng_state)]
        if device.type not in ("cpu", "meta"):
            module, where = torch.get_device_module(device), {"device": device} if device.type != "mps" else {}
            self.sources.append((partial(module.get_rng_state, **where), partial(module.set_rng_state, **where)))
        self.states = self._get()

    def _get(self) -> list[Tensor]:
        return [get() for get, _ in self.sources]

    def _set(self, states: list[Tensor]) -> None:
        for (_, put), state in zip(self.sources, states, strict=True):
            put(state)

    @property
    def moved(self) -> bool:
        return any(not torch.equal(new, old) for new, old in zip(self._get(), self.states, strict=True))

    @contextlib.contextmanager
    def again(self):
        found = self._get()
        try:
            self._set(self.states)
            yield
        finally:
            self._set(found)


class FixedMap:
    """F as one fixed function: every evaluation in a forward is the first one again.

    Each replays the random state of the first, so that all draw the same dropout masks, and leaves the state as it
    found it; the first leaves what a plain call of the layer would leave.

    Args:
        layer: h -> F(h) of the same shape. Where an attribute `draws`, or else `training`, is false, nothing is
            replayed, and where `selects` is true, layer.select(rows) is the same for some rows of the batch.
        x: a tensor on the layer's device.
    """

    def __init__(self, layer: Any, x: Tensor):
        self.layer, self.device, self.kind = layer, x.device, x.device.type
        self.random = getattr(layer, "draws", getattr(layer, "training", True))
        self.state: RandomState | None = None
        self.autocast = torch.is_grad_enabled() and not functional() and _autocast(self.kind)

    def __call__(self, y: Tensor) -> Tensor:
        evaluate = self._replayed if self.random else self.layer
        if not self.autocast or torch.is_grad_enabled():
            return evaluate(y)
        # A weight cast under no_grad must not stay in autocast's cache: a tracked evaluation would find it there,
        # without its gradient.
        with torch.autocast(self.kind, dtype=torch.get_autocast_dtype(self.kind), cache_enabled=False):
            return evaluate(y)

    def _replayed(self, y: Tensor) -> Tensor:
        if self.state is not None:
            with self.state.again():
                return self.layer(y)
        self.state, Fy = RandomState(self.device), self.layer(y)
        if not torch.compiler.is_compiling():  # what drew nothing has nothing to replay
            self.random = self.state.moved
        return Fy

    @property
    def selects(self) -> bool:
        return getattr(self.layer, "selects", False)

    def select(self, rows: Tensor) -> "FixedMap":
        """The map for the rows of the batch that `rows` (n,) names."""
        part = copy.copy(self)
        part.layer = self.layer.select(rows)
        return part


class _Keep(torch.autograd.Function):
    """Saves `t` through the hooks that are active: its node unpacks it again."""

    @staticmethod
    def forward(ctx, anchor, t):
        ctx.save_for_backward(t)
        return anchor.view_as(anchor)

    @staticmethod
    def backward(ctx, v):
        return v, None


class Held:
    """Where saved-tensor hooks are active, keeps what a graph saves at hand while products need it.

    A checkpoint would run its whole region again for every product, and an offload move every tensor. So each tensor
    goes to their hooks and stays here too, until `release`, after which it comes from them; `restore` fetches all of
    them once, for the products of backward. Without hooks around nothing happens.
    """

    def __init__(self):
        self.slots: list[list] = []  # [what _Keep returned, tensor at hand or None]

    @contextlib.contextmanager
    def _packing(self):
        known: dict[str, Any] = {"slots": self.slots}

        def pack(t):
            t = t.data  # a detached tensor would hold its base, and that the graph
            known["hooks"].__exit__()  # the hooks around are active now
            try:
                with torch.enable_grad():
                    kept = _Keep.apply(torch.empty(0, requires_grad=True), t)
            finally:
                known["hooks"].__enter__()
            known["slots"].append([kept, t])
            return known["slots"][-1]

        known["hooks"] = saved_tensors_hooks(pack, _unpack)
        try:
            with known["hooks"]:
                yield
        finally:
            known.clear()  # `pack` lives as long as the graph: it would hold all of that, and itself

    def __call__(self, wanted: bool = True):
        return self._packing() if wanted and not functional() and _hooks_active() else contextlib.nullcontext()

    def release(self) -> None:
        for slot in self.slots:
            slot[1] = None

    def restore(self) -> None:
        for slot in self.slots:
            slot[1] = _unpack(slot)
        self.slots.clear()  # from now on the graph alone holds them


def _unpack(slot: list) -> Tensor:
    return slot[0].grad_fn.saved_tensors[0] if slot[1] is None else slot[1]


def _hooks_active() -> bool:
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks("probe"):
            return False
    except RuntimeError:
        return True


def _product(Fy: Any, y: Any, u: Tensor, **options) -> Tensor:
    """(dF/dy)^T u by autograd, of tensors or their gradient edges."""
    kind = u.device.type  # a backward pass casts nothing
    with torch.autocast(kind, enabled=False) if _autocast(kind) else contextlib.nullcontext():
        return torch.autograd.grad(Fy, y, u, materialize_grads=True, **options)[0]


def _with_pullback(F: FixedMap, y: Tensor, keep: bool = False) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """F(y) and u -> (dF/dy)^T u, under no_grad and inference_mode too; differentiable in grad mode, unless `keep`."""
    if functional():
        Fy, pullback, *_ = torch.func.vjp(F, y)
        return Fy, lambda u: pullback(u)[0]
    if torch.is_grad_enabled():
        y = y if y.requires_grad else y.detach().requires_grad_()
        Fy = F(y)
        return Fy, lambda u: _product(Fy, y, u, create_graph=not keep, retain_graph=True)
    inference = torch.is_inference_mode_enabled()
    hidden = saved_tensors_hooks(lambda t: t.data, lambda t: t)  # from a checkpoint: the graph lives in here alone
    with torch.inference_mode(False), torch.enable_grad(), hidden if _hooks_active() else contextlib.nullcontext():
        leaf = (y.clone() if inference else y.detach()).requires_grad_()
        Fleaf = F(leaf)

    def product(u):
        with torch.inference_mode(False):
            return _product(Fleaf, leaf, u.clone() if inference else u)

    return Fleaf.detach(), product


@dataclass
class _Problem:
    """One solve, as the gradient modes see it."""

    F: FixedMap
    x: Tensor
    relation: Relation
    solver: Solver
    guess: Tensor
    iterations: int
    tolerance: float

    def evaluate(self, y: Tensor, last: bool = False, rows: Tensor | None = None) -> tuple[Tensor, Any]:
        """F(y) and where the solver needs it u -> (dF/dy)^T u, by `rows` (n,) alone where that is the same."""
        F = self.F
        # Not where others would draw their masks, nor within a graph.
        if rows is None or len(rows) == len(y) or F.random or torch.is_grad_enabled() or not F.selects:
            return _with_pullback(F, y) if self.solver.needs_pullback else (F(y), None)
        Fy, pullback = replace(self, F=F.select(rows)).evaluate(y[rows])

        def whole(t: Tensor) -> Tensor:
            return y.index_copy(0, rows, t.to(y.dtype))

        return whole(Fy), None if pullback is None else lambda u: whole(pullback(u[rows]))

    def solve(self, evaluate: Callable | None = None) -> Solution:
        evaluate = self.evaluate if evaluate is None else evaluate  # no `or`: torch 2.11 compiles none of a function
        problem = (self.relation, evaluate, self.solver, self.guess, self.iterations)
        if not self.tolerance:
            return solve(*problem)
        return solve_to(*problem, self.tolerance, on_host=not (functional() or torch.jit.is_tracing()))


@dataclass(frozen=True)
class Unrolled:
    """Differentiates through every iteration, as the paper does. Memory grows with the iterations.

    With gradient_descent this differentiates F twice, which fused attention kernels do not support.
    """

    unrolled, products = True, False

    def solve(self, problem):
        held = Held()
        with held(problem.solver.needs_pullback):
            solution = problem.solve()
        held.release()
        return solution


@dataclass(frozen=True)
class Implicit:
    """Implicit function theorem at the value returned: solves (I - (s / c) dF/dy)^T w = v in backward, from w = c v.

    Costs one evaluation of F at the value, whose graph is kept, and `iterations` vector-Jacobian products and one for
    the parameters in backward; memory does not grow with the iterations of either solve. The layer, its mode, hooks and
    adapters are those of the forward. A second derivative through it is refused.

    Args:
        iterations: vector-Jacobian products of the adjoint solve; None: the iterations of the forward solve.
        solver: FixedPoint or Anderson, for the adjoint solve.
    """

    iterations: int | None = None
    solver: Solver = field(default_factory=Anderson)
    unrolled, products = False, True

    def __post_init__(self):
        ok = self.iterations is None or (isinstance(self.iterations, int) and self.iterations >= 0)
        require(ok, "iterations must be an integer >= 0 or None", self.iterations)
        ok = not self.solver.needs_pullback
        require(ok, "solver must be FixedPoint or Anderson for the adjoint relation", self.solver)

    def solve(self, problem):
        with torch.no_grad():
            solution = problem.solve()
        relation, F, value = problem.relation, problem.F, solution.value
        s, c, padding, b = relation.s, relation.c, relation.padding, relation.b
        iterations = problem.iterations if self.iterations is None else self.iterations
        if functional():  # where no graph is at hand: F is evaluated again, which a compiler sees and shares
            Fy = F(value)
            products: Any = _refused if _in_vmap() else partial(_by_transform, F, value)
        else:
            held, leaf = Held(), value.detach().requires_grad_()
            leaf.register_post_accumulate_grad_hook(_drop_grad)
            with held():
                Fy = F(leaf)
            held.release()
            reported = [weakref.ref(t) for t in getattr(F.layer, "reported", ())]
            products = partial(_by_graph, get_gradient_edge(Fy), get_gradient_edge(leaf), held, reported)

        def cotangents(v):
            # An overflow shows as in any backward pass: loss scaling of float16 relies on it.
            product = products()
            adjoint = Relation(v, s / c, 1.0, padding)
            w = iterate(adjoint, lambda w, last: (product(w), None), self.solver, c * v, iterations)
            return w / c, s / c * w

        found, value = Fy.detach(), _HandedOnce.apply(value, cotangents, b, Fy)
        return replace(solution, value=value, measure=lambda y: relation.relative_residual(y, found))


def _drop_grad(leaf: Tensor) -> None:
    leaf.grad = None


class _Handed(torch.autograd.Function):
    """`value`, whose cotangent v is handed to the carriers as cotangents(v)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value, cotangents, *carriers):
        return value.clone()  # what a user changes in place is not what F was evaluated at

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.cotangents = inputs[1]

    @staticmethod
    def backward(ctx, v):
        return None, None, *ctx.cotangents(v)


class _HandedOnce(_Handed):
    @staticmethod
    def backward(ctx, v):
        with torch.no_grad():
            found = ctx.cotangents(v)
        # Not once_differentiable, whose refusal hangs on no input: autograd.grad and torch.func would pass it by.
        return None, None, *(_Twice.apply(t, v) if torch.is_grad_enabled() else t for t in found)


class _Twice(torch.autograd.Function):
    """`t`, made of v, where a graph of that is recorded: its derivative is refused."""

    generate_vmap_rule = True

    @staticmethod
    def forward(t, v):
        return t.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, _):
        raise RuntimeError("The gradient mode 'implicit' has no second derivative; 'unrolled' and 'one_step' have.")


def _carry(value: Tensor, weights: tuple[float, ...], *carriers: Tensor) -> Tensor:
    """`value`, whose cotangent is handed to each of `carriers`, times its weight."""
    if functional():  # forward mode goes through no function of ours; there the zeros added cost little
        moved = [weight * (t - t.detach()) for weight, t in zip(weights, carriers, strict=True)]
        return sum(moved, value.detach())
    return _Handed.apply(value, lambda v: [weight * v for weight in weights], *carriers)


def _by_graph(Fy: Any, leaf: Any, held: Held, reported: list) -> Callable[[Tensor], Tensor]:
    """u -> (dF/dy)^T u by the graph that the forward kept, from F(y) to its leaf y."""
    held.restore()

    def product(u):
        # It hands cotangents to tensors that retain their gradient too: attentions, where they are returned.
        grads = [(t, t.grad) for t in (ref() for ref in reported) if t is not None and t.retains_grad]
        found = _product(Fy, leaf, u, retain_graph=True)
        for t, grad in grads:
            t.grad = grad
        return found

    return product


def _by_transform(F: FixedMap, y: Tensor) -> Callable[[Tensor], Tensor]:
    """u -> (dF/dy)^T u by torch.func."""
    _, pullback, *_ = torch.func.vjp(F, y)
    return lambda u: pullback(u)[0]


def _refused() -> Any:
    raise RuntimeError(
        "The gradient mode 'implicit' has no derivative through torch.func.vmap; 'unrolled' and 'one_step' have, and "
        "vmap of torch.func.grad."
    )


@dataclass(frozen=True)
class OneStep:
    """Differentiates one evaluation of F, the last of the solve, in which y moves with x: the cheapest mode.

    It cuts the adjoint solve short: F's parameters see its start w = c v, the input sees w after one product,
    dy/dx := (I + s dF/dy) / c. Not the gradient, but a descent direction of about its length; with y held fixed,
    attention would hand no gradient from one token to another.
    """

    unrolled, products = False, False

    def solve(self, problem):
        relation, F, x, held = problem.relation, problem.F, problem.x, Held()
        s, c, inside = relation.s, relation.c, problem.solver.needs_pullback
        tracked: Any = None
        finite: Any = None

        def evaluate(y, last, rows=None):
            nonlocal tracked, finite
            if not last:
                return problem.evaluate(y, last, rows)
            finite = relation.finite(y)
            y = torch.where(finite, y, problem.guess)  # what such an example returns, and is to be differentiated at
            with torch.enable_grad(), held(inside):
                moving = _carry(y, (1 / c,), x)
                tracked, pullback = _with_pullback(F, moving, keep=True) if inside else (F(moving), None)
            return tracked.detach(), pullback

        with torch.no_grad():
            solution = problem.solve(evaluate)
        held.release()
        value, solved = solution.value, solution.solved
        if tracked is None:
            tracked = F(_carry(value, (1 / c,), x))
        else:
            value, solved = torch.where(finite, value, problem.guess), solved & finite
        value = _carry(value, (1 / c, s), relation.b, tracked)
        return replace(solution, value=value, solved=solved)


Gradient = Unrolled | Implicit | OneStep


def implicit_step(
    layer: Callable[[Tensor], Tensor],
    x: Tensor,
    method: ThetaMethod,
    *,
    solver: Solver,
    gradient: Gradient,
    initial_guess: str,
    iterations: int,
    tolerance: float,
    mask: Tensor | None = None,
) -> Solution:
    """One step of the theta method around a layer: y = x + gamma [(1 - theta) f(x) + theta f(y)].

    The one numerical entry point: IMBertLayer, the diagnostics and the benchmark call it.

    Args:
        layer: F, h -> F(h) of the same shape and dtype; a module, or any callable. Random layers (dropout) draw the
            same masks in every evaluation; an attribute `training` or `draws` that is false says that nothing is
            random. With a true attribute `selects` it has a method select(rows) that gives the same for the examples
            of indices `rows` (n,): those that reached the tolerance are then left out, where no graph is recorded.
        x: (batch, length, width), floating point.
        method: the equation: theta, step size and vector field.
        solver: FixedPoint, Anderson or GradientDescent.
        gradient: Unrolled, Implicit or OneStep; where nothing is solved the expression is differentiated directly.
        initial_guess: "explicit", y0 = x + gamma f(x), or "previous", y0 = x.
        iterations: steps of the solver after the guess; with 0, or theta 0, nothing is solved.
        tolerance: relative residual at which an example stops; 0: all iterations and no host synchronisation.
        mask: (batch, length), nonzero for real tokens; None: all are.

    Returns:
        Solution. F is evaluated iterations + 1 times at tolerance 0, and max(iterations, 1) times with the guess
        "previous" and theta 1; once more in grad mode with Implicit, or with "previous" and an x without gradient.
        gradient_descent adds `iterations` vector-Jacobian products.

    Raises:
        ValueError: an argument outside what is listed above.

    Example: y = x + f(y) with f(h) = -h / 2, whose solution is x / 1.5.
        >>> import torch
        >>> from imbert_hf import FixedPoint, ThetaMethod, Unrolled, implicit_step
        >>> how = dict(solver=FixedPoint(), gradient=Unrolled(), initial_guess="explicit")
        >>> x = torch.ones(1, 3, 4)
        >>> solution = implicit_step(lambda h: h / 2, x, ThetaMethod(theta=1.0), **how, iterations=20, tolerance=1e-6)
        >>> round(solution.value[0, 0, 0].item(), 4), solution.converged.tolist()
        (0.6667, [True])
    """
    guesses = list(INITIAL_GUESSES)
    require(initial_guess in guesses, f"initial_guess must be one of {guesses}", initial_guess)
    require(isinstance(iterations, int) and iterations >= 0, "iterations must be an integer >= 0", iterations)
    require(0 <= tolerance < float("inf"), "tolerance must be a finite number >= 0", tolerance)
    shape, ok = tuple(x.shape), x.dim() >= 2 and x.is_floating_point()
    require(ok, "x must be a floating point tensor (batch, length, width)", f"{x.dtype} of shape {shape}")
    ok = mask is None or mask.shape == shape[:-1]
    require(ok, f"mask must have the shape {shape[:-1]} of x without its width", mask is None or tuple(mask.shape))
    padding = None if mask is None else (mask == 0)[..., None]
    return checked_step(layer, x, method, solver, gradient, initial_guess, iterations, tolerance, padding)


def checked_step(
    layer, x, method, solver, gradient, initial_guess, iterations, tolerance, padding, track_guess=False
) -> Solution:
    """implicit_step with arguments that are right, and the padding (batch, length, 1) for its mask.

    With `track_guess` Solution.guess has its gradient in every mode.
    """
    (s, c), explicit = method.weights, initial_guess == "explicit"
    if s == 0 or iterations == 0:
        F = FixedMap(layer, x) if s else layer
        Fx = F(x)  # with the guess "previous" for the attentions and the random state that it leaves

        def measure(y: Tensor) -> Tensor:
            b = method.euler(x, Fx, method.step_size - s)
            return Relation(b, s, c, padding).relative_residual(y, F(y) if s else y)

        guess = method.euler(x, Fx, method.step_size) if s == 0 or explicit else x
        return Solution(guess, 0, None, tolerance, measure, guess)
    _refuse(layer, x, solver, gradient)
    F, graph = FixedMap(layer, x), torch.is_grad_enabled()
    tracked = method.theta < 1 or gradient.unrolled or track_guess
    known = x.requires_grad or functional()  # whose tensors do not tell
    if explicit or method.theta < 1 or (graph and not known):
        # Where x has no gradient F(x) tells whether F itself has: a frozen layer builds no graph.
        with _grad_mode(graph and (tracked or not known)):
            Fx = F(x)
        graph = graph and (known or Fx.requires_grad)
        if graph and not tracked:
            Fx = Fx.detach()
    with _grad_mode(graph):
        b = x if method.theta == 1 else method.euler(x, Fx, method.step_size - s)
        guess = method.euler(x, Fx, method.step_size) if explicit else x
        problem = _Problem(F, x, Relation(b, s, c, padding), solver, guess, iterations, tolerance)
        return replace(gradient.solve(problem) if graph else problem.solve(), guess=guess)


def _grad_mode(wanted: bool):
    # No argument of set_grad_enabled: where theta has changed it is a symbol of a compiler.
    return contextlib.nullcontext() if wanted or not torch.is_grad_enabled() else torch.no_grad()


def _refuse(layer: Any, x: Tensor, solver: Solver, gradient: Gradient) -> None:
    """Raises ValueError for a layer that cannot be solved for, or differentiated, as asked."""
    inside, graph = solver.needs_pullback, torch.is_grad_enabled()
    if x.is_meta or not (graph or inside):
        return
    modules = list(getattr(layer, "modules", list)())
    weights = [p for module in modules for p in module._parameters.values() if p is not None]
    training, kind = getattr(layer, "training", True), getattr(layer, "attention", "eager")
    # Offloaded weights are on the meta device, and elsewhere only while the module that holds them runs.
    if graph and training and any(p.is_meta and p.requires_grad for p in weights):
        raise ValueError(
            "A layer whose weights are offloaded (device_map) cannot be trained: they would get no gradient. Keep it "
            "in memory, or freeze it."
        )
    # Sharded parts hold their weights within their own call alone, and products would call for them out of turn.
    parts = [type(m).__name__.removeprefix("FSDP") for m in modules if hasattr(m, "set_reshard_after_forward")]
    if parts and graph and (inside or gradient.products):
        raise ValueError(
            f"fully_shard was called on {parts[0]}, a part of an implicit layer; the solver gradient_descent and the "
            "gradient mode 'implicit' need the weights of a layer together. Call it on whole layers, or take "
            "fixed_point or anderson with 'one_step' or 'unrolled'."
        )
    if not inside:
        return
    # In training, whether a graph is recorded or not: reentrant checkpointing runs both with the same kernels.
    if gradient.unrolled and (graph or training) and kind not in ("eager", "sdpa"):
        raise ValueError(
            f"attn_implementation {kind!r} has no second derivative, which im_solver 'gradient_descent' with "
            "im_gradient 'unrolled' needs in training; use 'sdpa' or 'eager', or another im_gradient."
        )
    transformed, tracing = functional() and not torch.compiler.is_compiling(), torch.jit.is_tracing()
    exporting = getattr(torch.compiler, "is_exporting", bool)() and not torch.compiler.is_dynamo_compiling()
    quantized = ("torch.ao.nn.quantized", "torch.nn.quantized")
    made_here = not functional() and any(p.is_inference() for p in weights)
    for why, refused in {
        "which accelerate cannot do with weights that it offloads (device_map)": any(p.is_meta for p in weights),
        "and weights made under torch.inference_mode have no derivative": made_here,
        "and quantized modules have no derivative": any(type(m).__module__.startswith(quantized) for m in modules),
        # Before torch 2.13 it would be wrong in silence.
        "which torch.func does not under inference_mode, but no_grad": transformed
        and torch.is_inference_mode_enabled(),
        f"and {kind!r} has no derivative on a CPU": kind == "flex_attention" and x.device.type == "cpu",
        f"which {'torch.jit.trace' if tracing else 'torch.export'} cannot record": tracing or exporting,
    }.items():
        if refused:
            raise ValueError(
                f"im_solver 'gradient_descent' differentiates a layer inside the forward, {why}; use 'fixed_point' or "
                "'anderson'."
            )
