"""What the engine asks of Python losses, on flat vectors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from . import _engine
from ._structure import Structure

Loss = Callable[..., Tensor]
Predict = Callable[[Any, Any], Tensor]
Constraint = tuple[str, float, float]


class Problem:
    """The flat face of two losses. Its attributes and methods are read by the compiled ``PythonProblem``."""

    def __init__(
        self,
        inner_loss: Loss,
        outer_loss: Loss,
        x: Structure,
        y: Structure,
        *,
        inner_data: Any = None,
        outer_data: Any = None,
        constraints: Optional[Mapping[str, Any]] = None,
        metrics: Optional[Callable[[Any, Any], Mapping[str, float]]] = None,
        initial_inner: Optional[Callable[[Any], Any]] = None,
        optimality: Optional[Callable[..., Any]] = None,
        symmetric: bool = False,
        sample_losses: Optional[Loss] = None,
        random: bool = False,
        predict: Optional[Predict] = None,
        per_element: Optional[Mapping[str, Tensor]] = None,
        saved: bool = False,
    ) -> None:
        if x.dtype != y.dtype or x.device != y.device:
            raise ValueError(f"x is {x.dtype} on {x.device} and y is {y.dtype} on {y.device}; they should agree.")
        self._inner_loss, self._outer_loss = inner_loss, outer_loss
        self._x, self._y = x, y
        self._inner_data, self._outer_data = inner_data, outer_data
        self._metrics, self._initial_inner, self._optimality = metrics, initial_inner, optimality
        self.outer_parts, self.inner_parts = x.parts, y.parts
        self.x0 = x.start
        self.constraints = _constraints(constraints, x)
        self.inner_samples, self.outer_samples = _samples(inner_data, "inner_data"), _samples(outer_data, "outer_data")
        self.has_initial_inner = initial_inner is not None
        self.y0 = None if self.has_initial_inner else y.start
        self._per_element = dict(per_element or {})
        self.has_rule_hyperparameters = bool(self._per_element)
        self.has_optimality_map = optimality is not None
        self.symmetric = symmetric
        self.has_metrics = metrics is not None
        self._sample_losses = sample_losses
        self.has_sample_losses = sample_losses is not None
        self.random = random
        self._predict, self.has_predict = predict, predict is not None
        if self.has_predict and (self.inner_samples == 0 or self.outer_samples == 0):
            raise ValueError("predict(y, batch) is called with the rows of inner_data and of outer_data; give both.")
        self._saved = saved
        self._by_rows: set[str] = set()  # losses that ask for views which transposed matrices do not have
        self.compiled: Any = None  # a Compiled whose programs are used again

    @property
    def dtype(self) -> str:
        return str(self._x.dtype).removeprefix("torch.")

    def with_sample_losses(self, sample_losses: Optional[Loss]) -> Problem:
        twin = copy.copy(self)
        twin._sample_losses, twin.has_sample_losses = sample_losses, sample_losses is not None
        return twin

    def in_double(self) -> Problem:
        return _ProblemInDouble(self)

    @property
    def identity(self) -> str:
        """Shapes, dtype and a hash of the data: what a resumed run must find again. Empty where nothing is written to a directory:
        hashing the data may take longer than a hypergradient."""
        if not self._saved:
            return ""
        data = _engine.fingerprint([*_leaves(self._inner_data), *_leaves(self._outer_data)])
        return f"x {self._x.parts}, y {self._y.parts}, {self._x.dtype}, data {data}"

    def inner_loss(self, x: Tensor, y: Tensor, samples: Optional[Tensor], step: int) -> Tensor:
        return self._loss(self._inner_loss, self._inner_data, x, y, samples, "inner_loss")

    def outer_loss(self, x: Tensor, y: Tensor, samples: Optional[Tensor], step: int) -> Tensor:
        return self._loss(self._outer_loss, self._outer_data, x, y, samples, "outer_loss")

    def data(self, which: str) -> list[Tensor]:
        return _leaves(self._inner_data if which == "inner_loss" else self._outer_data)

    def inner_outputs(self, y: Tensor, samples: Optional[Tensor]) -> Tensor:
        return self._outputs(y, _rows(self._inner_data, samples))

    def outer_outputs(self, y: Tensor, samples: Optional[Tensor]) -> Tensor:
        return self._outputs(y, _rows(self._outer_data, samples))

    def inner_loss_of_outputs(self, x: Tensor, z: Tensor, samples: Optional[Tensor], step: int) -> Tensor:
        return self._of(self._inner_loss, self._inner_data, x, z, samples, "inner_loss")

    def outer_loss_of_outputs(self, x: Tensor, z: Tensor, samples: Optional[Tensor], step: int) -> Tensor:
        return self._of(self._outer_loss, self._outer_data, x, z, samples, "outer_loss")

    def _at(self, y: Tensor, what: str, call: Callable[[Any], Any]) -> Any:
        """``call`` of y as the user's function ``what`` sees it: without a copy, unless it has refused that once."""
        if what not in self._by_rows:
            try:
                return call(self._y.seen_by_loss(y))
            except RuntimeError as error:
                if not self._y.transposed or "view size is not compatible" not in str(error):
                    raise
                self._by_rows.add(what)
        return call(self._y.like(y))

    def _outputs(self, y: Tensor, batch: Any) -> Tensor:
        assert self._predict is not None
        predict = self._predict
        z = self._at(y, "predict", lambda seen: predict(seen, batch))
        if not isinstance(z, Tensor):
            raise TypeError(f"predict should return a tensor of outputs, got {type(z).__name__}.")
        return z

    def _loss(self, loss: Loss, data: Any, x: Tensor, y: Tensor, samples: Optional[Tensor], what: str) -> Tensor:
        if self.has_predict:
            return self._of(loss, data, x, self._outputs(y, _rows(data, samples)), samples, what)
        value: Tensor = self._at(y, what, lambda seen: self._of(loss, data, x, seen, samples, what))
        return value

    def _of(self, loss: Loss, data: Any, x: Tensor, seen: Any, samples: Optional[Tensor], what: str) -> Tensor:
        args = [self._x.seen_by_loss(x), seen]
        if data is not None:
            args.append(_rows(data, samples))
        value = loss(*args)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{what} should return a scalar tensor, got {got}.")
        return value if value.dim() == 0 else value.reshape(())

    def outer_sample_losses(self, x: Tensor, y: Tensor, samples: Optional[Tensor], step: int) -> Tensor:
        assert self._sample_losses is not None
        sample_losses, at_x = self._sample_losses, self._x.seen_by_loss(x)
        batch = [] if self._outer_data is None else [_rows(self._outer_data, samples)]
        losses = self._at(y, "sample_losses", lambda seen: sample_losses(at_x, seen, *batch))
        if not isinstance(losses, Tensor) or losses.dim() != 1:
            got = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
            raise TypeError(f"sample_losses should return one number for each outer sample, a tensor [n], got {got}.")
        mean, whole = losses.detach().mean().item(), self.outer_loss(x, y, samples, step).item()
        if abs(mean - whole) > 1e-4 * (abs(whole) + losses.detach().abs().mean().item()):
            raise ValueError(f"sample_losses have the mean {mean:.6g} where outer_loss is {whole:.6g}; the two should be equal.")
        return losses

    def optimality_map(self, x: Tensor, y: Tensor, samples: Optional[Tensor], step: int) -> Tensor:
        assert self._optimality is not None
        value = self._optimality(self._x.seen_by_loss(x), self._y.seen_by_loss(y))
        flat = self._y.flat(value)
        if flat.shape != y.shape:
            raise ValueError(f"The optimality map returned {flat.numel()} numbers for {y.numel()} unknowns; as many as y has are needed.")
        return flat

    def initial_inner(self, x: Tensor) -> Tensor:
        assert self._initial_inner is not None
        return self._y.joined(self._initial_inner(self._x.seen_by_loss(x)), "initial_inner(x)")

    def rule_hyperparameters(self, x: Tensor, t: int) -> list[tuple[str, Tensor]]:
        return list(self._per_element.items())

    def metrics(self, x: Tensor, y: Tensor) -> dict[str, float]:
        assert self._metrics is not None
        with torch.no_grad():
            metrics, at_x = self._metrics, self._x.seen_by_loss(x)
            return {k: float(v) for k, v in self._at(y, "metrics", lambda seen: metrics(at_x, seen)).items()}


