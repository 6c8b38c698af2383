"""The answer of ``moesim network`` for the terminal: tables in the shape of nccl-tests, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from moesim.base.units import format_quantity
from moesim.models.sharing.told import told

MEANING = {
    "skew": "the fullest port over the mean port",
    "oversubscription": "links shared by several GPUs have less capacity than their traffic needs",
    "collisions": "routes load links that stand side by side unequally",
    "sharing": "the busiest link idles while fair shares favour others, or stages wait for each other",
    "latency": "nothing crosses the busiest link before this has passed",
}


def nccl_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return lines in the columns of nccl-tests (out-of-place): sizes in bytes, times in us, bandwidths in GB/s, two decimals.

    Source of the columns: nccl-tests ``src/alltoall.cu``, ``print_header`` and ``print_line_header``; of the width of a number
    ``src/common.cu``.
    """
    heads = ("size", "count", "type", "redop", "root", "time", "algbw", "busbw")
    units = ("(B)", "(elements)", "", "", "", "(us)", "(GB/s)", "(GB/s)")
    widths = (12, 12, 8, 6, 6, 8, 7, 7)
    lines = ["#" + "  ".join(word.rjust(width) for word, width in zip(line, widths, strict=True))[1:] for line in (heads, units)]
    for row in rows:
        cells = (
            str(row["size"]),
            str(row["count"]),
            "float",
            row["redop"],
            "0" if row["collective"] in {"broadcast", "reduce"} else "-1",
            _microseconds(row["time_s"]),
            f"{row['algbw'] / 1e9:.2f}",
            f"{row['busbw'] / 1e9:.2f}",
        )
        lines.append("  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)))
    return lines


def _microseconds(seconds: float) -> str:
    """Return a time as nccl-tests writes it: fewer decimals where the number is long.

    Examples
    --------
    >>> _microseconds(5.432e-6), _microseconds(0.012345678)
    ('5.43', '12346')
    """
    value = seconds * 1e6
    return f"{value:.2f}" if value < 999.995 else f"{value:.1f}" if value < 9999.95 else f"{value:.0f}"


COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "nodes": ("nodes", str),
    "gpus": ("GPUs", str),
    "senders": ("senders", str),
    "time_s": ("time", lambda value: format_quantity(value, "s")),
    "algbw": ("algbw", lambda value: format_quantity(value, "B/s")),
    "busbw": ("busbw", lambda value: format_quantity(value, "B/s")),
    "rate_per_sender": ("rate of a sender", lambda value: format_quantity(value, "B/s")),
    "rate": ("rate of the receiver", lambda value: format_quantity(value, "B/s")),
    "port_class": ("port", str),
    "share_of_port": ("of its rate", lambda value: f"{100 * value:.0f} %"),
    "bottleneck": ("bottleneck", str),
    "largest": ("largest factor", str),
}


def plain_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return aligned lines, numbers flush right and words flush left."""
    shown = [name for name in COLUMNS if name in rows[0]]
    cells = [["-" if row[name] is None else COLUMNS[name][1](row[name]) for name in shown] for row in rows]
    return aligned(
        [[COLUMNS[name][0] for name in shown], *cells], left={shown.index(name) for name in ("bottleneck", "largest") if name in shown}
    )


def aligned(cells: Sequence[Sequence[str]], *, left: set[int], indent: str = "") -> list[str]:
    """Return rows of cells as lines of equal columns; the columns in ``left`` begin flush, the others end flush."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = []
    for row in cells:
        parts = [cell.ljust(width) if at in left else cell.rjust(width) for at, (cell, width) in enumerate(zip(row, widths, strict=True))]
        lines.append((indent + "  ".join(parts)).rstrip())
    return lines


def table(answer: Mapping[str, Any]) -> str:
    """Return the whole answer as text."""
    lines = [f"{answer['name']}: {answer['question']}", ""]
    rows = answer["rows"]
    if rows:
        lines += nccl_table(rows) if "redop" in rows[0] else plain_table(rows)
        lines.append("")
    if answer["why"] is None:
        lines.append("Nothing was sent.")
    else:
        lines += _found(answer)
    lines += [f"Note: {note}" for note in answer["notes"]]
    return "\n".join(lines) + "\n"


def _found(answer: Mapping[str, Any]) -> list[str]:
    why, finish = answer["why"], answer["finish_s"]
    port, rate = why["port_class"], why["port_bandwidth"]
    crossing = f"{100 * answer['cross_node_share']:.0f} % of the bytes leave their node"
    last = "The last row" if answer["rows"] else "This"
    asked = format_quantity(answer["total_bytes"], "B")
    sent = f"{last} takes {format_quantity(finish, 's')}; GPUs send {asked} to each other, {crossing}."
    bandwidth = f"algbw {format_quantity(answer['algbw'], 'B/s')}, busbw {format_quantity(answer['busbw'], 'B/s')}; a port ({port}, "
    bandwidth += f"{format_quantity(rate, 'B/s')} each way) moves {format_quantity(rate * why['share_of_port'], 'B/s')} on average, "
    shared = told(answer["sharing"])
    lines = [sent, f"{bandwidth}{100 * why['share_of_port']:.3g} % of its rate.", f"{shared[0].upper()}{shared[1:]}."]
    lines += ["", "Why not all of it"]
    steps = [["", format_quantity(why["ideal_s"], "s"), f"every {port} port equally loaded and never idle"]]
    steps += [[f"x {factor:.3f}", name, MEANING[name]] for name, factor in why["factors"].items()]
    steps.append([f"= {why['slowdown']:.3f}", format_quantity(finish, "s"), f"{100 * why['share_of_port']:.3g} % of the rate of the ports"])
    lines += [*aligned(steps, left={1, 2}, indent="  "), ""]
    full, senders = why["bottleneck"], answer["incast"]["degree"]
    kind = f"{full['link_class']}, {format_quantity(full['bandwidth'], 'B/s')}"
    crossed = f"{_of(full['flows'], 'flow')} from {full['sources']} to {_of(full['destinations'], 'GPU')}"
    lines += [
        f"Bottleneck: {full['name']} ({kind}), {100 * full['utilisation']:.3g} % full; {crossed}.",
        f"Incast: up to {_of(senders, 'GPU')} at once send to one.",
        "",
        "Links, and how full they are over time (tenths of the bandwidth, mean of the class; 9 is 90 % and more)",
    ]
    rows = [
        ["class", "links", "bytes", "mean", "most", "fullest", f"from 0 to {format_quantity(finish, 's')}"],
        *(_class_row(found, answer["over_time"]["classes"][found["link_class"]]["mean"]) for found in answer["classes"]),
    ]
    return [*lines, *aligned(rows, left={0, 5, 6}, indent="  ")]


def _class_row(found: Mapping[str, Any], over_time: Sequence[float]) -> list[str]:
    return [
        found["link_class"],
        str(found["links"]),
        format_quantity(found["bytes"], "B"),
        f"{100 * found['mean_utilisation']:.0f} %",
        f"{100 * found['max_utilisation']:.0f} %",
        found["fullest"] if found["bytes"] else "-",
        digits(over_time),
    ]


def _of(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def digits(shares: Sequence[float]) -> str:
    """Return one digit for each share: its tenths, 9 from 90 % on, a point where nothing moved.

    Examples
    --------
    >>> digits([0.0, 0.04, 0.55, 1.0])
    '.059'
    """
    return "".join("." if share == 0 else str(min(int(10 * share + 1e-6), 9)) for share in shares)
