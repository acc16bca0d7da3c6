"""The Trainer of transformers with IM-BERT: what it does for BERT it does for IM-BERT, a killed process included."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import FAMILIES, model_of
from tiny import NO_DROPOUT, bert_config, imbert_model
from training import OF_THE_TRAINER, Rows
from transformers import (
    BertForSequenceClassification,
    EarlyStoppingCallback,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from imbert_hf.evaluation.data.loading import layers_of


pytest.importorskip("accelerate")
pytestmark = OF_THE_TRAINER

# Not Adam, which forgets the scale of a gradient.
PLAIN = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}


def trainer_of(model, folder, trainer_class=Trainer, callbacks=None, batch_size=4, **arguments):
    fixed = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no"}
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=batch_size, **{"max_steps": 3, **fixed, **arguments}
    )
    return trainer_class(model, arguments, train_dataset=Rows(), eval_dataset=Rows(), callbacks=callbacks)


def trained(model, folder, **arguments):
    """The weights after training."""
    trainer_of(model, folder, **arguments).train()
    return model.state_dict()


def assert_moved(model, weights):
    start = imbert_model(**{name: getattr(model.config, name) for name in NO_DROPOUT}).state_dict()
    assert all(not torch.equal(weights[name], start[name]) for name in weights if "key.bias" not in name)


OPTIONS = {
    "fp32": {},
    "bf16": {"bf16": True},
    "checkpointing": {"gradient_checkpointing": True},
    "smoothing": {"label_smoothing_factor": 0.2},
    "accumulation": {"gradient_accumulation_steps": 2},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_without_an_implicit_layer_the_trained_weights_are_berts(option, tmp_path):
    bert = BertForSequenceClassification(bert_config())
    bert.load_state_dict(imbert_model().state_dict())
    bert.accepts_loss_kwargs = False  # IM-BERT says so itself; see the test of accumulation
    expected = trained(bert, tmp_path, **OPTIONS[option])
    actual = trained(imbert_model(im_layers=[]), tmp_path, **OPTIONS[option])
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("solver", ["fixed_point", "anderson", "gradient_descent"])
def test_bfloat16_trains_the_float32_weights_as_float32_does(solver, tmp_path):
    """Over a few steps: after many the paths part for rounding alone."""
    config = {**NO_DROPOUT, "im_solver": solver, "im_learning_rate": 0.02}
    start, model, exact = imbert_model(**config).state_dict(), imbert_model(**config), imbert_model(**config)
    trainer = trainer_of(model, tmp_path, bf16=True, **PLAIN)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert_moved(model, model.state_dict())
    trained(exact, tmp_path, **PLAIN)
    update, expected = (torch.cat([(m.state_dict()[n] - start[n]).flatten() for n in start]) for m in (model, exact))
    assert torch.cosine_similarity(update, expected, dim=0) > 0.995
    assert not torch.equal(update, expected)


@pytest.mark.parametrize(("smoothing", "consistency"), [(0.0, 0.0), (0.2, 0.0), (0.0, 1.0)])
def test_four_accumulated_batches_of_one_are_a_batch_of_four(smoothing, consistency, tmp_path):
    """For BERT the Trainer adds the four losses up: it believes the **kwargs of forward to be the loss function's."""
    runs = [
        trained(
            imbert_model(im_consistency=consistency, **NO_DROPOUT),
            tmp_path,
            batch_size=size,
            gradient_accumulation_steps=4 // size,
            label_smoothing_factor=smoothing,
            **PLAIN,
        )
        for size in (4, 1)
    ]
    torch.testing.assert_close(runs[1], runs[0], rtol=1e-4, atol=1e-6)
    assert_moved(imbert_model(**NO_DROPOUT), runs[0])


@pytest.mark.parametrize("consistency", [0.0, 1.0])
@pytest.mark.parametrize("gradient", ["implicit", "unrolled"])
def test_gradient_checkpointing_leads_to_the_same_weights_with_dropout(gradient, consistency, tmp_path):
    fields = {"im_gradient": gradient, "im_consistency": consistency}
    plain, checkpointed = (
        trained(imbert_model(**fields), tmp_path, gradient_checkpointing=checkpointing, **PLAIN)
        for checkpointing in (False, True)
    )
    torch.testing.assert_close(checkpointed, plain, rtol=1e-4, atol=1e-6)


