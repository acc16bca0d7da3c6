"""Model cards: numbers come from JSON alone, and what is wrong with that JSON is one sentence."""

import json
import re

import pytest
from families import config_of
from huggingface_hub import ModelCard
from measurements import CONTENTS, LABELS, advglue, check, rendered, run, save, stability, training, write
from tiny import bert_config, imbert_config
from transformers import BertForSequenceClassification

import imbert_hf
from imbert_hf import IMBertForSequenceClassification


SECTIONS = {
    "check": ["## Does it hold up?"],
    "advglue": ["## AdvGLUE"],
    "attack": ["## Attack on the embeddings", "## Attacks by queries", "## Noise"],
    "stability": ["## Stability"],
    "cost": ["## Cost"],
    "training": ["## Cost", "## Training"],
}


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "my-model", IMBertForSequenceClassification, imbert_config(im_solver="anderson", **LABELS))


def numbers(text):
    return set(re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[-+]?\d+)?", text))


def leaves(value):
    if isinstance(value, dict):
        value = [*value, *value.values()]
    return [leaf for item in value for leaf in leaves(item)] if isinstance(value, list) else [value]


def tables(text):
    """Rows of each table, column -> cell."""
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
        header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        yield [dict(zip(header, row, strict=True)) for row in rows]


def test_every_number_stands_in_a_json_file(folder):
    bare = numbers(rendered(folder).text)
    text = rendered(folder, *CONTENTS).text
    inputs = [CONTENTS[kind](folder) for kind in CONTENTS] + [json.loads((folder / "config.json").read_text())]
    allowed = {"95", "2021", "2111.02840"}  # of intervals and of AdvGLUE's paper
    for leaf in leaves(inputs):
        if isinstance(leaf, str):
            allowed |= numbers(leaf)
        elif isinstance(leaf, int | float):
            formats = (".4g", ".3g", ".1e", ".1f", ".0f")
            allowed |= {str(leaf), f"{100 * leaf:.1f}", *(format(leaf, spec) for spec in formats)}
    assert numbers(text) - bare - allowed == set()
    shown = ("41.9 [33.8, 50.1]", "83.1 [76.3, 88.5]", "45.6", "2.3e-02", "61.5", "4.7 [-2.0, 11.5]", "0.21", "69.2")
    shown += (
        "73.1",
        "23.1",
        "41.6",
        "13.7",
        "65.4",
        "7.123",
        "1.357",
        "62.5",
        "0.00891",
        "2346",
        "1003",
        "2e-05",
        "81.8",
    )
    for value in shown:
        assert value in text, value


def test_other_models_appear_in_comparisons_alone(folder):
    card = rendered(folder, *CONTENTS)
    (compared,) = [rows for rows in tables(card.text) if "a - b [95 %]" in rows[0]]
    assert [(row["a"], row["b"], row["of"], row[""]) for row in compared] == [
        ("plain", "this checkpoint", "worst", "not resolved"),
        ("plain", "this checkpoint", "AdvGLUE", "not resolved"),
        ("this checkpoint", "plain", "embedding 0.05", "resolved"),
    ]
    assert "66.2" not in str(card)
    assert "0.6622" not in str(card)
    assert "33.3" not in str(card)
    assert str(folder.parent) not in str(card)
    assert "/home/me" not in str(card)


def test_clean_accuracy_and_majority_class_stand_beside_every_accuracy_on_attacked_texts(folder):
    card = rendered(folder, "advglue")
    attacked = [row for rows in tables(card.text) for row in rows if any(name.startswith("attacked") for name in row)]
    assert len(attacked) == 2
    for row in attacked:
        assert [row[name] for name in row if name.startswith("majority class")] == ["51.3"]
        (clean,) = [row[name] for name in row if name.startswith("clean")]
        assert clean in ("83.1 [76.3, 88.5]", "82.5")
    metrics = {result.metric_type for result in card.data.eval_results if result.dataset_name == "AdvGLUE"}
    assert {"accuracy", "clean_accuracy", "majority_accuracy"} <= metrics


