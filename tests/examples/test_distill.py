"""examples/distill.py: the loss by its definition, the student's start, and a run in which the labels do not count."""

import json
import random
from dataclasses import replace
from importlib import import_module

import pytest
import torch


pytest.importorskip("accelerate")
pytest.importorskip("datasets")
pytest.importorskip("sklearn")

from classifiers import WORDS, bert, classifier, imbert, labelled, save
from families import FAMILIES, config_of, pair_of
from finetuning import write_rows
from tiny import refused
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    FunnelConfig,
    FunnelForSequenceClassification,
)

from imbert_hf import IMElectraForSequenceClassification
from imbert_hf.evaluation.data.classifier import load_classifier
from imbert_hf.evaluation.data.loading import FAMILIES as TAKEN
from imbert_hf.evaluation.data.tasks import find_task


@pytest.fixture(scope="module")
def distill():
    return import_module("distill")


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_the_loss_and_its_gradient_are_those_of_the_definition(distill, temperature):
    generator = torch.Generator().manual_seed(0)
    z, v = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    z.requires_grad_()
    loss = distill.distillation_loss(z, v, temperature)
    q, p = torch.softmax(z / temperature, -1), torch.softmax(v / temperature, -1)
    torch.testing.assert_close(loss, temperature**2 * (p * (p / q).log()).sum(-1).mean())
    loss.backward()
    torch.testing.assert_close(z.grad, temperature * (q - p).detach() / 4)
    torch.testing.assert_close(distill.distillation_loss(v, v, temperature).item(), 0.0, atol=1e-12, rtol=0)


def test_at_a_high_temperature_it_is_the_squared_distance_of_centred_logits(distill):
    """Hinton et al., equation 4: the gradient tends to that of ||z - v||^2 / (2 labels), logits of mean zero."""
    generator = torch.Generator().manual_seed(0)
    z, v = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    z, v = z - z.mean(-1, keepdim=True), v - v.mean(-1, keepdim=True)
    expected = ((z - v) ** 2).sum(-1).mean() / (2 * 3)
    torch.testing.assert_close(distill.distillation_loss(z, v, 1e4), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [0, 1])  # plain, implicit
