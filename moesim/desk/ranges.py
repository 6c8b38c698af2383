"""Many values in one text: ranges such as ``0.8..2.0:0.1``, and lists of values between commas."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from moesim.study.cell import Scalar

LONGEST = 100_000
"""Values of one range; more are a slip of the keyboard."""

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"\s*({_NUMBER})\.\.({_NUMBER})(?::(\*?)({_NUMBER}))?(?:\s+([A-Za-z][A-Za-z/]*))?\s*")
_BEGINS = re.compile(rf"\s*{_NUMBER}\.\.(?!/)")


def is_range(text: str) -> bool:
    """Tell whether a text begins as a range does."""
    return _BEGINS.match(text) is not None


def values_of(text: str) -> list[Scalar]:
    """Return the values of a range.

    Parameters
    ----------
    text : str
        ``from..to:step`` or ``from..to:*factor``, perhaps with a unit behind it.

    Raises
    ------
    ValueError
        If it is none, its step leads nowhere, or it has too many values.

    Examples
    --------
    >>> values_of("100..400:100 Gb/s")
    ['100 Gb/s', '200 Gb/s', '300 Gb/s', '400 Gb/s']
    """
    found = _RANGE.fullmatch(text)
    if found is None:
        raise ValueError("is no range; write from..to:step, such as 0.8..2.0:0.1, or from..to:*factor")
    return span(*found.groups())


def span(first: str, last: str, times: str | None, step: str | None, unit: str | None) -> list[Scalar]:
    """Return the values of a range, as decimal arithmetic has them.

    Parameters
    ----------
    first, last : str
        Numbers; ``last`` belongs to the range if a whole number of steps leads there.
    times : str or None
        ``*`` if ``step`` is a factor.
    step : str or None
        1 if left out, and then both ends must be whole.
    unit : str or None
        If there is one, values are texts with it.

    Raises
    ------
    ValueError
        If the step leads nowhere, or the range has too many values.

    Examples
    --------
    >>> span("0.8", "1.1", "", "0.1", None)
    [0.8, 0.9, 1.0, 1.1]
    >>> span("256", "2048", "*", "2", None)
    [256, 512, 1024, 2048]
    """
    whole = all(re.fullmatch(r"[-+]?\d+", text) for text in (first, last, step or "1"))
    if step is None and not whole:
        raise ValueError(f"needs a step, such as {first}..{last}:0.1")
    try:
        at, end, size = Decimal(first), Decimal(last), Decimal(step or "1")
    except InvalidOperation:
        raise ValueError("is out of range") from None
    if times:
        if at <= 0 or end <= 0 or size <= 0 or size == 1:
            raise ValueError("a factor leads somewhere only from above 0 to above 0, and if it is above 0 and not 1")
        up = size > 1
    else:
        if size == 0 or (end - at) * size < 0:
            raise ValueError(f"a step of {size} does not lead from {first} to {last}")
        up = size > 0
    found: list[Scalar] = []
    while at <= end if up else at >= end:
        if len(found) == LONGEST:
            raise ValueError(f"has more than {LONGEST:,} values")
        number = int(at) if whole and at == int(at) else float(at)
        found.append(number if unit is None else f"{number!r} {unit}")
        at = at * size if times else at + size
    if not found:
        raise ValueError(f"a factor of {size} does not lead from {first} to {last}")
    return found


def split(text: str) -> list[str]:
    """Split at the commas that stand outside brackets, braces and quotes.

    A quote opens only where a value may begin, as in YAML: the apostrophe of a word is none.
    """
    pieces, depth, quote, start = [], 0, "", 0
    fresh = True
    for at, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"" and fresh:
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        elif letter == "," and depth <= 0:
            pieces.append(text[start:at])
            start = at + 1
        fresh = letter in ",[{:" or (fresh and letter.isspace())
    return [*pieces, text[start:]]
