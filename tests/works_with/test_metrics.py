"""datasets, the plain Trainer and scikit-learn's metrics, with the statistics of the solves in the outputs or not."""

import numpy as np
import pytest
import torch
from tiny import imbert_config, lively, tokenizer_of
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

from imbert_hf import IMBertForSequenceClassification


pytest.importorskip("accelerate")
datasets = pytest.importorskip("datasets")
metrics = pytest.importorskip("sklearn.metrics")
# The Trainer pins memory where there is an accelerator to pin it for, and says that here there is none.
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")

WORDS = ["good", "fine", "bad", "dull", "film", "book", "a", "very", "it"]


def texts(n=20):
    generator = np.random.default_rng(0)
    for i in range(n):
        judged = generator.choice(WORDS[2:4] if i % 2 else WORDS[:2])
        yield {"text": " ".join([*generator.choice(WORDS[4:], i % 5), judged, "film"]), "label": i % 2}


def scores(prediction):
    guesses = prediction.predictions.argmax(axis=1)
    return {
        "accuracy": metrics.accuracy_score(prediction.label_ids, guesses),
        "matthews": metrics.matthews_corrcoef(prediction.label_ids, guesses),
    }


def statistics(module, args, kwargs):
    return args, {**kwargs, "output_im_statistics": True}


@pytest.fixture
def trainer(tmp_path):
    """Of 20 rows in batches of 8, so that the last is smaller and lengths differ."""
    tokenizer = tokenizer_of(WORDS)
    rows = datasets.Dataset.from_list(list(texts())).map(lambda row: tokenizer(row["text"]), remove_columns="text")
    torch.manual_seed(0)
    model = lively(IMBertForSequenceClassification(imbert_config()))
    torch.nn.init.normal_(model.bert.embeddings.word_embeddings.weight, std=0.3)  # so that words tell
    arguments = TrainingArguments(
        tmp_path,
        max_steps=8,
        learning_rate=5e-3,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=8,
        eval_strategy="steps",
        eval_steps=4,
        report_to=[],
        use_cpu=True,
    )
    return Trainer(
        model,
        arguments,
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=rows,
        eval_dataset=rows,
        compute_metrics=scores,
    )


def test_statistics_leave_training_predictions_and_metrics_as_they_are(trainer):
    handle = trainer.model.register_forward_pre_hook(statistics, with_kwargs=True)
    assert trainer.model(torch.tensor([[2, 5, 3]])).im_residuals is not None
    start = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert [log["step"] for log in trainer.state.log_history if "eval_matthews" in log] == [4, 8]
    told, found_told = trainer.predict(trainer.eval_dataset), trainer.evaluate()
    handle.remove()
    plain, found = trainer.predict(trainer.eval_dataset), trainer.evaluate()
    np.testing.assert_array_equal(told.predictions, plain.predictions)
    assert plain.predictions.shape == (20, 2)
    for name in ("eval_loss", "eval_accuracy", "eval_matthews"):
        assert found_told[name] == found[name]
    assert found["eval_loss"] < 0.8 * start
    assert found["eval_accuracy"] >= 0.8

    rows = [{name: torch.tensor([value]) for name, value in row.items()} for row in trainer.eval_dataset]
    with torch.no_grad():
        outputs = [trainer.model(labels=row.pop("label"), **row) for row in rows]
    guesses, labels = [output.logits.argmax().item() for output in outputs], trainer.eval_dataset["label"]
    assert found["eval_accuracy"] == np.mean(np.equal(guesses, labels))
    assert found["eval_matthews"] == pytest.approx(np.corrcoef(guesses, labels)[0, 1])
    assert found["eval_loss"] == pytest.approx(torch.stack([output.loss for output in outputs]).mean().item(), abs=1e-5)


def test_statistics_are_gathered_where_they_are_not_ignored(trainer):
    trainer.compute_metrics = None
    trainer.model.register_forward_pre_hook(statistics, with_kwargs=True)
    logits, residuals, iterations = trainer.predict(trainer.eval_dataset, ignore_keys=[]).predictions
    assert logits.shape == (20, 2)
    assert len(residuals) == len(iterations) == 3
    assert all(r.shape == (20,) and (r > 0).all() for r in residuals)
    assert all(n.shape == (20,) and (n == 3).all() for n in iterations)
