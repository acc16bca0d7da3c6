"""accelerate launch: a training loop of one's own, its gradients clipped, its state saved and resumed."""

import os
import runpy
import subprocess
import sys

import pytest
import torch
from tiny import TINY


pytest.importorskip("accelerate")

# Six steps with dropout, of which the first three come from the saved state where `resume` is true. The loader has a
# generator of its own: to begin it anew then draws nothing from the random state that the dropout masks come from.
SCRIPT = """
import sys

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from imbert_hf import IMBertConfig, IMBertForSequenceClassification


def train(config, folder, resume):
    set_seed(resume)
    accelerator = Accelerator()
    model = IMBertForSequenceClassification(IMBertConfig(**config, im_layers="all"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=6)
    ids = torch.randint(5, 99, (24, 8), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "labels": row[0] % 2} for row in ids]
    loader = torch.utils.data.DataLoader(rows, 4, shuffle=True, generator=torch.Generator().manual_seed(0))
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    if resume:
        accelerator.load_state(folder)
        loader = accelerator.skip_first_batches(loader, 3)
    model.train()
    losses, norms = [], []
    for step, batch in enumerate(loader, start=3 * resume + 1):
        loss = model(**batch).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 0.5)
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item())
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step == 3 and not resume:
            accelerator.save_state(folder)
    return losses, norms, accelerator.unwrap_model(model).state_dict()


if __name__ == "__main__":
    folder = sys.argv[1]
    torch.save(train(torch.load(folder + "/config"), folder + "/state", resume=False), folder + "/result")
"""


def test_a_launched_loop_resumes_where_its_state_was_saved(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    torch.save(TINY, tmp_path / "config")
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    env = os.environ | {"HF_HOME": str(tmp_path / "no configuration of the user's")}
    done = subprocess.run(
        [sys.executable, *launch, script, tmp_path], capture_output=True, text=True, env=env, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    losses, norms, weights = torch.load(tmp_path / "result")
    assert len(losses) == 6
    assert max(norms) <= 0.5001
    assert norms.count(pytest.approx(0.5, abs=1e-3)) > 0

    again = runpy.run_path(str(script))["train"](TINY, tmp_path / "state", resume=True)
    assert again[0] == losses[3:]
    assert again[1] == norms[3:]
    torch.testing.assert_close(again[2], weights, rtol=0, atol=0)