def test_the_student_starts_as_the_teacher_with_its_labels_in_the_datas_order(distill, family, kind, tmp_path):
    """Exactly, where the teacher's connection does nothing; and no later step of the student changes the teacher."""
    model = pair_of(f"{family}ForSequenceClassification", im_layers=[], **labelled(("positive", "negative")))[kind]
    teacher = replace(classifier(model), order=(1, 0))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    distill.student_of(teacher).save_pretrained(tmp_path)
    student = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert type(student) is type(pair_of(f"{family}ForSequenceClassification")[0])
    assert student.config.id2label == {0: "negative", 1: "positive"}
    assert not [name for name in student.config.to_dict() if name.startswith("im_")]
    ids = torch.tensor([[2, 7, 8, 3]])
    torch.testing.assert_close(student(ids).logits, teacher.logits({"input_ids": ids}))
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    with torch.no_grad():
        for parameter in distill.student_of(teacher).parameters():
            parameter.zero_()
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two folders of the same texts; the labels of the second are the others."""
    draw, folder = random.Random(0), tmp_path_factory.mktemp("data")
    rows = [{"sentence": " ".join(draw.choices(WORDS, k=6)), "label": i % 2} for i in range(64)]
    for name, flip in (("right", 0), ("wrong", 1)):
        (folder / name / "sst2").mkdir(parents=True)
        for split, part in (("train", rows[:48]), ("validation", rows[48:])):
            lines = [json.dumps(row | {"label": row["label"] ^ flip}) + "\n" for row in part]
            (folder / name / "sst2" / f"{split}.jsonl").write_text("".join(lines))
            write_rows(folder / name / "rte" / f"{split}.jsonl", "rte", 4)
            write_rows(folder / name / "mnli" / f"{split.replace('ion', 'ion_matched')}.jsonl", "mnli", 4)
    return folder


def run(distill, teacher, data, output, *more):
    words = ["--teacher", teacher, "--task", "sst2", "--data_dir", str(data), "--output_dir", str(output)]
    words += ["--max_seq_length", "16", "--learning_rate", "1e-3", "--num_train_epochs", "6", "--use_cpu", "True"]
    words += ["--report_to", "none", "--disable_tqdm", "True", "--eval_strategy", "no", "--save_strategy", "no"]
    distill.main([*words, *more])


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
def test_a_student_comes_nearer_to_its_teacher_whatever_the_labels_say(distill, data, tmp_path):
    teacher = save(tmp_path / "teacher", imbert(im_vector_field="layer"))
    for name in ("right", "wrong"):
        run(distill, teacher, data / name, tmp_path / name, "--temperature", "1.5")
    students = [BertForSequenceClassification.from_pretrained(tmp_path / name).eval() for name in ("right", "wrong")]
    for one, other in zip(*(student.state_dict().values() for student in students), strict=True):
        assert torch.equal(one, other)
    results = json.loads((tmp_path / "right" / "results.json").read_text())
    assert results["teacher"] == teacher
    assert results["temperature"] == 1.5

    loaded = load_classifier(teacher, find_task("sst2"))
    start = distill.student_of(loaded).eval()
    lines = (data / "right" / "sst2" / "train.jsonl").read_text().splitlines()
    batch = loaded.collate(loaded.encode([(json.loads(line)["sentence"],) for line in lines]))
    with torch.no_grad():
        wanted = loaded.logits(batch)
        before, after = (distill.distillation_loss(m(**batch).logits, wanted, 1.0) for m in (start, students[0]))
    assert after < before / 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--temperature", "0"], "--temperature must be a finite number > 0, got 0.0."),
        (["--temperature", "nan"], "--temperature must be a finite number > 0, got nan."),
        (["--connection", "im-bert"], "--connection must be left out"),
        (["--model-name-or-path=x"], "--model_name_or_path must be left out"),
        (["--defence", "r3f"], "--defence must be left out"),
        (["--label_smoothing_factor=0.1"], "--label_smoothing_factor must be left out"),
        (["--task", "cola"], "argument --task: invalid choice: 'cola'"),
        (["--teacher", "no/where"], "no/where cannot be loaded as a sequence classifier"),
        (["--task", "mnli"], "has 2 labels"),
        (["--task", "rte"], "say it with --label-map"),
        (["--label-map", "positive=0,negative=1"], "contradicts the names"),
        (["--max_seq_length", "4"], "max_length must be from 8 to"),
        (["--learning_rat", "1"], "--learning_rat is no argument"),
    ],
)
def test_wrong_arguments_are_one_sentence(distill, data, tmp_path, words, sentence):
    teacher = save(tmp_path / "teacher", bert())
    said = refused(run, distill, teacher, data / "right", tmp_path / "out", *words)
    assert said.startswith("distill.py: error: ")
    assert sentence in said
    assert not (tmp_path / "out").exists()


OWN = ["--text_column_names", "body", "--num_train_epochs", "1", "--use_cpu", "True", "--report_to", "none"]
OWN += ["--max_seq_length", "16", "--disable_tqdm", "True"]


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
def test_a_table_of_ones_own_and_an_electra(distill, tmp_path):
    labels = ("sales", "billing", "other")
    teacher = IMElectraForSequenceClassification(config_of("IMElectraForSequenceClassification", **labelled(labels)))
    path = save(tmp_path / "teacher", teacher)
    rows = [f"{WORDS[i]} {WORDS[2 * i]},{sorted(labels)[i % 3]}" for i in range(30)]
    (tmp_path / "own.csv").write_text("\n".join(["body,label", *rows]))
    words = ["--teacher", path, "--train_file", str(tmp_path / "own.csv"), "--output_dir", str(tmp_path / "out"), *OWN]
    distill.main(words)
    student = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert type(student).__name__ == "ElectraForSequenceClassification"
    assert list(student.config.id2label.values()) == sorted(labels)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["teacher"], results["labels"]) == (path, sorted(labels))
    assert results["arguments"]["model"]["model_name_or_path"] == path


@pytest.mark.parametrize(
    ("kind", "rows", "sentence"),
    [
        ("Bert", ["w1,0.5", "w2,0.25"], "distill.py takes single_label_classification alone, and own is regression"),
        ("Funnel", ["w1,a", "w2,b"], f"must be of {', '.join(TAKEN)}, got a checkpoint of 'funnel'"),
    ],
)
def test_what_is_not_distilled(distill, kind, rows, sentence, tmp_path):
    shape = {"vocab_size": 99, "d_model": 16, "block_sizes": [1], "n_head": 2, "d_head": 8, "d_inner": 16}
    other = FunnelForSequenceClassification(FunnelConfig(**shape, **labelled(("a", "b"))))
    path = save(tmp_path / "teacher", other if kind == "Funnel" else bert())
    (tmp_path / "own.csv").write_text("\n".join(["body,label", *rows * 4]))
    words = ["--teacher", path, "--train_file", str(tmp_path / "own.csv"), "--output_dir", str(tmp_path / "out"), *OWN]
    assert sentence in refused(distill.main, words)
    assert not (tmp_path / "out").exists()
