"""What a device of one's own takes for the parts of a layer that are not experts: gate, permute, weighted sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from moesim.facts.arrays import Floats
from moesim.models.fitted.estimate import refuse_degenerate
from moesim.models.fitted.parametric import Parametric, refuse_narrow
from moesim.models.fitted.rows import Rows, numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenWork(Parametric):
    """Launch, and so much for each element that goes through memory: ``t = launch + elements / element_rate``.

    Rows have ``elements`` (of all operands and results; a gate's product counts hidden x experts for each token).
    """

    NAME: ClassVar[str] = "token_work"
    UNITS: ClassVar[Mapping[str, str]] = {"launch": "s", "element_rate": "1/s"}
    RANGED: ClassVar[tuple[str, ...]] = ("elements",)

    launch: float
    element_rate: float

    @staticmethod
    def seconds_of(values: Mapping[str, float], rows: Rows) -> Floats:
        """Return the seconds of rows with the given parameters."""
        return np.asarray(values["launch"] + numbers(rows, "elements") / values["element_rate"])

    @classmethod
    def fit(cls, rows: Rows, seconds: Floats, *, source: str = "") -> Self:
        """Return the model that comes nearest to the rows.

        Raises
        ------
        CalibrationError
            If the rows are too few, or of sizes that tell a launch from a rate by nothing.
        """
        refuse_degenerate(rows, what="token work", least=3, varied={"elements": 3})
        refuse_narrow(rows, what="token work", column="elements", reach=16)
        return cls.fitted(rows, seconds, start=START, held={}, bounds=BOUNDS, source=source)


START = {"launch": 1e-5, "element_rate": 1e9}
BOUNDS = {"launch": (1e-8, 1e-1), "element_rate": (1e5, 1e15)}
