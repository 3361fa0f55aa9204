"""Whole runs: minimise F, go on with a run, look at one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

import numpy as np
import torch
from torch import Tensor, nn

from . import _engine
from ._hypergradient import inner_options
from ._options import assignments
from ._problem import Loss, Predict, Problem
from ._show import bar, pyplot
from ._structure import Structure, Variables
from ._torch_rules import Imported

if TYPE_CHECKING:
    import matplotlib.figure

Callback = Callable[[Mapping[str, Any]], Optional[str]]
"""Sees each record; returns None to go on, "stop" to end the run in order, "abort" to end it at once."""


@dataclass(frozen=True)
class Given:
    """What a run was asked to do: the problem, and the options as the engine reads them."""

    problem: Problem
    options: list[str]
    xs: Structure
    ys: Structure
    rule: Optional[Imported] = None

    @property
    def rule_state(self) -> tuple[list[Tensor], int]:
        return (self.rule.state, self.rule.state_steps) if self.rule else ([], 0)

    def refuse_a_used_rule(self, who: str) -> None:
        if self.rule is not None and self.rule.state:
            raise ValueError(f"{who} looks at an inner solve that begins afresh; the optimiser given as rule has taken steps already.")


@dataclass(frozen=True)
class Run:
    """What a run came to.

    x and y (the inner solution at x) have the structure that the run was given; ``records`` holds the lines of log.jsonl as
    dictionaries, record k at x after k updates. ``outcome`` is "done", "budget", "stopped", "aborted" or "diverged"; ``status``
    the worst of the hypergradients', "OK", "WARN" or "BAD", with its ``message``. ``cost`` counts oracle calls, and has seconds
    and peak_bytes.
    """

    x: Any
    y: Any
    records: list[dict[str, Any]]
    outcome: str
    status: str
    message: str
    steps: int
    rollbacks: int
    cost: Mapping[str, float]
    directory: Optional[Path] = None
    given: Optional[Given] = field(default=None, repr=False, compare=False)

    @property
    def history(self) -> Any:
        """The records as a table with a column for each metric: a pandas DataFrame where pandas is installed, else a list of rows."""
        rows = [_row(record) for record in self.records]
        try:
            import pandas as pd
        except ImportError:
            return rows
        return pd.DataFrame(rows)

    def plot(self) -> matplotlib.figure.Figure:
        """Losses, hypergradient norm and stationarity over the outer steps."""
        figure: matplotlib.figure.Figure
        plt = pyplot("Run.plot")
        figure, (losses, norms) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
        steps = [r["step"] for r in self.records]
        for key, label in (("outer_loss", "outer loss"), ("inner_loss", "inner loss")):
            losses.plot(steps, [r[key] for r in self.records], label=label)
        for key, label in (("hypergradient_norm", "‖hypergradient‖"), ("stationarity", "stationarity")):
            norms.plot(steps, [r[key] for r in self.records], label=label)
        norms.set_yscale("log")
        for axes in (losses, norms):
            axes.set_xlabel("outer step")
            axes.legend(frameon=False)
        return figure


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    plain = {name: value for name, value in record.items() if not isinstance(value, (dict, list))}
    return {**plain, **record["metrics"], "seconds": record["machine"]["seconds"]}


def _short(number: Optional[float], digits: int) -> str:
    return "nan" if number is None else f"{number:.{digits}g}"  # a record holds None for what is not finite


class _Progress:
    """Collects the records, shows a bar, and asks the callback."""

    def __init__(self, callback: Optional[Callback], progress: bool, steps: int) -> None:
        self.records: list[dict[str, Any]] = []
        self._callback = callback
        self._bar = bar(steps, "bilevel") if progress else None

    def __call__(self, line: str) -> str:
        record = json.loads(line)
        self.records.append(record)
        if self._bar is not None:
            self._bar.n = record["step"]
            self._bar.set_postfix(outer=_short(record["outer_loss"], 4), norm=_short(record["hypergradient_norm"], 2), refresh=False)
            self._bar.refresh()
        return (self._callback(record) if self._callback else None) or "continue"

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def prepared(
    inner_loss: Loss,
    outer_loss: Loss,
    x: Variables,
    y: Variables,
    *,
    inner: Optional[Mapping[str, Any]] = None,
    hypergradient: Optional[Mapping[str, Any]] = None,
    outer: Optional[Mapping[str, Any]] = None,
    run: Optional[Mapping[str, Any]] = None,
    initial_inner: Optional[Callable[[Any], Any]] = None,
    **problem: Any,
) -> Given:
    """What ``minimize`` is given, made ready for the engine. ``problem``: further arguments of :class:`Problem`."""
    xs, ys = Structure(x, "x"), Structure(y, "y", class_major=True)
    solve, rule = inner_options(inner, ys)
    if initial_inner is not None:
        solve.setdefault("start", "cold")
    flat = Problem(inner_loss, outer_loss, xs, ys, initial_inner=initial_inner, per_element=rule.per_element if rule else None, **problem)
    tables = {"inner": solve, "hypergradient": hypergradient or {}, "outer": outer or {}, "run": run or {}}
    return Given(flat, assignments(tables), xs, ys, rule)


def minimize(
    inner_loss: Loss,
    outer_loss: Loss,
    x: Variables,
    y: Variables,
    *,
    steps: int = 100,
    algorithm: str = "double-loop",
    estimator: str = "implicit",
    inner: Optional[Mapping[str, Any]] = None,
    hypergradient: Optional[Mapping[str, Any]] = None,
    outer: Optional[Mapping[str, Any]] = None,
    inner_data: Any = None,
    outer_data: Any = None,
    constraints: Optional[Mapping[str, Any]] = None,
    initial_inner: Optional[Callable[[Any], Any]] = None,
    metrics: Optional[Callable[[Any, Any], Mapping[str, float]]] = None,
    random: bool = False,
    predict: Optional[Predict] = None,
    seed: int = 0,
    out: Union[str, Path, None] = None,
    callback: Optional[Callback] = None,
    progress: bool = True,
    **run: Any,
) -> Run:
    """Minimises F(x) = outer_loss(x, y*(x)), y*(x) = argmin over y of inner_loss(x, y).

    Losses, x, y, data, ``initial_inner``, ``random`` and ``predict`` are as in :func:`hypergradient`.

    Args:
        steps: outer updates.
        algorithm: "double-loop"; or "soba", "saba", "ma-soba", "srba" or "bome", which move x and y together along batches of
            ``inner_data`` and ``outer_data`` and have their own few keys of ``inner`` and ``outer`` (their pages name them);
            or "hpm", a population of double loops in the box that ``constraints`` give, with
            ``outer={"population": {"members": 8}}``, and without hypergradients "pbt" and "random-search".
        estimator, hypergradient: the estimator of a double loop and its options, the keys of [hypergradient].
        inner: options of the inner solve, the keys of [inner]; without any, 100 steps of gradient descent at a safe step size.
        outer: options of the outer optimiser, the keys of [outer]: ``{"rule": "adam", "lr": 0.1}``.
        constraints: for parts of x by name: "positive", "simplex", or (lower, upper), None meaning no bound.
        metrics: ``metrics(x, y) -> dict`` of numbers to report beside the losses.
        out: a directory for the run: configuration, log, checkpoints. ``bilevel.resume`` goes on from it.
        callback: sees each record; returns "stop" or "abort" to end the run.
        progress: a tqdm bar, where tqdm is installed.
        run: further keys of [run]: ``max_seconds=60``, ``checkpoint_every=10`` …

    Returns:
        A :class:`Run`. Numerical failure is no exception: divergence is rolled back, and told in it.

    Raises:
        bilevel.Error: for an unknown option, a wrong value, or an ``out`` that holds another run. What losses, metrics and callback
            raise comes out as it is, Ctrl-C too; a run with ``out`` can then be gone on with by :func:`resume`.
    """
    given = prepared(
        inner_loss,
        outer_loss,
        x,
        y,
        inner=inner,
        hypergradient={**({"estimator": estimator} if algorithm in ("double-loop", "hpm") else {}), **(hypergradient or {})},
        outer={"steps": steps, **(outer or {})},
        run={"seed": seed, "algorithm": algorithm, **run},
        inner_data=inner_data,
        outer_data=outer_data,
        constraints=constraints,
        initial_inner=initial_inner,
        metrics=metrics,
        random=random,
        predict=predict,
        saved=out is not None,
    )
    experiment = _engine.Experiment(given.problem, given.options)
    watch = _Progress(callback, progress, steps)
    directory = None if out is None else Path(out)

    def started() -> None:
        if directory is not None:
            _save_start(directory, given)

    try:
        found = experiment.minimize("" if out is None else str(out), watch, started, *given.rule_state)
    finally:
        watch.close()
    return _run_of(found, given, watch.records, directory)


def resume(
    directory: Union[str, Path],
    inner_loss: Loss,
    outer_loss: Loss,
    *,
    x: Optional[nn.Module] = None,
    y: Optional[nn.Module] = None,
    inner_data: Any = None,
    outer_data: Any = None,
    constraints: Optional[Mapping[str, Any]] = None,
    initial_inner: Optional[Callable[[Any], Any]] = None,
    metrics: Optional[Callable[[Any, Any], Mapping[str, float]]] = None,
    random: bool = False,
    predict: Optional[Predict] = None,
    callback: Optional[Callback] = None,
    progress: bool = True,
) -> Run:
    """Goes on with the run in ``directory`` to the same end, bit for bit.

    Functions are not saved with a run, so everything that was a function, a module or data is given again, as in :func:`minimize`;
    shapes, dtypes and a hash of the data are compared with those of the run. ``x`` and ``y`` are given where they were modules.

    Returns:
        A :class:`Run` with all records, those from before included. x and y are None where the run had ended already.

    Raises:
        FileNotFoundError: where there is no run of Python losses. ValueError and bilevel.Error: for what differs from what the run
            was given.
    """
    directory = Path(directory)
    problem, xs, ys = given_again(
        directory,
        inner_loss,
        outer_loss,
        x=x,
        y=y,
        inner_data=inner_data,
        outer_data=outer_data,
        constraints=constraints,
        initial_inner=initial_inner,
        metrics=metrics,
        random=random,
        predict=predict,
        saved=True,
    )
    watch = _Progress(callback, progress, 0)
    try:
        found = _engine.resume(str(directory), problem, watch)
    finally:
        watch.close()
    return _run_of(found, Given(problem, [], xs, ys), _logged(directory), directory)


def given_again(
    directory: Path, inner_loss: Loss, outer_loss: Loss, *, x: Optional[nn.Module], y: Optional[nn.Module], **problem: Any
) -> tuple[Problem, Structure, Structure]:
    """The problem of the run in ``directory``, whose functions, modules and data are given again."""
    xs, ys, per_element = _load_start(directory, x, y)
    return Problem(inner_loss, outer_loss, xs, ys, per_element=per_element, **problem), xs, ys


@dataclass(frozen=True)
class SavedRun:
    """A run directory, read: its summary, its log, and x and y by the names of their parts."""

    directory: Path
    summary: Mapping[str, Any]
    records: list[dict[str, Any]]
    x: Mapping[str, Tensor]
    y: Mapping[str, Tensor]
    config: str

    history = Run.history
    plot = Run.plot


def load_run(directory: Union[str, Path]) -> SavedRun:
    """What a run left in its directory, from the command line or from Python.

    x and y are dictionaries of the parts by name (y of several inner problems with these as first dimension), empty while the run
    has not ended, as ``summary`` is. Nothing is unpickled.

    Raises:
        FileNotFoundError: where the directory holds no run.
    """
    directory = Path(directory)
    if not (directory / "config.toml").exists():
        raise FileNotFoundError(f"{directory} holds no run: config.toml is missing.")
    summary, start = directory / "summary.json", directory / "start.json"
    layout = json.loads((directory / "layout.json").read_text())
    transposed = json.loads(start.read_text()).get("transposed", {}) if start.exists() else {}

    def parts(name: str) -> dict[str, Tensor]:
        path = directory / f"{name}.npy"
        if not path.exists():
            return {}
        return _pieces(torch.from_numpy(np.load(path, allow_pickle=False)), layout[name]["parts"], transposed.get(name, []))

    return SavedRun(
        directory,
        json.loads(summary.read_text()) if summary.exists() else {},
        _logged(directory),
        parts("x"),
        parts("y"),
        (directory / "config.toml").read_text(),
    )


def _pieces(flat: Tensor, parts: list[dict[str, Any]], transposed: list[str]) -> dict[str, Tensor]:
    """The parts of a vector [size], or of several, as the losses see them."""
    found = {}
    for p in parts:
        piece = flat[..., p["offset"] : p["offset"] + p["size"]].reshape([*flat.shape[:-1], *p["shape"]])
        found[p["name"]] = piece.mT.contiguous() if p["name"] in transposed else piece
    return found


def _logged(directory: Path) -> list[dict[str, Any]]:
    path = directory / "log.jsonl"
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:  # a line that a killed run left half written
            break
    return records


def _run_of(found: Mapping[str, Any], given: Given, records: list[dict[str, Any]], directory: Optional[Path]) -> Run:
    x, y = found["x"], found["y"]
    return Run(
        x=None if x is None else given.xs.like(x),
        y=None if y is None else given.ys.like(y),
        records=records,
        outcome=found["outcome"],
        status=found["status"],
        message=found["message"],
        steps=found["steps"],
        rollbacks=found["rollbacks"],
        cost=found["cost"],
        directory=directory,
        given=given,
    )


def _save_start(directory: Path, given: Given) -> None:
    kinds, transposed = {}, {}
    for name, s in (("x", given.xs), ("y", given.ys)):
        np.save(directory / f"start-{name}.npy", s.start.cpu().numpy())
        kinds[name] = "module" if s.module is not None else "tensor" if s.single else "dictionary"
        transposed[name] = sorted(s.transposed)
    per_element = given.rule.per_element if given.rule else {}
    for name, values in per_element.items():
        np.save(directory / f"rule-{name}.npy", values.cpu().numpy())
    start = {"kinds": kinds, "transposed": transposed, "device": str(given.xs.device), "per_element": list(per_element)}
    (directory / "start.json").write_text(json.dumps(start))


def _load_start(directory: Path, x: Optional[nn.Module], y: Optional[nn.Module]) -> tuple[Structure, Structure, dict[str, Tensor]]:
    if not (directory / "start.json").exists():
        raise FileNotFoundError(f"{directory} holds no run of Python losses: start.json is missing. `bilevel resume` goes on with others.")
    start = json.loads((directory / "start.json").read_text())
    layout = json.loads((directory / "layout.json").read_text())

    def saved(name: str) -> Tensor:
        return torch.from_numpy(np.load(directory / f"{name}.npy", allow_pickle=False)).to(start["device"])

    structures = []
    for name, module in (("x", x), ("y", y)):
        kind = start["kinds"][name]
        if (kind == "module") != (module is not None):
            raise ValueError(
                f"{name} was a {kind} in this run; " + (f"give it again: {name}=module." if kind == "module" else "leave it out.")
            )
        flat = saved(f"start-{name}")
        pieces = _pieces(flat, layout[name]["parts"], start.get("transposed", {}).get(name, []))
        structure = Structure(module if module is not None else pieces[name] if kind == "tensor" else pieces, name, class_major=name == "y")
        structure.start = flat
        structures.append(structure)
    return structures[0], structures[1], {name: saved(f"rule-{name}") for name in start.get("per_element", [])}
