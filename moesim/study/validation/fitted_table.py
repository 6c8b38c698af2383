"""What tables of communication kernels share: one parametric model per machine and operation, fitted and asked in the same way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import CalibrationError
from moesim.facts.arrays import Bools, Floats
from moesim.facts.profile import Profile, Section
from moesim.models.fitted.estimate import least_squares_log, leave_group_out
from moesim.models.fitted.intervals import interval, scatter_by, spread
from moesim.models.fitted.parametric import Parametric
from moesim.models.fitted.rows import Rows, count, each, labels, take, words
from moesim.study.validation.machines import presets_of, unknown_system, whose_section
from moesim.study.validation.table_kind import Prediction, prediction


class FittedTable(ABC):
    """A table whose rows are all predicted by one model, with parameters of its own for each machine and section.

    A kind of table says what ``system_column`` holds, which section a row belongs to, and what the model must be told of a row.
    """

    model: ClassVar[type[Parametric]]
    system_column: ClassVar[str] = "system"
    quantity: ClassVar[str] = "time"
    source: ClassVar[str] = ""

    @abstractmethod
    def inputs(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """Return what the model must be told of each row."""

    @abstractmethod
    def sections(self, rows: Rows) -> NDArray[np.str_]:
        """Return the section that each row belongs to."""

    @abstractmethod
    def seconds(self, rows: Rows) -> Floats:
        """Return what was measured."""

    @abstractmethod
    def regime(self, rows: Rows) -> NDArray[np.str_]:
        """Return the regime of each row."""

    @abstractmethod
    def group(self, rows: Rows) -> NDArray[np.str_]:
        """Return the group of each row."""

    def fitted(self, section: str, inputs: Rows, seconds: Floats) -> Parametric:
        """Return the model of one section; kinds that know better starting values override it."""
        del section
        found: Any = self.model
        return found.fit(inputs, seconds, source=self.source)  # type: ignore[no-any-return]

    def presets(self, rows: Rows) -> NDArray[np.str_]:
        """Return the GPU preset of each row, empty where the name of its system means none."""
        return presets_of(words(rows, self.system_column))

    def instead(self, name: str) -> tuple[str, ...]:
        """Return sections that may answer where no profile has the one of this name, nearest first."""
        del name
        return ()

    def _nearest(self, profiles: Mapping[str, Profile], preset: str, name: str) -> tuple[Section | None, bool]:
        """Return the section that answers, and whether it is another one's: the GPU's own of any name comes before another GPU's."""
        wanted = (name, *self.instead(name))
        found = [whose_section(profiles, preset, each) for each in wanted]
        own = next((section for section, carried in found if section is not None and not carried), None)
        if own is not None:
            return own, found[0] != (own, False)
        return next((section for section, _ in found if section is not None), None), True

    def beyond(self, section: Section, inputs: Rows, rows: Rows) -> Bools:
        """Tell which rows lie outside the range that a section was fitted on."""
        del rows
        return section.outside({key: column for key, column in inputs.items() if column.dtype.kind in "iuf"})

    def assumed(self, rows: Rows) -> NDArray[np.bool_]:
        """Tell which rows rest on a parameter that no measurement determined."""
        return np.zeros(count(rows), dtype=bool)

    def fit(self, rows: Rows) -> dict[str, Section]:
        """Fit one section per machine and operation; the scatter is that of rows that were held back.

        Raises
        ------
        CalibrationError
            If the rows of a section do not determine its model, or no system of the table has a preset.
        """
        presets = self.presets(rows)
        keys = labels({"preset": presets, "section": self.sections(rows)}, ("preset", "section"))
        found: dict[str, Section] = {}
        for mask in each(rows, keys).values():
            preset, name = str(presets[mask][0]), str(self.sections(take(rows, mask))[0])
            if preset:
                found[f"{preset}/{name}"] = self._section(name, take(rows, mask))
        if not found and count(rows):
            raise CalibrationError(unknown_system(str(words(rows, self.system_column)[0])))
        return found

    def _section(self, name: str, rows: Rows) -> Section:
        seconds, groups = self.seconds(rows), self.group(rows)
        section = self.fitted(name, self.inputs(rows), seconds).section()
        if len(np.unique(groups)) < 2:
            return section
        held = leave_group_out(
            rows,
            groups,
            lambda part: self.fitted(name, self.inputs(part), self.seconds(part)),
            lambda model, part: model.predict(self.inputs(part)),
        )
        if not np.any(np.isfinite(held.values)):
            return section
        return replace(section, scatter=scatter_by(self.regime(rows), np.log(seconds / held.values)))

    def predict(self, rows: Rows, profiles: Mapping[str, Profile]) -> Prediction:
        """Predict every row: from its own machine's section, or from another's by data-sheet ratios, flagged."""
        size = count(rows)
        values, low, high = (np.full(size, np.nan) for _ in range(3))
        outside = np.zeros(size, dtype=bool)
        reasons = np.asarray([""] * size, dtype=object)
        basis = np.asarray(["fitted"] * size, dtype=object)
        systems = words(rows, self.system_column)
        presets, names = self.presets(rows), self.sections(rows)
        assumed = self.assumed(rows)
        for mask in each(rows, labels({"preset": presets, "section": names}, ("preset", "section"))).values():
            preset, name = str(presets[mask][0]), str(names[mask][0])
            if not preset:
                reasons[mask] = [unknown_system(str(system)) for system in systems[mask]]
                continue
            section, carried = self._nearest(profiles, preset, name)
            if section is None:
                reasons[mask] = f"no profile has the section {name!r}, neither that of {preset} nor another's to carry over"
                continue
            part = take(rows, mask)
            inputs = self.inputs(part)
            values[mask] = self.model.of_section(section).predict(inputs)
            outside[mask] = self.beyond(section, inputs, part)
            wide = spread(
                section,
                lambda parameters, given=inputs: self.model.seconds_of(parameters, given),  # type: ignore[misc]
                regimes=self.regime(part),
                outside=outside[mask],
                carried=carried,
            )
            low[mask], high[mask] = interval(values[mask], wide)
            basis[mask] = "datasheet" if carried else "fitted"
        basis[assumed] = "assumed"
        return prediction(values, low, high, outside=outside, reasons=reasons, basis=basis)


