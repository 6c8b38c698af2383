"""The NumPy oracle of max-min sharing. Each unit test states the system, what must come out, and why."""

from itertools import pairwise

import numpy as np
import pytest
from examples import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import linprog
from strategies import Flows, flow_systems, routes

from moesim.base.errors import UsageError
from moesim.models.sharing.certificate import violations
from moesim.models.sharing.reference import drain, fair_rates
from moesim.models.topology.mesh import Mesh
from moesim.models.topology.nvlink_nodes import NvlinkNodes
from moesim.models.topology.one_switch import OneSwitch

FEW = examples(50)


def test_one_link_is_shared_equally():
    # One link of 12, four flows: each gets 3, since none can grow without another shrinking.
    assert fair_rates([12.0], *routes([[0]] * 4)).tolist() == [3.0] * 4


def test_a_flow_limited_elsewhere_leaves_its_share_to_others():
    # Link 0 of 1, link 1 of 2; A crosses both, B only 0, C only 1.
    # Link 0 fills at level 1/2 and settles A and B; C takes what A leaves on link 1: 2 - 1/2.
    assert fair_rates([1.0, 2.0], *routes([[0, 1], [0], [1]])).tolist() == [0.5, 0.5, 1.5]


def test_a_chain_of_three_bottlenecks():
    # Links of 10, 4, 1. Long flow over all; one local flow on each.
    # Link 2 fills at 1/2 (long, local 2); link 1 at 4 - 1/2; link 0 at 10 - 1/2: three rounds with rising levels.
    assert fair_rates([10.0, 4.0, 1.0], *routes([[0, 1, 2], [0], [1], [2]])).tolist() == [0.5, 9.5, 3.5, 0.5]


def test_weights_share_in_proportion():
    # One link of 12 and weights 1, 2, 3: the level stops at 12 / 6 = 2.
    assert fair_rates([12.0], *routes([[0]] * 3), weight=[1.0, 2.0, 3.0]).tolist() == [2.0, 4.0, 6.0]


def test_a_cap_stops_one_flow_and_the_rest_take_over():
    # One link of 12, three flows, the first capped at 1: the others share 11.
    assert fair_rates([12.0], *routes([[0]] * 3), cap=[1.0, np.inf, np.inf]).tolist() == [1.0, 5.5, 5.5]


def test_a_cap_on_a_weighted_flow_binds_at_its_own_level():
    # One link of 12; weight 4 would take 4/5 of it (9.6), but its cap is 8: it stops at level 2; the other flow takes 4.
    assert fair_rates([12.0], *routes([[0]] * 2), weight=[4.0, 1.0], cap=[8.0, np.inf]).tolist() == [8.0, 4.0]


def test_a_flow_without_links_is_limited_by_its_cap_alone():
    # Bytes that stay on a GPU cross nothing: infinite rate, or the cap.
    assert fair_rates([1.0], *routes([[], [0], []]), cap=[np.inf, np.inf, 7.0]).tolist() == [np.inf, 1.0, 7.0]


def test_no_flows_and_no_links():
    assert fair_rates([3.0], *routes([])).tolist() == []
    assert fair_rates([], *routes([[], []])).tolist() == [np.inf, np.inf]


def test_a_link_crossed_twice_is_loaded_twice():
    # One link of 9; A crosses it twice, B once: three crossings at one level of 3.
    assert fair_rates([9.0], *routes([[0, 0], [0]])).tolist() == [3.0, 3.0]


def test_incast_is_limited_by_the_receiver():
    # Six GPUs, five send to GPU 0. In-link 0 (capacity B) is the only full link: each sender runs at B / 5, and a flow between
    # others is not slowed: from GPU 1 to GPU 2 there is B - B / 5 left on GPU 1's link out.
    cluster = OneSwitch(gpus=6, bandwidth=10.0, latency=0.0).build()
    pairs = [(source, 0) for source in range(1, 6)] + [(1, 2)]
    rates = fair_rates(cluster.bandwidth, *routes([cluster.route(*pair).tolist() for pair in pairs]))
    assert rates.tolist() == [2.0] * 5 + [8.0]


@FEW
@given(flow_systems(shortest=0), st.data())
def test_l3_capacity_and_l4_fairness_hold_for_every_system(flows: Flows, data: st.DataObject):
    numbers = st.floats(0.1, 10.0)
    weight = data.draw(st.one_of(st.none(), st.lists(numbers, min_size=flows.count, max_size=flows.count)))
    cap = data.draw(st.one_of(st.none(), st.lists(st.one_of(numbers, st.just(np.inf)), min_size=flows.count, max_size=flows.count)))
    rates = fair_rates(*flows.system, weight, cap)
    assert violations(*flows.system, rates, weight=weight, cap=cap) == []


