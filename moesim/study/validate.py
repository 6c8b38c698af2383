"""Predict every row of measured tables, and say by how much each kind of case is off and what could not be predicted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import CalibrationError, MoesimError
from moesim.facts.arrays import Bools, Floats
from moesim.facts.profile import Profile
from moesim.models.fitted.rows import Rows, count, take
from moesim.study.measured import (
    SLIPS,
    Left,
    Measured,
    Unpredicted,
    beside,
    kind_of,
    owner_of,
    table_name,
    told,
    unknown_table,
    usable_rows,
)
from moesim.study.scores import NOISE, Errors, Order, Ratios, coverage_of, errors_of, order_of, ratios_of, summary_of
from moesim.study.validation import Prediction, TableKind, prediction, table_kinds

Profiles = Mapping[str, Profile]

HALVED = 512
"""Rows of a group that is searched for what it fails over; a larger one fails as a whole, for the search would take too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What came of the rows of one table in one regime.

    ``covered`` is the share of measurements inside the 90 % interval, of the ``with_interval`` rows that have one; ``outside`` counts
    rows beyond the range that the model was fitted on; ``bases`` counts rows by what the prediction rests on.
    """

    table: str
    file: str
    regime: str
    quantity: str
    errors: Errors
    baseline: str
    baseline_errors: Errors
    unpredicted: tuple[Unpredicted, ...]
    with_interval: int = 0
    covered: float = float("nan")
    outside: int = 0
    bases: Mapping[str, int] = field(default_factory=dict)
    order: Order | None = None
    ratios: Ratios | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cases:
    """Every row of one table: what was measured, what was predicted."""

    table: str
    file: str
    kind: str
    quantity: str
    lines: NDArray[np.int64]
    regime: NDArray[np.str_]
    group: NDArray[np.str_]
    measured: Floats
    baseline: str
    baseline_values: Floats
    prediction: Prediction

    @property
    def errors(self) -> Floats:
        """Signed errors; NaN where there is no prediction."""
        return errors_of(self.measured, self.prediction.values, self.quantity)


@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    """A file that is no table to predict, and why."""

    file: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """The answer of ``moesim validate``."""

    scores: tuple[Score, ...]
    cases: tuple[Cases, ...]
    others: tuple[Other, ...]
    warnings: tuple[str, ...] = ()


def validate(
    tables: Sequence[Measured],
    profiles: Profiles,
    *,
    unreadable: Sequence[tuple[str, str]] = (),
    kinds: Sequence[TableKind] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Validation:
    """Predict measured tables.

    Parameters
    ----------
    tables : sequence of Measured
        That could be read.
    profiles : mapping of str to Profile
        By name.
    unreadable : sequence of (str, str)
        Files that could not be read as tables, with the reason.
    kinds : sequence of TableKind, optional
        All that are known, if left out.
    progress : callable, optional
        Told the name of each table before it is worked on.

    Returns
    -------
    Validation
        Every file is in it: with a score, or with the reason why there is none.
    """
    known = table_kinds() if kinds is None else tuple(kinds)
    scores: list[Score] = []
    cases: list[Cases] = []
    others: list[Other] = []
    warnings: list[str] = []
    for table in tables:
        kind = kind_of(table.name, known)
        if kind is None:
            owner = owner_of(table.name, tables, known)
            if owner:
                others.append(Other(file=table.name, reason=f"read beside {owner}"))
            elif not _looks_like_a_table(table.name):
                others.append(Other(file=table.name, reason=unknown_table(table.name, known)))
            else:
                reason = unknown_table(table.name, known)
                scores.append(_nothing(table.name, count(table.rows), reason, table.refused))
            continue
        if progress is not None:
            progress(table.name)
        try:
            with np.errstate(all="ignore"):
                found = cases_of(kind, table, profiles, companions=beside(kind, table.name, tables))
        except (MoesimError, *SLIPS) as error:
            scores.append(_nothing(table.name, count(table.rows), told(error), table.refused))
            continue
        cases.append(found[0])
        with np.errstate(all="ignore"):
            scores += scores_of(kind, found[0], found[1], found[2])
        warnings += _warnings(found[0])
    for name, reason in unreadable:
        scores.append(_nothing(name, 0, reason, ())) if _looks_like_a_table(name) else others.append(Other(file=name, reason=reason))
    return Validation(scores=tuple(scores), cases=tuple(cases), others=tuple(others), warnings=tuple(warnings))


def _looks_like_a_table(name: str) -> bool:
    return name.endswith((".csv", ".jsonl", ".npz"))


def cases_of(
    kind: TableKind, table: Measured, profiles: Profiles, *, companions: Mapping[str, Rows] | None = None
) -> tuple[Cases, dict[str, NDArray[Any]], list[Unpredicted]]:
    """Predict one table; return its cases, its usable rows, and what was left out before.

    Raises
    ------
    CalibrationError
        If the table as a whole cannot be used.
    """
    rows, lines, left = usable_rows(kind, table, companions)
    measured = np.asarray(kind.seconds(rows), dtype=np.float64)
    if not len(measured):
        raise CalibrationError("no row of the table can be used: " + ("; ".join(item.reason for item in left) or "it is empty"))
    name, values = kind.baseline(rows)
    cases = Cases(
        table=table_name(table.name),
        file=table.name,
        kind=kind.name,
        quantity=kind.quantity,
        lines=lines,
        regime=np.asarray(kind.regime(rows)),
        group=np.asarray(kind.group(rows)),
        measured=measured,
        baseline=name,
        baseline_values=np.asarray(values, dtype=np.float64),
        prediction=predicted(kind, rows, profiles),
    )
    return cases, rows, left


def predicted(kind: TableKind, rows: Rows, profiles: Profiles) -> Prediction:
    """Ask a kind for predictions; where it refuses, ask group by group, then by halves, so that one case does not cost the others."""
    try:
        with np.errstate(all="ignore"):  # what comes of absurd sizes is not finite, and told as such
            return kind.predict(rows, profiles)
    except (MoesimError, *SLIPS) as error:
        parts = _parts(kind, rows)
        if len(parts) < 2:
            return _without(count(rows), told(error))
    found = [predicted(kind, take(rows, part), profiles) for part in parts]
    order = np.argsort(np.concatenate(parts))
    fields = ("values", "low", "high", "outside", "reasons", "basis")
    return Prediction(**{name: np.concatenate([getattr(part, name) for part in found])[order] for name in fields})


def _parts(kind: TableKind, rows: Rows) -> list[NDArray[np.int64]]:
    """Return rows by group; of one group, in two halves; of a single row, nothing to divide."""
    try:
        groups = np.asarray(kind.group(rows))
    except (MoesimError, *SLIPS):
        groups = np.zeros(count(rows), dtype=np.str_)
    names = np.unique(groups)
    if len(names) > 1:
        return [np.flatnonzero(groups == name) for name in names]
    half = count(rows) // 2
    return [np.arange(half), np.arange(half, count(rows))] if half and count(rows) <= HALVED else []


def _without(rows: int, reason: str) -> Prediction:
    return prediction(np.full(rows, np.nan), reasons=np.asarray([reason] * rows, dtype=object))


def scores_of(kind: TableKind, cases: Cases, rows: Rows, left: Sequence[Unpredicted]) -> list[Score]:
    """Score the cases of one table regime by regime; rows that were left out before are told with the first regime."""
    noise = np.asarray(kind.noise(rows), dtype=np.float64) if hasattr(kind, "noise") else np.full(len(cases.measured), NOISE)
    found = []
    for number, label in enumerate(np.unique(cases.regime)):
        mask = np.asarray(cases.regime == label)
        found.append(_score(kind, cases, rows, mask, str(label), noise, tuple(left) if number == 0 else ()))
    return found


def _score(kind: TableKind, cases: Cases, rows: Rows, mask: Bools, regime: str, noise: Floats, left: tuple[Unpredicted, ...]) -> Score:
    guess, truth = cases.prediction, cases.measured
    known = mask & np.isfinite(guess.values)
    reasons, counts = np.unique(guess.reasons[mask & ~known].astype(str), return_counts=True)
    interval = coverage_of(truth[known], guess.low[known], guess.high[known])
    bases, sizes = np.unique(guess.basis[known].astype(str), return_counts=True)
    rivals = np.asarray(kind.rivals(rows)) if hasattr(kind, "rivals") else None
    baseline = kind.ratio_baseline(rows) if hasattr(kind, "ratio_baseline") else None
    chance = _chance(kind, rows)
    return Score(
        table=cases.table,
        file=cases.file,
        regime=regime,
        quantity=cases.quantity,
        errors=summary_of(cases.errors[known]),
        baseline=cases.baseline,
        baseline_errors=summary_of(errors_of(truth, cases.baseline_values, cases.quantity)[mask]),
        unpredicted=(*left, *(Unpredicted(rows=int(size), reason=str(reason)) for reason, size in zip(reasons, counts, strict=True))),
        with_interval=interval[0],
        covered=interval[1],
        outside=int(guess.outside[known].sum()),
        bases={str(name): int(size) for name, size in zip(bases, sizes, strict=True)},
        order=None if rivals is None else order_of(truth[mask], guess.values[mask], rivals[mask], noise[mask]),
        ratios=ratios_of(truth, guess.values, np.asarray(kind.reference(rows)), noise, mask, baseline, chance)
        if hasattr(kind, "reference")
        else None,
    )


def _chance(kind: TableKind, rows: Rows) -> Floats | None:
    """Return what chance adds to measurements; None where a kind does not say, or rows that it cannot predict keep it from it."""
    if not hasattr(kind, "chance"):
        return None
    try:
        return np.asarray(kind.chance(rows), dtype=np.float64)
    except (MoesimError, *SLIPS):
        return None


def _nothing(file: str, rows: int, reason: str, refused: Sequence[Left]) -> Score:
    empty = summary_of(np.zeros(0))
    left = [
        Unpredicted(rows=rows, reason=reason),
        *(Unpredicted(rows=item.rows, reason=f"line {item.line}: {item.reason}") for item in refused),
    ]
    return Score(
        table=table_name(file),
        file=file,
        regime="",
        quantity="time",
        errors=empty,
        baseline="",
        baseline_errors=empty,
        unpredicted=tuple(left),
    )


def _warnings(cases: Cases) -> list[str]:
    guess = cases.prediction
    known = np.isfinite(guess.values)
    outside, carried = int((guess.outside & known).sum()), int(((guess.basis == "datasheet") & known).sum())
    found = []
    if outside:
        found.append(f"{cases.file}: {outside} of {int(known.sum())} predictions lie outside the range that their model was fitted on")
    if carried:
        found.append(
            f"{cases.file}: {carried} of {int(known.sum())} predictions are carried over from another machine by data-sheet ratios"
        )
    return found
