"""Exchanges whose launches and ports come from a profile: by hand, in a run, outside the range, and from a file."""

import dataclasses

import numpy as np
import pytest

from moesim.base.errors import PluginError
from moesim.base.registry import plugin
from moesim.desk.profile_files import write_profile
from moesim.desk.scenario_file import load_scenario
from moesim.engine.simulate import simulate
from moesim.facts.profile import Parameter, Profile, Section
from moesim.facts.traffic import Exchange
from moesim.models.exchange.fitted_limits import low_latency_limits, nccl_limits, normal_limits, outside_profile
from moesim.models.fitted.deepep_low_latency import START_OF as LOW_LATENCY
from moesim.models.fitted.deepep_low_latency import DeepEpLowLatency
from moesim.models.fitted.deepep_normal import START_OF as NORMAL
from moesim.models.fitted.deepep_normal import DeepEpNormal
from moesim.models.fitted.nccl_all_to_all import START, NcclAllToAll

TEXT = """
name: fitted
seed: 3
steps: 1
model: {{preset: deepseek-v2-lite}}
cluster: {{kind: nvlink_nodes, gpu: h200-sxm, nodes: {nodes}, gpus_per_node: 8, nvlink_efficiency: 1, nic_efficiency: 1}}
parallel: {{ep: {ranks}}}
workload: {{phase: decode, tokens_per_gpu: 64}}
routing: {{kind: balanced}}
exchange: {exchange}
"""


def profile():
    """All kernels, with numbers that were written down."""
    sections = {"nccl_all_to_all": NcclAllToAll(**START).section()}
    for where in ("", "_internode"):
        for way in ("dispatch", "combine"):
            sections[f"deepep_low_latency{where}.{way}"] = DeepEpLowLatency(**LOW_LATENCY[way]).section()
            sections[f"deepep_normal{where}.{way}"] = DeepEpNormal(**NORMAL[way]).section()
    return Profile(name="mine", gpu="h200-sxm", made="2026-11", sections=sections)


def scenario(folder, *, exchange="{kind: direct}", nodes=1, ranks=8):
    path = folder / "s.yaml"
    path.write_text(TEXT.format(nodes=nodes, ranks=ranks, exchange=exchange))
    return load_scenario(path)


@pytest.fixture
def mine(tmp_path):
    write_profile(tmp_path / "mine.yaml", profile())
    return tmp_path


def _setting(given):
    from moesim.facts.scenario import Setting

    cluster = given.cluster.build()
    return Setting(
        cluster=cluster,
        model=given.model,
        parallel=given.parallel,
        workload=given.workload,
        seed=given.seed,
        read_trace=lambda *a, **k: None,
    )


def test_low_latency_launch_and_port_by_hand(mine):
    setting = _setting(scenario(mine))
    message = {"dispatch": 2048 + 64 + 16.0, "combine": 4096.0}
    found = low_latency_limits(profile(), setting, message)
    # One node, 64 experts: launch + per_expert E + per_byte m, and no network.
    assert found.launch(1e9, "dispatch") == pytest.approx(7e-6 + 1e-8 * 64 + 1.2e-10 * 2128)
    assert found.launch(0, "combine") == pytest.approx(8.6e-6 + 4e-9 * 64 + 1.07e-10 * 4096)
    # 64 blocks at 4 GB/s send 7/8 of what they copy to other GPUs: slower than 0.6 of NVLink. Combine: 0.5 of NVLink.
    there, back = min(0.6 * 450e9, 64 * 4e9 * 7 / 8), min(0.5 * 450e9, 64 * 28e9 * 7 / 8)
    assert found.port == pytest.approx((2128 + 4096) / (2128 / there + 4096 / back))


def test_two_nodes_add_the_network_and_four_the_crowd(mine):
    message = {"dispatch": 2128.0, "combine": 4096.0}
    launches = [
        low_latency_limits(profile(), _setting(scenario(mine, nodes=nodes, ranks=8 * nodes)), message).launch(0, "dispatch")
        for nodes in (1, 2, 4)
    ]
    assert launches[1] - launches[0] == pytest.approx(8e-6)
    assert launches[2] / launches[1] == pytest.approx(1 + 0.14 * 2 / 3)


