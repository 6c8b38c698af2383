"""What every planner of a placement takes and gives: loads in, maps out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from moesim.base.errors import PluginError
from moesim.facts.arrays import Floats, Ints, frozen
from moesim.facts.placement import Placement

MOST = 1e30
"""Loads are added up in single precision, as EPLB does, and must not overflow there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementPlan:
    """Where a planner puts the experts of L layers.

    Parameters
    ----------
    physical_to_logical_map : int[L, S]
        Logical expert in each slot (physical expert).
    logical_count : int[L, E]
        Replicas of each logical expert; a row sums to S.
    rank_of_slot : int[S]
        Rank (GPU) that holds each slot, the same in all layers.
    """

    physical_to_logical_map: Ints
    logical_count: Ints
    rank_of_slot: Ints

    def __post_init__(self) -> None:
        for name in ("physical_to_logical_map", "logical_count", "rank_of_slot"):
            object.__setattr__(self, name, frozen(getattr(self, name), np.int64))

    @property
    def placement(self) -> Placement:
        """The same as the engine wants it."""
        return Placement(expert_of_slot=self.physical_to_logical_map, rank_of_slot=self.rank_of_slot)

    @property
    def logical_to_physical_map(self) -> Ints:
        """int[L, E, most replicas]: the slots of each expert, increasing, then -1."""
        layers, experts = self.logical_count.shape
        slots = np.full((layers, experts, int(self.logical_count.max(initial=0))), -1, dtype=np.int64)
        order = np.argsort(self.physical_to_logical_map, axis=1, kind="stable")
        first = np.cumsum(self.logical_count, axis=1) - self.logical_count
        row = np.arange(layers)[:, None]
        expert = np.take_along_axis(self.physical_to_logical_map, order, axis=1)
        slots[row, expert, np.arange(order.shape[1]) - np.take_along_axis(first, expert, axis=1)] = order
        return slots

    def rank_loads(self, loads: ArrayLike, ranks: int) -> Floats:
        """Return float[L, ranks], the load of each rank if the load of an expert splits evenly over its replicas."""
        share = np.asarray(loads, dtype=np.float64) / self.logical_count
        of_slot = np.take_along_axis(share, self.physical_to_logical_map, axis=1)
        out = np.zeros((len(of_slot), ranks))
        np.add.at(out.T, self.rank_of_slot, of_slot.T)
        return out


class Planner(Protocol):
    """A pure planner: the same arguments give the same plan."""

    def __call__(self, loads: ArrayLike, *, slots: int, gpus: int, nodes: int, groups: int) -> PlacementPlan:
        """Return where the experts go.

        Parameters
        ----------
        loads : float[L, E] or float[steps, L, E]
            Routes (or any weight) of each logical expert.
        slots, gpus : int
            Physical experts of a layer, and the ranks that share them: GPU g holds slots ``g * slots / gpus`` and on.
        nodes : int
            Servers of these GPUs, in equal consecutive blocks.
        groups : int
            Expert groups of the model, in equal consecutive blocks (group-limited routing).
        """
        ...


def plan_of(expert_of_slot: ArrayLike, experts: int, gpus: int) -> PlacementPlan:
    """Return the plan with int[L, S] ``expert_of_slot``, its slots dealt to the GPUs in equal blocks."""
    slots = np.asarray(expert_of_slot, dtype=np.int64)
    return PlacementPlan(
        physical_to_logical_map=slots,
        logical_count=count_replicas(slots, experts),
        rank_of_slot=np.arange(slots.shape[1]) // (slots.shape[1] // gpus),
    )


def count_replicas(expert_of_slot: Ints, experts: int) -> Ints:
    """Return int[L, E] from int[L, S]."""
    layers = len(expert_of_slot)
    flat = (np.arange(layers)[:, None] * experts + expert_of_slot).ravel()
    return np.bincount(flat, minlength=layers * experts).reshape(layers, experts)


def summed_loads(loads: ArrayLike, who: str) -> Floats:
    """Return float[L, E]: ``loads`` themselves, or summed over their steps.

    Raises
    ------
    PluginError
        If they have another shape, or hold a number that is no load.
    """
    array = np.asarray(loads)
    if array.ndim not in (2, 3) or array.dtype.kind not in "iufb":
        raise PluginError(f"{who}: loads must be numbers of shape [layers, experts] or [steps, layers, experts], not {array.shape}")
    bad = np.argwhere(~((array >= 0) & (array <= MOST)))
    if bad.size:
        where = ", ".join(str(i) for i in bad[0])
        raise PluginError(f"{who}: loads[{where}] is {array[tuple(bad[0])]}; a load is a number from 0 to {MOST:g}")
    return np.asarray(array if array.ndim == 2 else array.sum(axis=0), dtype=np.float64)


def check_sizes(who: str, *, experts: int, slots: int, gpus: int, nodes: int = 1, groups: int = 1) -> None:
    """Refuse sizes that no placement of equal ranks can have.

    Raises
    ------
    PluginError
        Naming the sizes and what would fit.
    """
    for name, value in (("slots", slots), ("gpus", gpus), ("nodes", nodes), ("groups", groups)):
        if value < 1:
            raise PluginError(f"{who}: {name} is {value}, but must be at least 1")
    least = -(-experts // gpus) * gpus
    if slots < experts:
        raise PluginError(f"{who}: {slots} slots cannot hold {experts} experts; {least} is the least that also divides over {gpus} GPUs")
    if slots % gpus:
        near = max(slots // gpus * gpus, least)
        raise PluginError(f"{who}: {slots} slots do not divide over {gpus} GPUs; choose {near} or {near + gpus} slots")
    if slots > experts * gpus:
        raise PluginError(f"{who}: {slots} slots are more than {experts} experts on every one of {gpus} GPUs ({experts * gpus}) need")
    if gpus % nodes:
        raise PluginError(f"{who}: {gpus} GPUs do not divide over {nodes} nodes")
    if experts % groups:
        raise PluginError(f"{who}: {experts} experts do not divide into {groups} groups")
