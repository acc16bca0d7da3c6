"""One of several processes that train a tiny IM-BERT together, in every way that test_distributed.py compares.

torchrun starts it with the names of two files. In one rank 0 saves {(way, gradient, solver): what train returned}, or
the sentence of a ValueError in its place. Without a way, or with "consistency", `train` is the run on one process that
the others have to equal. The other holds lists of arguments, with each of which it then runs examples/finetune.py.
"""

import itertools
import json
import sys
import warnings
from collections import Counter
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from launching import leave
from robust_losses import DEFENCES, Defence, freelb_losses
from tiny import GRADIENTS, SOLVERS, imbert_config, lively
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from imbert_hf import IMBertForSequenceClassification


WAYS = (
    "ddp",
    "ddp with checkpointing",
    "ddp with reentrant checkpointing, static graph",
    "fsdp2",
    "fsdp2 with checkpointing",
    "fsdp2 of parts",
    "ddp with dropout",
    "fsdp2 with dropout",
    "ddp with consistency",
    "ddp with reentrant checkpointing and consistency, static graph",
    "fsdp2 with checkpointing and consistency",
)
ROWS, STEPS = 4, 2
FREELB = Defence(partial(freelb_losses, start=0.0), DEFENCES["freelb"].count)  # no process draws a start of its own


def batches():
    """The global batches, padded on the right. Each row has one label: the mean of means is the mean."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        mask = (torch.arange(8) < torch.randint(3, 9, (ROWS, 1), generator=generator)).long()
        ids = torch.randint(5, 99, (ROWS, 8), generator=generator) * mask
        yield {"input_ids": ids, "attention_mask": mask, "labels": torch.randint(2, (ROWS,), generator=generator)}


def spread(model, way):
    """The model as it is trained."""
    if "checkpointing" in way:
        model.gradient_checkpointing_enable({"use_reentrant": "reentrant" in way})
    if way.startswith("ddp"):
        return DistributedDataParallel(model, static_graph="static graph" in way)
    if way.startswith("fsdp2"):
        for layer in model.bert.encoder.layer:
            if way.endswith("parts"):
                fully_shard(layer.attention)
            fully_shard(layer)
        fully_shard(model)
    return model


def train(gradient, solver, way="", rank=0, processes=1):
    """Losses of the global batches, the final weights, and how often a parameter was handed its gradient."""
    dropout = 0.1 if way.endswith("dropout") else 0.0
    config = imbert_config(
        num_hidden_layers=2,
        im_gradient=gradient,
        im_solver=solver,
        im_iterations=2,
        im_consistency=0.5 if "consistency" in way else 0.0,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    torch.manual_seed(0)
    model = lively(IMBertForSequenceClassification(config)).train()
    trained = spread(model, way)
    gradients = Counter()
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: gradients.update([name]))
    # No Adam, which would blow rounding errors up in the key biases, whose gradient is 0.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for batch in batches():
        optimizer.zero_grad()
        loss = trained(**{name: values[rank::processes] for name, values in batch.items()}).loss
        loss.backward()
        optimizer.step()
        loss = loss.detach()
        if processes > 1:
            dist.all_reduce(loss)
        losses.append(loss / processes)
    weights = {n: p.full_tensor() if hasattr(p, "full_tensor") else p for n, p in model.named_parameters()}
    return torch.stack(losses), {n: p.detach().clone() for n, p in weights.items()}, dict(gradients)


def train_every_way(path):
    results = {}
    for way, gradient, solver in itertools.product(WAYS, GRADIENTS, SOLVERS):
        if ("dropout" in way or "consistency" in way) and solver != "anderson":
            continue
        try:
            results[way, gradient, solver] = train(gradient, solver, way, dist.get_rank(), dist.get_world_size())
        except ValueError as error:
            results[way, gradient, solver] = str(error)
    if dist.get_rank() == 0:
        torch.save(results, path)


def run_example(path):
    from finetune import main

    DEFENCES["freelb"] = FREELB
    for arguments in json.loads(Path(path).read_text()):
        main(arguments)


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "`gradient_checkpointing_enable` is deprecated", FutureWarning)
        train_every_way(sys.argv[1])
    run_example(sys.argv[2])
    dist.barrier()
    dist.destroy_process_group()
    leave()
