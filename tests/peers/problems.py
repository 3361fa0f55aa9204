"""Random problems in double, drawn from a seed, with losses in plain torch: what this library and its peers are both asked about."""

import numpy as np
import torch

STEPS, TERMS = 25, 15  # of training; of a Neumann series


class Ridge:
    """Ridge regression, a strength e^x for each feature; the solution and the hypergradient in closed form."""

    lr = 0.2

    def __init__(self, seed):
        rs = np.random.RandomState(seed)
        self.X, self.t, self.V, self.s = (torch.tensor(rs.normal(size=shape)) for shape in ((40, 8), 40, (30, 8), 30))
        self.x0 = torch.tensor(rs.normal(size=8) - 1.0)
        self.y0 = torch.tensor(rs.normal(size=8))

    def inner(self, x, y):
        return 0.5 * (self.X @ y - self.t).square().mean() + 0.5 * (x.exp() * y.square()).sum()

    def outer(self, x, y):
        return 0.5 * (self.V @ y - self.s).square().mean()

    def solution(self, x):
        return torch.linalg.solve(self.X.T @ self.X / 40 + torch.diag(x.exp()), self.X.T @ self.t / 40)

    def exact(self):
        x = self.x0.clone().requires_grad_()
        return torch.autograd.grad(self.outer(x, self.solution(x)), x)[0]


class Weights:
    """Data re-weighting: logistic regression, a weight σ(x_i) for each sample."""

    lr = 0.5

    def __init__(self, seed):
        rs = np.random.RandomState(seed)
        self.X, self.V = torch.tensor(rs.normal(size=(30, 6))), torch.tensor(rs.normal(size=(20, 6)))
        self.t, self.s = (torch.tensor(np.where(rs.uniform(size=n) < 0.5, -1.0, 1.0)) for n in (30, 20))
        self.x0 = torch.tensor(rs.normal(size=30))
        self.y0 = torch.tensor(0.5 * rs.normal(size=6))

    def inner(self, x, y):
        losses = torch.nn.functional.softplus(-self.t * (self.X @ y))
        return (torch.sigmoid(x) * losses).mean() + 0.05 * y.square().sum()

    def outer(self, x, y):
        return torch.nn.functional.softplus(-self.s * (self.V @ y)).mean() + 0.01 * x.square().sum()


SEEDS = (0, 1, 2)


def train(problem, x, steps=STEPS):
    """Gradient descent without a graph."""
    y = problem.y0.clone()
    for _ in range(steps):
        y = y.detach().requires_grad_()
        with torch.enable_grad():
            y = y - problem.lr * torch.autograd.grad(problem.inner(x.detach(), y), y)[0]
    return y.detach()
