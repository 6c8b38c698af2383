"""What the engine says of a case of the testbed: an all-to-all, or a step of an MoE layer whose rows are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from moesim.base.errors import UsageError
from moesim.engine.replay import AllToAll, Change, Compute, Phase, Replayed, Wait, replay
from moesim.facts.arrays import Floats, Ints, frozen
from moesim.facts.cluster import Cluster
from moesim.models.topology.shaped_hosts import PAYLOAD, ShapedHosts
from moesim.study.testbed.calibration import Calibration
from moesim.study.testbed.windows import ends_of_windows
from moesim.study.testbed.wire import ANSWERED, answered, head_start, starts, waves, ways_back, with_acknowledgements

ELEMENT = 4
"""Bytes of fp32."""

MBIT = 1e6 / 8
"""B/s of a Mbit/s."""

APART = 1e-6
"""s between ranks that enter a library's all-to-all together: enough to say who was first, too little to matter otherwise."""

ORDERS = 41
"""In so many orders ranks enter an all-to-all of a library; the median counts."""

WAVES = 101
"""So many orders where ranks enter it in waves: there are more of them."""

FEW = 3
"""In so many orders ranks start where it hardly matters."""

SEND_BUFFER = 32768
"""Bytes that a connection of the testbed may have under way, and so what a sender leaves behind when it goes on."""

CROWDED = 1.19
"""How many times its seconds alone, with warm caches, an operation takes where ranks share cores, if nobody has measured it: weights that
come from memory, and the work of the network. Measured on the first testbed: four ranks on one core took 13 to 25 % longer than four times
one alone."""

PROBE_ROWS = 32
"""Rows that each rank sends in the probe of latencies: 16 tokens, top-2."""


def hosts_of(
    ranks: int, per_node: int, fast_mbit: float, slow_mbit: float, *, cores: int = 2, pinned: bool = True, payload: float = PAYLOAD
) -> ShapedHosts:
    """Return the topology of a testbed in the words of its tables: Mbit/s, ``per_node`` of 1 or 0 for a star.

    Raises
    ------
    UsageError
        If several nodes have no uplink, or ranks do not divide into nodes.
    """
    two_tier = per_node > 1 and per_node < ranks
    if per_node > 1 and ranks % per_node:
        raise UsageError(f"{ranks} ranks do not divide into nodes of {per_node}")
    if two_tier and not slow_mbit > 0:
        raise UsageError(f"{ranks // per_node} nodes need uplinks, but their rate is {slow_mbit:g} Mbit/s")
    if not fast_mbit > 0:
        raise UsageError(f"links of {fast_mbit:g} Mbit/s carry nothing")
    return ShapedHosts(
        ranks=ranks,
        ranks_per_node=per_node if two_tier else 0,
        rank_link=fast_mbit * MBIT,
        uplink=slow_mbit * MBIT if two_tier else None,
        payload=payload,
        cores=cores,
        pinned=pinned,
    )


def crowding(ranks: int, cores: int) -> float:
    """Return by what factor operations take longer than alone where nobody has measured it; ``cores`` of 0 are one for each rank."""
    return CROWDED if 0 < cores < ranks else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchanged:
    """When an all-to-all ends: ``seconds`` after the start for the last rank, ``ends`` float[G] for each.

    ``tried``: float[N], seconds in each order that was tried, of which ``seconds`` is the median.
    """

    seconds: float
    ends: Floats
    tried: Floats


