"""The sizes of an expert-parallel group, as planners want them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.base.errors import PluginError
from moesim.facts.arrays import Ints
from moesim.facts.placement import Placement
from moesim.facts.scenario import Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSizes:
    """One expert-parallel group: its MoE layers, experts, slots, GPUs, nodes, and the expert groups of the model."""

    layers: int
    experts: int
    slots: int
    gpus: int
    nodes: int
    groups: int

    def placement(self, expert_of_slot: Ints) -> Placement:
        """Return the placement with int[S] ``expert_of_slot`` in every layer, its slots dealt to the ranks in equal blocks."""
        return Placement(
            expert_of_slot=np.tile(expert_of_slot, (self.layers, 1)),
            rank_of_slot=np.arange(self.slots) // (self.slots // self.gpus),
        )


def group_sizes(setting: Setting, redundant: int, who: str) -> GroupSizes:
    """Return the sizes of a setting with so many redundant experts per layer.

    Raises
    ------
    PluginError
        If the slots do not divide over the ranks, or are more than all experts on every rank; the message names numbers that fit.
    """
    experts, ranks = setting.model.experts, setting.parallel.ep
    slots = experts + redundant
    if slots > experts * ranks:
        raise PluginError(
            f"{who}: redundant: {redundant} is more than it takes to hold all {experts} experts on every one of ep = {ranks} ranks; "
            f"choose {experts * (ranks - 1)} or fewer"
        )
    if slots % ranks:
        more = -slots % ranks
        less = slots - slots % ranks - experts
        fitting = [str(number) for number in (less, redundant + more) if number >= 0]
        raise PluginError(
            f"{who}: {experts} experts and redundant: {redundant} make {slots} slots, which do not divide over ep = {ranks} ranks; "
            f"choose redundant: {' or '.join(fitting)}"
        )
    return GroupSizes(
        layers=len(setting.model.moe_layers),
        experts=experts,
        slots=slots,
        gpus=ranks,
        nodes=nodes_of_group(setting),
        groups=setting.model.groups,
    )


def nodes_of_group(setting: Setting) -> int:
    """Return how many nodes share the first expert-parallel group, or 1 if they do not hold equal, consecutive blocks of its ranks.

    vLLM falls back to one node in the same case (``rearrange`` of ``vllm/distributed/eplb/eplb_state.py``).
    """
    ranks = setting.parallel.ep
    node_of = np.asarray(setting.cluster.node_of)[:ranks]
    nodes = len(np.unique(node_of))
    if ranks % nodes or not np.array_equal(node_of, np.repeat(node_of[:: ranks // nodes], ranks // nodes)):
        return 1
    return nodes
