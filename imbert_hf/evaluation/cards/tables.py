"""The tables of a model card, in Markdown: shares in percent, and no column in which nothing stands."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from imbert_hf.configuration_imbert import IM_FIELDS
from imbert_hf.evaluation.check.measures import MEASURES
from imbert_hf.evaluation.report import percent


Entries = Sequence[dict[str, Any]]
_RECIPE = [  # of TrainingArguments
    *("num_train_epochs", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "optim"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "max_grad_norm", "bf16", "fp16"),
]
_NO_SCORES = ("loss", "runtime", "samples_per_second", "steps_per_second", "epoch")


def _is_share(metric: str) -> bool:
    return "accuracy" in metric or metric.endswith("f1")


def _table(rows: Iterable[dict[str, Any]]) -> str | None:
    """Rows in Markdown, without the columns in which nothing stands; None where nothing stands at all."""
    rows = list(rows)
    columns = [c for c in dict.fromkeys(c for row in rows for c in row) if any(row.get(c) is not None for row in rows)]
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    return tabulate(cells, columns, tablefmt="github", disable_numparse=True) if columns else None


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", "\\|").split())


def _percent(value: float | None, interval: Sequence[float] | None = None) -> str | None:
    if value is None:
        return None
    shown = str(percent(value))
    return f"{shown} [{percent(interval[0])}, {percent(interval[1])}]" if interval else shown


def solver(config: dict[str, Any]) -> str | None:
    """The im_ fields; None for a checkpoint that has none."""
    return _table({"field": f"`{n}`", "value": f"`{json.dumps(config[n])}`"} for n in sorted(IM_FIELDS) if n in config)


def labels(config: dict[str, Any]) -> list[str]:
    """What the outputs are called, in their order; none of a regression."""
    names = config.get("id2label", {})
    return [] if config.get("problem_type") == "regression" else [names[i] for i in sorted(names, key=int)]


def check(entry: dict[str, Any]) -> dict[str, Any]:
    """Of imbert-eval check: a row a measure, and why one is not there."""
    measured = {name: entry[name] for name in MEASURES}
    return {
        "caption": f"{entry['data']}, {entry['n']} rows, macro F1 {_percent(entry['macro_f1'])} %",
        "table": _table(
            {"measure": name, "accuracy [95 %]": _percent(found["accuracy"], found["ci95"]), "rows": found["n"]}
            for name, found in measured.items()
            if found
        ),
        "majority": _percent(entry.get("majority_accuracy")),
        "missing": [f"{name}: {_cell(why)}" for name, why in (entry.get("reasons") or {}).items()],
        "weak": [_cell(warning) for warning in entry.get("warnings") or ()],
    }


def advglue(entries: Entries) -> str | None:
    return _table(
        {
            "task": e["task"],
            "data": e["data"],
            "rows": e["n"],
            "sharing their original": e.get("repeated") or None,
            "with original": e.get("pairs"),
            "attacked [95 %]": _percent(e["accuracy"], e["accuracy_ci95"]),
            "clean [95 %]": _percent(e["clean_accuracy"], e.get("clean_accuracy_ci95")),
            "majority class": _percent(e["majority_accuracy"]),
            "both right [95 %]": _percent(e.get("robust_accuracy"), e.get("robust_accuracy_ci95")),
            "attack success": _percent(e.get("attack_success_rate")),
            "F1": _percent(e.get("f1")),
            "predicted": ", ".join(f"{k} {_percent(v)}" for k, v in (e.get("predicted_share") or {}).items()) or None,
            **_solves(e),
        }
        for e in entries
    )


def _solves(entry: dict[str, Any]) -> dict[str, Any]:
    if entry.get("unconverged_rate") is None:
        return {}
    mean = entry.get("mean_residual")
    return {
        "mean residual": "not finite" if mean is None else f"{mean:.1e}",
        "unconverged": _percent(entry["unconverged_rate"]),
        "of rows": entry.get("residual_rows"),
    }


def constructions(entries: Entries) -> str | None:
    return _table(
        {
            "task": e["task"],
            "attack": name,
            "rows": part["n"],
            "attacked": _percent(part["accuracy"]),
            "clean": _percent(part["clean_accuracy"]),
            "majority class, all rows": _percent(e["majority_accuracy"]),
            "both right": _percent(part.get("robust_accuracy")),
            "attack success": _percent(part.get("attack_success_rate")),
        }
        for e in entries
        for name, part in (e.get("by_construction") or {}).items()
        if part.get("clean_accuracy") is not None
    )


def comparisons(entries: Entries) -> str | None:
    return _table(
        {
            "task": e["task"],
            "a": e["a"],
            "b": e["b"],
            "of": what,
            "a - b [95 %]": _percent(of["difference"], of["ci95"]),
            "McNemar p": None if of.get("mcnemar_p") is None else f"{of['mcnemar_p']:.3g}",
            "": "resolved" if of["resolved"] else "not resolved",
        }
        for e in entries
        for what, of in (
            (e.get("measure", e.get("attack", _pairs(e))), e),
            (f"{_pairs(e)}, both right", e.get("robust_accuracy")),
        )
        if of is not None
    )


def _pairs(entry: dict[str, Any]) -> str:
    return "attacked texts" if entry["own"] else "AdvGLUE"


def embedding(entry: dict[str, Any]) -> dict[str, Any]:
    curve = _table(
        {
            "radius": f"{point['radius']:g}",
            "accuracy [95 %]": _percent(point["accuracy"], point.get("accuracy_ci95")),
            "accuracy, attack transferred from BERT": _percent(point.get("transfer_accuracy")),
            "steps": point.get("steps"),
        }
        for point in entry["curve"]
    )
    shown = {name: _percent(entry[name]) for name in ("clean_accuracy", "majority_accuracy")}
    return {
        "caption": f"{entry['task']}, {entry['n']} rows, clean accuracy {shown['clean_accuracy']} %, majority class "
        f"{shown['majority_accuracy']} %",
        "curve": curve,
        "failed": [f"{c['name']}: {_cell(c['message'])}" for c in entry["checks"] if c["passed"] is False],
        "not_made": [c["name"] for c in entry["checks"] if c["passed"] is None],
        "passed": [c["name"] for c in entry["checks"] if c["passed"]],
    }


def query(entries: Entries) -> str | None:
    return _table(
        {
            "task": e["task"],
            "data": e["data"],
            "attack": e["attack"],
            "rows": e["n"],
            "accuracy": _percent(e["accuracy"]),
            "majority class": _percent(e["majority_accuracy"]),
            "under attack [95 %]": _percent(e["accuracy_under_attack"], e.get("accuracy_under_attack_ci95")),
            "success": _percent(e["success_rate"]),
            "mean queries": None if e.get("mean_queries") is None else f"{e['mean_queries']:.1f}",
            "words changed": _percent(e.get("mean_changed_share")),
        }
        for e in entries
    )


def under_noise(entries: Entries) -> str | None:
    return _table(
        {
            "task": e["task"],
            "data": e["data"],
            "noise": e["kind"],
            "strength": f"{e['strength']:g}",
            "rows": e["n"],
            "accuracy [95 %]": _percent(e["accuracy"], e.get("accuracy_ci95")),
            "clean": _percent(e["clean_accuracy"]),
            "majority class": _percent(e["majority_accuracy"]),
        }
        for e in entries
    )


def layer_growth(summary: dict[str, Any] | None) -> str | None:
    return _table(
        {
            "connection": row["connection"],
            "direction": row["direction"],
            "difference after the last layer / of the embeddings": row["ratio"][-1],
            "relative to the last layer": row["relative"][-1],
        }
        for row in (summary or {}).get("growth", ())
    )


def spectrum(summary: dict[str, Any] | None) -> str | None:
    return _table(
        {"layer": row["layer"], "spectral radius": row["spectral_radius"], "norm": row["norm"]}
        for row in (summary or {}).get("spectrum", ())
    )


def convergence(summary: dict[str, Any] | None) -> str | None:
    return _table(
        {"theta": f"{row['theta']:g}", "step size": f"{row['step_size']:g}", "converged": _percent(row["share"])}
        for row in (summary or {}).get("convergence", ())
    )


def cost(found: dict[str, Any] | None, config: dict[str, Any]) -> str | None:
    """What imbert-eval cost measured with the checkpoint's solver and gradient."""
    return _table(
        {
            "batch": f"{cell['batch']} x {cell['length']}",
            "text": cell["text"],
            "implicit layers": cell["implicit_layers"],
            "iterations": row["iterations"],
            **{
                f"{what} / BERT [quartiles]": timing
                and f"{timing['ratio']:.2f} [{timing['quartiles'][0]:.2f}, {timing['quartiles'][1]:.2f}]"
                for what, timing in (("inference", row["inference"]), ("training step", row["training"]))
            },
            "training memory / BERT": row["training"] and f"{row['training']['memory_ratio']:.2f}",
        }
        for cell in (found or {}).get("cells", ())
        for row in cell["rows"]
        if row["kind"] == "IM-BERT"
        and (row["solver"], row["gradient"]) == (config.get("im_solver"), config.get("im_gradient"))
    )


