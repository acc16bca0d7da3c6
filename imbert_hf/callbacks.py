"""Trainer callbacks."""

import torch
from transformers import TrainerCallback


class IMBertStatisticsCallback(TrainerCallback):
    """Logs how well the implicit layers solve their relation during training.

    Adds to the Trainer's logs, over all implicit layers and examples of the forwards measured since the last log:

        im_residual_mean      mean relative residual ||r|| / ||y||
        im_residual_max       the worst one
        im_unconverged_rate   share of solves whose residual exceeds im_tolerance, or 1e-2 where that is 0

    Measuring costs one more evaluation of each implicit layer, so only one forward in `every` is measured. With a plain
    model nothing is logged.

    The Trainer calls reporting callbacks (TensorBoard, W&B) before those passed to it, so that these values reach the
    progress bar and state.log_history, but a report only after
    trainer.callback_handler.callbacks.insert(0, IMBertStatisticsCallback()).

    Args:
        every: measure one training forward in this many, the first included.
    """

    def __init__(self, every: int = 10):
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"every must be an integer >= 1, got {every!r}.")
        self.every = every
        self._forwards = 0
        self._residuals: list[torch.Tensor] = []
        self._hooks: list = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.on_train_end(args, state, control)
        if not hasattr(model.config, "im_tolerance"):
            return
        self._tolerance = lambda: model.config.im_tolerance or 1e-2
        self._hooks = [
            model.register_forward_pre_hook(self._ask, with_kwargs=True),
            model.register_forward_hook(self._collect),
        ]

    def _ask(self, module, args, kwargs):
        if not module.training:
            return None
        self._forwards += 1
        if (self._forwards - 1) % self.every:
            return None
        return args, {**kwargs, "output_im_statistics": True, "return_dict": True}

    def _collect(self, module, args, outputs):
        residuals = getattr(outputs, "im_residuals", None)
        if module.training and residuals:
            self._residuals.append(torch.stack(residuals))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not self._residuals or "loss" not in logs:  # an evaluation's log has no place for them
            return
        residuals = torch.cat([r.flatten().float().cpu() for r in self._residuals])
        self._residuals = []
        values = {
            "im_residual_mean": residuals.mean().item(),
            "im_residual_max": residuals.max().item(),
            "im_unconverged_rate": (residuals > self._tolerance()).float().mean().item(),
        }
        logs.update(values)
        state.log_history[-1].update(values)

    def on_train_end(self, args, state, control, **kwargs):
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