@FEW
@given(flow_systems(), st.data())
def test_l4_fairness_certificate_notices_any_single_changed_rate(flows: Flows, data: st.DataObject):
    # The max-min fair allocation is unique, so whatever flow is made slower or faster, a law must break.
    assume(flows.count > 0)
    rates = fair_rates(*flows.system)
    flow = data.draw(st.integers(0, flows.count - 1))
    rates[flow] *= data.draw(st.sampled_from([0.5, 0.999, 1.001, 2.0]))
    assert violations(*flows.system, rates)


def test_the_certificate_names_the_law_the_link_and_the_flow():
    # Too much on link 0 (1 + 1 on 1.5); then too little: feasible, but flow 1 could grow alone.
    assert violations([1.5], *routes([[0], [0]]), [1.0, 1.0])[0].startswith("L3: link 0 of capacity 1.5")
    assert [line[:10] for line in violations([2.0], *routes([[0], [0]]), [1.0, 0.5])] == ["L4: flow 0", "L4: flow 1"]
    # Saturated but unfair: flow 0 is slower than flow 1 on its only full link.
    assert [line[:10] for line in violations([2.0], *routes([[0], [0]]), [0.5, 1.5])] == ["L4: flow 0"]
    assert violations([2.0], *routes([[0]]), [0.0]) == ["flow 0 has the rate 0: every flow gets more than 0"]
    assert violations([2.0], *routes([[0]]), [2.0], cap=[1.0])[0].startswith("flow 0 runs at 2, above its cap 1")


def lexicographic(flows: Flows) -> np.ndarray:
    """Max-min fair rates from linear programs: raise the smallest rate, fix whoever cannot exceed it, repeat."""
    count, links = flows.count, len(flows.capacity)
    incidence = np.zeros((links, count))
    for flow in range(count):
        incidence[flows.route(flow), flow] = 1
    fixed: dict[int, float] = {}
    while len(fixed) < count:
        free = [flow for flow in range(count) if flow not in fixed]
        # Variables: the rates, then t. Maximise t with x_f >= t for free flows.
        below = np.zeros((len(free), count + 1))
        below[np.arange(len(free)), free] = -1
        below[:, -1] = 1
        rows = np.vstack([np.hstack([incidence, np.zeros((links, 1))]), below])
        right = np.concatenate([flows.capacity, np.zeros(len(free))])
        bounds = [(fixed.get(flow, 0.0), fixed.get(flow)) for flow in range(count)] + [(0, None)]
        level = -linprog([0.0] * count + [-1.0], A_ub=rows, b_ub=right, bounds=bounds).fun
        # A link is the bottleneck of a free flow if the flow cannot exceed t while the others keep at least t.
        low = level * (1 - 1e-9)
        bounds = [(fixed[flow], fixed[flow]) if flow in fixed else (low, None) for flow in range(count)]
        stuck = []
        for flow in free:
            goal = np.zeros(count)
            goal[flow] = -1
            if -linprog(goal, A_ub=incidence, b_ub=flows.capacity, bounds=bounds).fun <= level * (1 + 1e-6):
                stuck.append(flow)
        assert stuck
        fixed |= dict.fromkeys(stuck, low)
    return np.array([fixed[flow] for flow in range(count)])


@examples(25)
@given(flow_systems(max_links=4, max_flows=5))
def test_l4_fairness_agrees_with_lexicographic_linear_programs(flows: Flows):
    # An independent method: no filling, no levels of links.
    np.testing.assert_allclose(fair_rates(*flows.system), lexicographic(flows), rtol=1e-5)


@FEW
@given(flow_systems(), st.sampled_from([0.25, 2.0, 1024.0]))
def test_l10_scaling_of_capacities_scales_rates(flows: Flows, factor: float):
    # Powers of two scale floats without rounding, so equality is exact.
    assert (fair_rates(flows.capacity * factor, *flows.system[1:]) == fair_rates(*flows.system) * factor).all()


@FEW
@given(flow_systems(), st.randoms(use_true_random=False))
def test_l10_names_of_links_and_flows_do_not_matter(flows: Flows, random):
    links, order = list(range(len(flows.capacity))), list(range(flows.count))
    random.shuffle(links)
    random.shuffle(order)
    capacity = np.empty_like(flows.capacity)
    capacity[links] = flows.capacity
    renamed = routes([[links[link] for link in flows.route(flow)] for flow in order])
    np.testing.assert_allclose(fair_rates(capacity, *renamed), fair_rates(*flows.system)[order], rtol=1e-12)