class _InDouble(TorchFunctionMode):
    """Every torch function is given float64 for float32, so that a loss whose data are float32 is computed in double."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "__get__":  # of an attribute, such as a shape
            return func(*args, **(kwargs or {}))
        return func(*tree_map(_double, args), **tree_map(_double, kwargs or {}))


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.dtype == torch.float32 else value


class _ProblemInDouble(Problem):
    """The same problem in float64, data that the losses take from their closures included; for references."""

    def __init__(self, problem: Problem) -> None:
        self.__dict__.update(problem.__dict__)
        self._x, self._y = problem._x.in_double(), problem._y.in_double()
        self.x0, self.y0 = problem.x0.double(), None if problem.y0 is None else problem.y0.double()
        self._per_element = {name: value.double() for name, value in problem._per_element.items()}

    def inner_loss(self, *args: Any) -> Tensor:
        with _InDouble():
            return super().inner_loss(*args).double()

    def outer_loss(self, *args: Any) -> Tensor:
        with _InDouble():
            return super().outer_loss(*args).double()

    def outer_sample_losses(self, *args: Any) -> Tensor:
        with _InDouble():
            return super().outer_sample_losses(*args).double()

    def inner_outputs(self, *args: Any) -> Tensor:
        with _InDouble():
            return super().inner_outputs(*args).double()

    def outer_outputs(self, *args: Any) -> Tensor:
        with _InDouble():
            return super().outer_outputs(*args).double()

    def inner_loss_of_outputs(self, *args: Any) -> Tensor:
        with _InDouble():
            return super().inner_loss_of_outputs(*args).double()

    def outer_loss_of_outputs(self, *args: Any) -> Tensor:
        with _InDouble():
            return super().outer_loss_of_outputs(*args).double()

    def initial_inner(self, *args: Any) -> Tensor:
        with _InDouble():
            return super().initial_inner(*args).double()


def _leaves(data: Any) -> list[Tensor]:
    if data is None:
        return []
    if isinstance(data, Tensor):
        return [data]
    if isinstance(data, Mapping):
        return [leaf for value in data.values() for leaf in _leaves(value)]
    if isinstance(data, Sequence):
        return [leaf for value in data for leaf in _leaves(value)]
    raise TypeError(f"Data should be tensors, or tuples and dictionaries of tensors, got {type(data).__name__}.")


def _samples(data: Any, what: str) -> int:
    sizes = {leaf.shape[0] if leaf.dim() else 0 for leaf in _leaves(data)}
    if len(sizes) > 1:
        raise ValueError(f"{what} holds tensors of {sorted(sizes)} samples; their first dimensions should agree.")
    return sizes.pop() if sizes else 0


def _rows(data: Any, samples: Optional[Tensor]) -> Any:
    if samples is None:
        return data
    if isinstance(data, Tensor):
        return data.index_select(0, samples.to(data.device))
    if isinstance(data, Mapping):
        return {key: _rows(value, samples) for key, value in data.items()}
    return tuple(_rows(value, samples) for value in data)


def _constraints(constraints: Optional[Mapping[str, Any]], x: Structure) -> list[Constraint]:
    if not constraints:
        return []
    inf = float("inf")
    found: dict[str, Constraint] = {}
    for name, constraint in constraints.items():
        if name not in x.names:
            raise ValueError(f"constraints names {name!r}; the parts of x are {', '.join(x.names)}.")
        if constraint == "simplex":
            found[name] = ("simplex", 0.0, 1.0)
        elif constraint == "positive":
            found[name] = ("box", 0.0, inf)
        elif isinstance(constraint, Sequence) and not isinstance(constraint, str) and len(constraint) == 2:
            lower, upper = constraint
            found[name] = ("box", -inf if lower is None else float(lower), inf if upper is None else float(upper))
        else:
            raise ValueError(f'constraints[{name!r}] should be "simplex", "positive" or (lower, upper), got {constraint!r}.')
    return [found.get(name, ("none", -inf, inf)) for name in x.names]
