"""What a run leaves behind: columns with units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import UsageError, did_you_mean
from moesim.base.fragment import fragment
from moesim.base.frames import frame
from moesim.base.units import DIMENSIONS, format_quantity
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

    def to_pandas(self) -> Any:
        """Return the table as a pandas data frame, the units in ``.attrs["units"]``; an ImportError says how to get pandas."""
        return frame(self.columns, self.units)


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

    def to_pandas(self, table: str = "metrics") -> Any:
        """Return the metrics, or one of the tables, as a pandas data frame.

        Parameters
        ----------
        table : str
            ``metrics``, with one row per metric, or a name from ``tables``.

        Raises
        ------
        UsageError
            If there is no such table.
        ImportError
            If pandas is not installed; the message says how to get it.
        """
        if table == "metrics":
            known = self.metrics
            columns: dict[str, list[Any]] = {"metric": list(known)}
            for part in ("value", "unit", "low", "high", "n", "basis"):
                columns[part] = [getattr(value, part) for value in known.values()]
            return frame(columns, index="metric")
        if table not in self.tables:
            raise UsageError(f"there is no table {table!r}{did_you_mean(table, ['metrics', *self.tables])}")
        return self.tables[table].to_pandas()

    def _repr_html_(self) -> str:
        """Return the metrics for a notebook."""
        steps = len(self.tables["steps"]) if "steps" in self.tables else 0
        rows = [
            (name.replace("_", " "), _written(value.value, value.unit), _between(value), value.basis)
            for name, value in self.metrics.items()
            if value.value is not None
        ]
        said = [f"Means over {steps} measured step{'' if steps == 1 else 's'}; intervals of 95 %."]
        said += [f"Note: {warning}" for warning in self.warnings]
        return fragment(self.scenario.name, said, (("metric", False), ("value", True), ("interval", True), ("basis", False)), rows)


def _written(value: float, unit: str) -> str:
    if unit in DIMENSIONS:
        return format_quantity(value, unit).replace(" us", " µs")
    return f"{value:,.0f} {unit}".strip() if abs(value) >= 1000 else f"{value:.4g} {unit}".strip()


def _between(value: Value) -> str:
    if value.low is None or value.high is None or value.high - value.low <= 1e-9 * abs(value.high):
        return ""
    return f"{_written(value.low, value.unit)} – {_written(value.high, value.unit)}"
