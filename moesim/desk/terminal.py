"""A result for the terminal: sections of aligned lines, the answer first."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moesim.desk.words import PHASES, imbalance, line, phase_seconds, show, value_of
from moesim.facts.record import Result, Value
from moesim.models.sharing.told import told

SECTIONS: dict[str, tuple[str, ...]] = {
    "Drops": ("drop_rate", "fully_dropped_tokens", "capacity_utilisation", "padding_waste"),
    "Network": (
        "dispatch_transfer_time",
        "combine_transfer_time",
        "waiting_time",
        "exposed_communication",
        "cross_node_bytes",
        "busiest_link_utilisation",
        "all_to_all_contention",
    ),
    "Memory": ("peak_memory",),
}
"""Which metrics stand together; what is not named here or elsewhere comes last."""

_ELSEWHERE = frozenset(
    {
        "step_time",
        "net_step_time",
        "step_time_if_balanced",
        "step_time_if_no_communication",
        "tokens_per_second",
        "waiting_share",
        "rank_max_over_mean",
        "expert_max_over_mean",
        "maxvio",
        "balancedness",
        "balancedness_vllm",
        "attention_time",
        "expert_time",
    }
)
_PLAIN = str.maketrans(
    {
        "µ": "u",
        "÷": "/",
        "−": "-",
        "–": "-",
        "—": "-",
        "×": "x",
        "█": "#",
        "▌": "#",
        "·": "|",
        "Σ": "sum ",
        "±": "+/-",
        "…": "...",
        "’": "'",
        "▲": "^",
        "▼": "v",
        "○": "o",
    }
)
BAR = 28
"""Characters of a full bar."""


def table(result: Result, folder: Path | str, *, width: int = 100, colour: bool = False) -> str:
    """Return a result as text.

    Parameters
    ----------
    result : Result
        A finished run.
    folder : path
        Where its files are; named last.
    width : int
        Characters of a line.
    colour : bool
        Whether the terminal understands escape sequences.
    """
    from rich.console import Console
    from rich.text import Text

    out = io.StringIO()
    console = Console(
        file=out,
        width=width,
        force_terminal=colour,
        color_system="standard" if colour else None,
        highlight=False,
        markup=False,
        emoji=False,
    )
    console.print(Text(result.scenario.name, style="bold"))
    console.print(" · ".join(_about(result)))
    if "sharing" in result.facts:
        console.print(told(result.facts["sharing"]), soft_wrap=True)
    _section(console, "Step", [_step_time(result), *_lines(result, ("tokens_per_second",))])
    _section(console, "Where the time goes (mean over GPUs)", _shares(result), right=2)
    _section(console, "Drops", _lines(result, SECTIONS["Drops"]))
    _section(console, "Imbalance", [(f"{of}: {formula}", value, name) for of, formula, name, value in imbalance(result)])
    for title in ("Network", "Memory"):
        _section(console, title, _lines(result, SECTIONS[title]))
    named = _ELSEWHERE.union(*SECTIONS.values())
    _section(console, "Other", _lines(result, [name for name in result.metrics if name not in named]))
    console.print()
    count = len(result.tables["steps"])
    bound = f"Intervals bound the mean over {count} steps at 95 %; t" if count > 1 else "T"
    console.print(f"{bound}he last word of a line is the weakest thing its number rests on (measured: recorded routing).", soft_wrap=True)
    console.print(f"Results in {folder}", soft_wrap=True)
    return "\n".join(row.rstrip() for row in out.getvalue().splitlines()) + "\n"


def plain(text: str, encoding: str | None) -> str:
    """Return ``text`` as a terminal of this encoding can show it: signs that it lacks become ASCII.

    Examples
    --------
    >>> plain("−22 %, 3 µs", "ascii")
    '-22 %, 3 us'
    """
    encoding = encoding or "ascii"
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return text.translate(_PLAIN).encode("ascii", "replace").decode()
    return text


def _about(result: Result) -> list[str]:
    facts, scenario = result.facts, result.scenario
    count = len(result.tables["steps"])
    return [
        f"{facts.get('gpus', '?')} GPUs in {facts.get('nodes', '?')} node{'' if facts.get('nodes') == 1 else 's'}",
        f"{facts.get('moe_layers', '?')} MoE layers, {facts.get('experts', '?')} experts, top {facts.get('top_k', '?')}",
        f"EP {scenario.parallel.ep}" + (f" of {scenario.parallel.etp} GPUs each" if scenario.parallel.etp > 1 else ""),
        f"{scenario.workload.phase}, {facts.get('tokens_per_step', 0):,.0f} tokens a step",
        f"{count} measured step{'' if count == 1 else 's'}",
        f"seed {scenario.seed}",
    ]


def _step_time(result: Result) -> tuple[str, ...]:
    value = result.metrics.get("step_time") or Value(value=None, unit="s", low=None, high=None, n=0, basis="assumed")
    found = line("step_time", value)
    parts = [found.value]
    for name, words in (("step_time_if_balanced", "if balanced"), ("step_time_if_no_communication", "without communication")):
        bound = value_of(result, name)
        if bound is not None:
            parts.append(f"{show(bound, 's')} {words}")
    return found.label, "; ".join(parts), found.interval, found.basis


def _lines(result: Result, names: Sequence[str]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name in names:
        value = result.metrics.get(name)
        if value is not None and value.value is not None:
            found = line(name, value)
            rows.append((found.label, found.value, found.interval, found.basis))
    return rows


def _shares(result: Result) -> list[tuple[str, ...]]:
    gpus = result.tables["gpus"]
    if not len(gpus):
        return []
    seconds: Mapping[str, float] = {PHASES[name][0]: float(values.mean()) for name, values in phase_seconds(gpus).items()}
    step = value_of(result, "step_time") or sum(seconds.values())
    if not step > 0:
        return []
    rows: list[tuple[str, ...]] = []
    for label, spent in seconds.items():
        part = spent / step
        if part >= 0.0005:
            rows.append((label, show(spent, "s"), f"{100 * part:.1f} %", "█" * round(BAR * part)))
    return rows


def _section(console: Any, title: str, rows: Sequence[tuple[str, ...]], *, right: int = 0) -> None:
    """Print a title and aligned rows; the columns 1 … ``right`` hold numbers and end flush."""
    if not rows:
        return
    from rich.table import Table
    from rich.text import Text

    console.print()
    console.print(Text(title, style="bold"))
    grid = Table.grid(padding=(0, 2, 0, 0))
    for column in range(len(rows[0])):
        numeric = 0 < column <= right
        grid.add_column(no_wrap=column < 2, min_width=34 if column == 0 else None, justify="right" if numeric else "left")
    for first, *rest in rows:
        grid.add_row(f"  {first}", *rest)
    console.print(grid)
