"""Names of systems as people write them, and what follows for tables of GPUs that nothing was fitted on."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from moesim.base.errors import CalibrationError
from moesim.desk.measured_tables import read_measured
from moesim.desk.validation_files import profiles_for
from moesim.facts.gpu_presets import gpu_presets
from moesim.facts.profile import Profile
from moesim.models.fitted.rows import take
from moesim.study.measured import kind_of, usable_rows
from moesim.study.validation.machines import in_rack, preset_of, unknown_system, whose_section
from moesim.study.validation.nccl_alltoall import NODE
from moesim.study.validation.number_formats import format_of

MEASURED = Path(__file__).resolve().parents[1] / "data" / "measured"
DOCS = Path(__file__).resolve().parents[2] / "docs"


@cache
def table(name):
    """The kind of a table and its rows."""
    kind = kind_of(f"{name}.csv")
    return kind, usable_rows(kind, read_measured(MEASURED / f"{name}.csv"), {})[0]


@cache
def fitted(name):
    """Profiles fitted to one table."""
    kind, rows = table(name)
    found = {}
    for key, section in kind.fit(rows).items():
        preset, _, part = key.partition("/")
        found.setdefault(preset, {})[part] = section
    return {preset: Profile(name=preset, gpu=preset, made="2026-11", sections=held) for preset, held in found.items()}


def column(rows, text):
    return np.full(len(next(iter(rows.values()))), text)


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("8xH100", "h100-sxm"),
        ("h-200", "h200-sxm"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm-80"),
        ("b300_sxm", "gb300-nvl72"),
        ("GB300 NVL72", "gb300-nvl72"),
        ("gb200_nvl72", "gb200-nvl72"),
        ("H800+CX7_400G", "h800-sxm"),
        ("NVIDIA H20", "h20"),
        ("L40-S", "l40s"),
        # Other memory, other links: a data sheet of the same name would be the wrong one.
        ("NVIDIA A100-SXM4-40GB", ""),
        ("NVIDIA H100 PCIe", ""),
        ("NVIDIA H100 NVL", ""),
        ("h200_nvl", ""),
        # Words that only look like a GPU's name.
        ("NVIDIA GH200 480GB", ""),
        ("eth100", ""),
        ("h1000", ""),
        ("MI355X", ""),
        ("a800_sxm", ""),
        ("RTX 4090", ""),
    ],
)
def test_a_name_means_the_board_whose_data_sheet_is_known_or_none(name, preset):
    assert preset_of(name) == preset


def test_every_preset_goes_by_its_own_name():
    assert {name: preset_of(name) for name in gpu_presets()} == {name: name for name in gpu_presets()}


def test_a_board_of_a_known_name_is_refused_for_what_it_is():
    assert "a board with other memory and links than h100-sxm" in unknown_system("NVIDIA H100 PCIe")
    assert "no GPU preset goes by the system name 'RTX 4090'" in unknown_system("RTX 4090")


def test_only_racks_join_neighbouring_nodes():
    assert in_rack(np.asarray(["gb200", "NVIDIA GB300", "b300_sxm", "b200_sxm", "h200"])).tolist() == [True, True, False, False, False]


def test_eight_b300_are_a_node_with_cards_between_nodes():
    kind, rows = table("deepep_ll_internode")
    two = take(rows, rows["node_num"] == 2)
    node = kind.machine({**two, "system": column(two, "b300_sxm")})
    rack = kind.machine({**two, "system": column(two, "gb300")})
    # Two nodes of eight cross cards; two trays of four are one domain of eight GPUs.
    assert (set(node["node_num"]), set(node["gpus_per_node"])) == ({2.0}, {8.0})
    assert (set(rack["node_num"]), set(rack["gpus_per_node"])) == ({1.0}, {8.0})
    assert node["link_bandwidth"].tolist() == rack["link_bandwidth"].tolist()


def test_low_latency_dispatch_sends_16_bits_where_there_is_no_fp8():
    kind, rows = table("deepep_ll_intranode")
    out = take(rows, rows["op"] == "dispatch")
    narrow = kind.inputs(out)["message_bytes"]
    wide = kind.inputs({**out, "system": column(out, "a100_sxm")})["message_bytes"]
    # 2 bytes for 1 and its share of a scale (1/32 byte), behind the same 16 bytes of header.
    assert np.allclose((wide - 16) / (narrow - 16), 2 / (1 + 4 / 128))
    assert kind.inputs({**out, "system": column(out, "l40s")})["message_bytes"].tolist() == narrow.tolist()


def test_another_machines_section_is_found_wherever_it_was_fitted():
    profile = next(iter(fitted("mori_dispatch_combine_amd").values()))
    section, carried = whose_section({"other": profile}, "h800-sxm", "mori_mesh.IntraNode.combine")
    assert section is profile.sections["mori_mesh.IntraNode.combine"]
    assert carried


def test_a_member_of_the_amd_family_is_fitted_and_asked_as_before():
    kind, rows = table("mori_dispatch_combine_amd")
    assert set(kind.presets(rows)) == {"mi300x"}
    assert kind.presets({**rows, "gpu": column(rows, "RTX 4090")}).tolist() == [""] * len(rows["gpu"])
    found = kind.predict({**rows, "gpu": column(rows, "mi400")}, fitted("mori_dispatch_combine_amd"))
    assert set(found.reasons) == {"no GPU preset goes by the system name 'mi400'" + unknown_system("mi400").partition("'mi400'")[2]}


def test_nccl_beyond_a_node_crosses_cards_and_beyond_a_tray_of_a_rack_does_not():
    kind, rows = table("nccl_alltoall_intranode")
    held = fitted("nccl_alltoall_intranode")
    eight = take(rows, (rows["num_gpus"] == 8) & (rows["system"] == "h200_sxm"))
    inside = kind.predict(eight, held).values
    found = {ranks: kind.predict({**eight, "num_gpus": column(eight, ranks)}, held) for ranks in (16, 32)}
    big = int(np.argmax(eight["bytes_per_rank"]))
    size = float(eight["bytes_per_rank"][big])
    for ranks, nodes in ((16, 2), (32, 4)):
        # Not faster than the card at its peak, and no more GPUs of one kind are faster than fewer.
        assert found[ranks].values[big] > size * (nodes - 1) / nodes / 50e9
        assert (found[ranks].values > inside).all()
        assert set(found[ranks].basis) == {"assumed"}
        assert found[ranks].outside.all()
        assert ((found[ranks].low < found[ranks].values) & (found[ranks].values < found[ranks].high)).all()
    assert (found[32].values > found[16].values).all()
    rack = kind.predict({**eight, "num_gpus": column(eight, 32), "system": column(eight, "gb200")}, held)
    # 16 times the bytes of one card's second pass NVLink's 900 GB/s: well below what 50 GB/s would take.
    assert rack.values[big] < size * (31 / 32) / 100e9


def test_nccl_between_nodes_is_never_fitted_as_if_it_were_one_node():
    kind, rows = table("nccl_alltoall_intranode")
    one = take(rows, rows["system"] == "h200_sxm")
    more = {**one, "num_gpus": column(one, 2 * NODE)}
    with pytest.raises(CalibrationError, match="every row has more than the 8 GPUs of a node"):
        kind.fit(more)
    both = {name: np.concatenate([values, more[name]]) for name, values in one.items()}
    assert kind.fit(both)["h200-sxm/nccl_all_to_all"].parameters == kind.fit(one)["h200-sxm/nccl_all_to_all"].parameters


FLOORED = ("h100_sxm", "a100_sxm", "b200_sxm", "b300_sxm", "gb200", "h20", "l40s", "mi300x")


@pytest.mark.parametrize("name", ["moe_ffn_h200", "moe_deepgemm_skew"])
def test_no_gpu_computes_experts_faster_than_its_data_sheet(name):
    kind, rows = table(name)
    some = take(rows, np.arange(0, len(rows["num_tokens"]), 37))
    for system in FLOORED:
        asked = {**some, "system": column(some, system)}
        values = kind.predict(asked, profiles_for(())).values
        for section in np.unique(kind.sections(asked)):
            mask = kind.sections(asked) == section
            given = kind.inputs(take(asked, mask))
            weights = 3 * given["hidden_size"] * given["inter_size"]
            reading = given["active"] * (weights * given["weight_bytes"] / given["memory_bandwidth"])[:, None]
            computing = given["routed"] * (2 * weights / given["peak_flops"])[:, None]
            assert (values[mask] >= np.maximum(reading, computing).mean(axis=1)).all(), (system, section)


def test_number_formats_go_by_the_names_that_libraries_print():
    names = (("BF16", "bfloat16"), ("torch.float8_e4m3fn", "fp8"), ("FP8_E5M2", "fp8"), ("half", "float16"), ("fp8_block", "fp8"))
    for name, known in names:
        assert format_of(name) == format_of(known)
    with pytest.raises(CalibrationError, match="'fp7' is not known"):
        format_of("fp7")


def test_a_larger_group_than_any_measured_is_flagged_although_the_model_says_that_it_costs_no_more():
    kind, rows = table("gb200_nvlink_moe_alltoall")
    held = fitted("gb200_nvlink_moe_alltoall")
    eight = take(rows, (rows["moe_ep_size"] == 8) & (rows["op_name"] != "alltoall_prepare"))
    own, more = (kind.predict({**eight, "moe_ep_size": column(eight, ranks)}, held) for ranks in (8, 32))
    assert not own.outside.any()
    assert more.outside.all()
    assert (np.log(more.high / more.low) > 1.9 * np.log(own.high / own.low)).all()


def test_blocks_of_fp8_take_the_launch_that_was_measured_with_fp8():
    kind, rows = table("gb200_nvlink_moe_alltoall")
    held = fitted("gb200_nvlink_moe_alltoall")
    sent = np.char.endswith(rows["op_name"].astype(str), "dispatch") & (rows["moe_dtype"].astype(str) == "fp8")
    some = take(rows, sent)
    own = kind.predict(some, held)
    other = kind.predict({**some, "moe_dtype": column(some, "fp8_block")}, held)
    assert other.values.tolist() == own.values.tolist()
    assert set(other.basis) == {"datasheet"}


def test_the_page_tells_how_badly_another_gpu_is_known():
    kind, rows = table("nccl_alltoall_intranode")
    measured, regimes, page = kind.seconds(rows), kind.regime(rows), (DOCS / "validation.md").read_text(encoding="utf-8")
    found = {}
    for system in ("a100_sxm", "h200_sxm"):
        mask = rows["system"] == system
        sections = kind.fit(take(rows, ~mask))
        (gpu,) = {key.partition("/")[0] for key in sections}
        held = Profile(name=gpu, gpu=gpu, made="2026-11", sections={key.partition("/")[2]: one for key, one in sections.items()})
        guess = kind.predict(take(rows, mask), {gpu: held})
        assert set(guess.basis) == {"datasheet"}
        off = 100 * (guess.values / measured[mask] - 1)
        inside = (guess.low <= measured[mask]) & (measured[mask] <= guess.high)
        for size in ("large", "small"):
            which = regimes[mask] == size
            found[system, size] = round(float(off[which].mean())), round(100 * float(inside[which].mean()))
    error, share = ({key: value[part] for key, value in found.items()} for part in (0, 1))
    large, small = error["a100_sxm", "large"], error["a100_sxm", "small"]
    assert f"is {-large} % too fast\n  at 16 MB and more, and {-small} % too fast below" in page
    assert f"it is {error['h200_sxm', 'large']} and {error['h200_sxm', 'small']} % too slow" in page
    assert f"So {share['a100_sxm', 'large']} and {share['h200_sxm', 'large']} % of the large calls" in page
    assert f"only {share['a100_sxm', 'small']} and {share['h200_sxm', 'small']} % of the small ones" in page
