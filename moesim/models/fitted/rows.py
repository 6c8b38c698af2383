"""Rows of a measured table: columns of equal length, numbers or text, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import CalibrationError, did_you_mean
from moesim.facts.arrays import Bools, Floats

Rows = Mapping[str, NDArray[Any]]
"""Columns of one table, all of one length: whole numbers int64, numbers float64, text ``str``."""


def count(rows: Rows) -> int:
    """Return how many rows there are."""
    return len(next(iter(rows.values()))) if rows else 0


def take(rows: Rows, which: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return the rows that a mask or a list of indices names, in every column."""
    return {name: column[which] for name, column in rows.items()}


def join(tables: Sequence[Rows]) -> dict[str, NDArray[Any]]:
    """Put tables of the same columns below each other."""
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]} if tables else {}


def numbers(rows: Rows, name: str) -> Floats:
    """Return a column as float64; one without a single entry is NaN throughout.

    Raises
    ------
    CalibrationError
        If there is no such column, or it holds text.
    """
    column = _column(rows, name)
    if column.dtype.kind == "U" and not np.any(column != ""):
        return np.full(len(column), np.nan)
    if column.dtype.kind not in "iufb":
        raise CalibrationError(f"column {name!r} holds text such as {str(column[0])!r} where numbers are needed")
    return np.asarray(column, dtype=np.float64)


def words(rows: Rows, name: str) -> NDArray[np.str_]:
    """Return a column as text.

    Raises
    ------
    CalibrationError
        If there is no such column.
    """
    return np.asarray(_column(rows, name)).astype(np.str_)


def _column(rows: Rows, name: str) -> NDArray[Any]:
    if name not in rows:
        raise CalibrationError(f"there is no column {name!r}{did_you_mean(name, rows)}")
    return rows[name]


def labels(rows: Rows, names: Iterable[str]) -> NDArray[np.str_]:
    """Return one label per row made of some columns, such as ``h200_sxm 8 7168``: rows with equal labels form a group.

    Examples
    --------
    >>> labels({"gpu": np.asarray(["a", "b"]), "ep": np.asarray([8, 16])}, ("gpu", "ep")).tolist()
    ['a 8', 'b 16']
    """
    columns = [_texts(_column(rows, name)) for name in names]
    return np.asarray([" ".join(parts) for parts in zip(*columns, strict=True)], dtype=np.str_)


def _texts(column: NDArray[Any]) -> list[str]:
    # Enough digits that 1048576.0 is named like 1048576, and no two sizes alike.
    return [f"{item:.15g}" if isinstance(item, float) else str(item) for item in column.tolist()]


def each(rows: Rows, group: NDArray[np.str_]) -> dict[str, Bools]:
    """Return, for each label in sorted order, the mask of its rows."""
    if len(group) != count(rows):
        raise ValueError(f"{len(group)} labels for {count(rows)} rows")
    return {str(label): np.asarray(group == label) for label in np.unique(group)}
