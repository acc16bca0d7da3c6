"""More than one process: plain loops under DDP and FSDP2, and examples/finetune.py under torchrun and accelerate.

Every process runs on this machine's CPU and speaks gloo.
"""

import itertools
import json
import random
import re
import shutil
from functools import cache
from pathlib import Path

import classifiers
import distributed_worker as worker
import ending_worker
import fsdp_worker
import pytest
import torch
from safetensors.torch import load_file
from tiny import NO_DROPOUT


pytest.importorskip("accelerate")
pytest.importorskip("datasets")
pytest.importorskip("sklearn")
pytest.importorskip("psutil")

from finetuning import SCRIPT, glue, results_of
from launching import ACCELERATE, ROOT, TORCHRUN, free_port, run_together
from robust_losses import DEFENCES


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """A folder with a model and data, and a function from an output folder and more to the example's arguments."""
    folder = tmp_path_factory.mktemp("glue")
    classifiers.save(folder / "bert", classifiers.bert(**NO_DROPOUT))
    draw = random.Random(0)
    (folder / "sst2").mkdir()
    for split, rows in {"train": 24, "validation": 16}.items():
        texts = [" ".join(draw.choices(classifiers.WORDS, k=draw.randint(2, 8))) for _ in range(rows)]
        lines = [json.dumps({"sentence": text, "label": i % 2}) for i, text in enumerate(texts)]
        (folder / "sst2" / f"{split}.jsonl").write_text("\n".join(lines))

    def command(out, *more, processes):
        settings = {
            "model_name_or_path": folder / "bert",
            "data_dir": folder,
            "task": "sst2",
            "max_seq_length": 32,
            "output_dir": out,
            "per_device_train_batch_size": 8 // processes,
            "per_device_eval_batch_size": 8 // processes,
            "num_train_epochs": 2,
            "optim": "sgd",
            "learning_rate": 0.1,
            "logging_steps": 1,
            "save_total_limit": 2,
            "load_best_model_at_end": False,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        implicit = [] if "--connection" in more else ["--im_layers", "all"]
        return [*words, "--use_cpu", *implicit, *more]

    return folder, command


EXAMPLES = {
    **{
        f"{solver} {gradient}": ["--im_solver", solver, "--im_gradient", gradient]
        for solver, gradient in itertools.product(worker.SOLVERS, ("implicit", "one_step"))
    },
    **{name: ["--connection", "bert", "--defence", name, "--gradient_accumulation_steps", "2"] for name in DEFENCES},
}


@pytest.fixture(scope="module")
def commands(example):
    """The example's arguments for a way of running it and each of EXAMPLES."""
    folder, arguments = example
    return {
        way: [
            arguments(folder / way / name, "--max_steps", "2", "--save_strategy", "no", *words, processes=processes)
            for name, words in EXAMPLES.items()
        ]
        for way, processes in {"alone": 1, "in two": 2}.items()
    }


@pytest.fixture(scope="module")
def together(tmp_path_factory, commands):
    """What two processes came to: (way, gradient, solver) -> losses, weights, gradients, or a sentence.

    They then run the example with every solver and defence, since to start them takes longer.
    """
    folder = tmp_path_factory.mktemp("together")
    (folder / "commands.json").write_text(json.dumps(commands["in two"]))
    files = [folder / "results.pt", folder / "commands.json"]
    run_together(folder, (TORCHRUN, "--standalone", "--nproc_per_node", 2, Path(worker.__file__), *files))
    return torch.load(folder / "results.pt")


alone = cache(worker.train)


def assert_close(first, second):
    torch.testing.assert_close(first[0], second[0], rtol=0, atol=2e-6)
    torch.testing.assert_close(first[1], second[1], rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "way", [w for w in worker.WAYS if not any(n in w for n in ("dropout", "parts", "consistency"))]
)
def test_two_processes_equal_one(way, together):
    for gradient, solver in itertools.product(worker.GRADIENTS, worker.SOLVERS):
        losses, weights, gradients = together[way, gradient, solver]
        assert_close((losses, weights), alone(gradient, solver))
        if way.startswith("ddp"):
            assert gradients == dict.fromkeys(weights, worker.STEPS)


@pytest.mark.parametrize("way", [way for way in worker.WAYS if "consistency" in way])
def test_im_consistency_of_two_processes_equals_that_of_one(way, together):
    for gradient in worker.GRADIENTS:
        losses, weights, gradients = together[way, gradient, "anderson"]
        assert_close((losses, weights), alone(gradient, "anderson", "consistency"))
        assert (losses - alone(gradient, "anderson")[0]).abs().max() > 1e-4
        if way.startswith("ddp"):
            assert gradients == dict.fromkeys(weights, worker.STEPS)


def test_dropout_is_the_same_under_ddp_and_fsdp2(together):
    for gradient in worker.GRADIENTS:
        with_ddp = together["ddp with dropout", gradient, "anderson"]
        assert_close(together["fsdp2 with dropout", gradient, "anderson"], with_ddp)
        assert not torch.allclose(with_ddp[0], together["ddp", gradient, "anderson"][0], rtol=0, atol=1e-3)


def test_fsdp2_of_parts_of_a_layer(together):
    """A part has its parameters in its own call alone: what differentiates the layer inside the solve is refused."""
    for gradient, solver in itertools.product(worker.GRADIENTS, worker.SOLVERS):
        result = together["fsdp2 of parts", gradient, solver]
        if gradient == "implicit" or solver == "gradient_descent":
            assert result.startswith("fully_shard was called on BertAttention, a part of an implicit layer; ")
        else:
            assert_close(result, alone(gradient, solver))


@pytest.fixture(scope="module")
def runs(example):
    """Folders of the example's run on one process, and of that on two nodes of one process, each with its own disk."""
    folder, arguments = example
    glue.main(arguments(folder / "one", processes=1))
    # As the README has it.
    meeting = ["--nproc_per_node", 1, "--master_addr", "127.0.0.1", "--master_port", free_port()]
    disks = [folder / "node0", folder / "node1"]
    nodes = [(TORCHRUN, "--nnodes", 2, "--node_rank", rank, *meeting, SCRIPT) for rank in range(2)]
    run_together(folder, *((*n, *arguments(disk, processes=2)) for n, disk in zip(nodes, disks, strict=True)))
    return folder / "one", *sorted(disks, key=lambda disk: not (disk / "results.json").exists())


def assert_same_run(first, second):
    weights, others = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    torch.testing.assert_close(others, weights, rtol=0, atol=2e-6)
    results, others = results_of(first), results_of(second)
    for name in ("rows", "seed", "steps", "im_fields"):
        assert others[name] == results[name]
    for name in ("loss", "accuracy"):
        assert others["metrics"]["validation"][name] == pytest.approx(results["metrics"]["validation"][name], abs=2e-6)
    for name in ("loss", "grad_norm", "eval_loss", "learning_rate"):
        assert [e[name] for e in others["history"] if name in e] == pytest.approx(
            [e[name] for e in results["history"] if name in e], rel=1e-5, abs=2e-6
        )


def test_the_example_with_every_solver_and_defence(example, commands, together, monkeypatch):
    folder, _ = example
    monkeypatch.setitem(DEFENCES, "freelb", worker.FREELB)
    for words in commands["alone"]:
        glue.main(words)
    for name in EXAMPLES:
        assert_same_run(folder / "alone" / name, folder / "in two" / name)


def test_the_example_with_accumulated_gradients(example, runs):
    folder, arguments = example
    glue.main(arguments(folder / "accumulated", "--gradient_accumulation_steps", "2", processes=2))
    assert_same_run(runs[0], folder / "accumulated")


def test_the_example_on_two_nodes(runs):
    one, first, second = runs
    assert_same_run(one, first)
    assert {file.name for file in first.iterdir()} == {file.name for file in one.iterdir()}
    # Beside the state of its random numbers, which the Trainer keeps for each process, only rank 0 writes.
    assert {file.name for file in second.rglob("*") if file.is_file()} == {"rng_state_1.pth"}


def test_the_example_resumed_under_accelerate(example, runs):
    folder, arguments = example
    one, *disks = runs
    for disk in disks:
        shutil.copytree(disk / "checkpoint-3", folder / "resumed" / "checkpoint-3", dirs_exist_ok=True)
    words = arguments(folder / "resumed", "--resume_from_checkpoint", "last", processes=2)
    run_together(folder, (*ACCELERATE, "--multi_gpu", "--num_processes", 2, ending_worker.__file__, SCRIPT, *words))
    assert results_of(folder / "resumed")["steps_timed"] == 3
    assert_same_run(one, folder / "resumed")


def test_the_example_under_fsdp2(example, runs):
    folder, arguments = example
    page = (ROOT / "examples/README.md").read_text(encoding="utf-8")
    flags = (
        re.search(r"accelerate launch (--use_fsdp .*?)--num_machines", page, re.DOTALL)[1].replace("\\\n", "").split()
    )
    words = [word for word in arguments(folder / "fsdp2", processes=2) if word != "--use_cpu"]
    run_together(folder, (*ACCELERATE, *flags, "--num_processes", 2, fsdp_worker.__file__, *words))
    assert_same_run(runs[0], folder / "fsdp2")