def test_an_accuracy_without_clean_accuracy_is_left_out(folder):
    content = advglue(folder, clean_accuracy=None, clean_accuracy_ci95=None)
    report = run(folder, "--results", *write(folder, advglue=content))
    card = ModelCard.load(folder / "README.md")
    assert "AdvGLUE" not in str(card)
    assert card.data.eval_results is None
    assert "no clean accuracy stands beside it" in report.text


@pytest.mark.parametrize("kind", [None, *SECTIONS])
def test_a_section_without_data_is_absent(folder, kind):
    text = rendered(folder, *([kind] if kind else [])).text
    for title in {title for titles in SECTIONS.values() for title in titles}:
        assert (f"{title}\n" in text) == (title in SECTIONS.get(kind, ())), title
    assert ("## Compared with other models" in text) == (kind in ("check", "advglue", "attack"))
    assert not re.search(r"^## .*\n+(## |\Z)", text, flags=re.M)
    assert "None\n" not in text
    assert "\n\n\n" not in text
    assert ("Robustness has not been measured" in text) == (kind not in ("check", "advglue", "attack"))


@pytest.mark.parametrize(
    ("family", "named"), [("Roberta", "RoBERTa"), ("Electra", "ELECTRA"), ("DistilBert", "DistilBERT")]
)
def test_cards_of_the_other_families(family, named, tmp_path):
    name = f"IM{family}ForSequenceClassification"
    folder = save(tmp_path / "model", getattr(imbert_hf, name), config_of(name, im_solver="anderson", **LABELS))
    text = rendered(folder, *CONTENTS).text
    head = f"A sequence classifier for tickets, sst2: {named} in which the layers F that `im_layers` names take an "
    head += "implicit step"
    assert head in " ".join(text.split())
    assert "anderson" in text
    assert "41.9" in text  # of AdvGLUE


