"""How the readers of one description say what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from moesim.base.errors import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file that is being read."""

    path: str
    text: str

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return self.path.replace("\\", "/").rsplit("/", 1)[-1]

    def fault(self, message: str, *, line: int = 0, column: int = 0) -> Fault:
        """Return the error that says what is wrong in one line; 0 for the file as a whole."""
        return Fault([Problem(file=self.path, line=line, column=column or (1 if line else 0), message=message)])


class Fault(Exception):
    """A description cannot be used; never leaves this package."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        super().__init__()
        self.problems = tuple(problems)
