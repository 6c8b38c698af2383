"""What happened, by column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moesim.engine.collective import Collective
from moesim.engine.group_call import GroupCall
from moesim.engine.step_record import StepRecord
from moesim.facts.arrays import Bools, Floats
from moesim.facts.cluster import Cluster
from moesim.facts.collective import CollectivePlan
from moesim.facts.program import Work
from moesim.facts.record import Table
from moesim.models.bounds import port_links
from moesim.models.group_bounds import Bounds, GroupRoutes, bounds_of_flows

SPAN_COLUMNS = (
    ("step", np.int64),
    ("layer", np.int64),
    ("moe_layer", np.int64),
    ("microbatch", np.int64),
    ("direction", np.str_),
    ("gpu", np.int64),
    ("lane", np.str_),
    ("phase", np.str_),
    ("start_s", np.float64),
    ("end_s", np.float64),
    ("bytes", np.float64),
    ("tokens", np.int64),
    ("waiting_s", np.float64),
    ("waited_for", np.int64),
    ("slowed_s", np.float64),
)
COLLECTIVE_COLUMNS = (
    ("step", np.int64),
    ("layer", np.int64),
    ("moe_layer", np.int64),
    ("microbatch", np.int64),
    ("phase", np.str_),
    ("direction", np.str_),
    ("group", np.int64),
    ("first_arrival_s", np.float64),
    ("last_arrival_s", np.float64),
    ("last_gpu", np.int64),
    ("end_s", np.float64),
    ("moving_s", np.float64),
    ("transfer_s", np.float64),
    ("alone_s", np.float64),
    ("bytes", np.float64),
    ("cross_node_bytes", np.float64),
    ("port_bound_s", np.float64),
    ("link_bound_s", np.float64),
    ("bottleneck_link", np.str_),
)


class Recorder:
    """Collects spans of tasks and collectives while a run goes on.

    Parameters
    ----------
    cluster : Cluster
        For the floors of collectives.
    ranks : int
        Of an expert-parallel group.
    """

    def __init__(self, cluster: Cluster, ranks: int) -> None:
        self._cluster = cluster
        self._ranks = ranks
        self._link_names = np.array([*cluster.link_names, ""], dtype=np.str_)
        self._routes: GroupRoutes | None = None
        self._blocks: list[tuple[int, StepRecord]] = []
        self._span_columns: list[dict[str, np.ndarray]] = []
        self._collective_columns: list[dict[str, np.ndarray]] = []
        self._spans: list[tuple[object, ...]] = []
        self._under_way: list[tuple[Work, int, Collective | GroupCall, Floats | CollectivePlan]] = []
        self._collectives: list[tuple[object, ...]] = []
        self.step = 0

    def begin_step(self, step: int) -> None:
        """Write the collectives of the step before down as rows: their matrices and participants would fill the memory of a long run.

        The last step waits until somebody asks for rows: the balanced step is played for its time alone.
        """
        self._write_down()
        self.step = step

    def span(
        self,
        work: Work,
        gpu: int,
        lane: str,
        start: float,
        end: float,
        *,
        tokens: int,
        size: float = 0.0,
        waiting: float = 0.0,
        waited_for: int = -1,
        slowed: float = 0.0,
    ) -> None:
        """Write one task of one GPU down; times in s, ``size`` in B."""
        self._spans.append(
            (
                self.step,
                work.layer,
                work.moe_layer,
                work.microbatch,
                work.direction,
                gpu,
                lane,
                work.phase,
                start,
                end,
                size,
                tokens,
                waiting,
                waited_for,
                slowed,
            )
        )

    def collective(self, work: Work, group: int, collective: Collective, size: Floats) -> None:
        """Remember a collective of an expert-parallel group; ``size`` is float[R, R], B."""
        self._under_way.append((work, group, collective, size))

    def call(self, work: Work, group: int, call: GroupCall, plan: CollectivePlan) -> None:
        """Remember an operation of another group."""
        self._under_way.append((work, group, call, plan))

    def step_record(self, record: StepRecord) -> None:
        """Write a step down that was worked out at once; nothing else was recorded in it."""
        self._write_down()
        self._blocks.append((self.step, record))

    def _write_down(self) -> None:
        for step, record in self._blocks:
            self._columns()
            self._span_columns.append(record.spans(step))
            self._collective_columns.append(record.collectives(step, self._routes_inside(), self._link_names))
        self._blocks.clear()
        bounds = self._bounds()
        for (work, group, one, _), (found, number, place) in zip(self._under_way, bounds, strict=True):
            self._collectives.append(self._row(work, group, one, found, number, place))
        self._under_way.clear()

    def _routes_inside(self) -> GroupRoutes:
        """Return the routes of groups. A machine that is played for its times alone never asks for them."""
        if self._routes is None:
            self._routes = GroupRoutes(self._cluster, self._ranks, self._ports())
        return self._routes

    def _ports(self) -> Bools:
        return self._cluster.once("links that are ports", lambda: port_links(self._cluster))

    def _bounds(self) -> list[tuple[Bounds, int, int]]:
        """Return the bounds of each collective and where in them it stands; those of expert-parallel groups are worked out together."""
        turns: Counter[int] = Counter()
        places = []
        for _, group, _, asked in self._under_way:
            inside = not isinstance(asked, CollectivePlan)
            places.append((turns[group], group) if inside else (0, 0))
            turns[group] += inside
        sizes = np.zeros((max(turns.values(), default=0), self._cluster.gpus // self._ranks, self._ranks, self._ranks))
        for (_, _, _, asked), place in zip(self._under_way, places, strict=True):
            if not isinstance(asked, CollectivePlan):
                sizes[place] = asked
        together = self._routes_inside().bounds(sizes) if len(sizes) else None
        found = []
        for (_, _, call, asked), place in zip(self._under_way, places, strict=True):
            if isinstance(asked, CollectivePlan):
                found.append((bounds_of_flows(*asked.flows(), call.ranks, self._cluster, self._ports()), 0, 0))
            elif together is not None:
                found.append((together, *place))
        return found

    def _columns(self) -> None:
        """Turn the rows so far into columns, so that what comes next stands after them."""
        for names, rows, columns in (
            (SPAN_COLUMNS, self._spans, self._span_columns),
            (COLLECTIVE_COLUMNS, self._collectives, self._collective_columns),
        ):
            if rows:
                columns.append(_arrays(names, rows))
                rows.clear()

    def _row(
        self, work: Work, group: int, collective: Collective | GroupCall, bounds: Bounds, number: int, place: int
    ) -> tuple[object, ...]:
        ranks = collective.ranks
        states = [collective.at[rank] for rank in ranks]
        arrivals = np.array([state.arrival for state in states])
        return (
            self.step,
            work.layer,
            work.moe_layer,
            work.microbatch,
            work.phase,
            work.direction,
            group,
            arrivals.min(),
            arrivals.max(),
            ranks[int(arrivals.argmax())],
            max(state.end for state in states),
            collective.moving,
            np.mean([state.end - state.arrival - state.waiting for state in states]),
            bounds.alone[number, place].mean(),
            bounds.bytes[number, place],
            bounds.cross_node_bytes[number, place],
            bounds.port_bound[number, place],
            bounds.link_bound[number, place],
            self._link_names[bounds.bottleneck[number, place]],
        )

    def collectives(self) -> Table:
        """Return all collectives in the order in which they began."""
        self._write_down()
        self._columns()
        return _table(COLLECTIVE_COLUMNS, self._collective_columns)

    def spans(self) -> Table:
        """Return all spans in the order in which they ended."""
        self._write_down()
        self._columns()
        return _table(SPAN_COLUMNS, self._span_columns)


def _arrays(names: Sequence[tuple[str, type]], rows: list[tuple[object, ...]]) -> dict[str, np.ndarray]:
    columns = zip(*rows, strict=True)
    return {name: np.array(values, dtype=dtype) for (name, dtype), values in zip(names, columns, strict=True)}


def _narrow(words: NDArray[np.str_]) -> NDArray[np.str_]:
    """Return words in an array as wide as the longest of them."""
    longest = int(np.char.str_len(words).max(initial=0))
    return words.astype(f"<U{max(longest, 1)}", copy=False)


def _table(names: Sequence[tuple[str, type]], parts: list[dict[str, np.ndarray]]) -> Table:
    units = {name: "s" if name.endswith("_s") else "B" for name, _ in names if name.endswith(("_s", "bytes"))}
    if len(parts) > 1:
        parts[:] = [{name: np.concatenate([part[name] for part in parts]) for name, _ in names}]  # once, however often somebody asks
    for part in parts:
        part.update({name: _narrow(part[name]) for name, dtype in names if dtype is np.str_})
    return Table(columns=dict(parts[0]) if parts else {name: np.array((), dtype=dtype) for name, dtype in names}, units=units)
