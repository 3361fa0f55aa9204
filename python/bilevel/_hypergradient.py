"""One hypergradient of two Python losses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Optional, Union

import torch
from torch import Tensor

from . import _engine
from ._compile import Compiled
from ._options import assignments
from ._problem import Loss, Predict, Problem
from ._structure import Structure, Variables
from ._torch_rules import Imported, imported


@dataclass(frozen=True)
class Certificate:
    """How right a hypergradient is, always about the function that its estimator names.

    ``error_bound`` (absolute, 2-norm) is None where there is no bound; ``bound_reason`` says what it rests on, or why there is
    none. Keys that only some estimators have are in ``more``.
    """

    differentiates: str
    stationarity: float
    relative_residual: Optional[float] = None
    error_bound: Optional[float] = None
    distance_to_F: Optional[float] = None
    bound_reason: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Hypergradient:
    """dF/dx and all that is known about it.

    ``value`` and ``direct`` (∂x f) have the structure of x; ``q`` ≈ H⁻¹∂y f, where the estimator has one, that of y. ``status`` is
    "OK", "WARN" or "BAD", with the reason in ``message``. ``inner_loss`` and ``outer_loss`` are those at ``y``, the inner solution
    that was reached. ``cost`` counts gradients, HVPs, cross products and forward passes, and has seconds and peak_bytes.
    """

    value: Any
    direct: Any
    q: Any
    y: Any
    inner_loss: float
    outer_loss: float
    norm: float
    status: str
    message: str
    certificate: Certificate
    cost: Mapping[str, float]


def certificate_of(values: Mapping[str, Any]) -> Certificate:
    known = {k: v for k, v in values.items() if k in Certificate.__dataclass_fields__ and k != "more" and v is not None}
    more = {k: v for k, v in values.items() if k not in Certificate.__dataclass_fields__}
    return Certificate(**{"stationarity": float("nan"), **known}, more=more)


def hypergradient(
    inner_loss: Loss,
    outer_loss: Loss,
    x: Variables,
    y: Variables,
    *,
    estimator: str = "implicit",
    inner: Optional[Mapping[str, Any]] = None,
    solved: bool = False,
    inner_data: Any = None,
    outer_data: Any = None,
    initial_inner: Optional[Callable[[Any], Any]] = None,
    random: bool = False,
    oracle: Union[str, Compiled] = "auto",
    predict: Optional[Predict] = None,
    seed: int = 0,
    bound: bool = False,
    check: bool = False,
    **options: Any,
) -> Hypergradient:
    """The derivative of F(x) = outer_loss(x, y*(x)), y*(x) = argmin over y of inner_loss(x, y), at x.

    Args:
        inner_loss: g, a function ``loss(x, y)`` or, with ``inner_data``, ``loss(x, y, batch)`` that returns a scalar tensor built by
            differentiable operations. x and y come as they were given: a tensor, a dictionary of tensors, or for an
            ``nn.Module`` an object that is called as the module is.
        outer_loss: f, likewise, with ``outer_data``.
        x: the outer variables; they are not changed.
        y: where the inner solve starts, or its solution where ``solved``; not changed either.
        estimator: "implicit" (default), "unrolled" and the others of ``bilevel.estimators()``.
        inner: the options of the inner solve, the keys of [inner] in a configuration: ``{"rule": "adam", "lr": 0.1, "steps": 200}``.
            ``rule`` may be a torch optimiser of y's own parameters: its options, groups and state are taken over.
        solved: y is the inner solution already; nothing is solved.
        inner_data, outer_data: a tensor, or a tuple or dictionary of tensors with one row a sample, from which the losses' batches
            are drawn; all rows unless the options say otherwise.
        initial_inner: y₀ as a function of x (few-shot learning), differentiated by unrolled, forward and moreau.
        random: the losses draw random numbers (dropout); they are then called with torch's generators seeded.
        oracle: who differentiates the losses: "autodiff" ("auto" is the same here), "finite-difference", or "compiled": programs that
            are compiled once and kept in a cache, for small models several times faster. A :class:`Compiled` spares calls in a loop the
            second that finding them takes; docs/oracles.md.
        predict: ``predict(y, batch)``, a model's outputs, for estimators that work on them ("functional", ``curvature="gauss-newton"``).
            The losses then take the outputs in the place of y, ``loss(x, z, batch)``; inner_data and outer_data must be given.
        bound: work for an error bound and the distance to F, at the cost of some tens to hundreds of products.
        check: compare with slopes of F, for which the inner problem is solved again eight times.
        options: those of the estimator, the keys of [hypergradient]: ``solver="cg"``, ``iterations=20``, ``damping=0.0`` …
            Formulas and sources stand on the estimators' pages, docs/algorithms.

    Returns:
        A :class:`Hypergradient`, whose ``value`` has the structure of x.

    Raises:
        bilevel.Error: for an unknown option or a wrong value, naming what would be right. Numerical failure is no exception: see
            ``status``. What a loss raises comes out as it is.
    """
    xs, ys = Structure(x, "x"), Structure(y, "y", class_major=True)
    solve, rule = inner_options(inner, ys)
    problem = Problem(
        inner_loss,
        outer_loss,
        xs,
        ys,
        inner_data=inner_data,
        outer_data=outer_data,
        initial_inner=initial_inner,
        random=random,
        predict=predict,
        per_element=rule.per_element if rule else None,
    )
    if isinstance(oracle, Compiled):
        problem.compiled, oracle = oracle, "compiled"
    if solved:
        solve = {"steps": 0, "lr": 1.0, **solve}
    tables = {"inner": solve, "hypergradient": {"estimator": estimator, **options}, "run": {"seed": seed, "oracle": oracle}}
    if initial_inner is not None:
        solve.setdefault("start", "cold")
    found = _engine.Experiment(problem, assignments(tables)).hypergradient(
        rule.state if rule else [], rule.state_steps if rule else 0, bound, check
    )
    return of_engine(found, xs, ys)


def inner_options(inner: Optional[Mapping[str, Any]], ys: Structure) -> tuple[dict[str, Any], Optional[Imported]]:
    """The keys of [inner]; a torch optimiser as its ``rule`` is replaced by what it says."""
    options = dict(inner or {})
    optimizer = options.get("rule")
    if not isinstance(optimizer, torch.optim.Optimizer):
        return options, None
    rule = imported(optimizer, ys)
    del options["rule"]
    if rule.state:
        options["carry_state"] = True
    return {**rule.options, **options}, rule


def of_engine(found: Mapping[str, Any], xs: Structure, ys: Structure) -> Hypergradient:
    report = json.loads(found["json"])
    q: Optional[Tensor] = found["q"]
    return Hypergradient(
        value=xs.like(found["value"]),
        direct=xs.like(found["direct"]),
        q=None if q is None or q.dim() != 1 else ys.like(q),
        y=ys.like(found["y"]),
        inner_loss=report["inner_loss"],
        outer_loss=report["outer_loss"],
        norm=report["norm"],
        status=report["status"],
        message=report["message"],
        certificate=certificate_of(report["certificate"]),
        cost=report["cost"],
    )
