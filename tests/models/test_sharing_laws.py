"""Laws L2, L3, L4 and L10 of the sharing cores and of the fabric: weights, caps, late starts, links that change, all drawn at random."""

from dataclasses import dataclass

import numpy as np
import pytest
import simpy
from clusters import star
from examples import examples
from fluid import fluid, padded, through_core
from hypothesis import given
from hypothesis import strategies as st
from strategies import Flows, flow_systems

from moesim.engine.fabric import Fabric
from moesim.models.bounds import link_bytes
from moesim.models.sharing.certificate import violations
from moesim.models.sharing.groups import GroupsCore
from moesim.models.sharing.never_full import follows_of
from moesim.models.sharing.quanta import QuantaCore
from moesim.models.topology.nvlink_nodes import NvlinkNodes
from moesim.models.topology.one_switch import OneSwitch

# A time is a sum of at most some dozens of intervals, each from a division and a subtraction: 1e-9 leaves several orders of room.
RELATIVE = 1e-9
HOPS = 4


@dataclass(frozen=True)
class World:
    """Flows with all that a core can be told about them."""

    flows: Flows
    size: np.ndarray
    start: np.ndarray
    weight: np.ndarray | None
    cap: np.ndarray | None
    changes: list

    @property
    def route(self):
        return padded(self.flows.system[1:], HOPS)

    def ends(self):
        return fluid(
            self.flows.capacity, self.flows.system[1:], self.size, self.start, weight=self.weight, cap=self.cap, changes=self.changes
        )


@st.composite
def worlds(draw, *, changing=True):
    flows = draw(flow_systems(max_flows=10))
    count = flows.count
    number = st.one_of(st.integers(1, 4).map(float), st.floats(0.1, 50.0))
    column = st.lists(number, min_size=count, max_size=count).map(np.array)
    weight, cap = draw(st.one_of(st.none(), column)), draw(st.one_of(st.none(), column))
    if cap is not None:
        cap = np.where(draw(st.lists(st.booleans(), min_size=count, max_size=count)), cap, np.inf)
    start = draw(st.one_of(st.just(np.zeros(count)), st.lists(st.sampled_from([0.0, 0.5, 1.0, 7.25]), min_size=count, max_size=count)))
    one = st.tuples(st.floats(0.1, 20.0), st.integers(0, len(flows.capacity) - 1), number)
    changes = draw(st.lists(one, max_size=3, unique_by=lambda change: change[0])) if changing else []
    return World(flows, draw(column), np.array(start, dtype=float), weight, cap, sorted(changes))


def exact(world):
    """A core that leaves out links that can never be full."""
    route = world.route
    follows = follows_of(route, len(world.flows.capacity)) if len(route) else None
    return GroupsCore(world.flows.capacity, hops=HOPS, pairs=max(world.flows.count, 1), follows=follows)


def nearly_exact(world, quantum=1e-3):
    return QuantaCore(world.flows.capacity, hops=HOPS, pairs=max(world.flows.count, 1), quantum=quantum)


@examples(100)
@given(worlds(), st.lists(st.floats(0.01, 30.0), max_size=4))
def test_l2_l4_the_exact_core_ends_every_flow_as_the_plain_model_does(world, stops):
    core = exact(world)
    ends = through_core(core, world.route, world.size, world.start, weight=world.weight, cap=world.cap, changes=world.changes, stops=stops)
    np.testing.assert_allclose(ends, world.ends(), rtol=RELATIVE)
    np.testing.assert_allclose(core.carried[: world.flows.count], world.size, rtol=RELATIVE)


@pytest.mark.parametrize("make", [exact, nearly_exact], ids=["exact", "quanta"])
@examples(100)
@given(world=worlds())
def test_l2_l3_what_went_over_a_link_is_what_was_asked_for_and_no_more_than_it_can(make, world):
    core = make(world)
    ends = through_core(core, world.route, world.size, world.start, weight=world.weight, cap=world.cap, changes=world.changes)
    assert np.isfinite(ends).all()
    np.testing.assert_allclose(core.carried[: world.flows.count], world.size, rtol=RELATIVE)
    last = max(ends, default=0.0)
    for link, capacity in enumerate(world.flows.capacity):
        asked = sum(world.size[flow] for flow in range(world.flows.count) if link in world.flows.route(flow))
        np.testing.assert_allclose(core.through[link], asked, rtol=RELATIVE)
        most = max([capacity, *[value for at, changed, value in world.changes if changed == link and at <= last]])
        assert asked <= most * core.busy[link] * (1 + RELATIVE)


@pytest.mark.parametrize("make", [exact, lambda world: nearly_exact(world, 1e-7)], ids=["exact", "quanta"])
@examples(100)
@given(world=worlds(changing=False))
def test_l3_l4_the_rates_of_a_core_carry_the_certificate_weights_and_caps_included(make, world):
    # All flows start at once and are taken away again before any can end: what each has moved by then is its rate times the time.
    # Sizes are at least 0.1 B and rates at most 100 B/s; the slowest flow moves 0.1 / 500 * 1e-4 B of at most 50, known to 1e-16. Quanta
    # are so short here that nothing ends in one: rates within a quantum look ahead to what does.
    count, moment = world.flows.count, 1e-4
    if not count:
        return
    core = make(world)
    watch = np.tile(np.arange(2, dtype=np.int32), (count, 1))
    pending, woken = np.full(2, count + 1), np.empty(2, dtype=np.int64)
    ids = core.join(0.0, world.route, np.arange(count), world.size, world.weight, world.cap, watch, pending)
    core.advance(moment, pending, woken)
    left, _ = core.leave(moment, ids, pending, woken)
    rates = (world.size - left) / moment
    assert violations(*world.flows.system, rates, weight=world.weight, cap=world.cap, tolerance=1e-6) == []


