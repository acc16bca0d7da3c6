"""Model cards from a checkpoint and the JSON of its runs: a number that no JSON holds does not appear.

The words stand in model_cards/template.md; what has no data has no section there.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

import imbert_hf
from imbert_hf.evaluation.cards import tables
from imbert_hf.evaluation.cards.results import Results, read_json
from imbert_hf.evaluation.data.loading import TITLES
from imbert_hf.evaluation.data.tasks import HUB, TASKS
from imbert_hf.evaluation.report import write_whole


MARK = "Rendered by imbert-eval card"
GLUE = "nyu-mll/glue"
ENTRIES = ("check", "advglue", "embedding", "query", "noise")
EXAMPLES = {
    1: ("A film that earns every one of its tears.",),
    2: ("A man is playing a guitar.", "Someone makes music."),
}


def render(
    folder: Path,
    results: Results,
    *,
    repo_id: str | None = None,
    license: str | None = None,
    base_license: str | None = None,
    base_model: str | None = None,
    example: Sequence[str] = (),
) -> ModelCard:
    """The card of a sequence classifier.

    Args:
        folder: of the checkpoint, with config.json.
        results: of read_results, for the same folder.
        repo_id: where it will be loaded from; None: the folder's name.
        license: of the checkpoint, as the Hub spells it ("apache-2.0").
        base_license: of the checkpoint that was fine-tuned.
        base_model: Hub id of that; None: as the training tells, where it was loaded from the Hub.
        example: one text, or a pair, to show the model's use on; empty: one that fits the task of GLUE.

    Raises:
        ValueError: there is no config.json, or it is not of a sequence classifier.
    """
    config = read_json(folder / "config.json")
    if not str((config.get("architectures") or [None])[0]).endswith("ForSequenceClassification"):
        raise ValueError(f"{folder} holds no sequence classifier: architectures is {config.get('architectures')}.")
    training, of = results.training, {name: results.entries.get(name, []) for name in ENTRIES}
    if base_model is None and training is not None:
        base_model = _hub_id(training["arguments"].get("model", {}).get("model_name_or_path"))
    told = {entry["task"]: not entry["own"] for found in of.values() for entry in found}
    told |= {training["task"]: _of_glue(training)} if training is not None else {}
    tasks, glue = list(told), [task for task, is_glue in told.items() if is_glue]
    known = [task for task in TASKS if task in glue]
    family = {f"im{plain}": title for plain, title in TITLES.items()}.get(config.get("model_type", ""))
    title = repo_id.rsplit("/", 1)[-1] if repo_id else folder.resolve().name
    evaluations = _advglue_evaluations([e for e in of["advglue"] if not e["own"]]) + _glue_evaluations(training)
    data = ModelCardData(
        language="en" if known else None,
        license=license,
        library_name="transformers",
        base_model=base_model,
        datasets=_datasets(training),
        tags=["imbert", "robustness"] if family else ["robustness"],
        pipeline_tag="text-classification",
        metrics=["accuracy"] if evaluations else None,
        model_name=title if evaluations else None,
        eval_results=evaluations or None,
    )
    return ModelCard.from_template(
        data,
        template_str=template(),
        mark=MARK,
        title=title,
        repo=repo_id or title,
        base=base_model,
        license=license,
        base_license=base_license,
        labels=tables.labels(config),
        kind=config.get("problem_type"),
        tasks=tasks,
        known=known,
        example=", ".join(json.dumps(text, ensure_ascii=False) for text in example or _example(known, results)),
        imbert=family is not None,
        family=family,
        implicit=family is not None and config["im_layers"] != [] and config["im_theta"] > 0,
        remote="auto_map" in config,
        solver=tables.solver(config),
        checks=[tables.check(entry) for entry in of["check"]],
        advglue=tables.advglue(of["advglue"]),
        own_pairs=any(entry["own"] for entry in of["advglue"]),
        constructions=tables.constructions(of["advglue"]),
        comparisons=tables.comparisons(results.comparisons),
        embedding=[tables.embedding(entry) for entry in of["embedding"]],
        query=tables.query(of["query"]),
        noise=tables.under_noise(of["noise"]),
        growth=tables.layer_growth(results.stability),
        spectrum=tables.spectrum(results.stability),
        convergence=tables.convergence(results.stability),
        cost=tables.cost(results.cost, config),
        measured_on=tables.measured_on(results.cost),
        seconds=tables.seconds(training),
        recipe=tables.recipe(training),
    )


def template() -> str:
    """Text of model_cards/template.md, which lies in the package where it is installed and beside it in a checkout."""
    package = Path(imbert_hf.__file__).parent
    places = [root / "model_cards" / "template.md" for root in (package, package.parent)]
    return next(place for place in places if place.is_file()).read_text(encoding="utf-8")


def write(card: ModelCard, path: Path, *, overwrite: bool = False) -> None:
    """Writes a card, whole or not at all.

    Raises:
        ValueError: there is a file that this module did not write, and `overwrite` is not set.
    """
    if not overwrite and path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(f"{path} was not written by imbert-eval card; pass --overwrite to replace it.")
    write_whole(path, card.save)


def _hub_id(name: Any) -> str | None:
    told = isinstance(name, str) and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and not Path(name).exists()
    return name if told else None


def _example(known: Sequence[str], results: Results) -> Sequence[str]:
    """Texts of GLUE's kind, or a place for the user's own."""
    return EXAMPLES[len(TASKS[known[0]].fields)] if known else ["Your text here."] * (len(results.columns) or 1)


def _datasets(training: dict[str, Any] | None) -> list[str] | None:
    """Ids of the Hub that the training names."""
    if training is None:
        return None
    own = training["arguments"].get("data", {}).get("dataset_name")
    return [GLUE] if _of_glue(training) else [own] if _hub_id(own) else None


def _of_glue(training: dict[str, Any]) -> bool:
    """Whether it was trained on a task of GLUE, and on no table that is called so."""
    return training["task"] in TASKS and training["arguments"].get("data", {}).get("train_file") is None


def _advglue_evaluations(entries: Sequence[dict[str, Any]]) -> list[EvalResult]:
    # An accuracy on attacked texts says nothing without those on clean ones and of the majority class.
    kinds = {
        "accuracy": ("accuracy", "accuracy on attacked texts"),
        "clean_accuracy": ("clean_accuracy", "accuracy on the original texts"),
        "majority_accuracy": ("majority_accuracy", "accuracy of the majority class"),
        "robust_accuracy": ("robust_accuracy", "original and attacked text both right"),
        "f1": ("f1", "F1 on attacked texts"),
    }
    return [
        EvalResult(
            task_type="text-classification",
            dataset_type=HUB,
            dataset_name="AdvGLUE",
            dataset_config=f"adv_{entry['task']}".replace("-mm", "_mismatched"),
            dataset_split="validation" if entry["data"] == HUB else None,
            dataset_args=None if entry["data"] in (HUB, None) else {"file": entry["data"]},
            metric_type=metric,
            metric_name=name,
            metric_value=entry[key],
        )
        for entry in entries
        for key, (metric, name) in kinds.items()
        if entry.get(key) is not None
    ]


def _glue_evaluations(training: dict[str, Any] | None) -> list[EvalResult]:
    if training is None or not _of_glue(training):
        return []
    return [
        EvalResult(
            task_type="text-classification",
            dataset_type=GLUE,
            dataset_name="GLUE",
            dataset_config=training["task"],
            dataset_split=split,
            metric_type=metric,
            metric_value=scores[metric],
        )
        for split, scores in training["metrics"].items()
        for metric in ("accuracy", "f1")
        if metric in scores
    ]
