"""unroll, and differentiable argmins, fixed points and roots."""

import os
import subprocess
import sys

import pytest
import torch

import bilevel
from conftest import close
from problems import E1_REVERSE, Logistic, Ridge, Sinusoids

D = torch.double


def test_unroll_gives_the_published_hypergradient():
    p = Logistic()
    x = p.x.clone().requires_grad_()
    y = bilevel.unroll("sgd", p.inner, p.y, 100, x=x, lr=0.1)
    p.outer(x, y).backward()
    assert (x.grad - torch.tensor(E1_REVERSE, dtype=D)).abs().max() < 1e-8


@pytest.mark.parametrize("memory", ["graphs", "states", "checkpoints"])
def test_unroll_reaches_start_hyperparameters_and_step_sizes(memory):
    p = Logistic()
    x, y0 = (0.5 * p.x).requires_grad_(), torch.linspace(-1, 1, 20, dtype=D).requires_grad_()
    lr = torch.linspace(0.05, 0.3, 6, dtype=D).requires_grad_()
    momentum = torch.tensor(0.8, dtype=D, requires_grad=True)

    def value(x, y0, lr, momentum):
        return p.outer(x, bilevel.unroll("sgd", p.inner, y0, 6, x=x, lr=lr, momentum=momentum, memory=memory))

    def plain(x, y0, lr, momentum):
        y, v = y0, torch.zeros_like(y0)
        for t in range(6):
            (g,) = torch.autograd.grad(p.inner(x, y), y, create_graph=True)
            v = momentum * v + g
            y = y - lr[t] * v
        return p.outer(x, y)

    given = (x, y0, lr, momentum)
    expected = torch.autograd.grad(plain(*given), given)
    for found, right in zip(torch.autograd.grad(value(*given), given), expected):
        close(found, right, 1e-11)


def test_unroll_is_maml():
    net = Sinusoids()
    total = 0.0
    for task in range(4):
        (s, t), (q, u) = Sinusoids.data(task)
        adapted = bilevel.unroll("sgd", lambda y, s=s, t=t: (y(s) - t).square().mean(), net, 3, lr=0.1)
        total = total + (torch.func.functional_call(net, adapted, (q,)) - u).square().mean() / 4
    total.backward()
    gradient = torch.cat([p.grad.reshape(-1) for p in net.parameters()])
    assert total.item() == pytest.approx(0.366958823003, abs=1e-10)
    assert gradient.norm().item() == pytest.approx(2.281281106048, abs=1e-9)
    assert gradient[0].item() == pytest.approx(-0.3328063653, abs=1e-9)


PEAK = """
import re
import sys
import torch
import bilevel
torch.set_num_threads(1)
a = torch.linspace(0.5, 1.5, 50_000, dtype=torch.double)
x = torch.zeros((), dtype=torch.double, requires_grad=True)
def train(steps, **given):
    return bilevel.unroll("sgd", lambda x, y: (0.5 * a * x.exp() * y - 1).dot(y), torch.zeros_like(a), steps, x=x, lr=0.05, **given)
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1))
train(3).sum().backward()
x.grad, before = None, peak()
train(400, memory="checkpoints", budget=sys.argv[1]).square().sum().backward()
print(x.grad.item(), peak() - before)
"""


def test_unroll_keeps_to_its_budget_of_bytes():
    """50,000 doubles are 0.4 MB: 400 states take 160 MB, 20 checkpoints and as many steps between them 16."""
    x = torch.zeros((), dtype=D, requires_grad=True)
    a = torch.linspace(0.5, 1.5, 50_000, dtype=D)
    curvature = a * x.exp()
    ((1 - (1 - 0.05 * curvature) ** 400) / curvature).square().sum().backward()

    def measured(budget):
        # Blocks go back to the system when they are freed, so that the process's own peak is what was allocated.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        done = subprocess.run([sys.executable, "-c", PEAK, budget], env=environment, capture_output=True, text=True, timeout=300)
        return done, [float(word) for word in done.stdout.split()]

    for budget in (20e6, 60e6):
        done, (gradient, peak) = measured(f"{budget / 1e6:.0f}MB")
        assert gradient == pytest.approx(x.grad.item(), rel=1e-10), done.stderr
        assert budget / 3 < peak < budget
    done, _ = measured("1MB")
    assert done.returncode != 0 and "is the least" in done.stderr


def test_backward_twice_solves_again():
    p = Logistic()
    x = p.x.clone().requires_grad_()
    loss = p.outer(x, bilevel.unroll("sgd", p.inner, p.y, 5, x=x, lr=0.1))
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(loss, x)
    assert torch.equal(first, second)


