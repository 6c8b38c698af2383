"""Draw the page of a folder again, whatever moesim wrote there, from its files alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from moesim.base.errors import ResultError
from moesim.desk import folder as places
from moesim.desk.report.study import memory, plan, sensitivity, why
from moesim.desk.summary import SCHEMA

PAGES: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "plan.json": ("plan", plan.page),
    "sensitivity.json": ("sensitivity", sensitivity.page),
    "why.json": ("why", why.page),
    "memory.json": ("memory", memory.page),
}
"""Which file says that a folder is of which command, and what draws its page."""

WITHOUT: Mapping[str, tuple[str, str]] = {
    "network.json": ("network", "that has no page; its pictures are in the folder"),
    "validation.json": ("validate", "that has no page; its tables are in the folder"),
}
"""Folders of which a page cannot be drawn, and why."""


def draw_again(folder: str | Path) -> bytes:
    """Return the page of a folder of a run or of a study.

    Parameters
    ----------
    folder : path
        What ``moesim run``, ``compare``, ``sweep``, ``plan``, ``sensitivity``, ``why`` or ``memory`` wrote.

    Raises
    ------
    ResultError
        If it holds no result, a damaged one, or one that has no page; the message says which.
    """
    folder = Path(folder)
    for name, (command, reason) in WITHOUT.items():
        if (folder / name).is_file():
            raise ResultError(f"{folder} holds what `moesim {command}` found: {reason}")
    if (folder / "comparison.json").is_file():
        from moesim.desk.compare_shown import read_shown
        from moesim.desk.report.comparison import page as comparison

        return comparison.page(read_shown(folder)).encode()
    for name, (command, draw) in PAGES.items():
        if (folder / name).is_file():
            return _drawn(folder / name, command, draw)
    if (folder / "summary.json").is_file() and _is_sweep(folder / "summary.json"):
        from moesim.desk.report.study import sweep

        text = _read(folder / "scenario.yaml").decode(errors="replace")
        return _drawn(folder / "summary.json", "sweep", lambda content: sweep.page(content, text))
    from moesim.desk.report.page import draw as draw_run
    from moesim.desk.result_files import unpack

    return draw_run(unpack(folder))


def _drawn(path: Path, command: str, draw: Callable[[Mapping[str, Any]], str]) -> bytes:
    try:
        content = json.loads(_read(path))
    except ValueError as error:
        raise ResultError(f"{path} is damaged: {error}; run `moesim {command}` again") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else None
        raise ResultError(f"{path} has schema {found!r}, this moesim reads schema {SCHEMA}; run `moesim {command}` again")
    try:
        return draw(content).encode()
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ResultError(f"{path} is damaged: {type(error).__name__}: {error}; run `moesim {command}` again") from None


def _is_sweep(path: Path) -> bool:
    try:
        content = json.loads(_read(path))
    except ValueError:
        return False  # who reads it as a run says what is wrong
    return isinstance(content, dict) and content.get("study") == "sweep"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ResultError(f"cannot read {path}: {places.reason(error)}") from None
