"""Stages of a pipeline: which GPUs and which layers they are, and one stage as a setting of its own."""

from __future__ import annotations

import dataclasses

import numpy as np

from moesim.base.errors import PluginError
from moesim.facts.arrays import Ints
from moesim.facts.cluster import Cluster
from moesim.facts.program import RECEIVE, SEND, Program
from moesim.facts.scenario import Setting


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
    mine = np.arange(first, first + gpus)
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
