"""--defence of examples/finetune.py: its Trainer against a plain loop, and the losses that it logs."""

import copy

import finetune
import pytest
import torch
from finetuning import refusal, results_of
from robust_losses import DEFENCES, Defence
from safetensors.torch import load_file
from tiny import bert_config
from torch.utils.data import Dataset
from transformers import BertForSequenceClassification, TrainingArguments


class Rows(Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, i):
        ids = torch.tensor([2, *(5 + (i * k) % 90 for k in range(1, 6)), 3])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor(i % 2)}


def seeded(name, batches):
    """The defence, with random numbers of the batch's number alone; it notes the batches that it was given."""
    defence = DEFENCES[name]

    def losses(model, batch):
        torch.manual_seed(len(batches))
        batches.append(batch)
        yield from defence.losses(model, batch)

    return Defence(losses, defence.count)


@pytest.mark.parametrize("name", DEFENCES)
def test_the_trainer_is_a_plain_loop(name, tmp_path):
    """Five batches, two a step: the last step has one alone. Dropout is on."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(bert_config())
    model.accepts_loss_kwargs = False
    plain, batches, losses = copy.deepcopy(model).train(), [], []
    settings = {"learning_rate": 0.1, "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    settings |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 1}
    settings |= {"logging_steps": 1, "report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    args = TrainingArguments(output_dir=str(tmp_path), dataloader_pin_memory=False, **settings)
    trainer = finetune.DefenceTrainer(model=model, args=args, train_dataset=Rows(), defence=seeded(name, batches))
    trainer.train()

    optimizer, replayed = torch.optim.SGD(plain.parameters(), lr=0.1), []
    defence = seeded(name, replayed)
    for group in (batches[:2], batches[2:4], batches[4:]):
        optimizer.zero_grad()
        total = 0.0
        for batch in group:
            for loss in defence.losses(plain, batch):
                (loss / len(group)).backward()
                total += loss.item() / len(group)
        optimizer.step()
        losses.append(total)
    assert len(batches) == len(replayed) == 5
    torch.testing.assert_close(dict(model.named_parameters()), dict(plain.named_parameters()), rtol=0, atol=1e-6)
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx(losses, abs=1e-4)


def runs(arguments, tmp_path, *ways):
    """Results and weights of runs of the script."""
    for i, more in enumerate(ways):
        finetune.main(
            arguments("--max_steps", "2", "--logging_steps", "1", "--output_dir", str(tmp_path / str(i)), *more)
        )
    folders = [tmp_path / str(i) for i in range(len(ways))]
    return [(results_of(folder), load_file(folder / "model.safetensors")) for folder in folders]


@pytest.mark.parametrize("name", DEFENCES)
def test_the_script_trains_with_it_on_any_connection_and_in_half_precision(name, arguments, tmp_path):
    way = ["--defence", name]
    whole, half = runs(arguments, tmp_path, way, [*way, "--bf16", "True"])
    assert whole[0]["arguments"]["model"]["defence"] == name
    assert whole[0]["im_fields"]["im_layers"] == [-1]
    assert {tensor.dtype for tensor in half[1].values()} == {torch.float32}
    losses, other = ([e["loss"] for e in results["history"] if "loss" in e] for results, _ in (whole, half))
    assert other == pytest.approx(losses, rel=0.02)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--defence", "adversarial"], "invalid choice: 'adversarial' (choose from "),
        (
            ["--defence", "r3f", "--label_smoothing_factor", "0.1"],
            "--label_smoothing_factor has no effect with --defence",
        ),
        (["--r3f"], "--r3f is no argument"),
    ],
)
def test_wrong_arguments(more, sentence, arguments, tmp_path):
    assert sentence in refusal(arguments(*more))
    assert not (tmp_path / "out").exists()