# ---------------------------------------------------------------- drain


def test_drain_two_staggered_flows_on_one_link():
    # 10 B/s, 100 B each, B starts at 5 s. A is alone for 50 B; both run at 5 B/s until A's other 50 B are done at 15 s;
    # by then B has 50 B left and the link to itself: 20 s.
    assert drain([10.0], *routes([[0], [0]]), [100.0, 100.0], [0.0, 5.0]).tolist() == [15.0, 20.0]


def test_drain_an_end_speeds_up_the_others():
    # 12 B/s, 12 B and 60 B. Both at 6 B/s: the first ends at 2 s; 48 B are left at 12 B/s: 6 s.
    assert drain([12.0], *routes([[0], [0]]), [12.0, 60.0], [0.0, 0.0]).tolist() == [2.0, 6.0]


def test_drain_idles_until_the_next_flow_starts():
    # 10 B/s; the first flow ends at 1 s, the next starts at 100 s.
    assert drain([10.0], *routes([[0], [0]]), [10.0, 20.0], [0.0, 100.0]).tolist() == [1.0, 102.0]


def test_drain_nothing_to_carry_ends_at_once():
    # No bytes, or no links: the end is the start, and others are not slowed.
    assert drain([10.0], *routes([[0], [], [0]]), [0.0, 99.0, 10.0], [3.0, 4.0, 0.0]).tolist() == [3.0, 4.0, 1.0]
    assert drain([10.0], *routes([]), [], []).tolist() == []


@pytest.mark.parametrize("gpus", [2, 5, 8])
def test_drain_uniform_all_to_all_has_a_closed_form(gpus: int):
    # Every GPU sends b to each of the others through one switch: G - 1 flows share each link, so all end at (G - 1) b / B.
    cluster = OneSwitch(gpus=gpus, bandwidth=50.0, latency=0.0).build()
    pairs = [(i, j) for i in range(gpus) for j in range(gpus) if i != j]
    ends = drain(cluster.bandwidth, *routes([cluster.route(*pair).tolist() for pair in pairs]), [100.0] * len(pairs), [0.0] * len(pairs))
    np.testing.assert_allclose(ends, (gpus - 1) * 2.0, rtol=1e-12)


