"""The folder of a study that goes on where it stopped: what it is of, the answers of its runs, its JSON and its page."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moesim import __version__
from moesim.desk import folder as places
from moesim.desk.summary import plain, to_json

META, CELLS, REPORT = "meta.json", "cells", "report.html"


def begin(folder: Path, names: frozenset[str], study: str) -> str:
    """See to it that a study can be written into a folder, and mark the folder as its; return what should be said about what is there.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    names : frozenset of str
        The files that the study writes.
    study : str
        The command: ``compare``, ``plan``, ``sensitivity`` or ``sweep``.

    Raises
    ------
    UsageError
        If the folder holds something else, or cannot be written.
    """
    places.prepare(folder, names)
    earlier = _earlier(folder)
    places.put(folder / META, to_json(meta(study)).encode())
    if earlier is None or earlier == __version__:
        return ""
    return (
        f"{folder} holds cells of moesim {earlier}, and this is moesim {__version__}: all cells are played again, into new files; "
        f"those of moesim {earlier} stay in {folder / CELLS}"
    )


def meta(study: str) -> dict[str, Any]:
    """Return the content of ``meta.json``: what may differ between two equal studies."""
    return {
        "moesim": __version__,
        "study": study,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
    }


def _earlier(folder: Path) -> str | None:
    """Return the version of moesim that wrote into a folder; None where nothing says so."""
    try:
        data = json.loads((folder / META).read_bytes())
    except (OSError, ValueError):
        return None
    found = data.get("moesim") if isinstance(data, dict) else None
    return found if isinstance(found, str) else None


def deliver(
    folder: Path,
    study: str,
    names: frozenset[str],
    told: Mapping[str, Any],
    files: Mapping[str, bytes],
    *,
    answer: str,
    page: Callable[[Mapping[str, Any]], str] | None = None,
) -> None:
    """Write a finished study: the answer first and the page last, without files that an earlier one left.

    Parameters
    ----------
    folder : Path
    study : str
        The command.
    names : frozenset of str
        All files that such a study may write.
    told : mapping
        The content of its JSON.
    files : mapping of str to bytes
        The other files.
    answer : str
        The name of the JSON.
    page : callable, optional
        Draws the page from the content of the JSON.

    Raises
    ------
    ResultError
        If a file cannot be written; the message names it, and what was written before it stays.
    """
    places.make(folder)
    places.put(folder / META, to_json(meta(study)).encode())
    places.put(folder / answer, to_json(told).encode())
    for name in sorted(names - set(files) - {answer, META} - ({REPORT} if page else set())):
        places.drop(folder / name)
    for name, data in files.items():
        places.put(folder / name, data)
    if page is not None:
        places.put(folder / REPORT, page(plain(told)).encode())
