"""A page of a study: the answer, its pictures and tables, and what it rests on; the same frame for every study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from moesim.desk.report.page import NOT_MODELLED, Sheet, Tile, tight
from moesim.desk.report.style import GRADIENT, Drawing
from moesim.desk.words import SHARES, show
from moesim.study.cell import Scalar

HERE = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A section of a page: sentences, figures, tables, and tables that are folded until somebody asks."""

    name: str
    title: str
    notes: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    sheets: tuple[Sheet, ...] = ()
    folded: tuple[Sheet, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Everything that stands on a page.

    Parameters
    ----------
    study : str
        The command: ``sweep``.
    how : str
        How the numbers were made, after the name of the program.
    name : str
        Of the scenario.
    subtitle : tuple of str
        What was done, in short pieces.
    answer : str
        In one or two sentences.
    warnings : tuple of str
    tiles : tuple of Tile
        Headline numbers.
    parts : tuple of Part
        The sections, without empty ones.
    rests_on : tuple of str
        How to read it.
    provenance : tuple of (str, str)
        What it takes to repeat it.
    texts : tuple of (str, str)
        Titles and texts that are folded, such as the scenario.
    """

    study: str
    how: str
    name: str
    subtitle: tuple[str, ...]
    answer: str
    parts: tuple[Part, ...]
    warnings: tuple[str, ...] = ()
    tiles: tuple[Tile, ...] = ()
    rests_on: tuple[str, ...] = ()
    provenance: tuple[tuple[str, str], ...] = ()
    texts: tuple[tuple[str, str], ...] = ()


def written(page: Page) -> str:
    """Return a page as HTML: one document without a reference to anything outside it."""
    html: str = _template().render(page=page, gradient=GRADIENT, not_modelled=NOT_MODELLED)
    return html.lstrip()


@cache
def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([HERE, HERE.parents[1] / "templates"]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["tight"] = tight
    return environment.get_template("study.html.j2")


def number(value: float | None, name: str, unit: str) -> tuple[str, str]:
    """Return a cell of a table with a value of a metric: its text and what it sorts by; both empty where there is none."""
    if value is None:
        return "", ""
    return show(value, unit, share=name in SHARES and unit == ""), repr(value)


def text(value: str) -> tuple[str, str]:
    """Return a cell of a table with text."""
    return value, value


def is_number(value: Scalar) -> bool:
    """Tell whether a value of an axis is a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def axis_cell(value: Scalar, word: str, *, numeric: bool) -> tuple[str, str]:
    """Return a cell with the value of an axis."""
    return word, repr(value) if numeric else word


def drawn(found: Iterable[Drawing | None]) -> tuple[Drawing, ...]:
    """Return the drawings that have something to show."""
    return tuple(drawing for drawing in found if drawing is not None)


def value_in(metrics: Mapping[str, Any], name: str) -> float | None:
    """Return the value of a metric as JSON has it; None where there is none."""
    found = metrics.get(name)
    return None if found is None else found["value"]


def units_in(cells: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the units of all metrics that cells have, in their order."""
    return {name: metric["unit"] for cell in cells for name, metric in cell["metrics"].items() if "unit" in metric}
