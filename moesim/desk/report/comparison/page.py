"""The page of a comparison: the answer, the verdicts, the variants side by side, and every number."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import moesim
from moesim.desk.compare_words import SIGNS, change, corrected, evidence, headlines, is_share, listed, price, signed, told, winner
from moesim.desk.comparing import Outcome
from moesim.desk.report import style
from moesim.desk.report.comparison.charts import differences, exposed, memory, phases, tradeoff
from moesim.desk.report.comparison.panels import experts, ranks, traffic, waiting
from moesim.desk.report.page import BASES, NOT_MODELLED, Sheet, tight
from moesim.desk.report.style import GRADIENT, Drawing
from moesim.desk.scenario_text import digest, dump
from moesim.desk.words import definitions, interval, label, show
from moesim.facts.record import Value

HERE = Path(__file__).parent / "templates"
FIGURES = (tradeoff, differences, exposed, phases, memory, experts, ranks, traffic, waiting)


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


def drawings(outcome: Outcome) -> dict[str, Drawing]:
    """Return the figures by name, without those that have nothing to show."""
    with style.paper():
        found = [figure(outcome) for figure in FIGURES]
    return {drawing.name: drawing for drawing in found if drawing is not None}


def page(outcome: Outcome) -> str:
    """Return the page as HTML.

    Parameters
    ----------
    outcome : Outcome
        A finished comparison.

    Returns
    -------
    str
        One document without a reference to anything outside it; the same for the same outcome.
    """
    comparison = outcome.comparison
    meaning = definitions(comparison.metrics[comparison.baseline])
    shown = _shown(outcome)
    alike = [label(name) for name in headlines(outcome.question.by) if name not in shown and _known(outcome, name)]
    html: str = _template().render(
        name=outcome.question.name,
        subtitle=evidence(outcome),
        answer=f"{winner(comparison.winner)} {price(outcome)}".strip(),
        baseline=comparison.baseline,
        by=label(outcome.question.by),
        heads=[(label(name), meaning[name]) for name in shown],
        verdicts=verdicts(outcome, shown),
        alike=listed(alike) if alike else "",
        figures=drawings(outcome),
        rows=rows(outcome, meaning),
        warnings=outcome.warnings,
        failed=outcome.failed,
        assumptions=assumptions(outcome),
        not_modelled=NOT_MODELLED,
        provenance=provenance(outcome),
        scenarios=[(name, dump(outcome.scenario(name))) for name in outcome.played],
        bases=BASES,
        gradient=GRADIENT,
    )
    return html


def draw(outcome: Outcome) -> bytes:
    """Return the page as the bytes of its file."""
    return page(outcome).encode()


def headline_sheet(outcome: Outcome) -> Sheet:
    """Return the verdicts as a plain table: one row per variant, each headline metric that differs with its verdict and change."""
    names = _shown(outcome)
    table = [
        ((variant, ""), *((f"{cell.text} {cell.note}".strip(), cell.key) for cell in cells)) for variant, cells in verdicts(outcome, names)
    ]
    columns = (("variant", "", False), *((label(name), "", True) for name in names))
    return Sheet(name="verdicts", title="Verdicts", note="", columns=columns, rows=tuple(table))


def verdicts(outcome: Outcome, names: list[str]) -> list[tuple[str, list[Cell]]]:
    """Return one row per variant: for each headline metric its value and the verdict with the change.

    Parameters
    ----------
    outcome : Outcome
    names : list of str
        The metrics.
    """
    found = []
    for variant, metrics in outcome.comparison.metrics.items():
        cells = []
        for name in names:
            value = metrics[name]
            key = "" if value.value is None else repr(value.value)
            if variant == outcome.comparison.baseline:
                cells.append(Cell(text=_value(name, value), key=key, look="base", note="baseline" if name == names[0] else ""))
                continue
            one = outcome.comparison.differences[variant][name]
            note = f"{SIGNS[one.verdict]} {change(one, share=is_share(name, one.unit))}" if one.value is not None else ""
            cells.append(Cell(text=_value(name, value), key=key, look=one.verdict.replace(" ", "-"), note=note, word=told(one)))
        found.append((variant, cells))
    return found


def rows(outcome: Outcome, meaning: dict[str, str]) -> list[tuple[str, list[Cell], str, str]]:
    """Return one row per metric and variant: the variant, its cells, the metric's label and its definition."""
    found = []
    for variant, metrics in outcome.comparison.metrics.items():
        for name, value in metrics.items():
            if value.value is None:
                continue
            cells = [
                Cell(text=_value(name, value), key=repr(value.value)),
                Cell(text=interval(value, share=is_share(name, value.unit)), key=""),
            ]
            if variant == outcome.comparison.baseline:
                cells += [Cell(text="", key=""), Cell(text="", key=""), Cell(text="", key=""), Cell(text="baseline", key="", look="base")]
            else:
                one = outcome.comparison.differences[variant][name]
                absolute = "" if one.value is None else signed(show(one.value, one.unit, share=is_share(name, one.unit)), one.value)
                cells += [
                    Cell(text="±0" if one.value == 0 else absolute, key="" if one.value is None else repr(one.value)),
                    Cell(text=change(one), key="" if one.per_cent is None else repr(one.per_cent)),
                    Cell(text=corrected(one, share=is_share(name, one.unit)), key=""),
                    Cell(text=f"{SIGNS[one.verdict]} {told(one)}", key="", look=one.verdict.replace(" ", "-")),
                ]
            found.append((variant, cells, label(name), f"{meaning[name]} ({name}, {value.basis})"))
    return found


def assumptions(outcome: Outcome) -> list[str]:
    """Return the assumptions of all variants, each once; those of some only with their names."""
    said: dict[str, list[str]] = {}
    for name, played in outcome.played.items():
        for sentence in played.answers[0].assumptions:
            said.setdefault(sentence, []).append(name)
    return [text if len(names) == len(outcome.played) else f"{', '.join(names)}: {text}" for text, names in said.items()]


def provenance(outcome: Outcome) -> list[tuple[str, str]]:
    """Return where the comparison comes from: enough to repeat it."""
    found = [("moesim", moesim.__version__)]
    for name, played in outcome.played.items():
        seeds = ", ".join(str(seed) for seed in played.seeds)
        found.append((name, f"scenario {digest(outcome.scenario(name))[:16]}, seed{'s' if len(played.seeds) > 1 else ''} {seeds}"))
    first = next(iter(outcome.played.values())).answers[0].facts.get("trace")
    if first:
        found.append(("trace", " · ".join(str(first[key]) for key in ("name", "digest", "origin") if first.get(key))))
    return found


def _shown(outcome: Outcome) -> list[str]:
    return [name for name in headlines(outcome.question.by) if _differs(outcome, name)]


def _value(name: str, value: Value) -> str:
    return show(value.value, value.unit, share=is_share(name, value.unit))


def _known(outcome: Outcome, name: str) -> bool:
    return any(metrics[name].value is not None for metrics in outcome.comparison.metrics.values())


def _differs(outcome: Outcome, name: str) -> bool:
    values = {metrics[name].value for metrics in outcome.comparison.metrics.values()}
    return name == outcome.question.by or len(values) > 1
