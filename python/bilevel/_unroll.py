"""Differentiable inner training: what one hands to ``.backward()``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional, Union

import torch
from torch import Tensor

from . import _engine
from ._options import assignments
from ._problem import Problem
from ._structure import Structure, Variables


class _UnrolledProblem(Problem):
    """x is the concatenation of what the loss depends on, y₀, and those hyperparameters of the rule that carry a gradient."""

    def __init__(
        self, loss: Callable[..., Tensor], everything: Structure, x: Optional[Structure], y: Structure, fed: list[str], steps: int
    ) -> None:
        super().__init__(_no_loss, _no_loss, everything, y)
        self._loss_of_user, self._user_x, self._fed, self._steps = loss, x, fed, steps
        self._offset = 0 if x is None else x.size
        self.has_initial_inner = True
        self.has_rule_hyperparameters = bool(fed)

    def inner_loss(self, x: Tensor, y: Tensor, samples: Optional[Tensor], step: int) -> Tensor:
        at_x = [] if self._user_x is None else [self._user_x.seen_by_loss(x[: self._offset])]
        value: Tensor = self._at(y, "loss", lambda seen: self._loss_of_user(*at_x, seen))
        return value.reshape(())

    def initial_inner(self, x: Tensor) -> Tensor:
        return x[self._offset : self._offset + self._y.size]

    def rule_hyperparameters(self, x: Tensor, t: int) -> list[tuple[str, Tensor]]:
        found = []
        offset = self._offset + self._y.size
        for name, size in zip(self._fed, self._x.sizes[-len(self._fed) :]):
            value = x[offset : offset + size]
            found.append((name, value[0] if size == 1 else value[min(t, size - 1)] if size == self._steps else value))
            offset += size
        return found


def _no_loss(x: Any, y: Any) -> Tensor:  # never called: inner_loss is overridden, and the outer loss is the engine's
    raise NotImplementedError


class _Unroll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, engine: Any, x: Tensor) -> Tensor:
        ctx.engine = engine
        ctx.save_for_backward(x)
        result: Tensor = engine.forward(x.detach())
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, y_bar: Tensor) -> tuple[None, Tensor]:
        (x,) = ctx.saved_tensors
        return None, ctx.engine.backward(x, y_bar.contiguous())


def unroll(
    rule: str,
    loss: Callable[..., Tensor],
    y0: Variables,
    steps: int,
    *,
    x: Optional[Variables] = None,
    memory: str = "graphs",
    budget: Union[int, str] = 0,
    truncate: int = 0,
    **hyperparameters: Any,
) -> Any:
    """y after ``steps`` steps of ``rule`` on ``loss``, as a differentiable function of y0, x and the rule's hyperparameters.

    The result carries a gradient to every tensor among y0, x and ``hyperparameters`` that requires one, by ordinary
    ``.backward()``, with the engine's memory policies. It can be differentiated once.

    Args:
        rule: one of ``bilevel.rules()``, with torch.optim's meaning.
        loss: ``loss(y)``, or ``loss(x, y)`` where x is given. What it takes from its closure is a constant: whatever a gradient is
            wanted for belongs into x.
        y0: where training starts: a tensor, a dictionary of tensors, or a module.
        steps: T.
        x: what the loss depends on besides y.
        memory: what is kept of the T steps for the way back. "graphs": each step's graph, the fastest; "states": each step's y and
            state of the rule, one more gradient a step; "checkpoints": about 2√T of these, or what ``budget`` allows, and the steps
            between them again. All give the same numbers.
        budget: with "checkpoints", the most bytes that training and the way back may allocate together, as a number or as
            "200MB"; 0: none. Graphs or states are kept where they fit, else as many checkpoints as do (Griewank & Walther 2000).
        truncate: differentiate the last so many steps only; 0: all.
        hyperparameters: of the rule: ``lr=0.1, momentum=0.9``. Tensors get a gradient: a scalar, one value for each step ([T], T ≠ dy), or
            one for each element of y ([dy]).

    Returns:
        The structure of y0: a tensor or a dictionary of tensors.

    Raises:
        bilevel.Error: for an unknown rule or option, and for a budget that not even one checkpoint fits into, saying the least that
            would do. ValueError for a hyperparameter of another shape. What the loss raises comes out as it is.

    Source: D. Maclaurin, D. Duvenaud, R. Adams, *Gradient-based hyperparameter optimization through reversible learning*, ICML 2015;
    docs/algorithms/unrolled.md.
    """
    fed = {name: value for name, value in hyperparameters.items() if isinstance(value, Tensor)}
    ys = Structure(y0, "y0", class_major=all(value.numel() in (1, steps) for value in fed.values()))  # else in the order of the user's y
    xs = None if x is None else Structure(x, "x")
    pieces = {} if xs is None else {"x": xs.flat(x)}  # type: ignore[arg-type]
    pieces["y0"] = ys.flat(y0)
    for name, value in fed.items():
        if value.dim() > 1 or value.numel() not in (1, steps, ys.size):
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}; a scalar, [{steps}] for the steps or [{ys.size}] for y would be right."
            )
        pieces[f"rule.{name}"] = value.reshape(-1).to(ys.dtype)
    problem = _UnrolledProblem(loss, Structure(pieces, "x"), xs, ys, list(fed), steps)
    fixed = {name: value for name, value in hyperparameters.items() if name not in fed}
    tables = {
        "inner": {"rule": rule, "steps": steps, **fixed},
        "hypergradient": {"memory": memory, "steps": truncate, **({"budget": budget} if budget else {})},
    }
    engine = _engine.Unroll(problem, assignments(tables))
    reached = _Unroll.apply(engine, torch.cat(list(pieces.values())))  # type: ignore[no-untyped-call]
    return ys.like(reached)
