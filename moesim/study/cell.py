"""One run of a study, before and after: what is to be played, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from moesim.facts.arrays import Bools, Floats, Ints
from moesim.facts.record import Table, Value

Scalar = str | int | float | bool | None
"""What stands on an axis of a study: one value of one key."""

DONE = "done"
FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run of a study, as plain data that another process or another machine can play.

    Parameters
    ----------
    name : str
        For people: in tables, figures and messages.
    text : str
        The resolved scenario as YAML, with absolute paths; it loads back equal (law L13).
    folder : str
        The folder that relative paths in ``text`` would start from.
    axes : mapping of str to scalar
        Where the cell stands in its study: dotted key to value.
    digest : str
        SHA-256 of what the scenario means, of the contents of its inputs, of ``tables`` and of the version of moesim: two cells with the
        same digest have the same answer.
    version : str
        Of moesim, if it matters: a worker with another one then refuses.
    inputs : mapping of str to str
        SHA-256 of every file that the run reads, by absolute path.
    tables : tuple of str
        Names of the tables of the run that its answer shall keep.
    """

    name: str
    text: str
    folder: str
    axes: Mapping[str, Scalar]
    digest: str
    version: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)
    tables: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of one cell.

    Parameters
    ----------
    name, digest, axes
        Of the cell.
    status : str
        ``done`` or ``failed``.
    error : str
        Why it failed; empty if it did not.
    metrics : mapping of str to Value
        Every registered metric.
    samples : mapping of str to float[steps]
        What each metric says of every measured step; NaN where it cannot tell.
    steps : int[steps]
        Numbers of the measured steps.
    fresh : bool[steps]
        False where a step replays tokens that an earlier measured step had: it is no new sample.
    facts : mapping
        Of the run, without the graph of the cluster.
    warnings, assumptions : tuple of str
        Of the run.
    tables : mapping of str to Table, or None
        Those that the cell asked for.
    """

    name: str
    digest: str
    axes: Mapping[str, Scalar]
    status: str = DONE
    error: str = ""
    metrics: Mapping[str, Value] = field(default_factory=dict)
    samples: Mapping[str, Floats] = field(default_factory=dict)
    steps: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    fresh: Bools = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
    tables: Mapping[str, Table] | None = None

    @property
    def done(self) -> bool:
        """Whether there are metrics."""
        return self.status == DONE

    def as_of(self, cell: Cell) -> Answer:
        """Return the same answer under the name and the axes of another cell with the same digest."""
        if cell.digest != self.digest:
            raise ValueError(f"the answer of cell {self.digest[:12]} is not that of cell {cell.digest[:12]}")
        return replace(self, name=cell.name, axes=cell.axes)


def failure(cell: Cell, error: str) -> Answer:
    """Return the answer of a cell that failed."""
    return Answer(name=cell.name, digest=cell.digest, axes=cell.axes, status=FAILED, error=error)
