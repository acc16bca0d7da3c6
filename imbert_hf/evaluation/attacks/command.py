"""Attacks on the models themselves: white box on the embeddings, black box by queries, and natural noise."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy

from imbert_hf.evaluation.advglue.scores import baseline
from imbert_hf.evaluation.attacks.ascent import Ascent
from imbert_hf.evaluation.attacks.candidates import CharacterEdits, load_masked_language_model
from imbert_hf.evaluation.attacks.embedding import embedding_attack
from imbert_hf.evaluation.attacks.noise import KINDS, noise, noisy
from imbert_hf.evaluation.attacks.pairs import pairs, pairs_of_attack
from imbert_hf.evaluation.attacks.query import QueryAttackResult, query_attack, summarise
from imbert_hf.evaluation.attacks.report import figure, text
from imbert_hf.evaluation.data.arguments import (
    add_attack_arguments,
    add_model_arguments,
    digest,
    load_options,
    numbers,
    parse_models,
    read_data,
)
from imbert_hf.evaluation.data.classifier import Classifier, load_classifier, predict
from imbert_hf.evaluation.data.tasks import Row
from imbert_hf.evaluation.report import Journal, Keep, Report
from imbert_hf.evaluation.statistics import accuracy_interval, paired_difference


HELP = "attacks on the models themselves, and natural noise"
SHARED = True  # among the processes of a launch
SECTIONS = {"embedding": "embedding", "character": "query", "word": "query", "noise": "noise"}  # of the JSON
CHUNK = 64  # rows of a query attack that are kept together


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_attack_arguments(parser)
    parser.add_argument(
        "--attack",
        action="append",
        choices=list(SECTIONS),
        help="embedding: projected gradient ascent; character: edits as in DeepWordBug; word: substitutions as in "
        "BERT-Attack, needs --masked-lm; noise: typos and clauses. May be repeated (default: all but word)",
    )
    white = parser.add_argument_group("embedding attack")
    white.add_argument("--radii", default="0.01,0.02,0.05,0.1,0.2", help="relative to the l2 norm of the embeddings")
    white.add_argument(
        "--large-radius", type=float, default=3.0, help="where no row may survive (default: %(default)s)"
    )
    white.add_argument("--steps", type=int, default=10, help="of an ascent (default: %(default)s)")
    white.add_argument("--restarts", type=int, default=2, help="default: %(default)s")
    white.add_argument(
        "--transfer-from",
        metavar="PATH",
        help="plain BERT whose attack is transferred (default: an implicit model's own weights as plain BERT)",
    )
    black = parser.add_argument_group("query attacks")
    black.add_argument("--masked-lm", metavar="PATH", help="folder or Hub id of a masked language model")
    black.add_argument("--max-share", type=float, default=0.2, help="of the words changed (default: %(default)s)")
    black.add_argument("--fields", help="text fields to attack, such as hypothesis (default: all)")
    natural = parser.add_argument_group("noise")
    natural.add_argument("--kinds", default=",".join(KINDS), help="default: %(default)s")
    natural.add_argument("--strengths", default="0.1,0.2,0.4", help="shares of the words (default: %(default)s)")
    add_model_arguments(parser)


def run(args: argparse.Namespace, journal: Journal) -> Report:
    kinds = list(dict.fromkeys(args.attack or ["embedding", "character", "noise"]))
    if args.export is not None and kinds == ["embedding"]:
        raise ValueError("--export needs an --attack that makes texts, other than embedding.")
    specs = parse_models(args.model, args.task)
    task, rows = read_data(args, specs[0].path)
    options = load_options(args)

    def load(path: str, name: str | None = None) -> Classifier:
        return load_classifier(path, task, name=name, **options)

    setting = Setting(
        args,
        rows,
        attack=Ascent(args.steps, args.restarts, seed=args.seed),
        radii=numbers("--radii", args.radii),
        strengths=numbers("--strengths", args.strengths),
        candidates=_candidates(args, kinds),
        source=load(args.transfer_from) if args.transfer_from else None,
    )
    classifiers = [load(spec.path, name=spec.name) for spec in specs]
    found: dict[str, list[dict[str, Any]]] = {"embedding": [], "query": [], "noise": []}
    survivors: dict[str, dict[str, list[bool]]] = {}  # what was done -> model -> the rows that stay right
    exported: list[dict[str, Any]] = []
    for classifier in classifiers:
        common = {"of": classifier.key(), "rows": digest(rows), "batch_size": args.batch_size}
        clean = journal.part({"clean": "answers", **common}, partial(_clean, classifier, setting))
        gold = [row.label for row in rows]
        survivors.setdefault("none", {})[classifier.name] = numpy.equal(clean["labels"], gold).tolist()
        about = {"model": classifier.name, "path": classifier.path, "task": task.name, **classifier.about()}
        about["clean_accuracy"] = float(numpy.mean(survivors["none"][classifier.name]))
        about |= baseline(task, gold, clean["labels"])
        for kind in kinds:
            keep = partial(_keep, journal, {"attack": kind, **common})
            if kind == "embedding":
                entries = [_embedding(classifier, setting, _source(classifier, setting, load), keep)]
            elif kind == "noise":
                entries = _noise(classifier, setting, clean, keep)
            else:
                entries = [_query(classifier, setting, kind, keep)]
            for entry in entries:
                for what, right in entry.pop("survivors").items():
                    survivors.setdefault(what, {})[classifier.name] = right
                exported += entry.pop("pairs", ())
                found[SECTIONS[kind]].append(about | entry)
    comparisons = [
        {"a": a, "b": b, "task": task.name, "attack": what, **paired_difference([(of[a], of[b])], args.seed)}
        for what, of in survivors.items()
        for a, b in combinations(of, 2)
    ]
    data = {**found, "comparisons": comparisons}
    return Report(data, text(data), lambda: figure(data), exported)


@dataclass(frozen=True)
class Setting:
    """What the attacks of one run share."""

    args: argparse.Namespace
    rows: list[Row]
    attack: Ascent
    radii: list[float]
    strengths: list[float]
    candidates: dict[str, Any]
    source: Classifier | None

    @property
    def options(self) -> dict[str, Any]:
        return {"batch_size": self.args.batch_size, "progress": not self.args.quiet}


def _clean(classifier: Classifier, setting: Setting) -> dict[str, Any]:
    texts = [row.texts for row in setting.rows]
    return predict(classifier, texts, batch_size=setting.args.batch_size, residuals="none").answers()


def _candidates(args: argparse.Namespace, kinds: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"character": CharacterEdits(seed=args.seed)}
    if "word" in kinds:
        if args.masked_lm is None:
            raise ValueError("--masked-lm is missing: --attack word needs a masked language model.")
        options = {"trust_remote_code": args.trust_remote_code, "device": args.device}
        found["word"] = load_masked_language_model(args.masked_lm, **options)
    return found


def _source(classifier: Classifier, setting: Setting, load: Callable[..., Classifier]) -> Classifier | None:
    """Whose attack is transferred: --transfer-from's, or else the weights of an implicit model as plain BERT."""
    if setting.source is not None:  # to itself, it is the white-box attack
        return None if setting.source.fingerprint == classifier.fingerprint else setting.source
    if not classifier.implicit:
        return None
    plain = load(classifier.path)
    plain.model.config.im_layers = []
    return plain


