"""SGLang's static choice: one replica of each expert for each rank, as long as the placement lasts."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np

from moesim.base.fields import Seed
from moesim.base.registry import register
from moesim.facts.arrays import Ints
from moesim.facts.contracts import Bind
from moesim.facts.placement import Placement
from moesim.facts.routing import Assignment, Kept
from moesim.facts.scenario import Setting
from moesim.models.dispatch.nearest import distances
from moesim.models.dispatch.replicas import Replicas, Rows, bind_rows, destinations


@register("dispatch", "static")
@dataclass(frozen=True, slots=True, kw_only=True)
class Static:
    """Give every rank one replica of each expert, the nearest, and use no other: SGLang's ``static``.

    A rank uses the only replica, else the first on its own GPU, else the first in its node if not all of them are there. The other ranks
    share all replicas fairly: each replica serves as many of them as any other, up to one, and which serves whom is drawn once.

    Parameters
    ----------
    draw_seed : int
        Of that draw; SGLang always uses 42. It is Python's own generator, read layer by layer and expert by expert, so that the tables are
        SGLang's for the same MoE layers.

    Notes
    -----
    Source: ``compute_logical_to_rank_dispatch_physical_map`` and ``_find_nearest_expert`` of sgl-project/sglang,
    ``python/sglang/srt/eplb/expert_location.py`` (0.5.23). SGLang's default with an all-to-all backend.
    """

    draw_seed: Seed = 42

    def begin(self, setting: Setting) -> Bind:
        """Return the dispatch for one run."""
        return _Tables(ranks=setting.parallel.ep, node_of=np.asarray(setting.cluster.node_of), draw_seed=self.draw_seed)


@dataclass(slots=True)
class _Tables:
    """The tables of the placement that was seen last."""

    ranks: int
    node_of: Ints
    draw_seed: int
    placement: Placement | None = field(default=None, init=False)
    tables: Ints = field(init=False)

    def __call__(self, kept: Kept, placement: Placement, *, step: int, moe_layer: int) -> Assignment:  # noqa: ARG002 - the contract of the slot
        if self.placement is not placement:
            self.tables = static_tables(placement, self.node_of, ranks=self.ranks, experts=kept.routing.experts, draw_seed=self.draw_seed)
            self.placement = placement
        table = self.tables[moe_layer]

        def choose(rows: Rows, replicas: Replicas) -> Ints:  # noqa: ARG001 - one of the ways to choose
            chosen: Ints = table[rows.source, rows.expert]
            return chosen

        return bind_rows(kept, placement, moe_layer=moe_layer, ranks=self.ranks, who="dispatch 'static'", choose=choose)


def static_tables(placement: Placement, node_of: Ints, *, ranks: int, experts: int, draw_seed: int = 42) -> Ints:
    """Return int[L, G, E], the slot that each GPU uses for each expert; -1 for an expert without a slot.

    Parameters
    ----------
    placement : Placement
        Of one group.
    node_of : int[G]
        The node of each GPU; groups are runs of ``ranks`` GPUs.
    ranks : int
        W.
    experts : int
        E.
    draw_seed : int
        Of the draw for ranks that have no replica near.
    """
    gpus = len(node_of)
    distance = distances(destinations(placement, gpus=gpus, ranks=ranks), node_of)
    tables = np.full((placement.layers, gpus, experts), -1, dtype=np.int64)
    for group in range(0, gpus, ranks):
        mine = slice(group, group + ranks)
        draw = random.Random(draw_seed)  # noqa: S311 - SGLang's tables come from this generator
        for layer, row in enumerate(placement.expert_of_slot):
            for expert in range(experts):
                slots = np.flatnonzero(row == expert)
                if slots.size:
                    tables[layer, mine, expert] = _one_each(slots, distance[mine][:, slots], draw)
    return tables


def _one_each(slots: Ints, distance: Ints, draw: random.Random) -> Ints:
    """Return int[W], the slot of each rank among the ``slots`` of one expert, ``distance`` int[W, slots] away."""
    if len(slots) == 1:
        return np.repeat(slots, len(distance))
    on_gpu, in_node = distance == 0, distance <= 1
    narrower = in_node.any(axis=1) & ~in_node.all(axis=1)
    # argmax gives the first True: of the GPU, or else of the node.
    chosen: Ints = slots[np.where(on_gpu.any(axis=1), on_gpu.argmax(axis=1), in_node.argmax(axis=1))]
    free = np.flatnonzero(~on_gpu.any(axis=1) & ~narrower)
    if free.size:
        listed = slots.tolist()
        rounds, rest = divmod(len(free), len(listed))
        deal = listed * rounds + draw.sample(listed, k=rest)
        draw.shuffle(deal)
        chosen[free] = deal
    return chosen
