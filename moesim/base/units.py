"""Quantities with units: read at the border, plain SI floats inside, written for people at the other border."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from moesim.base.errors import did_you_mean

DECIMAL = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}


@dataclass(frozen=True, slots=True)
class Dimension:
    """One physical dimension: its units and how to write it."""

    name: str
    units: dict[str, float]
    steps: tuple[str, ...]
    example: str


def _scaled(suffix: str, factor: float = 1.0, *, binary: bool = False) -> dict[str, float]:
    prefixes = DECIMAL | BINARY if binary else DECIMAL
    return {prefix + suffix: scale * factor for prefix, scale in prefixes.items()}


DIMENSIONS: dict[str, Dimension] = {
    "s": Dimension(
        "a time",
        {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0},
        ("ns", "us", "ms", "s"),
        "3 us",
    ),
    "B": Dimension("a size", _scaled("B", binary=True) | _scaled("b", 0.125, binary=True), ("B", "kB", "MB", "GB", "TB"), "80 GiB"),
    "B/s": Dimension(
        "a bandwidth",
        _scaled("B/s", binary=True) | _scaled("b/s", 0.125, binary=True) | _scaled("bps", 0.125) | _scaled("Bps"),
        ("B/s", "kB/s", "MB/s", "GB/s", "TB/s"),
        "400 Gb/s",
    ),
    "flop/s": Dimension(
        "a compute rate",
        _scaled("flop/s") | _scaled("FLOP/s") | _scaled("flops") | _scaled("FLOPS"),
        ("flop/s", "Gflop/s", "Tflop/s", "Pflop/s"),
        "989 Tflop/s",
    ),
}

_QUANTITY = re.compile(r"\s*([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)\s*([^\d\s.+-]\S*)?\s*")


def parse_quantity(value: Any, dimension: str) -> float:
    """Read a number with a unit into SI units.

    Parameters
    ----------
    value : object
        Text such as ``"400 Gb/s"``, or 0. ``b`` is a bit, ``B`` a byte; ``k M G T P`` are decimal, ``Ki Mi Gi Ti`` binary.
    dimension : str
        ``"s"``, ``"B"``, ``"B/s"`` or ``"flop/s"``.

    Returns
    -------
    float
        Seconds, bytes, bytes per second or floating-point operations per second.

    Raises
    ------
    ValueError
        If there is no unit, an unknown one, or no number.

    Examples
    --------
    >>> parse_quantity("400 Gb/s", "B/s")
    50000000000.0
    """
    what = DIMENSIONS[dimension]
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"{value!r} is not {what.name}; write for example '{what.example}'")  # noqa: TRY004
    if isinstance(value, (int, float)):
        if value == 0:
            return 0.0
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{value} is not a finite number")
        raise ValueError(f"{value} has no unit; write for example '{value} {what.example.split()[1]}'")
    match = _QUANTITY.fullmatch(value)
    if match is None:
        raise ValueError(f"cannot read {value!r} as {what.name}; write for example '{what.example}'")
    # Two characters look like a micro sign; keyboards write either.
    number, unit = float(match[1]), match[2] and match[2].replace("\u03bc", "\u00b5")
    if unit is None:
        if number == 0:
            return 0.0
        raise ValueError(f"{value!r} has no unit; write for example '{match[1]} {what.example.split()[1]}'")
    if unit not in what.units:
        raise ValueError(f"unknown unit {unit!r} of {what.name}{did_you_mean(unit, what.units)}")
    # Divide by the whole number of small units in one rather than multiply by an inexact fraction: '3 ns' must be the float 3e-09.
    scale = what.units[unit]
    result = number * scale if scale >= 1 else number / round(1.0 / scale)
    if not math.isfinite(result):
        raise ValueError(f"{value!r} is too large")
    return result


def format_quantity(value: float, dimension: str, *, exact: bool = False) -> str:
    """Write an SI value with a readable prefix.

    Parameters
    ----------
    value : float
        In SI units.
    dimension : str
        A key of ``DIMENSIONS``.
    exact : bool
        If true, the text reads back to exactly ``value``; otherwise three significant digits.

    Examples
    --------
    >>> format_quantity(0.00123456, "s")
    '1.23 ms'
    """
    what = DIMENSIONS[dimension]
    if value == 0 or not math.isfinite(value):
        return f"{value:g} {what.steps[0] if dimension != 's' else 's'}"
    fitting = [unit for unit in what.steps if abs(value) >= what.units[unit] * (1 - 1e-9)]
    unit = fitting[-1] if fitting else what.steps[0]
    if not exact:
        return (
            f"{value / what.units[unit]:.3g} {unit}" if abs(value / what.units[unit]) < 999.5 else f"{value / what.units[unit]:.0f} {unit}"
        )
    for candidate in (unit, *what.steps):
        scale = what.units[candidate]
        for digits in (f"{value / scale:.6g}", f"{value / scale!r}"):
            text = f"{digits} {candidate}"
            if parse_quantity(text, dimension) == value:
                return text
    base = "s" if dimension == "s" else what.steps[0]
    return f"{value!r} {base}"
