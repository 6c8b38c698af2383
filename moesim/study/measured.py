"""Measured tables as the study sees them: which kind one is, what lies beside it, and which of its rows can be asked about."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import CalibrationError, MoesimError, did_you_mean
from moesim.models.fitted.rows import Rows, count, take
from moesim.study.sane_rows import sane
from moesim.study.validation import TableKind, table_kinds


class Left(Protocol):
    """Rows that a reader left out: how many, the first line, why."""

    @property
    def rows(self) -> int:
        """How many."""
        ...

    @property
    def line(self) -> int:
        """Line of the first, 0 if unknown."""
        ...

    @property
    def reason(self) -> str:
        """Why."""
        ...


class Measured(Protocol):
    """What a reader of tables hands over; see :class:`moesim.desk.measured_tables.MeasuredTable`."""

    @property
    def name(self) -> str:
        """Path relative to the folder, with slashes."""
        ...

    @property
    def rows(self) -> Rows:
        """Columns."""
        ...

    @property
    def lines(self) -> NDArray[np.int64]:
        """Line of each row."""
        ...

    @property
    def refused(self) -> Sequence[Left]:
        """Rows that were left out."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpredicted:
    """Rows without a prediction: how many, and why."""

    rows: int
    reason: str


SLIPS = (ArithmeticError, LookupError, MemoryError, TypeError, ValueError)
"""What code for one kind of table may raise over values that nobody foresaw: it costs that table its predictions, not the others theirs."""


def told(error: Exception) -> str:
    """Return an error as the reason why something has no prediction."""
    return str(error) if isinstance(error, MoesimError) else f"the rows hold something unforeseen: {type(error).__name__}: {error}"


SOURCE_ROW = "source_row"
"""Column that ``join`` of a kind adds where it makes several rows of one: the row of the table that each comes from."""


def kind_of(file: str, kinds: Sequence[TableKind] | None = None) -> TableKind | None:
    """Return the kind of a table by the name of its file, without folders; None if no kind knows it."""
    name = file.rsplit("/", maxsplit=1)[-1]
    known = table_kinds() if kinds is None else kinds
    # The longest pattern wins, so that a kind for one file may stand beside one for a family.
    found = [(len(pattern), kind) for kind in known for pattern in kind.files if fnmatch(name, pattern)]
    return max(found, key=lambda item: item[0])[1] if found else None


def table_name(file: str) -> str:
    """Return what a report calls a file: its path without the ending."""
    return file.rsplit(".", maxsplit=1)[0]


def unknown_table(name: str, kinds: Sequence[TableKind]) -> str:
    """Return why a file is not predicted that no kind knows."""
    stems = sorted({pattern for kind in kinds for pattern in kind.files})
    hint = did_you_mean(name.rsplit("/", maxsplit=1)[-1], stems).partition(" (known")[0]
    return f"no kind of table goes by this name{hint}"


def owner_of(name: str, tables: Sequence[Measured], kinds: Sequence[TableKind]) -> str:
    """Return the table that a file is a companion of, empty if of none that is there."""
    last = name.rsplit("/", maxsplit=1)[-1]
    for kind in kinds:
        if any(fnmatch(last, pattern) for pattern in getattr(kind, "companions", ())):
            for table in tables:
                if kind_of(table.name, kinds) is kind and _folder(table.name) == _folder(name):
                    return table.name
    return ""


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def beside(kind: TableKind, name: str, tables: Sequence[Measured]) -> dict[str, Rows]:
    """Return the companions of a table that lie in its folder, by file name."""
    patterns = getattr(kind, "companions", ())
    found: dict[str, Rows] = {}
    for table in tables:
        last = table.name.rsplit("/", maxsplit=1)[-1]
        if table.name != name and _folder(table.name) == _folder(name) and any(fnmatch(last, pattern) for pattern in patterns):
            found[last] = table.rows
    return found