def measured_on(found: dict[str, Any] | None) -> str | None:
    """Device and precision of a measurement of cost."""
    settings = (found or {}).get("settings", {})
    told = [settings.get("device"), settings.get("dtype")]
    told += [f"{settings['threads']} threads"] if settings.get("threads") else []
    return ", ".join(filter(None, told)) or None


def seconds(training: dict[str, Any] | None) -> str | None:
    """Seconds of the training run."""
    if training is None:
        return None
    rows = {f"evaluation, {split}, per row": s for split, s in (training.get("seconds_per_eval_row") or {}).items()}
    steps = {"training step": training.get("seconds_per_training_step"), "training": training.get("train_runtime")}
    return _table(
        {"what": what, "seconds": f"{s:.3g}" if s < 1000 else f"{s:.0f}", "device": training.get("device")}
        for what, s in (steps | rows).items()
        if s is not None
    )


def recipe(training: dict[str, Any] | None) -> str | None:
    if training is None:
        return None
    arguments = training["arguments"]
    used, git, model = arguments.get("training", {}), training.get("git"), arguments.get("model", {})
    facts = {
        "task": training["task"],
        "connection": training["connection"],
        **{name: model.get(name) for name in ("preset", "theta_warmup", "defence")},
        "teacher": training.get("teacher") and Path(training["teacher"]).name,
        "temperature": training.get("temperature"),
        "label_smoothing_factor": used.get("label_smoothing_factor") or None,
        **{f"rows, {split}": n for split, n in training["rows"].items()},
        "seed": training["seed"],
        "steps": training["steps"],
        "max_seq_length": arguments.get("data", {}).get("max_seq_length"),
        **{name: used.get(name) for name in _RECIPE},
        **{
            f"{name} in percent, {split}" if _is_share(name) else f"{name}, {split}": _percent(value)
            if _is_share(name)
            else value
            for split, scores in training["metrics"].items()
            for name, value in scores.items()
            if name not in _NO_SCORES
        },
        "fingerprint": training.get("fingerprint", "no fingerprint of what the training saved"),
        "versions": ", ".join(f"{n} {v}" for n, v in training.get("versions", {}).items()) or None,
        "code": git and f"commit {git['commit']}{', with changes that are not in it' if git['dirty'] else ''}",
    }
    return _table({"": name, "value": value} for name, value in facts.items() if value is not None)