def _keep(journal: Journal, about: dict[str, Any], key: dict[str, Any], compute: Callable[[], Any]) -> Any:
    return journal.part(about | key, compute)


def _embedding(classifier: Classifier, setting: Setting, source: Classifier | None, keep: Keep) -> dict[str, Any]:
    found = embedding_attack(
        classifier,
        setting.rows,
        radii=setting.radii,
        large_radius=setting.args.large_radius,
        attack=setting.attack,
        source=source,
        keep=keep,
        **setting.options,
    )
    survivors = {f"embedding {point['radius']:g}": point.pop("right") for point in found["curve"]}
    return found | {"transfer_from": source and source.path, "survivors": survivors}


def _query(classifier: Classifier, setting: Setting, kind: str, keep: Keep) -> dict[str, Any]:
    args = setting.args
    how: dict[str, Any] = {"max_share": args.max_share, "fields": args.fields and args.fields.split(",")}
    results: list[QueryAttackResult] = []
    for start in range(0, len(setting.rows), CHUNK):
        chunk = setting.rows[start : start + CHUNK]

        def attack(chunk: list[Row] = chunk) -> list[dict[str, Any]]:
            candidates = setting.candidates[kind]
            return [asdict(r) for r in query_attack(classifier, chunk, candidates=candidates, **how, **setting.options)]

        key = {"results": start, "chunk": CHUNK, "candidates": repr(setting.candidates[kind]), **how}
        results += [QueryAttackResult(**kept) for kept in keep(key, attack)]
    return {
        "attack": kind,
        **summarise(results),
        "survivors": {kind: [r.after == r.label for r in results]},
        "pairs": pairs_of_attack(classifier, kind, setting.rows, results),
    }


def _noise(classifier: Classifier, setting: Setting, clean: dict[str, Any], keep: Keep) -> list[dict[str, Any]]:
    args = setting.args
    entries = noise(
        classifier,
        setting.rows,
        kinds=args.kinds.split(","),
        strengths=setting.strengths,
        seed=args.seed,
        keep=keep,
        **setting.options,
    )
    for e in entries:
        e["accuracy_ci95"] = accuracy_interval(e["right"])
        method, after = f"{e['kind']} {e['strength']:g}", e.pop("answers")
        e["survivors"] = {method: e.pop("right")}
        if args.export is not None:
            texts = [noisy(row.texts, e["kind"], e["strength"], args.seed) for row in setting.rows]
            e["pairs"] = pairs(classifier, method, setting.rows, texts, clean, after)
    return entries
