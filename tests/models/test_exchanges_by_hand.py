"""Every exchange on four GPUs in two nodes, counted by hand: copies, bytes of both directions, and what libraries count."""

import dataclasses
import math

import numpy as np
import pydantic
import pytest
from assignments import assign, setting

from moesim.base.errors import FidelityError, PluginError, UsageError
from moesim.base.registry import build, kinds
from moesim.models.exchange.allgather import AllGather
from moesim.models.exchange.direct import Direct
from moesim.models.exchange.hierarchical import Hierarchical
from moesim.models.exchange.low_latency import LowLatency
from moesim.models.exchange.nodes import same_index_on_node_of
from moesim.models.exchange.padded import Padded
from moesim.models.exchange.two_dimensional import TwoDimensional

# Node 0 holds GPUs 0 and 1, node 1 GPUs 2 and 3; GPU g holds slots 2 g and 2 g + 1; tokens choose three.
#   GPU 0: {4, 6, 5} on GPUs 2, 3, 2 and {0, 2, 7} on GPUs 0, 1, 3.  GPU 1: {4, 5} on GPU 2 twice.  GPU 2: {0, 1, 3} on GPUs 0, 0, 1.
SLOTS = [[4, 6, 5], [0, 2, 7], [4, 5, -1], [0, 1, 3]]
START = [0, 2, 3, 4, 4]
# 256 elements: 512 B in bf16; in fp8 256 B and two scales of 4 B.
BF16, FP8 = 512, 264


def carried(plan, direction="forward", **keys):
    return plan.begin(setting(3))(assign(SLOTS, START, 2, **keys), direction=direction)


def matrix(**entries):
    """A matrix of four by four; ``_02=3`` puts 3 into row 0, column 2."""
    made = np.zeros((4, 4), dtype=np.int64)
    for place, value in entries.items():
        made[int(place[1]), int(place[2])] = value
    return made


def check(stages, copies, each):
    assert [stage.copies.tolist() for stage in stages] == [one.tolist() for one in copies]
    assert [stage.bytes.tolist() for stage in stages] == [(one * float(each)).tolist() for one in copies]


def both_directions(plan, out, home, *, dispatch, combine, gradient_out, gradient_home):
    forward, backward = carried(plan), carried(plan, "backward")
    check(forward.dispatch, out, dispatch)
    check(forward.combine, home, combine)
    check(backward.combine, out, gradient_out)
    check(backward.dispatch, home, gradient_home)


def reverse(stages):
    return [stage.T for stage in reversed(stages)]


def test_hierarchical_by_hand():
    # Across: both tokens of GPU 0 go to node 1 once, to GPU 2; GPU 1's to GPU 3; GPU 2's to GPU 0.
    # Within: GPU 2 passes both on to GPU 3; GPU 3 passes GPU 1's on to GPU 2; GPU 0 its own second token and GPU 2's to GPU 1.
    out = [matrix(_02=2, _13=1, _20=1), matrix(_23=2, _32=1, _01=2)]
    # 264 + 3 * 8 + 8 = 296 and 512 + 8 = 520 are rounded up to 16; the gradients of three weights make 532.
    for plan, dispatch in ((Hierarchical(dispatch_dtype="fp8"), 304), (Hierarchical(), 544)):
        both_directions(plan, out, reverse(out), dispatch=dispatch, combine=528, gradient_out=528, gradient_home=544)
    exchange = carried(Hierarchical(dispatch_dtype="fp8"))
    assert exchange.pipelined
    assert not carried(Hierarchical(pipelined=False)).pipelined
    # Nodes that the tokens go to, their own included: 1 + 2, 1, 1.
    assert exchange.dispatch_counted.tolist() == [3 * FP8, FP8, FP8, 0]
    assert exchange.combine_counted.tolist() == [3 * BF16, BF16, BF16, 0]


