"""Stages of a pipeline: which GPUs and which layers they are, and one stage as a setting of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from moesim.base.errors import PluginError
from moesim.facts.arrays import Ints
from moesim.facts.cluster import Cluster
from moesim.facts.program import RECEIVE, SEND, Program
from moesim.facts.scenario import Scenario, Setting
from moesim.facts.trace import Trace


def part_of_cluster(cluster: Cluster, first: int, gpus: int) -> Cluster:
    """Return some consecutive GPUs of a cluster with all its links, as a cluster.

    Parameters
    ----------
    cluster : Cluster
    first : int
        The first of them.
    gpus : int
        How many.

    Notes
    -----
    Nodes are numbered from 0 in the order in which they come. Links keep their numbers, so routes of the part are routes of the whole.
    """
    return _chosen(cluster, np.arange(first, first + gpus))


def _chosen(cluster: Cluster, mine: Ints) -> Cluster:
    """Return some GPUs of a cluster, in the order in which they are named, with all its links."""
    pairs = (mine[:, None] * cluster.gpus + mine).ravel()
    start, length = cluster.route_start[pairs], np.diff(cluster.route_start)[pairs]
    ends = np.concatenate(([0], np.cumsum(length)))
    within = np.arange(ends[-1]) - np.repeat(ends[:-1], length)
    nodes, place = np.unique(cluster.node_of[mine], return_index=True)
    number = np.empty(len(nodes), dtype=np.int64)
    number[np.argsort(place)] = np.arange(len(nodes))
    return dataclasses.replace(
        cluster,
        node_of=number[np.searchsorted(nodes, cluster.node_of[mine])],
        route_start=ends,
        route_link=cluster.route_link[np.repeat(start, length) + within],
        core_pool=cluster.core_pool[mine] if len(cluster.core_pool) else cluster.core_pool,
    )


def setting_of(scenario: Scenario, read_trace: Callable[..., Trace], cluster: Cluster | None = None) -> Setting:
    """Return what a run of a scenario begins with: its world, as models see it.

    Where GPUs share experts (``parallel.etp``), those of an expert-parallel group are not neighbours. Models need not know: their GPUs
    stand group after group (:meth:`~moesim.facts.scenario.Parallel.numbers`), and their experts are as narrow as a GPU's part of one.

    Parameters
    ----------
    scenario : Scenario
    read_trace : callable
        Turns a path into a :class:`~moesim.facts.trace.Trace`.
    cluster : Cluster, optional
        What ``scenario.cluster.build()`` returned, for callers that have it.

    Raises
    ------
    PluginError
        If GPUs that share experts do not divide their width.
    """
    built, model, parallel = cluster or scenario.cluster.build(), scenario.model, scenario.parallel
    if parallel.etp > 1:
        if model.expert_width % parallel.etp:
            raise PluginError(
                f"etp = {parallel.etp} does not divide the model's expert_width = {model.expert_width}: choose an etp that divides it"
            )
        built = _chosen(built, parallel.numbers(built.gpus))
        model = dataclasses.replace(model, expert_width=model.expert_width // parallel.etp)
    return Setting(
        cluster=built,
        model=model,
        parallel=parallel,
        workload=scenario.workload,
        seed=scenario.seed,
        read_trace=read_trace,
        training=scenario.training,
    )


def stage_setting(setting: Setting) -> Setting:
    """Return what the plug-ins of a run see: one stage of the pipeline, the first, which looks like every other; without one, all.

    Raises
    ------
    PluginError
        If the stages do not look alike: their GPUs are spread over nodes in different ways.
    """
    stages = setting.parallel.pp
    if stages == 1:
        return setting
    size = setting.gpus // stages
    first = part_of_cluster(setting.cluster, 0, size)
    for stage in range(1, stages):
        other = part_of_cluster(setting.cluster, stage * size, size)
        if not np.array_equal(other.node_of, first.node_of):
            raise PluginError(
                f"pp = {stages} makes stages of {size} GPUs, and stage {stage} is spread over nodes in another way than stage 0: choose a "
                "pp whose stages are whole nodes or equal parts of one"
            )
    return dataclasses.replace(setting, cluster=first, parallel=dataclasses.replace(setting.parallel, pp=1))


def stage_of_layers(program: Program, layers: int) -> Ints:
    """Return int[layers], the stage that runs each layer of the model."""
    stages = np.zeros(layers, dtype=np.int64)
    for task in program.tasks:
        if task.work.phase not in (SEND, RECEIVE):
            stages[task.work.layer] = task.stage
    return stages
