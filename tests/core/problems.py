"""Layers whose implicit step has an exact solution, and the step written plainly, shared by the tests."""

import torch
from torch import nn
from torch.autograd import grad

from imbert_hf import Anderson, GradientDescent, ThetaMethod, implicit_step
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


class Plain:
    """F with the masks of one seed, and the relation y = x + gamma [(1 - theta) f(x) + theta f(y)] around it."""

    def __init__(self, layer, x, mask, vector_field, theta, step_size):
        self.layer, self.x, self.e = layer, x, VECTOR_FIELDS[vector_field]
        self.theta, self.gamma = theta, step_size
        self.real = torch.ones(x.shape[:2], dtype=x.dtype) if mask is None else mask.to(x.dtype)

    def F(self, h):
        torch.manual_seed(5)
        return self.layer(h)

    def f(self, h):
        return self.F(h) - self.e * h

    def residual(self, y):
        return y - self.x - self.gamma * ((1 - self.theta) * self.f(self.x) + self.theta * self.f(y))

    def map(self, y):
        """The g of y = g(y): the relation solved for the y outside of F."""
        s = self.gamma * self.theta
        return y - self.residual(y) / (1 + self.e * s)

    def guess(self, name):
        return self.x.view_as(self.x) if name == "previous" else self.x + self.gamma * self.f(self.x)

    def relative(self, y):
        def size(t):
            return (t * self.real[..., None]).flatten(1).norm(dim=1)

        return size(self.residual(y)) / size(y)

    def iterates(self, solver, y, n):
        """The guess and n iterates."""
        ys = [y]
        for _ in range(n):
            y, g = ys[-1], self.map(ys[-1])
            if isinstance(solver, GradientDescent):
                half = (self.residual(y) * self.real[..., None]).square().sum() / 2
                (slope,) = grad(half, y, create_graph=True)
                y = y - solver.learning_rate * slope
            else:
                y = y + solver.damping * (g - y)
                history = getattr(solver, "memory", 0)
                for_mixing = range(max(0, len(ys) - 1 - history), len(ys) - 1)
                if for_mixing:
                    d = [self.map(u) - u for u in ys]
                    dd = torch.stack([(d[i + 1] - d[i]) for i in for_mixing], dim=-1)
                    dy = torch.stack([(ys[i + 1] - ys[i]) for i in for_mixing], dim=-1)
                    D = (dd * self.real[..., None, None]).flatten(1, 2)
                    target = (d[-1] * self.real[..., None]).flatten(1)[..., None]
                    w = torch.linalg.solve(D.mT @ D, D.mT @ target)[:, None]
                    y = y - ((dy + solver.damping * dd) @ w)[..., 0]
            ys.append(y)
        return ys

    def solve(self, solver, guess, iterations, tolerance):
        """The value for tolerance 0: the last iterate; else an example's first within it, or its best."""
        ys = self.iterates(solver, guess, iterations)
        if not tolerance:
            return ys[-1]
        residuals = torch.stack([self.relative(y).detach() for y in ys])
        within = residuals <= tolerance
        chosen = torch.where(within.any(dim=0), within.int().argmax(dim=0), residuals.argmin(dim=0))
        return torch.stack([ys[k][i] for i, k in enumerate(chosen.tolist())])

    def one_step(self, y):
        """Whose gradient is that of one evaluation at y, in which y moves with x / c and parameters are seen by c v."""
        c, s = 1 + self.e * self.gamma * self.theta, self.gamma * self.theta
        b = self.x + self.gamma * (1 - self.theta) * self.f(self.x)
        return b / c + s * self.F(y.detach() + (self.x - self.x.detach()) / c)

    def implicit(self, y):
        """The solution y with its own gradient, by the implicit function theorem: dy = (I - dg/dy)^-1 dg."""
        n, leaf = y[0].numel(), y.detach().requires_grad_()
        rows = torch.eye(n, dtype=y.dtype)[:, None].expand(-1, len(y), -1).reshape(n, *y.shape)  # no row sees another
        slope = grad(self.map(leaf), leaf, rows, is_grads_batched=True)[0].flatten(2).transpose(0, 1)
        g = self.map(y.detach())
        moved = torch.linalg.solve(torch.eye(n) - slope, (g - g.detach()).flatten(1))
        return y.detach() + moved.view_as(y)


def inputs(batch=3, length=4, width=5, seed=3, requires_grad=True):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, width, dtype=torch.float64, generator=generator).requires_grad_(requires_grad)


def relative_error(a, b):
    return ((a - b).norm() / b.norm()).item()


def cosine(a, b):
    return torch.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


def check(actual, expected, solver, rounding=1e-9):
    # Anderson's weights differ by the raised diagonal of its systems, and what amplifies that.
    tolerance = 1e-4 if isinstance(solver, Anderson) else rounding
    scale = max(t.abs().max().item() for t in expected)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * scale)
