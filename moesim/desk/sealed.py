"""Documents that carry the hash of their own content, so that anybody can see that a prediction was not changed after the measurement."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from moesim.base.errors import UsageError
from moesim.desk.summary import plain

SEAL = "sha256"


def digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a document without its seal: of its JSON with sorted keys, no spaces, and ASCII only."""
    rest = {key: value for key, value in content.items() if key != SEAL}
    return hashlib.sha256(json.dumps(plain(rest), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document with its own hash under ``sha256``, the last key."""
    rest = plain({key: value for key, value in content.items() if key != SEAL})
    return {**rest, SEAL: digest(rest)}


def check_seal(content: Mapping[str, Any], where: str) -> None:
    """Refuse a document that is not what its hash says.

    Raises
    ------
    UsageError
        If there is no hash, or the content has another.
    """
    stated = content.get(SEAL)
    if not isinstance(stated, str):
        raise UsageError(f"{where}: the file does not carry its own hash ({SEAL})")
    if digest(content) != stated:
        raise UsageError(f"{where}: the content does not have the hash that the file states: it was changed after it was written")
