"""ThetaScheduleCallback: theta of every step and checkpoint, of a resumed run, and which checkpoint is the best."""

import json

import pytest
import torch
from tiny import bert_config, imbert_config, imbert_model
from training import OF_THE_TRAINER, Rows
from transformers import BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from imbert_hf import IMBertForSequenceClassification, ThetaScheduleCallback


pytestmark = OF_THE_TRAINER


class Record(TrainerCallback):
    """theta at every forward of a step, as the model has it."""

    def __init__(self):
        self.thetas = []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.thetas.append(model.config.im_theta)


def train(folder, schedule, callbacks=(), resume=None, score=lambda step: 0.0, stop=None, **arguments):
    """8 steps, an evaluation and a checkpoint each; `score` is the metric after a step."""
    fixed = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "max_steps": 8, "logging_strategy": "no"}
    fixed |= {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    fixed |= {"per_device_train_batch_size": 4, "metric_for_best_model": "score", "greater_is_better": True}
    model = imbert_model()
    trainer = Trainer(
        model,
        TrainingArguments(str(folder), load_best_model_at_end=True, **{**fixed, **arguments}),
        train_dataset=Rows(),
        eval_dataset=Rows(),
        compute_metrics=lambda prediction: {"score": score(trainer.state.global_step)},
        callbacks=[schedule, *callbacks],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def saved_theta(folder, step):
    return json.loads((folder / f"checkpoint-{step}" / "config.json").read_text(encoding="utf-8"))["im_theta"]


def test_theta_of_every_step_and_checkpoint(tmp_path):
    record = Record()
    trainer = train(tmp_path, ThetaScheduleCallback(0.0, 1.0, 0.5), [record])
    expected = [0, 1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1]
    assert record.thetas == pytest.approx(expected)
    assert [saved_theta(tmp_path, step) for step in range(1, 9)] == pytest.approx([*expected[1:], 1])
    assert trainer.model.config.im_theta == 1


def test_it_ends_at_the_end_even_over_the_whole_training(tmp_path):
    record = Record()
    trainer = train(tmp_path, ThetaScheduleCallback(0.9, 0.1, 1.0), [record], save_total_limit=1)
    assert record.thetas == pytest.approx([0.9 - 0.1 * k for k in range(8)])
    assert trainer.model.config.im_theta == pytest.approx(0.1)
    assert trainer.state.best_global_step == 8


def test_only_checkpoints_at_the_final_theta_compete(tmp_path):
    """The earlier, the better by the metric: without the schedule the first would win."""
    trainer = train(tmp_path, ThetaScheduleCallback(fraction=0.5), score=lambda step: -step)
    assert trainer.state.best_global_step == 4
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-4")
    assert trainer.state.best_metric == -4
    best = IMBertForSequenceClassification.from_pretrained(trainer.state.best_model_checkpoint)
    torch.testing.assert_close(best.state_dict(), trainer.model.state_dict())
    assert best.config.im_theta == 1


@pytest.mark.parametrize("step", [2, 4, 6])
def test_a_resumed_run_recomputes_theta_and_ends_with_the_same_weights(step, tmp_path):
    whole = train(tmp_path, ThetaScheduleCallback(fraction=0.75), score=lambda step: -step)
    record = Record()
    resumed = train(
        tmp_path / "again",
        ThetaScheduleCallback(fraction=0.75),
        [record],
        resume=tmp_path / f"checkpoint-{step}",
        score=lambda step: -step,
    )
    assert record.thetas == pytest.approx([min(1, k / 6) for k in range(step, 8)])
    assert resumed.state.best_global_step == whole.state.best_global_step == 6
    again = IMBertForSequenceClassification.from_pretrained(tmp_path / "again" / "checkpoint-8")
    once = IMBertForSequenceClassification.from_pretrained(tmp_path / "checkpoint-8")
    torch.testing.assert_close(again.state_dict(), once.state_dict(), rtol=0, atol=0)


def test_at_theta_0_a_step_is_berts(tmp_path):
    """Before the path begins, the increment field's explicit step of size 1 is BERT, to the bit."""
    model = imbert_model(im_theta=0.0)
    bert = BertForSequenceClassification(bert_config())
    bert.load_state_dict(model.state_dict())
    batch = {n: torch.stack([torch.as_tensor(Rows()[i][n]) for i in range(4)]) for n in Rows()[0]}
    losses = []
    for one in (bert, model):
        torch.manual_seed(0)
        losses.append(one.train()(**batch).loss)
    assert torch.equal(*losses)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"start": -0.1}, "start must be a number from 0 to 1, got -0.1."),
        ({"end": 1.5}, "end must be a number from 0 to 1, got 1.5."),
        ({"end": float("nan")}, "end must be a number from 0 to 1, got nan."),
        ({"fraction": 0}, "fraction must be a number > 0 and <= 1, got 0."),
        ({"fraction": 1.1}, "fraction must be a number > 0 and <= 1, got 1.1."),
    ],
)
def test_wrong_argument(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        ThetaScheduleCallback(**arguments)


def test_a_model_without_theta_is_refused():
    model = BertForSequenceClassification(bert_config())
    with pytest.raises(ValueError, match="needs a model with im_theta, got Linear"):  # nor a config
        ThetaScheduleCallback().on_train_begin(None, None, None, model=torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="needs a model with im_theta, got BertForSequenceClassification"):
        ThetaScheduleCallback().on_train_begin(None, None, None, model=model)
    assert imbert_config().im_theta == 1
