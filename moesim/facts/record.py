"""What a run leaves behind: columns with units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.facts.scenario import Scenario
from moesim.facts.trace import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Equal-length columns, each with a unit (``""`` for names and counts)."""

    columns: Mapping[str, NDArray[Any]]
    units: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns differ in length: {lengths}")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    def where(self, mask: NDArray[np.bool_]) -> Table:
        """Return the rows where ``mask`` is true."""
        return Table(columns={name: column[mask] for name, column in self.columns.items()}, units=self.units)


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One metric of a run: ``low`` and ``high`` bound the mean over steps at 95 %, None where one sample says nothing."""

    value: float | None
    unit: str
    low: float | None
    high: float | None
    n: int
    basis: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A finished run: tables (see ``docs/reference/results.md``), metrics, warnings, and what may differ between equal runs.

    ``samples`` holds float[measured steps] for every metric, NaN where it cannot tell, and ``fresh`` bool[measured steps], false where a
    step had the tokens of an earlier one. Both are there after a run and not after reading a folder back.
    """

    scenario: Scenario
    tables: Mapping[str, Table]
    metrics: Mapping[str, Value]
    warnings: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    samples: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    fresh: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    routing: Trace | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
