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

from classifiers import WORDS, bert, classifier, imbert, save
from transformers import BertForSequenceClassification

from imbert_hf.evaluation.data.classifier import load_classifier
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


def test_the_student_starts_as_the_teacher_read_as_bert(distill, tmp_path):
    teacher = imbert(im_layers=[])
    distill.save_as_bert(classifier(teacher), str(tmp_path))
    student = BertForSequenceClassification.from_pretrained(tmp_path).eval()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "bert"
    assert not [name for name in student.config.to_dict() if name.startswith("im_")]
    ids = torch.tensor([[2, 7, 8, 3]])
    torch.testing.assert_close(student(ids).logits, teacher(ids).logits)


def test_labels_in_another_order_are_put_into_glues(distill, tmp_path):
    teacher = replace(classifier(imbert(("positive", "negative"), im_layers=[])), order=(1, 0))
    distill.save_as_bert(teacher, str(tmp_path))
    student = BertForSequenceClassification.from_pretrained(tmp_path).eval()
    assert student.config.id2label == {0: "negative", 1: "positive"}
    ids = torch.tensor([[2, 7, 8, 3]])
    torch.testing.assert_close(student(ids).logits, teacher.logits({"input_ids": ids}))


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
    distill.save_as_bert(loaded, str(tmp_path / "start"))
    start = BertForSequenceClassification.from_pretrained(tmp_path / "start").eval()
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
        (["--r3f"], "--r3f must be left out"),
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
    with pytest.raises(SystemExit) as stop:
        run(distill, teacher, data / "right", tmp_path / "out", *words)
    assert sentence in str(stop.value)
    assert "\n" not in str(stop.value)
    assert not (tmp_path / "out").exists()
