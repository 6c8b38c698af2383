"""The one door of the engine: a scenario in, a result out."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import simpy

from moesim import __version__
from moesim.engine.assumptions import assumptions
from moesim.engine.balanced import balanced_steps, fresh_policies, kept_shares
from moesim.engine.machine import Machine
from moesim.engine.no_network import no_communication_on_shared_cores
from moesim.engine.numbering import as_numbered
from moesim.engine.own_tokens import mean_context
from moesim.engine.placing import first_placement
from moesim.engine.rebalancing import Rebalancing
from moesim.engine.tables import build_tables, rebalances
from moesim.engine.tally import Tally
from moesim.engine.warnings import warnings
from moesim.facts.arrays import Floats
from moesim.facts.cluster import Cluster
from moesim.facts.contracts import PlanBatch, Record
from moesim.facts.evidence import weakest
from moesim.facts.program import Program, may_overlap
from moesim.facts.record import Result
from moesim.facts.scenario import Scenario, Setting
from moesim.facts.trace import Trace
from moesim.measure.alarms import find_alarms
from moesim.measure.collect import fresh_steps, sample_all, summarise_all
from moesim.models.bounds import no_communication
from moesim.models.gate.losses import layer_losses
from moesim.models.stages import setting_of, stage_setting
from moesim.models.unequal_ranks import waiting_for_slow_ranks


def simulate(
    scenario: Scenario,
    *,
    read_trace: Callable[[str], Trace],
    progress: Callable[[int, int], None] | None = None,
    keep_spans: bool = False,
    keep_routing: bool = False,
) -> Result:
    """Run a scenario.

    Parameters
    ----------
    scenario : Scenario
        As :func:`moesim.desk.scenario_file.load_scenario` returns it: already checked.
    read_trace : callable
        Turns a path into a :class:`Trace`; the engine opens no file itself.
    progress : callable, optional
        Called with (steps done, steps) after every step.
    keep_spans, keep_routing : bool
        Keep every span (table ``spans``); keep the choices of every token (``Result.routing``), to replay them.

    Returns
    -------
    Result
        The same for the same scenario, but for ``meta``.

    Raises
    ------
    LawBroken
        If tokens or bytes are not conserved: checked in every run.
    Stuck
        If nothing is left to happen and somebody still waits.
    """
    began = time.perf_counter()
    setting = setting_of(scenario, read_trace)
    cluster = setting.cluster
    stage = stage_setting(setting)
    plan = scenario.policy.placement.begin(stage)
    placement = first_placement(scenario.policy.placement, stage, plan)
    policies = replace(fresh_policies(scenario, stage), place=plan if isinstance(plan, PlanBatch) else None)
    machine = Machine(scenario, setting, policies, placement)
    rebalancing = Rebalancing(machine, plan, scenario.policy.rebalance, f"placement {scenario.policy.placement.kind!r}")
    program: Program = machine.program
    compute_basis = machine.policies.kernels.basis
    draw = scenario.routing.begin(stage)
    losses = partial(
        layer_losses,
        scoring=getattr(scenario.policy.gate, "scoring", scenario.model.scoring),
        top_k=scenario.model.top_k,
        sequence_length=2 * scenario.workload.context,  # a token attends to half of its sequence on average
        ranks=scenario.parallel.ep,
    )
    tally = Tally(
        cluster=cluster,
        model=scenario.model,
        ranks=scenario.parallel.ep,
        warmup=scenario.warmup,
        keep_routing=keep_routing,
        losses=losses,
        stages=program.stages,
    )
    notes: list[str] = []
    barrier = False
    bases = {"compute": compute_basis, "network": cluster.basis, "routing": "exact", "accounting": "assumed"}
    shares: list[Floats] = []
    floors: list[float] = []
    for step in range(scenario.steps):
        if step:
            rebalancing.before(step)
        routing = draw(step)
        bases["routing"] = weakest([bases["routing"], routing.basis])
        notes += [note for note in routing.notes if note not in notes]
        load = machine.load(routing, step)
        mark = machine.play(load, step)
        barrier = barrier or any(exchange.barrier for layer in load.layers for exchange in layer.exchange.values())
        if step >= scenario.warmup:
            shares.append(kept_shares(load, scenario.model.top_k))
            if cluster.shares_cores:
                floors.append(no_communication_on_shared_cores(program, load.seconds, setting.groups, cluster))
            else:
                floors.append(no_communication(program, load.seconds, setting.groups))
        tally.add(step, load, mark)
        if step >= scenario.warmup:
            tally.unequal_ranks.append(float(waiting_for_slow_ranks(program, load.seconds, scenario.parallel.ep).mean()))
        rebalancing.learn(load)
        if progress is not None:
            progress(step + 1, scenario.steps)
    machine.finish()
    tables = build_tables(machine.recorder, tally, setting=setting, placement=placement, program=program, keep_spans=keep_spans)
    if rebalancing.moves:
        tables["rebalances"] = rebalances(rebalancing.moves)
    read = mean_context(setting, tally.tokens_of_gpus, scenario.warmup)
    bounds = {
        "step_time_if_balanced": balanced_steps(scenario, setting, placement, tally.tokens[scenario.warmup :], shares, read),
        "step_time_if_no_communication": np.array(floors),
    }
    shared = machine.fabric.report()
    record = Record(scenario=scenario, cluster=cluster, tables=tables, bounds=bounds)
    tables = as_numbered(tables, scenario.parallel, cluster.gpus)
    alarms = find_alarms(
        tables,
        experts=scenario.model.experts,
        top_k=scenario.model.top_k,
        tokens=tally.tokens_per_step(),
        phase=scenario.workload.phase,
        ranks=scenario.parallel.ep,
    )
    samples, fresh = sample_all(record), fresh_steps(record)
    return Result(
        scenario=scenario,
        tables=tables,
        metrics=summarise_all(samples, bases, fresh=fresh),
        samples=samples,
        fresh=fresh,
        warnings=(
            *notes,
            *warnings(scenario, cluster, tables, shared),
            *(f"{alarm.name} since step {alarm.step}: {alarm.sentence}" for alarm in alarms),
        ),
        assumptions=assumptions(scenario, cluster, compute_basis, barrier=barrier, overlap=may_overlap(program), shared=shared),
        facts={**_facts(scenario, setting, tally), "sharing": shared, "health": [dataclasses.asdict(alarm) for alarm in alarms]},
        routing=tally.routing(f"moesim {__version__}, routing of {scenario.name!r}, seed {scenario.seed}"),
        meta={
            "moesim": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "simpy": simpy.__version__,
            "machine": platform.machine(),
            "wall_s": time.perf_counter() - began,
        },
    )


def _facts(scenario: Scenario, setting: Setting, tally: Tally) -> dict[str, Any]:
    cluster: Cluster = setting.cluster
    graph = scenario.cluster.graph()
    trace = _recording(scenario, setting)
    return {
        "model": scenario.model.name,
        "cluster": scenario.cluster.kind,
        "gpu": cluster.gpu.name,
        "gpus": cluster.gpus,
        "nodes": cluster.nodes,
        "links": cluster.links,
        "experts": scenario.model.experts,
        "top_k": scenario.model.top_k,
        "moe_layers": len(scenario.model.moe_layers),
        "tokens_per_step": tally.tokens_per_step(),
        "expert_group_size": scenario.parallel.ep,
        "trace": _trace_facts(trace) if trace else None,
        "graph": {
            "nodes": [[name, data.get("kind", ""), data.get("node", -1)] for name, data in graph.nodes(data=True)],
            "edges": [
                [u, v, data["name"], data["link_class"], float(data["bandwidth"]), float(data["latency"])]
                for u, v, data in graph.edges(data=True)
            ],
        },
    }


def _recording(scenario: Scenario, setting: Setting) -> Trace | None:
    """Return the trace that the source replays, if it replays one."""
    path, task = getattr(scenario.routing, "trace", None), getattr(scenario.routing, "task", None)
    if path is None:
        return None
    return setting.read_trace(path) if task is None else setting.read_trace(path, task=task)


def _trace_facts(trace: Trace) -> dict[str, Any]:
    return {"name": trace.name, "digest": trace.digest, "origin": trace.origin, "fidelity": str(trace.fidelity), "tokens": trace.tokens}