def test_hierarchical_forwards_padding_row_by_row():
    # Five rows from GPU 1 to slot 4 of GPU 2: to GPU 3 on the rail, then over.
    padding = np.zeros((4, 8), dtype=np.int64)
    padding[1, 4] = 5
    across, within = carried(Hierarchical(), padding=padding).dispatch
    assert across.padding.tolist() == matrix(_13=5).tolist()
    assert within.padding.tolist() == matrix(_32=5).tolist()
    assert across.bytes[1, 3] == 6 * 544


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [(1, [matrix(_02=1, _03=2, _01=1, _12=1, _20=1, _21=1)]), (4, [matrix(_02=1, _03=2, _01=1, _12=1, _20=1, _21=1)])],
)
def test_hierarchical_has_one_stage_where_nothing_is_forwarded(nodes, expected):
    exchange = Hierarchical().begin(setting(3, nodes=nodes))(assign(SLOTS, START, 2), direction="forward")
    check(exchange.dispatch, expected, 544)
    # One node: tokens that each GPU receives, its own included (NVLink bandwidth). Four nodes of one GPU: places that tokens go to.
    received, sent = [2, 2, 2, 2], [5, 1, 2, 0]
    assert exchange.dispatch_counted.tolist() == [count * BF16 for count in (received if nodes == 1 else sent)]


def test_low_latency_by_hand():
    out = [matrix(_02=2, _03=2, _01=1, _12=2, _20=2, _21=1)]
    plan = LowLatency()
    both_directions(plan, out, reverse(out), dispatch=FP8 + 16, combine=BF16, gradient_out=BF16, gradient_home=BF16)
    both_directions(
        LowLatency(dispatch_dtype="bf16", combine_dtype="fp8"),
        out,
        reverse(out),
        dispatch=BF16 + 16,
        combine=FP8,
        gradient_out=BF16,
        gradient_home=BF16,
    )
    # Six, two and three choices, wherever they go.
    assert carried(plan).dispatch_counted.tolist() == [6 * 280, 2 * 280, 3 * 280, 0]
    assert carried(plan).combine_counted.tolist() == [6 * 512, 2 * 512, 3 * 512, 0]
    assert len(carried(plan, tokens_known=False).dispatch) == 1


def test_allgather_by_hand():
    out = [matrix(_01=2, _02=2, _03=2, _10=1, _12=1, _13=1, _20=1, _21=1, _23=1)]
    plan = AllGather(dispatch_dtype="fp8")
    both_directions(plan, out, reverse(out), dispatch=FP8 + 24, combine=BF16, gradient_out=BF16, gradient_home=BF16 + 12)
    # nccl-tests count the gathered buffer: four tokens on every GPU.
    assert carried(plan).dispatch_counted.tolist() == [4 * (FP8 + 24)] * 4
    assert carried(plan, tokens_known=False).dispatch[0].bytes.tolist() == (out[0] * 288.0).tolist()
    assert not carried(plan).pipelined


def test_allgather_in_a_ring_by_hand():
    # Own tokens first, then those of the GPU before, and so on; every GPU gets every token of the three others once.
    steps = [matrix(_01=2, _12=1, _23=1), matrix(_12=2, _23=1, _30=1), matrix(_01=1, _23=2, _30=1)]
    plan = AllGather(algorithm="ring")
    both_directions(plan, steps, reverse(steps), dispatch=BF16 + 24, combine=BF16, gradient_out=BF16, gradient_home=BF16 + 12)
    assert carried(plan).pipelined
    assert sum(step.sum(axis=0) for step in steps).tolist() == [2, 3, 3, 4]


def test_padded_by_hand():
    # Buffers of 2, 1, 1 and 0 rows for each of two slots of a GPU, however many are filled.
    plan = Padded(dispatch_dtype="fp8")
    exchange = carried(plan, capacity=np.array([2, 1, 1, 0]))
    rows = np.array([[0, 4, 4, 4], [2, 0, 2, 2], [2, 2, 0, 2], [0, 0, 0, 0]])
    (stage,) = exchange.dispatch
    assert stage.bytes.tolist() == (rows * float(FP8)).tolist()
    assert (stage.copies + stage.padding).tolist() == rows.tolist()
    assert stage.copies.tolist() == matrix(_02=2, _03=2, _01=1, _12=2, _20=2, _21=1).tolist()
    assert exchange.combine[0].bytes.tolist() == (rows.T * float(BF16)).tolist()
    # The send buffer of a GPU, its own share included: eight slots.
    assert exchange.dispatch_counted.tolist() == [16 * FP8, 8 * FP8, 8 * FP8, 0]


