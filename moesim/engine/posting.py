"""How a GPU hands its messages to the network: all at once, or one after the other."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import simpy

from moesim.engine.fabric import Fabric
from moesim.facts.arrays import Floats, Ints
from moesim.facts.traffic import Exchange


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """In which order a GPU posts its messages, how long each takes it, how many may be on their way, and whether its ports count."""

    order: str = "rotated"
    overhead: float = 0.0
    in_flight: int = 0
    by_port: bool = False


AT_ONCE = Rules()


def rules_of(exchange: Exchange) -> Rules:
    """Return the rules that an exchange asks for."""
    return Rules(order=exchange.order, overhead=exchange.overhead, in_flight=exchange.in_flight, by_port=math.isfinite(exchange.port))


class Posting:
    """The messages of one collective; ``quiet(rank)`` is called each time that all messages from and to a rank have arrived.

    Parameters
    ----------
    env : simpy.Environment
    fabric : Fabric
    ranks : int[R]
        The GPUs that take part, in ascending order.
    rules : Rules
    quiet : callable
    """

    def __init__(self, env: simpy.Environment, fabric: Fabric, ranks: Ints, rules: Rules, quiet: Callable[[int], None]) -> None:
        self._env = env
        self._fabric = fabric
        self._lowest = int(ranks[0])
        self._span = int(ranks[-1]) + 1 - self._lowest
        self._rules = rules
        self._quiet = quiet
        self._counter = np.full(self._span, -1, dtype=np.int32)
        self._ready: Floats = np.zeros(self._span)
        # Only with a limit on messages in flight: those kept back, those on their way, and how many a rank still has in all.
        self._kept: dict[int, deque[tuple[int, float]]] = {}
        self._out: dict[int, int] = {}
        self._left: dict[int, int] = {}
        # Messages of this instant, which are put in order when all who arrive in it have arrived; and their ranks.
        self._unordered: list[tuple[Ints, Ints, Floats]] = []
        self._held: set[int] = set()

    def enter(self, rank: int) -> None:
        """Let a rank in."""
        if not self._rules.in_flight:
            self._counter[rank - self._lowest] = self._fabric.watch(lambda: None if rank in self._held else self._quiet(rank))

    def leave(self, rank: int) -> None:
        """Let a rank go."""
        if not self._rules.in_flight:
            self._fabric.unwatch(int(self._counter[rank - self._lowest]))

    def send(self, source: Ints, destination: Ints, size: Floats) -> None:
        """Post messages, of every source in its order: all that can be posted at this instant, whoever made them possible."""
        if not (self._rules.overhead or self._rules.in_flight):
            self._transfer(source, destination, size)
            return
        if not self._unordered:
            self._fabric.at_end_of_instant(self._send_in_order)
        self._unordered.append((source, destination, size))
        ranks = [*source.tolist(), *destination.tolist()]
        self._held.update(ranks)
        for rank in ranks:
            self._left[rank] = self._left.get(rank, 0) + 1

    def _send_in_order(self) -> None:
        source, destination, size = (np.concatenate(parts) for parts in zip(*self._unordered, strict=True))
        self._unordered.clear()
        self._held.clear()
        distance = (destination - source) % self._span if self._rules.order == "rotated" else destination
        order = np.lexsort((distance, source))
        source, destination, size = source[order], destination[order], size[order]
        if self._rules.in_flight:
            self._keep(source.tolist(), destination.tolist(), size.tolist())
        else:
            self._transfer(source, destination, size)

    def _transfer(self, source: Ints, destination: Ints, size: Floats) -> None:
        rules = self._rules
        watch = np.empty((len(source), 2), dtype=np.int32)
        watch[:, 0], watch[:, 1] = self._counter[source - self._lowest], self._counter[destination - self._lowest]
        delay = self._wait(source) if rules.overhead else None
        self._fabric.transfer(source, destination, size, watch, delay=delay, by_port=rules.by_port)

    def _wait(self, source: Ints) -> Floats:
        """Return how long each message waits for the ones before it; messages of a source follow each other."""
        now, each = self._env.now, self._rules.overhead
        first = np.flatnonzero(np.r_[True, source[1:] != source[:-1]])
        many = np.diff(np.r_[first, len(source)])
        sender = source[first] - self._lowest
        begin = np.maximum(self._ready[sender], now)
        self._ready[sender] = begin + many * each
        place = np.arange(len(source)) - np.repeat(first, many)
        return np.asarray(np.repeat(begin - now, many) + place * each)

    def _keep(self, source: list[int], destination: list[int], size: list[float]) -> None:
        for one, other, much in zip(source, destination, size, strict=True):
            self._kept.setdefault(one, deque()).append((other, much))
        for rank in sorted(set(source)):
            self._post(rank)

    def _post(self, rank: int) -> None:
        """Post as many messages of a rank as may be on their way."""
        while self._kept[rank] and self._out.get(rank, 0) < self._rules.in_flight:
            destination, size = self._kept[rank].popleft()
            self._out[rank] = self._out.get(rank, 0) + 1
            wait = max(float(self._ready[rank - self._lowest]) - self._env.now, 0.0)
            self._ready[rank - self._lowest] = self._env.now + wait + self._rules.overhead
            self._message(rank, destination, size, wait)

    def _message(self, source: int, destination: int, size: float, wait: float) -> None:
        def arrived() -> None:
            self._fabric.unwatch(counter)
            self._out[source] -= 1
            self._post(source)
            for rank in (source, destination):
                self._left[rank] -= 1
                if not self._left[rank]:
                    self._quiet(rank)

        counter = self._fabric.watch(arrived)
        watch = np.full((1, 2), counter, dtype=np.int32)
        delay = np.array([wait]) if wait > 0 else None
        self._fabric.transfer(
            np.array([source]), np.array([destination]), np.array([size]), watch, delay=delay, by_port=self._rules.by_port
        )
