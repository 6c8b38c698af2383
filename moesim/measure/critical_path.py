"""The critical path of a step: the chain of tasks, arrivals and transfers that the step took as long as."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.facts.arrays import Ints
from moesim.facts.program import COLLECTIVES, EXPERT_TENSOR_CALLS, GROUP_CALLS, RECEIVE, SEND, TENSOR_CALLS
from moesim.facts.record import Table

CALLS = (*COLLECTIVES, *GROUP_CALLS, *TENSOR_CALLS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One piece of the path: what one GPU did, or what moved, from ``start`` to ``end`` (s).

    ``kind`` is ``compute``, ``transfer`` (with the link of the collective's floor in ``bottleneck``), ``launch`` (of a collective) or
    ``idle`` (nothing of this GPU was recorded, as while weights move).
    """

    gpu: int
    layer: int
    moe_layer: int
    direction: str
    phase: str
    kind: str
    start: float
    end: float
    bottleneck: str = ""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start


def critical_path(spans: Table, collectives: Table, *, start: float, ranks: int, sharing: int = 1, tensor: int = 1) -> list[Link]:
    """Return the critical path of one step, from its start to its end, without gaps.

    Parameters
    ----------
    spans : Table
        Every span of the step, as in the table ``spans`` of a result.
    collectives : Table
        Its rows of the table ``collectives``.
    start : float
        When the step began, s.
    ranks : int
        Ranks of an expert-parallel group.
    sharing : int
        GPUs that share experts.
    tensor : int
        GPUs of a tensor-parallel group.

    Returns
    -------
    list of Link
        In order of time; the end of each is the start of the next, and their seconds sum to the step's.

    Notes
    -----
    The path is followed backwards from the task that ended last, as in a project network (Kelley and Walker, 1959). Before a kernel comes
    the task of the same GPU that ended when it began. A GPU leaves a collective when the last GPU has arrived and its bytes have moved; so
    before the transfer comes the arrival of the last GPU, and the path goes on with what *that* GPU did. Bytes that moved before the last
    arrival were not what the step waited for. Where links are shared, that is a way of booking time and no proof that the step would be
    shorter by as much: :mod:`moesim.study.why` asks that by simulating the step without it.
    """
    if not len(spans):
        return []
    walk = _Walk(spans, collectives, start, (ranks, sharing, tensor))
    index = int(np.lexsort((spans["gpu"], -spans["end_s"]))[0])
    return walk.back_from(index)


