"""Files of a result folder: written whole or not at all, and never over somebody else's files."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import unicodedata
from pathlib import Path

from moesim.base.errors import ResultError, UsageError

MARKS = ("meta.json", "summary.json", "network.json", "validation.json", "plan.json", "sensitivity.json", "why.json", "memory.json")
"""A folder that holds one of these was written by moesim."""

OWNERS = {
    "steps.csv": "run",
    "cells.csv": "sweep",
    "comparison.json": "compare",
    "plan.json": "plan",
    "sensitivity.json": "sensitivity",
    "network.json": "network",
    "validation.json": "validate",
    "why.json": "why",
    "memory.json": "memory",
}
"""A file that only one command writes, and which command that is. Studies that can be taken up again also say it in ``meta.json``."""

_HINTS = {
    errno.ENOSPC: "; free some space or choose another folder with -o",
    errno.EDQUOT: "; free some space or choose another folder with -o",
    errno.EROFS: "; choose a folder that can be written with -o",
    errno.EACCES: "; choose a folder that can be written with -o",
    errno.EPERM: "; choose a folder that can be written with -o",
    errno.ENOTDIR: "; a part of that path is a file; choose another folder with -o",
    errno.EEXIST: "; that path is a file; choose another folder with -o",
    errno.EISDIR: "; a folder of that name is in the way",
}


def slug(name: str) -> str:
    """Return a folder name for a scenario name: lower-case letters, digits and hyphens.

    Examples
    --------
    >>> slug("DeepSeek-V2 lite on 2 × 8 H100, EP 16")
    'deepseek-v2-lite-on-2-8-h100-ep-16'
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:80].rstrip("-") or "run"


def reason(error: OSError) -> str:
    """Return what the system says about a failed file operation, and what helps."""
    return (error.strerror or str(error)).lower() + _HINTS.get(error.errno or 0, "")


def make(folder: Path) -> None:
    """Make a folder and its parents.

    Raises
    ------
    ResultError
        If it cannot be made; the message says why.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultError(f"cannot make the folder {folder}: {reason(error)}") from None


def prepare(folder: Path, names: frozenset[str]) -> None:
    """See to it, before the work begins, that results can be written: :func:`protect`, make the folder, write a file.

    Parameters
    ----------
    folder : Path
        Where results shall go.
    names : frozenset of str
        The files that a run writes.

    Raises
    ------
    UsageError
        If the folder holds other files of those names, cannot be made, or takes no files.
    """
    protect(folder, names)
    try:
        make(folder)
        probe = folder / ".moesim"
        put(probe, b"")
        drop(probe)
    except ResultError as error:
        hint = "" if " -o" in str(error) else "; choose another folder with -o"
        raise UsageError(f"{error}{hint}") from None


def put(path: Path, content: bytes) -> None:
    """Write a file through a temporary neighbour, so that readers see the old file or the new one and never a part.

    Raises
    ------
    ResultError
        If it cannot be written; the old file, if any, is still there and the temporary one is gone.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise ResultError(f"cannot write {path}: {reason(error)}") from None
    except BaseException:  # interrupted
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def drop(path: Path) -> None:
    """Remove a file that an earlier run left, if it is there."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ResultError(f"cannot remove {path} of an earlier run: {reason(error)}") from None


def owner_of(folder: Path) -> str:
    """Return the command that wrote into a folder, as its ``meta.json`` or its files tell; empty where nothing does."""
    try:
        data = json.loads((folder / "meta.json").read_bytes())
    except (OSError, ValueError):
        data = None
    study = data.get("study") if isinstance(data, dict) else None
    if study in OWNERS.values():
        return str(study)
    return next((command for name, command in OWNERS.items() if (folder / name).exists()), "")


def protect(folder: Path, names: frozenset[str]) -> None:
    """Refuse a folder in which a run would overwrite files that are not results.

    Parameters
    ----------
    folder : Path
        Where results shall go.
    names : frozenset of str
        The files that a run writes.

    Raises
    ------
    UsageError
        If files of those names are there but nothing shows that moesim wrote them, or if they are of another command: half of its results
        would be overwritten, and a sweep could not be taken up again.
    """
    if any((folder / mark).is_file() for mark in MARKS):
        owner = owner_of(folder)
        if names and owner and owner not in {OWNERS[name] for name in names if name in OWNERS}:
            raise UsageError(f"{folder} holds results of another command (moesim {owner}); choose another folder with -o")
        return
    there = sorted(name for name in names if (folder / name).exists())
    if there:
        raise UsageError(f"{folder} holds {there[0]} but no result of moesim, and a run would overwrite it; choose another folder with -o")
