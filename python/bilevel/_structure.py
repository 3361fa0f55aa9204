"""Dictionaries of tensors, single tensors and modules, and the flat vectors that the engine works on."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Union

import torch
from torch import Tensor, nn

from . import _engine

Variables = Union[Tensor, Mapping[str, Tensor], nn.Module]
"""What x and y may be: one tensor, a dictionary of tensors, or a module, whose parameters that require a gradient are meant."""


class ModuleAt(Mapping[str, Tensor]):
    """A module with other values for its parameters, as a loss sees it.

    Call it as the module is called; ``y["0.weight"]`` is a parameter. Buffers are the module's own, and are not differentiated.
    """

    def __init__(self, module: nn.Module, parameters: dict[str, Tensor]) -> None:
        self._module = module
        self._parameters = parameters

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(self._module, self._parameters, args, kwargs)

    def __getitem__(self, name: str) -> Tensor:
        return self._parameters[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)


class Structure:
    """Names, shapes, dtype and device of the parts of one flat vector, and the way from one form to the other.

    With ``class_major``, a tall matrix [d, C] of few columns lies in the vector by columns, [C, d], and a loss sees it transposed:
    torch's ``X @ W`` and its gradients are two to seven times as fast then, for MKL is slow where the last dimension is that short.
    """

    def __init__(self, variables: Variables, what: str, class_major: bool = False) -> None:
        self.module = variables if isinstance(variables, nn.Module) else None
        self.single = isinstance(variables, Tensor)
        parts = _parts(variables, what)
        self.originals = parts
        self.names = list(parts)
        self.shapes = [tuple(p.shape) for p in parts.values()]
        self.sizes = [p.numel() for p in parts.values()]
        may = class_major and self.module is None  # a module's matrices are [out, in] already
        self.transposed = {name for name, shape in zip(self.names, self.shapes) if may and len(shape) == 2 and _tall(*shape)}
        first = next(iter(parts.values()))
        self.dtype, self.device = first.dtype, first.device
        for name, part in parts.items():
            if part.dtype != self.dtype or part.device != self.device:
                raise ValueError(
                    f"{what}[{name!r}] is {part.dtype} on {part.device}, and {what}[{self.names[0]!r}] is {self.dtype} on "
                    f"{self.device}: all parts should have one dtype and device."
                )
        if self.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{what} should be float32 or float64, got {self.dtype}.")
        self._engine_parts = _engine.Parts(self.parts)

    @cached_property
    def start(self) -> Tensor:
        """The values that were given, [size]."""
        with torch.no_grad():
            return self.flat(self.originals)

    @property
    def parts(self) -> list[tuple[str, list[int]]]:
        """Names and shapes of the parts as they lie in the vector."""
        return [(name, list(shape[::-1] if name in self.transposed else shape)) for name, shape in zip(self.names, self.shapes)]

    def in_double(self) -> Structure:
        twin = copy.copy(self)
        twin.dtype, twin.start = torch.float64, self.start.double()
        return twin

    @property
    def size(self) -> int:
        return sum(self.sizes)

    def flat(self, variables: Variables) -> Tensor:
        """[size], with a graph where the parts have one."""
        return torch.cat([self._turned(name, part).reshape(-1) for name, part in zip(self.names, _parts(variables, "variables").values())])

    def joined(self, variables: Variables, what: str) -> Tensor:
        """As ``flat``, of parts with the same names and shapes, in whatever order; a single node of the graph."""
        given = _parts(variables, what)
        if self.single:
            given = dict(zip(self.names, given.values()))
        if {name: tuple(part.shape) for name, part in given.items()} != dict(zip(self.names, self.shapes)):
            wanted, got = (
                ", ".join(f"{n} {list(s)}" for n, s in pairs)
                for pairs in (zip(self.names, self.shapes), [(n, p.shape) for n, p in given.items()])
            )
            raise ValueError(f"{what} should have {wanted}, got {got}.")
        return self._engine_parts.join([self._turned(name, given[name]) for name in self.names])

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        pieces = torch.split_with_sizes(flat, self.sizes)
        return {name: self._turned(name, piece.view(shape)) for (name, shape), piece in zip(self.parts, pieces)}

    def _turned(self, name: str, part: Tensor) -> Tensor:
        return part.mT if name in self.transposed else part

    def seen_by_loss(self, flat: Tensor) -> Any:
        """What a loss is given for these variables."""
        if self.single:
            ((name, shape),) = self.parts
            return self._turned(name, flat.view(shape))
        if type(flat) is not Tensor:  # a tracer's, which knows plain operations alone
            parts = self.split(flat)
        else:
            parts = {name: self._turned(name, part) for name, part in zip(self.names, self._engine_parts.split(flat))}
        return parts if self.module is None else ModuleAt(self.module, parts)

    def like(self, flat: Tensor) -> Any:
        """A tensor where the variables were one, a dictionary of tensors otherwise; all by rows."""
        parts = {name: part.contiguous() for name, part in self.split(flat).items()}
        return parts[self.names[0]] if self.single else parts


def _tall(rows: int, columns: int) -> bool:
    return rows >= 64 and 2 <= columns <= 16


def _parts(variables: Variables, what: str) -> dict[str, Tensor]:
    if isinstance(variables, Tensor):
        return {what: variables}
    if isinstance(variables, nn.Module):
        found: dict[str, Tensor] = {name: p for name, p in variables.named_parameters() if p.requires_grad}
        if not found:
            raise ValueError(f"{what} is a module without a parameter that requires a gradient.")
        return found
    if isinstance(variables, Mapping):
        for name, part in variables.items():
            if not isinstance(part, Tensor):
                raise TypeError(f"{what}[{name!r}] should be a tensor, got {type(part).__name__}.")
        if not variables:
            raise ValueError(f"{what} is an empty dictionary; it should hold at least one tensor.")
        return dict(variables)
    raise TypeError(f"{what} should be a tensor, a dictionary of tensors or an nn.Module, got {type(variables).__name__}.")
