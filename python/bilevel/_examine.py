"""Before a run: which estimator, and what it will cost. After one: why a hyperparameter moved."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

from torch import nn

from . import _engine
from ._options import tables
from ._problem import Loss, Predict
from ._run import Run, SavedRun, given_again, prepared
from ._show import Stages, pyplot
from ._structure import Variables

if TYPE_CHECKING:
    import matplotlib.figure

Number = Optional[float]
"""None where the number is not known or not finite."""


@dataclass(frozen=True)
class Trial:
    """One estimator, tried at one point.

    ``outcome`` is "done", or says why it is not: "not applicable", "cut off", "left out". ``options`` are the arguments for
    :func:`hypergradient` that it stands for. Where it is done: ``error`` = ‖value − reference‖/‖reference‖, ``error_at_reached``
    the same against the exact implicit hypergradient at the y where the inner solve stops, ``cosine`` and ``norm_ratio`` against
    the reference; ``seconds`` and ``peak_bytes`` of an outer step (inner solve and estimate), ``estimate_seconds`` of the
    estimate alone, ``cost`` in oracle calls.
    """

    name: str
    outcome: str
    options: Mapping[str, Any]
    configured: bool
    message: str
    status: str = ""
    differentiates: str = ""
    error: Number = None
    error_at_reached: Number = None
    cosine: Number = None
    norm_ratio: Number = None
    seconds: Number = None
    estimate_seconds: Number = None
    peak_bytes: Optional[int] = None
    cost: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`doctor` found. ``print`` shows it as ``bilevel doctor`` does.

    ``reference`` says what the trials were compared with (``how``, ``differentiates``, ``norm``, ``trusted``, curvature …) and
    ``inner`` how far the inner solve came. ``traps`` are sentences about what is wrong or risky, ``advice`` what to do.
    ``options`` are the arguments for :func:`hypergradient` that are recommended: the cheapest trial within 1 % of the reference,
    else within 5 %, else the nearest; empty where nothing can be recommended.
    """

    trials: list[Trial]
    reference: Mapping[str, Any]
    inner: Mapping[str, Any]
    traps: list[str]
    advice: str
    options: Mapping[str, Any]
    within_1_percent: Optional[str]
    within_5_percent: Optional[str]
    nearest: Optional[str]
    seconds: float
    text: str = field(repr=False, compare=False)

    def __str__(self) -> str:
        return self.text

    def plot(self) -> matplotlib.figure.Figure:
        """Error against seconds and against memory, one point for each trial; to the left and down is better."""
        plt = pyplot("Diagnosis.plot")
        figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
        families: dict[str, list[Trial]] = {}
        for trial in self.trials:
            if trial.outcome == "done" and trial.error is not None:
                family = " ".join(str(trial.options[key]) for key in ("estimator", "solver") if key in trial.options)
                families.setdefault(family, []).append(trial)
        for number, (family, trials) in enumerate(families.items()):
            color = plt.get_cmap("tab20")(number % 20)
            for axis, cost in zip(axes, ("seconds", "peak_bytes")):
                points = sorted((getattr(trial, cost), max(trial.error or 0.0, 1e-16)) for trial in trials)
                axis.plot(*zip(*points), "o-", color=color, markersize=4, linewidth=0.8, label=family)
        for axis, label in zip(axes, ("seconds of an outer step", "bytes of an outer step")):
            axis.set(xscale="log", yscale="log", xlabel=label)
        axes[0].set_ylabel("relative error")
        axes[1].legend(frameon=False, fontsize="small", bbox_to_anchor=(1.02, 1), loc="upper left")
        figure_: matplotlib.figure.Figure = figure
        return figure_


@dataclass(frozen=True)
class Forecast:
    """What one way of doing a run would cost.

    ``changes`` are the options that differ, by table (``{"hypergradient": {"memory": "states"}}``); empty for the run as it was
    asked for. ``seconds`` are those of the whole run, ``peak_bytes`` the most that the process holds; ``step_seconds``,
    ``step_peak_bytes`` (tensors alone) and ``step_cost`` (oracle calls) those of one outer step. ``measured``: ``probes`` whole
    steps were taken, otherwise it is extrapolated from short inner solves. ``same_numbers``: the run would find the same, to
    rounding. ``fits``: into the limit.
    """

    name: str
    changes: Mapping[str, Mapping[str, Any]]
    seconds: float
    peak_bytes: int
    step_seconds: float
    step_peak_bytes: int
    step_cost: Mapping[str, int]
    measured: bool
    probes: int
    same_numbers: bool
    fits: bool


@dataclass(frozen=True)
class Plan:
    """What :func:`plan` foresees. ``print`` shows it as ``bilevel plan`` does.

    ``forecasts`` begins with the run as it was asked for; ``choice`` is the fastest that fits into the limit (bytes, None: none
    was set), None where none does. ``resident_bytes`` are held before the first step.
    """

    steps: int
    forecasts: list[Forecast]
    choice: Optional[Forecast]
    advice: str
    resident_bytes: int
    limit: Optional[int]
    text: str = field(repr=False, compare=False)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Part:
    """A named part of y: its share of dF/dxᵢ, and its norm."""

    name: str
    value: float
    weight_norm: float


