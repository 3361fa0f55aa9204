"""Programs for the compiled oracle: derivatives of losses, traced, cut in two, and compiled ahead of time.

One trace of g gives the graph of all of them at once, as functions of x, y, a direction w [dy] and a direction u [dx]:

    g,   r = ∂y g,   H w,   (∂x r)ᵀ w,   ∂x r u

What does not depend on w is the first program, "linearization"; it also returns what the products need of it, so that a product
repeats nothing that is costly. Tensors that a loss captures become inputs of the programs: a change of theirs is seen at once.
"""

from __future__ import annotations

import hashlib
import operator
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Protocol

import torch
from torch import Tensor, fx

from . import _engine
from ._problem import Problem

aten = torch.ops.aten


class Losses(Protocol):
    """The flat losses of a problem: those of Python, or of a task of the engine."""

    def inner_loss(self, x: Tensor, y: Tensor, samples: Optional[Tensor], step: int) -> Tensor: ...
    def outer_loss(self, x: Tensor, y: Tensor, samples: Optional[Tensor], step: int) -> Tensor: ...


class Compiled:
    """An oracle that keeps its compiled programs from one call to the next: ``bilevel.hypergradient(..., oracle=compiled)``.

    With ``oracle="compiled"`` each call traces the losses again, which takes a second and notices whatever has changed. Here they are
    traced once for each shape of x, y, data and batch; after that x, y, ``inner_data`` and ``outer_data`` may have other values, while
    numbers and tensors that the losses take from elsewhere stay what they were in the first call. Use one for each pair of losses.
    """

    def __init__(self) -> None:
        self._traced: dict[tuple[Any, ...], _Traced] = {}


class Programs:
    """The programs of one problem, traced when first asked for and compiled unless the cache has them; read by the engine."""

    def __init__(self, losses: Losses) -> None:
        self._losses = losses
        kept: Optional[Compiled] = getattr(losses, "compiled", None)
        self._traced = {} if kept is None else kept._traced

    def program(self, kind: str, x: Tensor, y: Tensor, samples: Optional[Tensor]) -> tuple[_engine.LoadedProgram, list[Tensor]]:
        """A kind of program for batches of this size, and the tensors that it takes after x, y and the samples."""
        if x.device.type != "cpu":
            raise _engine.Error(f'oracle = "compiled": programs are compiled for the CPU, and x is on {x.device}; use oracle = "autodiff".')
        which = "outer_loss" if kind == "outer" else "inner_loss"
        data: list[Tensor] = self._losses.data(which) if isinstance(self._losses, Problem) else []
        shapes = [(t.shape, t.stride(), t.dtype) for t in (x, y, *data)]
        key = (which, None if samples is None else len(samples), torch.get_num_threads(), *shapes)
        if key not in self._traced:
            self._traced[key] = _trace(getattr(self._losses, which), which, x, y, samples, data)
        traced = self._traced[key]
        if kind not in traced.programs:
            traced.programs[kind] = _loaded(traced.program(kind), f"{which}, {kind}")
        return traced.programs[kind], [c if row is None else data[row] for c, row in zip(traced.constants, traced.data_rows)]


@dataclass(frozen=True)
class _Traced:
    """The graph of all derivatives of one loss at one size of batch. A program's inputs are a direction where it takes one, then x, y,
    the samples, the constants and, for a product, what is saved."""

    graph: fx.Graph
    constants: list[Tensor]
    directions: dict[str, fx.Node]  # w, u
    inputs: list[fx.Node]
    outputs: dict[str, fx.Node]
    saved: list[fx.Node]
    data_rows: list[Optional[int]]  # which of the data a constant is; None: captured by the loss
    programs: dict[str, _engine.LoadedProgram] = field(default_factory=dict)

    def program(self, kind: str) -> fx.GraphModule:
        if kind in ("gradient", "outer"):
            return _extract(self.inputs, list(self.outputs.values())[: 2 if kind == "gradient" else 3])
        if kind == "linearization":
            return _extract(self.inputs, [self.outputs["value"], self.outputs["residual"], *self.saved])
        names = {"hvp": ["hvp"], "vjp": ["hvp", "cross"], "jvp_x": ["jvp_x"]}[kind]
        direction = self.directions["u" if kind == "jvp_x" else "w"]
        return _extract([direction, *self.inputs, *self.saved], [self.outputs[name] for name in names])


