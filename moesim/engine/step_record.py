"""What happened in a step that was worked out at once: its spans and collectives as columns, many at a time."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats, Ints
from moesim.facts.program import Work
from moesim.models.group_bounds import Bounds, GroupRoutes

MOST_ELEMENTS = 2_000_000
"""Of the matrices that are made at once."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepRecord:
    """A step of T tasks and K legs of exchanges on G GPUs; times in s, sizes in B.

    ``place`` int[T, G] counts tasks as they ended and ``leg_began`` int[K, groups] legs as they began; ``start``, ``end``, ``bytes``,
    ``tokens``, ``waiting`` and ``waited_for`` are [T, G], ``arrival``, ``left`` and ``waited`` float[K, G], ``moving`` float[K, groups];
    ``leg_task`` int[K] is the task of each leg. The flows of leg k begin at ``span[k, 0]`` (int[K, G + 1]) and end before ``span[k, G]``:
    ``flow`` int[2, F] are their GPUs and ``flow_bytes`` float[F] their bytes, all inside groups.
    """

    works: tuple[Work, ...]
    lanes: tuple[str, ...]
    place: Ints
    start: Floats
    end: Floats
    bytes: Floats
    tokens: Ints
    waiting: Floats
    waited_for: Ints
    leg_task: Ints
    leg_began: Ints
    span: Ints
    flow: NDArray[np.int32]
    flow_bytes: Floats
    arrival: Floats
    left: Floats
    waited: Floats
    moving: Floats

    def spans(self, step: int) -> dict[str, np.ndarray]:
        """Return the columns of the spans, in the order in which they ended."""
        gpus = self.place.shape[1]
        order = np.argsort(self.place.ravel())
        task = order // gpus
        return {
            "step": np.full(len(order), step, dtype=np.int64),
            "layer": _numbers(self.works, "layer")[task],
            "moe_layer": _numbers(self.works, "moe_layer")[task],
            "microbatch": _numbers(self.works, "microbatch")[task],
            "direction": _words(self.works, "direction")[task],
            "gpu": order % gpus,
            "lane": np.array(self.lanes, dtype=np.str_)[task],
            "phase": _words(self.works, "phase")[task],
            "start_s": self.start.ravel()[order],
            "end_s": self.end.ravel()[order],
            "bytes": self.bytes.ravel()[order],
            "tokens": self.tokens.ravel()[order],
            "waiting_s": self.waiting.ravel()[order],
            "waited_for": self.waited_for.ravel()[order],
            "slowed_s": np.zeros(len(order)),
        }

    def collectives(self, step: int, routes: GroupRoutes, link_names: np.ndarray) -> dict[str, np.ndarray]:
        """Return the columns of the collectives, one row for each leg and group, in the order in which they began.

        Parameters
        ----------
        step : int
        routes : GroupRoutes
        link_names : str[K + 1]
            The last is said where nothing is sent.
        """
        legs, groups = self.leg_began.shape
        ranks = self.arrival.shape[1] // groups
        leg, group = np.divmod(np.argsort(self.leg_began.ravel()), groups)
        arrival, left, waited = (times.reshape(legs, groups, ranks)[leg, group] for times in (self.arrival, self.left, self.waited))
        bounds = self._bounds(routes, ranks)
        task = self.leg_task[leg]
        return {
            "step": np.full(len(leg), step, dtype=np.int64),
            "layer": _numbers(self.works, "layer")[task],
            "moe_layer": _numbers(self.works, "moe_layer")[task],
            "microbatch": _numbers(self.works, "microbatch")[task],
            "phase": _words(self.works, "phase")[task],
            "direction": _words(self.works, "direction")[task],
            "group": group,
            "first_arrival_s": arrival.min(axis=1),
            "last_arrival_s": arrival.max(axis=1),
            "last_gpu": group * ranks + arrival.argmax(axis=1),
            "end_s": left.max(axis=1),
            "moving_s": self.moving[leg, group],
            "transfer_s": (left - arrival - waited).mean(axis=1),
            "alone_s": bounds.alone.mean(axis=2)[leg, group],
            "bytes": bounds.bytes[leg, group],
            "cross_node_bytes": bounds.cross_node_bytes[leg, group],
            "port_bound_s": bounds.port_bound[leg, group],
            "link_bound_s": bounds.link_bound[leg, group],
            "bottleneck_link": link_names[bounds.bottleneck[leg, group]],
        }

    def _bounds(self, routes: GroupRoutes, ranks: int) -> Bounds:
        """Return the bounds of all legs, a few at a time: their matrices together would fill the memory."""
        legs, groups = self.leg_began.shape
        some = max(MOST_ELEMENTS // (groups * ranks * ranks), 1)
        parts = []
        for first in range(0, max(legs, 1), some):
            last = min(first + some, legs)
            size = np.zeros((last - first, groups, ranks, ranks))
            for leg in range(first, last):
                mine = slice(int(self.span[leg, 0]), int(self.span[leg, -1]))
                sender, receiver = self.flow[:, mine]
                size[leg - first, sender // ranks, sender % ranks, receiver % ranks] = self.flow_bytes[mine]
            parts.append(routes.bounds(size))
        return Bounds(**{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Bounds)})


def _numbers(works: tuple[Work, ...], name: str) -> Ints:
    return np.array([getattr(work, name) for work in works], dtype=np.int64)


def _words(works: tuple[Work, ...], name: str) -> np.ndarray:
    return np.array([getattr(work, name) for work in works], dtype=np.str_)
