"""A comparison for the terminal: the answer, then what each variant costs and changes."""

from __future__ import annotations

import io
from pathlib import Path

from moesim.desk.compare_words import SIGNS, change, corrected, evidence, headlines, is_share, price, told, winner
from moesim.desk.comparing import Outcome
from moesim.desk.words import label, show

WIDE = 110
"""From this many columns on, a table has the corrected intervals as well."""


def table(outcome: Outcome, folder: Path, *, width: int = 160, colour: bool = False) -> str:
    """Return what ``moesim compare`` prints.

    Parameters
    ----------
    outcome : Outcome
    folder : Path
        Where the files are.
    width : int
        Columns of the terminal.
    colour : bool
        Whether to use bold type.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = io.StringIO()
    console = Console(
        file=out, width=width, force_terminal=colour, color_system="standard" if colour else None, highlight=False, markup=False,
        emoji=False, legacy_windows=False,
    )  # fmt: skip
    comparison = outcome.comparison
    console.print(Text(outcome.question.name, style="bold"))
    console.print(evidence(outcome), soft_wrap=True)
    console.print()
    console.print(Text(winner(comparison.winner), style="bold"), soft_wrap=True)
    if said := price(outcome):
        console.print(said, soft_wrap=True)
    for name in headlines(outcome.question.by):
        values = {variant: metrics[name] for variant, metrics in comparison.metrics.items()}
        known = [value.value for value in values.values() if value.value is not None]
        if not known or (name != outcome.question.by and len(set(known)) == 1):
            continue
        console.print()
        console.print(Text(label(name), style="bold"))
        grid = Table.grid(padding=(0, 2, 0, 0))
        for column in range(5):
            grid.add_column(no_wrap=column < 4, justify="right" if column in {1, 2} else "left")
        for variant, value in values.items():
            share = is_share(name, value.unit)
            shown = show(value.value, value.unit, share=share)
            if variant == comparison.baseline:
                grid.add_row(f"  {variant}", shown, "", "baseline", "")
                continue
            found = comparison.differences[variant][name]
            between = corrected(found, share=share) if width >= WIDE else ""
            grid.add_row(f"  {variant}", shown, change(found, share=share), f"{SIGNS[found.verdict]} {told(found)}", between)
        console.print(grid)
    alike = [name for name in headlines(outcome.question.by)[1:] if _alike(outcome, name)]
    if alike:
        console.print()
        console.print(f"the same for all: {', '.join(label(name) for name in alike)}", soft_wrap=True)
    console.print()
    console.print(f"Results in {folder}", soft_wrap=True)
    return "\n".join(line.rstrip() for line in out.getvalue().split("\n"))


def _alike(outcome: Outcome, name: str) -> bool:
    values = [metrics[name].value for metrics in outcome.comparison.metrics.values()]
    return values[0] is not None and len(set(values)) == 1
