"""The folder of an answer that is one JSON document: of ``why`` and ``memory``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesim.desk import folder as places
from moesim.desk.summary import to_json


def names(command: str) -> frozenset[str]:
    """Return the files that :func:`deliver` writes."""
    return frozenset({f"{command}.json", "report.html"})


def deliver(folder: Path, command: str, told: Mapping[str, Any]) -> None:
    """Write ``<command>.json`` and its page into a folder.

    Parameters
    ----------
    folder : Path
        From :func:`moesim.desk.folder.prepare`.
    command : str
        ``why`` or ``memory``.
    told : mapping
        The answer.

    Raises
    ------
    ResultError
        If a file cannot be written; the answer is written before the page is drawn.
    """
    from moesim.desk.report.study.again import draw_again

    places.put(folder / f"{command}.json", to_json(told).encode())
    places.put(folder / "report.html", draw_again(folder))
