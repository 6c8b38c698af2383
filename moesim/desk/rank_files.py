"""Recordings of what unequal ranks brought to each step, for ``workload.ranks.file``."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesim.base.errors import FieldError, Problem
from moesim.facts.ranks import MOST_CONTEXT, MOST_TOKENS, RankStep

LARGEST = 64 * 2**20
"""Bytes; a step of 1,000 ranks has about 15 kilobytes."""

NEEDED = ("step", "rank", "tokens")


def read_ranks(path: str, keys: Mapping[str, Any]) -> tuple[tuple[RankStep, ...] | None, list[Problem]]:  # noqa: ARG001 - as all readers
    """Read tokens, and contexts if there are any, of every rank in every step.

    CSV with the columns ``step``, ``rank`` and ``tokens``, and perhaps ``context``, the mean over a rank's tokens of how many tokens each
    attends to; lines that begin with # are comments. Steps and ranks are whole numbers from 0 in any order; a rank that a step does not
    name had no tokens in it.

    Parameters
    ----------
    path : str
        Of the file.
    keys : mapping
        The other keys of the section; none matters.

    Returns
    -------
    steps : tuple of RankStep
        None where there are problems.
    problems : list of Problem
        With the line where there is one.
    """
    try:
        rows, with_contexts = _rows(Path(path))
        ranks = 1 + max(rank for _, rank in rows)
        found = []
        for step in sorted({step for step, _ in rows}):
            mine = [rows.get((step, rank), (0, 0)) for rank in range(ranks)]
            found.append(
                RankStep(
                    tokens=tuple(tokens for tokens, _ in mine),
                    contexts=tuple(context for _, context in mine) if with_contexts else (),
                )
            )
    except _Wrong as wrong:
        return None, [Problem(file=path, line=wrong.line, column=1 if wrong.line else 0, path="", message=wrong.message)]
    except FieldError as error:
        return None, [Problem(file=path, path=error.field, message=error.message)]
    return tuple(found), []


class _Wrong(Exception):
    """What is wrong with a file, and in which line; 0 for none."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.message, self.line = message, line


def _rows(file: Path) -> tuple[dict[tuple[int, int], tuple[int, int]], bool]:
    """Return tokens and context by step and rank, and whether there are contexts."""
    try:
        with file.open("rb") as stream:
            content = stream.read(LARGEST + 1)
        text = content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else "not UTF-8 text"
        raise _Wrong(f"cannot be read as a recording of ranks: {reason}") from None
    if len(content) > LARGEST:
        raise _Wrong(f"is larger than {LARGEST // 2**20} MiB: this is no recording of ranks")
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip() and not line.startswith("#")]
    if not lines:
        raise _Wrong(f"holds no rows: expected CSV with the columns {', '.join(NEEDED)} and perhaps context")
    head = [name.strip() for name in lines[0][1].split(",")]
    missing = [name for name in NEEDED if name not in head]
    if missing:
        raise _Wrong(f"has no column {missing[0]!r}; its columns are {', '.join(head)}", lines[0][0])
    found: dict[tuple[int, int], tuple[int, int]] = {}
    cells = csv.reader(io.StringIO("\n".join(line for _, line in lines[1:])))
    for (number, _), row in zip(lines[1:], cells, strict=False):
        named = dict(zip(head, row, strict=False))
        step, rank = (_whole(named, name, number, 2**20) for name in ("step", "rank"))
        if (step, rank) in found:
            raise _Wrong(f"names rank {rank} of step {step} a second time", number)
        context = _whole(named, "context", number, MOST_CONTEXT) if "context" in head else 0
        found[step, rank] = (_whole(named, "tokens", number, MOST_TOKENS), context)
    if not found:
        raise _Wrong("holds a head and no rows")
    return found, "context" in head


def _whole(row: Mapping[str, str], name: str, line: int, most: int) -> int:
    """Return a whole number; a context may have decimals."""
    text = row.get(name, "").strip()
    try:
        value = round(float(text)) if name == "context" else int(text)
    except (ValueError, OverflowError):
        raise _Wrong(f"{name} is {text!r}, which is no whole number", line) from None
    if not 0 <= value <= most:
        raise _Wrong(f"{name} is {text}: it must be from 0 to {most:,}", line)
    return value
