"""Whether loops over single routes are worth compiled code."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEWEST = 1024
"""Routes: NumPy needs no longer for so few."""
WORTH_LOADING = 3_000_000
"""Routes that NumPy handles in about the time that it takes to load compiled code; to compile it, once, takes some seconds more."""


@dataclass(slots=True)
class _Handled:
    """Routes that this process has handled so far; only what is quicker depends on it, and nothing that is computed."""

    routes: int = 0


_HANDLED = _Handled()


def loops_for(*arrays: NDArray[Any]) -> ModuleType | None:
    """Return :mod:`moesim.models.route_loops` if it pays to have it, for these routes and all before; otherwise None.

    Parameters
    ----------
    *arrays : array
        The first has an element for each route; the loops take only arrays in C order.
    """
    if arrays[0].size < FEWEST or not all(array.flags.c_contiguous for array in arrays):
        return None
    _HANDLED.routes += arrays[0].size
    return _loops() if _HANDLED.routes > WORTH_LOADING else None


def is_whole(array: NDArray[Any]) -> bool:
    """Return whether these are 64-bit whole numbers, as the loops take them."""
    return array.dtype == np.int64


@cache
def _loops() -> ModuleType | None:
    try:
        from moesim.models.lean_numba import load_numba

        load_numba()
        from moesim.models import route_loops
    except (ImportError, OSError):
        return None
    return route_loops
