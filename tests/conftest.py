"""What holds for every test: no Hub, no GPU, one thread; a batch, and a stranger."""

import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Written for a CPU: with a device Trainer and Accelerator would take it, and processes that a test starts would share
# it. They inherit this. What is measured on a device: `imbert-eval cost`.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["OMP_NUM_THREADS"] = "1"  # tensors are tiny, and threads that wait for one another crawl on busy cores

import pytest
import stranger
import torch
import transformers


transformers.logging.disable_progress_bar()
torch.set_num_threads(1)


@pytest.fixture
def batch():
    """Three rows of 5, 9 and 7 real tokens, padded on the right to 9."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 99, (3, 9), generator=generator)
    mask = torch.arange(9)[None] < torch.tensor([5, 9, 7])[:, None]
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


@pytest.fixture(scope="session")
def run_stranger(tmp_path_factory):
    """Runs code in a process without imbert_hf."""
    with stranger.running(tmp_path_factory.mktemp("stranger")) as run:
        yield run
