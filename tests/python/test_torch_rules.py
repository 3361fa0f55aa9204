"""Optimisers of torch.optim as inner rules: the same trajectories, groups and state; the rest refused by name."""

import pytest
import torch
from torch import nn

import bilevel

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.02),
    "dampened": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, dampening=0.3),
    "adam": lambda p: torch.optim.Adam(p, lr=0.03, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.02),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.03, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.03, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.9, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, lr_decay=0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.8, rho=0.8),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.03, weight_decay=0.01),
}
X, T = (
    torch.randn(30, 4, dtype=torch.double, generator=torch.Generator().manual_seed(1)),
    torch.linspace(-1, 1, 30, dtype=torch.double),
)


def network():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def inner_loss(x, y):
    return (x[0] * (y(X).squeeze(1) - T).square()).mean()


def outer_loss(x, y):
    return sum(p.square().sum() for p in y.values())


def train(net, optimizer, steps):
    x = torch.ones(1, dtype=torch.double)
    for _ in range(steps):
        optimizer.zero_grad()
        (x[0] * (net(X).squeeze(1) - T).square()).mean().backward()
        optimizer.step()


def reached(net, optimizer, steps):
    h = bilevel.hypergradient(
        inner_loss,
        outer_loss,
        torch.ones(1, dtype=torch.double),
        net,
        estimator="unrolled",
        inner={"rule": optimizer, "steps": steps},
    )
    return h.y


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_trajectories_are_equal(name):
    net, same = network(), network()
    optimizer = OPTIMIZERS[name](net.parameters())
    found = reached(net, optimizer, 15)
    train(same, OPTIMIZERS[name](same.parameters()), 15)
    for key, value in same.named_parameters():
        assert (found[key] - value).abs().max() < 1e-12


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_is_taken_over(name):
    net, same = network(), network()
    optimizer = OPTIMIZERS[name](net.parameters())
    train(net, optimizer, 6)
    found = reached(net, optimizer, 9)
    train(same, OPTIMIZERS[name](same.parameters()), 15)
    for key, value in same.named_parameters():
        assert (found[key] - value).abs().max() < 1e-12


def test_groups_keep_their_options():
    def make(net):
        return torch.optim.SGD([{"params": net[0].parameters(), "lr": 0.1}, {"params": net[2].parameters(), "weight_decay": 0.3}], lr=0.02)

    net, same = network(), network()
    found = reached(net, make(net), 10)
    train(same, make(same), 10)
    for key, value in same.named_parameters():
        assert (found[key] - value).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda n: torch.optim.LBFGS(n.parameters()), "LBFGS cannot"),
        (lambda n: torch.optim.SGD(n.parameters(), lr=0.1, maximize=True), "maximize"),
        (lambda n: torch.optim.SGD(n[0].parameters(), lr=0.1), "2.weight"),
        (lambda n: torch.optim.Adam([{"params": n[0].parameters(), "eps": 1e-3}, {"params": n[2].parameters()}]), "eps differs"),
    ],
)
def test_what_has_no_equal_is_refused_by_name(make, message):
    net = network()
    with pytest.raises(ValueError, match=message):
        reached(net, make(net), 3)
