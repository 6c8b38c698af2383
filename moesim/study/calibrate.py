"""Fit every model that measured tables determine, and say how far fits are off on rows that they did not see."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import CalibrationError, MoesimError
from moesim.facts.arrays import Floats
from moesim.facts.profile import Profile, Section
from moesim.models.fitted.rows import Rows, count, join, take, words
from moesim.study.measured import SLIPS, Measured, beside, kind_of, owner_of, table_name, told, unknown_table, usable_rows
from moesim.study.scores import Errors, coverage_of, errors_of, summary_of
from moesim.study.validate import Profiles, predicted
from moesim.study.validation import Prediction, TableKind, table_kinds
from moesim.study.validation.machines import presets_of, unknown_system

FOLDS = 10
"""Parts of a table with more than ``SINGLY`` rows of which one is held back at a time, instead of single rows."""

SINGLY = 40

WORST = 100.0
"""Per cent: a model that is off by more than this on average on the rows that it was just fitted to describes something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldBackErrors:
    """Errors on rows that were held back: which way (``row``, ``part`` or ``group``), and the share inside the 90 % interval."""

    way: str
    folds: int
    errors: Errors
    with_interval: int
    covered: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFit:
    """What one table gave: the sections by ``PROFILE/SECTION``, errors on its own rows, and on rows held back."""

    table: str
    file: str
    sections: Mapping[str, Section]
    inside: Errors
    held_back: tuple[HeldBackErrors, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unused:
    """A file that gave nothing to fit, and why."""

    file: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Profiles by name, what each table gave, and what could not be used."""

    profiles: Mapping[str, Profile]
    fits: tuple[TableFit, ...]
    unused: tuple[Unused, ...]


def calibrate(
    tables: Sequence[Measured],
    *,
    made: str,
    unreadable: Sequence[tuple[str, str]] = (),
    kinds: Sequence[TableKind] | None = None,
    check: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Calibration:
    """Fit the models of every kind of table to the tables.

    Parameters
    ----------
    tables : sequence of Measured
        That could be read.
    made : str
        Month that the profiles carry, such as ``2026-11``.
    unreadable : sequence of (str, str)
        Other files, with the reason.
    kinds : sequence of TableKind, optional
        All that are known, if left out.
    check : bool
        Whether to hold rows back and predict them: several fits more of each model.
    progress : callable, optional
        Told the name of each table before it is worked on.

    Returns
    -------
    Calibration
        One profile per GPU that was measured; nothing of a table whose rows determine no model, with the reason.
    """
    known = table_kinds() if kinds is None else tuple(kinds)
    fits: list[TableFit] = []
    unused = [Unused(file=name, reason=reason) for name, reason in unreadable]
    for kind in known:
        rows, names = _rows_of(kind, tables, known, unused)
        if not names:
            continue
        if progress is not None:
            progress(names)
        try:
            found = fit_table(kind, names, rows, check=check)
        except (MoesimError, *SLIPS) as error:
            unused.append(Unused(file=names, reason=told(error)))
            continue
        if found.sections:
            fits.append(found)
        else:
            unused.append(Unused(file=names, reason="there is nothing to fit in this kind of table"))
    unused += [Unused(file=table.name, reason=unknown_table(table.name, known)) for table in tables if _stray(table, tables, known)]
    return Calibration(profiles=profiles_of([fit.sections for fit in fits], made), fits=tuple(fits), unused=tuple(unused))


CARRIED_TO = {
    "a100-sxm-80": ("h200-sxm",),
    "b200-sxm": ("gb200-nvl72", "h200-sxm"),
    "gb200-nvl72": ("h200-sxm",),
    "gb300-nvl72": ("gb200-nvl72", "h200-sxm"),
    "h100-sxm": ("h200-sxm",),
}
"""Shipped profiles of GPUs of which less was measured, and whose sections they take over by ratios of data sheets, the first first."""


def carried(profile: Profile, gpu: str) -> Profile:
    """Return a profile for another GPU.

    Parameters that are shares of a data sheet's peak, latencies and counts stay as they are: the models multiply them with the peaks of the
    GPU that is asked about. Each says ``datasheet`` where it was fitted, and each section where it comes from.
    """
    sections = {
        name: replace(
            section,
            carried_from=section.carried_from or profile.gpu,
            parameters=tuple(
                replace(item, basis="datasheet" if item.basis in {"exact", "measured", "fitted"} else item.basis)
                for item in section.parameters
            ),
        )
        for name, section in profile.sections.items()
    }
    return replace(profile, name=gpu, gpu=gpu, sections=sections, note=f"Carried over from {profile.gpu} by ratios of data sheets.")


def with_carried(profiles: Profiles) -> dict[str, Profile]:
    """Return profiles with those of :data:`CARRIED_TO` added or filled up; only what was measured is carried, and never twice."""
    found = dict(profiles)
    for gpu, sources in CARRIED_TO.items():
        own = profiles.get(gpu)
        sections = {} if own is None else dict(own.sections)
        for source in sources:
            if source in profiles:
                sections = {**carried(profiles[source], gpu).sections, **sections}
        taken = sorted({section.carried_from for section in sections.values() if section.carried_from})
        if not taken:
            continue
        base = own if own is not None else carried(profiles[next(source for source in sources if source in profiles)], gpu)
        note = f"Sections with 'carried_from' follow from the {' and the '.join(taken)} by ratios of data sheets."
        found[gpu] = replace(base, note=note, sections=dict(sorted(sections.items())))
    return dict(sorted(found.items()))


def _rows_of(kind: TableKind, tables: Sequence[Measured], known: Sequence[TableKind], unused: list[Unused]) -> tuple[Rows, str]:
    """Return the usable rows of all tables of a kind below each other, and their names; a table that cannot be used is told."""
    parts: list[Rows] = []
    names: list[str] = []
    for table in tables:
        if kind_of(table.name, known) is not kind:
            continue
        alien = _known_systems(kind, table.rows)
        if alien[1] and not count(alien[0]):  # told first: what else is odd about such a table does not matter
            unused += [Unused(file=table.name, reason=reason) for reason in alien[1]]
            continue
        try:
            usable, _, left = usable_rows(kind, table, beside(kind, table.name, tables))
            if not count(usable):
                raise CalibrationError("no row of the table can be used: " + ("; ".join(item.reason for item in left) or "it is empty"))
        except (MoesimError, *SLIPS) as error:
            unused.append(Unused(file=table.name, reason=told(error)))
            continue
        unused += [Unused(file=table.name, reason=f"{_rows(item.rows)} left out: {item.reason}") for item in left]
        rows, strangers = _known_systems(kind, usable)
        unused += [Unused(file=table.name, reason=f"{_rows(size)} left out: {reason}") for reason, size in strangers.items()]
        if not count(rows):
            continue
        parts.append(rows)
        names.append(table.name)
    shared = [name for name in parts[0] if all(name in part for part in parts)] if parts else []
    return join([{name: part[name] for name in shared} for part in parts]), " + ".join(names)


def _rows(number: int) -> str:
    return f"{number} row" if number == 1 else f"{number} rows"


def _known_systems(kind: TableKind, rows: Rows) -> tuple[Rows, dict[str, int]]:
    """Return the rows of GPUs that have a data sheet, and how many others there are, by the reason why nothing can be fitted to them."""
    column = getattr(kind, "system_column", "")
    if column not in rows or any(len(part) != count(rows) for part in rows.values()):
        return rows, {}
    systems = words(rows, column)
    find: Callable[[Rows], NDArray[np.str_]] = getattr(kind, "presets", lambda part: presets_of(words(part, column)))
    known = find(rows) != ""
    names, sizes = np.unique(systems[~known], return_counts=True)
    return take(rows, known), {unknown_system(str(name)): int(size) for name, size in zip(names, sizes, strict=True)}


def _stray(table: Measured, tables: Sequence[Measured], known: Sequence[TableKind]) -> bool:
    return kind_of(table.name, known) is None and not owner_of(table.name, tables, known)


def profiles_of(sections: Sequence[Mapping[str, Section]], made: str) -> dict[str, Profile]:
    """Return one profile per GPU from sections by ``PROFILE/SECTION``.

    Raises
    ------
    CalibrationError
        If two tables give a section of one name.
    """
    found: dict[str, dict[str, Section]] = {}
    for part in sections:
        for key, section in part.items():
            gpu, _, name = key.partition("/")
            if name in found.setdefault(gpu, {}):
                raise CalibrationError(f"two tables give the section {name!r} of {gpu}: {found[gpu][name].source}; {section.source}")
            found[gpu][name] = section
    return {gpu: Profile(name=gpu, gpu=gpu, made=made, sections=dict(sorted(found[gpu].items()))) for gpu in sorted(found)}


def fit_table(kind: TableKind, file: str, rows: Rows, *, check: bool) -> TableFit:
    """Fit one table and, with ``check``, hold back its rows and its groups.

    Raises
    ------
    CalibrationError
        If the rows do not determine a model.
    """
    sections = kind.fit(rows)
    measured = np.asarray(kind.seconds(rows), dtype=np.float64)
    inside = predicted(kind, rows, profiles_of([sections], "")) if sections else None
    if inside is not None:
        _check_fit(kind, rows, errors_of(measured, inside.values, kind.quantity))
    held: list[HeldBackErrors] = []
    if check and sections:
        single = count(rows) <= SINGLY
        parts = np.arange(count(rows)) % (count(rows) if single else FOLDS)
        for way, groups in (("row" if single else "part", parts.astype(np.str_)), ("group", np.asarray(kind.group(rows)))):
            if len(np.unique(groups)) > 1:
                held.append(_errors(way, groups, measured, held_back(kind, rows, groups), kind.quantity))
    return TableFit(
        table=table_name(file),
        file=file,
        sections=sections,
        inside=summary_of(np.zeros(0) if inside is None else errors_of(measured, inside.values, kind.quantity)),
        held_back=tuple(held),
    )


def _check_fit(kind: TableKind, rows: Rows, errors: Floats) -> None:
    """Refuse a fit that misses its own rows."""
    column = getattr(kind, "system_column", "")
    systems = words(rows, column) if column in rows else np.full(count(rows), "the table")
    for system in np.unique(systems).tolist():
        own = np.abs(errors[(systems == system) & np.isfinite(errors)])
        if len(own) and own.mean() > WORST:
            raise CalibrationError(
                f"the model misses the rows of {system} that it was just fitted to by {own.mean():.0f} % on average: it does not describe "
                "them; check units and sizes, or leave these rows out"
            )


def _errors(way: str, groups: NDArray[np.str_], measured: Floats, guess: Prediction, quantity: str) -> HeldBackErrors:
    with_interval, covered = coverage_of(measured, guess.low, guess.high)
    return HeldBackErrors(
        way=way,
        folds=len(np.unique(groups)),
        errors=summary_of(errors_of(measured, guess.values, quantity)),
        with_interval=with_interval,
        covered=covered,
    )


def held_back(
    kind: TableKind, rows: Rows, groups: NDArray[np.str_], base: Profiles | None = None, own: Collection[str] | None = None
) -> Prediction:
    """Predict each group of rows from profiles fitted to all others.

    Parameters
    ----------
    kind : TableKind
        Of the rows.
    rows : Rows
        n of them.
    groups : str array [n]
        Labels.
    base : mapping of str to Profile, optional
        Profiles whose other sections may be used; what this kind fits is taken out of them first.
    own : collection of str, optional
        What this kind fits to these rows, ``PROFILE/SECTION``, where it is known already.

    Returns
    -------
    Prediction
        Of every row; where the other rows determine no model, with the reason.
    """
    fits = set(kind.fit(rows) if own is None else own)
    stripped = {name: _without(profile, fits) for name, profile in (base or {}).items()}
    labels = np.unique(groups)
    parts = [np.flatnonzero(groups == label) for label in labels]
    found = []
    for part in parts:
        rest = np.ones(count(rows), dtype=bool)
        rest[part] = False
        try:
            fitted = profiles_of([kind.fit(take(rows, rest))], "")
        except CalibrationError as error:
            fitted = {}
            reason = str(error)
        else:
            reason = ""
        guess = predicted(kind, take(rows, part), joined(stripped, fitted))
        if reason:
            why = np.asarray([f"the other rows determine no model: {reason}" if text else "" for text in guess.reasons], dtype=object)
            guess = replace(guess, reasons=why)
        found.append(guess)
    order = np.argsort(np.concatenate(parts))
    names = ("values", "low", "high", "outside", "reasons", "basis")
    return Prediction(**{name: np.concatenate([getattr(part, name) for part in found])[order] for name in names})


def _without(profile: Profile, keys: set[str]) -> Profile:
    return replace(profile, sections={name: section for name, section in profile.sections.items() if f"{profile.gpu}/{name}" not in keys})


def joined(base: Profiles, more: Profiles) -> dict[str, Profile]:
    """Return profiles with the sections of both; those of ``more`` win."""
    found = dict(base)
    for name, profile in more.items():
        known = found.get(name)
        found[name] = profile if known is None else replace(known, sections={**known.sections, **profile.sections})
    return found