def test_metadata(folder):
    words = ("--license", "mit", "--base-license", "apache-2.0")
    card = rendered(folder, "advglue", "training", words=words)
    data = card.data.to_dict()
    assert data["license"] == "mit"
    assert data["base_model"] == "google-bert/bert-base-uncased"
    assert (data["library_name"], data["pipeline_tag"], data["language"]) == (
        "transformers",
        "text-classification",
        "en",
    )
    assert data["tags"] == ["imbert", "robustness"]
    assert card.data.model_name == "my-model"
    found = {(r.dataset_type, r.dataset_config, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert found == {
        ("AI-Secure/adv_glue", "adv_sst2", "accuracy"): 0.4189,
        ("AI-Secure/adv_glue", "adv_sst2", "clean_accuracy"): 0.8311,
        ("AI-Secure/adv_glue", "adv_sst2", "majority_accuracy"): 0.5135,
        ("AI-Secure/adv_glue", "adv_sst2", "robust_accuracy"): 0.3514,
        ("nyu-mll/glue", "sst2", "accuracy"): 0.8177,
    }
    assert all(r.task_type == "text-classification" for r in card.data.eval_results)
    assert "- base checkpoint, google-bert/bert-base-uncased: apache-2.0" in card.text
    bare = rendered(folder)
    assert "license" not in bare.data.to_dict()
    assert "base_model" not in bare.data.to_dict()
    assert "not stated" not in bare.text
    assert "base checkpoint, google-bert/bert-base-uncased: not stated" in rendered(folder, "training").text


def test_a_failed_check_is_a_warning_beside_the_curve(folder):
    text = rendered(folder, "attack").text
    _, _, after = text.partition("| 3        | 26.9")
    warning = after.split("\n\n")[1]
    assert warning.startswith("> **Warning**: checks for gradient masking failed")
    assert "> large_radius: 26.92 % of the rows survive radius 3." in warning
    assert "passed: more_steps." in after


def test_solver_settings_are_the_checkpoints(folder, tmp_path):
    (rows,) = [rows for rows in tables(rendered(folder).text) if "field" in rows[0]]
    assert {row["field"]: row["value"] for row in rows}["`im_solver`"] == '`"anderson"`'
    plain = save(tmp_path / "plain", BertForSequenceClassification, bert_config(**LABELS))
    card = rendered(plain)
    assert "## Solver settings" not in card.text
    assert card.data.tags == ["robustness"]
    assert "trust_remote_code" not in card.text


def test_several_seeds_are_named_as_such(folder):
    content = advglue(folder)
    content["comparisons"] = [{**content["comparisons"][0], "seeds": 3}]
    run(folder, "--results", *write(folder, advglue=content))
    text = (folder / "README.md").read_text()
    assert "| plain (3 checkpoints) | ours (3 checkpoints) |" in text


def test_a_foreign_readme_is_kept(folder):
    readme = folder / "README.md"
    readme.write_text("by hand")
    with pytest.raises(ValueError, match=r"README.md was not written by imbert-eval card; pass --overwrite"):
        run(folder)
    assert readme.read_text() == "by hand"
    run(folder, "--overwrite")
    run(folder)  # its own is replaced without asking
    assert readme.read_text().startswith("---\n")
    run(folder, "--card", folder.parent / "card.md")
    assert (folder.parent / "card.md").read_text() == readme.read_text()


def old(folder):
    """A training's results from before they told what it had saved."""
    return {name: value for name, value in training(folder).items() if name != "fingerprint"}


def test_an_old_training_says_so(folder):
    report = run(folder, "--training", *write(folder, training=old(folder)))
    assert "has no fingerprint of what the training saved: it is taken for" in report.text
    assert "| no fingerprint of what the training saved |" in (folder / "README.md").read_text()


@pytest.mark.parametrize("kind", CONTENTS)
def test_results_go_with_the_files_wherever_these_lie(folder, kind, tmp_path, monkeypatch):
    paths = write(folder, **{kind: CONTENTS[kind](folder)})
    before = rendered(folder, kind).text
    moved = folder.rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    run("elsewhere", "--results", *paths)
    text = ModelCard.load(moved / "README.md").text
    assert text.replace("elsewhere", "my-model") == before


def test_data_of_ones_own(folder):
    words = ("--example", 'I was "charged" twice', "--example", "über")
    own = {"task": "tickets", "metrics": {"test": {"accuracy": 0.8177, "micro_f1": 0.8213, "mse": 0.4242, "loss": 1.0}}}
    content = training(folder) | own
    content["arguments"]["data"] = {"dataset_name": "me/tickets", "text_column_names": "subject,body"}
    run(folder, *words, "--results", *write(folder, check=check(folder), training=content))
    card = ModelCard.load(folder / "README.md")
    assert "A sequence classifier for tickets: BERT in which" in card.text
    assert 'inputs = tokenizer("I was \\"charged\\" twice", "über", return_tensors="pt")' in card.text
    assert "tickets.csv, 542 rows, macro F1 89.1 %, majority class 28.4 %:" in card.text
    assert "Not measured: embedding: no gradient." in card.text
    assert "| accuracy in percent, test | 81.8" in card.text
    assert "| micro_f1 in percent, test | 82.1" in card.text
    assert "| mse, test " in card.text
    assert "It was measured on texts of tickets alone" in card.text
    assert card.data.datasets == ["me/tickets"]
    assert (card.data.language, card.data.eval_results) == (None, None)
    run(folder, "--results", *write(folder, check=check(folder), training=content))
    assert 'tokenizer("Your text here.", "Your text here.", ' in (folder / "README.md").read_text()


def test_a_table_called_like_a_task_is_none_of_glues(folder):
    content = training(folder)
    content["arguments"]["data"] = {"train_file": "/home/me/sst2.csv", "text_column_names": "body"}
    pairs = advglue(folder)
    pairs["settings"] |= {"text_column": ["attacked_body"], "data": "pairs.csv"}
    run(folder, "--results", *write(folder, advglue=pairs, training=content))
    card = ModelCard.load(folder / "README.md")
    assert (card.data.datasets, card.data.language, card.data.eval_results) == (None, None, None)
    assert "## Attacked texts" in card.text
    assert "## AdvGLUE" not in card.text
    assert "were made to fool other models" not in card.text
    assert "Wang et al." not in card.text


def test_the_training_tells_of_a_defence_and_a_teacher(folder):
    content = training(folder) | {"teacher": "/home/me/teacher", "temperature": 2.0}
    content["arguments"]["model"]["defence"] = "rdrop"
    run(folder, "--training", *write(folder, training=content))
    text = (folder / "README.md").read_text()
    assert re.search(r"\| defence +\| rdrop", text)
    assert re.search(r"\| teacher +\| teacher ", text)


@pytest.mark.parametrize("kind", ["stability", "cost", "training"])
def test_two_results_of_a_kind_that_a_card_shows_once(folder, kind):
    paths = write(folder, **{kind: CONTENTS[kind](folder)})
    with pytest.raises(ValueError, match=r"is a second .*; a card shows one"):
        run(folder, "--results", *paths, *paths)


def test_cost_of_the_checkpoints_own_solver(folder):
    text = rendered(folder, "cost").text
    assert "in one run (cpu, float32, 2 threads)" in text
    (row,) = next(rows for rows in tables(text) if "implicit layers" in rows[0])
    assert row["inference / BERT [quartiles]"] == "1.63 [1.61, 1.65]"
    assert row["training step / BERT [quartiles]"] == "1.42 [1.61, 1.65]"


@pytest.mark.parametrize(
    ("kind", "line"),
    [("regression", "print(logits.tolist())"), ("multi_label_classification", "print([model.config.id2label[i] for i")],
)
def test_use_by_problem_type(folder, kind, line):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "problem_type": kind}))
    text = rendered(folder).text
    assert line in text
    assert ("Labels: " in text) == (kind != "regression")


