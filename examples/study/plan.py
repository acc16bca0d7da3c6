"""The plan of a study: which runs there are, and what each is called."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml


STAGES = ("train", "choice", "test", "advglue_test", "query", "layers", "cost")
CHOICE, VALIDATION, ATTACKED, QUERIED = 500, 1000, 100, 200  # rows at most; AdvGLUE's are all taken
KNOWN = ("about", "common", "models", "parts", "scores", "summary")  # of a plan
ENTRIES = ("tasks", "seeds", "models", "stages", "arguments", "autocast", "picture")  # of a part
OF_SCORE = ("parts", "models", "over", "picture")
PICTURES = ("differences", "cost")  # of a part or a score: of differences alone, or against the cost of training
AUTOCAST = ("bfloat16",)  # float16 would want its gradients scaled
STIFF = 50  # rows of the layers' stiffness
NOISE, STRENGTH = ("keyboard", "swap", "deletion", "clause"), 0.2
RADIUS, STEPS = 0.02, 5  # of the attack on the embeddings, relative to their norm
BATCH, LENGTH, ROUNDS = 32, 64, 7  # of the cost


@dataclass(frozen=True)
class Run:
    """One fine-tuning and what is measured of it.

    Attributes:
        task, seed: of finetune.py.
        arguments: the others of finetune.py, or of distill.py where there is a teacher.
        teacher: arguments of the run whose weights are distilled.
        fields: im_ fields that the model is given after the training.
        autocast: torch's name of the dtype under whose autocast accuracies are measured; "": none, in float32.
        part, model: what the plan calls them; runs of equal settings are one run, whatever they are called.
        stages: of STAGES, in that order; "train" is the first, unless "cost" is the only one.
    """

    task: str
    seed: int
    arguments: dict[str, Any]
    teacher: dict[str, Any]
    fields: dict[str, Any]
    autocast: str
    part: str
    model: str
    stages: tuple[str, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """What the run depends on; `teacher`, `fields` and `autocast` where it has them."""
        more = {name: getattr(self, name) for name in ("teacher", "fields", "autocast") if getattr(self, name)}
        return {"task": self.task, "seed": self.seed, "arguments": self.arguments, **more}

    @property
    def digest(self) -> str:
        return digest_of(self.settings)

    @property
    def key(self) -> str:
        """What its weights, log and lock are called: equal settings have one."""
        return f"{self.task}-{self.seed}-{self.digest[:10]}"

    @property
    def name(self) -> str:
        """What a reader calls it: the plan's model, and what parts of a plan change."""
        rows = self.arguments.get("max_train_samples")
        words = [self.model, "all rows" if rows is None else f"{rows} rows"]
        words += [f"{self.arguments['num_train_epochs']} epochs"] if "num_train_epochs" in self.arguments else []
        return ", ".join([*words, *([self.autocast] if self.autocast else []), f"seed {self.seed}"])

    @property
    def trained(self) -> "Run":
        """The run that has these weights and nothing else."""
        return replace(self, fields={}, autocast="")

    @property
    def brief(self) -> "Run":
        """The run after one step of training. It costs what the trained one does, where im_tolerance is 0."""
        teacher = self.teacher and self.teacher | {"max_steps": 1}
        return replace(self, arguments=self.arguments | {"max_steps": 1}, teacher=teacher)

    @property
    def taught_by(self) -> "Run":
        """The run whose weights are distilled; this one's own training where none are."""
        return replace(self, arguments=self.teacher or self.arguments, teacher={}, fields={}, autocast="")

    def missing(self, kept: dict[str, Any]) -> list[str]:
        """Stages that are still to be made."""
        return [stage for stage in self.stages if stage not in kept["stages"]]


def digest_of(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def read_plan(path: Path, base: str | None = None) -> dict[str, Any]:
    """The plan, its names checked; `base` in place of its model_name_or_path.

    Raises:
        ValueError: the file is none, or a name in it is unknown.
    """
    try:
        plan = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}.") from None
    for name in ("models", "parts"):
        if not isinstance(plan, dict) or not isinstance(plan.get(name), dict):
            raise ValueError(f"{path} must hold {name!r}, by name; it may hold {', '.join(KNOWN)}.")
    for name in plan:
        if name not in KNOWN:
            raise ValueError(f"{path} may hold {', '.join(KNOWN)}, got {name!r}.")
    try:
        for check in (check_models, check_parts, check_scores, check_summary):
            check(plan)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if base is not None:
        plan["common"] = (plan.get("common") or {}) | {"model_name_or_path": base}
    return plan


def check_models(plan: dict[str, Any]) -> None:
    for name, entry in {"common": plan.get("common"), **plan["models"]}.items():
        if not isinstance(entry or {}, dict):
            raise ValueError(f"{name!r} must hold arguments by name, got {entry!r}.")
    for model, entry in plan["models"].items():
        for name in [n for n in ("of", "teacher") if n in (entry or {})]:
            base = plan["models"].get(entry[name], {"teacher": ""}) if isinstance(entry[name], str) else {"of": ""}
            if {"of", "teacher"} & set(base or {}):
                allowed = "a model that has neither of nor teacher"
                raise ValueError(f"{name} of {model!r} must be {allowed}, got {entry[name]!r}.")
            if name == "of" and (odd := [one for one in entry if one != "of" and not one.startswith("im_")]):
                raise ValueError(f"beside of, {model!r} may hold im_ fields alone, got {odd[0]!r}.")


