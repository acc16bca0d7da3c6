"""What tests of several files of this folder take."""

import pytest
import torch
import torch.distributed as dist


@pytest.fixture
def process_group():
    """Of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def labelled(batch):
    return {**batch, "labels": torch.tensor([0, 1, 1])}