def _changed(change):
    def content(folder):
        found = advglue(folder)
        change(found)
        return found

    return content


@pytest.mark.parametrize("kind", ["advglue", "attack", "stability"])
def test_results_of_other_weights_are_refused(folder, kind):
    paths = write(folder, **{kind: CONTENTS[kind](folder)})
    save(folder, IMBertForSequenceClassification, imbert_config(im_solver="anderson", initializer_range=0.5, **LABELS))
    with pytest.raises(ValueError, match=r"was measured on other files than those in .*; measure again"):
        run(folder, "--results", *paths)


def test_results_that_do_not_tell_their_weights_are_taken_with_a_warning(folder):
    paths = write(folder, advglue=advglue(folder, fingerprint=None))
    assert "warning" in run(folder, "--results", *paths).text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda folder: [1], "must hold a JSON object, got list"),
        (lambda folder: {"a": 1}, "is no JSON of imbert-eval"),
        (lambda folder: advglue(folder.parent), "holds no result of .*; the models there: ours, plain"),
        (lambda folder: stability(folder.parent), "holds no result of"),
        (_changed(lambda found: found["results"][0].pop("n")), "an entry lacks 'n'"),
        (_changed(lambda found: found.update(results=["x"])), "an entry must be a JSON object, got str"),
        (_changed(lambda found: found["comparisons"][0].pop("ci95")), "an entry lacks 'ci95'"),
        (lambda folder: {**stability(folder), "summary": {"spectrum": [{"layer": 0}]}}, "lacks 'spectral_radius'"),
        (
            lambda folder: {**old(folder), "im_fields": {**training(folder)["im_fields"], "im_iterations": 7}},
            "of a training with im_iterations 7, and .* has 3",
        ),
        (lambda folder: {**old(folder), "im_fields": None}, "of a training with im_"),
        (lambda folder: {**old(folder), "labels": ["billing", "sales"]}, r"of a training with labels \['billing', "),
        (lambda folder: {**training(folder), "fingerprint": "0123"}, "a training that saved other files than those"),
    ],
)
def test_wrong_json(folder, content, message):
    with pytest.raises(ValueError, match=message):
        run(folder, "--results", *write(folder, wrong=content(folder)))
    assert not (folder / "README.md").exists()


def test_bad_arguments(folder, tmp_path):
    (tmp_path / "text.json").write_text("no JSON")
    with pytest.raises(ValueError, match=r"text.json cannot be read as JSON"):
        run(folder, "--results", tmp_path / "text.json")
    with pytest.raises(ValueError, match=r"the folder .* does not exist"):
        run(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"config.json cannot be read as JSON: No such file"):
        run(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["IMBertModel"]}))
    with pytest.raises(ValueError, match=r"holds no sequence classifier: architectures is \['IMBertModel'\]"):
        run(folder)
