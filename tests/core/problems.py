"""Layers whose implicit step has an exact solution, shared by the tests."""

import torch
from torch import nn

from imbert_hf import ThetaMethod, implicit_step
from imbert_hf.solvers_imbert import VECTOR_FIELDS


def step(layer, x, *, theta=1.0, step_size=1.0, vector_field="increment", **kwargs):
    defaults = {"initial_guess": "explicit", "tolerance": 0.0}
    return implicit_step(layer, x, ThetaMethod(theta, step_size, vector_field), **{**defaults, **kwargs})


class Linear(nn.Linear):
    """F(h) = A h per token, with A contracting; float64."""

    def __init__(self, width: int = 5, scale: float = 0.25, seed: int = 0):
        super().__init__(width, width, bias=False, dtype=torch.float64)
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(scale * torch.randn(width, width, dtype=torch.float64, generator=generator))

    def exact(self, x, vector_field="increment", step_size=1.0, theta=1.0, **_):
        """y = (I - gamma theta f)^-1 (I + gamma (1 - theta) f) x with f = A - e I, rows being tokens."""
        eye = torch.eye(len(self.weight), dtype=x.dtype)
        f = self.weight.T - VECTOR_FIELDS[vector_field] * eye
        return (x + step_size * (1 - theta) * x @ f) @ torch.linalg.inv(eye - step_size * theta * f)


class Mixing(nn.Module):
    """A small nonlinear layer that mixes tokens, as attention does, and counts its evaluations; float64."""

    def __init__(self, length: int = 4, width: int = 5, dropout: float = 0.0, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def random(*shape):
            return nn.Parameter(0.3 * torch.randn(*shape, dtype=torch.float64, generator=generator))

        self.tokens, self.width = random(length, length), random(width, width)
        self.dropout, self.inner = nn.Dropout(dropout), nn.Dropout(dropout / 2)  # masks of one shape
        self.evaluations = 0

    def forward(self, h):
        self.evaluations += 1
        return self.dropout(torch.tanh(self.inner(self.tokens @ h) @ self.width) + 0.5 * h)


def inputs(batch=3, length=4, width=5, seed=3, requires_grad=True):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, width, dtype=torch.float64, generator=generator).requires_grad_(requires_grad)


def relative_error(a, b):
    return ((a - b).norm() / b.norm()).item()


def cosine(a, b):
    return torch.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()