def test_label_smoothing_is_the_mixture_of_the_label_with_all_classes(tmp_path):
    model = imbert_model()
    trainer = trainer_of(model, tmp_path, label_smoothing_factor=0.2)
    batch = default_data_collator([Rows()[i] for i in range(4)])
    log_p = model.eval()(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
    target = 0.8 * torch.nn.functional.one_hot(batch["labels"], 2) + 0.2 / 2
    loss = trainer.compute_loss(model, batch)
    torch.testing.assert_close(loss, -(target * log_p).sum(-1).mean())


@pytest.mark.parametrize("without_labels", [{"label_smoothing_factor": 0.2}, {"compute_loss_func": True}], ids=str)
def test_im_consistency_without_labels_is_said_once(without_labels, tmp_path):
    """The Trainer keeps them: the run is the one without it."""

    def run(folder, **fields):
        model, arguments = imbert_model(**fields), dict(without_labels)
        own = arguments.pop("compute_loss_func", None)
        trainer = trainer_of(model, folder, **arguments)
        if own:
            trainer.compute_loss_func = lambda outputs, labels, **_: torch.nn.functional.cross_entropy(
                outputs["logits"], labels
            )
        trainer.train()
        return model.state_dict()

    with pytest.warns(UserWarning, match="im_consistency is 1.0 and its loss was not added") as caught:
        weights = run(tmp_path, im_consistency=1.0)
    assert sum("im_consistency" in str(w.message) for w in caught) == 1
    torch.testing.assert_close(weights, run(tmp_path), rtol=0, atol=0)


def test_early_stopping_stops_and_the_best_weights_come_back(tmp_path):
    scores = iter([0.6, 0.8, 0.7, 0.5, 0.9])  # of steps 1, 2, ...; nobody waits for the last
    weights = []
    model = imbert_model()
    trainer = trainer_of(
        model,
        tmp_path,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
        max_steps=5,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        save_only_model=True,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
    )

    def compute_metrics(_):
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"score": next(scores)}

    trainer.compute_metrics = compute_metrics
    trainer.train()
    assert trainer.state.global_step == 4
    assert trainer.state.best_metric == 0.8
    assert not torch.equal(weights[1]["classifier.weight"], weights[3]["classifier.weight"])
    torch.testing.assert_close(model.state_dict(), weights[1], rtol=0, atol=0)


class LayerwiseTrainer(Trainer):
    """A learning rate that halves from each layer to the one below it."""

    def create_optimizer(self, *args):
        body, rate = self.model.bert, self.args.learning_rate
        groups = [{"params": [*self.model.classifier.parameters(), *body.pooler.parameters()], "lr": rate}]
        for depth, part in enumerate([*reversed(body.encoder.layer), body.embeddings], start=1):
            groups.append({"params": list(part.parameters()), "lr": rate * 0.5**depth})
        self.optimizer = torch.optim.SGD(groups)
        return self.optimizer


def test_layerwise_learning_rates(tmp_path):
    model = imbert_model(**NO_DROPOUT)
    start = imbert_model(**NO_DROPOUT)
    options = {name: value for name, value in PLAIN.items() if name != "optim"}
    trainer = trainer_of(model, tmp_path, LayerwiseTrainer, batch_size=16, max_steps=1, **options)
    trainer.train()
    grouped = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in model.parameters()}
    assert len(grouped) == len(list(model.parameters()))
    start.train()(**default_data_collator([Rows()[i] for i in range(16)])).loss.backward()
    rates = {"classifier": 1, "pooler": 1, "layer.2": 1 / 2, "layer.1": 1 / 4, "layer.0": 1 / 8, "embeddings": 1 / 16}
    for (name, after), before in zip(model.named_parameters(), start.parameters(), strict=True):
        rate = 0.05 * next(rate for part, rate in rates.items() if part in name)
        torch.testing.assert_close(after, before - rate * before.grad, rtol=1e-4, atol=1e-7, msg=name)


def classifier_of(family):
    return model_of(f"IM{family}ForSequenceClassification")


RESUMED = {"max_steps": 6, "gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 2}


def die_in_the_middle_of_a_step(family, folder):
    """What the child runs: killed in step 4, in its second batch, in the second iteration of the last layer's solve."""
    model = classifier_of(family)
    trainer = trainer_of(model, folder, **RESUMED)
    attention = layers_of(model)[-1].im_attention
    forward, calls = attention.forward, [0]

    def count(*args, **kwargs):
        calls[0] += trainer.state.global_step == 3
        # With implicit gradients a batch evaluates a layer five times in forward, and never in backward.
        if calls[0] == 5 + 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return forward(*args, **kwargs)

    attention.forward = count
    trainer.train()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="SIGKILL is of POSIX")
def test_a_run_killed_in_the_middle_of_a_step_resumes_to_the_same_weights(family, tmp_path):
    """Bit for bit, with dropout, which the solve draws once and replays, and batches in random order."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    code = f"from test_trainer import *; die_in_the_middle_of_a_step({family!r}, {str(tmp_path / 'killed')!r})"
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, env=environment, capture_output=True, timeout=300
    )
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()[-3000:]
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["checkpoint-2"]
    expected = trained(classifier_of(family), tmp_path / "whole", **RESUMED)
    model = classifier_of(family)
    steps = []
    model.register_forward_pre_hook(lambda *_: steps.append(trainer.state.global_step))
    trainer = trainer_of(model, tmp_path / "killed", **RESUMED)
    trainer.train(resume_from_checkpoint=True)
    assert steps == [2, 2, 3, 3, 4, 4, 5, 5]  # the steps before the checkpoint are not made again
    torch.testing.assert_close(model.state_dict(), expected, rtol=0, atol=0)
