"""Nested (bilevel) optimisation on PyTorch: minimise over x  f(x, y*(x)),  y*(x) = argmin over y of g(x, y).

import bilevel
result = bilevel.hypergradient(inner_loss, outer_loss, x, y)   # dF/dx with its certificate
run = bilevel.minimize(inner_loss, outer_loss, x, y)           # the whole problem
"""

from __future__ import annotations

import torch as _torch

try:
    from . import _engine
except ImportError as error:  # the engine is compiled for one release of torch
    raise ImportError(
        f"bilevel's compiled engine does not load with torch {_torch.__version__}: {error}. It was built for another release of torch; "
        "install bilevel again in this environment (pip install --no-build-isolation .)."
    ) from error

if _torch.__version__.split("+")[0].split(".")[:2] != _engine.torch_version.split("+")[0].split(".")[:2]:
    raise ImportError(
        f"bilevel was built for torch {_engine.torch_version}, and this is torch {_torch.__version__}. Install bilevel again in this "
        f"environment (pip install --no-build-isolation .), or torch=={_engine.torch_version}."
    )

from ._engine import Error, estimators, linear_solvers, rules
from ._hypergradient import Certificate, Hypergradient, hypergradient
from ._layers import Layer, fixed_point_layer, implicit_layer, root_layer
from ._run import Run, SavedRun, load_run, minimize, resume
from ._unroll import unroll

__version__ = _engine.version
__all__ = [
    "Certificate",
    "Error",
    "Hypergradient",
    "Layer",
    "Run",
    "SavedRun",
    "estimators",
    "fixed_point_layer",
    "hypergradient",
    "implicit_layer",
    "linear_solvers",
    "load_run",
    "minimize",
    "resume",
    "root_layer",
    "rules",
    "unroll",
]