@examples(60)
@given(worlds(), st.sampled_from([0.125, 0.3, 3.7, 1024.0]))
def test_l10_a_fabric_c_times_as_fast_is_done_c_times_as_early(world, factor):
    # Capacities and caps times c, starts and changes c times as early.
    cap = None if world.cap is None else world.cap * factor
    changes = [(at / factor, link, value * factor) for at, link, value in world.changes]
    flows = Flows(capacity=world.flows.capacity * factor, route_start=world.flows.route_start, route_link=world.flows.route_link)
    faster = World(flows, world.size, world.start / factor, world.weight, cap, changes)
    slow, fast = (
        through_core(exact(one), one.route, one.size, one.start, weight=one.weight, cap=one.cap, changes=one.changes)
        for one in (world, faster)
    )
    np.testing.assert_allclose(fast * factor, slow, rtol=RELATIVE)


# ---------------------------------------------------------------- through SimPy


def run(cluster, source, destination, size, start):
    """Let SimPy start each flow at its time; return its end, and the fabric."""
    env = simpy.Environment()
    fabric, ends = Fabric(env, cluster), np.full(len(size), np.nan)
    spare = fabric.watch(lambda: None)

    def starter(flow):
        yield env.timeout(start[flow])
        counter = fabric.watch(lambda: ends.__setitem__(flow, env.now))
        fabric.transfer(source[[flow]], destination[[flow]], size[[flow]], np.array([[counter, spare]], dtype=np.int32))

    for flow in range(len(size)):
        env.process(starter(flow))
    env.run()
    return ends, fabric


@st.composite
def traffic(draw, gpus):
    """Sources, destinations, bytes and starts of up to 16 flows; several may be of one pair."""
    pairs = [(one, other) for one in range(gpus) for other in range(gpus) if one != other]
    chosen = np.array(draw(st.lists(st.sampled_from(pairs), min_size=1, max_size=16)))
    count = len(chosen)
    size = draw(st.lists(st.one_of(st.integers(1, 4).map(float), st.floats(1.0, 1e6)), min_size=count, max_size=count))
    start = draw(st.lists(st.one_of(st.sampled_from([0.0, 1.0, 2.5]), st.floats(0.0, 1e4)), min_size=count, max_size=count))
    return chosen[:, 0], chosen[:, 1], np.array(size), np.array(start)


@examples(60)
@given(st.data())
def test_l2_bytes_asked_are_bytes_carried_by_pair_and_link_whenever_flows_start(data):
    gpus = data.draw(st.integers(2, 6))
    cluster = star(gpus, bandwidth=7.0, latency=data.draw(st.sampled_from([0.0, 0.25])))
    source, destination, size, start = data.draw(traffic(gpus))
    ends, fabric = run(cluster, source, destination, size, start)
    fabric.check()
    asked = np.zeros((gpus, gpus))
    np.add.at(asked, (source, destination), size)
    np.testing.assert_allclose(fabric.carried_between.reshape(gpus, gpus), asked, rtol=RELATIVE)
    np.testing.assert_allclose(fabric.carried_on_link, link_bytes(asked, cluster), rtol=RELATIVE)
    assert (ends >= start + size / 7.0 * (1 - RELATIVE)).all()


AT_ONCE = {"nvlink_latency": 0.0, "nic_latency": 0.0, "switch_latency": 0.0}
CLUSTERS = {
    "one-switch": lambda factor: OneSwitch(gpus=6, bandwidth=7.0 * factor, latency=0.0),
    "two-tiers": lambda factor: NvlinkNodes(
        nodes=4, gpus_per_node=2, nvlink=30.0 * factor, nic=4.0 * factor, nodes_per_leaf=2, oversubscription=2.0, **AT_ONCE
    ),
}


@pytest.mark.parametrize("kind", CLUSTERS)
@examples(40)
@given(data=st.data(), factor=st.sampled_from([0.25, 0.3, 8.0, 1000.0]))
def test_l10_bandwidths_times_c_divide_the_times_of_the_fabric_by_c(kind, data, factor):
    slow, fast = (CLUSTERS[kind](times).build() for times in (1.0, factor))
    source, destination, size, start = data.draw(traffic(slow.gpus))
    ends, _ = run(slow, source, destination, size, start)
    sooner, _ = run(fast, source, destination, size, start / factor)
    np.testing.assert_allclose(sooner * factor, ends, rtol=RELATIVE)


@examples(60)
@given(st.data())
def test_l10_new_names_for_gpus_nodes_and_leaves_leave_every_end_as_it_was(data):
    # Two leaves of two nodes of two GPUs look the same after any exchange of leaves, of nodes of a leaf, of GPUs of a node.
    cluster = CLUSTERS["two-tiers"](1.0).build()
    source, destination, size, start = data.draw(traffic(cluster.gpus))
    names = np.arange(8).reshape(2, 2, 2)[data.draw(st.permutations([0, 1]))]
    for leaf in range(2):
        names[leaf] = names[leaf][data.draw(st.permutations([0, 1]))]
        for node in range(2):
            names[leaf, node] = names[leaf, node][data.draw(st.permutations([0, 1]))]
    new = names.ravel()
    ends, _ = run(cluster, source, destination, size, start)
    renamed, _ = run(cluster, new[source], new[destination], size, start)
    np.testing.assert_allclose(renamed, ends, rtol=RELATIVE)
