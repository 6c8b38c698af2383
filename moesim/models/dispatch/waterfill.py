"""SGLang's waterfill: the shared expert's row of a token goes to a rank that has little to do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np

from moesim.base.errors import PluginError
from moesim.base.fields import Choice
from moesim.base.registry import plugin, register
from moesim.facts.arrays import Ints
from moesim.facts.contracts import Bind
from moesim.facts.placement import Placement
from moesim.facts.routing import Assignment, Kept
from moesim.facts.scenario import Setting
from moesim.models.dispatch.shared_ranks import Fill, dynamic_fill, shared_ranks, static_fill

WHO = "dispatch 'waterfill'"


@register("dispatch", "waterfill")
@dataclass(frozen=True, slots=True, kw_only=True)
class Waterfill:
    """Send each token's row for the shared expert to a rank that has room, like a routed one: SGLang's ``--enable-waterfill``.

    Every rank holds the shared expert as one more slot, whose rows its experts' kernel computes; no rank computes it beside them any more.
    A rank with fewer than 64 tokens keeps all its shared rows, and a token none of whose routes was kept keeps its own. Needs tokens, a
    shared expert as wide as a routed one, and a capacity rule without a limit.

    Parameters
    ----------
    mode : str
        What a rank knows. ``static``, the default as in SGLang: where its own rows go. ``dynamic``: the rows of all ranks, after an
        all-reduce, which takes no time here; where one of them is above the level already, a token's shared row goes only where another of
        its rows goes, or stays.
    replicas : str
        The dispatch that chooses among replicas of routed experts, with its defaults.

    Notes
    -----
    The choice of the rank: :func:`~moesim.models.dispatch.shared_ranks.shared_ranks`, with its source.
    """

    mode: Annotated[str, Choice(("static", "dynamic"))] = "static"
    replicas: Annotated[str, Choice(("static", "even", "nearest", "dynamic", "token_hash", "lp"))] = "static"

    def begin(self, setting: Setting) -> Bind:
        """Return the dispatch for one run.

        Raises
        ------
        PluginError
            If the model has no shared expert, or one that no slot for a routed expert fits, or tensor parallelism cuts it.
        """
        model, ranks = setting.model, setting.parallel.ep
        if model.shared_width != model.expert_width:
            has = f"shared experts of width {model.shared_width} in all" if model.shared_width else "no shared expert"
            raise PluginError(
                f"{WHO} makes the shared expert one more routed one, so both must be equally wide: {model.name} has {has} and routed ones "
                f"of width {model.expert_width}; choose policy.dispatch: {{kind: {self.replicas}}}"
            )
        if setting.parallel.tp > 1:
            raise PluginError(f"{WHO} needs whole shared experts, but parallel.tp {setting.parallel.tp} cuts them: take tp 1")
        if setting.parallel.etp > 1:
            raise PluginError(f"{WHO} needs whole experts, but parallel.etp {setting.parallel.etp} cuts them: take etp 1")
        inner: Bind = plugin("dispatch", self.replicas)().begin(setting)

        def bind(kept: Kept, placement: Placement, *, step: int, moe_layer: int) -> Assignment:
            if kept.capacity is not None or kept.sent is not None:
                raise PluginError(
                    f"{WHO} belongs to engines that drop nothing, but the capacity rule has a limit: choose {{rule: dropless}}"
                )
            kept.routing.need_ids(WHO)
            routed = inner(kept, placement, step=step, moe_layer=moe_layer)
            return _with_shared_rows(routed, placement, ranks=ranks, top_k=model.top_k, everybody=self.mode == "dynamic")

        return bind


def _with_shared_rows(routed: Assignment, placement: Placement, *, ranks: int, top_k: int, everybody: bool) -> Assignment:
    """Return an assignment with one more slot on each rank, for the shared expert, and one more choice of each token."""
    start, slots = routed.kept.routing.token_start, np.asarray(routed.slots)
    gpus = len(start) - 1
    visited = np.where(slots >= 0, placement.rank_of_slot[np.maximum(slots, 0)], -1)
    to_rank = np.zeros((gpus, ranks), dtype=np.int64)
    np.add.at(to_rank.T, placement.rank_of_slot, routed.slot_counts.T)

    def fill(gpu: int) -> Fill:
        if not everybody:
            return static_fill(to_rank[gpu], top_k)
        group = slice(gpu // ranks * ranks, (gpu // ranks + 1) * ranks)
        return dynamic_fill(to_rank[group].sum(axis=0), np.diff(start)[group], top_k)

    chosen = np.empty(len(slots), dtype=np.int64)
    shared = np.zeros((gpus, ranks), dtype=np.int64)
    for gpu in range(gpus):
        mine, own = slice(start[gpu], start[gpu + 1]), gpu % ranks
        found = shared_ranks(visited[mine], fill(gpu), source=own)
        chosen[mine] = np.where(found >= 0, found, own)
        shared[gpu] = np.bincount(chosen[mine], minlength=ranks)
    group_start: Ints = np.arange(gpus)[:, None] // ranks * ranks
    return replace(
        routed,
        slot_counts=np.hstack([routed.slot_counts, shared]),
        slot_padding=np.hstack([routed.slot_padding, np.zeros_like(shared)]),
        slots=np.column_stack([slots, placement.slots + chosen]).astype(np.int32, order="C"),
        destination=np.hstack([routed.destination, group_start + np.arange(ranks)]),
        shared_slots=ranks,
    )
