"""Traffic alone on an idle fabric: what ``moesim network`` plays."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import simpy
from numpy.typing import ArrayLike

from moesim.base.errors import Stuck, UsageError
from moesim.engine.balanced import fresh_policies
from moesim.engine.collective import Collective
from moesim.engine.fabric import Fabric
from moesim.engine.group_call import GroupCall
from moesim.engine.machine import Machine
from moesim.engine.placing import first_placement
from moesim.facts.arrays import Floats
from moesim.facts.cluster import Cluster
from moesim.facts.collective import CollectivePlan
from moesim.facts.contracts import PlanBatch
from moesim.facts.network import NetworkResult
from moesim.facts.program import FORWARD
from moesim.facts.scenario import Scenario, Sharing
from moesim.facts.trace import Trace
from moesim.facts.traffic import Exchange
from moesim.models.collective.prepared import prepare
from moesim.models.shortfall import floor
from moesim.models.stages import setting_of

FINER = 4
"""How many samples are taken per bin of time, at least: bins join samples, so that their number comes out near the one wished for."""
CLOSE = 1e-6
"""Share of a bin by which the end may miss its edge."""
FOREVER = 1e21
"""Seconds. The slowest transfer that a scenario can describe (1e18 B at 1 B/s, a million at once) ends before."""

Begin = Callable[[simpy.Environment, Fabric, Callable[[], Any]], None]
"""Starts traffic on a fabric and calls its last argument when all of it has arrived."""


def play(
    cluster: Cluster,
    stages: Sequence[ArrayLike],
    *,
    ranks: int | None = None,
    bins: int = 1,
    together: bool = False,
    bus_factor: float | None = None,
    sharing: Sharing | None = None,
) -> NetworkResult:
    """Let traffic that starts at 0 share an idle fabric, max-min fairly, until its last byte has arrived.

    Parameters
    ----------
    cluster : Cluster
        Links and routes.
    stages : sequence of float[G, G]
        Bytes from source (row) to destination; the diagonal is ignored. A single stage starts at once, each flow moving after the latency
        of its route. Of several, a GPU enters the next when everything it sends and receives in this one has moved and all ranks of its
        group are in it (:class:`~moesim.engine.collective.Collective`).
    ranks : int, optional
        GPUs of a group (consecutive numbers) that have a collective together; all if left out.
    bins : int
        Into how many bins of time the bytes of links are counted, at most.
    together : bool
        All stages start at once, as in a kernel that forwards chunk by chunk.
    bus_factor : float, optional
        Bus bandwidth over algorithm bandwidth; that of an all-to-all, (n - 1) / n, if left out.
    sharing : Sharing, optional
        How exactly links are shared; ``auto`` if left out.

    Returns
    -------
    NetworkResult
        Its bus bandwidth is what a GPU sends to others, on average, over the time: what stays on its GPU is not sent and not asked for,
        so the diagonal of a matrix plays no part. The algorithm bandwidth is that over ``bus_factor``.

    Raises
    ------
    UsageError
        If a matrix does not fit the cluster or the groups.
    LawBroken
        If the bytes carried are not those asked for.
    """
    matrices = [_off_diagonal(stage, cluster) for stage in stages]
    group = cluster.gpus if ranks is None else ranks
    if group < 1 or cluster.gpus % group:
        raise UsageError(f"{cluster.gpus} GPUs do not divide into groups of {group} ranks")
    asked = np.sum(matrices, axis=0) if matrices else np.zeros((cluster.gpus, cluster.gpus))

    def begin(env: simpy.Environment, fabric: Fabric, done: Callable[[], Any]) -> None:
        if together or len(matrices) == 1:
            _send_all(fabric, matrices, done)
        else:
            parts = _collectives(env, fabric, matrices, group)
            _when_all(env, [env.process(_rank(rank, own)) for rank, own in enumerate(parts)], done)

    factor = (group - 1) / group if bus_factor is None else bus_factor
    size = float(asked.sum() / cluster.gpus / factor) if factor > 0 else 0.0
    flows = [int(np.count_nonzero(matrix)) for matrix in matrices]
    most = sum(flows) if together else max(flows, default=0)
    open_fabric = partial(_fabric, cluster=cluster, sharing=sharing, flows=most)
    return _play(cluster, asked, begin, open_fabric, ranks=group, size=size, bus_factor=factor, bins=bins)


def play_plans(
    cluster: Cluster, plans: Sequence[CollectivePlan], *, bus_factor: float, bins: int = 1, sharing: Sharing | None = None
) -> NetworkResult:
    """Let collective operations that start at 0, one per group of GPUs, share an idle fabric until the last has ended.

    Parameters
    ----------
    cluster : Cluster
        Links and routes.
    plans : sequence of CollectivePlan
        Of groups without a common GPU, equal in their numbers of ranks and bytes.
    bus_factor : float
        Bus bandwidth over algorithm bandwidth of the operation.
    bins, sharing
        As for :func:`play`.

    Raises
    ------
    LawBroken
        If the bytes carried are not those asked for.
    """
    asked = np.sum([plan.traffic(cluster.gpus) for plan in plans], axis=0)

    def begin(env: simpy.Environment, fabric: Fabric, done: Callable[[], Any]) -> None:
        calls = [GroupCall(env, fabric, prepare(plan)) for plan in plans]
        _when_all(env, [call.arrive(rank) for call in calls for rank in call.ranks], done)

    most = sum(max((len(stage.source) for stage in plan.stages), default=0) for plan in plans)
    open_fabric = partial(_fabric, cluster=cluster, sharing=sharing, flows=most)
    return _play(cluster, asked, begin, open_fabric, ranks=len(plans[0].ranks), size=plans[0].bytes, bus_factor=bus_factor, bins=bins)


def _play(
    cluster: Cluster,
    asked: Floats,
    begin: Begin,
    open_fabric: Callable[[simpy.Environment], Fabric],
    *,
    ranks: int,
    size: float,
    bus_factor: float,
    bins: int,
) -> NetworkResult:
    env = simpy.Environment()
    fabric = open_fabric(env)
    edges, totals = [0.0], [np.zeros(cluster.links)]
    if asked.any():
        over = env.event()
        begin(env, fabric, over.succeed)
        env.run(until=env.process(_sample(env, fabric, floor(asked, cluster), over, edges, totals, most=FINER * max(bins, 1))))
        fabric.check()
        edges, totals = _fewer(edges, totals, max(bins, 1))
    return NetworkResult(
        cluster=cluster,
        ranks=ranks,
        size=size,
        bus_factor=bus_factor,
        asked=asked,
        finish=edges[-1],
        carried=fabric.carried_on_link,
        busy=fabric.busy,
        edges=np.array(edges),
        moved=np.diff(np.array(totals), axis=0),
        sharing=fabric.report(),
    )


def dispatch_of_layer(scenario: Scenario, layer: int, *, step: int, read_trace: Callable[..., Trace]) -> Exchange:
    """Return the forward exchange of one MoE layer, as a run of the scenario would have it.

    Parameters
    ----------
    scenario : Scenario
        A checked one.
    layer : int
        Which MoE layer, from 0.
    step : int
        Whose routing, from 0, under the first placement.
    read_trace : callable
        Turns a path into a :class:`Trace`.

    Raises
    ------
    UsageError
        If the model has no such layer.
    """
    if not 0 <= layer < len(scenario.model.moe_layers):
        raise UsageError(f"there is no MoE layer {layer}: {scenario.model.name} has MoE layers 0 to {len(scenario.model.moe_layers) - 1}")
    setting = setting_of(scenario, read_trace)
    plan = scenario.policy.placement.begin(setting)
    policies = replace(fresh_policies(scenario, setting), place=plan if isinstance(plan, PlanBatch) else None)
    machine = Machine(scenario, setting, policies, first_placement(scenario.policy.placement, setting, plan))
    draw = scenario.routing.begin(setting)
    for earlier in range(step):  # a source may remember what it drew before
        draw(earlier)
    return machine.load(draw(step), step).layers[layer].exchange[FORWARD]


def _fabric(env: simpy.Environment, *, cluster: Cluster, sharing: Sharing | None, flows: int) -> Fabric:
    fabric = Fabric(env, cluster, sharing)
    fabric.expect(flows)
    return fabric


def _off_diagonal(stage: ArrayLike, cluster: Cluster) -> Floats:
    asked = np.array(stage, dtype=np.float64)
    if asked.shape != (cluster.gpus, cluster.gpus):
        raise UsageError(f"traffic has shape {asked.shape}, but the cluster has {cluster.gpus} GPUs: give one row and one column per GPU")
    np.fill_diagonal(asked, 0.0)
    wrong = np.argwhere(~(np.isfinite(asked) & (asked >= 0)))
    if wrong.size:
        source, destination = wrong[0].tolist()
        raise UsageError(f"GPU {source} sends {asked[source, destination]:g} B to GPU {destination}: bytes are finite numbers, at least 0")
    return asked


def _send_all(fabric: Fabric, matrices: Sequence[Floats], done: Callable[[], Any]) -> None:
    """Start one flow for every pair that has bytes in a stage; call ``done`` when the last has ended."""
    counter = fabric.watch(lambda: done() and None)
    for matrix in matrices:
        source, destination = np.nonzero(matrix)
        fabric.transfer(source, destination, matrix[source, destination], np.full((len(source), 2), counter, dtype=np.int32))


def _when_all(env: simpy.Environment, events: Sequence[simpy.Event], done: Callable[[], Any]) -> None:
    def call(_: simpy.Event) -> None:
        done()

    env.all_of(events).callbacks.append(call)


def _collectives(env: simpy.Environment, fabric: Fabric, matrices: Sequence[Floats], group: int) -> list[list[Collective]]:
    """Return the collectives of every GPU, stage by stage."""
    gpus = len(matrices[0])
    source, destination = np.nonzero(np.any([matrix != 0 for matrix in matrices], axis=0))
    astray = source[source // group != destination // group]
    if astray.size:
        first = int(astray[0]) // group * group
        raise UsageError(f"GPUs {first} to {first + group - 1} have collectives among themselves, but send bytes to others")
    of_group = []
    for first in range(0, gpus, group):
        members, mine = range(first, first + group), slice(first, first + group)
        of_group.append([Collective(env, fabric, members, matrix[mine, mine], barrier=False) for matrix in matrices])
    return [of_group[gpu // group] for gpu in range(gpus)]


def _rank(rank: int, collectives: Sequence[Collective]) -> Generator[simpy.Event, Any, None]:
    for collective in collectives:
        yield collective.arrive(rank)


def _sample(
    env: simpy.Environment, fabric: Fabric, least: float, over: simpy.Event, edges: list[float], totals: list[Floats], *, most: int
) -> Generator[simpy.Event, Any, None]:
    """Write down, at regular times and at the end, what the links have carried so far.

    The end is not known before. Traffic that ends at its bound ``least`` gets ``most`` samples; where it takes longer, every other
    sample is forgotten and the distance doubled each time that there are twice as many.
    """
    width = least / most
    while not over.processed:
        yield env.timeout(width) | over
        if width > FOREVER:
            raise Stuck(f"not all bytes have arrived after {env.now:.3g} s, and nothing moves")
        if len(edges) > 1 and env.now - edges[-1] < CLOSE * width:
            edges[-1], totals[-1] = env.now, fabric.carried_on_link  # a bin of next to no time would hold nothing but rounding errors
        elif env.now > edges[-1]:
            edges.append(env.now)
            totals.append(fabric.carried_on_link)
        else:
            totals[-1] = fabric.carried_on_link
        if len(edges) == 2 * most + 1 and not over.processed:
            edges[:], totals[:] = edges[::2], totals[::2]
            width *= 2


def _fewer(edges: list[float], totals: list[Floats], most: int) -> tuple[list[float], list[Floats]]:
    """Join neighbouring bins, equally many each, until there are at most ``most``."""
    every = max(math.ceil((len(edges) - 1) / most), 1)
    kept = sorted({*range(0, len(edges), every), len(edges) - 1})
    return [edges[at] for at in kept], [totals[at] for at in kept]
