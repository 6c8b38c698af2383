"""A sweep: the same question for many values of some keys, as one table, as curves, and as a front of the best trade-offs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from moesim.facts.record import Table, Value
from moesim.measure.collect import metrics
from moesim.study.cell import Answer, Scalar

T = TypeVar("T")

TIMES = ("step_time", "net_step_time")
"""What says how fast a cell is: the second, with the stalls of rebalances, if any cell stalls."""
"""The trade-off that a sweep is drawn for: fewer drops cost time."""


def combinations(axes: Mapping[str, Sequence[T]], left_out: Callable[[Mapping[str, T]], bool]) -> Iterator[dict[str, T]]:
    """Yield every combination of the values of axes but those left out; the last axis changes fastest.

    Without axes there is nothing to combine, and nothing is yielded.
    """
    if not axes:
        return
    for values in product(*axes.values()):
        cell = dict(zip(axes, values, strict=True))
        if not left_out(cell):
            yield cell


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the shortest end of each dotted key that no other of them has.

    Examples
    --------
    >>> short_names(["policy.capacity.factor", "policy.placement", "cluster.nodes"])
    {'policy.capacity.factor': 'factor', 'policy.placement': 'placement', 'cluster.nodes': 'nodes'}
    """
    names = {}
    for key in keys:
        words = key.split(".")
        ends = [".".join(words[-count:]) for count in range(1, len(words) + 1)]
        others = [other for other in keys if other != key]
        names[key] = next((end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others)), key)
    return names


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What came of a sweep.

    Parameters
    ----------
    name : str
        Of the scenario.
    axes : tuple of str
        Dotted keys; a cell that was included by hand may lack some and keeps the file's value of those.
    answers : tuple of Answer
        One per cell, in the order of the matrix; failed ones too.
    shown : tuple of str
        The metrics that were asked for, to be drawn before others.
    """

    name: str
    axes: tuple[str, ...]
    answers: tuple[Answer, ...]
    shown: tuple[str, ...] = ()

    @property
    def done(self) -> tuple[Answer, ...]:
        """The cells that have metrics."""
        return tuple(answer for answer in self.answers if answer.done)

    @property
    def failed(self) -> tuple[Answer, ...]:
        """The cells that have none."""
        return tuple(answer for answer in self.answers if not answer.done)

    def values(self, axis: str) -> list[Scalar]:
        """Return the values that an axis takes, each once: in the order of the matrix, or increasing if all are numbers."""
        found = list({repr(answer.axes[axis]): answer.axes[axis] for answer in self.answers if axis in answer.axes}.values())
        numbers = [value for value in found if is_number(value)]
        return sorted(numbers) if len(numbers) == len(found) else found  # type: ignore[type-var]

    def numeric(self) -> tuple[str, ...]:
        """Return the axes whose values are at least two numbers, and nothing else."""
        return tuple(axis for axis in self.axes if len(self.values(axis)) > 1 and all(is_number(value) for value in self.values(axis)))

    def idle(self) -> tuple[str, ...]:
        """Return the axes that changed nothing: cells that differ in such an axis alone agree in every metric, to the last bit."""
        return tuple(axis for axis in self.axes if self._changes_nothing(axis))

    def _changes_nothing(self, axis: str) -> bool:
        groups: dict[str, list[Answer]] = {}
        for answer in self.done:
            groups.setdefault(repr([(other, answer.axes.get(other, ABSENT)) for other in self.axes if other != axis]), []).append(answer)
        several = [group for group in groups.values() if len({repr(answer.axes.get(axis, ABSENT)) for answer in group}) > 1]
        found = [[{name: value.value for name, value in answer.metrics.items()} for answer in group] for group in several]
        return bool(found) and all(metrics == group[0] for group in found for metrics in group)

    def table(self) -> Table:
        """Return one row per cell: its name and status, its place on every axis, and of each metric value, low and high.

        Returns
        -------
        Table
            Columns ``cell``, ``status``, ``error``, one per axis (its dotted key; numbers where all are, text otherwise, empty where the
            cell keeps the file's value), and for each metric ``name``, ``name_low`` and ``name_high``, in SI units, NaN where there is
            no number.
        """
        columns: dict[str, NDArray[np.generic]] = {
            "cell": _texts([answer.name for answer in self.answers]),
            "status": _texts([answer.status for answer in self.answers]),
            "error": _texts([answer.error for answer in self.answers]),
        }
        columns |= {axis: _axis([answer.axes.get(axis, ABSENT) for answer in self.answers]) for axis in self.axes}
        units: dict[str, str] = {}
        for name in self.metrics():
            found = [answer.metrics.get(name) for answer in self.answers]
            for suffix, part in (("", "value"), ("_low", "low"), ("_high", "high")):
                columns[f"{name}{suffix}"] = np.array([_part(value, part) for value in found], dtype=np.float64)
                units[f"{name}{suffix}"] = next((value.unit for value in found if value is not None), "")
        return Table(columns=columns, units=units)

    def metrics(self) -> list[str]:
        """Return the names of all metrics of all cells, in the order of a run."""
        return list(dict.fromkeys(name for answer in self.done for name in answer.metrics))

    @property
    def pareto(self) -> tuple[str, str]:
        """The two metrics that the front weighs: time, with the stalls of rebalances if there are any, and drops."""
        for answer in self.done:
            step, net = (answer.metrics[name].value if name in answer.metrics else None for name in TIMES)
            if step is not None and net is not None and net > step * (1 + 1e-9):
                return TIMES[1], "drop_rate"
        return TIMES[0], "drop_rate"

    def front(self, first: str | None = None, second: str | None = None) -> tuple[Answer, ...]:
        """Return the cells that no other beats in one metric without losing in the other, from the best in ``first`` on.

        Which way is better is what each metric says; of a metric that says neither, less is. A cell that lacks one of the numbers is not
        on the front. Of cells that are equal in both, all are. Without names the metrics are those of :attr:`pareto`.
        """
        first, second = first or self.pareto[0], second or self.pareto[1]
        known = metrics()
        points = []
        for answer in self.done:
            values = [answer.metrics[name].value if name in answer.metrics else None for name in (first, second)]
            if None not in values:
                signs = [-1.0 if name in known and known[name].better == "higher" else 1.0 for name in (first, second)]
                points.append((tuple(sign * float(value or 0.0) for sign, value in zip(signs, values, strict=True)), answer))
        points.sort(key=lambda item: item[0])
        found: list[Answer] = []
        best, place = math.inf, (math.nan, math.nan)
        for (x, y), answer in points:
            if y < best or (x, y) == place:
                found.append(answer)
                best, place = y, (x, y)
        return tuple(found)


ABSENT = object()
"""Stands for the value that a cell takes from the file."""


def is_number(value: object) -> bool:
    """Tell whether a value of an axis is a number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def word(value: object) -> str:
    """Return a value of an axis as text: null, true and false as YAML has them, nothing for :data:`ABSENT`."""
    if value is ABSENT:
        return ""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _axis(values: list[object]) -> NDArray[np.generic]:
    if all(isinstance(value, int) and is_number(value) for value in values) and values:
        try:
            return np.array(values, dtype=np.int64)
        except OverflowError:
            return _texts([word(value) for value in values])
    if all(is_number(value) for value in values) and values:
        return np.array(values, dtype=np.float64)
    return _texts([word(value) for value in values])


def _texts(values: list[str]) -> NDArray[np.generic]:
    return np.asarray(values, dtype=str) if values else np.zeros(0, dtype="<U1")


def _part(value: Value | None, part: str) -> float:
    number = None if value is None else getattr(value, part)
    return math.nan if number is None else float(number)