@pytest.mark.parametrize(("oversubscription", "spine_s"), [(1.0, 4.0), (2.0, 8.0), (4.0, 16.0)])
def test_drain_all_to_all_between_two_leaves_is_bound_by_the_uplinks(oversubscription: float, spine_s: float):
    # 2 nodes of 2 GPUs, a leaf each; NICs of 50, NVLink of 1000. Each GPU sends 100 B to both GPUs of the other node: 400 B leave a leaf
    # whose uplink carries 100 / oversubscription. Each NIC carries 200 B at 50 B/s = 4 s, the bound without oversubscription.
    cluster = NvlinkNodes(nodes=2, gpus_per_node=2, nvlink=1000.0, nic=50.0, nodes_per_leaf=1, oversubscription=oversubscription).build()
    pairs = [(i, j) for i in range(4) for j in range(4) if i // 2 != j // 2]
    ends = drain(cluster.bandwidth, *routes([cluster.route(*pair).tolist() for pair in pairs]), [100.0] * 8, [0.0] * 8)
    np.testing.assert_allclose(ends, spine_s, rtol=1e-12)


def test_drain_a_mesh_pair_cannot_borrow_idle_links():
    # 4 GPUs, 10 B/s a pair: 100 B from 0 to 1 take 10 s although five other links out of and into the two are idle;
    # one switch with the same 30 B/s per GPU takes 10 / 3 s.
    mesh = Mesh(gpus_per_node=4, link=10.0).build()
    switch = OneSwitch(gpus=4, bandwidth=30.0).build()
    assert drain(mesh.bandwidth, *routes([mesh.route(0, 1).tolist()]), [100.0], [0.0]).tolist() == [10.0]
    assert drain(switch.bandwidth, *routes([switch.route(0, 1).tolist()]), [100.0], [0.0]).tolist() == [100.0 / 30.0]


@st.composite
def drains(draw) -> tuple[Flows, np.ndarray, np.ndarray]:
    flows = draw(flow_systems())
    size = draw(st.lists(st.one_of(st.integers(0, 50).map(float), st.floats(0.5, 50)), min_size=flows.count, max_size=flows.count))
    start = draw(st.lists(st.one_of(st.just(0.0), st.floats(0, 20)), min_size=flows.count, max_size=flows.count))
    return flows, np.array(size), np.array(start)


@FEW
@given(drains())
def test_l2_bytes_integrated_over_the_rates_are_those_asked_for(system):
    # Replay: between two neighbouring starts or ends the flows in flight are known, so rates times time must add up to the bytes.
    flows, size, start = system
    ends = drain(*flows.system, size, start)
    carried = np.zeros(flows.count)
    times = np.unique(np.concatenate([start, ends]))
    for now, following in pairwise(times):
        flying = [flow for flow in range(flows.count) if start[flow] <= now and ends[flow] >= following]
        rates = fair_rates(flows.capacity, *routes([flows.route(flow).tolist() for flow in flying]))
        carried[flying] += rates * (following - now)
    np.testing.assert_allclose(carried, size, rtol=1e-9, atol=1e-9)


@FEW
@given(drains())
def test_l7_port_bound_is_never_beaten(system):
    # A flow alone needs its bytes over its narrowest link, and all bytes of a link need the link's capacity.
    flows, size, start = system
    ends = drain(*flows.system, size, start)
    for flow in range(flows.count):
        assert ends[flow] >= start[flow] + size[flow] / flows.capacity[flows.route(flow)].min() * (1 - 1e-12)
    for link, capacity in enumerate(flows.capacity):
        users = [flow for flow in range(flows.count) if link in flows.route(flow) and size[flow] > 0]
        if users:
            assert ends[users].max() >= start[users].min() + size[users].sum() / capacity * (1 - 1e-12)


@FEW
@given(drains(), st.sampled_from([0.5, 4.0]))
def test_l10_scaling_capacities_and_starts_scales_ends(system, factor: float):
    # A fabric that is c times as fast, with starts c times as early, ends everything c times as early; exact for powers of two.
    flows, size, start = system
    fast = drain(flows.capacity * factor, *flows.system[1:], size, start / factor)
    assert (fast == drain(*flows.system, size, start) / factor).all()


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"capacity": [1.0, 0.0]}, r"capacity\[1\] is 0: the capacity of a link must be more than 0 and finite"),
        ({"capacity": [np.nan, 1.0]}, r"capacity\[0\] is nan"),
        ({"capacity": [1.0, -2.0]}, r"capacity\[1\] is -2"),
        ({"capacity": [np.inf, 1.0]}, r"capacity\[0\] is inf"),
        ({"route_link": [0, 2]}, r"route_link\[1\] of flow 1 is link 2, but there are 2 links"),
        ({"route_link": [-1, 1]}, r"route_link\[0\] of flow 0 is link -1"),
        ({"route_link": [0.0, 1.0]}, "route_link must be one row of whole numbers"),
        ({"route_start": [0, 1]}, "route_start must run from 0 to the 2 entries of route_link, but it holds 0 … 1"),
        ({"route_start": []}, "but it holds nothing"),
        ({"route_start": [0, 2, 1, 2]}, "route_start falls from 2 to 1 at flow 1"),
        ({"weight": [1.0, 0.0]}, r"weight\[1\] is 0: the weight of a flow must be more than 0"),
        ({"weight": [1.0]}, r"weight has shape \(1,\), expected \(2,\)"),
        ({"cap": [np.nan, 1.0]}, r"cap\[0\] is nan: the cap of a flow must be more than 0"),
    ],
)
def test_bad_input_is_refused_with_its_index_and_value(change: dict, message: str):
    good = {"capacity": [1.0, 1.0], "route_start": [0, 1, 2], "route_link": [0, 1]}
    with pytest.raises(UsageError, match=message):
        fair_rates(**good | change)


@pytest.mark.parametrize(
    ("size", "start", "message"),
    [
        ([-1.0], [0.0], r"bytes\[0\] is -1"),
        ([np.inf], [0.0], r"bytes\[0\] is inf"),
        ([1.0], [np.nan], r"start\[0\] is nan"),
        ([], [0.0], "bytes has shape"),
    ],
)
def test_drain_refuses_bad_bytes_and_starts(size: list, start: list, message: str):
    with pytest.raises(UsageError, match=message):
        drain([1.0], *routes([[0]]), size, start)


def test_the_certificate_refuses_rates_of_the_wrong_length():
    with pytest.raises(UsageError, match=r"rates has shape \(1,\), expected \(2,\)"):
        violations([1.0], *routes([[0], [0]]), [1.0])
