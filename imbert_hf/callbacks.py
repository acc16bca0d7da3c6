"""Trainer callbacks: how well the layers solve their relation, and theta as a schedule."""

import inspect
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback


def has_field(module: Any, name: str) -> bool:
    return hasattr(getattr(module, "config", None), name)


def measurable(module: nn.Module | None) -> list[Any]:
    """The outermost modules in `module`, itself or what it wraps, whose forwards can be asked for statistics.

    These are models of ours, and what hands keywords on to one.
    """
    if module is None:
        return []
    if has_field(module, "im_tolerance"):
        takes = inspect.signature(type(module).forward).parameters  # a user's own forward may take neither
        hands_on = any(takes[name].kind is takes[name].VAR_KEYWORD for name in takes)
        ours = any(hasattr(type(part), "implicit_classes") for part in module.modules())
        if "output_im_statistics" in takes or (hands_on and ours):
            return [module]
    return [found for child in module.children() for found in measurable(child)]


class IMBertStatisticsCallback(TrainerCallback):
    """Logs how well the implicit layers solve their relation during training.

    Adds to the Trainer's logs, over all implicit layers and examples of the forwards measured since the last log:

        im_residual_mean      mean relative residual ||r|| / ||y||
        im_residual_max       the worst one
        im_unconverged_rate   share of solves whose residual exceeds im_tolerance, or 1e-2 where that is 0
        im_consistency_loss   where im_consistency is above 0, the mean of its loss, not multiplied by it

    Measuring costs one more evaluation of each implicit layer, so only one forward in `every` is measured. Models of
    ours are found within others that wrap them. Where there is none, or what wraps it calls it past its hooks, as
    sentence-transformers does, nothing is logged.

    The Trainer calls reporting callbacks (TensorBoard, W&B) before those passed to it, so that these values reach the
    progress bar and state.log_history, but a report only after
    trainer.callback_handler.callbacks.insert(0, IMBertStatisticsCallback()).

    Args:
        every: measure one training forward of the Trainer in this many, the first included.

    Example:
        >>> from imbert_hf import IMBertStatisticsCallback
        >>> callbacks = [IMBertStatisticsCallback(every=10)]  # Trainer(..., callbacks=callbacks)
    """

    def __init__(self, every: int = 10):
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"every must be an integer >= 1, got {every!r}.")
        self.every = every
        self._models: list[Any] = []  # that are measured; none but in training
        self._hooks: list[Any] = []
        self._forwards = 0
        self._asks = False  # whether the next forward is measured
        self._residuals: list[torch.Tensor] = []
        self._losses: list[torch.Tensor] = []

    def __getstate__(self):
        # A copy of a model in training has its hooks, and with them a copy of this that does nothing.
        return vars(self) | {"_models": [], "_hooks": [], "_asks": False, "_residuals": [], "_losses": []}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.on_train_end(args, state, control)  # of one that was broken off
        self._models, self._forwards, self._asks, self._residuals, self._losses = measurable(model), 0, True, [], []
        for module in self._models:
            self._hooks += [
                module.register_forward_pre_hook(self._ask, with_kwargs=True),
                module.register_forward_hook(self._collect, with_kwargs=True),
            ]

    def on_step_begin(self, args, state, control, **kwargs):
        # Not in the hooks: a compiler would see another number each time, and copies of a model count each for itself.
        self._asks = self._forwards % self.every == 0
        self._forwards += 1

    on_substep_end = on_step_begin  # where gradients are accumulated, before every other forward of a step

    def _ask(self, module, args, kwargs):
        if not (module.training and self._asks) or kwargs.get("output_im_statistics"):
            return None
        wanted = kwargs.get("return_dict")
        wanted = getattr(module.config, "return_dict", True) if wanted is None else wanted
        # An int is true for the model, and tells `_collect` that its caller wants a tuple.
        return args, {**kwargs, "output_im_statistics": True, "return_dict": True if wanted else 1}

    def _collect(self, module, args, kwargs, outputs):
        residuals = getattr(outputs, "im_residuals", None)
        if not (module.training and self._asks and residuals):
            return None
        self._residuals += residuals  # whose devices differ where layers' do
        loss = getattr(outputs, "im_consistency_loss", None)
        self._losses += [] if loss is None else [loss.detach()]
        if type(kwargs.get("return_dict")) is not int:
            return None
        return tuple(outputs[name] for name in outputs if name not in ("im_residuals", "im_iterations_used"))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not (self._residuals and self._models) or "loss" not in logs:  # an evaluation's log has no place for them
            return
        residuals = torch.cat([r.flatten().float().cpu() for r in self._residuals])
        values = {
            "im_residual_mean": residuals.mean().item(),
            "im_residual_max": residuals.max().item(),
            "im_unconverged_rate": (residuals > (self._models[0].config.im_tolerance or 1e-2)).float().mean().item(),
        }
        if self._losses:
            values["im_consistency_loss"] = torch.stack(self._losses).mean().item()
        self._residuals, self._losses = [], []
        logs.update(values)
        state.log_history[-1].update(values)

    def on_train_end(self, args, state, control, **kwargs):
        for hook in self._hooks:
            hook.remove()
        self._models, self._hooks, self._asks = [], [], False


class ThetaScheduleCallback(TrainerCallback):
    """Moves config.im_theta in a straight line during training: a path from BERT to IM-BERT.

    With the increment field and step size 1 a theta of 0 is BERT itself, and costs as much; fine-tuning can then follow
    the solution of the theta method instead of leaving the pretrained features at once.

    After k steps theta is start + (end - start) min(1, k / n), n the integer nearest to fraction * max_steps, at least
    1. It is computed from the Trainer's global step alone: a resumed run goes on where it was, whatever its model's
    config says. A checkpoint holds the theta of its step, and only those at `end` compete for the best one: what
    evaluations before have found is forgotten.

    Args:
        start: theta at the first step, 0 <= float <= 1.
        end: theta after the first n steps, 0 <= float <= 1.
        fraction: share of the training that the path takes, 0 < float <= 1.

    Raises:
        ValueError: an argument outside of these, or, when training begins, a model without im_theta.

    Example:
        >>> from imbert_hf import ThetaScheduleCallback
        >>> callbacks = [ThetaScheduleCallback(start=0.0, end=1.0, fraction=0.5)]  # Trainer(..., callbacks=callbacks)
    """

    def __init__(self, start: float = 0.0, end: float = 1.0, fraction: float = 0.5):
        for name, value in {"start": start, "end": end}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be a number from 0 to 1, got {value!r}.")
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must be a number > 0 and <= 1, got {fraction!r}.")
        self.start, self.end, self.fraction = start, end, fraction

    def _steps(self, state) -> int:
        return max(1, round(self.fraction * state.max_steps))

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        configs = [module.config for module in model.modules() if has_field(module, "im_theta")]
        if not configs:
            raise ValueError(f"ThetaScheduleCallback needs a model with im_theta, got {type(model).__name__}.")
        share = min(1.0, state.global_step / self._steps(state))
        for config in configs:
            config.im_theta = self.start * (1 - share) + self.end * share

    def on_step_end(self, args, state, control, **kwargs):
        self.on_train_begin(args, state, control, **kwargs)  # before the evaluation and the checkpoint of this step
        if state.global_step <= self._steps(state):  # all that was evaluated so far had another theta than `end`
            state.best_metric = state.best_model_checkpoint = state.best_global_step = None
