"""Differentiable solutions: argmins, fixed points and roots inside a torch model, whoever finds them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Optional

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from . import _engine
from ._options import assignments
from ._problem import Problem
from ._structure import Structure, Variables

Map = Callable[[Any, Any], Any]
Solver = Callable[[Any], Any]


class Layer:
    """A function x ↦ y(x), differentiable by the implicit function theorem. See :func:`implicit_layer`."""

    def __init__(
        self, solver: Solver, residual: Map, *, symmetric: bool, linear_solver: str, warn_above: float, options: dict[str, Any]
    ) -> None:
        self._solver, self._residual = solver, residual
        self._symmetric, self._linear_solver, self._warn_above = symmetric, linear_solver, warn_above
        self._options = options

    def __call__(self, x: Variables) -> Any:
        xs = Structure(x, "x")
        found = _Found()
        flat: Tensor = _Implicit.apply(self, xs, found, xs.flat(x))  # type: ignore[no-untyped-call]
        return found.y.like(flat)

    def solve(self, x: Any) -> Any:
        with torch.no_grad():
            return self._solver(x)

    def derivative(self, xs: Structure, ys: Structure) -> Any:
        problem = Problem(_no_loss, _no_loss, xs, ys, optimality=self._residual, symmetric=self._symmetric)
        options = {"tolerance": 1e-10 if ys.dtype == torch.float64 else 1e-6, **self._options}
        return _engine.ImplicitDerivative(problem, assignments({"hypergradient": options}), self._linear_solver)

    def product(self, kind: str, xs: Structure, ys: Structure, *vectors: Tensor) -> Tensor:
        """ "vjp" or "jvp" at (x, y) with a vector."""
        plain = [_plain(v) for v in vectors]
        with temporarily_clear_interpreter_stack():  # torch.func wraps what is computed, and the engine works on numbers
            derivative = self.derivative(xs, ys)
            return self.checked(derivative.vjp(*plain) if kind == "vjp" else derivative.jvp(*plain))

    def checked(self, product: tuple[Tensor, str, str, float]) -> Tensor:
        value, status, message, residual = product
        if not residual <= self._warn_above:
            warnings.warn(
                f"The linear solve of an implicit layer left a relative residual of {residual:.1e} ({status}). {message}",
                stacklevel=3,
            )
        return value


class _Found:
    """The structure of y, known once a solution has been seen."""

    y: Structure


class _Implicit(torch.autograd.Function):
    @staticmethod
    def forward(layer: Layer, xs: Structure, found: _Found, x: Tensor) -> Tensor:
        structure = Structure(layer.solve(xs.like(x)), "y")
        found.y = structure
        start: Tensor = structure.start
        structure.start = start.detach()  # what is returned gets this node as its grad_fn: kept here, it would be a cycle
        return start

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Layer, Structure, _Found, Tensor], output: Tensor) -> None:
        ctx.layer, ctx.xs, ctx.found, x = inputs
        ctx.save_for_backward(x, output)
        ctx.save_for_forward(x, output)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, y_bar: Tensor) -> tuple[None, None, None, Tensor]:
        return None, None, None, ctx.layer.product("vjp", ctx.xs, ctx.found.y, *ctx.saved_tensors, y_bar)

    @staticmethod
    def jvp(ctx: Any, _layer: None, _xs: None, _found: None, x_dot: Tensor) -> Tensor:
        y_dot: Tensor = ctx.layer.product("jvp", ctx.xs, ctx.found.y, *ctx.saved_tensors, x_dot)
        return y_dot

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], layer: Layer, xs: Structure, found: _Found, x: Tensor) -> tuple[Tensor, int]:
        solutions = [_Implicit.apply(layer, xs, found, one) for one in x.unbind(in_dims[3])]  # type: ignore[no-untyped-call]
        return torch.stack(solutions), 0


def _plain(t: Tensor) -> Tensor:
    """The numbers of a tensor that torch.func may have wrapped."""
    while torch._C._functorch.is_functorch_wrapped_tensor(t):
        t = torch._C._functorch.get_unwrapped(t)
    return t.detach().contiguous()


def _no_loss(x: Any, y: Any) -> Tensor:
    raise NotImplementedError("A layer has no loss.")


def implicit_layer(
    solver: Solver,
    optimality: Map,
    *,
    symmetric: bool = False,
    linear_solver: Optional[str] = None,
    warn_above: float = 1e-4,
    **options: Any,
) -> Layer:
    """A layer y(x) with optimality(x, y(x)) = 0, whose y is found by ``solver``, whatever that is.

    Args:
        solver: ``solver(x) -> y``, run without a graph: scipy, a loop of yours, anything. x comes as the layer is called with it.
        optimality: ``optimality(x, y)``, in torch operations, of the structure and shapes of y; zero at the solution. For an argmin it
            is the gradient of the inner loss by y.
        symmetric: ∂optimality/∂y is a symmetric matrix, as it is for the gradient of a loss.
        linear_solver: of ``bilevel.linear_solvers()``; "cg" where symmetric, "gmres" otherwise.
        warn_above: a warning tells of a relative residual of the linear solve above it.
        options: of the linear solver; unless given, ``iterations=100`` and ``tolerance=1e-10`` (float32: 1e-6).

    Returns:
        A function of x. Its result can be differentiated once, in reverse and in forward mode, and it can stand under
        ``torch.vmap``, which calls the solver for each element.

    Raises:
        ValueError: when it is differentiated, where optimality(x, y) has not as many elements as y. A poor linear solve is a
            warning. What solver and optimality raise comes out as it is.

    Source: the implicit function theorem, dy/dx = −(∂y r)⁻¹ ∂x r; M. Blondel et al., *Efficient and modular implicit
    differentiation*, NeurIPS 2022.
    """
    return Layer(
        solver,
        optimality,
        symmetric=symmetric,
        linear_solver=linear_solver or ("cg" if symmetric else "gmres"),
        warn_above=warn_above,
        options={"iterations": 100, **options},
    )


def fixed_point_layer(
    map: Map,
    y0: Callable[[Any], Any],
    *,
    solver: Optional[Solver] = None,
    iterations: int = 1000,
    stop: float = 1e-10,
    **options: Any,
) -> Layer:
    """A layer y(x) = map(x, y(x)), such as a deep equilibrium.

    Args:
        map: ``map(x, y)``, of the structure and shapes of y.
        y0: ``y0(x)``: where the iteration starts.
        solver: in place of the plain iteration y ← map(x, y), which ends where a step is shorter than ``stop`` relative to y; a
            warning tells where ``iterations`` did not suffice.
        options: as for :func:`implicit_layer`.

    Returns:
        A function of x as :func:`implicit_layer` gives, with r = y − map(x, y).

    Source: S. Bai, J. Z. Kolter, V. Koltun, *Deep equilibrium models*, NeurIPS 2019.
    """

    def iterate(x: Any) -> Any:
        y = y0(x)
        for _ in range(iterations):
            new = map(x, y)
            if _distance(new, y) <= stop * (1.0 + _length(new)):
                return new
            y = new
        warnings.warn(f"fixed_point_layer: {iterations} iterations did not reach a relative step of {stop:g}.", stacklevel=2)
        return y

    return implicit_layer(solver or iterate, lambda x, y: _difference(y, map(x, y)), **options)


def root_layer(
    f: Map,
    y0: Callable[[Any], Any],
    *,
    solver: Optional[Solver] = None,
    iterations: int = 50,
    stop: float = 1e-10,
    **options: Any,
) -> Layer:
    """A layer y(x) with f(x, y(x)) = 0.

    Args:
        f: ``f(x, y)``, of the structure and shapes of y.
        y0: ``y0(x)``: where the search starts.
        solver: in place of Newton's method with a dense Jacobian, whose steps are halved until ‖f‖ falls; it ends at
            ‖f‖ ≤ ``stop`` (1 + ‖y‖), and a warning tells where ``iterations`` did not suffice.
        options: as for :func:`implicit_layer`.

    Returns:
        A function of x as :func:`implicit_layer` gives, with r = f.
    """

    def newton(x: Any) -> Any:
        ys = Structure(y0(x), "y0")
        y = ys.start

        def value(flat: Tensor) -> Tensor:
            return ys.flat(f(x, ys.like(flat)))

        r = value(y)
        for _ in range(iterations):
            if r.norm() <= stop * (1.0 + y.norm()):
                return ys.like(y)
            with torch.enable_grad():
                jacobian = torch.autograd.functional.jacobian(value, y)  # type: ignore[no-untyped-call]
            step = torch.linalg.lstsq(jacobian, -r.unsqueeze(1)).solution.squeeze(1)
            length = 1.0
            while length > 1e-6 and not value(y + length * step).norm() < r.norm():
                length /= 2
            y = y + length * step
            r = value(y)
        if not r.norm() <= stop * (1.0 + y.norm()):
            warnings.warn(f"root_layer: {iterations} Newton steps left ‖f‖ = {r.norm().item():.1e}.", stacklevel=2)
        return ys.like(y)

    return implicit_layer(solver or newton, f, **options)


def _difference(a: Any, b: Any) -> Any:
    return a - b if isinstance(a, Tensor) else {k: a[k] - b[k] for k in a}


def _length(a: Any) -> float:
    return float(a.norm()) if isinstance(a, Tensor) else sum(float(v.norm()) ** 2 for v in a.values()) ** 0.5


def _distance(a: Any, b: Any) -> float:
    return _length(_difference(a, b))
