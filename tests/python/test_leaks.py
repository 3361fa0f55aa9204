"""Nothing stays of a thousand hypergradients: no object, no cycle, no memory; and nothing of one that was broken off."""

import gc
import signal
import weakref

import pytest
import torch

import bilevel

SIZE = 20_000  # of y, in double: a vector that leaked once in each call would be 160 MB after a thousand
COUNT = 1000


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


class Losses:
    """A pair of losses that can be watched."""

    def __init__(self):
        self.target = torch.linspace(0, 1, SIZE, dtype=torch.double)

    def inner(self, x, y):
        return 0.5 * ((y - self.target).square() + x.exp() * y.square()).sum()

    def outer(self, x, y):
        return 0.5 * (y - 0.5 * self.target).square().sum()


def hypergradient(losses, estimator):
    x, y = torch.zeros(1, dtype=torch.double), torch.zeros(SIZE, dtype=torch.double)
    bilevel.hypergradient(losses.inner, losses.outer, x, y, estimator=estimator, inner={"lr": 0.5, "steps": 2})


def unrolled(losses, memory):
    x, y = torch.zeros(1, dtype=torch.double, requires_grad=True), torch.zeros(SIZE, dtype=torch.double)
    losses.outer(x, bilevel.unroll("sgd", losses.inner, y, 2, x=x, lr=0.5, memory=memory)).backward()


def layer(losses, linear_solver):
    t = losses.target
    solution = bilevel.implicit_layer(
        lambda x: t / (1 + x.exp()), lambda x, y: y - t + x.exp() * y, symmetric=True, linear_solver=linear_solver
    )
    x = torch.zeros(1, dtype=torch.double, requires_grad=True)
    losses.outer(x, solution(x)).backward()


@pytest.mark.parametrize(
    ("call", "how"),
    [(hypergradient, "implicit"), (hypergradient, "unrolled"), (unrolled, "graphs"), (unrolled, "checkpoints"), (layer, "cg")],
)
def test_nothing_stays_of_a_thousand(call, how):
    gone = []

    def many(count):
        for _ in range(count):
            losses = Losses()
            gone.append(weakref.ref(losses))
            call(losses, how)

    many(200)  # pools and caches are filled
    gc.collect()
    gone.clear()
    objects, bytes_ = len(gc.get_objects()), resident()
    gc.disable()
    try:
        many(COUNT)
        assert all(ref() is None for ref in gone)  # freed without the collector: there is no cycle
        gone.clear()
        assert gc.collect() < 20  # one cycle in each call would be 1,000 objects and more
    finally:
        gc.enable()
    assert len(gc.get_objects()) - objects < 20  # one object kept in each call would be 1,000
    # A twentieth of what one vector kept in each call would be, and what fragmentation of the heap explains.
    assert resident() - bytes_ < COUNT * SIZE * 8 / 20


def test_control_c_inside_a_loss_comes_out_and_leaves_nothing():
    losses = Losses()
    calls = []

    def interrupted(x, y):
        calls.append(1)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        return losses.inner(x, y)

    x, y = torch.zeros(1, dtype=torch.double), torch.zeros(SIZE, dtype=torch.double)
    given = {"estimator": "unrolled", "inner": {"lr": 0.5, "steps": 100}}
    with pytest.raises(KeyboardInterrupt):
        bilevel.hypergradient(interrupted, losses.outer, x, y, **given)
    assert len(calls) == 5  # the loss is not called again
    assert not x.any() and not y.any() and torch.is_grad_enabled()
    gone = weakref.ref(interrupted)
    del interrupted
    gc.collect()
    assert gone() is None
    assert bilevel.hypergradient(losses.inner, losses.outer, x, y, **given).status == "OK"


def test_an_exception_leaves_grad_mode_threads_and_generators_as_they_were():
    losses = Losses()
    torch.set_num_threads(2)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    def bad(x, y):
        torch.rand(1)
        raise RuntimeError("in the loss")

    x, y = torch.zeros(1, dtype=torch.double), torch.zeros(SIZE, dtype=torch.double)
    with pytest.raises(RuntimeError, match="in the loss"):
        bilevel.hypergradient(bad, losses.outer, x, y, random=True)
    assert torch.get_num_threads() == 2 and torch.is_grad_enabled()
    assert torch.equal(torch.rand(3), expected)
