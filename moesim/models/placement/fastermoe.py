"""FasterMoE's shadowed experts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.base.fields import BytesPerSecond, FlopsPerSecond, Seconds
from moesim.base.registry import register
from moesim.facts.batch_plan import BROADCAST, BatchPlan
from moesim.facts.contracts import Plan, View
from moesim.facts.model import DTYPE_BYTES, MoeModel
from moesim.facts.placement import Placement
from moesim.facts.routing import Kept
from moesim.facts.scenario import Setting
from moesim.models.placement.batch_rows import common_layout, deal_rows
from moesim.models.placement.shadow_plan import plan_shadows
from moesim.models.placement.static import Once, experts_per_rank, same_in_all_layers

WHO = "placement 'fastermoe'"


@register("placement", "fastermoe")
@dataclass(frozen=True, slots=True, kw_only=True)
class FasterMoe:
    """Send the weights of overloaded experts to every rank instead of everybody's tokens to them, chosen anew for every batch.

    Experts live in order, an equal block on each rank. As long as a simple prediction of the layer's latency falls, the most loaded expert
    is shadowed: broadcast to its whole group, and every rank computes its own tokens of it
    (:func:`~moesim.models.placement.shadow_plan.plan_shadows`). In training its gradients return. The scenario's dispatch is not asked.

    Parameters
    ----------
    bandwidth : B/s
        What the prediction takes for the network: ``FMOE_FASTER_GLBPLC_NETBW``, 6.25 GB/s (50 Gbit/s) by default.
    compute : flop/s
        What it takes for the GPU: ``FMOE_FASTER_GLBPLC_GPUTP``, 11.5 Tflop/s by default.
    planning_time : s
        Time that a plan takes, charged to each layer. Not published: 0 by default.

    Notes
    -----
    Source: He et al., "FasterMoE", PPoPP 2022; laekov/fastmoe at ee3c561, ``fmoe/fastermoe``. The sizes in the prediction are those of the
    model that runs: FastMoE's formula holds for two matrices in fp32. Its code counts per rank by mistake; this is the paper's rule.
    """

    bandwidth: BytesPerSecond = 6.25e9
    compute: FlopsPerSecond = 11.5e12
    planning_time: Seconds = 0.0

    def begin(self, setting: Setting) -> Plan:
        """Return the plan for one run, which also plans batches.

        Raises
        ------
        PluginError
            If the experts do not divide over the ranks.
        """
        experts_per_rank(setting, WHO)
        home = Once(same_in_all_layers(setting, np.arange(setting.model.experts)))
        return ShadowRun(self, setting.model, setting.parallel.ep, home)


@dataclass(slots=True)
class ShadowRun:
    """Shadowing in one run."""

    policy: FasterMoe
    model: MoeModel
    ranks: int
    home: Once

    def __call__(self, view: View) -> Placement | None:
        """Return where the weights live, once."""
        return self.home(view)

    def for_batch(self, kept: Kept, *, step: int, moe_layer: int) -> BatchPlan:  # noqa: ARG002 - the contract of the slot
        """Return the plan of one layer of one batch."""
        ranks, model = self.ranks, self.model
        rows = kept.routing.counts + kept.padding
        gpus, experts = rows.shape
        owner = np.arange(experts) // (experts // ranks)
        held = np.zeros((gpus // ranks, ranks, experts), dtype=np.int64)
        held[:, owner, np.arange(experts)] = 1
        moved = np.zeros((gpus, gpus))
        target = np.tile(owner, (gpus, 1))  # the rank that computes each source's rows of each expert
        for group in range(gpus // ranks):
            first = group * ranks
            shadowed, _ = plan_shadows(
                rows[first : first + ranks].sum(axis=0),
                compute=model.routed_flops / self.policy.compute,
                row_transfer=model.dispatch_width * DTYPE_BYTES[model.activation_dtype] / self.policy.bandwidth,
                weight_transfer=model.expert_bytes / self.policy.bandwidth,
            )
            which = np.flatnonzero(shadowed) if ranks > 1 else np.zeros(0, dtype=np.int64)
            held[group][:, which] = 1
            target[first : first + ranks, which] = np.arange(ranks)[:, None]
            np.add.at(moved, (first + owner[which][:, None], first + np.arange(ranks)), 1.0)
        np.fill_diagonal(moved, 0.0)
        expert_of_slot, rank_of_slot, _ = common_layout(list(held), ranks)
        holds = np.repeat(expert_of_slot, ranks, axis=0)
        source = np.arange(gpus)[:, None]
        here = (holds >= 0) & (target[source, np.maximum(holds, 0)] == rank_of_slot)
        return BatchPlan(
            expert_of_slot=expert_of_slot,
            rank_of_slot=rank_of_slot,
            assignment=deal_rows(
                kept, np.where(here, rows[source, np.maximum(holds, 0)], 0), expert_of_slot, rank_of_slot, ranks=ranks, who=WHO
            ),
            moved=moved,
            returned=moved.T,
            how=BROADCAST,
            seconds=self.policy.planning_time,
        )
