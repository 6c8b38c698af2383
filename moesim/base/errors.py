"""Every exception that moesim raises on purpose.

::

    MoesimError                                   exit code
    ├── ScenarioError     problems: tuple[Problem, ...]   2   a scenario file or an override is wrong
    ├── PluginError       unknown kind, broken plug-in    2
    │   └── ContractBroken  which rule of which slot      2
    ├── TraceError        a recorded file does not parse  2
    ├── FidelityError     a trace cannot answer this      2
    ├── UsageError        arguments that do not fit       2
    ├── CalibrationError  measurements that fit nothing   2
    ├── MeasurementError  a rank died or lost data        1
    ├── ResultError       results could not be written    1
    └── SimulationError                                   1
        ├── LawBroken     which law, the two numbers, where
        └── Stuck         who waits for what

All take plain positional arguments, because SimPy rebuilds an exception from its ``args``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar


class MoesimError(Exception):
    """Something a user can act on; the text is the whole message."""

    exit_code: ClassVar[int] = 1


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Problem:
    """One thing that is wrong in a file, with its place.

    Line and column count from 1; 0 means the problem has no place in a file (an override, a missing file).
    """

    file: str = ""
    line: int = 0
    column: int = 0
    path: str = ""
    message: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return ": ".join(part for part in (place, self.path, self.message) if part)


class ScenarioError(MoesimError):
    """A scenario is wrong; carries every problem found, sorted by place."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(tuple(problems))
        self.problems = tuple(sorted(problems))

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class PluginError(MoesimError):
    """A plug-in is unknown, broken, or breaks its contract."""

    exit_code = 2


class ContractBroken(PluginError):
    """A plug-in breaks a rule of its slot; ``rule`` is its name, for example ``law L11``."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(rule, message)
        self.rule = rule
        self.message = message

    def __str__(self) -> str:
        return f"{self.message} [{self.rule}]"


class TraceError(MoesimError):
    """A recorded file is missing, damaged or of the wrong shape."""

    exit_code = 2


class FidelityError(MoesimError):
    """A trace does not hold what a question needs."""

    exit_code = 2


class UsageError(MoesimError):
    """Arguments of a command or function do not fit together."""

    exit_code = 2


class CalibrationError(MoesimError):
    """Measurements cannot be read, or do not determine what is to be fitted to them."""

    exit_code = 2


class MeasurementError(MoesimError):
    """A measurement went wrong: a rank died, took too long, or received what nobody sent."""


class ResultError(MoesimError):
    """Results could not be written or read."""


class SimulationError(MoesimError):
    """The simulation itself went wrong."""


class LawBroken(SimulationError):
    """A conservation law does not hold: a defect of moesim or of a plug-in, never of the input."""


class Stuck(SimulationError):
    """Nothing is left to happen, yet somebody still waits."""


class FieldError(ValueError):
    """A rule between fields of one dataclass is broken; ``field`` is where the caret belongs.

    Raised in ``__post_init__``; the scenario loader turns it into a :class:`Problem` at that key.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(field, message)
        self.field = field
        self.message = message

    def __str__(self) -> str:
        return self.message


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a hint such as ``"; did you mean 'eplb'? (known: contiguous, eplb)"``.

    Parameters
    ----------
    word : str
        What was written.
    known : iterable of str
        What would have been right.

    Examples
    --------
    >>> did_you_mean("eplbs", ["contiguous", "eplb"])
    "; did you mean 'eplb'? (known: contiguous, eplb)"
    """
    names = sorted(known)
    # Letters in the wrong case come first: 'gb/s' may mean Gb/s or GB/s, and nobody but the writer knows which.
    near = [name for name in names if name.lower() == word.lower()] or difflib.get_close_matches(word, names, n=1, cutoff=0.55)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    listing = f" (known: {', '.join(names)})" if 0 < len(names) <= 24 else ""
    return hint + listing
