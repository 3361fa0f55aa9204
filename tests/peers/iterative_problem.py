"""The smallest program with Betty's IterativeProblem; it prints how it ended."""

import torch
from betty.configs import Config, EngineConfig
from betty.engine import Engine
from betty.problems import ImplicitProblem, IterativeProblem


class Outer(ImplicitProblem):
    def training_step(self, batch):
        return self.inner(batch).sum()


class Inner(IterativeProblem):
    def training_step(self, batch):
        return self.forward(batch).square().sum() + self.outer(batch).sum()


def made(kind, name, **config):
    net = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    return kind(name=name, module=net, optimizer=optimizer, train_data_loader=[torch.ones(1, 1)], config=Config(**config))


outer, inner = made(Outer, "outer"), made(Inner, "inner", type="default", unroll_steps=1)
dependencies = {"u2l": {outer: [inner]}, "l2u": {inner: [outer]}}
try:
    Engine(config=EngineConfig(train_iters=1, strategy="cpu"), problems=[outer, inner], dependencies=dependencies).run()
    print("ran")
except Exception as error:
    print("FAILED", type(error).__name__, error)
