"""Optimisers of torch.optim as inner rules, with their options, groups and state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor

from . import _engine
from ._structure import Structure

# For each optimiser: the engine's rule, its options by torch's names, and the state's tensors in the order of the rule's slots.
_KNOWN: dict[str, tuple[str, list[str], list[str]]] = {
    "SGD": ("sgd", ["momentum", "dampening", "weight_decay", "nesterov"], ["momentum_buffer"]),
    "Adam": ("adam", ["betas", "eps", "weight_decay", "amsgrad"], ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]),
    "AdamW": ("adamw", ["betas", "eps", "weight_decay", "amsgrad"], ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]),
    "RMSprop": (
        "rmsprop",
        ["alpha", "eps", "weight_decay", "momentum", "centered"],
        ["square_avg", "grad_avg", "momentum_buffer"],
    ),
    "Adagrad": ("adagrad", ["lr_decay", "weight_decay", "initial_accumulator_value", "eps"], ["sum"]),
    "Adadelta": ("adadelta", ["rho", "eps", "weight_decay"], ["square_avg", "acc_delta"]),
    "Adamax": ("adamax", ["betas", "eps", "weight_decay"], ["exp_avg", "exp_inf"]),
}
_HARMLESS = {
    "params",
    "lr",
    "foreach",
    "fused",
    "capturable",
    "differentiable",
    "param_names",
    "initial_lr",
    "decoupled_weight_decay",
}


@dataclass(frozen=True)
class Imported:
    """A torch optimiser in the engine's terms."""

    options: dict[str, Any]  # keys of [inner]
    per_element: dict[str, Tensor]  # hyperparameters that differ between groups, [dy]
    state: list[Tensor]  # [dy] each; empty: fresh
    state_steps: int


def imported(optimizer: torch.optim.Optimizer, y: Structure) -> Imported:
    """Reads an optimiser whose parameters are those of y.

    Raises ValueError, by name, for an optimiser or an option that has no equal here, and for parameters that are not y's.
    """
    kind = type(optimizer).__name__
    if kind not in _KNOWN or type(optimizer) is not getattr(torch.optim, kind):
        raise ValueError(f"torch.optim's {', '.join(_KNOWN)} can be inner rules; {kind} cannot.")
    rule, keys, slots = _KNOWN[kind]
    groups = optimizer.param_groups
    if kind == "Adam" and any(g.get("decoupled_weight_decay") for g in groups):
        rule = "adamw"
    for group in groups:
        if group.get("maximize"):
            raise ValueError(f"{kind}: maximize=True has no equal here; negate the inner loss.")
        for key in group:
            if key not in keys and key not in _HARMLESS and key != "maximize":
                raise ValueError(f"{kind}: the option {key!r} has no equal here.")
    group_of = _groups_of_parts(optimizer, y, kind)

    options: dict[str, Any] = {"rule": rule}
    per_element: dict[str, Tensor] = {}
    first = groups[0]
    fed = set(_engine.rule_hyperparameters(rule))
    if kind == "SGD" and any(g["momentum"] for g in groups):
        fed |= {"momentum", "dampening"}
    for key in ["lr", *keys]:
        values = [group[key] for group in groups]
        plain = [tuple(map(float, v)) if isinstance(v, (tuple, list)) else float(v) if isinstance(v, Tensor) else v for v in values]
        if all(v == plain[0] for v in plain):
            options[key] = list(plain[0]) if isinstance(plain[0], tuple) else plain[0]
        elif key in fed:
            per_element[key] = torch.cat(
                [torch.full((n,), float(values[g]), dtype=y.dtype, device=y.device) for n, g in zip(y.sizes, group_of)]
            )
        else:
            raise ValueError(f"{kind}: {key} differs between the parameter groups ({plain}), and {rule} has one for all.")
    state, steps = _state_of(optimizer, y, kind, slots, first)
    return Imported(options, per_element, state, steps)


def _groups_of_parts(optimizer: torch.optim.Optimizer, y: Structure, kind: str) -> list[int]:
    by_id = {id(p): g for g, group in enumerate(optimizer.param_groups) for p in group["params"]}
    parameters = y.originals
    missing = [name for name, p in parameters.items() if id(p) not in by_id]
    if missing:
        raise ValueError(f"{kind} does not hold {', '.join(missing)} of y; make it of y's own parameters.")
    if len(by_id) != len(parameters):
        raise ValueError(f"{kind} holds {len(by_id)} parameters and y {len(parameters)}; they should be the same.")
    return [by_id[id(p)] for p in parameters.values()]


def _state_of(
    optimizer: torch.optim.Optimizer, y: Structure, kind: str, slots: list[str], group: Mapping[str, Any]
) -> tuple[list[Tensor], int]:
    states: list[Optional[Mapping[str, Any]]] = [optimizer.state.get(p) or None for p in y.originals.values()]
    seen = [s for s in states if s]
    if not seen or (kind == "Adagrad" and all(float(s["step"]) == 0 for s in seen)):
        return [], 0
    if len(seen) != len(states):
        raise ValueError(f"{kind}: only some parameters have a state; step all of them, or none.")
    steps = {int(s["step"]) for s in seen if "step" in s}
    if len(steps) > 1:
        raise ValueError(f"{kind}: the parameters have taken different numbers of steps ({sorted(steps)}).")
    present = [slot for slot in slots if seen[0].get(slot) is not None]
    state = [torch.cat([s[slot].reshape(-1).to(y.dtype) for s in seen]) for slot in present]
    # SGD counts no steps; all that counts there is that its buffer is no longer fresh.
    return state, steps.pop() if steps else 1 if state else 0