@dataclass(frozen=True)
class Sample:
    """An outer sample: its share of dF/dxᵢ and its loss; label, prediction and picture (PNG) where the run's task has them."""

    index: int
    value: float
    loss: float
    label: str = ""
    predicted: str = ""
    png: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class Explanation:
    """One element of dF/dx taken apart. ``print`` shows it as ``bilevel explain`` does.

    ``value`` = ``direct`` + ``implicit``. The values of ``parts`` (of y) sum to ``implicit``; the shares of all outer samples sum
    to ``value``, and ``samples`` holds the greatest. ``x`` is the hyperparameter's value after ``step`` updates, ``start`` where
    it began. ``stationarity`` is ‖r‖ at y, ``relative_residual`` the worse of the two linear solves', ``mismatch`` by how much
    the two splits differ.
    """

    name: str
    index: int
    step: int
    x: float
    start: Number
    value: float
    direct: float
    implicit: float
    parts: list[Part]
    samples: list[Sample]
    stationarity: float
    relative_residual: float
    mismatch: float
    status: str
    message: str
    text: str = field(repr=False, compare=False)

    def __str__(self) -> str:
        return self.text


def doctor(
    inner_loss: Loss,
    outer_loss: Loss,
    x: Variables,
    y: Variables,
    *,
    estimator: str = "implicit",
    inner: Optional[Mapping[str, Any]] = None,
    inner_data: Any = None,
    outer_data: Any = None,
    initial_inner: Optional[Callable[[Any], Any]] = None,
    random: bool = False,
    predict: Optional[Predict] = None,
    seed: int = 0,
    seconds: float = 45.0,
    progress: bool = True,
    **options: Any,
) -> Diagnosis:
    """Tries every applicable estimator at (x, y) against the best reference that can be had there, and says which to take.

    The reference is computed in double. Where x and y are float32 the losses are called with everything that they touch, data
    from their closures too, turned into float64.

    Args:
        inner_loss, outer_loss, x, y, inner, inner_data, outer_data, initial_inner, random, predict, seed: as in :func:`hypergradient`; y is
            where the inner solve starts.
        estimator, options: what you have in mind, which is tried too and marked.
        seconds: about how long all of it may take; what does not fit is cut off or left out, and said so.
        progress: a tqdm bar, where tqdm is installed.

    Returns:
        A :class:`Diagnosis`.

    Raises:
        bilevel.Error: for misuse. What a loss raises comes out as it is.
    """
    given = prepared(
        inner_loss,
        outer_loss,
        x,
        y,
        inner=inner,
        hypergradient={"estimator": estimator, **options},
        inner_data=inner_data,
        outer_data=outer_data,
        initial_inner=initial_inner,
        random=random,
        predict=predict,
        run={"seed": seed},
    )
    given.refuse_a_used_rule("doctor")
    with Stages("doctor", progress) as stages:
        told, text = _engine.doctor(given.problem, given.options, seconds, stages)
    report = json.loads(told)
    advice = report["recommendation"]
    recommended = tables(advice["toml"]).get("hypergradient", {})
    if recommended:
        text += "\nTo take what is recommended:\n\n  " + ", ".join(f"{key}={value!r}" for key, value in recommended.items()) + "\n"
    return Diagnosis(
        trials=[_trial(one) for one in report["trials"]],
        reference=report["reference"],
        inner=report["inner"],
        traps=report["traps"],
        advice=advice["text"],
        options=recommended,
        within_1_percent=advice["within_1_percent"],
        within_5_percent=advice["within_5_percent"],
        nearest=advice["nearest"],
        seconds=report["seconds"],
        text=text,
    )


def plan(
    inner_loss: Loss,
    outer_loss: Loss,
    x: Variables,
    y: Variables,
    *,
    steps: int = 100,
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
    memory: Union[int, str, None] = None,
    progress: bool = True,
    **run: Any,
) -> Plan:
    """Forecasts seconds and bytes of ``minimize`` with the same arguments, from a few of its steps, and fits it into a limit.

    Args:
        memory: the most that the whole process may hold, in bytes or as "2GB", "800MiB". Where the run does not fit, other memory
            policies, micro-batches and fewer differentiated steps are tried.
        progress: a tqdm bar, where tqdm is installed.
        The others are those of :func:`minimize`.

    Returns:
        A :class:`Plan`. Nothing is changed or written.

    Raises:
        bilevel.Error: for misuse. What a loss raises comes out as it is.
    """
    given = prepared(
        inner_loss,
        outer_loss,
        x,
        y,
        inner=inner,
        hypergradient={"estimator": estimator, **(hypergradient or {})},
        outer={"steps": steps, **(outer or {})},
        inner_data=inner_data,
        outer_data=outer_data,
        constraints=constraints,
        initial_inner=initial_inner,
        metrics=metrics,
        random=random,
        predict=predict,
        run={"seed": seed, **run},
    )
    given.refuse_a_used_rule("plan")
    with Stages("plan", progress) as stages:
        told, text = _engine.plan(given.problem, given.options, "" if memory is None else str(memory), stages)
    report = json.loads(told)
    choice = report["choice"]
    return Plan(
        steps=report["steps"],
        forecasts=[_forecast(one) for one in report["forecasts"]],
        choice=None if choice is None else _forecast(choice),
        advice=report["advice"],
        resident_bytes=report["resident_bytes"],
        limit=report["memory_limit"],
        text=text,
    )