def check_parts(plan: dict[str, Any]) -> None:
    for part, what in plan["parts"].items():
        for name in ("tasks", "seeds", "models", "stages"):
            if not isinstance(what, dict) or not isinstance(what.get(name), list):
                raise ValueError(f"part {part!r} must hold {name!r}, a list.")
        for name in what:
            if name not in ENTRIES:
                raise ValueError(f"part {part!r} may hold {', '.join(ENTRIES)}, got {name!r}.")
        if what.get("autocast", "bfloat16") not in AUTOCAST:
            raise ValueError(f"autocast of {part!r} must be of {', '.join(AUTOCAST)}, got {what['autocast']!r}.")
        check_picture(f"part {part!r}", what)
        for field, names in (("models", list(plan["models"])), ("stages", list(STAGES))):
            unknown = [one for one in what[field] if one not in names]
            if unknown or not what[field]:
                got = repr(unknown[0]) if unknown else "none"
                raise ValueError(f"{field} of {part!r} must be of {', '.join(names)}, got {got}.")


def check_scores(plan: dict[str, Any]) -> None:
    scores = plan.get("scores") or {}
    if not isinstance(scores, dict):
        raise ValueError(f"scores must hold scores by name, got {scores!r}.")
    for score, what in scores.items():
        if score in plan["parts"]:
            raise ValueError(f"score {score!r} must have another name than every part.")
        chosen = what.get("parts") if isinstance(what, dict) else None
        if not isinstance(chosen, list) or not chosen or any(one not in list(plan["parts"]) for one in chosen):
            raise ValueError(f"score {score!r} must hold parts, a list of {', '.join(plan['parts'])}, got {chosen!r}.")
        if odd := [name for name in what if name not in OF_SCORE]:
            raise ValueError(f"score {score!r} may hold {', '.join(OF_SCORE)}, got {odd[0]!r}.")
        if "over" in what and ("models" in what or not is_over(what["over"])):
            got = what["over"]
            raise ValueError(f"over of score {score!r} must hold models by model, in place of models, got {got!r}.")
        check_picture(f"score {score!r}", what)
        parts = [plan["parts"][one] for one in chosen]
        tasks, models = [task for part in parts for task in part["tasks"]], models_of_score(plan, score)
        if len(set(tasks)) < len(tasks):
            raise ValueError(f"parts of score {score!r} must hold a task once, got {', '.join(tasks)}.")
        for one, part in zip(chosen, parts, strict=True):
            if "test" not in part["stages"] or not set(models) <= set(part["models"]):
                need = f"the stage test, and the models {', '.join(models)}"
                raise ValueError(f"{one!r} of score {score!r} must have {need}.")


def is_over(found: Any) -> bool:
    """Whether it names models, and another for each."""
    pairs = found.items() if isinstance(found, dict) else ()
    return bool(pairs) and all(isinstance(a, str) and isinstance(b, str) and a != b for a, b in pairs)


def check_picture(whose: str, what: dict[str, Any]) -> None:
    if what.get("picture", PICTURES[0]) not in PICTURES:
        raise ValueError(f"picture of {whose} must be one of {', '.join(PICTURES)}, got {what['picture']!r}.")


def check_summary(plan: dict[str, Any]) -> None:
    summary, names = plan.get("summary") or {}, [*(plan.get("scores") or {}), *plan["parts"]]
    if not isinstance(summary, dict):
        raise ValueError(f"summary must hold parts or scores by heading, got {summary!r}.")
    for heading, name in summary.items():
        if name not in names:
            raise ValueError(f"{heading!r} of summary must be of {', '.join(names)}, got {name!r}.")


def batch_of(run: Run) -> Any:
    """Rows of a training step."""
    given = run.arguments.get("per_device_train_batch_size")
    return 8 if given is None else given


def models_of_score(plan: dict[str, Any], score: str) -> list[str]:
    """The models that a score compares: those it names, or those of its first part."""
    what = plan["scores"][score]
    if "over" in what:
        return list(dict.fromkeys([*what["over"].values(), *what["over"]]))
    return what.get("models") or plan["parts"][what["parts"][0]]["models"]


def runs_of(plan: dict[str, Any], parts: list[str] | None = None) -> Iterator[Run]:
    """The runs in the plan's order, seed by seed, so that a part that is stopped holds all of its models."""
    for part, what in plan["parts"].items():
        common = {**(plan.get("common") or {}), **what.get("arguments", {})}
        for seed in what["seeds"] if parts is None or part in parts else ():
            for task in what["tasks"]:
                for model in what["models"]:
                    own = dict(plan["models"][model] or {})
                    base, teacher = own.pop("of", None), own.pop("teacher", None)
                    arguments = common | ((plan["models"][base] or {}) if base else own)
                    taught_by = common | (plan["models"][teacher] or {}) if teacher else {}
                    trained = set(what["stages"]) - {"cost"}
                    stages = tuple(s for s in STAGES if s in what["stages"] or (s == "train" and trained))
                    fields, autocast = own if base else {}, what.get("autocast", "")
                    yield Run(task, seed, arguments, taught_by, fields, autocast, part, model, stages)


def words_of(arguments: dict[str, Any]) -> list[str]:
    """Arguments as words of a command line; true is a flag, null leaves one out, and [] is an empty word."""
    words = []
    for name, value in arguments.items():
        if value is not None:
            values = (value or [""]) if isinstance(value, list) else [value]
            words += [f"--{name}", *(str(v) for v in values if v is not True)]
    return words
