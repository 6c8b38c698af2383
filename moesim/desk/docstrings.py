"""What the numpydoc docstrings of dataclasses say to a reader of ``moesim list`` and of the JSON Schema."""

from __future__ import annotations

import inspect
import re
from functools import cache

_FIELDS = re.compile(r"^(?P<names>\w+(?:, \w+)*)(?: : .*)?$")
_RULE = re.compile(r"^-{3,}$")


def summary(thing: object) -> str:
    """Return the first sentence block of a docstring on one line; empty if there is none of its own."""
    text = (thing.__doc__ or "").strip() if not isinstance(thing, type) or "__doc__" in vars(thing) else ""
    # A dataclass without a docstring gets its signature as one: that helps nobody.
    if not text or (isinstance(thing, type) and text.startswith(f"{thing.__name__}(")):
        return ""
    return plain(" ".join(inspect.cleandoc(text).split("\n\n")[0].split()))


@cache
def field_notes(cls: type) -> dict[str, str]:
    """Return what the Parameters sections of a class and its bases say of each field, without reStructuredText marks."""
    notes: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        notes |= _parameters(inspect.cleandoc(vars(base).get("__doc__") or ""))
    return notes


def plain(text: str) -> str:
    """Return text without the marks of reStructuredText: double backquotes and roles."""
    text = re.sub(r":\w+(?::\w+)?:`~?([^`<]*?)(?:\s*<[^`]*>)?`", lambda found: found[1].rsplit(".", 1)[-1], text)
    return text.replace("``", "")


def _parameters(text: str) -> dict[str, str]:
    lines = text.split("\n")
    start = next((at for at in range(len(lines) - 1) if lines[at].strip() == "Parameters" and _RULE.match(lines[at + 1])), None)
    if start is None:
        return {}
    notes: dict[str, str] = {}
    names: list[str] = []
    for at in range(start + 2, len(lines)):
        line = lines[at]
        if at + 1 < len(lines) and line.strip() and _RULE.match(lines[at + 1]):
            break
        head = _FIELDS.match(line)
        if head:
            names = head["names"].split(", ")
        elif line.startswith(" ") and names:
            for name in names:
                notes[name] = f"{notes.get(name, '')} {plain(line.strip())}".strip()
    return notes
