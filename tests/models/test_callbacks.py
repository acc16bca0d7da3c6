"""The Trainer, and the callback that logs the solves."""

import copy

import pytest
import torch
from families import FAMILIES, config_of
from tiny import NO_DROPOUT, bert_config, imbert_config
from torch import nn
from training import OF_THE_TRAINER, Rows
from transformers import BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

import imbert_hf
from imbert_hf import (
    IMBertForSequenceClassification,
    IMBertModel,
    IMBertStatisticsCallback,
    ThetaScheduleCallback,
)


pytest.importorskip("accelerate")
pytestmark = OF_THE_TRAINER


def train(model, tmp_path, callbacks, **kwargs):
    arguments = TrainingArguments(
        tmp_path, max_steps=6, per_device_train_batch_size=4, logging_steps=2, report_to=[], use_cpu=True, **kwargs
    )
    trainer = Trainer(model, arguments, train_dataset=Rows(), eval_dataset=Rows(), callbacks=callbacks)
    trainer.train()
    return trainer


@pytest.mark.parametrize("family", FAMILIES)
def test_the_callback_logs_mean_worst_and_unconverged(family, tmp_path):
    seen = []

    class Record(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(dict(logs))

    model = getattr(imbert_hf, f"IM{family}ForSequenceClassification")(config_of(f"IM{family}"))
    trainer = train(model, tmp_path, [IMBertStatisticsCallback(every=2), Record()])
    for logs in seen[:3]:
        assert 0 < logs["im_residual_mean"] <= logs["im_residual_max"]
        assert 0 <= logs["im_unconverged_rate"] <= 1
        assert "im_consistency_loss" not in logs
    assert "im_residual_mean" in trainer.state.log_history[0]
    assert trainer.evaluate()["eval_loss"] > 0
    assert not any("im_residual_mean" in logs and "eval_loss" in logs for logs in trainer.state.log_history)
    assert trainer.predict(Rows()).predictions.shape == (16, 2)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_the_values_are_those_of_the_forward(tmp_path):
    model = IMBertForSequenceClassification(imbert_config(im_consistency=0.5, **NO_DROPOUT))
    callback = IMBertStatisticsCallback(every=1)
    callback.on_train_begin(None, None, None, model=model)
    rows = Rows()
    batch = {k: torch.stack([torch.as_tensor(rows[i][k]) for i in range(4)]) for k in rows[0]}
    model.train()(**batch)
    outputs = model(**batch, output_im_statistics=True)
    expected = torch.stack(outputs.im_residuals)

    class State:
        log_history = ({},)

    logs = {"loss": 1.0}
    callback.on_log(None, State, None, logs=logs)
    assert logs["im_residual_mean"] == pytest.approx(expected.mean().item())
    assert logs["im_residual_max"] == pytest.approx(expected.max().item())
    assert logs["im_unconverged_rate"] == pytest.approx((expected > 1e-2).float().mean().item())
    assert logs["im_consistency_loss"] == pytest.approx(outputs.im_consistency_loss.item())


def test_layers_may_be_on_several_devices():
    class Outputs:
        im_residuals = (torch.ones(2), torch.ones(2, device="meta"))

    callback, model = IMBertStatisticsCallback(every=1), IMBertForSequenceClassification(imbert_config()).train()
    callback.on_train_begin(None, None, None, model=model)
    callback._collect(model, (), {}, Outputs)
    assert [r.device.type for r in callback._residuals] == ["cpu", "meta"]


def test_nothing_is_logged_for_bert(tmp_path):
    model = BertForSequenceClassification(bert_config())
    trainer = train(model, tmp_path, [IMBertStatisticsCallback()])
    assert not any("im_residual_mean" in logs for logs in trainer.state.log_history)


class Wrapped(nn.Module):
    """As people write it: no config, and a dict of its own."""

    def __init__(self):
        super().__init__()
        self.inner = IMBertForSequenceClassification(imbert_config())

    def forward(self, input_ids, labels=None):
        loss, logits = self.inner(input_ids, labels=labels, return_dict=False)
        return {"loss": loss, "logits": logits}


class OwnForward(IMBertForSequenceClassification):
    def forward(self, input_ids, labels=None):
        logits = self.classifier(self.bert(input_ids).pooler_output)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class HandsOn(IMBertForSequenceClassification):
    def forward(self, input_ids, labels=None, **kwargs):
        return super().forward(input_ids, labels=labels, **kwargs)


class OwnBase(IMBertModel):
    def forward(self, input_ids, labels=None, **kwargs):
        outputs = super().forward(input_ids, **kwargs)
        outputs["loss"] = outputs.pooler_output.square().mean()
        return outputs


@pytest.mark.parametrize("kind", [Wrapped, OwnForward, HandsOn, OwnBase])
def test_models_with_forwards_of_their_own_are_measured(kind, tmp_path):
    model = kind() if kind is Wrapped else kind(imbert_config())
    trainer = train(model, tmp_path, [IMBertStatisticsCallback(every=1), ThetaScheduleCallback(0.5, 0.5)])
    logs = [logs for logs in trainer.state.log_history if "loss" in logs]
    assert len(logs) == 3
    assert all(0 < log["im_residual_mean"] <= log["im_residual_max"] for log in logs)
    models = [module for module in trainer.model.modules() if isinstance(module, IMBertModel)]
    assert [model.config.im_theta for model in models] == [0.5]


def test_a_tuple_that_was_asked_for_has_what_it_has_without_the_callback(batch):
    model = IMBertForSequenceClassification(imbert_config(**NO_DROPOUT)).train()
    expected = model(**batch, return_dict=False)
    callback = IMBertStatisticsCallback(every=1)
    callback.on_train_begin(None, None, None, model=model)
    torch.testing.assert_close(model(**batch, return_dict=False), expected)
    assert len(callback._residuals) == 3  # layers
    asked = {"return_dict": False, "output_im_statistics": True}
    assert len(model(**batch, **asked)) == len(expected) + 2
    callback._asks = False
    assert model(**batch, output_im_statistics=True).im_residuals is not None


def test_one_forward_in_so_many_is_measured_accumulated_ones_too(batch):
    model = IMBertForSequenceClassification(imbert_config(im_consistency=0.5)).train()
    callback = IMBertStatisticsCallback(every=3)
    callback.on_train_begin(None, None, None, model=model)
    counts = []
    for k in range(7):
        (callback.on_substep_end if k % 2 else callback.on_step_begin)(None, None, None)
        model(**batch, labels=torch.tensor([0, 1, 1]))
        counts.append((len(callback._residuals), len(callback._losses)))
    assert counts == [(3, 1)] * 3 + [(6, 2)] * 3 + [(9, 3)]


def test_a_copy_of_a_model_in_training_measures_nothing(batch, tmp_path):
    model = IMBertForSequenceClassification(imbert_config()).train()
    callback = IMBertStatisticsCallback(every=1)
    callback.on_train_begin(None, None, None, model=model)
    torch.save(model, tmp_path / "model.pt")
    for again in (copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert again(**batch).im_residuals is None
        (hook,) = again._forward_hooks.values()
        assert not hook.__self__._residuals
    assert not callback._residuals
    assert model(**batch).im_residuals is not None


def test_what_a_training_left_is_not_logged_by_the_next(tmp_path):
    """Its last steps were not logged, or it was broken off."""

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    model, callback = IMBertForSequenceClassification(imbert_config()), IMBertStatisticsCallback(every=1)
    with pytest.raises(KeyboardInterrupt):
        train(model, tmp_path, [callback, Stop()])
    model.config.im_theta = 0.0
    trainer = train(model, tmp_path, [callback])
    assert [log["im_residual_max"] for log in trainer.state.log_history if "loss" in log] == [0.0] * 3
    assert not model._forward_hooks


@pytest.mark.parametrize(
    "kwargs", [{"bf16": True}, {"gradient_checkpointing": True}, {"gradient_accumulation_steps": 2}]
)
def test_the_plain_trainer_trains_evaluates_and_reloads(tmp_path, kwargs):
    model = IMBertForSequenceClassification(imbert_config())
    trainer = train(model, tmp_path, None, **kwargs)
    predictions = trainer.predict(Rows())
    assert predictions.predictions.shape == (16, 2)
    trainer.save_model(tmp_path / "final")
    again = IMBertForSequenceClassification.from_pretrained(tmp_path / "final")
    torch.testing.assert_close(again.state_dict(), model.state_dict())


def test_wrong_interval():
    for every in (0, -1, 1.5):
        with pytest.raises(ValueError, match="every must be an integer >= 1"):
            IMBertStatisticsCallback(every)
