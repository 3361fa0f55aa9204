"""Bars and pictures, where the packages for them are installed."""

from __future__ import annotations

from typing import Any


def bar(total: float, what: str) -> Any:
    """A tqdm bar, drawn as a notebook's where there is one; None without tqdm."""
    try:
        import warnings

        from tqdm import TqdmWarning

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TqdmWarning)  # a notebook without ipywidgets: the bar of text serves
            from tqdm.auto import tqdm
    except ImportError:
        return None
    return tqdm(total=total, desc=what, delay=2.0, leave=False)


def pyplot(who: str) -> Any:
    """matplotlib.pyplot, asked for by ``who``."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise ImportError(f"{who} draws with matplotlib, which is not installed: pip install matplotlib.") from None
    return plt


class Stages:
    """A bar for work whose end is only guessed at: called with what is being done and the share that is behind it."""

    def __init__(self, what: str, wanted: bool) -> None:
        self._what = what
        self._bar = bar(1.0, what) if wanted else None

    def __call__(self, doing: str, fraction: float) -> None:
        if self._bar is not None:
            self._bar.n = round(fraction, 3)
            self._bar.set_description(f"{self._what}: {doing}", refresh=True)

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
