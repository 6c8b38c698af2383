"""What every study gives back: an answer, the data of its files, tables for pandas, a view for notebooks, and its page."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesim.base.errors import UsageError, did_you_mean
from moesim.base.fragment import fragment
from moesim.base.frames import frame
from moesim.desk import folder as places
from moesim.desk.cell_store import Store
from moesim.desk.report.page import Sheet
from moesim.study.cell import Answer, Cell

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Study(ABC):
    """A finished study.

    Parameters
    ----------
    name : str
        Of the scenario.
    content : mapping
        What the command writes as JSON: plain numbers and text, in SI units.
    warnings : tuple of str
        What must be said about it.
    """

    name: str
    content: Mapping[str, Any]
    warnings: tuple[str, ...] = ()

    @property
    @abstractmethod
    def answer(self) -> str:
        """The outcome in a few sentences."""

    def page(self) -> str:
        """Return the page as HTML, the same as ``report.html`` of the command; it needs nothing beside it."""
        return self._page()

    def save(self, folder: str | Path) -> None:
        """Write the folder that the command writes; the answers of single runs only where drawing the page again takes them.

        Raises
        ------
        UsageError
            If the folder holds other files of those names.
        ResultError
            If a file cannot be written.
        """
        places.prepare(Path(folder), self._files)
        self._deliver(Path(folder))

    @property
    @abstractmethod
    def _files(self) -> frozenset[str]:
        """Return the names of the files that the command writes."""

    @abstractmethod
    def _page(self) -> str:
        """Return the page as HTML."""

    @abstractmethod
    def _deliver(self, folder: Path) -> None:
        """Write the files into a folder that takes them."""

    @abstractmethod
    def _rows(self) -> Mapping[str, Callable[[], Sequence[Row]]]:
        """Return what makes the rows of each table, the most asked for first."""

    @abstractmethod
    def _sheet(self) -> Sheet:
        """Return the table that a notebook shows."""

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables that :meth:`to_pandas` knows, the default first."""
        return tuple(self._rows())

    def to_pandas(self, table: str | None = None) -> Any:
        """Return one of :attr:`tables` as a pandas data frame, in SI units.

        Parameters
        ----------
        table : str, optional
            The first if left out.

        Raises
        ------
        UsageError
            If there is no such table.
        ImportError
            If pandas is not installed; the message says how to get it.
        """
        known = self._rows()
        chosen = next(iter(known)) if table is None else table
        if chosen not in known:
            raise UsageError(f"there is no table {chosen!r}{did_you_mean(chosen, known)}")
        rows = known[chosen]()
        names = list(dict.fromkeys(name for row in rows for name in row))
        return frame({name: [row.get(name) for row in rows] for name in names})

    def _repr_html_(self) -> str:
        """Return the answer and the main table for a notebook."""
        sheet = self._sheet()
        heads = [(heading, numeric) for heading, _, numeric in sheet.columns]
        rows = [[text for text, _ in row] for row in sheet.rows]
        return fragment(self.name, [self.answer, *(f"Note: {warning}" for warning in self.warnings)], heads, rows)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.answer}>"


def player(executor: str, jobs: int | None) -> Callable[[Sequence[Cell]], list[Answer]]:
    """Return what plays cells and keeps their answers in memory."""
    return Store(None, executor=executor, jobs=jobs)
