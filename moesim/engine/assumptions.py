"""What a prediction rests on, said out loud in every report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moesim.facts.cluster import Cluster
from moesim.facts.collective import GradientCalls
from moesim.facts.ranks import Ranks
from moesim.facts.scenario import Parallel, Scenario
from moesim.facts.training import Training
from moesim.models.sharing.told import assumption


def assumptions(
    scenario: Scenario, cluster: Cluster, compute_basis: str, *, barrier: bool, overlap: bool, shared: Mapping[str, Any]
) -> tuple[str, ...]:
    """Return the modelling assumptions of a run as sentences.

    Parameters
    ----------
    scenario : Scenario
    cluster : Cluster
    compute_basis : str
        The weakest evidence behind the compute model's numbers.
    barrier : bool
        Whether the exchanges that were played hold their bytes back until the last rank is there.
    overlap : bool
        Whether the program leaves any two tasks of a GPU free to run at once.
    shared : mapping
        How exactly links were shared (:meth:`moesim.engine.fabric.Fabric.report`).
    """
    lines = [
        (
            "Flows share every link max-min fairly; a flow starts to move after the latency of its route. Congestion control, packet loss "
            "and retransmission are not modelled."
        ),
        assumption(shared),
        "No byte of an all-to-all moves before all ranks of the group have arrived."
        if barrier
        else "Two ranks of an all-to-all start to exchange when both have arrived; a rank leaves it when all ranks have arrived and "
        "its own bytes have moved.",
        "A step starts when every GPU has finished the step before.",
        f"Link bandwidths are what the cluster section says is achievable (basis: {cluster.basis}).",
        (
            f"Kernel times come from the {scenario.compute.kind} model (basis: {compute_basis}); launch jitter and clock changes "
            "are not modelled."
        ),
        f"The schedule is {scenario.schedule.kind}: "
        + (_overlap(scenario.exchange) if overlap else "communication and computation do not overlap."),
    ]
    if cluster.shares_cores:
        lines.append(
            f"{cluster.gpus} ranks compute on {cluster.pool_cores.sum():g} cores: those that compute at once in a pool share its cores "
            "equally. Switching between ranks, colder caches and the cores' work for the network cost nothing."
        )
    if scenario.workload.phase == "training":
        lines += _training(scenario.schedule, scenario.training)
    if scenario.workload.ranks is not None:
        lines.append(_ranks(scenario.workload.ranks))
    lines += _spread(scenario.parallel)
    lines += [f"Model: {note}" for note in scenario.model.notes]
    lines.append("moesim predicts balance, drops and time. It does not predict loss or quality.")
    return tuple(lines)


def _training(schedule: object, training: Training | None) -> list[str]:
    """Return what is left out of a training step."""
    left_out = ["the optimiser step"] * (training is None or training.optimiser == "none") + ["recomputation"] * (training is None)
    if not isinstance(schedule, GradientCalls):
        missing = ["Gradient all-reduce", *left_out]
        listed = missing[0] if len(missing) == 1 else f"{', '.join(missing[:-1])} and {missing[-1]}"
        return [f"{listed} {'is' if len(missing) == 1 else 'are'} not part of the step time."]
    how = f"{schedule.operation} ({schedule.algorithm}, {schedule.fidelity})"
    free = (
        " and ".join([", ".join(["adding them up", *left_out[:-1]]), left_out[-1]]) + " take no time"
        if left_out
        else "adding them up takes none"
    )
    lines = [f"Gradients are exchanged by {how} beside the backward pass and share links with tokens; {free}."]
    if schedule.operation == "reduce_scatter" and (training is None or training.sharding == "none"):
        lines.append("Memory is counted as if optimiser states were not sharded, although gradients are reduced to shares.")
    return lines


def _spread(parallel: Parallel) -> list[str]:
    """Return what is left out where a model is cut into stages or shares of layers."""
    lines = []
    if parallel.pp > 1:
        lines.append(
            "What a pipeline stage hands on leaves at once and holds up nobody who computes; the embedding, head and loss take no time, "
            "and copies of tied embeddings on two stages are not reduced."
        )
    if parallel.tp > 1:
        lines.append("Tensor-parallel groups gather and add up between kernels, not beside them, and cut no routed experts.")
    if parallel.etp > 1:
        lines.append(
            "GPUs that share experts gather rows after dispatch and add results up before combine, each straight to each, in the dtype of "
            "activations."
        )
    return lines


def _overlap(exchange: object) -> str:
    """Return what computing beside communication costs."""
    held = getattr(exchange, "communication_sms", None)
    if held is None:
        return (
            "overlap is what its program allows; kernels do not slow each other down, which makes what it saves an upper estimate unless "
            "communication holds no SMs (exchange.communication_sms)."
        )
    return f"overlap is what its program allows; kernels beside communication lose the {held} SMs that it holds."


def _ranks(ranks: Ranks) -> str:
    """Return how ranks differ, and what that rests on."""
    drawn = [name for name in ("variation", "context_variation") if getattr(ranks, name)]
    how = (
        "have the tokens that the scenario gives"
        if ranks.mean() is not None
        else "differ by draws from a gamma law, an assumption"
        if drawn
        else "differ as the scenario says"
    )
    padded = "; all compute as many tokens as the fullest" if ranks.padding == "maximum" else ""
    return f"Ranks {how}{padded}; attention takes as long as the sum of a rank's contexts asks for, however its requests divide them."