def test_nccl_launch_grows_with_the_call(mine):
    found = nccl_limits(profile(), _setting(scenario(mine)))
    small, large = found.launch(1e3, "dispatch"), found.launch(1e9, "combine")
    assert small == pytest.approx(7e-6 + 6 * 2.5e-7, rel=0.03)
    # Ramp and protocol in full, and the copy of the own eighth: 1e9 * 8/7 / 8 bytes at 0.6 of 4.8 TB/s.
    assert large == pytest.approx(7e-6 + 6 * 2.5e-7 + 6e-6 + 25e-6 + 1e9 / 7 / (0.6 * 4.8e12), rel=0.01)
    assert found.port == pytest.approx(0.78 * 450e9 / (1 + 0.014 * 6))


def test_normal_port_follows_the_sms_until_nvlink_limits(mine):
    setting, message = _setting(scenario(mine)), {"dispatch": 2160.0, "combine": 4096.0}
    ports = {sms: normal_limits(profile(), setting, message, sms).port for sms in (4, 8, 100, 130)}
    assert ports[8] == pytest.approx(2 * ports[4])
    assert ports[130] == pytest.approx(ports[100])
    assert 0.7 * 450e9 < ports[130] < 0.76 * 450e9
    assert normal_limits(profile(), setting, message, None).port == normal_limits(profile(), setting, message, 20).port


def seconds_a_layer(given):
    """Transfer times of dispatch and combine of one layer in a run of 26."""
    metrics = simulate(given, read_trace=lambda path: None).metrics
    return {way: metrics[f"{way}_transfer_time"].value / 26 for way in ("dispatch", "combine")}


@pytest.mark.parametrize("kind", ["direct", "low_latency", "hierarchical"])
def test_a_run_takes_launches_of_both_ways_from_the_profile(mine, kind):
    plain = scenario(mine, exchange=f"{{kind: {kind}, launch: 0us}}")
    fitted = scenario(mine, exchange=f"{{kind: {kind}, launch: 0us, profile: mine.yaml}}")
    assert plain.exchange.fitted is None
    assert all(name.startswith(("nccl", "deepep")) for name in fitted.exchange.fitted.sections)
    without, found = seconds_a_layer(plain), seconds_a_layer(fitted)
    # 64 tokens are few bytes: what the profile adds is the launch, another one each way.
    limits = fitted.exchange.begin(_setting(fitted)).limits
    for way in ("dispatch", "combine"):
        assert 0.9 * limits.launch(0, way) < found[way] - without[way] < 1.35 * limits.launch(1e6, way)


def test_a_run_of_many_tokens_takes_what_the_fitted_model_says(mine):
    given = scenario(mine, exchange="{kind: low_latency, profile: mine.yaml}")
    given = dataclasses.replace(given, workload=dataclasses.replace(given.workload, phase="prefill", tokens_per_gpu=4096))
    found = seconds_a_layer(given)
    shape = {"tokens_per_rank": 4096.0, "num_topk": 6.0, "num_experts": 64.0, "node_num": 1.0, "gpus_per_node": 8.0}
    told = {}
    for way, size in (("dispatch", 2128.0), ("combine", 4096.0)):
        values = {**shape, "message_bytes": size, "link_bandwidth": 450e9, "nic_bandwidth": 50e9}
        told[way] = DeepEpLowLatency(**LOW_LATENCY[way]).predict({name: np.asarray([value]) for name, value in values.items()})[0]
    # One port serves both ways, so only their sum is that of the model; its rounded corner between NVLink and blocks is not simulated.
    assert sum(found.values()) == pytest.approx(sum(told.values()), rel=0.08)


def test_without_a_profile_nothing_changes(mine):
    exchange = scenario(mine, exchange="{kind: low_latency}").exchange
    setting = _setting(scenario(mine))
    carrier = exchange.begin(setting)
    assert carrier.limits is None
    assert carrier.port == np.inf


def test_a_profile_without_the_kernels_is_refused(mine):
    given = _setting(scenario(mine))
    bare = dataclasses.replace(profile(), sections={"expert_ffn": profile().sections["nccl_all_to_all"]})
    with pytest.raises(PluginError, match=r"has no section 'deepep_low_latency\.dispatch'"):
        plugin("exchange", "low_latency")(fitted=bare).begin(given)


