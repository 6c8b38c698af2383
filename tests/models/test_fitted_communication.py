"""Fitted models of communication: known parameters come back, times grow with work, and rows that say too little are refused."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import CalibrationError
from moesim.facts.profile import Profile
from moesim.facts.profile_data import plain_profile, profile_of
from moesim.models.fitted import deepep_low_latency, deepep_normal
from moesim.models.fitted.deepep_low_latency import DeepEpLowLatency, crowding, message_bytes
from moesim.models.fitted.deepep_normal import DeepEpNormal, copies, row_bytes
from moesim.models.fitted.nccl_all_to_all import NcclAllToAll
from moesim.models.fitted.nvlink_rack import NvlinkRack, copies_of, port_bytes
from moesim.models.fitted.parametric import saturating, smooth_maximum
from moesim.models.fitted.point_to_point import PointToPoint, path
from moesim.models.fitted.uniform_routing import expected_distinct


def columns(**values):
    """Rows of every combination of the given values."""
    found = np.asarray(list(product(*values.values())), dtype=np.float64)
    return dict(zip(values, found.T, strict=True))


def nccl_rows(ranks=(2, 4, 8), sizes=tuple(2.0**power for power in range(9, 30))):
    rows = columns(num_gpus=ranks, bytes_per_rank=sizes)
    size = len(rows["num_gpus"])
    return {**rows, "link_bandwidth": np.full(size, 450e9), "memory_bandwidth": np.full(size, 4.8e12)}


NCCL = NcclAllToAll(
    launch=7e-6, per_peer=3e-7, protocol_cost=5e-6, protocol_bytes=6e4, ramp_cost=2e-5, ramp_bytes=1e7, link_efficiency=0.7,
    copy_efficiency=0.4,
    fan_in=0.02,
)  # fmt: skip


def low_latency_rows(nodes=(1, 2), tokens=(1, 4, 16, 64, 128, 256), experts=(8, 128, 256, 384), hidden=(2048, 7168)):
    rows = columns(tokens_per_rank=tokens, num_topk=(2, 8), num_experts=experts, node_num=nodes, hidden=hidden)
    size = len(rows["hidden"])
    rows["message_bytes"] = message_bytes(rows.pop("hidden"), "dispatch")
    return {**rows, "gpus_per_node": np.full(size, 8.0), "link_bandwidth": np.full(size, 450e9), "nic_bandwidth": np.full(size, 50e9)}


LOW_LATENCY = DeepEpLowLatency(
    launch=9e-6, per_expert=1.5e-8, per_byte=2e-10, link_efficiency=0.5, block_bandwidth=5e9, network_latency=7e-6, nic_efficiency=0.9,
    contention=0.14
)  # fmt: skip


def normal_rows(nodes=(1,), tokens=(1, 32, 256, 2048, 16384), sms=(4, 8, 16, 24), hidden=(2048, 7168)):
    rows = columns(tokens_per_rank=tokens, num_topk=(2, 8), num_experts=(256,), node_num=nodes, sms=sms, hidden=hidden)
    size = len(rows["sms"])
    rows["message_bytes"] = row_bytes(rows.pop("hidden"), rows["num_topk"], "dispatch", rows["node_num"])
    rows["gpus_per_node"] = np.full(size, 8.0)
    rows["gpu_copies"], rows["node_copies"] = copies(rows["node_num"], rows["gpus_per_node"], rows["num_experts"], rows["num_topk"])
    return {**rows, "link_bandwidth": np.full(size, 450e9), "nic_bandwidth": np.full(size, 50e9)}


NORMAL = DeepEpNormal(
    launch=2e-5, per_byte=1e-9, token_byte_cost=1e-10, copy_cost=2e-7, copy_byte_cost=3e-11, link_efficiency=0.65, network_latency=1e-6,
    network_work=1.5, nic_efficiency=0.94, contention=0.14,
)  # fmt: skip

RACK = NvlinkRack(launch=9e-6, per_copy=4e-7, per_token=5e-9, link_efficiency=0.6)
PAIR = PointToPoint(launch=1.2e-5, per_hop=2e-6, protocol_cost=5e-6, efficiency=0.6)


def rack_rows(ranks=(2, 4, 8), tokens=(1, 16, 128, 1024, 8192)):
    rows = columns(num_tokens=tokens, ranks=ranks)
    size, eight = len(rows["ranks"]), np.full(len(rows["ranks"]), 8.0)
    ranks = rows.pop("ranks")
    moved = port_bytes("dispatch", "NVLinkTwoSided", ranks, eight, np.full(size, 7168.0), np.asarray(["fp8"] * size))
    return {**rows, "copies": copies_of(ranks, eight), "port_bytes": moved, "link_bandwidth": np.full(size, 900e9)}


def pair_rows():
    rows = columns(size=tuple(2.0**power for power in range(11, 27)), workers=(2, 4, 8))
    link = np.full(len(rows["size"]), 300e9)
    rounds, hops, bandwidth = path("all_reduce", rows["workers"], rows["workers"], link=link, nic=link / 12)
    return {"size": rows["size"], "rounds": rounds, "hops": hops, "path_bandwidth": bandwidth}


CASES = {
    "nccl": (NCCL, nccl_rows(), ()),
    "low latency": (LOW_LATENCY, low_latency_rows(), ()),
    "normal": (NORMAL, normal_rows(), ("nic_efficiency", "network_work", "network_latency", "contention")),
    "rack": (RACK, rack_rows(), ()),
    "pair": (PAIR, pair_rows(), ()),
}


@pytest.mark.parametrize("name", CASES)
def test_known_parameters_come_back(name):
    model, rows, untold = CASES[name]
    found = type(model).fit(rows, model.predict(rows))
    for parameter, value in model.values().items():
        if parameter not in untold:
            assert found.values()[parameter] == pytest.approx(value, rel=0.01), parameter
    assert np.abs(found.predict(rows) / model.predict(rows) - 1).max() < 1e-3


@pytest.mark.parametrize("name", ["nccl", "low latency", "pair"])
def test_errors_of_parameters_hold_what_they_promise(name):
    model, rows, _ = CASES[name]
    draw, exact, off = np.random.default_rng(5), model.predict(rows), []
    for _ in range(20):
        section = type(model).fit(rows, exact * np.exp(0.02 * draw.standard_normal(len(exact)))).section()
        truth = model.values()
        # What ran into a bound has no error and is not judged.
        off += [(one.value - truth[one.name]) / one.error for one in section.parameters if one.basis == "fitted" and one.error]
    # Of noise like that of the fit's own assumption, 90 % lie within 1.645 standard errors; parameters of one fit are not independent.
    assert 0.8 < np.mean(np.abs(off) < 1.645) < 0.98
    assert 0.7 < np.std(off) < 1.3


@pytest.mark.parametrize("name", CASES)
def test_a_model_survives_its_profile(name):
    model, rows, _ = CASES[name]
    found = type(model).fit(rows, model.predict(rows) * 1.01, source="made up")
    profile = Profile(name="mine", gpu="h200-sxm", made="2026-11", sections={"one": found.section()})
    again = type(model).of_section(profile_of(plain_profile(profile)).sections["one"])
    assert again == found
    assert found.section().rows == len(next(iter(rows.values())))


@pytest.mark.parametrize("name", CASES)
def test_few_rows_are_refused(name):
    model, rows, _ = CASES[name]
    few = {key: column[:3] for key, column in rows.items()}
    with pytest.raises(CalibrationError, match="at least"):
        type(model).fit(few, np.ones(3))


def test_one_size_says_nothing_of_bandwidth():
    rows = nccl_rows(sizes=(1024.0,) * 12)
    with pytest.raises(CalibrationError, match="bytes_per_rank holds only"):
        NcclAllToAll.fit(rows, np.ones(len(rows["num_gpus"])))


@pytest.mark.parametrize("name", CASES)
def test_sizes_that_tell_no_latency_from_bandwidth_are_refused(name):
    model, rows, _ = CASES[name]
    size = {"nccl": "bytes_per_rank", "rack": "num_tokens", "pair": "size"}.get(name, "tokens_per_rank")
    narrow = {**rows, size: 1000.0 + np.arange(len(rows[size]))}
    with pytest.raises(CalibrationError, match=f"{size} goes from 1000 to .* only"):
        type(model).fit(narrow, model.predict(rows))
    with pytest.raises(CalibrationError, match="sizes are above 0"):
        type(model).fit({**rows, size: rows[size] - rows[size].min()}, model.predict(rows))


@pytest.mark.parametrize("wrong", [0.0, -1e-6, np.nan, np.inf])
def test_times_that_are_none_are_refused(wrong):
    rows = nccl_rows()
    seconds = NCCL.predict(rows)
    seconds[4] = wrong
    with pytest.raises(CalibrationError, match="row 4"):
        NcclAllToAll.fit(rows, seconds)


def test_what_rows_cannot_tell_is_held_and_said():
    rows = low_latency_rows(nodes=(1, 2), experts=(256,), hidden=(7168,))
    section = DeepEpLowLatency.fit(rows, LOW_LATENCY.predict(rows), start=LOW_LATENCY.values()).section()
    bases = {parameter.name: parameter.basis for parameter in section.parameters}
    # Two nodes tell latency and bandwidth of the network; one shape tells nothing of experts or widths, and two nodes nothing of crowding.
    assert {name for name, basis in bases.items() if basis == "assumed"} == {"per_expert", "per_byte", "block_bandwidth", "contention"}
    assert bases["nic_efficiency"] == bases["network_latency"] == "fitted"
    assert section.fitted_range["node_num"] == (1.0, 2.0)
    assert section.outside({"node_num": np.asarray([2.0, 4.0])}).tolist() == [False, True]


def test_a_section_of_another_model_is_refused():
    with pytest.raises(CalibrationError, match="cannot be read as 'nvlink_rack'"):
        NvlinkRack.of_section(NCCL.section())
    assert NCCL.section().basis == "assumed"  # written down, not fitted


@pytest.mark.parametrize("name", CASES)
def test_more_bytes_take_longer(name):
    model, rows, _ = CASES[name]
    size = {"nccl": "bytes_per_rank", "rack": "num_tokens", "pair": "size"}.get(name, "tokens_per_rank")
    twice = {**rows, size: rows[size] * 2}
    assert (model.predict(twice) > model.predict(rows)).all()


def test_more_nodes_take_longer_and_crowd():
    times = [LOW_LATENCY.predict(low_latency_rows(nodes=(nodes,), experts=(256,)))[-1] for nodes in (1, 2, 4, 8, 16)]
    assert times == sorted(times)
    # A line through two nodes would grow with (n - 1)/n alone; the missing term is crowding: 0 for two nodes, then towards the whole of it.
    assert crowding(np.asarray([1.0, 2.0, 4.0, 8.0]), 0.15).tolist() == pytest.approx([1, 1, 1 + 0.15 * 2 / 3, 1 + 0.15 * 6 / 7])


def test_assumed_crowding_is_what_the_collection_says():
    # The collection says that a line through two nodes is 9 to 12 % too fast at 4 and 8.
    assert pytest.approx(1.09, abs=0.005) == 1 + deepep_low_latency.CONTENTION * 2 / 3
    assert pytest.approx(1.12, abs=0.005) == 1 + deepep_low_latency.CONTENTION * 6 / 7


def test_fewer_sms_take_longer_until_links_limit():
    times = [NORMAL.predict(normal_rows(tokens=(16384,), sms=(sms,)))[-1] for sms in (2, 4, 8, 16, 64, 128)]
    assert times == sorted(times, reverse=True)
    assert times[0] / times[1] == pytest.approx(2, rel=0.02)  # SMs limit
    assert times[-2] / times[-1] < 1.01  # NVLink limits


def test_normal_kernels_are_bound_by_nvlink_in_one_node_and_by_the_card_between_nodes():
    one, two = (take_last(normal_rows(nodes=(nodes,), tokens=(1e6,), sms=(1e6,), hidden=(7168,))) for nodes in (1, 2))
    # All but an eighth of the copies leave their GPU; between two nodes a token crosses with probability 0.9965.
    assert NORMAL.predict(one)[0] == pytest.approx(1e6 * 7456 * 5.2951 * 7 / 8 / (0.65 * 450e9), rel=2e-3)
    card, link = 1e6 * 7472 * 0.99651 / (0.94 * 50e9), 1e6 * 7472 * 6.5233 * 7 / 8 / (0.65 * 450e9)
    assert NORMAL.predict(two)[0] == pytest.approx((card**4 + link**4) ** 0.25, rel=2e-3)  # the two overlap, with a rounded corner


def take_last(rows):
    """The last row."""
    return {name: column[-1:] for name, column in rows.items()}


def test_small_calls_show_the_launch_and_large_ones_the_link():
    rows = nccl_rows(ranks=(2,), sizes=(1.0, 2.0**36))
    small, large = NCCL.predict(rows)
    assert small == pytest.approx(NCCL.launch, rel=1e-3)
    # Half of the buffer leaves the GPU, the other half is copied in memory.
    assert large == pytest.approx(2.0**35 / (0.7 * 450e9) + 2.0**35 / (0.4 * 4.8e12), rel=1e-3)


def test_expected_distinct_by_hand():
    # 4 experts on 2 GPUs, 2 choices: of 6 pairs 2 share a GPU, so 2 - 2/6 GPUs.
    assert expected_distinct(*(np.asarray([value]) for value in (2.0, 4.0, 2.0)))[0] == pytest.approx(5 / 3)
    # As many choices as experts reach everything; one choice reaches one GPU.
    assert expected_distinct(np.asarray([8.0, 8.0]), np.asarray([64.0, 64.0]), np.asarray([64.0, 1.0])).tolist() == pytest.approx([8, 1])


@given(st.sampled_from([2, 4, 8]), st.integers(1, 8), st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_expected_distinct_is_what_drawing_gives(groups, each, top_k, seed):
    experts = groups * each
    top_k = min(top_k, experts)
    rng = np.random.default_rng(seed)
    drawn = np.argsort(rng.random((4000, experts)), axis=1)[:, :top_k] // each
    found = np.mean([len(set(row)) for row in drawn.tolist()])
    value = expected_distinct(np.asarray([float(groups)]), np.asarray([float(experts)]), np.asarray([float(top_k)]))[0]
    assert found == pytest.approx(value, abs=0.06)
    assert 1 - 1e-9 <= value <= min(groups, top_k) + 1e-9


@given(st.floats(1e-9, 1e3), st.floats(1e-9, 1e3), st.floats(1, 16))
def test_a_smooth_maximum_lies_between_the_maximum_and_the_sum(first, second, sharpness):
    value = smooth_maximum(np.asarray([first]), np.asarray([second]), sharpness)[0]
    assert max(first, second) * (1 - 1e-12) <= value <= (first + second) * (1 + 1e-12)


def test_saturating_is_half_at_half():
    assert saturating(np.asarray([0.0, 5.0, 1e12]), 5.0, power=1.5).tolist() == pytest.approx([0, 0.5, 1])


def test_bytes_of_copies():
    # 7168 in fp8 with 56 scales of 4 B, and a header of 16 B (low latency) or index and weight of 8 choices (normal), which on the network
    # become a multiple of 16 B with 8 B more.
    assert message_bytes(np.asarray([7168]), "dispatch")[0] == 7168 + 224 + 16
    assert row_bytes(np.asarray([7168.0] * 2), np.asarray([8.0] * 2), "dispatch", np.asarray([1.0, 2.0])).tolist() == [7456.0, 7472.0]
    assert row_bytes(np.asarray([7168.0] * 2), np.asarray([8.0] * 2), "combine", np.asarray([1.0, 2.0])).tolist() == [14336.0, 14352.0]


def test_bytes_of_a_rack():
    one = (np.asarray([16.0]), np.asarray([8.0]), np.asarray([7168.0]))
    dtypes = np.asarray(["nvfp4"])
    # Beyond as many ranks as choices a token still goes to 8 of them; one-sided kernels leave out the own rank's sixteenth.
    assert port_bytes("dispatch", "NVLinkTwoSided", *one, dtypes)[0] == 8 * 7168 * 0.5625
    assert port_bytes("dispatch", "NVLinkOneSided", *one, dtypes)[0] == 8 * 15 / 16 * 7168 * 0.5625
    assert port_bytes("combine", "NVLinkTwoSided", *one, dtypes)[0] == 9 * 7168 * 2
    assert port_bytes("prepare", "NVLinkTwoSided", *one, dtypes)[0] == 0


def test_paths():
    link, nic = np.asarray([300e9] * 3), np.asarray([25e9] * 3)
    workers, per_node = np.asarray([2.0, 2.0, 16.0]), np.asarray([2.0, 1.0, 8.0])
    rounds, hops, bandwidth = path("all_reduce", workers, per_node, link=link, nic=nic)
    assert rounds.tolist() == [1.0, 1.0, 1.875]
    assert hops.tolist() == [2.0, 2.0, 30.0]
    assert bandwidth.tolist() == [300e9, 25e9, 100e9]  # inside; one card; eight GPUs on four pairs of cards
    assert path("send_recv", workers, per_node, link=link, nic=nic)[2].tolist() == [300e9, 25e9, 25e9]


def test_starting_values_are_complete():
    for module, model in ((deepep_low_latency, DeepEpLowLatency), (deepep_normal, DeepEpNormal)):
        for start in module.START_OF.values():
            assert set(start) == set(model.names())
