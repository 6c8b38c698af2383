"""A plan as a rank sees it: which flows are its own, stage by stage; made once, played many times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.facts.arrays import Floats, Ints
from moesim.facts.collective import CollectivePlan, Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """A stage with one flow per pair of GPUs: two flows over one route would take two shares of its links.

    Parameters
    ----------
    source, destination : int[F]
        GPUs.
    size : float[F]
        Bytes.
    flows_of : dict of int to int[...]
        For each GPU that has any, the flows that it sends or receives.
    joined : dict of int to tuple of int
        For each GPU that must not start alone, those with whom it starts, itself among them.
    lag : dict of int to float
        Seconds after the last byte of a GPU.
    """

    source: Ints
    destination: Ints
    size: Floats
    flows_of: dict[int, Ints]
    joined: dict[int, tuple[int, ...]]
    lag: dict[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedPlan:
    """A plan and what the engine needs to know of it.

    Parameters
    ----------
    plan : CollectivePlan
    legs : tuple of Leg
        Of each stage.
    path : dict of int to tuple of int
        The stages in which each GPU of the group has flows.
    sent : dict of int to float
        Bytes that each GPU of the group sends in all.
    """

    plan: CollectivePlan
    legs: tuple[Leg, ...]
    path: dict[int, tuple[int, ...]]
    sent: dict[int, float]


def prepare(plan: CollectivePlan) -> PreparedPlan:
    """Return a plan as its ranks see it."""
    legs: list[Leg] = []
    before: Stage | None = None
    for stage in plan.stages:
        legs.append(legs[-1] if before is not None and _same_flows(before, stage) else _leg(stage, plan.ranks))
        before = stage
    sent = dict.fromkeys(plan.ranks.tolist(), 0.0)
    path: dict[int, list[int]] = {rank: [] for rank in sent}
    for number, leg in enumerate(legs):
        for gpu, size in zip(leg.source.tolist(), leg.size.tolist(), strict=True):
            sent[gpu] += size
        for gpu in leg.flows_of:
            path[gpu].append(number)
    return PreparedPlan(plan=plan, legs=tuple(legs), path={rank: tuple(stages) for rank, stages in path.items()}, sent=sent)


def _same_flows(one: Stage, other: Stage) -> bool:
    """Return whether two stages have the same flows; those of a ring share their very arrays."""
    return (
        one.source is other.source
        and one.destination is other.destination
        and one.bytes is other.bytes
        and not (len(one.together) or len(other.together) or len(one.lag) or len(other.lag))
    )


def _leg(stage: Stage, ranks: Ints) -> Leg:
    wide = int(max(stage.source.max(), stage.destination.max())) + 1
    pairs, flow = np.unique(stage.source * wide + stage.destination, return_inverse=True)
    source, destination = pairs // wide, pairs % wide
    flows_of: dict[int, list[int]] = {}
    for number, ends in enumerate(zip(source.tolist(), destination.tolist(), strict=True)):
        for gpu in ends:
            flows_of.setdefault(gpu, []).append(number)
    joined: dict[int, tuple[int, ...]] = {}
    if len(stage.together):
        active = np.isin(ranks, list(flows_of))
        for label in np.unique(stage.together[active]).tolist():
            team = tuple(ranks[active & (stage.together == label)].tolist())
            joined.update(dict.fromkeys(team, team))
    return Leg(
        source=source,
        destination=destination,
        size=np.bincount(flow, weights=stage.bytes, minlength=len(pairs)).astype(np.float64),
        flows_of={gpu: np.array(numbers, dtype=np.int64) for gpu, numbers in flows_of.items()},
        joined=joined,
        lag=dict(zip(ranks.tolist(), stage.lag.tolist(), strict=True)) if len(stage.lag) else {},
    )
