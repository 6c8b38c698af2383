"""What a kind of measured table is: how to read it as an experiment, predict it, and fit models to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Bools, Floats, frozen
from moesim.facts.profile import Profile, Section
from moesim.models.fitted.rows import Rows

UNSAID = "the model gives no number for this row"
"""Why a row has no prediction whose kind does not say it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Predictions of n rows.

    Parameters
    ----------
    values : Floats[n]
        In the unit of what was measured; NaN where there is none.
    low, high : Floats[n]
        Bounds between which 90 % of measurements should lie.
    outside : Bools[n]
        Rows outside the range that the model was fitted on.
    reasons : object array [n] of str
        Empty, or why there is no prediction.
    basis : object array [n] of str
        ``exact``, ``fitted``, ``datasheet`` (carried over from a fitted machine by ratios) or ``assumed``.
    """

    values: Floats
    low: Floats
    high: Floats
    outside: Bools
    reasons: NDArray[Any]
    basis: NDArray[Any]

    def __post_init__(self) -> None:
        lengths = {len(self.values), len(self.low), len(self.high), len(self.outside), len(self.reasons), len(self.basis)}
        if len(lengths) > 1:
            raise ValueError(f"the parts of a prediction differ in length: {sorted(lengths)}")


def prediction(
    values: Floats,
    low: Floats | None = None,
    high: Floats | None = None,
    *,
    outside: Bools | None = None,
    reasons: NDArray[Any] | None = None,
    basis: str | NDArray[Any] = "fitted",
) -> Prediction:
    """Return a prediction; what is left out is no interval (NaN), inside, without reasons, one basis for all.

    A row whose value is NaN and that has no reason is given one.
    """
    number = np.asarray(values, dtype=np.float64)
    empty = np.full(len(number), np.nan)
    why = np.asarray([""] * len(number), dtype=object) if reasons is None else np.array(reasons, dtype=object)
    why[~np.isfinite(number) & (why == "")] = UNSAID
    known = np.asarray([basis] * len(number), dtype=object) if isinstance(basis, str) else np.asarray(basis, dtype=object)
    return Prediction(
        values=frozen(np.where(np.isfinite(number), number, np.nan)),
        low=frozen(empty if low is None else np.asarray(low, dtype=np.float64)),
        high=frozen(empty if high is None else np.asarray(high, dtype=np.float64)),
        outside=frozen(np.zeros(len(number), dtype=bool) if outside is None else outside, np.bool_),
        reasons=why,
        basis=known,
    )


@runtime_checkable
class TableKind(Protocol):
    """One kind of measured table. Files of the kind are known by their names; columns are those of the files.

    Optional parts, which a kind has only where they mean something:

    - ``companions``: patterns of files that stand beside the table, and ``join(rows, companions) -> Rows``, which puts what they hold
      beside the rows; ``companions`` is then a mapping from file name to Rows (a JSON file is one row with one column ``document``, an
      array of an NPZ file one cell). Rows that it leaves out must be told: it returns every row. Where one row holds several measurements,
      it returns one for each, with a column ``source_row`` of the row that it comes from.
    - ``rivals(rows) -> str array``: a label of the same experiment under competing configurations. Rows of one label are compared with each
      other: rank correlation, and wrong winners among pairs that differ by more than noise.
    - ``reference(rows) -> int array``: the row against which a row's ratio is formed (balanced for skewed, before for after), -1 for none.
      Ratios of predictions are then held against ratios of measurements, which is what a user who compares policies relies on; and
      ``ratio_baseline(rows) -> (name, Floats)`` is the simple rule for them.
    - ``noise(rows) -> Floats``: relative standard error of each measurement; 0.015 if it is missing.
    - ``sides(rows) -> str array``: ``calibration`` or ``validation`` for tables of which a part was never fitted.
    """

    name: str
    """Of the kind, such as ``nccl_alltoall_intranode``."""
    files: tuple[str, ...]
    """Patterns of file names (:mod:`fnmatch`), without their folder."""
    columns: tuple[str, ...]
    """Columns that must be there."""
    quantity: str
    """What is measured: ``time`` or ``count`` (errors in per cent) or ``fraction`` (errors absolute, in thousandths)."""

    def regime(self, rows: Rows) -> NDArray[np.str_]:
        """Return the regime of each row, such as ``prefill``, ``decode``, ``large`` or ``inter_node``."""
        ...

    def group(self, rows: Rows) -> NDArray[np.str_]:
        """Return the group of each row; groups are held back whole."""
        ...

    def seconds(self, rows: Rows) -> Floats:
        """Return what was measured, in seconds (or the fraction)."""
        ...

    def baseline(self, rows: Rows) -> tuple[str, Floats]:
        """Return the name and the predictions of the simple rule that a model must beat; NaN where the rule says nothing."""
        ...

    def predict(self, rows: Rows, profiles: Mapping[str, Profile]) -> Prediction:
        """Predict every row from fitted profiles (by name) and presets; never from the rows' own measurements."""
        ...

    def fit(self, rows: Rows) -> dict[str, Section]:
        """Fit what the rows allow; keys are ``PROFILE/SECTION`` such as ``h200-sxm/nccl_all_to_all``.

        PROFILE is a GPU preset's name, and also the name of the profile that the section goes into. Empty if there is nothing to fit.
        Raises CalibrationError if rows that should determine a model do not.
        """
        ...


TABLE_KINDS: list[TableKind] = []
"""Every kind, in the order in which files register; filled by :func:`register_table`."""

K = TypeVar("K")


def register_table(cls: type[K]) -> type[K]:
    """Make a kind of table known: the decorator of a class that is built without arguments.

    Raises
    ------
    TypeError
        If the class lacks a part of :class:`TableKind`.
    """
    made: Any = cls()
    if not isinstance(made, TableKind):
        parts = ("name", "files", "columns", "quantity", "regime", "group", "seconds", "baseline", "predict", "fit")
        missing = sorted(name for name in parts if not hasattr(made, name))
        raise TypeError(f"{cls.__name__} lacks {', '.join(missing)} of a kind of table")
    if all(known.name != made.name for known in TABLE_KINDS):
        TABLE_KINDS.append(made)
    return cls
