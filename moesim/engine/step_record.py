"""What happened in a step that was worked out at once: its spans and collectives as columns, many at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.facts.arrays import Bools, Floats, Ints
from moesim.facts.cluster import Cluster
from moesim.facts.program import Work
from moesim.models.bounds import PairRoutes

MOST_ELEMENTS = 500_000
"""Of a temporary array."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepRecord:
    """A step of T tasks and K legs of exchanges on G GPUs; times in s, sizes in B.

    ``place`` int[T, G] counts tasks as they ended and ``leg_began`` int[K, groups] legs as they began; ``start``, ``end``, ``bytes``,
    ``tokens``, ``waiting`` and ``waited_for`` are [T, G], ``arrival``, ``left`` and ``waited`` float[K, G], ``matrices`` float[K, G, G],
    ``moving`` float[K, groups]; ``leg_task`` int[K] is the task of each leg.
    """

    works: tuple[Work, ...]
    lanes: tuple[str, ...]
    ranks: int
    place: Ints
    start: Floats
    end: Floats
    bytes: Floats
    tokens: Ints
    waiting: Floats
    waited_for: Ints
    leg_task: Ints
    leg_began: Ints
    matrices: Floats
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

    def collectives(self, step: int, cluster: Cluster, routes: PairRoutes, crosses: Bools) -> list[dict[str, np.ndarray]]:
        """Return the columns of the collectives, one row for each leg and group, in the order in which they began, some at a time."""
        order = np.argsort(self.leg_began.ravel())
        some = max(MOST_ELEMENTS // max(cluster.gpus**2, cluster.gpus * cluster.links), 1)
        return [self._rows(step, order[first : first + some], cluster, routes, crosses) for first in range(0, len(order), some)]

    def _rows(self, step: int, order: Ints, cluster: Cluster, routes: PairRoutes, crosses: Bools) -> dict[str, np.ndarray]:
        gpus = cluster.gpus
        leg, group = np.divmod(order, self.leg_began.shape[1])
        members = group[:, None] * self.ranks + np.arange(self.ranks)
        here = leg[:, None]
        arrival, left, waited = self.arrival[here, members], self.left[here, members], self.waited[here, members]
        mine = np.zeros((len(order), gpus, gpus))
        rows = np.arange(len(order))[:, None, None]
        source, destination = members[:, :, None], members[:, None, :]
        mine[rows, source, destination] = self.matrices[leg[:, None, None], source, destination]
        mine[:, np.arange(gpus), np.arange(gpus)] = 0.0
        carried = routes.link_bytes(mine)
        seconds = carried / cluster.bandwidth
        busiest = seconds.argmax(axis=1)
        most = seconds.max(axis=1)
        task = self.leg_task[leg]
        names = np.array([*cluster.link_names, ""], dtype=np.str_)
        return {
            "step": np.full(len(order), step, dtype=np.int64),
            "layer": _numbers(self.works, "layer")[task],
            "moe_layer": _numbers(self.works, "moe_layer")[task],
            "microbatch": _numbers(self.works, "microbatch")[task],
            "phase": _words(self.works, "phase")[task],
            "direction": _words(self.works, "direction")[task],
            "group": group,
            "first_arrival_s": arrival.min(axis=1),
            "last_arrival_s": arrival.max(axis=1),
            "last_gpu": members[np.arange(len(order)), arrival.argmax(axis=1)],
            "end_s": left.max(axis=1),
            "moving_s": self.moving[leg, group],
            "transfer_s": (left - arrival - waited).mean(axis=1),
            "alone_s": np.take_along_axis(routes.port_seconds(mine), members, axis=1).mean(axis=1),
            "bytes": mine.reshape(len(order), -1).sum(axis=1),
            "cross_node_bytes": np.ascontiguousarray(mine[:, crosses]).sum(axis=1),
            "port_bound_s": np.where(routes.own, seconds, 0.0).max(axis=1, initial=0.0),
            "link_bound_s": most,
            "bottleneck_link": names[np.where(most > 0, busiest, len(names) - 1)],
        }


def _numbers(works: tuple[Work, ...], name: str) -> Ints:
    return np.array([getattr(work, name) for work in works], dtype=np.int64)


def _words(works: tuple[Work, ...], name: str) -> np.ndarray:
    return np.array([getattr(work, name) for work in works], dtype=np.str_)
