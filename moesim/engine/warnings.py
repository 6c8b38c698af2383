"""What a user should know before believing a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from moesim.base.units import format_quantity
from moesim.facts.cluster import Cluster
from moesim.facts.record import Table
from moesim.facts.scenario import Scenario
from moesim.models.compute.calibrated import outside_kernels
from moesim.models.exchange.fitted_limits import outside_profile
from moesim.models.sharing.told import beyond_bound, without_compiler


def warnings(scenario: Scenario, cluster: Cluster, tables: Mapping[str, Table], shared: Mapping[str, Any]) -> tuple[str, ...]:
    """Return sentences about a finished run, each with its numbers.

    Parameters
    ----------
    scenario : Scenario
    cluster : Cluster
    tables : mapping of str to Table
        Of the measured steps.
    shared : mapping
        How exactly links were shared (:meth:`moesim.engine.fabric.Fabric.report`).
    """
    found = [
        without_compiler(shared),
        beyond_bound(shared),
        _memory(cluster, tables),
        _oversubscription(scenario, tables),
        _schedule(scenario),
        _rebalances(scenario, tables),
        outside_profile(scenario.exchange, scenario, cluster),
        outside_kernels(scenario.compute, scenario, cluster),
        *_routing(scenario),
        *left_alone(scenario),
    ]
    return tuple(sentence for sentence in found if sentence)


def _memory(cluster: Cluster, tables: Mapping[str, Table]) -> str:
    peak = tables["gpus"]["peak_memory_bytes"]
    if peak.max() <= cluster.gpu.memory:
        return ""
    gpu = int(peak.argmax())
    return (
        f"GPU {gpu} would need {format_quantity(float(peak[gpu]), 'B')}, but a {cluster.gpu.name} has "
        f"{format_quantity(cluster.gpu.memory, 'B')}: this run would not fit without sharding, recomputation or fewer tokens "
        f"({int((peak > cluster.gpu.memory).sum())} of {cluster.gpus} GPUs are over)"
    )


def _oversubscription(scenario: Scenario, tables: Mapping[str, Table]) -> str:
    factor = getattr(scenario.cluster, "oversubscription", None) or 1.0
    links = tables["links"]
    if factor <= 1 or links["bytes"][links["link_class"] == "uplink"].sum() > 0:
        return ""
    return f"oversubscription ({factor:g}) changed nothing: no byte left its leaf; more leaves (fewer nodes_per_leaf) would make it matter"


def _schedule(scenario: Scenario) -> str:
    kind, model = scenario.schedule.kind, scenario.model
    if kind not in {"shared_expert", "two_batch", "one_f_one_b"}:
        return ""
    if scenario.parallel.block == 1:
        return f"schedule {kind} hides exchanges, and parallel.ep 1 has none: it hid nothing"
    if kind == "shared_expert" and not model.shared_width:
        return f"schedule shared_expert changed nothing: {model.name} has no shared experts; two_batch hides exchanges of any model"
    if kind == "shared_expert" and scenario.policy.dispatch.kind == "waterfill":
        return "schedule shared_expert changed nothing: dispatch waterfill computes shared experts with the routed ones"
    return ""


def _rebalances(scenario: Scenario, tables: Mapping[str, Table]) -> str:
    """Asynchronous rebalances that took longer than the steps between two plans, or than the run."""
    moves = tables.get("rebalances")
    if moves is None or not len(moves) or scenario.policy.rebalance.mode != "async":
        return ""
    interval = getattr(scenario.policy.placement, "interval", None)
    unfinished = moves["in_place_step"] < 0
    took = np.where(unfinished, scenario.steps, moves["in_place_step"]) - moves["step"]
    if interval is not None and (took > interval).any():
        late = int((took > interval).sum())
        longest = f"{int(took.max())}, and was not in place at the end" if unfinished.any() else f"{int(took.max())}"
        return (
            f"{late} of {len(moves)} asynchronous rebalances took longer than policy.placement.interval ({interval} steps; the longest "
            f"{longest}): the placement is asked again only when the last layer has changed over; raise the interval"
        )
    if unfinished.any():
        return (
            f"the rebalance before step {int(moves['step'][unfinished][0])} was not in place when the run ended; more steps would show it"
        )
    return ""


def _routing(scenario: Scenario) -> list[str]:
    """Where the model's own router does something that neither the source nor the gate of the scenario does."""
    model, gate = scenario.model, scenario.policy.gate
    recorded = getattr(scenario.routing, "trace", None) is not None
    sentences = []
    limited = gate.kind in {"group_limited", "loss_free"}
    if model.top_groups < model.groups and not recorded and not limited:
        sentences.append(
            f"{model.name} lets a token choose from {model.top_groups} of {model.groups} groups of experts, but {scenario.routing.kind} "
            "routing chooses from all of them: bytes between nodes are overestimated"
        )
    if model.hash_layers and not recorded and gate.kind != "hash":
        sentences.append(
            f"the first {model.hash_layers} MoE layers of {model.name} route by token id; {scenario.routing.kind} routing treats them "
            "like the others"
        )
    scoring = getattr(gate, "scoring", None)
    if scoring is not None and scoring != model.scoring and gate.kind != "hash":
        sentences.append(
            f"policy.gate scores by {scoring}, but {model.name} scores by {model.scoring}: write policy.gate.scoring={model.scoring}"
        )
    return sentences


def left_alone(scenario: Scenario) -> list[str]:
    """Say which parts of a scenario no single run plays: its matrix and its variants."""
    found = []
    if scenario.matrix:
        found.append("the matrix was left alone: this run is of the values above it; 'moesim sweep' runs all of its cells")
    if scenario.compare:
        found.append(_compare(scenario))
    return found


def _compare(scenario: Scenario) -> str:
    return (
        f"the variants under compare ({', '.join(scenario.compare)}) were checked, but this run is of the policy above them only; "
        "'moesim compare' plays them"
    )
