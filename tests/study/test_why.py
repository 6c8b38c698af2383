"""Why a step is slow: each change does what it says, and nothing else."""

import dataclasses

import numpy as np
import pytest
from worlds import no_trace, play, small_model

from moesim.base.registry import plugin
from moesim.facts.ranks import Ranks
from moesim.facts.scenario import Parallel, Policy, Rebalance, Scenario, Setting, Workload
from moesim.models.what_if import EvenLayers, FasterLinks, NoLaggards, even_layer
from moesim.study.why import explain


def scenario(**changes):
    plain = Scenario(
        name="skewed",
        seed=4,
        steps=3,
        model=small_model(16, 2),
        cluster=plugin("topology", "one_switch")(gpus=4),
        parallel=Parallel(ep=4),
        workload=Workload(tokens_per_gpu=256, phase="prefill"),
        routing=plugin("source", "imbalance")(workload="W2_hot_rank", heat=8.0),
    )
    return dataclasses.replace(plain, **changes)


def setting_of(case):
    return Setting(
        cluster=case.cluster.build(), model=case.model, parallel=case.parallel, workload=case.workload, seed=case.seed, read_trace=no_trace
    )


def test_the_hot_rank_is_named_and_taking_it_away_helps():
    found = explain(scenario(), read_trace=no_trace)
    changes = {what_if.name: what_if for what_if in found.what_ifs}
    # W2 puts the heat on rank 0: its experts are on every path, and levelling them gains, whatever else does.
    by_experts = {name.split(",")[0] for name in found.shares["experts"]}
    assert by_experts == {"GPU 0"}
    assert changes["GPU 0 not late"].gain > 0
    assert [what_if.gain for what_if in found.what_ifs] == sorted((what_if.gain for what_if in found.what_ifs), reverse=True)
    step = found.result.metrics["step_time"].value
    for shares in (found.shares["phase"], found.shares["gpu"], found.shares["layer"]):
        assert sum(shares.values()) == pytest.approx(step, rel=1e-7)


def test_a_change_is_the_same_run_with_that_change():
    case = scenario()
    found = {what_if.name: what_if for what_if in explain(case, read_trace=no_trace).what_ifs}
    links = [name for name in found if name.endswith(" x 2")]
    assert links
    cluster = case.cluster.build()
    for name in links:
        kind = name.removesuffix(" x 2")
        names = frozenset(link for link, its in zip(cluster.link_names, cluster.link_class, strict=True) if kind in (link, its))
        faster = play(dataclasses.replace(case, cluster=FasterLinks(base=case.cluster, links=names, factor=2.0)))
        assert found[name].step_time == faster.metrics["step_time"].value


def test_faster_links_change_their_bandwidth_only():
    base = plugin("topology", "one_switch")(gpus=3)
    before = base.build()
    chosen = before.link_names[1]
    after = FasterLinks(base=base, links=frozenset({chosen}), factor=2.0).build()
    assert (after.bandwidth / before.bandwidth).tolist() == [2.0 if name == chosen else 1.0 for name in before.link_names]
    assert np.array_equal(after.latency, before.latency)
    assert np.array_equal(after.route_link, before.route_link)


def test_even_layers_keep_tokens_sources_and_all_other_layers():
    case = scenario(routing=plugin("source", "imbalance")(workload="W4_source_ragged"))
    setting = setting_of(case)
    given = case.routing.begin(setting)(1)
    changed = EvenLayers(base=case.routing, layers=frozenset({1})).begin(setting)(1)
    assert np.array_equal(changed.layers[0].ids, given.layers[0].ids)
    assert np.array_equal(changed.layers[1].token_start, given.layers[1].token_start)
    assert np.array_equal(changed.layers[1].counts.sum(axis=1), given.layers[1].counts.sum(axis=1))
    load = changed.layers[1].counts.sum(axis=0)
    assert load.max() - load.min() <= 2 * setting.gpus  # ragged sources are cut from even ones: rounding of each source
    assert (np.diff(np.sort(changed.layers[1].ids, axis=1), axis=1) > 0).all()


def test_even_layer_of_counts_spreads_what_does_not_divide_in_turn():
    case = scenario()
    layer = case.routing.begin(setting_of(case))(0).layers[0]
    counts = dataclasses.replace(layer, ids=None, weights=None, counts=np.array([[7, 0, 0], [0, 5, 0]]), experts=3)
    even = even_layer(counts, np.random.default_rng(0))
    # 7 = 2 + 2 + 2 and one more to expert 0; 5 = 1 + 1 + 1 and two more, to experts 1 and 2.
    assert even.counts.tolist() == [[3, 2, 2], [1, 2, 2]]


def test_no_laggards_cuts_to_the_mean_of_the_others_and_never_adds():
    case = scenario()
    rows = np.array([[900, 0, 0, 0], [10, 10, 10, 10], [10, 10, 10, 10], [10, 10, 10, 10]])
    setting = setting_of(case)
    before = case.compute.begin(setting).experts(rows, direction="forward")
    after = NoLaggards(base=case.compute, gpus=frozenset({0})).begin(setting).experts(rows, direction="forward")
    assert after[0] == pytest.approx(min(before[0], before[1:].mean()))
    assert np.array_equal(after[1:], before[1:])


def test_free_rebalancing_is_at_least_as_fast_and_moves_nothing():
    eplb = plugin("placement", "eplb")(redundant=4, window=1, interval=1)
    case = scenario(policy=Policy(placement=eplb, rebalance=Rebalance(mode="sync")), steps=4)
    found = explain(case, read_trace=no_trace)
    paid = found.result.tables["rebalances"]
    assert paid["bytes"].sum() > 0
    free = play(dataclasses.replace(case, policy=dataclasses.replace(case.policy, rebalance=Rebalance(mode="free"))))
    table = free.tables["rebalances"]
    assert table["bytes"].sum() == 0
    assert table["stall_s"].sum() == 0
    assert np.array_equal(table["in_place_step"], table["step"])
    assert np.array_equal(table["copies"], paid["copies"])
    # What it is worth are the stalls, too: they lie between steps, and are most of what moving costs here.
    stall = paid["stall_s"].sum() / len(found.result.tables["steps"])
    (gain,) = (what_if.gain for what_if in found.what_ifs if what_if.name == "rebalancing free")
    assert gain == pytest.approx(found.result.metrics["net_step_time"].value - free.metrics["net_step_time"].value)
    assert gain >= 0.9 * stall > 0
    assert found.seconds == pytest.approx(found.result.metrics["step_time"].value + stall)
    # The bounds take no stalls away.
    (bound,) = (what_if for what_if in found.what_ifs if what_if.name == "no communication")
    assert bound.step_time == pytest.approx(found.result.metrics["step_time_if_no_communication"].value + stall)


def test_equal_ranks_are_asked_about_where_they_are_unequal():
    workload = Workload(tokens_per_gpu=256, phase="prefill", ranks=Ranks(variation=0.8, idle=0.25))
    unequal = {what_if.name: what_if for what_if in explain(scenario(workload=workload), read_trace=no_trace).what_ifs}
    plain = {what_if.name: what_if for what_if in explain(scenario(), read_trace=no_trace).what_ifs}
    assert unequal["ranks equal"].gain > 0
    assert unequal["ranks equal"].step_time == play(scenario()).metrics["step_time"].value
    assert "ranks equal" not in plain