def exchange(
    cluster: Cluster,
    sent: Ints | Floats,
    *,
    late: Sequence[float] = (),
    library: bool = False,
    changes: Sequence[Change] = (),
    posting: float | None = None,
    wire: bool = True,
    fifo: bool = False,
    orders: int = ORDERS,
    first: int | None = None,
    cores: int = 0,
) -> Exchanged:
    """Predict one all-to-all whose receives are posted before anybody starts, or one of a library.

    Parameters
    ----------
    cluster : Cluster
    sent : array [G, G]
        Bytes from each rank (row) to each other.
    late : sequence of float
        Seconds after the start at which each rank enters; all at 0 if empty.
    library : bool
        Whether the library posts sends and receives alternately. It then matters who enters first, which nobody knows: the median of many
        orders is returned.
    changes : sequence of Change
        Links that change meanwhile.
    posting : float or None
        What the smallest all-to-all takes, s: so late the last rank starts to send. Who that is nobody knows either. None if it is not
        known: then full buckets in the beginning, which make up for some of it, are left out as well.
    wire : bool
        Whether acknowledgements take their share of links and buckets are full in the beginning (:mod:`moesim.study.testbed.wire`);
        without, links are shared max-min fairly and nothing else.
    fifo : bool
        Whether each link has one queue for all flows (:mod:`moesim.study.testbed.windows`) instead of one for each. Links that change, and
        libraries, are predicted as if each flow had its own.
    orders : int
        Of how many orders the median is taken where ranks enter an all-to-all of a library.
    first : int or None
        The rank that is known to start before the others, if one is. With it, what a full bucket lets through in the beginning is counted
        at the rate that links have in the end; else at their first.
    cores : int
        As many ranks enter an all-to-all of a library at once, and ``orders`` does not count; 0 if each enters alone.
    """
    start = np.zeros(cluster.gpus) if not len(late) else np.asarray(late, dtype=np.float64)
    asked = np.array(sent, dtype=np.float64)
    np.fill_diagonal(asked, 0.0)
    links = with_acknowledgements(cluster, asked) if wire else cluster
    slower = links.bandwidth / cluster.bandwidth
    changed = [Change(time=what.time, link=what.link, bandwidth=what.bandwidth * float(slower[what.link])) for what in changes]
    least = APART * (cluster.gpus - 1)
    how, gap, tried = ("alternately", max(posting or 0.0, least), orders) if library else ("before", posting or 0.0, FEW if posting else 1)
    begun = [start + (starts(gap, cluster.gpus, order, first) if gap else 0.0) for order in range(tried)]
    if library and cores:
        begun = [start + waves(cluster.gpus, cores, order, least) for order in range(WAVES)]
    ended = links if first is None else _changed(links, changed)
    saved = head_start(ended, asked, PAYLOAD) if wire and posting is not None else 0.0
    if fifo and wire and not library and not changes:
        back = ways_back(cluster)
        return _exchanged([ends_of_windows(cluster, asked, begun[0], back=back, answered=ANSWERED)], saved)
    found = []
    for late_by in begun:
        phases: list[Phase] = [
            Wait(name="start", seconds=late_by),
            AllToAll(name="exchange", bytes=asked, posting=how),
        ]
        found.append(replay(links, phases, changes=changed).ends[-1])
    return _exchanged(found, saved)


def _changed(cluster: Cluster, changes: Sequence[Change]) -> Cluster:
    """Return the cluster as it is after all changes."""
    bandwidth = cluster.bandwidth.copy()
    for change in sorted(changes, key=lambda change: change.time):
        bandwidth[change.link] = change.bandwidth
    return replace(cluster, bandwidth=bandwidth)


