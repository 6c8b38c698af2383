"""Which rows GPUs gather that share experts, and which results they add up, and how many bytes they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from moesim.facts.arrays import Floats, Ints
from moesim.facts.cluster import Cluster
from moesim.facts.collective import CollectivePlan, Stage
from moesim.facts.model import DTYPE_BYTES, MoeModel
from moesim.facts.program import Work
from moesim.facts.scenario import Parallel
from moesim.models.collective.pipeline import pipelined
from moesim.models.collective.prepared import PreparedPlan, prepare
from moesim.models.schedule.tensor import operation_of


@dataclass(slots=True)
class ExpertTensorPlans:
    """The plans of a step, for groups of ``etp`` neighbouring GPUs, each made when it is first asked for.

    A GPU into which n rows came sends all of them to each of the others (``experts_gather``). Afterwards it gets from each its part of the
    sums of n rows (``experts_scatter``). A row is ``dispatch_width`` elements of the activation dtype, whatever it was on its way here. All
    send at once, straight to whom it concerns; no two GPUs can start before both are there.

    Parameters
    ----------
    model : MoeModel
    cluster : Cluster
        Its GPUs in the order of expert-parallel groups (:meth:`~moesim.facts.scenario.Parallel.numbers`).
    parallel : Parallel
    rows : mapping of (int, int) to int[G]
        For a MoE layer and a micro-batch of the present step, the rows that came to each GPU.
    """

    model: MoeModel
    cluster: Cluster
    parallel: Parallel
    rows: Mapping[tuple[int, int], Ints] = field(default_factory=dict)
    known: dict[tuple[str, int, int, int], PreparedPlan] = field(default_factory=dict)
    numbers: list[Ints] = field(default_factory=list)
    latency: list[Floats] = field(default_factory=list)

    def group_of(self, work: Work, gpu: int) -> int:  # noqa: ARG002 - the same contract as gradients
        """Return the number of the group in which a GPU takes part: the scenario's GPUs from ``etp * group`` on."""
        return int(self._numbers()[gpu]) // self.parallel.etp

    def prepared(self, work: Work, group: int) -> PreparedPlan:
        """Return what a group does, ready to be played; without stages if no rows came."""
        key = (operation_of(work), work.moe_layer, work.microbatch, group)
        if key not in self.known:
            self.known[key] = self._fresh(work, group)
        return self.known[key]

    def begin_step(self, rows: Mapping[tuple[int, int], Ints]) -> None:
        """Take in the rows of another step, and forget the plans of the one before."""
        self.rows = rows
        self.known.clear()

    def _fresh(self, work: Work, group: int) -> PreparedPlan:
        members = np.flatnonzero(self._numbers() // self.parallel.etp == group)
        each = self.model.dispatch_width * DTYPE_BYTES[self.model.activation_dtype]
        sizes: Floats = self.rows[work.moe_layer, work.microbatch][members].astype(np.float64) * each
        if not self.latency:
            self.latency.append(self.cluster.route_latency())
        return prepare(pipelined(unequal_plan(operation_of(work), members, sizes), self.latency[0]))

    def _numbers(self) -> Ints:
        if not self.numbers:
            self.numbers.append(self.parallel.numbers(self.cluster.gpus))
        return self.numbers[0]


def unequal_plan(operation: str, ranks: Ints, sizes: Floats) -> CollectivePlan:
    """Return an all-gather or reduce-scatter in one stage, whose pieces are not all as large.

    Parameters
    ----------
    operation : str
        ``all_gather``: each rank sends its own piece to all others. ``reduce_scatter``: each sends its part of a rank's piece to that rank.
    ranks : int[n]
        GPUs of the group.
    sizes : float[n]
        Bytes of the piece of each.

    Returns
    -------
    CollectivePlan
        Without stages if the group has one rank, or no piece has bytes.
    """
    count = len(ranks)
    one, other = (side.ravel() for side in np.meshgrid(np.arange(count), np.arange(count), indexing="ij"))
    gathers = operation == "all_gather"
    piece = one if gathers else other
    moves = (one != other) & (sizes[piece] > 0)
    stage = Stage(
        source=ranks[one[moves]], destination=ranks[other[moves]], bytes=sizes[piece[moves]], piece=piece[moves], adds=not gathers
    )  # fmt: skip
    return CollectivePlan(
        operation=operation,
        algorithm="direct",
        ranks=ranks,
        bytes=float(sizes.sum()),
        stages=(stage,) if moves.any() else (),
        pieces=sizes,
        home=np.arange(count),
    )
