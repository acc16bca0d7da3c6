"""Configuration of IM-BERT: BERT's, and the fields of the implicit connection.

With x the input of a layer F and y its output, the connection is the theta method with step size gamma,

    y = x + gamma [ (1 - theta) f(x) + theta f(y) ],

where f(h) = F(h) - h ("increment") or f(h) = F(h) ("layer"). theta = 1 is implicit Euler, IM-BERT (Kim et al., EMNLP
2024, arXiv 2505.06889); theta = 0 is explicit Euler, which with "increment" and gamma = 1 is BERT itself.

This file travels with every checkpoint: it imports transformers and the standard library alone.
"""

import difflib
import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

from transformers import BertConfig


# What AutoX.from_pretrained(..., trust_remote_code=True) loads; the whole table is written into every checkpoint, so
# that one saved from any head opens through every Auto class.
AUTO_MAP = {
    "AutoConfig": "configuration_imbert.IMBertConfig",
    "AutoModel": "modeling_imbert.IMBertModel",
    "AutoModelForPreTraining": "modeling_imbert.IMBertForPreTraining",
    "AutoModelForMaskedLM": "modeling_imbert.IMBertForMaskedLM",
    "AutoModelForNextSentencePrediction": "modeling_imbert.IMBertForNextSentencePrediction",
    "AutoModelForSequenceClassification": "modeling_imbert.IMBertForSequenceClassification",
    "AutoModelForMultipleChoice": "modeling_imbert.IMBertForMultipleChoice",
    "AutoModelForTokenClassification": "modeling_imbert.IMBertForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_imbert.IMBertForQuestionAnswering",
}


def _number(allowed: str, accept: Callable[[float], bool]) -> tuple[str, Callable[[Any], Any]]:
    def parse(value):
        if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value) and accept(float(value)):
            return float(value)
        raise ValueError

    return allowed, parse


def _integer(allowed: str, least: int, or_none: bool = False) -> tuple[str, Callable[[Any], Any]]:
    def parse(value):
        if or_none and value is None:
            return None
        if isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least:
            return int(value)
        raise ValueError

    return allowed, parse


def _choice(*names: str) -> tuple[str, Callable[[Any], Any]]:
    def parse(value):
        if isinstance(value, str) and value in names:
            return value
        raise ValueError

    return "one of " + ", ".join(map(repr, names)), parse


def _layers(value: Any) -> Any:
    if value == "all":
        return value
    if isinstance(value, (list, tuple)) and all(isinstance(i, Integral) and not isinstance(i, bool) for i in value):
        return [int(i) for i in value]
    raise ValueError


# field -> (what is allowed, parser that returns the stored value or raises ValueError)
_FIELDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "im_theta": _number("a number from 0 to 1", lambda v: 0 <= v <= 1),
    "im_layers": ('"all" or a list of layer indices', _layers),
    "im_vector_field": _choice("increment", "layer"),
    "im_step_size": _number("a finite number > 0", lambda v: v > 0),
    "im_solver": _choice("gradient_descent", "fixed_point", "anderson"),
    "im_iterations": _integer("an integer >= 0", 0),
    "im_eval_iterations": _integer("an integer >= 0 or None", 0, or_none=True),
    "im_tolerance": _number("a finite number >= 0", lambda v: v >= 0),
    "im_initial_guess": _choice("explicit", "previous"),
    "im_learning_rate": _number("a finite number > 0", lambda v: v > 0),
    "im_damping": _number("a number > 0 and <= 1", lambda v: 0 < v <= 1),
    "im_anderson_memory": _integer("an integer >= 1", 1),
    "im_gradient": _choice("unrolled", "implicit", "one_step"),
    "im_gradient_iterations": _integer("an integer >= 0 or None", 0, or_none=True),
}


def refuse_unknown_im_names(names) -> None:
    """Raises ValueError for the first of `names` that starts with "im_" and is no field of IMBertConfig."""
    for name in names:
        if name.startswith("im_") and name not in _FIELDS:
            near = difflib.get_close_matches(name, _FIELDS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"{name!r} is no field of IMBertConfig: {hint}The fields are {', '.join(_FIELDS)}.")