def both_ops(rows: Rows, measured: Mapping[str, str], extra: Mapping[str, Mapping[str, str]] | None = None) -> dict[str, NDArray[Any]]:
    """Make two rows of each: one per operation, with the columns ``op`` and ``measured_us``.

    Parameters
    ----------
    rows : Rows
        n of them.
    measured : mapping of str to str
        By operation, the column that holds its microseconds.
    extra : mapping of str to mapping, optional
        By new column, the column of each operation that it comes from.

    Returns
    -------
    dict
        Columns of n times as many rows as there are operations, with ``source_row``.
    """
    size, times = count(rows), len(measured)
    found = {name: np.tile(column, times) for name, column in rows.items()}
    found["source_row"] = np.tile(np.arange(size), times)
    found["op"] = np.repeat(np.asarray(list(measured)), size)
    found["measured_us"] = np.concatenate([np.asarray(rows[column], dtype=np.float64) for column in measured.values()])
    for name, columns in (extra or {}).items():
        found[name] = np.concatenate([rows[columns[op]] for op in measured])
    return found


def alpha_beta(size: Floats, seconds: Floats, groups: NDArray[np.str_]) -> Floats:
    """Return ``alpha + beta size`` fitted to the very rows of each group: the rule at its best; NaN of fewer than 3 rows."""
    found = np.full(len(size), np.nan)
    for label in np.unique(groups):
        mask = (groups == label) & np.isfinite(size) & (seconds > 0)
        x, y = np.asarray(size[mask], dtype=np.float64), seconds[mask]
        if len(x) < 3 or np.ptp(x) == 0:
            continue
        top = int(np.argmax(x))

        def line(values: Mapping[str, float], x: Floats = x) -> Floats:
            return np.asarray(values["alpha"] + values["beta"] * x)

        start = {"alpha": float(y.min()), "beta": float(y[top] / x[top])}
        try:
            best = least_squares_log(line, start, y, strict=False).by_name()
        except CalibrationError:
            continue
        found[mask] = line(best)
    return found
