"""What tables of 'moesim measure' share: rates of one machine, without a data sheet, so that a section says nothing of another one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import CalibrationError
from moesim.facts.arrays import Floats
from moesim.facts.profile import Profile, Section
from moesim.models.fitted.estimate import leave_group_out
from moesim.models.fitted.intervals import interval, scatter_by, spread
from moesim.models.fitted.parametric import Parametric
from moesim.models.fitted.rows import Rows, count, each, labels, take, words
from moesim.study.validation.machines import preset_of
from moesim.study.validation.table_kind import Prediction, prediction


def machine_of(system: str) -> str:
    """Return what a profile of a system calls its GPU: a preset where the name means one, otherwise the name itself.

    Examples
    --------
    >>> machine_of("nvidia_h200"), machine_of("amd_epyc")
    ('h200-sxm', 'amd_epyc')
    """
    return preset_of(system) or system.replace("/", "_")


def own_section(profiles: Mapping[str, Profile], machine: str, name: str) -> Section | None:
    """Return the section that was fitted on the very machine; the last profile that has it counts, as own ones are laid over shipped."""
    found = [profile.sections[name] for profile in profiles.values() if profile.gpu == machine and name in profile.sections]
    return next((section for section in reversed(found) if not section.carried_from), None)


def no_own(machine: str, name: str) -> str:
    """Return why a row has no prediction whose machine was never measured."""
    return f"no profile of {machine!r} has the section {name!r}: it is a machine's own, and 'moesim calibrate' on its tables makes it"


class OwnTable(ABC):
    """A table whose rows are predicted from sections of the machine that they are of, each row by one section."""

    quantity: ClassVar[str] = "time"
    source: ClassVar[str] = ""

    @abstractmethod
    def model_of(self, section: str) -> type[Parametric]:
        """Return the model of a section."""

    @abstractmethod
    def inputs(self, section: str, rows: Rows) -> dict[str, NDArray[Any]]:
        """Return what the model of a section must be told of rows that are all of it."""

    @abstractmethod
    def sections(self, rows: Rows) -> NDArray[np.str_]:
        """Return the section of each row; empty where there is none."""

    def why_none(self, rows: Rows, row: int) -> str:
        """Return why a row has no section; tables all of whose rows have one leave this as it is."""
        return f"no section is for row {row + 1} of {len(next(iter(rows.values())))}"

    @abstractmethod
    def seconds(self, rows: Rows) -> Floats:
        """Return what was measured."""

    @abstractmethod
    def regime(self, rows: Rows) -> NDArray[np.str_]:
        """Return the regime of each row."""

    @abstractmethod
    def group(self, rows: Rows) -> NDArray[np.str_]:
        """Return the group of each row."""

    def fitted(self, section: str, given: Rows, seconds: Floats) -> Parametric:
        """Return the model of one section, fitted to its rows."""
        model: Any = self.model_of(section)
        return model.fit(given, seconds, source=self.source)  # type: ignore[no-any-return]

    def fit(self, rows: Rows) -> dict[str, Section]:
        """Fit one section per machine and name; the scatter is that of groups that were held back, where there are several.

        Raises
        ------
        CalibrationError
            If no section can be fitted; what the rows of one section cannot determine does not cost the others theirs.
        """
        found: dict[str, Section] = {}
        refused: list[str] = []
        names, machines = self.sections(rows), _machines(rows)
        for mask in each(rows, labels({"machine": machines, "section": names}, ("machine", "section"))).values():
            machine, name = str(machines[mask][0]), str(names[mask][0])
            if not name:
                continue
            try:
                found[f"{machine}/{name}"] = self._section(name, take(rows, mask))
            except CalibrationError as error:
                refused.append(f"{name}: {error}")
        if refused and not found:
            raise CalibrationError("; ".join(refused))
        return found

    def _section(self, name: str, rows: Rows) -> Section:
        seconds, groups = self.seconds(rows), self.group(rows)

        def fitted(part: Rows) -> Parametric:
            return self.fitted(name, self.inputs(name, part), self.seconds(part))

        section = fitted(rows).section()
        if len(np.unique(groups)) < 2:
            return section
        held = leave_group_out(rows, groups, fitted, lambda made, part: made.predict(self.inputs(name, part)))
        if not np.any(np.isfinite(held.values)):
            return section
        return replace(section, scatter=scatter_by(self.regime(rows), np.log(seconds / held.values)))

    def predict(self, rows: Rows, profiles: Mapping[str, Profile]) -> Prediction:
        """Predict every row whose machine has its section."""
        size = count(rows)
        values, low, high = (np.full(size, np.nan) for _ in range(3))
        outside = np.zeros(size, dtype=bool)
        reasons = np.asarray([""] * size, dtype=object)
        names, machines = self.sections(rows), _machines(rows)
        for mask in each(rows, labels({"machine": machines, "section": names}, ("machine", "section"))).values():
            machine, name = str(machines[mask][0]), str(names[mask][0])
            section = own_section(profiles, machine, name) if name else None
            if section is None:
                reasons[mask] = [no_own(machine, name) if name else self.why_none(rows, int(row)) for row in np.flatnonzero(mask)]
                continue
            part, model = take(rows, mask), self.model_of(name)
            given = self.inputs(name, part)
            values[mask] = model.of_section(section).predict(given)
            flat = {key: column for key, column in given.items() if column.dtype.kind in "iuf" and column.ndim == 1}
            outside[mask] = section.outside(flat)
            deviation = spread(
                section,
                lambda parameters, model=model, given=given: model.seconds_of(parameters, given),  # type: ignore[misc]
                regimes=self.regime(part),
                outside=outside[mask],
            )
            low[mask], high[mask] = interval(values[mask], deviation)
        return prediction(values, low, high, outside=outside, reasons=reasons)


def _machines(rows: Rows) -> NDArray[np.str_]:
    return np.asarray([machine_of(system) for system in words(rows, "system").tolist()], dtype=np.str_)
