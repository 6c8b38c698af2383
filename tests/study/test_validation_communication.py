"""Tables of communication: errors on rows that were held back, recomputed, against the targets and against the simple rules."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from moesim.base.errors import CalibrationError
from moesim.desk.measured_tables import parse_csv, read_measured
from moesim.facts.profile import Profile
from moesim.models.fitted.rows import take
from moesim.study.measured import kind_of, usable_rows
from moesim.study.validation.fitted_table import alpha_beta
from moesim.study.validation.machines import preset_of, whose_section
from moesim.study.validation.published_exchanges import group_limited
from moesim.study.validation.rail_incast import random_peers_share

MEASURED = Path(__file__).resolve().parents[1] / "data" / "measured"


@cache
def table(name):
    """The kind of a table and its rows."""
    kind = kind_of(f"{name}.csv")
    return kind, usable_rows(kind, read_measured(MEASURED / f"{name}.csv"), {})[0]


def profiles(sections):
    """Sections as profiles, one per GPU."""
    found = {}
    for key, section in sections.items():
        preset, _, name = key.partition("/")
        found.setdefault(preset, {})[name] = section
    return {preset: Profile(name=preset, gpu=preset, made="2026-11", sections=held) for preset, held in found.items()}


def held_back(kind, rows, groups=None):
    """Predictions of each group from a fit to the others."""
    groups = np.asarray(kind.group(rows)) if groups is None else groups
    values = np.full(len(groups), np.nan)
    inside = np.zeros(len(groups), dtype=bool)
    measured = kind.seconds(rows)
    for group in np.unique(groups):
        mask = groups == group
        found = kind.predict(take(rows, mask), profiles(kind.fit(take(rows, ~mask))))
        values[mask] = found.values
        inside[mask] = (found.low <= measured[mask]) & (measured[mask] <= found.high)
    return values, inside


def error(values, measured, mask):
    return 100 * float(np.abs(values[mask] / measured[mask] - 1).mean())


def test_nccl_numbers_of_gpus_that_were_held_back():
    kind, rows = table("nccl_alltoall_intranode")
    values, inside = held_back(kind, rows)
    measured, regime = kind.seconds(rows), kind.regime(rows)
    _, rule = kind.baseline(rows)
    errors = {label: error(values, measured, regime == label) for label in ("large", "small")}
    assert errors["large"] == pytest.approx(4.6, abs=0.5)  # target 8
    assert errors["small"] == pytest.approx(9.1, abs=0.8)  # target 15
    assert error(rule, measured, regime == "large") > 2 * errors["large"]
    assert error(rule, measured, regime == "small") > 1.5 * errors["small"]
    assert inside.mean() > 0.85


@pytest.mark.parametrize(("name", "dispatch", "combine"), [("deepep_ll_intranode", 2.6, 4.8), ("nvlink_rack", 9.1, 6.0)])
def test_shapes_and_ranks_that_were_held_back(name, dispatch, combine):
    kind, rows = table({"nvlink_rack": "gb200_nvlink_moe_alltoall"}.get(name, name))
    values, _ = held_back(kind, rows)
    measured, regime = kind.seconds(rows), kind.regime(rows)
    place = "" if name == "nvlink_rack" else "intra_node "
    assert error(values, measured, regime == f"{place}dispatch") == pytest.approx(dispatch, rel=0.15)
    assert error(values, measured, regime == f"{place}combine") == pytest.approx(combine, rel=0.15)


def test_low_latency_over_nodes_beats_a_line_and_says_what_is_assumed():
    kind, rows = table("deepep_ll_internode")
    own = profiles(kind.fit(rows))
    measured, regime = kind.seconds(rows), kind.regime(rows)
    found = kind.predict(rows, own)
    for label, worst in (("inter_node dispatch", 2.5), ("inter_node combine", 4.2)):
        assert error(found.values, measured, regime == label) < worst
    # Rows of more nodes are predicted from these, slower than a line through two nodes by the crowding of the cards, and say so.
    more = {**{name: column.copy() for name, column in rows.items()}, "node_num": np.where(rows["node_num"] == 2, 4, rows["node_num"])}
    beyond = kind.predict(more, own)
    _, line = kind.baseline(more)
    four = more["node_num"] == 4
    assert set(beyond.basis[four]) == {"assumed"}
    assert beyond.outside[four].all()
    assert not found.outside.any()
    assert np.median(beyond.values[four] / line[four]) == pytest.approx(1.10, abs=0.03)


def test_the_line_through_two_nodes_is_the_one_that_the_rows_give():
    from moesim.study.validation.deepep_tables import TWO_NODES

    kind, rows = table("deepep_ll_internode")
    inputs, measured = kind.inputs(rows), kind.seconds(rows)
    for op, (alpha, share) in TWO_NODES.items():
        mask = (rows["op"] == op) & (rows["node_num"] == 2)
        crossed = (inputs["tokens_per_rank"] * inputs["num_topk"] * inputs["message_bytes"] / 2)[mask]
        line = alpha_beta(crossed, measured[mask], np.full(mask.sum(), "all"))
        order = np.argsort(crossed)
        slope = (line[order][-1] - line[order][0]) / (crossed[order][-1] - crossed[order][0])
        assert 1 / slope / 50e9 == pytest.approx(share, rel=0.01)
        assert line[order][0] - slope * crossed[order][0] == pytest.approx(alpha, rel=0.01)


def test_normal_kernels():
    kind, rows = table("deepep_normal_internode")
    measured, regime = kind.seconds(rows), kind.regime(rows)
    values = kind.predict(rows, profiles(kind.fit(rows))).values
    for label, now in (("inter_node dispatch", 9.3), ("inter_node combine", 8.5)):
        assert error(values, measured, regime == label) == pytest.approx(now, abs=0.7)  # target 15
    _, rule = kind.baseline(rows)
    known = rule > 0
    assert (rule[known] < measured[known]).all()  # a bound
    many = {**rows, "node_num": np.full(len(measured), 8)}
    assert set(kind.regime(many)) == {"inter_node_8 combine", "inter_node_8 dispatch (outlier class of the source)"}


def test_normal_kernels_of_one_node_by_sms_that_were_held_back():
    kind, rows = table("deepep_normal_intranode")
    some = take(rows, np.isin(rows["tokens_per_rank"], (1, 32, 256, 2048, 16384, 131072)) & (rows["hidden_size"] == 4096))
    values, _ = held_back(kind, some, np.asarray([f"{sms} SMs" for sms in some["sms"].tolist()]))
    assert error(values, kind.seconds(some), np.ones(len(values), dtype=bool)) < 8


def test_a_gpu_without_a_profile_is_carried_over_by_its_data_sheet():
    kind, rows = table("nccl_alltoall_intranode")
    own = profiles(kind.fit(take(rows, rows["system"] == "h200_sxm")))
    mask = (rows["system"] == "h200_sxm") & (rows["num_gpus"] == 8)
    here = take(rows, mask)
    there = {**here, "system": np.full(int(mask.sum()), "b200_sxm")}
    first, second = kind.predict(here, own), kind.predict(there, own)
    assert set(first.basis) == {"fitted"}
    assert set(second.basis) == {"datasheet"}
    # Twice the NVLink: large calls take little more than half as long, small ones as long.
    largest = here["bytes_per_rank"] == here["bytes_per_rank"].max()
    assert (second.values / first.values)[largest] == pytest.approx(0.51, abs=0.02)
    assert (second.values / first.values)[here["bytes_per_rank"] == 512] == pytest.approx(1, abs=1e-3)
    assert (second.high / second.low > first.high / first.low).all()
    unknown = kind.predict({**here, "system": np.full(int(mask.sum()), "tpu_v5")}, own)
    assert np.isnan(unknown.values).all()
    assert all("'tpu_v5'" in reason for reason in unknown.reasons)


def test_gpus_without_nvlink_share_the_path_through_the_host():
    kind, rows = table("nccl_alltoall_intranode")
    largest = take(rows, (rows["bytes_per_rank"] == 2**29) & (rows["system"] == "a100_sxm"))
    one = {name: column[:1] for name, column in largest.items()}
    eight = {**one, "system": np.asarray(["l40s"]), "num_gpus": np.asarray([8])}
    found = kind.predict(eight, profiles(kind.fit(rows)))
    # The header of the table: 8 GPUs peak at a bus bandwidth of 2 GB/s.
    assert 2**29 * 7 / 8 / found.values[0] == pytest.approx(2e9, rel=0.1)
    assert kind.regime(eight).tolist() == ["pcie_large"]
    assert found.basis.tolist() == ["assumed"]


def test_eplb_places_the_published_vector_exactly_and_refuses_to_compare_others():
    kind, rows = table("eplb_test_vector")
    assert kind.predict(rows, {}).values.tolist() == kind.seconds(rows).tolist()
    other = {**rows, "load": rows["load"] + (rows["layer"] == 1)}
    assert np.isnan(kind.seconds(other)[other["layer"] == 1]).all()
    assert np.isfinite(kind.seconds(other)[other["layer"] == 0]).all()


def test_eight_gpus_from_two_and_four():
    kind, rows = table("nccl_alltoall_intranode")
    mine = take(rows, rows["system"] == "h200_sxm")
    eight = mine["num_gpus"] == 8
    found = kind.predict(take(mine, eight), profiles(kind.fit(take(mine, ~eight))))
    measured, large = kind.seconds(mine)[eight], kind.regime(mine)[eight] == "large"
    assert error(found.values, measured, large) < 8
    assert error(found.values, measured, ~large) < 15
    assert found.outside.all()


def test_the_trays_of_a_rack_are_one_node():
    kind, rows = table("deepep_ll_intranode")
    tray = {**rows, "system": np.full(len(rows["op"]), "gb200"), "node_num": np.full(len(rows["op"]), 4)}
    given = kind.inputs(tray)
    assert set(given["node_num"]) == {1.0}
    assert set(given["gpus_per_node"]) == {16.0}
    assert {name.partition(".")[0] for name in kind.sections(tray).tolist()} == {"deepep_low_latency"}


def test_every_row_of_every_published_table_is_predicted_or_says_why_not():
    sections = {}
    for name in ("nccl_alltoall_intranode", "deepep_ll_intranode", "deepep_ll_internode", "deepep_normal_internode"):
        kind, rows = table(name)
        sections |= kind.fit(rows)
    own = profiles(sections)
    for name, predicted in (("readme_tables_dispatch_combine", 6), ("moe_alltoall_efa_cx7", 6), ("pplx_kernels_alltoall", 5)):
        kind, rows = table(name)
        found = kind.predict(rows, own)
        known = np.isfinite(found.values)
        assert known.sum() >= predicted
        assert all(found.reasons[~known])
        assert (found.low[known] < found.values[known]).all()
        assert (found.values[known] < found.high[known]).all()
    # NCCL of a padded buffer of 256 experts x 128 tokens on 8 H100: 0.70 ms were measured.
    kind, rows = table("pplx_kernels_alltoall")
    mask = (rows["implementation"] == "Torch AtA") & (rows["tokens_per_gpu"] == 128)
    assert kind.predict(rows, own).values[mask][0] == pytest.approx(699.9e-6, rel=0.05)


def test_group_limited_routing_by_hand():
    # 4 of 8 groups, a group per GPU: each of the four is missed by all 8 choices with (3/4)^8.
    assert group_limited(8)[0] == pytest.approx(4 * (1 - 0.75**8))
    # A node of four groups is left out only if all four come from the other one (1 of 70 choices), or no choice falls on its share.
    assert 1.9 < group_limited(2)[0] < 2
    assert group_limited(1)[0] == pytest.approx(1)
    # Beyond 8 nodes a group lies on several: at most 8 choices, and never more than 4 x 8 / 8 nodes of each.
    assert group_limited(4)[0] < group_limited(8)[0] < group_limited(16)[0] < 8


def test_incast_comes_from_contention_alone():
    # Eight balls in eight bins: the fullest holds 2.6 on average, so a round of one message each takes that long; two even it out a little.
    assert random_peers_share(1) == pytest.approx(0.38, abs=0.02)
    assert random_peers_share(2) == pytest.approx(0.46, abs=0.02)
    assert random_peers_share(1, rails=1) == 1  # one peer is no choice
    kind, rows = table("efa_rail_incast_2node")
    found = kind.predict(rows, {})
    wrong = np.abs(found.values - kind.seconds(rows))
    assert wrong.mean() == pytest.approx(0.028, abs=0.01)
    assert wrong.max() < 0.08


def test_names_of_systems():
    names = {
        "h200_sxm": "h200-sxm",
        "a100_dgx": "a100-sxm-80",
        "NVIDIA GB300": "gb300-nvl72",
        "hopper_8gpu_ib400": "h100-sxm",
        "l40s": "l40s",
        "b200_sxm": "b200-sxm",
    }
    assert {name: preset_of(name) for name in names} == names
    assert preset_of("abacus") == ""
    assert whose_section({}, "h200-sxm", "nccl_all_to_all") == (None, False)


def test_a_table_of_unknown_systems_is_not_fitted():
    kind, rows = table("nccl_alltoall_intranode")
    with pytest.raises(CalibrationError, match="'abacus'"):
        kind.fit({**rows, "system": np.full(len(rows["system"]), "abacus")})


def test_missing_columns_and_text_are_told():
    kind, _ = table("nccl_alltoall_intranode")
    broken = parse_csv("system,num_gpus,bytes_per_rank,time_us\nh200_sxm,8,1024,\nh200_sxm,8,2048,7.1\n", "nccl_alltoall_intranode.csv")
    rows, _, left = usable_rows(kind, broken)
    assert len(rows["num_gpus"]) == 1
    assert sum(item.rows for item in left) == 1


def test_a_line_is_not_fitted_to_two_points():
    assert np.isnan(alpha_beta(np.asarray([1.0, 2.0]), np.asarray([1.0, 2.0]), np.asarray(["a", "a"]))).all()
    x = np.asarray([1.0, 2.0, 4.0, 8.0])
    assert alpha_beta(x, 3 + 2 * x, np.asarray(["a"] * 4)).tolist() == pytest.approx((3 + 2 * x).tolist())


def test_rows_travel_in_the_format_that_holds_them_whatever_the_weights_are():
    kind, rows = table("gb200_nvlink_moe_alltoall")
    sent = np.char.endswith(rows["op_name"].astype(str), "dispatch") & (rows["moe_dtype"].astype(str) == "fp8")
    some = take(rows, sent)
    size = len(some["topk"])
    wanted = kind.inputs(some)["port_bytes"]
    # Blocks of fp8 are fp8; four-bit weights beside 16-bit rows send 16 bits.
    for name, factor in (("fp8_block", 1), ("w4afp8", 1), ("int4_wo", 2)):
        assert kind.inputs({**some, "moe_dtype": np.asarray([name] * size)})["port_bytes"].tolist() == (factor * wanted).tolist()
    with pytest.raises(CalibrationError, match="'fp7' is not known"):
        kind.inputs({**some, "moe_dtype": np.asarray(["fp7"] * size)})
