"""Medians and spread of repeated measurements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, quartiles, extremes and number of some values; all keys are there for one value.

    Quartiles interpolate linearly between order statistics, as NumPy's default does.

    Examples
    --------
    >>> spread([3.0, 1.0, 2.0, 10.0])
    {'median': 2.5, 'q25': 1.75, 'q75': 4.75, 'min': 1.0, 'max': 10.0, 'n': 4}
    """
    low, middle, high = (float(item) for item in np.percentile(np.asarray(values, dtype=np.float64), (25, 50, 75)))
    return {"median": middle, "q25": low, "q75": high, "min": float(min(values)), "max": float(max(values)), "n": len(values)}