def usable_rows(
    kind: TableKind, table: Measured, companions: Mapping[str, Rows] | None = None
) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64], list[Unpredicted]]:
    """Return the rows of a table that can be asked about, their lines, and what was left out with the reason.

    Raises
    ------
    CalibrationError
        If a column is missing or holds text where numbers belong.
    """
    rows = dict(table.rows)
    missing = [name for name in kind.columns if name not in rows]
    if missing:
        hints = "; ".join(f"the column {name!r} is missing{_near(name, rows)}" for name in missing)
        raise CalibrationError(f"not in the format of {kind.name}: {hints}")
    left = [Unpredicted(rows=item.rows, reason=f"line {item.line}: {item.reason}") for item in table.refused]
    good, wanting = sane(kind.columns, rows)
    left += [Unpredicted(rows=item.rows, reason=item.reason) for item in wanting]
    if wanting and not np.any(good):
        raise CalibrationError("no row of the table can be used: " + "; ".join(item.reason for item in left))
    rows, origin = take(rows, good), np.flatnonzero(good)
    bad = culprits(lambda part: looked_at(kind, part, companions or {}), rows)
    if bad and len(bad) == count(rows):
        raise CalibrationError(next(iter(bad.values())))
    left += [Unpredicted(rows=1, reason=f"line {table.lines[origin[row]]}: {why}") for row, why in bad.items()]
    keep = np.asarray([row for row in range(count(rows)) if row not in bad], dtype=np.int64)
    rows, origin = looked_at(kind, take(rows, keep), companions or {}), origin[keep]
    measured = np.asarray(kind.seconds(rows), dtype=np.float64)
    good = _was_measured(kind, measured)
    blank = int(np.isnan(measured).sum())
    if blank:
        left.append(Unpredicted(rows=blank, reason="nothing was measured in this row"))
    wrong = int((~good).sum()) - blank
    if wrong:
        left.append(
            Unpredicted(rows=wrong, reason="the measured value is not above 0" if kind.quantity == "time" else "not a finite number")
        )
    # A row that holds two measurements (dispatch and combine) becomes two rows; ``join`` then says which line each is of.
    lines = table.lines[origin][rows[SOURCE_ROW]] if SOURCE_ROW in rows else table.lines[origin]
    return take(rows, good), lines[good], left


def looked_at(kind: TableKind, rows: Rows, companions: Mapping[str, Rows]) -> dict[str, NDArray[Any]]:
    """Return the rows with what lies beside them, after asking the kind all that it must answer without a model."""
    found = dict(kind.join(rows, companions)) if hasattr(kind, "join") else dict(rows)
    measured = np.asarray(kind.seconds(found), dtype=np.float64)
    for ask in (kind.regime, kind.group):
        ask(found)
    # Simple rules are fitted to the rows that they are asked about, so one without a measurement must not be among them.
    kind.baseline(take(found, _was_measured(kind, measured)))
    return found


def _was_measured(kind: TableKind, measured: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.isfinite(measured) & ((measured > 0) if kind.quantity == "time" else True)


def culprits(work: Callable[[Rows], object], rows: Rows) -> dict[int, str]:
    """Return the rows over which some work fails, each with its error, by halving: none if it does not fail over all of them together."""
    failed: dict[int, str] = {}

    def search(part: NDArray[np.int64]) -> None:
        try:
            work(take(rows, part))
        except (MoesimError, *SLIPS) as error:
            if len(part) == 1:
                failed[int(part[0])] = told(error)
                return
            search(part[: len(part) // 2])
            search(part[len(part) // 2 :])

    if count(rows):
        search(np.arange(count(rows)))
    return failed


def _near(name: str, rows: Rows) -> str:
    hint = did_you_mean(name, rows).partition(" (known")[0]
    base = name.rpartition("_")[0]
    unit = next((other for other in rows if other in {base, name} or other.rpartition("_")[0] == base), "")
    return f"; is it {unit!r}? A unit is part of the name" if unit and base else hint
