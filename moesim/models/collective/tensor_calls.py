"""Which tokens tensor-parallel groups gather and add up, and how many bytes they are."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from moesim.facts.arrays import Floats, Ints
from moesim.facts.cluster import Cluster
from moesim.facts.model import DTYPE_BYTES, MoeModel
from moesim.facts.program import Work
from moesim.models.collective.pipeline import pipelined
from moesim.models.collective.plan import plan_collective
from moesim.models.collective.prepared import PreparedPlan, prepare
from moesim.models.schedule.tensor import operation_of


@dataclass(slots=True)
class TensorPlans:
    """The plans of a run, each made when it is first asked for; groups and steps with equally many tokens share them.

    GPUs of equal g // tp form a group, g being their numbers in the scenario. What goes round is hidden elements of each of its tokens in
    the activation dtype, and every GPU sends to every other at once: within a node that is what kernels for small groups do.

    Parameters
    ----------
    model : MoeModel
    cluster : Cluster
    tensor : int
        GPUs of a group.
    numbers : int[G]
        Of the GPUs in the scenario (:meth:`~moesim.facts.scenario.Parallel.numbers`).
    tokens : dict of int to int[G]
        Tokens that start on each GPU, of each micro-batch of the present step.
    """

    model: MoeModel
    cluster: Cluster
    tensor: int
    numbers: Ints
    tokens: dict[int, Ints] = field(default_factory=dict)
    known: dict[tuple[str, int, int], PreparedPlan] = field(default_factory=dict)
    latency: list[Floats] = field(default_factory=list)

    def group_of(self, work: Work, gpu: int) -> int:  # noqa: ARG002 - the same contract as gradients
        """Return the number of the group in which a GPU takes part."""
        return int(self.numbers[gpu]) // self.tensor

    def prepared(self, work: Work, group: int) -> PreparedPlan:
        """Return what a group does, ready to be played; without stages if there are no tokens."""
        ranks = np.flatnonzero(self.numbers // self.tensor == group)
        tokens = int(self.tokens[work.microbatch][ranks].sum())
        key = (operation_of(work), group, tokens)
        if key not in self.known:
            size = float(tokens * self.model.hidden) * DTYPE_BYTES[self.model.activation_dtype]
            plan = plan_collective(key[0], "direct", size, ranks=ranks, node_of=self.cluster.node_of)
            if not self.latency:
                self.latency.append(self.cluster.route_latency())
            self.known[key] = prepare(pipelined(plan, self.latency[0]))
        return self.known[key]
