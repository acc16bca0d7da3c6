"""Peak memory of a training step, counted in bytes of live tensors: exact, where resident size is noise."""

import pytest
import torch
from tiny import imbert_config
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from imbert_hf import IMBertForSequenceClassification


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside it held at one time."""

    def __init__(self):
        super().__init__()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.live = {key: item for key, item in self.live.items() if not item[0].expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self.live.values()))
        return result


def peak_of_training_step(batch, **kwargs):
    torch.manual_seed(0)
    model = IMBertForSequenceClassification(imbert_config(**kwargs)).train()
    with Peak() as peak:
        model(**batch, labels=torch.tensor([0, 1, 1])).loss.backward()
    return peak.bytes


@pytest.mark.parametrize("solver", ["fixed_point", "anderson"])
@pytest.mark.parametrize("gradient", ["implicit", "one_step"])
def test_memory_is_flat_in_the_iterations(solver, gradient, batch):
    setting = {"im_solver": solver, "im_gradient": gradient}
    few = peak_of_training_step(batch, im_iterations=5, **setting)
    many = peak_of_training_step(batch, im_iterations=20, **setting)
    assert many < 1.05 * few
    if solver == "fixed_point":
        assert many < 1.05 * peak_of_training_step(batch, im_iterations=2, **setting)


def test_unrolled_memory_grows_with_the_iterations(batch):
    few, many = (peak_of_training_step(batch, im_gradient="unrolled", im_iterations=T) for T in (2, 8))
    assert many > 2 * few


@pytest.mark.parametrize("solver", ["fixed_point", "anderson", "gradient_descent"])
@pytest.mark.parametrize("gradient", ["implicit", "one_step"])
def test_memory_is_about_that_of_bert(solver, gradient, batch):
    """Six layers; what a solve holds beside its last evaluation is one layer's."""
    batch = {name: value.repeat(1, 4) for name, value in batch.items()}
    bert = peak_of_training_step(batch, im_layers=[], num_hidden_layers=6)
    peak = peak_of_training_step(batch, im_solver=solver, im_gradient=gradient, im_iterations=4, num_hidden_layers=6)
    assert peak < 1.15 * bert
