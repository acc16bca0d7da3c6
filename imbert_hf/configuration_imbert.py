"""Configurations of the implicit models: their family's own, and the fields of the implicit connection.

With x the input of a layer F and y its output, the connection is the theta method with step size gamma,

    y = x + gamma [ (1 - theta) f(x) + theta f(y) ],

where f(h) = F(h) - h ("increment") or f(h) = F(h) ("layer"). theta = 1 is implicit Euler, IM-BERT (Kim et al., EMNLP
2024, arXiv 2505.06889); theta = 0 is explicit Euler, which with "increment" and gamma = 1 is BERT itself.

This file travels with every checkpoint: it imports transformers and the standard library alone.
"""

import contextlib
import difflib
import math
import warnings
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, ClassVar

from transformers import (
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    PretrainedConfig,
    RobertaConfig,
    XLMRobertaConfig,
)
from transformers.dynamic_module_utils import custom_object_save
from transformers.models.auto import tokenization_auto


# The release of this code; a checkpoint's config names the one that wrote it.
IM_VERSION = "0.1.0"

# transformers 5.0 opens the tokenizer of a model type that this table lacks as one without token types, in silence.
getattr(tokenization_auto, "TOKENIZER_MAPPING_NAMES", {}).update(
    imbert="BertTokenizer",
    imroberta="RobertaTokenizer",
    imelectra="BertTokenizer",
    imdistilbert="BertTokenizer",
    immodernbert="TokenizersBackend",
    **{"imxlm-roberta": "XLMRobertaTokenizer", "imdeberta-v2": "DebertaV2Tokenizer"},
)


def _one_of(*names: str) -> tuple[type, str, Callable[[Any], bool]]:
    return str, "one of " + ", ".join(map(repr, names)), lambda v: v in names


_KINDS: dict[type, Any] = {float: Real, int: Integral, str: str, list: (list, tuple)}

# field -> (what it is stored as, what is allowed, and whether a value of that kind is)
IM_FIELDS: dict[str, tuple[type, str, Callable[[Any], bool]]] = {
    "im_theta": (float, "a number from 0 to 1", lambda v: 0 <= v <= 1),
    "im_layers": (list, '"all" or a list of layer indices', lambda v: all(_is(Integral, i) for i in v)),
    "im_vector_field": _one_of("increment", "layer"),
    "im_step_size": (float, "a finite number > 0", lambda v: 0 < v < math.inf),
    "im_solver": _one_of("gradient_descent", "fixed_point", "anderson"),
    "im_iterations": (int, "an integer >= 0", lambda v: v >= 0),
    "im_eval_iterations": (int, "an integer >= 0 or None", lambda v: v >= 0),
    "im_tolerance": (float, "a finite number >= 0", lambda v: 0 <= v < math.inf),
    "im_initial_guess": _one_of("explicit", "previous"),
    "im_learning_rate": (float, "a finite number > 0", lambda v: 0 < v < math.inf),
    "im_damping": (float, "a number > 0 and <= 1", lambda v: 0 < v <= 1),
    "im_anderson_memory": (int, "an integer >= 1", lambda v: v >= 1),
    "im_gradient": _one_of("unrolled", "implicit", "one_step"),
    "im_gradient_iterations": (int, "an integer >= 0 or None", lambda v: v >= 0),
    "im_consistency": (float, "a finite number >= 0", lambda v: 0 <= v < math.inf),
}