def _exchanged(found: Sequence[Floats], saved: float) -> Exchanged:
    """Return the median of what was found, less what buckets save."""
    tried = sorted((np.maximum(ends - saved, 0.0) for ends in found), key=lambda ends: float(ends.max()))
    ends = tried[len(tried) // 2]
    return Exchanged(seconds=float(ends.max()), ends=ends, tried=np.array([one.max() for one in tried]))


def _median(found: Sequence[Replayed]) -> Replayed:
    return sorted(found, key=lambda one: one.seconds)[len(found) // 2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of an MoE layer on the testbed.

    Parameters
    ----------
    kept : int[G, E]
        Rows that each rank sends to each expert, after drops; experts are dealt to ranks in equal blocks.
    hidden, width : int
        Elements of a token, and of an expert's inner activation.
    tokens, top_k : int
        Tokens of a rank, and choices of each.
    backward : bool
        Whether gradients go the same way back.
    counts : float
        Seconds that the exchange of counts takes once all ranks are there.
    latency : float
        Seconds of an all-to-all besides moving its bytes.
    library : bool
        As for :func:`exchange`.
    """

    kept: Ints
    hidden: int
    width: int
    tokens: int
    top_k: int = 2
    backward: bool = False
    counts: float = 0.0
    latency: float = 0.0
    library: bool = False

    def __post_init__(self) -> None:
        kept = np.asarray(self.kept)
        if kept.ndim != 2 or kept.shape[1] % max(kept.shape[0], 1) or (kept < 0).any():
            raise UsageError(f"kept rows of shape {kept.shape} are not those of ranks that hold equally many experts each")
        object.__setattr__(self, "kept", frozen(kept, np.int64))

    def balanced(self) -> Step:
        """Return the step with as many rows, spread evenly over sources and experts (whole rows; some have one more)."""
        cells = self.kept.size
        even = np.full(cells, self.kept.sum() // cells) + (np.arange(cells) < self.kept.sum() % cells)
        return replace(self, kept=even.reshape(self.kept.shape))


def phases_of(step: Step, calibration: Calibration, *, order: int = 0, cluster: Cluster | None = None) -> list[Phase]:
    """Return what every rank does in a step: gate, sort, counts, dispatch, experts, combine, sum, and backward the same in reverse.

    ``order`` numbers the order in which ranks that are there together enter an all-to-all of a library. With a ``cluster``, bytes are
    counted with the acknowledgements that the busiest link carries for its reverse.

    Raises
    ------
    CalibrationError
        If an operation was not measured in the step's shape.
    """
    ranks, experts = step.kept.shape
    local = experts // ranks
    rows = step.kept.reshape(ranks, ranks, local).sum(axis=2)
    per_expert = step.kept.sum(axis=0).reshape(ranks, local)
    sent, received = rows.sum(axis=1), rows.sum(axis=0)
    there = rows * float(step.hidden * ELEMENT)
    np.fill_diagonal(there, 0.0)
    shape, width = f"{step.hidden}x{step.width}", str(step.hidden)
    gate = f"{step.hidden},{experts}"
    apart = starts(APART * (ranks - 1), ranks, order)

    def same(operation: str, head: str, count: float) -> Floats:
        return np.broadcast_to(calibration.seconds(operation, head, count), (ranks,))

    def experts_seconds(operation: str) -> Floats:
        stack = f"{shape}/{local}"  # the backward pass of an expert depends on how many the rank holds
        known = stack if stack in calibration.points.get(operation, {}) else shape
        return np.asarray(calibration.seconds(operation, known, per_expert).sum(axis=1) + calibration.seconds("group", width, received))

    def moved(name: str, sent_bytes: Floats) -> list[Phase]:
        entering: list[Phase] = [Wait(name=f"{name} order", seconds=apart)] if step.library else []
        waits: list[Phase] = [Wait(name=f"{name} latency", seconds=np.full(ranks, step.latency))] if step.latency else []
        whole = sent_bytes if cluster is None else sent_bytes * (1.0 + answered(cluster, sent_bytes))
        return [
            *entering,
            AllToAll(
                name=name,
                bytes=whole,
                posting="alternately" if step.library else "on_arrival",
                buffer=SEND_BUFFER if cluster is not None and not step.library else 0.0,
            ),
            *waits,
        ]

    phases: list[Phase] = [
        Compute(name="router", seconds=same("router", gate, step.tokens)),
        Compute(name="permute", seconds=same("permute", width, step.tokens * step.top_k)),
        AllToAll(name="counts", bytes=np.zeros((ranks, ranks)), barrier=True, latency=step.counts),
        *moved("dispatch", there),
        Compute(name="expert", seconds=experts_seconds("ffn")),
        *moved("combine", there.T),
        Compute(name="sum", seconds=calibration.seconds("sum", width, sent)),
    ]
    if step.backward:
        phases += [
            Compute(name="b_sum", seconds=calibration.seconds("b_sum", width, sent)),
            *moved("b_combine", there),
            Compute(name="b_expert", seconds=experts_seconds("ffn_bwd")),
            *moved("b_dispatch", there.T),
            Compute(name="b_router", seconds=same("b_router", gate, step.tokens)),
        ]
    return phases


def play_step(cluster: Cluster, step: Step, calibration: Calibration, *, wire: bool = True) -> Replayed:
    """Predict one step of an MoE layer; ``wire`` as for :func:`exchange`."""
    orders = range(ORDERS if step.library else 1)
    links = cluster if wire else None
    return _median([replay(cluster, phases_of(step, calibration, order=order, cluster=links)) for order in orders])


def latency_of_probe(topology: ShapedHosts, measured: float, hidden: int) -> float:
    """Return what an all-to-all of next to nothing takes besides moving its bytes.

    Parameters
    ----------
    topology : ShapedHosts
    measured : float
        Seconds of the all-to-all of the probe: ``PROBE_ROWS`` rows of each rank, spread evenly.
    hidden : int
        Elements of a row.
    """
    rank_bytes = PROBE_ROWS * hidden * ELEMENT
    even = np.full((topology.ranks, topology.ranks), rank_bytes / topology.ranks)
    return max(0.0, measured - exchange(topology.build(), even, wire=False).seconds)
