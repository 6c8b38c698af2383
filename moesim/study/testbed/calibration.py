"""What the local operations of a step take on one core alone, as the testbed's calibration measured them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from moesim.base.errors import CalibrationError
from moesim.facts.arrays import Floats
from moesim.models.compute.table import interpolated

FORWARD = ("router", "permute", "ffn", "group", "sum")
BACKWARD = ("b_sum", "ffn_bwd", "b_router")
"""Operations: gate and top-k; sorting copies by expert; one expert; grouping received rows by expert and back; the weighted sum.
Backward: the sum's gradient, an expert's, the gate's with the sum over copies."""

Points = tuple[Floats, Floats]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Seconds by operation, shape and rows: ``points[operation][shape]`` are rows and seconds, rows increasing."""

    points: Mapping[str, Mapping[str, Points]]

    def seconds(self, operation: str, shape: str, rows: ArrayLike) -> Floats:
        """Return the seconds of an operation at some numbers of rows, alone on a core.

        Raises
        ------
        CalibrationError
            If the operation was not measured in that shape.
        """
        known = self.points.get(operation, {})
        if shape not in known:
            have = ", ".join(sorted(known)) or "nothing"
            raise CalibrationError(f"the calibration has no {operation} of {shape} (it has {have}): measure that shape as well")
        at, seconds = known[shape]
        return interpolated(np.asarray(rows, dtype=np.float64), at, seconds)

    def slower(self, factor: float) -> Calibration:
        """Return the calibration of cores on which everything takes ``factor`` times as long."""
        return Calibration(
            {
                operation: {shape: (rows, seconds * factor) for shape, (rows, seconds) in shapes.items()}
                for operation, shapes in self.points.items()
            }
        )


def calibration_of(document: Any) -> Calibration:
    """Read a calibration document: ``{operation: {"SHAPE,ROWS": seconds}}``.

    Raises
    ------
    CalibrationError
        If it is no such mapping, or holds something that is not a time.
    """
    if not isinstance(document, Mapping) or not document:
        raise CalibrationError('this is no calibration: expected {"ffn": {"512x1536,64": seconds, ...}, ...}')
    points: dict[str, dict[str, Points]] = {}
    for operation, table in document.items():
        if operation not in FORWARD + BACKWARD:
            continue
        if not isinstance(table, Mapping):
            raise CalibrationError(f"{operation}: expected a mapping of 'SHAPE,ROWS' to seconds")
        by_shape: dict[str, dict[int, float]] = {}
        for key, value in table.items():
            shape, _, rows = str(key).rpartition(",")
            number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
            if not shape or not rows.isdecimal() or not (math.isfinite(number) and number > 0):
                raise CalibrationError(f"{operation}: {key!r}: {value!r} is not a time above 0 of a shape and a number of rows")
            by_shape.setdefault(shape, {})[int(rows)] = float(number)
        points[str(operation)] = {
            shape: (np.array(sorted(found), dtype=np.float64), np.array([found[row] for row in sorted(found)]))
            for shape, found in by_shape.items()
        }
    return Calibration(points)
