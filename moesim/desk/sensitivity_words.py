"""A study of inputs in words and as files."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from pathlib import Path
from typing import Any

import moesim
from moesim.desk import study_folder
from moesim.desk.sensitivity_ask import Studied
from moesim.desk.sensitivity_inputs import text
from moesim.desk.summary import SCHEMA
from moesim.desk.words import SHARES, label, show
from moesim.study.sensitivity import Input, Swing

JSON, CSV, FIGURE = "sensitivity.json", "sensitivity.csv", "tornado"
NAMES = frozenset({JSON, CSV, f"{FIGURE}.png", f"{FIGURE}.svg", study_folder.REPORT, study_folder.META})


def at(given: Input, value: float) -> str:
    """Write a value of an input for people."""
    return show(value, given.dimension) if given.dimension else f"{value:.4g}" if not given.whole else text(given, value)


def change(value: float | None, base: float) -> str:
    """Write a change against the base.

    Examples
    --------
    >>> change(1.1, 1.0), change(1.0, 1.0), change(None, 1.0)
    ('+10.0 %', '0', '—')
    """
    if value is None:
        return "—"
    if value == base:
        return "0"
    share = 100 * (value / base - 1) if base else 0.0
    return (f"{share:+.1f} %" if abs(share) >= 0.05 else f"{share:+.1g} %") if base else f"{value:+.3g}"


def sentences(found: Studied) -> list[str]:
    """Return what the table says, in words."""
    lines = []
    moving = [swing for swing in found.swings if swing.reach(found.base) > 0]
    if moving:
        first = moving[0]
        share = f" ({100 * first.reach(found.base) / abs(found.base):.3g} %)" if found.base else ""
        lines.append(f"{first.given.key} moves {label(found.metric)} most, by up to {_shown(found, first.reach(found.base))}{share}")
    else:
        lines.append(f"no input moves {label(found.metric)}")
    if found.silent:
        told = [f"{key} ({why})" if why else key for key, why in found.silent.items()]
        lines.append(f"Changed nothing: {'; '.join(told)}")
    if found.elsewhere:
        lines.append(f"Changed other metrics but not {label(found.metric)}: {', '.join(found.elsewhere)}")
    if found.winners:
        top = found.winners[found.best]
        where = "of the samples" if found.indices else "of the ends of the ranges, one input at a time"
        others = ", ".join(f"{name} {100 * share:.3g} %" for name, share in found.winners.items() if name != found.best)
        lines.append(f"Winner: {found.best}, in {100 * top:.3g} % {where} ({others})")
        if found.flips:
            lines.append(f"Another one wins at: {'; '.join(found.flips)}")
    return lines


def _shown(found: Studied, value: float | None) -> str:
    return show(value, found.unit, share=found.metric in SHARES)


def table(found: Studied, folder: Path | None, *, width: int = 160, colour: bool = False) -> str:
    """Return what ``moesim sensitivity`` prints."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = io.StringIO()
    console = Console(
        file=out, width=width, force_terminal=colour, color_system="standard" if colour else None, highlight=False, markup=False,
        emoji=False, legacy_windows=False,
    )  # fmt: skip
    console.print(Text(found.name, style="bold"), soft_wrap=True)
    console.print(f"{label(found.metric)}: {_shown(found, found.base)}", soft_wrap=True)
    console.print()
    for line in sentences(found):
        console.print(line, soft_wrap=True)
    indices = {index.key: index for index in found.indices}
    grid = Table.grid(padding=(0, 2, 0, 0))
    heads = ["input", "from", "to", "at the low end", "at the high end"]
    heads += ["share of variance, alone", "with interactions"] if indices else []
    for column in range(len(heads)):
        grid.add_column(no_wrap=True, justify="left" if column == 0 else "right")
    grid.add_row(*heads)
    for swing in found.swings:
        if swing.given.key in found.silent:
            continue
        row = [swing.given.key, at(swing.given, swing.given.low), at(swing.given, swing.given.high)]
        row += [change(end, found.base) for end in (swing.at_low, swing.at_high)]
        index = indices.get(swing.given.key)
        if index is not None:
            row += [_index(index.first, index.first_low, index.first_high), _index(index.total, index.total_low, index.total_high)]
        grid.add_row(*row, *[""] * (len(heads) - len(row)))
    console.print()
    console.print(grid)
    if folder is not None:
        console.print()
        console.print(f"Results in {folder}", soft_wrap=True)
    return "\n".join(line.rstrip() for line in out.getvalue().split("\n"))


def _index(value: float, low: float, high: float) -> str:
    return f"{value:.2f} ({low:.2f} – {high:.2f})"


def content(found: Studied) -> dict[str, Any]:
    """Return the content of ``sensitivity.json``. Its keys are a contract; add to them, do not rename."""
    return {
        "schema": SCHEMA,
        "version": moesim.__version__,
        "name": found.name,
        "metric": found.metric,
        "unit": found.unit,
        "base": found.base,
        "runs": found.runs,
        "answer": sentences(found),
        "inputs": [_swing(swing, found) for swing in found.swings],
        "no_effect": dict(found.silent),
        "other_metrics_only": list(found.elsewhere),
        "sobol": [dataclasses.asdict(index) for index in found.indices],
        "variance": found.variance if found.indices else None,
        "winner": found.best or None,
        "winners": dict(found.winners),
        "winner_changes_at": list(found.flips),
        "warnings": list(found.warnings),
    }


def _swing(swing: Swing, found: Studied) -> dict[str, Any]:
    return {
        "key": swing.given.key,
        "base": swing.given.base,
        "low": swing.given.low,
        "high": swing.given.high,
        "unit": swing.given.dimension,
        "at_low": swing.at_low,
        "at_high": swing.at_high,
        "reach": swing.reach(found.base),
        "changed": list(swing.changed),
        "problem": swing.problem or None,
    }


def csv_text(found: Studied) -> str:
    """Return one row per input, the largest reach first; SI units."""
    indices = {index.key: index for index in found.indices}
    names = ("first", "first_low", "first_high", "total", "total_low", "total_high")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["key", "unit", "base", "low", "high", "at_low", "at_high", "reach", *names, "no_effect", "why"])
    for swing in found.swings:
        index = indices.get(swing.given.key)
        row: list[object] = [swing.given.key, swing.given.dimension, swing.given.base, swing.given.low, swing.given.high]
        row += [swing.at_low, swing.at_high, swing.reach(found.base)]
        row += [getattr(index, name) if index is not None else None for name in names]
        row += [swing.given.key in found.silent, found.silent.get(swing.given.key, swing.problem)]
        writer.writerow([_cell(item) for item in row])
    return out.getvalue()


def _cell(value: object) -> object:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, float) else value


def deliver(found: Studied, folder: Path, *, report: bool = True) -> None:
    """Write everything into a folder, with the page if ``report``.

    Raises
    ------
    ResultError
        If a file cannot be written.
    """
    from moesim.desk.report.study.sensitivity import page
    from moesim.desk.sensitivity_picture import pictures

    files = {CSV: csv_text(found).encode(), **pictures(found)}
    study_folder.deliver(folder, "sensitivity", NAMES, content(found), files, answer=JSON, page=page if report else None)
