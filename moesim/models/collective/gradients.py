"""Which gradients and weights go round among which GPUs, and how many bytes they are."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from moesim.base.errors import UsageError, did_you_mean
from moesim.facts.arrays import Floats, Ints
from moesim.facts.cluster import Cluster
from moesim.facts.collective import CollectivePlan, GradientCalls
from moesim.facts.model import DTYPE_BYTES, MoeModel
from moesim.facts.program import GROUP_CALLS, Work
from moesim.facts.scenario import Parallel
from moesim.models.collective.pipeline import pipelined
from moesim.models.collective.plan import plan_collective
from moesim.models.collective.prepared import PreparedPlan, prepare


def layer_parameters(model: MoeModel, layer: int) -> tuple[float, float]:
    """Return the parameters of one layer that every GPU holds: those in the weight dtype, and those kept in the activation dtype.

    All layers together are :func:`moesim.models.memory.dense_parameters`: the embedding counts to layer 0, the head to the last layer.
    Tied, they are one matrix, whose gradient is complete only when layer 0 is done. Norms and biases are not counted.

    Parameters
    ----------
    model : MoeModel
        Its shape.
    layer : int
        From 0.
    """
    moe = layer in model.moe_layers
    weights = model.attention.projection_parameters + model.matrices * model.hidden * (model.shared_width if moe else model.dense_width)
    kept = model.hidden * model.experts if moe else 0
    if moe and model.dispatch_width != model.hidden:
        kept += 2 * model.hidden * model.dispatch_width
    ends = (layer == 0) + (layer == model.layers - 1 and not model.tied_embeddings)
    return float(weights), float(kept + ends * model.vocabulary * model.hidden)


def tensor_layer_parameters(model: MoeModel, layer: int, tensor: int) -> tuple[float, float]:
    """Return :func:`layer_parameters` of one of ``tensor`` GPUs that share a layer.

    Attention, dense blocks, shared experts, embedding and head are cut; the router and the projections of latent MoE are not.
    """
    weights, kept = layer_parameters(model, layer)
    if tensor == 1:
        return weights, kept
    ends = (layer == 0) + (layer == model.layers - 1 and not model.tied_embeddings)
    cut = float(ends * model.vocabulary * model.hidden)
    return weights / tensor, kept - cut + cut / tensor


def call_bytes(work: Work, model: MoeModel, calls: GradientCalls, slots: int, *, tensor: int = 1) -> float:
    """Return S, the bytes of one operation on gradients or weights.

    Parameters
    ----------
    work : Work
        Its phase is one of ``GROUP_CALLS``: gradients are in ``calls.gradient_dtype``, parameters in their own dtypes.
    model : MoeModel
        Its shape.
    calls : GradientCalls
        How it is done.
    slots : int
        Physical experts that each GPU of the group holds in the layer.
    tensor : int
        GPUs that share what is not routed (:func:`tensor_layer_parameters`).

    Raises
    ------
    UsageError
        If the phase is no operation of a group.
    """
    if work.phase not in GROUP_CALLS:
        raise UsageError(f"phase {work.phase!r} is no operation on gradients or weights{did_you_mean(work.phase, GROUP_CALLS)}")
    gradient = DTYPE_BYTES[calls.gradient_dtype]
    if work.phase.startswith("expert"):
        each = gradient if work.phase == "expert_gradients" else DTYPE_BYTES[model.expert_dtype]
        return slots * model.expert_parameters * each
    weights, kept = tensor_layer_parameters(model, work.layer, tensor)
    if work.phase == "gradients":
        return (weights + kept) * gradient
    return weights * DTYPE_BYTES[model.weight_dtype] + kept * DTYPE_BYTES[model.activation_dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientPlans:
    """The plans of a run, each made when it is first asked for; layers of equal size share them.

    Parameters
    ----------
    calls : GradientCalls
        How gradients travel.
    model : MoeModel
        Its shape.
    cluster : Cluster
        Which GPUs there are, on which nodes.
    ep : int
        Ranks of an expert-parallel group; GPU g has rank g % ep.
    slots : int[ep]
        Physical experts of a layer on each rank, replicas included.
    stages : int
        Stages of a pipeline: copies of a weight are all in one.
    tensor : int
        Neighbouring GPUs that share attention, dense blocks, shared experts, embedding and head: GPUs of equal place hold the same.
    parallel : Parallel, optional
        Where GPUs share experts (``etp``): the cluster's GPUs then stand in the order of expert-parallel groups, as copies do.
    """

    calls: GradientCalls
    model: MoeModel
    cluster: Cluster
    ep: int
    slots: Ints
    stages: int = 1
    tensor: int = 1
    parallel: Parallel | None = None
    known: dict[tuple[str, int, float], PreparedPlan] = field(default_factory=dict)
    latency: list[Floats] = field(default_factory=list)

    def group_of(self, work: Work, gpu: int) -> int:
        """Return the number of the group in which a GPU takes part: its stage times the GPUs that hold other weights, plus its place."""
        expert = work.phase.startswith("expert")
        each = self._different(expert)
        number = gpu if expert else int(self._numbers()[gpu])
        return gpu // (self.cluster.gpus // self.stages) * each + number % each

    def prepared(self, work: Work, group: int) -> PreparedPlan:
        """Return what a group does, ready to be played; without stages if it has one GPU."""
        expert = work.phase.startswith("expert")
        operation = "all_gather" if work.phase.endswith("parameters") else self.calls.operation
        each = self._different(expert)
        stage, place = divmod(group, each)
        size = call_bytes(work, self.model, self.calls, int(self.slots[place % self.ep]) if expert else 0, tensor=self.tensor)
        key = (operation, group if expert else -1 - group, size)
        if key not in self.known:
            of_stage = self.cluster.gpus // self.stages
            ranks = np.arange(stage * of_stage + place, (stage + 1) * of_stage, each)
            if not expert and self.parallel is not None:
                ranks = self.parallel.places(self.cluster.gpus)[ranks]
            self.known[key] = prepare(self._fresh(operation, size, ranks))
        return self.known[key]

    def _different(self, expert: bool) -> int:
        """Return how many GPUs one after another hold different experts, or parts of them, or of everything else."""
        return (self.ep if self.parallel is None else self.parallel.block) if expert else self.tensor

    def _numbers(self) -> Ints:
        return np.arange(self.cluster.gpus) if self.parallel is None else self.parallel.numbers(self.cluster.gpus)

    def _fresh(self, operation: str, size: float, ranks: Ints) -> CollectivePlan:
        calls = self.calls
        plan = plan_collective(operation, calls.algorithm, size, ranks=ranks, node_of=self.cluster.node_of, channels=calls.channels)
        if calls.fidelity == "steps":
            return plan
        if not self.latency:
            self.latency.append(self.cluster.route_latency())
        return pipelined(plan, self.latency[0])
