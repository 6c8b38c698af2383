"""Where a number comes from."""

from __future__ import annotations

from collections.abc import Iterable

STRENGTH = ("exact", "measured", "fitted", "datasheet", "assumed")
"""Strongest first. A prediction is as strong as the weakest number that went in."""


def weakest(bases: Iterable[str]) -> str:
    """Return the weakest of some bases; ``exact`` if there are none.

    Examples
    --------
    >>> weakest(["measured", "datasheet", "exact"])
    'datasheet'
    """
    return max(bases, key=STRENGTH.index, default="exact")
