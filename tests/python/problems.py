"""Problems whose hypergradients were published or have a closed form (numbers: what the peers' own libraries give)."""

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import nn

E1_EXACT = [
    0.008659409, 0.001510141, 0.000790472, 0.003071215, 0.005326422, 0.016854399, 0.009327898, 0.002599377, 0.000169621, 0.000008565,
    0.008584953, 0.014037093, 0.000503459, -0.000090353, 0.004758864, 0.004280085, -0.000279238, 0.003173979, 0.000046600, 0.000568848,
]  # fmt: skip
E1_REVERSE = [
    0.008659258, 0.001510068, 0.000790458, 0.003071124, 0.005326387, 0.016853797, 0.009327507, 0.002599284, 0.000169619, 0.000008560,
    0.008584764, 0.014036736, 0.000503456, -0.000090347, 0.004758614, 0.004279986, -0.000279255, 0.003174013, 0.000046601, 0.000568822,
]  # fmt: skip


class Logistic:
    """E1: the logistic regression of hypertorch's notebook, a ridge for each feature."""

    def __init__(self):
        rng = np.random.RandomState(1)
        w = rng.randn(20)
        X = rng.randn(1000, 20)
        t = (X @ w + 0.1 * rng.randn(1000) > 0).astype(float)
        perm = rng.permutation(1000)
        X, t = X.astype(np.float32), t.astype(np.float32)
        val, train = perm[:500], perm[500:]
        double = lambda a: torch.from_numpy(a).double()  # noqa: E731
        self.X, self.t, self.Xv, self.tv = double(X[train]), double(t[train]), double(X[val]), double(t[val])
        self.x, self.y = torch.ones(20, dtype=torch.double), torch.zeros(20, dtype=torch.double)

    def inner(self, x, y):
        return nnf.binary_cross_entropy_with_logits(self.X @ y, self.t) + 0.5 * (x * y * y).sum()

    def outer(self, x, y):
        return nnf.binary_cross_entropy_with_logits(self.Xv @ y, self.tv)


class Cleaning:
    """E3: digits of which every other training label is wrong, a weight for each."""

    def __init__(self, X, labels):
        y = torch.as_tensor(labels).clone()
        i = torch.arange(0, 500, 2)
        y[i] = (y[i] + 1 + (i // 2) % 9) % 10
        X = torch.as_tensor(X).double()
        self.X, self.t, self.Xv, self.tv = X[:500], y[:500], X[500:1000], torch.as_tensor(labels)[500:1000]
        self.x = torch.zeros(500, dtype=torch.double)
        self.y = {"W": torch.zeros(10, 64, dtype=torch.double), "b": torch.zeros(10, dtype=torch.double)}

    def inner(self, x, y):
        ce = nnf.cross_entropy(nnf.linear(self.X, y["W"], y["b"]), self.t, reduction="none")
        return (torch.sigmoid(x) * ce).mean() + 0.005 * (y["W"].square().sum() + y["b"].square().sum())

    def outer(self, x, y):
        return nnf.cross_entropy(nnf.linear(self.Xv, y["W"], y["b"]), self.tv)


class Sinusoids(nn.Module):
    """E4: the network and the four tasks of the deterministic few-shot toy."""

    TASKS = ((1.0, 0.0), (1.5, 0.3), (2.0, 0.6), (2.5, 0.9))

    def __init__(self):
        super().__init__()
        self.l1, self.l2, self.l3 = nn.Linear(1, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        self.double()
        k = 0
        with torch.no_grad():
            for p in self.parameters():
                p.copy_((0.5 * torch.sin(0.7 * torch.arange(k, k + p.numel(), dtype=torch.double) + 0.3)).view(p.shape))
                k += p.numel()

    def forward(self, u):
        return self.l3(torch.tanh(self.l2(torch.tanh(self.l1(u)))))

    @staticmethod
    def data(task):
        a, b = Sinusoids.TASKS[task]
        support = (-2 + 0.4 * torch.arange(10, dtype=torch.double)).unsqueeze(1)
        query = support + 0.2
        return (support, a * torch.sin(support + b)), (query, a * torch.sin(query + b))


class Ridge:
    """E5: JAXopt's ridge regression."""

    def __init__(self):
        rng = np.random.RandomState(0)
        X = rng.randn(10, 3)
        coef = 100 * rng.rand(3, 1)
        t = (X @ coef).squeeze()
        rows = np.arange(10)
        rng.shuffle(rows)
        X, t = X[rows], t[rows]
        columns = np.arange(3)
        rng.shuffle(columns)
        self.X, self.t = torch.from_numpy(X[:, columns].copy()), torch.from_numpy(t)

    def inner(self, x, y):
        return 0.5 * (self.X @ y - self.t).square().mean() + 0.5 * x * y.square().sum()

    def solve(self, x):
        return torch.linalg.solve(self.X.T @ self.X + len(self.t) * x * torch.eye(3, dtype=torch.double), self.X.T @ self.t)