def test_a_run_outside_the_range_says_so(mine):
    given = scenario(mine, nodes=4, ranks=32)
    cluster = given.cluster.build()
    section = dataclasses.replace(
        profile().sections["deepep_low_latency_internode.dispatch"], fitted_range={"node_num": (1.0, 2.0), "num_topk": (6.0, 8.0)}
    )
    other = Profile(name="mine", gpu="h100-sxm", made="2026-11", sections={"deepep_low_latency_internode.dispatch": section})
    told = outside_profile(plugin("exchange", "low_latency")(fitted=other), given, cluster)
    assert "node_num 4 (fitted on 1 to 2)" in told
    assert "num_topk" not in told
    assert "fitted on h100-sxm and the cluster has h200-sxm" in told
    assert outside_profile(plugin("exchange", "low_latency")(), given, cluster) == ""


def changed(name, **values):
    """The profile with other numbers in one kernel's sections."""
    held = profile()
    sections = dict(held.sections)
    for key, section in held.sections.items():
        if key.startswith(name + "."):
            model = DeepEpNormal if "normal" in key else DeepEpLowLatency
            sections[key] = model(**{**section.values(), **values}).section()
    return dataclasses.replace(held, sections=sections)


def test_groups_that_cross_nodes_use_what_was_measured_between_nodes(mine):
    message = {"dispatch": 2128.0, "combine": 4096.0}
    one, two = (_setting(scenario(mine, nodes=nodes, ranks=8 * nodes)) for nodes in (1, 2))
    slow = changed("deepep_low_latency_internode", launch=1e-3)
    assert low_latency_limits(slow, two, message).launch(0, "dispatch") > 1e-3
    assert low_latency_limits(slow, one, message).launch(0, "dispatch") < 1e-4


def test_the_work_of_the_network_kernel_counts_between_nodes_only(mine):
    message = {"dispatch": 2160.0, "combine": 4096.0}
    one, two = (_setting(scenario(mine, nodes=nodes, ranks=8 * nodes)) for nodes in (1, 2))
    plain = [normal_limits(profile(), setting, message, 4).port for setting in (one, two)]
    for name in ("deepep_normal", "deepep_normal_internode"):
        twice = changed(name, network_work=3.0)
        ports = [normal_limits(twice, setting, message, 4).port for setting in (one, two)]
        assert ports[0] == plain[0]
        assert ports[1] == pytest.approx(plain[1] / 2 if "internode" in name else plain[1])


def test_an_exchange_may_launch_its_two_ways_apart():
    assert [Exchange(dispatch=(), combine=(), launch=1.0).launch_of(way) for way in ("dispatch", "combine")] == [1.0, 1.0]
    apart = Exchange(dispatch=(), combine=(), launch=1.0, combine_launch=3.0)
    assert [apart.launch_of(way) for way in ("dispatch", "combine")] == [1.0, 3.0]


def test_a_run_waits_for_the_launch_of_each_way(mine):
    exchange = scenario(mine, exchange="{kind: low_latency, profile: mine.yaml}").exchange
    slow = dataclasses.replace(
        exchange,
        fitted=dataclasses.replace(
            profile(),
            sections={
                **profile().sections,
                "deepep_low_latency.combine": DeepEpLowLatency(**{**LOW_LATENCY["combine"], "launch": 1e-3}).section(),
            },
        ),
    )
    found = seconds_a_layer(dataclasses.replace(scenario(mine), exchange=slow))
    assert found["combine"] > 1e-3
    assert found["dispatch"] < 1e-4


def test_a_run_that_overlaps_says_what_its_exchange_loses_beside_experts(mine):
    given = scenario(mine)
    cluster = given.cluster.build()
    lost = Section(model="overlap", parameters=(Parameter(name="exchange_lost", value=0.35, unit="", basis="fitted", source="", date=""),))
    other = Profile(name="mine", gpu="h200-sxm", made="2026-11", sections={"overlap.nccl": lost})
    exchange = plugin("exchange", "low_latency")(fitted=other)
    assert outside_profile(exchange, given, cluster) == ""
    overlapping = dataclasses.replace(given, schedule=plugin("schedule", "two_batch")())
    assert "lose 35 % of its rate beside experts" in outside_profile(exchange, overlapping, cluster)