def explain(
    run: Union[Run, SavedRun, str, Path],
    hyperparameter: str,
    inner_loss: Optional[Loss] = None,
    outer_loss: Optional[Loss] = None,
    *,
    step: Optional[int] = None,
    top: int = 20,
    sample_losses: Optional[Loss] = None,
    x: Optional[nn.Module] = None,
    y: Optional[nn.Module] = None,
    inner_data: Any = None,
    outer_data: Any = None,
    constraints: Optional[Mapping[str, Any]] = None,
    initial_inner: Optional[Callable[[Any], Any]] = None,
    random: bool = False,
    predict: Optional[Predict] = None,
) -> Explanation:
    """Says why a hyperparameter moved: its element of dF/dx by part of y and by outer sample, in double and undamped.

    Args:
        run: what :func:`minimize` or :func:`load_run` returned, or a run's directory, of the command too.
        hyperparameter: its name: the part of x with the element in it, ``"l2[3]"``, ``"w[0,2]"``; a single tensor's part is "x".
        inner_loss, outer_loss, x, y, inner_data, outer_data, constraints, initial_inner, random, predict: for a directory that ``minimize``
            wrote, again what the run was given, since functions are not saved (see :func:`resume`). A :class:`Run` knows them.
        step: x after so many updates; the run's last point unless given. Points that were not kept are reached by doing the steps
            again, which needs the run's directory.
        top: how many samples are listed.
        sample_losses: the losses of the outer samples one by one, a tensor [n] whose mean is ``outer_loss``, for the split by
            sample. Runs of the command know theirs.

    Returns:
        An :class:`Explanation`.

    Raises:
        bilevel.Error: for a name, an element or a step that the run has not got, and for a hyperparameter that moves y only
            through the way to the solution (a step size), where there is nothing to split.
    """
    directory = run.directory if isinstance(run, (Run, SavedRun)) else Path(run)
    again = None
    if isinstance(run, Run) and run.given is not None:
        again = run.given.problem.with_sample_losses(sample_losses)
        if directory is None:
            if step not in (None, run.steps):
                raise ValueError(f"step {step}: a run without a directory keeps its last point only; minimize(out=...) keeps the way.")
            at = run.given.xs.flat(run.x), run.given.ys.flat(run.y), run.steps
            return _explanation(*_engine.explain_at(again, run.given.options, *at, hyperparameter, top))
    assert directory is not None
    if again is None and (directory / "start.json").exists():
        if inner_loss is None or outer_loss is None:
            raise TypeError(f"{directory} is a run of Python losses, which are not saved with it: give inner_loss and outer_loss again.")
        again, _, _ = given_again(
            directory,
            inner_loss,
            outer_loss,
            x=x,
            y=y,
            inner_data=inner_data,
            outer_data=outer_data,
            constraints=constraints,
            initial_inner=initial_inner,
            sample_losses=sample_losses,
            random=random,
            predict=predict,
        )
    return _explanation(*_engine.explain_directory(str(directory), again, hyperparameter, step, top))


def _trial(one: Mapping[str, Any]) -> Trial:
    known = {key: value for key, value in one.items() if key in Trial.__dataclass_fields__}
    return Trial(options=tables("[hypergradient]\n" + one["toml"])["hypergradient"], **known)


def _forecast(one: Mapping[str, Any]) -> Forecast:
    changes: dict[str, dict[str, Any]] = {}
    for line in one["sets"]:
        path, _, value = line.partition("=")
        table, _, key = path.partition(".")
        changes.setdefault(table, {})[key] = json.loads(value)
    step = one["step"]
    return Forecast(
        name=one["name"],
        changes=changes,
        seconds=one["total"]["seconds"],
        peak_bytes=one["total"]["peak_bytes"],
        step_seconds=step["seconds"],
        step_peak_bytes=step["peak_bytes"],
        step_cost={key: step[key] for key in ("forwards", "gradients", "hvps", "cross_products")},
        measured=one["measured"],
        probes=one["probes"],
        same_numbers=one["same_numbers"],
        fits=one["fits"],
    )


def _explanation(told: str, text: str) -> Explanation:
    report = json.loads(told)
    known = {key: value for key, value in report.items() if key in Explanation.__dataclass_fields__}
    known["parts"] = [Part(**part) for part in report["parts"]]
    known["samples"] = [Sample(**{**sample, "png": base64.b64decode(sample["png"])}) for sample in report["samples"]]
    return Explanation(**known, text=text)
