"""Whole runs: minimise F, go on with a run, look at one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

import numpy as np
import torch
from torch import Tensor, nn

from . import _engine
from ._hypergradient import inner_options
from ._options import assignments
from ._problem import Loss, Problem
from ._structure import Structure, Variables

if TYPE_CHECKING:
    import matplotlib.figure

Callback = Callable[[Mapping[str, Any]], Optional[str]]
"""Sees each record; returns None to go on, "stop" to end the run in order, "abort" to end it at once."""


@dataclass(frozen=True)
class Run:
    """What a run came to. x and y are as the run was given them; ``records`` holds the lines of log.jsonl as dictionaries."""

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
        try:
            import matplotlib.pyplot as plt
        except ImportError:
            raise ImportError("Run.plot draws with matplotlib, which is not installed: pip install matplotlib.") from None
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
        self._callback, self._bar = callback, None
        if progress:
            try:
                from tqdm.auto import tqdm
            except ImportError:
                return
            self._bar = tqdm(total=steps, desc="bilevel", delay=2.0, leave=False)

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
    seed: int = 0,
    out: Union[str, Path, None] = None,
    callback: Optional[Callback] = None,
    progress: bool = True,
    **run: Any,
) -> Run:
    """Minimises F(x) = outer_loss(x, y*(x)), y*(x) = argmin over y of inner_loss(x, y).

    Losses, x, y, data and ``initial_inner`` are as in :func:`hypergradient`.

    Args:
        steps: outer updates.
        algorithm: "double-loop", or "soba" or "saba", which move x and y together along batches of ``inner_data`` and ``outer_data``
            and read ``lr``, ``decay`` and ``batch`` of ``inner``, ``lr`` and ``batch`` of ``outer`` alone.
        estimator, hypergradient: the estimator of the double loop and its options, the keys of [hypergradient].
        inner: options of the inner solve, the keys of [inner]; without any, 100 steps of gradient descent at a safe step size.
        outer: options of the outer optimiser, the keys of [outer]: ``{"rule": "adam", "lr": 0.1}``.
        constraints: for parts of x by name: "positive", "simplex", or (lower, upper), None meaning no bound.
        metrics: ``metrics(x, y) -> dict`` of numbers to report beside the losses.
        out: a directory for the run: configuration, log, checkpoints. ``bilevel.resume`` goes on from it.
        callback: sees each record; returns "stop" or "abort" to end the run.
        run: further keys of [run]: ``max_seconds=60``, ``checkpoint_every=10`` …

    Returns:
        A :class:`Run`. Divergence is rolled back and told in it; misuse is a ``bilevel.Error``.
    """
    xs, ys = Structure(x, "x"), Structure(y, "y")
    solve, rule = inner_options(inner, ys)
    problem = Problem(
        inner_loss,
        outer_loss,
        xs,
        ys,
        inner_data=inner_data,
        outer_data=outer_data,
        constraints=constraints,
        initial_inner=initial_inner,
        metrics=metrics,
        random=random,
        per_element=rule.per_element if rule else None,
        saved=out is not None,
    )
    if initial_inner is not None:
        solve.setdefault("start", "cold")
    tables = {
        "inner": solve,
        "hypergradient": {**({"estimator": estimator} if algorithm == "double-loop" else {}), **(hypergradient or {})},
        "outer": {"steps": steps, **(outer or {})},
        "run": {"seed": seed, "algorithm": algorithm, **run},
    }
    experiment = _engine.Experiment(problem, assignments(tables))
    watch = _Progress(callback, progress, steps)
    directory = None if out is None else Path(out)

    def started() -> None:
        if directory is not None:
            _save_start(directory, xs, ys)

    try:
        state, taken = (rule.state, rule.state_steps) if rule else ([], 0)
        found = experiment.minimize("" if out is None else str(out), watch, started, state, taken)
    finally:
        watch.close()
    return _run_of(found, xs, ys, watch.records, directory)


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
    callback: Optional[Callback] = None,
    progress: bool = True,
) -> Run:
    """Goes on with the run in ``directory`` to the same end, bit for bit.

    Functions are not saved with a run, so everything that was a function, a module or data is given again; shapes, dtypes and a
    hash of the data are compared with those of the run.
    """
    directory = Path(directory)
    xs, ys = _load_start(directory, x, y)
    problem = Problem(
        inner_loss,
        outer_loss,
        xs,
        ys,
        inner_data=inner_data,
        outer_data=outer_data,
        constraints=constraints,
        initial_inner=initial_inner,
        metrics=metrics,
        random=random,
        saved=True,
    )
    watch = _Progress(callback, progress, 0)
    try:
        found = _engine.resume(str(directory), problem, watch)
    finally:
        watch.close()
    return _run_of(found, xs, ys, _logged(directory), directory)


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


def load_run(directory: Union[str, Path]) -> SavedRun:
    """What a run left in its directory, from the command line or from Python. x and y are empty while it has not ended."""
    directory = Path(directory)
    if not (directory / "config.toml").exists():
        raise FileNotFoundError(f"{directory} holds no run: config.toml is missing.")
    summary = directory / "summary.json"
    layout = json.loads((directory / "layout.json").read_text())

    def parts(name: str) -> dict[str, Tensor]:
        path = directory / f"{name}.npy"
        if not path.exists():
            return {}
        flat = torch.from_numpy(np.load(path, allow_pickle=False))
        return {
            p["name"]: flat[..., p["offset"] : p["offset"] + p["size"]].reshape(*flat.shape[:-1], *p["shape"])
            for p in layout[name]["parts"]
        }

    return SavedRun(
        directory,
        json.loads(summary.read_text()) if summary.exists() else {},
        _logged(directory),
        parts("x"),
        parts("y"),
        (directory / "config.toml").read_text(),
    )


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


def _run_of(found: Mapping[str, Any], xs: Structure, ys: Structure, records: list[dict[str, Any]], directory: Optional[Path]) -> Run:
    x, y = found["x"], found["y"]
    return Run(
        x=None if x is None else xs.like(x),
        y=None if y is None else ys.like(y),
        records=records,
        outcome=found["outcome"],
        status=found["status"],
        message=found["message"],
        steps=found["steps"],
        rollbacks=found["rollbacks"],
        cost=found["cost"],
        directory=directory,
    )


def _save_start(directory: Path, xs: Structure, ys: Structure) -> None:
    for name, s in (("x", xs), ("y", ys)):
        np.save(directory / f"start-{name}.npy", s.start.cpu().numpy())
    kinds = {name: "module" if s.module is not None else "tensor" if s.single else "dictionary" for name, s in (("x", xs), ("y", ys))}
    (directory / "start.json").write_text(json.dumps({"kinds": kinds, "device": str(xs.device)}))


def _load_start(directory: Path, x: Optional[nn.Module], y: Optional[nn.Module]) -> tuple[Structure, Structure]:
    if not (directory / "start.json").exists():
        raise FileNotFoundError(f"{directory} holds no run of Python losses: start.json is missing. `bilevel resume` goes on with others.")
    start = json.loads((directory / "start.json").read_text())
    layout = json.loads((directory / "layout.json").read_text())
    structures = []
    for name, module in (("x", x), ("y", y)):
        kind = start["kinds"][name]
        if (kind == "module") != (module is not None):
            raise ValueError(
                f"{name} was a {kind} in this run; " + (f"give it again: {name}=module." if kind == "module" else "leave it out.")
            )
        flat = torch.from_numpy(np.load(directory / f"start-{name}.npy", allow_pickle=False)).to(start["device"])
        pieces = {p["name"]: flat[p["offset"] : p["offset"] + p["size"]].view(p["shape"]) for p in layout[name]["parts"]}
        structure = Structure(module if module is not None else pieces[name] if kind == "tensor" else pieces, name)
        structure.start = flat
        structures.append(structure)
    return structures[0], structures[1]