def test_what_a_rule_has_padded_is_not_padded_again():
    # The rule filled one row of one slot and left the others as they are: its rows are sent, and no more.
    padding = np.zeros((4, 8), dtype=np.int64)
    padding[0, 2] = 1
    (stage,) = carried(Padded(), capacity=np.array([2, 2, 2, 2]), padding=padding).dispatch
    assert stage.padding.tolist() == matrix(_01=1).tolist()


def test_two_dimensional_by_hand():
    # Within: rows for GPU 1's or 3's local index leave GPU 0 for GPU 1, and so on. Across: GPU 0 sends what both GPUs have for GPU 2.
    out = [matrix(_01=3, _10=2, _23=1), matrix(_02=4, _13=2, _20=2, _31=1)]
    home = [matrix(_32=2, _10=2, _23=2), matrix(_20=4, _31=2, _02=3)]
    for plan, each in ((TwoDimensional(), BF16), (TwoDimensional(dispatch_dtype="fp8"), FP8)):
        both_directions(plan, out, home, dispatch=each, combine=BF16, gradient_out=BF16, gradient_home=BF16)
        assert not carried(plan).pipelined
        assert carried(plan).dispatch_counted.tolist() == [6 * each, 2 * each, 3 * each, 0]


def test_two_dimensional_of_padded_buffers():
    # Two rows in every buffer of every GPU: 4 to each GPU, so 8 for each local index, 4 of which stay in the node.
    within, across = carried(TwoDimensional(padded=True), capacity=np.array([2, 2, 2, 2])).dispatch
    assert within.bytes.tolist() == (matrix(_01=8, _10=8, _23=8, _32=8) * 512.0).tolist()
    assert across.bytes.tolist() == (matrix(_02=8, _13=8, _20=8, _31=8) * 512.0).tolist()


def test_direct_counts_as_its_library_does():
    # De-duplicated: tokens that a GPU receives, from itself included. By route: rows of its send buffer with their routing.
    assert carried(Direct()).dispatch_counted.tolist() == [2 * BF16, 2 * BF16, 2 * BF16, 2 * BF16]
    assert carried(Direct(deduplicate=False)).dispatch_counted.tolist() == [6 * 520, 2 * 520, 3 * 520, 0]
    assert carried(Direct(deduplicate=False)).combine_counted.tolist() == [6 * 512, 2 * 512, 3 * 512, 0]
    # Gradients are bf16 whatever the forward dtypes, and their routing is known.
    for plan, rows in ((Direct(dispatch_dtype="fp8", combine_dtype="fp8"), [2, 2, 2, 2]), (Direct(deduplicate=False), [6, 2, 3, 0])):
        backward = carried(plan, "backward")
        assert backward.dispatch_counted.tolist() == backward.combine_counted.tolist() == [row * BF16 for row in rows]


@pytest.mark.parametrize("kind", kinds("exchange"))
def test_what_all_exchanges_can_be_told_reaches_the_engine(kind):
    said = {"order": "ascending", "overhead": "2 us", "in_flight": 3, "communication_sms": 4, "bandwidth_per_sm": "5 GB/s"}
    said |= {"launch": "1 us", "start": "barrier"}
    plan = build(kinds("exchange")[kind], said)
    for direction in ("forward", "backward"):
        exchange = carried(plan, direction, capacity=np.array([2, 2, 2, 2]))
        assert (exchange.order, exchange.overhead, exchange.in_flight, exchange.port) == ("ascending", 2e-6, 3, 20e9)
        assert (exchange.launch, exchange.barrier) == (1e-6, True)
    plain = carried(kinds("exchange")[kind](), capacity=np.array([2, 2, 2, 2]))
    assert (plain.order, plain.overhead, plain.in_flight, plain.port) == ("rotated", 0.0, 0, math.inf)
    with pytest.raises(UsageError, match="unknown direction 'backwards'; did you mean 'backward'"):
        carried(plan, "backwards", capacity=np.array([2, 2, 2, 2]))