def _trace(
    loss: Callable[..., Tensor], which: str, x: Tensor, y: Tensor, samples: Optional[Tensor], data: Sequence[Tensor] = ()
) -> _Traced:
    from torch.fx.experimental.proxy_tensor import make_fx

    batch = [] if samples is None else [samples]
    inner = which == "inner_loss"

    def derivatives(x: Tensor, y: Tensor, w: Tensor, u: Tensor, *batch: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
            value = loss(x, y, batch[0] if batch else None, 0)
            by_y, by_x = _gradients(value, (y, x), None, create_graph=inner)
            if not inner:
                return value, by_y, by_x
            hvp, cross = _gradients(by_y, (y, x), w)
            return value, by_y, hvp, cross, *_gradients(by_x, (y,), u)

    args = [x.detach(), y.detach(), torch.zeros_like(y), torch.zeros_like(x), *batch]
    tables: Any = torch._decomp.core_aten_decompositions()
    try:
        traced = make_fx(derivatives, decomposition_table=tables, tracing_mode="fake", _allow_non_fake_inputs=True)(*args)
        _refuse_what_has_no_program(traced.graph, which)
        if any(_schema(node) and _schema(node).is_mutable for node in traced.graph.nodes):
            _refuse_changes_of_constants(traced.graph)
            traced = make_fx(torch.func.functionalize(traced), tracing_mode="fake", _allow_non_fake_inputs=True)(*args)
    except RuntimeError as error:  # torch's own; what else a loss raises comes out as it is
        raise _engine.Error(
            f'oracle = "compiled": {which} cannot be traced: {_first_line(error)} A loss must be made of differentiable torch operations '
            f'alone, with no decision by the values of tensors and no .item(); oracle = "autodiff" takes any loss.'
        ) from error
    constants = _lift_constants(traced)
    _simplify(traced.graph)
    nodes = list(traced.graph.nodes)
    placeholders, results = [n for n in nodes if n.op == "placeholder"], list(nodes[-1].args[0])
    names = ["value", "residual", "hvp", "cross", "jvp_x"] if inner else ["value", "y", "x"]
    outputs = dict(zip(names, results))
    directions = dict(zip("wu", placeholders[2:4]))
    inputs = placeholders[:2] + placeholders[4:]
    saved = _saved(traced.graph, directions["w"], inputs, [outputs["hvp"], outputs["cross"]]) if inner else []
    rows = [next((i for i, d in enumerate(data) if _is_same(c, d)), None) for c in constants]
    return _Traced(traced.graph, constants, directions, inputs, outputs, saved, rows)


def _is_same(a: Tensor, b: Tensor) -> bool:
    return (a.data_ptr(), a.shape, a.stride(), a.dtype) == (b.data_ptr(), b.shape, b.stride(), b.dtype)


def _gradients(output: Tensor, inputs: Sequence[Tensor], cotangent: Optional[Tensor], create_graph: bool = False) -> list[Tensor]:
    """Zeros where the output does not depend on an input."""
    if not output.requires_grad:
        return [torch.zeros_like(i) for i in inputs]
    return list(
        torch.autograd.grad(
            output, inputs, cotangent, retain_graph=True, create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
    )


def _first_line(error: Exception) -> str:
    if type(error).__name__ == "GuardOnDataDependentSymNode":
        return "it decides by the value of a tensor (aten._local_scalar_dense, which is .item() or bool())."
    return str(error).strip().split("\n", 1)[0].rstrip(".") + "."


def _schema(node: fx.Node) -> Any:
    return getattr(node.target, "_schema", None)


def _refuse_what_has_no_program(graph: fx.Graph, which: str) -> None:
    reasons = {
        torch.Tag.nondeterministic_seeded: "draws random numbers",
        torch.Tag.data_dependent_output: "looks at the value of a tensor",
    }
    for node in graph.nodes:
        found = [reason for tag, reason in reasons.items() if tag in getattr(node.target, "tags", ())]
        if any(isinstance(size, torch.SymInt) for size in getattr(node.meta.get("val"), "shape", ())):
            found.append("has shapes that depend on values")
        if found:
            raise _engine.Error(f'oracle = "compiled": {which} {found[0]} ({node.target}); use oracle = "autodiff".')


def _refuse_changes_of_constants(graph: fx.Graph) -> None:
    def root(node: Any) -> Any:
        while isinstance(node, fx.Node) and _is_view(node):
            node = node.args[0]
        return node

    for node in graph.nodes:
        if _schema(node) and _schema(node).is_mutable and getattr(root(node.args[0]), "op", "") == "get_attr":
            raise _engine.Error(
                f'oracle = "compiled": a loss changes a tensor that it captures ({node.target}; buffers of batch normalisation in training '
                f'mode are such); use oracle = "autodiff".'
            )


def _lift_constants(traced: fx.GraphModule) -> list[Tensor]:
    """Makes an input of each tensor that the losses captured; they follow the others."""
    last = [n for n in traced.graph.nodes if n.op == "placeholder"][-1]
    constants: list[Tensor] = []
    found: dict[str, fx.Node] = {}
    for node in list(traced.graph.nodes):
        if node.op != "get_attr":
            continue
        if node.target not in found:
            value = operator.attrgetter(node.target)(traced)
            with traced.graph.inserting_after(last):
                last = found[node.target] = traced.graph.placeholder(f"constant_{len(constants)}")
            last.meta["val"] = value.detach()
            constants.append(value.detach())
        node.replace_all_uses_with(found[node.target])
        traced.graph.erase_node(node)
    return constants


def _simplify(graph: fx.Graph) -> None:
    """Takes out aliases, repetitions, and the inputs of what only asks for their shape."""
    fills = {aten.full_like.default: None, aten.zeros_like.default: 0, aten.ones_like.default: 1}
    for node in list(graph.nodes):
        if node.target in (aten.alias.default, aten.detach.default):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target in fills and node.meta["val"].is_contiguous():
            value = node.meta["val"]
            fill = node.args[1] if node.target is aten.full_like.default else fills[node.target]
            with graph.inserting_before(node):
                plain = graph.call_function(
                    aten.full.default, (list(value.shape), fill), {"dtype": value.dtype, "device": value.device, "pin_memory": False}
                )
            plain.meta = dict(node.meta)
            node.replace_all_uses_with(plain)
            graph.erase_node(node)
    first: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op == "call_function":
            same = first.setdefault(repr((node.target, node.args, node.kwargs)), node)
            if same is not node:
                node.replace_all_uses_with(same)
                graph.erase_node(node)
    graph.eliminate_dead_code()


def _is_view(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and _is_view(node.args[0])
    schema = _schema(node)
    return schema is not None and any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)


_CHEAP = {
    aten.add, aten.sub, aten.mul, aten.neg, aten.where, aten.ne, aten.eq, aten.gt, aten.ge, aten.lt, aten.le, aten.logical_not,
    aten.bitwise_not, aten.relu, aten.abs, aten.sign, aten.clamp, aten.clamp_min, aten.minimum, aten.maximum, aten._to_copy,
    aten.reciprocal, aten.div,
}  # fmt: skip
"""Operations on single elements that cost less than reading a result from memory."""


def _is_cheap(node: fx.Node) -> bool:
    return node.op == "call_function" and (
        _is_view(node) or not node.all_input_nodes or getattr(node.target, "overloadpacket", None) in _CHEAP
    )


def _saved(graph: fx.Graph, w: fx.Node, inputs: Sequence[fx.Node], outputs: Iterable[fx.Node]) -> list[fx.Node]:
    """What the products with w take over from the linearization: whatever they use of it that is not an input, a view, a constant, or
    cheap to find again from those."""
    depends, needed = {w}, set(_ancestors(outputs))
    boundary: dict[fx.Node, None] = {}
    for node in graph.nodes:
        if node in needed and any(i in depends for i in node.all_input_nodes):
            depends.add(node)
            boundary.update((i, None) for i in node.all_input_nodes if i not in depends)
    wanted: set[fx.Node] = set()
    for node in boundary:
        while _is_view(node):  # of which one input is what is looked at
            node = node.all_input_nodes[0]
        wanted.add(node)
    saved: list[fx.Node] = []
    at_hand = set(inputs)
    for node in graph.nodes:
        if _is_cheap(node) and at_hand.issuperset(node.all_input_nodes):
            at_hand.add(node)
        elif node in wanted and node not in at_hand:
            saved.append(node)
            at_hand.add(node)
    return saved


def _ancestors(outputs: Iterable[fx.Node]) -> list[fx.Node]:
    found: dict[fx.Node, None] = {}
    stack = list(outputs)
    while stack:
        node = stack.pop()
        if node not in found:
            found[node] = None
            stack.extend(node.all_input_nodes)
    return list(found)


def _extract(inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]) -> fx.GraphModule:
    """The outputs as a function of the inputs, which may be any nodes; whatever is not among these is computed from them."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for i, node in enumerate(inputs):
        copies[node] = graph.placeholder(f"input_{i}")
        copies[node].meta = {"val": node.meta["val"]}
    needed: set[fx.Node] = set()
    stack = list(outputs)
    while stack:
        node = stack.pop()
        if node not in copies and node not in needed:
            needed.add(node)
            stack.extend(node.all_input_nodes)
    for node in outputs[0].graph.nodes:
        if node in needed:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    graph.output(tuple(copies[node] for node in outputs))
    return fx.GraphModule(torch.nn.Module(), graph)


def _specification(program: fx.GraphModule) -> str:
    """The graph, and all that the compiled program assumes of its inputs and of the machine."""
    values = [n.meta["val"] for n in program.graph.nodes if n.op == "placeholder"]
    shapes = [f"{v.dtype} {tuple(v.shape)} {v.stride()} {v.device}" for v in values]
    return "\n".join([_engine.compiled_for(), *shapes, program.code])


def _loaded(program: fx.GraphModule, what: str) -> _engine.LoadedProgram:
    return _engine.LoadedProgram(str(_compiled(program, what)))


def _compiled(program: fx.GraphModule, what: str) -> Path:
    """The package of the program in the cache, named by the hash of its specification; made where there is none."""
    package = Path(_engine.compiled_cache()) / f"{hashlib.sha256(_specification(program).encode()).hexdigest()[:32]}.pt2"
    if package.exists():
        return package
    args = tuple(
        torch.empty_strided(v.size(), v.stride(), dtype=v.dtype, device=v.device)
        for v in (n.meta["val"] for n in program.graph.nodes if n.op == "placeholder")
    )
    package.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=package.parent) as folder:
        fresh = str(Path(folder) / "program.pt2")
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch about itself
                torch._inductor.aoti_compile_and_package(torch.export.export(program, args, strict=False), package_path=fresh)
        except Exception as error:
            raise _engine.Error(
                f'oracle = "compiled": the program of {what} could not be compiled: {_first_line(error)} It takes a C++ compiler, and '
                f'none once it is in the cache ({package.parent}); oracle = "autodiff" needs neither.'
            ) from error
        os.replace(fresh, package)
    return package
