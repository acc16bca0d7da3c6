"""Model cards from a checkpoint and the JSON of its runs: a number that no JSON holds does not appear.

The words stand in model_cards/template.md; what has no data has no section there.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

import imbert_hf
from imbert_hf.evaluation.cards import tables
from imbert_hf.evaluation.cards.results import Results, read_json
from imbert_hf.evaluation.data.tasks import HUB, TASKS
from imbert_hf.evaluation.report import write_whole


# model_type -> the family whose layers take the implicit step
FAMILIES = {"imbert": "BERT", "imroberta": "RoBERTa", "imelectra": "ELECTRA"}
MARK = "Rendered by imbert-eval card"
GLUE = "nyu-mll/glue"


def render(
    folder: Path,
    results: Results,
    *,
    repo_id: str | None = None,
    license: str | None = None,
    base_license: str | None = None,
    base_model: str | None = None,
) -> ModelCard:
    """The card of a sequence classifier.

    Args:
        folder: of the checkpoint, with config.json.
        results: of read_results, for the same folder.
        repo_id: where it will be loaded from; None: the folder's name.
        license: of the checkpoint, as the Hub spells it ("apache-2.0").
        base_license: of the checkpoint that was fine-tuned.
        base_model: Hub id of that; None: as the training tells, where it was loaded from the Hub.

    Raises:
        ValueError: there is no config.json, or it is not of a sequence classifier.
    """
    config = read_json(folder / "config.json")
    if not str((config.get("architectures") or [None])[0]).endswith("ForSequenceClassification"):
        raise ValueError(f"{folder} holds no sequence classifier: architectures is {config.get('architectures')}.")
    training = results.training
    if base_model is None and training is not None:
        base_model = _hub_id(training["arguments"].get("model", {}).get("model_name_or_path"))
    of = {name: results.entries.get(name, []) for name in ("results", "embedding", "query", "noise")}
    measured = {entry.get("task") for entries in [*of.values(), [training or {}]] for entry in entries}
    known = [task for task in TASKS if task in measured]
    family = FAMILIES.get(config.get("model_type", ""))
    title = repo_id.rsplit("/", 1)[-1] if repo_id else folder.resolve().name
    evaluations = _advglue_evaluations(of["results"]) + _glue_evaluations(training)
    data = ModelCardData(
        language="en" if known else None,
        license=license,
        library_name="transformers",
        base_model=base_model,
        datasets=[GLUE] if training else None,
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
        base_license=base_license,
        labels=[config["id2label"][i] for i in sorted(config.get("id2label", {}), key=int)],
        tasks=known,
        pair=bool(known) and len(TASKS[known[0]].fields) == 2,
        imbert=family is not None,
        family=family,
        implicit=family is not None and config["im_layers"] != [] and config["im_theta"] > 0,
        remote="auto_map" in config,
        solver=tables.solver(config),
        advglue=tables.advglue(of["results"]),
        constructions=tables.constructions(of["results"]),
        comparisons=tables.comparisons(results.comparisons),
        embedding=[tables.embedding(entry) for entry in of["embedding"]],
        query=tables.query(of["query"]),
        noise=tables.under_noise(of["noise"]),
        growth=tables.layer_growth(results.stability),
        spectrum=tables.spectrum(results.stability),
        convergence=tables.convergence(results.stability),
        cost=tables.cost(training),
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
    if training is None:
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