class IMBertConfig(BertConfig):
    r"""BertConfig with the implicit connection's fields. Every other argument is BertConfig's.

    Values are checked here, when a field is set, and again when a model is built; a wrong one raises a ValueError that
    names the field, the value and what is allowed. Models read the im_ fields at every forward, so a callback may
    change them during training.

    Args:
        im_theta (`float`, 0 to 1): 1 is implicit Euler (IM-BERT), 0 explicit Euler (EX-BERT), 1/2 the trapezoidal rule.
        im_layers (`"all"` or list of `int`): the layers that carry the connection, negative from the end; the others
            are plain BERT layers, and `[]` is plain BERT.
        im_vector_field (`str`): "increment", f(h) = F(h) - h, or "layer", f(h) = F(h).
        im_step_size (`float` > 0): gamma.
        im_solver (`str`): "gradient_descent", "fixed_point" or "anderson".
        im_iterations (`int` >= 0): iterations after the initial guess.
        im_eval_iterations (`int` >= 0 or None): the same in eval mode; None: as in training.
        im_tolerance (`float` >= 0): an example stops at this relative residual; 0: all iterations, always.
        im_initial_guess (`str`): "explicit", y0 = x + gamma f(x), or "previous", y0 = x.
        im_learning_rate (`float` > 0): step of gradient_descent.
        im_damping (0 < `float` <= 1): mixing of fixed_point and anderson.
        im_anderson_memory (`int` >= 1): number of past differences that anderson keeps.
        im_gradient (`str`): "unrolled", "implicit" or "one_step".
        im_gradient_iterations (`int` >= 0 or None): vector-Jacobian products of the adjoint solve ("implicit"); None:
            as many as the forward solve had iterations.
    """

    model_type = "imbert"
    _auto_class = "AutoConfig"
    keys_to_ignore_at_inference = ["past_key_values", "im_residuals", "im_iterations_used"]  # noqa: RUF012

    im_theta: float = 1.0
    im_layers: Any = "all"
    im_vector_field: str = "increment"
    im_step_size: float = 1.0
    im_solver: str = "fixed_point"
    im_iterations: int = 3
    im_eval_iterations: int | None = None
    im_tolerance: float = 0.0
    im_initial_guess: str = "explicit"
    im_learning_rate: float = 0.1
    im_damping: float = 1.0
    im_anderson_memory: int = 3
    im_gradient: str = "implicit"
    im_gradient_iterations: int | None = None

    def __init__(self, **kwargs):
        refuse_unknown_im_names(kwargs)
        im_values = {name: kwargs.pop(name, getattr(type(self), name)) for name in _FIELDS}
        found = kwargs.pop("model_type", None)  # of the to_dict() of BERT's config, or of this one's
        if found not in (None, "bert", self.model_type):
            raise ValueError(f"model_type must be 'bert' or {self.model_type!r}, got {found!r}.")
        # Entries read from the Hub point to that repository; a saved copy must point to itself.
        auto_map = {**(kwargs.pop("auto_map", None) or {}), **AUTO_MAP}
        super().__init__(**kwargs)
        for name, value in im_values.items():
            setattr(self, name, value)
        self.auto_map = auto_map
        self.check_im_fields()

    @classmethod
    def paper(cls, **kwargs) -> "IMBertConfig":
        """The setting closest to what is public of the paper: relation of its Figure 1, gradient descent, unrolled.

        Iterations and learning rate are not public; they are this package's defaults unless given in `kwargs`, which
        may override every field.
        """
        preset = {"im_vector_field": "layer", "im_solver": "gradient_descent", "im_gradient": "unrolled"}
        return cls(**{**preset, **kwargs})

    def __setattr__(self, name: str, value: Any) -> None:
        refuse_unknown_im_names([name])
        if name in _FIELDS:
            allowed, parse = _FIELDS[name]
            try:
                value = parse(value)
            except ValueError:
                raise ValueError(f"{name} must be {allowed}, got {value!r}.") from None
        if name in ("is_decoder", "add_cross_attention") and value:
            raise ValueError(
                f"{name} must be False for IM-BERT, got {value!r}: a layer is evaluated several times a forward and "
                "would write the key-value cache each time."
            )
        super().__setattr__(name, value)

    @property
    def implicit_layers(self) -> frozenset[int]:
        """The 0-based indices of the layers that carry the connection.

        Raises ValueError where im_layers holds an index out of range or twice.
        """
        n = self.num_hidden_layers
        if self.im_layers == "all":
            return frozenset(range(n))
        for i in self.im_layers:
            if not -n <= i < n:
                raise ValueError(f"im_layers must hold indices from {-n} to {n - 1} for {n} layers, got {i}.")
        indices = frozenset(i % n for i in self.im_layers)
        if len(indices) < len(self.im_layers):
            raise ValueError(f"im_layers must name each layer once, got {self.im_layers} for {n} layers.")
        return indices

    def check_im_fields(self) -> None:
        """Checks every im_ field again, and those that depend on others. Raises ValueError."""
        for name in (*_FIELDS, "is_decoder", "add_cross_attention"):
            setattr(self, name, getattr(self, name))
        _ = self.implicit_layers

    def save_pretrained(self, *args, **kwargs):
        self.check_im_fields()  # im_layers may have been edited in place
        return super().save_pretrained(*args, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        refuse_unknown_im_names(kwargs)  # transformers hands an unknown keyword on to the model, or drops it
        config = super().from_dict(config_dict, **kwargs)
        (config[0] if isinstance(config, tuple) else config).check_im_fields()
        return config

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """Reads a config.json of IM-BERT or of BERT, which becomes an IM-BERT; another model type is refused."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        found = config_dict.get("model_type", "bert")
        if found not in ("bert", cls.model_type):
            raise ValueError(
                f"{pretrained_model_name_or_path} holds a checkpoint of model_type {found!r}; IM-BERT loads 'bert' and "
                f"{cls.model_type!r}."
            )
        return {**config_dict, "model_type": cls.model_type}, kwargs


__all__ = ["IMBertConfig"]
