"""Read-only arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def frozen(values: ArrayLike, dtype: Any = None) -> NDArray[Any]:
    """Return ``values`` as a read-only array of ``dtype``; copies only if something writable would be shared."""
    array = np.asarray(values, dtype=dtype)
    if array.flags.writeable:
        # A subclass of arrays, or a buffer, becomes another array over the same memory: its base is what the caller can still write to.
        array = array.copy() if array is values or array.base is not None else array.view()
        array.flags.writeable = False
    return array
