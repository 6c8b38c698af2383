"""Which rows of a measured table can be asked about at all: no empty, negative, absurd or impossible sizes; and why the others cannot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Bools
from moesim.models.fitted.rows import Rows, count

MOST = 1e15
"""Nothing that a table counts is larger: neither tokens nor bytes."""

MOST_OF_A_GROUP = 2**14
"""More experts, ranks, nodes or choices than any machine of these tables has; what models hold in memory grows with them."""

GROUP_SIZES = (
    "num_experts", "num_slots", "num_local_experts", "topk", "num_topk", "top_k", "moe_ep_size", "ep", "num_gpus", "node_num",
    "num_workers", "devices_per_node", "dispatch_sms", "combine_sms",
)  # fmt: skip
WIDTHS = ("hidden_size", "inter_size", "intermediate_size")
MOST_TOKENS = 2**27
"""Of a batch; routings are drawn expert by expert, so that the time does grow with tokens where few experts take nearly all."""

TOKENS = ("num_tokens", "tokens_per_rank", "tokens_per_gpu")
CHOICES = ("topk", "num_topk", "top_k")

MEASURED_ENDS = ("_us", "_ms", "_ns", "_s", "_GBps", "_rate")
MEASURED = ("token_count", "count", "load")
"""What may be empty because nothing was measured: the kind of the table tells that itself."""

MAY_BE_EMPTY = ("rank0_num_tokens", "comm_sms", "bandwidth_basis", "quant")
"""Columns that a kind of table can do without in single rows."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Rows that cannot be asked about: how many, and why."""

    rows: int
    reason: str


def sane(columns: Sequence[str], rows: Rows) -> tuple[Bools, list[LeftOut]]:
    """Tell which rows can be asked about, and why the others cannot.

    Parameters
    ----------
    columns : sequence of str
        That the kind of the table needs; all are in ``rows``.
    rows : Rows
        n of them.

    Returns
    -------
    good : Bools[n]
    left : list of LeftOut
        Each row that is not good is counted once, under the first thing that is wrong with it.

    Examples
    --------
    >>> good, left = sane(("ep", "topk"), {"ep": np.array([8, 0, 8]), "topk": np.array([2.0, 2.0, np.nan])})
    >>> good.tolist(), [item.reason for item in left]
    ([True, False, False], ['column ep: 0 is not above 0', 'column topk is empty'])
    """
    good = np.ones(count(rows), dtype=np.bool_)
    left: list[LeftOut] = []
    for wrong, reason in _complaints(columns, rows):
        fresh = wrong & good
        if np.any(fresh):
            left.append(LeftOut(int(fresh.sum()), reason))
            good &= ~wrong
    return good, left


def _complaints(columns: Sequence[str], rows: Rows) -> Iterator[tuple[Bools, str]]:
    for name in columns:
        column = rows[name]
        if not (name.endswith(MEASURED_ENDS) or name in MEASURED or name in MAY_BE_EMPTY):
            yield _empty(column), f"column {name} is empty"
        if column.dtype.kind in "if":
            yield from _of_numbers(name, np.nan_to_num(np.asarray(column, dtype=np.float64), nan=1.0, posinf=np.inf, neginf=-np.inf))
    yield from _of_choices(columns, rows)


def _of_numbers(name: str, values: NDArray[np.float64]) -> Iterator[tuple[Bools, str]]:
    yield _each(name, values, values < 0, "is negative")
    most = MOST_OF_A_GROUP if name in GROUP_SIZES else MOST_TOKENS if name in TOKENS else MOST
    yield _each(name, values, values > most, f"is larger than {most:g}")
    if name in (*GROUP_SIZES, *WIDTHS, *TOKENS):
        yield _each(name, values, values == 0, "is not above 0")
    if name in (*GROUP_SIZES, *WIDTHS):
        yield _each(name, values, values != np.rint(values), "is no whole number")


def _of_choices(columns: Sequence[str], rows: Rows) -> Iterator[tuple[Bools, str]]:
    chosen = next((name for name in CHOICES if name in columns), "")
    if not chosen or "num_experts" not in columns or any(rows[name].dtype.kind not in "if" for name in (chosen, "num_experts")):
        return
    wrong = np.asarray(rows[chosen] > rows["num_experts"])
    row = int(np.argmax(wrong)) if len(wrong) else 0
    shown = f"{float(rows[chosen][row]):g} choices of {float(rows['num_experts'][row]):g} experts" if np.any(wrong) else ""
    yield wrong, f"column {chosen}: a token cannot make {shown}"


def _empty(column: NDArray[Any]) -> Bools:
    if column.dtype.kind == "f":
        return np.asarray(np.isnan(column))
    return np.asarray(column == "") if column.dtype.kind == "U" else np.zeros(len(column), dtype=np.bool_)


def _each(name: str, values: NDArray[np.float64], wrong: Bools, what: str) -> tuple[Bools, str]:
    shown = f"{values[wrong][0]:g}" if np.any(wrong) else ""
    return wrong, f"column {name}: {shown} {what}"
