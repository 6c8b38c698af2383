"""The page of a comparison: the answer, the verdicts, the variants side by side, and every number."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from moesim import __version__
from moesim.desk.compare_shown import Shown, shown_of
from moesim.desk.compare_words import SIGNS, change, corrected, headlines, is_share, listed, price, signed, told, winner
from moesim.desk.comparing import Outcome
from moesim.desk.report import style
from moesim.desk.report.comparison.charts import differences, exposed, memory, phases, tradeoff
from moesim.desk.report.comparison.courses import courses
from moesim.desk.report.comparison.panels import experts, ranks, traffic, waiting
from moesim.desk.report.page import BASES, NOT_MODELLED, Sheet, tight
from moesim.desk.report.style import GRADIENT, Drawing
from moesim.desk.words import definitions, interval, label, show
from moesim.facts.record import Value

HERE = Path(__file__).parent / "templates"
FIGURES = (tradeoff, courses, differences, exposed, phases, memory, experts, ranks, traffic, waiting)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell of a table: its text, what it sorts by, a word for its look, a second line, and that line in words."""

    text: str
    key: str
    look: str = ""
    note: str = ""
    word: str = ""


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
    return environment.get_template("comparison.html.j2")


def drawings(given: Outcome | Shown) -> dict[str, Drawing]:
    """Return the figures by name, without those that have nothing to show."""
    shown = _taken(given)
    with style.paper():
        found = [figure(shown) for figure in FIGURES]
    return {drawing.name: drawing for drawing in found if drawing is not None}


def page(given: Outcome | Shown) -> str:
    """Return the page as HTML.

    Parameters
    ----------
    given : Outcome or Shown
        A finished comparison, or what was kept of one.

    Returns
    -------
    str
        One document without a reference to anything outside it; the same for the same comparison.
    """
    shown = _taken(given)
    comparison = shown.comparison
    meaning = definitions(comparison.metrics[comparison.baseline])
    headings = _headings(shown)
    alike = [label(name) for name in headlines(shown.by) if name not in headings and _known(shown, name)]
    html: str = _template().render(
        name=shown.name,
        subtitle=shown.evidence,
        answer=f"{winner(comparison.winner)} {price(shown)}".strip(),
        baseline=comparison.baseline,
        by=label(shown.by),
        heads=[(label(name), meaning[name]) for name in headings],
        verdicts=verdicts(shown, headings),
        alike=listed(alike) if alike else "",
        figures=drawings(shown),
        rows=rows(shown, meaning),
        warnings=shown.warnings,
        assumptions=assumptions(shown),
        not_modelled=NOT_MODELLED,
        provenance=provenance(shown),
        scenarios=[(name, side.text) for name, side in shown.sides.items()],
        bases=BASES,
        gradient=GRADIENT,
    )
    return html


def _taken(given: Outcome | Shown) -> Shown:
    return given if isinstance(given, Shown) else shown_of(given, version=__version__)


def headline_sheet(given: Outcome | Shown) -> Sheet:
    """Return the verdicts as a plain table: one row per variant, each headline metric that differs with its verdict and change."""
    shown = _taken(given)
    names = _headings(shown)
    table = [
        ((variant, ""), *((f"{cell.text} {cell.note}".strip(), cell.key) for cell in cells)) for variant, cells in verdicts(shown, names)
    ]
    columns = (("variant", "", False), *((label(name), "", True) for name in names))
    return Sheet(name="verdicts", title="Verdicts", note="", columns=columns, rows=tuple(table))


def verdicts(shown: Shown, names: list[str]) -> list[tuple[str, list[Cell]]]:
    """Return one row per variant: for each headline metric its value and the verdict with the change.

    Parameters
    ----------
    shown : Shown
    names : list of str
        The metrics.
    """
    found = []
    for variant, metrics in shown.comparison.metrics.items():
        cells = []
        for name in names:
            value = metrics[name]
            key = "" if value.value is None else repr(value.value)
            if variant == shown.comparison.baseline:
                cells.append(Cell(text=_value(name, value), key=key, look="base", note="baseline" if name == names[0] else ""))
                continue
            one = shown.comparison.differences[variant][name]
            note = f"{SIGNS[one.verdict]} {change(one, share=is_share(name, one.unit))}" if one.value is not None else ""
            cells.append(Cell(text=_value(name, value), key=key, look=one.verdict.replace(" ", "-"), note=note, word=told(one)))
        found.append((variant, cells))
    return found


def rows(shown: Shown, meaning: dict[str, str]) -> list[tuple[str, list[Cell], str, str]]:
    """Return one row per metric and variant: the variant, its cells, the metric's label and its definition."""
    found = []
    for variant, metrics in shown.comparison.metrics.items():
        for name, value in metrics.items():
            if value.value is None:
                continue
            cells = [
                Cell(text=_value(name, value), key=repr(value.value)),
                Cell(text=interval(value, share=is_share(name, value.unit)), key=""),
            ]
            if variant == shown.comparison.baseline:
                cells += [Cell(text="", key=""), Cell(text="", key=""), Cell(text="", key=""), Cell(text="baseline", key="", look="base")]
            else:
                one = shown.comparison.differences[variant][name]
                absolute = "" if one.value is None else signed(show(one.value, one.unit, share=is_share(name, one.unit)), one.value)
                cells += [
                    Cell(text="±0" if one.value == 0 else absolute, key="" if one.value is None else repr(one.value)),
                    Cell(text=change(one), key="" if one.per_cent is None else repr(one.per_cent)),
                    Cell(text=corrected(one, share=is_share(name, one.unit)), key=""),
                    Cell(text=f"{SIGNS[one.verdict]} {told(one)}", key="", look=one.verdict.replace(" ", "-")),
                ]
            found.append((variant, cells, label(name), f"{meaning[name]} ({name}, {value.basis})"))
    return found


def assumptions(shown: Shown) -> list[str]:
    """Return the assumptions of all variants, each once; those of some only with their names."""
    said: dict[str, list[str]] = {}
    for name, side in shown.sides.items():
        for sentence in side.first.assumptions:
            said.setdefault(sentence, []).append(name)
    return [text if len(names) == len(shown.sides) else f"{', '.join(names)}: {text}" for text, names in said.items()]


def provenance(shown: Shown) -> list[tuple[str, str]]:
    """Return where the comparison comes from: enough to repeat it."""
    found = [("moesim", shown.version)]
    for name, side in shown.sides.items():
        seeds = ", ".join(str(seed) for seed in side.seeds)
        found.append((name, f"scenario {side.digest[:16]}, seed{'s' if len(side.seeds) > 1 else ''} {seeds}"))
    first = next(iter(shown.sides.values())).first.facts.get("trace")
    if first:
        found.append(("trace", " · ".join(str(first[key]) for key in ("name", "digest", "origin") if first.get(key))))
    return found


def _headings(shown: Shown) -> list[str]:
    return [name for name in headlines(shown.by) if _differs(shown, name)]


def _value(name: str, value: Value) -> str:
    return show(value.value, value.unit, share=is_share(name, value.unit))


def _known(shown: Shown, name: str) -> bool:
    return any(metrics[name].value is not None for metrics in shown.comparison.metrics.values())


def _differs(shown: Shown, name: str) -> bool:
    values = {metrics[name].value for metrics in shown.comparison.metrics.values()}
    return name == shown.by or len(values) > 1
