"""Where something stands in a trace file, and how to say what is wrong there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import TraceError

LARGEST = 1_000_000
"""The largest number of an expert or a rank: memory is asked for as many."""


@dataclass(frozen=True, slots=True)
class Where:
    """The file that is being read, for messages."""

    name: str
    path: str

    def error(self, array: str, message: str) -> TraceError:
        """Return the error about one array."""
        return TraceError(f"{self.path}: array {array}: {message}")

    def names(self, found: Sequence[str], known: Sequence[str]) -> None:
        """Refuse an array whose name looks like a misspelt one; others that are unknown are none of our business."""
        for name in found:
            near = [] if name in known else [word for word in get_close_matches(name, known, n=1, cutoff=0.75) if word not in found]
            if near:
                raise self.error(name, f"unknown name; did you mean {near[0]!r}?")

    def whole(self, name: str, array: NDArray[Any], *, dimensions: int, shape: str, minimum: int = 0) -> NDArray[Any]:
        """Refuse anything but whole numbers of at least ``minimum`` in this many dimensions."""
        if array.dtype.kind not in "iu":
            raise self.error(name, f"holds {array.dtype}, expected whole numbers [{shape}]; cast it to an integer type")
        if array.ndim != dimensions:
            raise self.error(name, f"has shape {array.shape}, expected {dimensions} dimensions [{shape}]")
        if array.size and int(array.min()) < minimum:
            place = first(array < minimum)
            raise self.error(name, f"holds {int(array[place])} at {list(place)}, expected at least {minimum}")
        return array

    def number(self, arrays: dict[str, NDArray[Any]], name: str) -> int | None:
        """Read a single number of at least 1."""
        if name not in arrays:
            return None
        array = arrays[name]
        if array.size != 1:
            raise self.error(name, f"has shape {array.shape}, expected a single number")
        return int(self.whole(name, array.reshape(()), dimensions=0, shape="", minimum=1))

    def few(self, name: str, number: int, what: str) -> int:
        """Refuse a number of experts or ranks beyond all reason."""
        if number > LARGEST:
            raise self.error(name, f"{number} is too large to be the number of {what} (at most {LARGEST})")
        return number

    def text(self, arrays: dict[str, NDArray[Any]]) -> str:
        """Read the readme."""
        if "readme" not in arrays:
            return ""
        if arrays["readme"].dtype.kind != "U":
            raise self.error("readme", f"holds {arrays['readme'].dtype}, expected text")
        return "\n".join(str(line) for line in arrays["readme"].reshape(-1))


def first(wrong: NDArray[np.bool_]) -> tuple[int, ...]:
    """Return the index of the first true element."""
    return tuple(int(index) for index in np.unravel_index(int(wrong.argmax()), wrong.shape))
