"""Traffic that an idle fabric has carried before: its ends are known, to the last bit."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np

from moesim.facts.arrays import Floats, Ints

MOST_BYTES = 64 * 2**20
"""Of what is remembered; the longest unused goes first."""
FEWEST = 32
"""Flows: to work fewer out again is as quick as to look them up."""


@dataclass(slots=True)
class Period:
    """What an idle fabric did with flows that started together, until it was idle again.

    ``ends`` are times since the start with the counters that reached zero then, counted as they first appear among the flows.
    """

    ends: list[tuple[float, Ints]] = field(default_factory=list)
    idle_at: float = 0.0
    busy: Floats = field(default_factory=lambda: np.zeros(0))
    through: Floats = field(default_factory=lambda: np.zeros(0))

    def size(self) -> int:
        """Return about how many bytes it takes to remember."""
        return self.busy.nbytes + self.through.nbytes + sum(counters.nbytes + 100 for _, counters in self.ends)


class Repeats:
    """Busy periods by the digest of the flows that began them.

    Core time starts at 0 with each period, so that a period is a function of its flows alone, and its times since the start are
    the same floats whenever it happens.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, Period] = OrderedDict()
        self._size = 0
        self.found = 0

    @staticmethod
    def key(state: str, arrays: tuple[np.ndarray | None, ...]) -> bytes:
        """Return the digest of flows, and of the state of the links: how they are shared, and how often any has changed."""
        digest = hashlib.blake2b(state.encode(), digest_size=16)
        for array in arrays:
            content = b"" if array is None else np.ascontiguousarray(array).tobytes()
            digest.update(len(content).to_bytes(8, "little"))
            digest.update(content)
        return digest.digest()

    def find(self, key: bytes) -> Period | None:
        """Return the period that began with these flows, if there was one."""
        period = self._known.get(key)
        if period is not None:
            self._known.move_to_end(key)
            self.found += 1
        return period

    def keep(self, key: bytes, period: Period) -> None:
        """Remember a period."""
        if key in self._known:
            return
        self._known[key] = period
        self._size += period.size()
        while self._size > MOST_BYTES:
            self._size -= self._known.popitem(last=False)[1].size()