@pytest.mark.parametrize("kind", kinds("exchange"))
def test_more_sms_than_there_are_is_refused(kind):
    with pytest.raises(PluginError, match=r"communication_sms is 17, but tiny has 16 SMs"):
        kinds("exchange")[kind](communication_sms=17).begin(setting(3))
    kinds("exchange")[kind](communication_sms=16).begin(setting(3))


@pytest.mark.parametrize("key", [{"order": "descending"}, {"in_flight": -1}, {"overhead": 1.0}, {"communication_sms": 0}])
def test_values_out_of_range_are_refused(key):
    with pytest.raises(pydantic.ValidationError, match=next(iter(key))):
        build(Direct, key)


def test_forwarders_where_nodes_take_turns():
    # Nodes 0 and 1 hold GPUs 0, 3, 4 and 1, 2, 5 of one group: local indices are 0, 0, 1, 1, 2, 2.
    base = setting(3, gpus=6, nodes=2)
    world = dataclasses.replace(base, cluster=dataclasses.replace(base.cluster, node_of=np.array([0, 1, 1, 0, 0, 1])))
    expected = [[0, 1, 1, 0, 0, 1], [0, 1, 1, 0, 0, 1], [3, 2, 2, 3, 3, 2], [3, 2, 2, 3, 3, 2], [4, 5, 5, 4, 4, 5], [4, 5, 5, 4, 4, 5]]
    assert same_index_on_node_of(world, "it").tolist() == [expected]
    # A token of GPU 0 for GPU 5 lands on GPU 1; one of GPU 4 lands on GPU 5 itself.
    assignment = assign([[5], [5]], [0, 1, 1, 1, 1, 2, 2], 1)
    across, within = Hierarchical().begin(world)(assignment, direction="forward").dispatch
    assert np.argwhere(across.copies).tolist() == [[0, 1], [4, 5]]
    assert np.argwhere(within.copies).tolist() == [[1, 5]]


def test_groups_of_one_and_of_two_nodes_count_as_their_kernels_do():
    # Node 0 holds the first group and one GPU of the second; nodes 1 holds the other: NVLink bandwidth, and RDMA bandwidth.
    base = setting(1, gpus=4, nodes=2, ep=2)
    world = dataclasses.replace(base, cluster=dataclasses.replace(base.cluster, node_of=np.array([0, 0, 0, 1])))
    assignment = assign([[1], [1], [0]], [0, 2, 2, 2, 3], 1, groups=2)
    exchange = Hierarchical().begin(world)(assignment, direction="forward")
    # GPU 1 receives both tokens of GPU 0; GPU 3 sends its one to one node.
    assert exchange.dispatch_counted.tolist() == [0, 2 * BF16, 0, BF16]
    assert [np.argwhere(stage.copies).tolist() for stage in exchange.dispatch] == [[[3, 2]], [[0, 1]]]


def test_refusals_say_what_to_do():
    with pytest.raises(FidelityError, match=r"exchange 'hierarchical' needs to know the experts of each token.*counts by source only"):
        carried(Hierarchical(), tokens_known=False)
    for plan in (Padded(), TwoDimensional(padded=True)):
        with pytest.raises(PluginError, match=r"capacity rule has none: choose policy\.capacity.*deduplicate: false"):
            carried(plan)
    # Three ranks of a group on two nodes of four GPUs: group 1 has GPU 3 on node 0, GPUs 4 and 5 on node 1.
    for plan in (Hierarchical(), TwoDimensional()):
        with pytest.raises(PluginError, match=r"group 1 are spread unevenly over nodes \(1 on node 0, 2 on node 1\)"):
            plan.begin(setting(3, gpus=12, nodes=3, ep=3))
