"""Look fields up in a ``config.json``: every name a quantity goes by, one clear problem for each that is missing or wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from moesim.base.errors import Problem, ScenarioError, did_you_mean

LARGEST = 10**9
"""No count or width of a model is near this; what is above it is a mistake, and would fill the memory if it were believed."""

ABSENT = object()


class Fields:
    """The fields of one configuration and the problems found so far.

    A look-up that fails records a problem and returns a harmless stand-in, so that one pass finds every problem;
    :meth:`stop` raises them together. ``null`` counts as absent: that is how these files write "none".

    Parameters
    ----------
    config : mapping
        The decoded JSON object, or the part of it that describes the language model.
    outer : mapping
        The whole object, searched for what the part leaves out (``tie_word_embeddings``, ``torch_dtype``, ``quantization_config``).
    file : str
        Its name in messages.
    """

    def __init__(self, config: Mapping[str, Any], outer: Mapping[str, Any], file: str) -> None:
        self.config = config
        self.outer = outer
        self.file = file
        self.problems: list[Problem] = []

    @property
    def sound(self) -> bool:
        """Return whether nothing was wrong so far: rules between fields are only worth checking then."""
        return not self.problems

    def complain(self, path: str, message: str) -> None:
        """Record a problem."""
        self.problems.append(Problem(file=self.file, path=path, message=message))

    def stop(self) -> None:
        """Raise every problem recorded so far.

        Raises
        ------
        ScenarioError
            If there is any.
        """
        if self.problems:
            raise ScenarioError(self.problems)

    def value(self, name: str) -> Any:
        """Return the value under a name, which may be dotted (``ffn_config.moe_top_k``), or None."""
        found: Any = self.config
        for part in name.split("."):
            if not isinstance(found, Mapping):
                return None
            found = found.get(part)
        return found

    def has(self, *names: str) -> bool:
        """Return whether any of the names has a value other than null."""
        return any(self.value(name) is not None for name in names)

    def _one(self, quantity: str, names: Sequence[str], default: Any, stand_in: Any) -> tuple[str, Any]:
        found = [(name, self.value(name)) for name in names if self.value(name) is not None]
        if not found:
            if default is ABSENT:
                self.complain(quantity, f"missing; looked for {', '.join(names)}")
                return "", stand_in
            return "", default
        first, value = found[0]
        for name, other in found[1:]:
            if other != value:
                self.complain(name, f"{brief(other)} contradicts {first} ({brief(value)}): both give the {quantity}")
        return first, value

    def whole(self, quantity: str, names: Sequence[str], *, minimum: int = 1, maximum: int = LARGEST, default: Any = ABSENT) -> int:
        """Return a whole number; a list of equal whole numbers, one per layer, counts as one.

        Parameters
        ----------
        quantity : str
            What it is, in words, for messages.
        names : sequence of str
            Every name it goes by.
        minimum, maximum : int
            What is allowed.
        default : int
            What its absence means; without it, absence is a problem.
        """
        name, value = self._one(quantity, names, default, max(1, minimum))
        if not name:
            return int(value)
        if isinstance(value, list) and value:
            if any(type(item) is not type(value[0]) or item != value[0] for item in value):
                self.complain(name, f"{brief(value)} differs from layer to layer: moesim needs one {quantity} for all layers")
                return max(1, minimum)
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int):
            self.complain(name, f"{brief(value)} is not a whole number")
        elif value < minimum:
            self.complain(name, f"{brief(value)} is too small: it must be at least {minimum}")
        elif value > maximum:
            self.complain(name, f"{brief(value)} is too large: it must be at most {maximum}")
        else:
            return value
        return max(1, minimum)

    def number(self, quantity: str, names: Sequence[str], *, default: float) -> float:
        """Return a finite number above 0."""
        name, value = self._one(quantity, names, default, default)
        if not name:
            return float(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.complain(name, f"{brief(value)} is not a number")
        elif not 0 < value <= LARGEST or not math.isfinite(value):
            self.complain(name, f"{brief(value)} is out of range: it must be more than 0 and at most {LARGEST}")
        else:
            return float(value)
        return default

    def flag(self, quantity: str, names: Sequence[str], *, default: bool) -> bool:
        """Return true or false."""
        name, value = self._one(quantity, names, default, default)
        if name and not isinstance(value, bool):
            self.complain(name, f"{brief(value)} is neither true nor false")
            return default
        return bool(value)

    def word(self, quantity: str, names: Sequence[str], words: Sequence[str], *, default: Any = ABSENT) -> str:
        """Return one of some words."""
        name, value = self._one(quantity, names, default, words[0])
        if name and (not isinstance(value, str) or value not in words):
            self.complain(name, f"unknown {quantity} {brief(value)}{did_you_mean(str(value)[:80], words)}")
            return words[0]
        return str(value)

    def items(self, name: str, length: int | None = None) -> list[Any] | None:
        """Return a list, or None if there is none; with ``length``, its first entries, of which there must be so many."""
        value = self.value(name)
        if value is None:
            return None
        if not isinstance(value, list):
            self.complain(name, f"{brief(value)} is not a list")
            return None
        if length is None:
            return value
        if len(value) < length:
            if self.sound:
                self.complain(name, f"has {len(value)} entries, but the model has {length} layers")
            return None
        return value[:length]

    def choices(self, name: str, length: int, words: Sequence[Any]) -> list[Any] | None:
        """Return a list with one known entry per layer, or None."""
        found = self.items(name, length)
        for index, item in enumerate(found or ()):
            if isinstance(item, (list, dict)) or item not in words:
                self.complain(name, f"unknown entry {brief(item)} for layer {index} (known: {', '.join(map(str, words))})")
                return None
        return found

    def numbers(self, name: str, *, minimum: int, maximum: int) -> list[int] | None:
        """Return a list of whole numbers in a range, or None."""
        found = self.items(name)
        for item in found or ():
            if isinstance(item, bool) or not isinstance(item, int) or not minimum <= item <= maximum:
                if self.sound:
                    self.complain(name, f"{brief(item)} is not the number of a layer ({minimum} to {maximum})")
                return None
        return found


def brief(value: Any) -> str:
    """Return a short text of a JSON value for a message.

    Examples
    --------
    >>> brief({"a": None}), brief(True), brief([0] * 50)
    ("{'a': None}", 'true', '[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,…')
    """
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int) and abs(value) > 10**30:
        return "a number of more than 30 digits"
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"
