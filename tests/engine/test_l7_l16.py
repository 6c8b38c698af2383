"""Laws L7 (floors) step by step, and L16 (topology matters) over random clusters."""

import dataclasses

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from worlds import LAWS, RELATIVE, play, scenarios

from moesim.facts.program import COMPUTE, Work
from moesim.models.bounds import no_communication
from moesim.models.topology.dragonfly import Dragonfly
from moesim.models.topology.fat_tree import FatTree
from moesim.models.topology.mesh import Mesh
from moesim.models.topology.nvl_rack import NvlRack
from moesim.models.topology.nvlink_nodes import NvlinkNodes
from moesim.models.topology.torus import Torus


def durations(spans, step, gpus):
    """float[G] seconds of every compute task of a step, as they were on the clock."""
    found = {}
    mine = spans.where((spans["step"] == step) & (spans["lane"] == COMPUTE))
    columns = ("phase", "layer", "moe_layer", "direction", "microbatch", "gpu", "start_s", "end_s")
    for phase, layer, moe_layer, direction, microbatch, gpu, start, end in zip(*(mine[name] for name in columns), strict=True):
        work = Work(str(phase), int(layer), int(moe_layer), str(direction), int(microbatch))
        found.setdefault(work, np.zeros(gpus))[gpu] = end - start
    return found


@LAWS
@given(scenarios())
def test_l7_each_step_is_no_faster_than_its_own_compute_and_its_own_exchanges(scenario):
    # System: random worlds. Expectation: for every step by itself, not for their mean, the longest path through the compute tasks of that
    # step, and with a barrier the sum of the link bounds of a group's exchanges (the next cannot begin before the slowest rank is there).
    result = play(scenario)
    gpus = scenario.cluster.build().gpus
    program = scenario.schedule.program(scenario.model, scenario.workload)
    steps, collectives = result.tables["steps"], result.tables["collectives"]
    for step, start, length in zip(steps["step"], steps["start_s"], steps["step_time_s"], strict=True):
        slack = RELATIVE * (start + length)  # a late step is the difference of two large numbers
        floor = no_communication(program, durations(result.tables["spans"], step, gpus), gpus // scenario.parallel.ep)
        assert floor > 0
        assert length + slack >= floor
        for group in range(gpus // scenario.parallel.ep):
            bounds = collectives["link_bound_s"][(collectives["step"] == step) & (collectives["group"] == group)]
            together = bounds.sum() if scenario.exchange.start == "barrier" else bounds.max(initial=0.0)
            assert length + slack >= together


def regroupings(gpus):
    """Every way to put so many GPUs into equal nodes, on every fabric that has nodes."""
    found = []
    for each in (width for width in range(1, gpus + 1) if gpus % width == 0):
        found += [
            NvlinkNodes(nodes=gpus // each, gpus_per_node=each),
            NvlinkNodes(nodes=gpus // each, gpus_per_node=each, rail_optimised=True, nodes_per_leaf=2),
            Mesh(nodes=gpus // each, gpus_per_node=each, oversubscription=2.0),
            FatTree(nodes=gpus // each, gpus_per_node=each, nodes_per_leaf=1),
            Dragonfly(groups=1, routers_per_group=gpus // each, gpus_per_router=each, gpus_per_node=each),
            NvlRack(gpus=gpus, gpus_per_tray=each),
        ]
        if gpus > 1:
            found.append(Torus(dims=(gpus,), gpus_per_node=each))
    return found


def node_size(topology):
    return topology.gpus_per_tray if isinstance(topology, NvlRack) else topology.gpus_per_node


def across_nodes(traffic, each):
    """Bytes per step between GPUs whose numbers fall into different blocks of ``each``: the definition, written down again."""
    apart = traffic["source"] // each != traffic["destination"] // each
    return (traffic["dispatch_bytes"] + traffic["combine_bytes"])[apart].sum()


@LAWS
@given(scenarios(), st.data())
def test_l16_regrouping_the_gpus_changes_the_bytes_between_nodes_as_the_traffic_matrix_says(scenario, data):
    # System: one workload on a cluster and on another grouping of as many GPUs. Expectation: what is sent does not depend on the cluster
    # (routing and policies are the same), so the matrix of the first run foretells the bytes between nodes of the second.
    first = play(scenario)
    other = data.draw(st.sampled_from(regroupings(scenario.cluster.build().gpus)))
    second = play(dataclasses.replace(scenario, cluster=other))
    matrix = first.tables["traffic"]
    for column, values in matrix.columns.items():
        np.testing.assert_array_equal(values, second.tables["traffic"][column])
    steps = len(second.tables["steps"])
    expected = across_nodes(matrix, node_size(other))
    np.testing.assert_allclose(second.tables["layers"]["cross_node_bytes"].sum() / steps, expected, rtol=RELATIVE)
    np.testing.assert_allclose(second.tables["collectives"]["cross_node_bytes"].sum() / steps, expected, rtol=RELATIVE)
    if not isinstance(other, (NvlRack, Torus)):
        # There a byte between nodes leaves through the sender's card and arrives through the receiver's; inside a rack it takes NVLink, and
        # a torus has no cards.
        links = second.tables["links"]
        for way in ("nic-out", "nic-in"):
            mine = np.char.startswith(links["link"].astype(str), f"{way}:")
            np.testing.assert_allclose(links["bytes"][mine].sum(), expected, rtol=RELATIVE)


@LAWS
@given(scenarios(), st.data())
def test_l16_the_same_grouping_on_another_fabric_has_the_same_bytes_between_nodes(scenario, data):
    gpus = scenario.cluster.build().gpus
    one = data.draw(st.sampled_from(regroupings(gpus)))
    alike = [topology for topology in regroupings(gpus) if node_size(topology) == node_size(one)]
    cross = [
        play(dataclasses.replace(scenario, cluster=topology)).tables["layers"]["cross_node_bytes"]
        for topology in (one, data.draw(st.sampled_from(alike)))
    ]
    np.testing.assert_array_equal(*cross)
