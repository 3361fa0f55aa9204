"""Nested (bilevel) optimisation on PyTorch: minimise over x  f(x, y*(x)),  y*(x) = argmin over y of g(x, y).

import bilevel
result = bilevel.hypergradient(inner_loss, outer_loss, x, y)   # dF/dx with its certificate
run = bilevel.minimize(inner_loss, outer_loss, x, y)           # the whole problem
"""

from __future__ import annotations

from pathlib import Path as _Path

import torch as _torch

from ._built import torch_version as _built_for

if _torch.__version__.split("+")[0].split(".")[:2] != _built_for.split(".")[:2]:  # asked before the engine is loaded, which may fail
    raise ImportError(
        f"bilevel was built for torch {_built_for}, and this is torch {_torch.__version__}. Build it again in this environment "
        f"(pip install --no-build-isolation --force-reinstall --no-deps . in a checkout), or install torch=={_built_for}."
    )

from . import _engine
from ._compile import Compiled
from ._engine import Error, estimators, linear_solvers, rules
from ._examine import Diagnosis, Explanation, Forecast, Plan, Trial, doctor, explain, plan
from ._hypergradient import Certificate, Hypergradient, hypergradient
from ._layers import Layer, fixed_point_layer, implicit_layer, root_layer
from ._run import Run, SavedRun, load_run, minimize, resume
from ._unroll import unroll

__version__ = _engine.version
cmake_prefix_path = str(_Path(__file__).parent)
"""For C++ projects: ``cmake -DCMAKE_PREFIX_PATH=$(python -c "import bilevel; print(bilevel.cmake_prefix_path)")``."""
__all__ = [
    "Certificate",
    "Compiled",
    "Diagnosis",
    "Error",
    "Explanation",
    "Forecast",
    "Hypergradient",
    "Layer",
    "Plan",
    "Run",
    "SavedRun",
    "Trial",
    "cmake_prefix_path",
    "doctor",
    "estimators",
    "explain",
    "fixed_point_layer",
    "hypergradient",
    "implicit_layer",
    "linear_solvers",
    "load_run",
    "minimize",
    "plan",
    "resume",
    "root_layer",
    "rules",
    "unroll",
]
