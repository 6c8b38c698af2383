"""What an exchange asks of the fabric."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import PluginError, did_you_mean
from moesim.facts.arrays import Floats, Ints, frozen

ORDERS = ("rotated", "ascending")
"""In which orders a GPU may post its messages."""

N = TypeVar("N", np.int64, np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """One stage of an exchange.

    Parameters
    ----------
    bytes : float[G, G]
        From each source GPU (row) to each destination (column); the diagonal stays on the GPU and is never sent.
    copies : int[G, G]
        Token copies in it; rows of padding are no copies of any token.
    padding : int[G, G]
        Rows of padding in it, sent like copies; none if left out. ``bytes`` holds both.
    """

    bytes: Floats
    copies: Ints
    padding: Ints = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))

    def __post_init__(self) -> None:
        rows = self.padding if np.size(self.padding) else np.zeros(np.shape(self.copies), dtype=np.int64)
        object.__setattr__(self, "bytes", frozen(self.bytes, np.float64))
        object.__setattr__(self, "copies", frozen(self.copies, np.int64))
        object.__setattr__(self, "padding", frozen(rows, np.int64))

    @property
    def gpus(self) -> int:
        """G."""
        return len(self.bytes)

    def among(self, ranks: int) -> Floats:
        """Return float[G / R, R, R], the bytes inside each group of R GPUs with consecutive numbers."""
        return np.asarray(blocks_of(self.bytes, ranks))

    def copies_among(self, ranks: int) -> Ints:
        """Return int[G / R, R, R], the token copies inside each group of R GPUs with consecutive numbers."""
        return np.asarray(blocks_of(self.copies, ranks))

    def padding_among(self, ranks: int) -> Ints:
        """Return int[G / R, R, R], the rows of padding inside each group of R GPUs with consecutive numbers."""
        return np.asarray(blocks_of(self.padding, ranks))

    def sent(self) -> Floats:
        """Return float[G], the bytes that leave each GPU."""
        return np.asarray(self.bytes.sum(axis=1))

    def received(self) -> Floats:
        """Return float[G], the bytes that come to each GPU."""
        return np.asarray(self.bytes.sum(axis=0))

    def flows(self) -> int:
        """Return how many pairs of GPUs have bytes."""
        return int(np.count_nonzero(self.bytes))

    def astray(self, ranks: int) -> tuple[int, int] | None:
        """Return a pair (source, destination) that has bytes but is in no group of R GPUs together; None if there is none."""
        if self.flows() == np.count_nonzero(self.among(ranks)):
            return None
        source, destination = np.nonzero(self.bytes)
        first = int(np.argmax(source // ranks != destination // ranks))
        return int(source[first]), int(destination[first])


def blocks_of(values: NDArray[N], ranks: int) -> NDArray[N]:
    """Return [G / R, R, R], the square blocks along the diagonal of [G, G]."""
    groups = len(values) // ranks
    if groups == 1:
        return values.reshape(1, ranks, ranks)
    every = np.arange(groups)
    blocks: NDArray[N] = values.reshape(groups, ranks, groups, ranks)[every, :, every, :]
    return blocks


def _nothing() -> Floats:
    return np.zeros(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """Both ways of one layer: tokens to their experts, results back; each a sequence of stages.

    A *message* is what one GPU sends to one other in one stage.

    Parameters
    ----------
    dispatch, combine : tuple of Traffic
        The stages of each way, in order.
    launch : float
        Seconds that a GPU spends between reaching a collective and offering its first byte.
    combine_launch : float or None
        The same of the combine, where its kernels differ.
    barrier : bool
        No byte moves before every rank of the group has arrived (counts are exchanged first); otherwise a pair starts when both have.
    pipelined : bool
        The stages of one way start together, as in a kernel that forwards chunk by chunk; otherwise a stage waits for the one before.
    order : str
        In which order a GPU posts its messages. ``rotated``: GPU g sends to g + 1, g + 2 ... and round; ``ascending``: to 0, 1, 2 ...
    overhead : float
        Seconds that a GPU spends on a message before it can post the next.
    in_flight : int
        How many messages of a GPU may be on their way at once; 0 for all.
    held_sms : float
        Share of a GPU's SMs that its communication kernels hold from launch to end; what computes beside them is that much slower.
    port : float
        B/s that the communication kernels of a GPU can send, and receive, at most; infinite where only links limit them.
    dispatch_counted, combine_counted : float[G]
        Bytes that the library of the exchange would divide by the time of each way to report its bandwidth. They are seldom the bytes
        that are sent: most libraries count what stays on a GPU too. Empty where the exchange has no library: what a GPU sends counts.

    Raises
    ------
    PluginError
        If a field is out of its range.
    """

    dispatch: tuple[Traffic, ...]
    combine: tuple[Traffic, ...]
    launch: float = 0.0
    combine_launch: float | None = None
    barrier: bool = False
    pipelined: bool = False
    order: str = "rotated"
    overhead: float = 0.0
    in_flight: int = 0
    port: float = math.inf
    held_sms: float = 0.0
    dispatch_counted: Floats = field(default_factory=_nothing)
    combine_counted: Floats = field(default_factory=_nothing)

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise PluginError(f"an exchange cannot post its messages in the order {self.order!r}{did_you_mean(self.order, ORDERS)}")
        if not (math.isfinite(self.overhead) and self.overhead >= 0):
            raise PluginError(f"an exchange cannot spend {self.overhead} s on a message: overhead must be finite and at least 0")
        if self.in_flight < 0:
            raise PluginError(f"an exchange cannot have {self.in_flight} messages on their way: in_flight is at least 1, or 0 for all")
        if not 0 <= self.held_sms <= 1:
            raise PluginError(f"an exchange cannot hold {self.held_sms:g} of a GPU's SMs: held_sms is a share from 0 to 1")
        if not self.port > 0:
            raise PluginError(f"an exchange cannot send {self.port} B/s: port must be above 0, infinite for no limit")
        for name in ("dispatch_counted", "combine_counted"):
            counted = frozen(getattr(self, name), np.float64)
            if not (np.isfinite(counted).all() and (counted >= 0).all()):
                raise PluginError(f"an exchange cannot count these bytes: {name} holds a number below 0 or not finite")
            object.__setattr__(self, name, counted)

    def launch_of(self, phase: str) -> float:
        """Return the seconds before the first byte of ``dispatch`` or ``combine``."""
        return self.launch if self.combine_launch is None or phase == "dispatch" else self.combine_launch

    def counted(self, phase: str) -> Floats:
        """Return float[G], the bytes of ``dispatch`` or ``combine`` that count for the bandwidth that the library reports."""
        counted: Floats = self.dispatch_counted if phase == "dispatch" else self.combine_counted
        if counted.size:
            return counted
        stages = self.dispatch if phase == "dispatch" else self.combine
        return np.asarray(sum((stage.sent() for stage in stages), np.zeros(stages[0].gpus if stages else 0)))
