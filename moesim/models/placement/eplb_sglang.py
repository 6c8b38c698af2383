"""SGLang's expert-parallel load balancer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np

from moesim.base.errors import FieldError
from moesim.base.fields import Choice, Count, CountOrZero, Efficiency
from moesim.base.registry import register
from moesim.facts.arrays import Ints
from moesim.facts.contracts import Plan, View
from moesim.facts.placement import Placement
from moesim.facts.scenario import Setting
from moesim.models.placement.eplb_plan import inside_nodes, plan_global, plan_hierarchical
from moesim.models.placement.eplb_sglang_plan import plan_deepseek_vec, plan_elasticity_aware
from moesim.models.placement.group_sizes import GroupSizes, group_sizes
from moesim.models.placement.periodic import Periodic
from moesim.models.placement.plan_map import PlacementPlan, summed_loads
from moesim.models.placement.simple_plans import experts_in_order
from moesim.models.placement.utilisation import mean_utilisation

WHO = "placement 'eplb_sglang'"
HIERARCHICAL = "_hierarchical"
ALGORITHMS = tuple(name + end for name in ("deepseek", "deepseek_vec", "elasticity_aware") for end in ("", HIERARCHICAL))


@register("placement", "eplb_sglang")
@dataclass(frozen=True, slots=True, kw_only=True)
class EplbSglang:
    """Rebalance as SGLang does: its planners, its threshold below which it leaves things alone, its chunks of layers.

    The run starts with experts in order, redundant slots holding experts 0, 1, 2 and on (``trivial``); with dead ranks, on those that
    live.

    Parameters
    ----------
    redundant : int
        ``ep_num_redundant_experts``; their memory is charged. 0 by default.
    window : int or None
        ``expert_distribution_recorder_buffer_size``: the last steps that a plan looks at; none means the interval, as in SGLang, which
        refuses more.
    interval : int
        ``eplb_rebalance_num_iterations``: steps between rebalances. 1000 by default.
    threshold : float
        ``eplb_min_rebalancing_utilization_threshold``: no rebalance if the utilisation of the window, the mean over steps and layers of
        mean load over largest load of a rank, is above it. 1 by default: always rebalance. The loads of ranks are those of an even split
        over replicas.
    layers_per_chunk : int or None
        ``eplb_rebalance_layers_per_chunk``: so many layers change before each of the next steps; none means all at once.
    algorithm : str
        ``eplb_algorithm``: ``deepseek``, ``deepseek_vec`` (looks at every step's own peak) or ``elasticity_aware`` (plans on the ranks that
        live), each also with ``_hierarchical``; ``auto`` is ``deepseek_hierarchical`` if expert groups divide over nodes, else
        ``deepseek``.
    dead_ranks : list of int
        Ranks of every group that hold no expert (they still send their tokens); for ``elasticity_aware``.

    Notes
    -----
    Source: sgl-project/sglang 0.5.23, ``python/sglang/srt/eplb`` (``eplb_manager.py``, ``eplb_algorithms``) and ``server_args.py``.
    """

    redundant: CountOrZero = 0
    window: Count | None = None
    interval: Count = 1000
    threshold: Efficiency = 1.0
    layers_per_chunk: Count | None = None
    algorithm: Annotated[str, Choice(("auto", *ALGORITHMS))] = "auto"
    dead_ranks: tuple[CountOrZero, ...] = ()

    def __post_init__(self) -> None:
        if self.window is not None and self.window > self.interval:
            raise FieldError("window", f"window ({self.window}) is longer than interval ({self.interval}); SGLang refuses that")
        if self.dead_ranks and not self.algorithm.startswith("elasticity_aware"):
            raise FieldError("dead_ranks", f"only algorithm: elasticity_aware plans without dead ranks, not {self.algorithm}")

    def begin(self, setting: Setting) -> Plan:
        """Return the plan for one run.

        Raises
        ------
        PluginError
            If the slots do not divide over the ranks, a hierarchical plan is asked for and the groups do not divide over the nodes, or
            the ranks that live cannot hold the experts.
        """
        sizes = group_sizes(setting, self.redundant, WHO)
        name = self.algorithm.removesuffix(HIERARCHICAL)
        asked = "auto" if name == "auto" else "hierarchical" if name != self.algorithm else "global"
        hierarchical = inside_nodes(sizes, WHO, asked)
        dead = self.dead_ranks

        def planned(loads: Ints) -> PlacementPlan:
            if name == "deepseek_vec":
                return plan_deepseek_vec(
                    loads, slots=sizes.slots, gpus=sizes.gpus, nodes=sizes.nodes, groups=sizes.groups, hierarchical=hierarchical
                )
            if name == "elasticity_aware":
                return plan_elasticity_aware(
                    loads,
                    slots=sizes.slots,
                    gpus=sizes.gpus,
                    nodes=sizes.nodes,
                    groups=sizes.groups,
                    dead_ranks=dead,
                    hierarchical=hierarchical,
                )
            weight = summed_loads(loads, WHO)
            if hierarchical:
                return plan_hierarchical(weight, slots=sizes.slots, gpus=sizes.gpus, nodes=sizes.nodes, groups=sizes.groups, who=WHO)
            return plan_global(weight, slots=sizes.slots, gpus=sizes.gpus, who=WHO)

        def rebalance(loads: Ints, present: Placement) -> Placement | None:
            if self.threshold < 1.0 and mean_utilisation(loads, present, sizes.gpus, without=dead) > self.threshold:
                return None
            return planned(loads).placement

        return Chunked(
            inner=Periodic(
                start=_start(sizes, dead),
                rebalance=rebalance,
                window=self.interval if self.window is None else self.window,
                interval=self.interval,
                due=self.interval,
            ),
            chunk=self.layers_per_chunk,
        )


def _start(sizes: GroupSizes, dead: Sequence[int]) -> Placement:
    if not dead:
        return sizes.placement(experts_in_order(sizes.experts, sizes.slots))
    # Refuses dead ranks that there are not, or too many of them.
    nothing = np.zeros((sizes.layers, sizes.experts))
    plan = plan_elasticity_aware(nothing, slots=sizes.slots, gpus=sizes.gpus, dead_ranks=dead)
    in_order = experts_in_order(sizes.experts, len(plan.rank_of_slot))
    return Placement(expert_of_slot=np.tile(in_order, (sizes.layers, 1)), rank_of_slot=plan.rank_of_slot)


@dataclass(slots=True)
class Chunked:
    """A periodic plan whose placements take effect a few layers per step; the interval counts from the last of them.

    With all layers at once they take effect at once. Otherwise the first chunk changes one step after the plan, for SGLang yields a
    forward pass before every chunk. ``continues`` is true of an answer that goes on with a plan of which a chunk has been given already:
    its planning is over.
    """

    inner: Periodic
    chunk: int | None
    target: Placement | None = field(default=None, init=False)
    done: int = field(default=0, init=False)
    continues: bool = field(default=False, init=False)

    def __call__(self, view: View) -> Placement | None:
        """Return the next chunk of a rebalance that is under way, or what the periodic plan decides."""
        self.continues = False
        if view.placement is None:
            self.target = None
        elif self.target is not None:
            return self._advance(view.placement)
        planned = self.inner(view)
        layers = len(planned.expert_of_slot) if planned is not None else 0
        if planned is None or view.placement is None or self.chunk is None or self.chunk >= layers:
            return planned
        self.target, self.done = planned, 0
        self.inner.due += -(-layers // self.chunk)
        return None

    def _advance(self, present: Placement) -> Placement | None:
        target = self.target
        if target is None or self.chunk is None:
            return None
        first, self.done = self.done, self.done + self.chunk
        self.continues = first > 0
        mixed = np.array(present.expert_of_slot)
        mixed[first : self.done] = target.expert_of_slot[first : self.done]
        if self.done >= len(mixed):
            self.target = None
        return Placement(expert_of_slot=mixed, rank_of_slot=present.rank_of_slot)