def _is(kind: Any, value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _stored(name: str, value: Any) -> Any:
    """The value as the field `name` stores it. Raises ValueError where it is not allowed."""
    kind, allowed, accept = IM_FIELDS[name]
    if (value is None and allowed.endswith("None")) or (kind is list and isinstance(value, str) and value == "all"):
        return value
    if _is(_KINDS[kind], value):
        with contextlib.suppress(OverflowError):  # of an integer beyond every float
            stored = value if kind is str else kind(value)  # of an enum str() would make something else
            if accept(stored):
                return [int(i) for i in stored] if kind is list else stored
    raise ValueError(f"{name} must be {allowed}, got {value!r}.")


def _bare(name: str) -> str:
    return name.lower().replace("_", "").removeprefix("im")


_BARE = {_bare(name): name for name in IM_FIELDS}


def refuse_misspelt(names, owner: str, exactly: bool = False) -> None:
    """Raises ValueError for the first of `names` that was meant for an im_ field of the config `owner` but is none.

    That is one that begins with "im_", and unless `exactly` one that is a field but for prefix, case or underscores.
    """
    for name in names:
        near = None if exactly else _BARE.get(_bare(name))
        if name in IM_FIELDS or name == "im_version" or not (near or name.startswith("im_")):
            continue
        near = near or next(iter(difflib.get_close_matches(name, IM_FIELDS, n=1)), None)
        hint = f"did you mean {near!r}? " if near else ""
        raise ValueError(f"{name!r} is no field of {owner}: {hint}The fields are {', '.join(IM_FIELDS)}.")


class ImplicitConfig(PretrainedConfig):
    r"""The implicit connection's fields, as the base of a config beside the family's own.

    Values are checked here, when a field is set, and again when a model is built; a wrong one raises a ValueError that
    names the field, the value and what is allowed. Models read the im_ fields at every forward, so a callback may
    change them during training.

    Args:
        im_theta (`float`, 0 to 1): 1 is implicit Euler (IM-BERT), 0 explicit Euler (EX-BERT), 1/2 the trapezoidal rule.
        im_layers (`"all"` or list of `int`): the layers that carry the connection, negative from the end; the others
            are plain BERT layers. The default is the last: over five tasks of 1,000 rows and a small BERT it has no
            resolved gain or loss, where all layers lose accuracy.
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
        im_consistency (`float` >= 0): weight of a loss of training, the symmetric KL divergence between what a head
            makes of the implicit layers and of the same with 0 iterations; 0: none (outputs_imbert.py).
    """

    _auto_class = "AutoConfig"
    keys_to_ignore_at_inference = ["past_key_values", "im_residuals", "im_iterations_used"]  # noqa: RUF012
    auto_map_of_family: ClassVar[dict[str, str]] = {}
    model_class: ClassVar[Any] = None  # of the family, set where its models are defined: its file travels

    im_theta: float = 1.0
    im_layers: Any = (-1,)
    im_vector_field: str = "increment"
    im_step_size: float = 1.0
    im_solver: str = "fixed_point"
    im_iterations: int = 3
    im_eval_iterations: int | None = None
    im_tolerance: float = 0.0
    im_initial_guess: str = "explicit"
    im_learning_rate: float = 0.02
    im_damping: float = 1.0
    im_anderson_memory: int = 3
    im_gradient: str = "implicit"
    im_gradient_iterations: int | None = None
    im_consistency: float = 0.0

    def __init_subclass__(cls, *args, **kwargs):
        if "auto_map_of_family" in vars(cls):
            cls.__doc__ = cls.__doc__ or _DOCUMENTATION.format(name=cls.__name__, plain=cls.__bases__[-1].__name__)
        if "__init__" not in vars(cls):  # transformers would write one, which sets every field for itself
            cls.__init__ = ImplicitConfig.__init__  # type: ignore[method-assign]
        super().__init_subclass__(*args, **kwargs)

    def __init__(self, **kwargs):
        refuse_misspelt(kwargs, type(self).__name__)
        im_values = {name: kwargs.pop(name, getattr(type(self), name)) for name in IM_FIELDS}
        found = kwargs.pop("model_type", None)  # of the to_dict() of the family's config, or of this one's
        if found not in (None, self.plain_model_type(), self.model_type):
            raise ValueError(f"model_type must be {self.plain_model_type()!r} or {self.model_type!r}, got {found!r}.")
        written_by = kwargs.pop("im_version", IM_VERSION)
        if written_by != IM_VERSION:
            warnings.warn(
                f"config.json is of imbert_hf {written_by}, this code of {IM_VERSION}: results may differ. Load the "
                "checkpoint with the code of its own release, or save it again to take this one's.",
                stacklevel=2,
            )
        # Entries read from the Hub point to that repository; a saved copy must point to itself. Others are a user's.
        own = {name: entry for name, entry in (kwargs.pop("auto_map", None) or {}).items() if "--" not in str(entry)}
        auto_map = {**self.auto_map_of_family, **own}
        super().__init__(**kwargs)
        for name, value in im_values.items():
            setattr(self, name, value)
        self.im_version = IM_VERSION
        self.auto_map = auto_map
        _ = self.implicit_layers

    @classmethod
    def plain_model_type(cls) -> str:
        """The model_type of the family itself, whose checkpoints load: "bert" for "imbert"."""
        return cls.model_type.removeprefix("im")

    @classmethod
    def paper(cls, **kwargs):
        """The setting closest to what is public of the paper: relation of its Figure 1, gradient descent, unrolled.

        All layers carry the connection. Iterations and learning rate are not public; they are this package's defaults
        unless given in `kwargs`, which may override every field.
        """
        relation = {"im_layers": "all", "im_vector_field": "layer"}
        return cls(**relation | {"im_solver": "gradient_descent", "im_gradient": "unrolled"} | kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        refuse_misspelt([name], type(self).__name__, exactly=True)
        if name in IM_FIELDS:
            value = _stored(name, value)
        if name in ("is_decoder", "add_cross_attention") and value:
            raise ValueError(
                f"{name} must be False for {self.model_type!r}, got {value!r}: a layer is evaluated several times a "
                "forward and would write the key-value cache each time."
            )
        super().__setattr__(name, value)

    @property
    def implicit_layers(self) -> frozenset[int]:
        """The 0-based indices of the layers that carry the connection.

        Raises ValueError where im_layers holds an index out of range or twice.
        """
        return self.implicit_layers_of(self.num_hidden_layers)  # type: ignore[attr-defined] # of the family

    def implicit_layers_of(self, n: int) -> frozenset[int]:
        """The same in an encoder of n layers."""
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
        decoder = [name for name in ("is_decoder", "add_cross_attention") if hasattr(self, name)]  # not in every family
        for name in (*IM_FIELDS, *decoder):
            setattr(self, name, getattr(self, name))
        _ = self.implicit_layers

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As transformers', with the code of the family's models: every save of a model, whose ever, comes by here."""
        self.check_im_fields()  # im_layers may have been edited in place
        super().save_pretrained(save_directory, *args, **kwargs)
        if self.model_class is not None:
            custom_object_save(self.model_class, save_directory)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        # What a caller misspells transformers hands on to the model, or drops; what a file holds is kept as it is.
        refuse_misspelt(kwargs, cls.__name__)
        file = {k: v for k, v in config_dict.items() if k in IM_FIELDS or k.startswith("im_") or _bare(k) not in _BARE}
        config = super().from_dict(file, **kwargs)
        made = config[0] if isinstance(config, tuple) else config
        for name in config_dict.keys() - file.keys():
            setattr(made, name, config_dict[name])
        made.check_im_fields()
        return config

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """Reads a config.json of this model type or of the plain family's, which becomes this one's; no other's."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if not config_dict:  # transformers would go on with the defaults
            raise OSError(f"{pretrained_model_name_or_path} holds no config.json.")
        plain = cls.plain_model_type()
        found = config_dict.get("model_type", plain)
        if found not in (plain, cls.model_type):
            raise ValueError(
                f"{pretrained_model_name_or_path} holds a checkpoint of model_type {found!r}; {cls.__name__} loads "
                f"{plain!r} and {cls.model_type!r}."
            )
        return {**config_dict, "model_type": cls.model_type}, kwargs


_DOCUMENTATION = """{plain} with the fields of ImplicitConfig, which see. Every other argument is {plain}'s.

Example:
    >>> from imbert_hf import {name}
    >>> {name}(num_hidden_layers=6, im_layers=[-1, -2]).implicit_layers
    frozenset({{4, 5}})
"""


def _auto_map(module: str, family: str, *heads: str) -> dict[str, str]:
    """What AutoX.from_pretrained(..., trust_remote_code=True) loads.

    The whole table is written into every checkpoint, so that one saved from any head opens through every Auto class.
    """
    heads += ("MaskedLM", "SequenceClassification", "TokenClassification", "QuestionAnswering")
    models = {f"AutoModelFor{head}": f"{module}.{family}For{head}" for head in heads}
    return {"AutoConfig": f"configuration_imbert.{family}Config", "AutoModel": f"{module}.{family}Model", **models}


class IMBertConfig(ImplicitConfig, BertConfig):
    model_type = "imbert"
    auto_map_of_family = _auto_map(
        "modeling_imbert", "IMBert", "PreTraining", "NextSentencePrediction", "MultipleChoice"
    )


class IMRobertaConfig(ImplicitConfig, RobertaConfig):
    model_type = "imroberta"
    auto_map_of_family = _auto_map("modeling_roberta_imbert", "IMRoberta")


class IMElectraConfig(ImplicitConfig, ElectraConfig):
    model_type = "imelectra"
    auto_map_of_family = _auto_map("modeling_electra_imbert", "IMElectra")


class IMXLMRobertaConfig(ImplicitConfig, XLMRobertaConfig):
    model_type = "imxlm-roberta"
    auto_map_of_family = _auto_map("modeling_xlm_roberta_imbert", "IMXLMRoberta")


class IMDistilBertConfig(ImplicitConfig, DistilBertConfig):
    model_type = "imdistilbert"
    auto_map_of_family = _auto_map("modeling_distilbert_imbert", "IMDistilBert", "MultipleChoice")


class IMModernBertConfig(ImplicitConfig, ModernBertConfig):
    model_type = "immodernbert"
    auto_map_of_family = _auto_map("modeling_modernbert_imbert", "IMModernBert", "MultipleChoice")


class IMDebertaV2Config(ImplicitConfig, DebertaV2Config):
    model_type = "imdeberta-v2"
    auto_map_of_family = _auto_map("modeling_deberta_v2_imbert", "IMDebertaV2", "MultipleChoice")