class _Walk:
    """One walk back through one step."""

    def __init__(self, spans: Table, collectives: Table, start: float, sizes: tuple[int, int, int]) -> None:
        self._begin = spans["start_s"]
        self._end = spans["end_s"]
        self._gpu = spans["gpu"]
        self._phase = spans["phase"]
        self._direction = spans["direction"]
        self._layer = spans["layer"]
        self._moe_layer = spans["moe_layer"]
        self._microbatch = spans["microbatch"]
        self._waited_for = spans["waited_for"]
        self._collectives = collectives
        self._start = start
        self._ranks, self._sharing, self._tensor = sizes
        # The clock adds many small times: equal moments differ by rounding only.
        self._slack = 1e-9 * max(float(self._end.max()) - start, 0.0) + 8 * np.spacing(float(self._end.max()))
        self._of_gpu: dict[int, Ints] = {}
        for gpu in np.unique(self._gpu):
            mine = np.flatnonzero(self._gpu == gpu)
            self._of_gpu[int(gpu)] = mine[np.argsort(self._end[mine], kind="stable")]
        self._path: list[Link] = []

    def back_from(self, index: int) -> list[Link]:
        now = float(self._end[index])
        seen: set[int] = set()
        while index >= 0 and index not in seen:
            seen.add(index)
            index, now = self._through(index, now)
            before = self._before(index, now)
            reached = float(self._end[before]) if before >= 0 else self._start
            if now - reached > self._slack:
                self._add(index, "idle", reached, now)
            now = reached
            index = before
        self._path.reverse()
        return self._path

    def _through(self, index: int, now: float) -> tuple[int, float]:
        """Add what happened in the task up to ``now``; return the task (of maybe another GPU) and the moment at which it began."""
        if self._phase[index] == RECEIVE:
            index = self._sender(index)
            self._add(index, "transfer", float(self._begin[index]), now)
            return index, float(self._begin[index])
        if self._phase[index] not in CALLS:
            self._add(index, "compute", float(self._begin[index]), now)
            return index, float(self._begin[index])
        peers = self._peers(index)
        earliest = float(self._begin[peers].min())
        for row in self._stages(index, earliest, now):
            arrived = float(self._collectives["last_arrival_s"][row])
            if arrived > now + self._slack or arrived < earliest - self._slack:
                continue
            last = peers[self._gpu[peers] == self._collectives["last_gpu"][row]]
            if not len(last):
                continue
            self._add(index, "transfer", arrived, now, bottleneck=str(self._collectives["bottleneck_link"][row]))
            index, now = int(last[0]), min(arrived, now)
        began = float(self._begin[index])
        if now - began > self._slack:
            self._add(index, "launch", began, now)
        return index, began

    def _sender(self, index: int) -> int:
        """Return the span in which the GPU of another stage sent what a stage waited for."""
        same = (self._phase == SEND) & (self._layer == self._layer[index]) & (self._direction == self._direction[index])
        same &= (self._microbatch == self._microbatch[index]) & (self._gpu == self._waited_for[index])
        return int(np.flatnonzero(same)[0])

    def _peers(self, index: int) -> Ints:
        """Return the spans of the same call: of this GPU's group for tokens, of all who waited with it for weights."""
        group = self._groups(index)
        same = (
            (self._phase == self._phase[index])
            & (self._layer == self._layer[index])
            & (self._direction == self._direction[index])
            & (self._microbatch == self._microbatch[index])
        )
        if group is not None:
            same &= group == group[index]
        return np.flatnonzero(same)

    def _groups(self, index: int) -> Ints | None:
        """Return the group of every span's GPU, of those that meet in such a call as this one; None where copies of weights meet."""
        phase = self._phase[index]
        if phase in COLLECTIVES:
            block = self._ranks * self._sharing
            return np.asarray(self._gpu // block * self._sharing + self._gpu % self._sharing)
        if phase in EXPERT_TENSOR_CALLS:
            return np.asarray(self._gpu // self._sharing)
        return np.asarray(self._gpu // self._tensor) if phase in TENSOR_CALLS else None

    def _stages(self, index: int, earliest: float, now: float) -> Ints:
        """Return the rows of this call's stages that had begun by ``now``, the last first."""
        table = self._collectives
        mine = (
            (table["phase"] == self._phase[index])
            & (table["layer"] == self._layer[index])
            & (table["direction"] == self._direction[index])
            & (table["microbatch"] == self._microbatch[index])
            & (table["last_arrival_s"] <= now + self._slack)
            & (table["last_arrival_s"] >= earliest - self._slack)
        )
        group = self._groups(index)
        if group is not None:
            mine &= table["group"] == group[index]
        rows = np.flatnonzero(mine)
        return rows[np.argsort(-table["last_arrival_s"][rows], kind="stable")]

    def _before(self, index: int, now: float) -> int:
        """Return the task of the same GPU that ended last, at ``now`` or before, and began earlier than ``now``; -1 if there is none."""
        mine = self._of_gpu[int(self._gpu[index])]
        mine = mine[: int(np.searchsorted(self._end[mine], now + self._slack, side="right"))]
        # A task without length ends where it began: the path goes back in time, never sideways.
        mine = mine[(self._begin[mine] < now - self._slack / 2) & (mine != index)]
        return int(mine[-1]) if len(mine) and self._end[mine[-1]] > self._start + self._slack else -1

    def _add(self, index: int, kind: str, start: float, end: float, *, bottleneck: str = "") -> None:
        if end - start <= 0:
            return
        self._path.append(
            Link(
                gpu=int(self._gpu[index]),
                layer=int(self._layer[index]),
                moe_layer=int(self._moe_layer[index]),
                direction=str(self._direction[index]),
                phase=str(self._phase[index]),
                kind=kind,
                start=start,
                end=end,
                bottleneck=bottleneck,
            )
        )


def waiting_chains(spans: Table) -> Table:
    """Return who kept whom waiting: one row for each pair, the longest wait first.

    Parameters
    ----------
    spans : Table
        Spans of any number of steps.

    Returns
    -------
    Table
        Columns ``gpu`` (the one that came late), ``waiting_gpu``, ``seconds`` (over all spans), ``calls`` and ``worst_layer`` (the
        layer in which it waited longest).
    """
    kept = spans.where((spans["waited_for"] >= 0) & (spans["waiting_s"] > 0))
    rows: list[tuple[int, int, float, int, int]] = []
    if len(kept):
        pairs, inverse = np.unique(np.stack([kept["waited_for"], kept["gpu"]]), axis=1, return_inverse=True)
        for number in range(pairs.shape[1]):
            mine = np.flatnonzero(inverse.ravel() == number)
            seconds = kept["waiting_s"][mine]
            by_layer = np.bincount(kept["layer"][mine], weights=seconds)
            rows.append((int(pairs[0, number]), int(pairs[1, number]), float(seconds.sum()), len(mine), int(by_layer.argmax())))
    rows.sort(key=lambda row: (-row[2], row[0], row[1]))
    names = ("gpu", "waiting_gpu", "seconds", "calls", "worst_layer")
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(names)
    kinds = (np.int64, np.int64, np.float64, np.int64, np.int64)
    return Table(
        columns={name: np.array(column, dtype=kind) for name, column, kind in zip(names, columns, kinds, strict=True)},
        units={"seconds": "s"},
    )