def test_e5_ridge_layer():
    p = Ridge()
    layer = bilevel.implicit_layer(lambda x: p.solve(x), lambda x, y: torch.func.grad(lambda y: p.inner(x, y))(y), symmetric=True)
    x = torch.tensor(5.0, dtype=D, requires_grad=True)
    y = layer(x)
    close(y.detach(), torch.tensor([16.51390727, 8.206254107, 23.62360791], dtype=D))
    expected = torch.tensor([-2.501716443, -1.267182865, -3.542636622], dtype=D)
    found = torch.stack([torch.autograd.grad(y[i], x, retain_graph=True)[0] for i in range(3)])
    close(found, expected, 1e-9)
    _, forward = torch.func.jvp(layer, (torch.tensor(5.0, dtype=D),), (torch.tensor(1.0, dtype=D),))
    close(forward, expected, 1e-9)


def test_e10_roots():
    x = torch.tensor([4.0, 9.0], dtype=D)
    root = bilevel.root_layer(lambda x, y: y * y - x, lambda x: torch.ones_like(x))
    close(torch.autograd.functional.jacobian(root, x), torch.diag(torch.tensor([1 / 4, 1 / 6], dtype=D)), 1e-9)

    x = torch.tensor([1.0, 2.0, 3.0], dtype=D)
    systematic = bilevel.implicit_layer(
        lambda x: torch.cat([(x + 2).sqrt(), -x.sqrt()]).flip(0), lambda x, y: (y * y).flip(0) - torch.cat([x + 2, x])
    )
    stack = torch.cat([torch.diag(1 / (2 * (x + 2).sqrt())), -torch.diag(1 / (2 * x.sqrt()))]).flip(0)
    close(torch.autograd.functional.jacobian(systematic, x), stack, 1e-9)


def test_e11_quadratic_programs():
    q = torch.tensor([1.0, -1.0, 0.5], dtype=D)
    for scale in (1.0, 3.0):
        Q = scale * torch.eye(3, dtype=D)
        layer = bilevel.implicit_layer(lambda q, Q=Q: -torch.linalg.solve(Q, q), lambda q, y, Q=Q: Q @ y + q, symmetric=True)
        close(layer(q), -q / scale, 1e-12)
        close(torch.autograd.functional.jacobian(layer, q), -torch.linalg.inv(Q), 1e-9)
    # A box by its projection: y = clip(y − (y + q)).
    box = bilevel.fixed_point_layer(lambda q, y: (y - (y + q)).clamp(-0.5, 0.5), lambda q: torch.zeros_like(q))
    q = torch.tensor([3.0, -3.0, 0.1], dtype=D)
    close(box(q), torch.tensor([-0.5, 0.5, -0.1], dtype=D), 1e-9)
    close(torch.autograd.functional.jacobian(box, q), torch.diag(torch.tensor([0.0, 0.0, -1.0], dtype=D)), 1e-9)


def test_a_deep_equilibrium_in_both_modes_and_under_vmap():
    W = 0.3 * torch.randn(6, 6, dtype=D)
    layer = bilevel.fixed_point_layer(lambda x, y: torch.tanh(W @ y + x), lambda x: torch.zeros_like(x))
    x, d = torch.randn(6, dtype=D), torch.randn(6, dtype=D)
    y = layer(x)
    slope = torch.diag(1 - y**2)
    expected = torch.linalg.solve(torch.eye(6, dtype=D) - slope @ W, slope)
    close(torch.autograd.functional.jacobian(layer, x), expected, 1e-8)
    close(torch.func.jvp(layer, (x,), (d,))[1], expected @ d, 1e-8)
    close(torch.func.grad(lambda x: layer(x).dot(d))(x), expected.T @ d, 1e-8)
    batch = torch.randn(4, 6, dtype=D)
    close(torch.vmap(layer)(batch), torch.stack([layer(one) for one in batch]), 1e-12)
    assert torch.autograd.gradcheck(layer, (x.clone().requires_grad_(),), atol=1e-6)


def test_a_layer_in_a_network_trains():
    p = Ridge()
    layer = bilevel.implicit_layer(lambda x: p.solve(x), lambda x, y: torch.func.grad(lambda y: p.inner(x, y))(y), symmetric=True)
    net = torch.nn.Linear(2, 1).double()
    u = torch.randn(2, dtype=D)
    before = None
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(30):
        loss = layer(torch.nn.functional.softplus(net(u)).squeeze()).square().sum()
        before = before or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.9 * before


def test_a_poor_linear_solve_is_told():
    A = torch.diag(torch.logspace(0, 8, 30, dtype=D))
    layer = bilevel.implicit_layer(lambda x: torch.linalg.solve(A, x), lambda x, y: A @ y - x, symmetric=True, iterations=3)
    x = torch.ones(30, dtype=D, requires_grad=True)
    with pytest.warns(UserWarning, match="relative residual"):
        layer(x).sum().backward()


def test_wrong_shapes_are_told():
    layer = bilevel.implicit_layer(lambda x: x, lambda x, y: y[:1] - x[:1])
    x = torch.ones(3, dtype=D, requires_grad=True)
    with pytest.raises(ValueError, match="as many as y has"):
        layer(x).sum().backward()
    with pytest.raises(ValueError, match="lr has shape"):
        bilevel.unroll("sgd", lambda y: y.sum(), torch.ones(3), 5, lr=torch.ones(2))
