"""Steps that are worked out at once: the same as steps that processes play, event by event, to the last bit."""

import dataclasses

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import play, small_model

from moesim.base.errors import LawBroken
from moesim.base.registry import plugin
from moesim.engine import chain as chain_module
from moesim.engine.fabric import Fabric
from moesim.engine.machine import Machine
from moesim.facts.scenario import Parallel, Policy, Rebalance, Scenario, Sharing, Workload
from moesim.models.sharing import groups
from moesim.models.topology.nvlink_nodes import NvlinkNodes


def world(**more) -> Scenario:
    parts = {
        "name": "chain",
        "steps": 2,
        "model": small_model(8, 2),
        "cluster": NvlinkNodes(nodes=4, gpus_per_node=2, oversubscription=2.0, nodes_per_leaf=1),
        "parallel": Parallel(ep=8),
        "workload": Workload(phase="training", tokens_per_gpu=40),
        "routing": plugin("source", "power_law")(alpha=1.0),
    }
    return Scenario(**{**parts, **more})


def chains(monkeypatch):
    """Return a list that grows by one for each step: whether it was worked out at once."""
    seen = []
    inner = Machine._chain

    def watched(self, load):
        chain = inner(self, load)
        seen.append(chain is not None)
        return chain

    monkeypatch.setattr(Machine, "_chain", watched)
    return seen


def by_processes(scenario):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Machine, "_chain", lambda self, load: None)
        return play(scenario)


def assert_same(one, other, *, links=None):
    """Compare all tables to the last bit, but for floats of links if they may differ by so much."""
    assert one.tables.keys() == other.tables.keys()
    for name, table in one.tables.items():
        for column, values in table.columns.items():
            expected = other.tables[name][column]
            assert values.dtype == expected.dtype, (name, column)
            if links is not None and name == "links" and values.dtype.kind == "f":
                np.testing.assert_allclose(values, expected, rtol=links, err_msg=f"{name}.{column}")
            else:
                np.testing.assert_array_equal(values, expected, err_msg=f"{name}.{column}")
    shared, expected = one.facts["sharing"], other.facts["sharing"]
    assert shared["drain_ratio"] == pytest.approx(expected["drain_ratio"], rel=1e-12)  # from bytes and seconds of links
    assert {**shared, "drain_ratio": 0, "repeated": 0} == {**expected, "drain_ratio": 0, "repeated": 0}
    for metric, values in one.samples.items():
        np.testing.assert_allclose(values, other.samples[metric], rtol=0 if links is None else links, err_msg=metric)


EXCHANGES = {
    "direct": plugin("exchange", "direct")(),
    "no launch": plugin("exchange", "direct")(launch=0.0),
    "barrier": plugin("exchange", "direct")(start="barrier"),
    "ports": plugin("exchange", "direct")(communication_sms=2),
    "two stages": plugin("exchange", "hierarchical")(),
    "all to all of them": plugin("exchange", "allgather")(),
}


@pytest.mark.parametrize("ep", [8, 4, 2])
@pytest.mark.parametrize("name", EXCHANGES)
def test_a_step_at_once_is_the_step_of_processes(name, ep, monkeypatch) -> None:
    # System: skewed routing on two tiers; one group, two, and four; dispatch and combine of one leg or two, forward and backward. One
    # implementation hands SimPy every arrival and end, the other works them out by itself.
    scenario = world(exchange=EXCHANGES[name], parallel=Parallel(ep=ep))
    expected = by_processes(scenario)
    seen = chains(monkeypatch)
    assert_same(play(scenario), expected, links=1e-12)
    assert seen == [True] * 3  # two steps, and the balanced one beside them


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), tokens=st.integers(1, 30), alpha=st.floats(0.0, 3.0), phase=st.sampled_from(["decode", "training"]))
def test_any_routing_gives_the_same_step_both_ways(seed, tokens, alpha, phase) -> None:
    # Few tokens: ranks that send or receive nothing, and ranks that come while others are still in the exchange before.
    scenario = world(seed=seed, workload=Workload(phase=phase, tokens_per_gpu=tokens), routing=plugin("source", "power_law")(alpha=alpha))
    assert_same(play(scenario), by_processes(scenario), links=1e-12)


def test_flows_that_outgrow_the_tables_of_the_core_change_nothing(monkeypatch) -> None:
    # System: 48 ranks, 2,256 flows an exchange, in few busy periods; tables begin with room for 256 flows, and lists of links with room for
    # none. Both must grow while compiled code plays.
    grown = {"tables": 0, "lists": 0}
    for name, what in (("_room", "tables"), ("make_room", "lists")):

        def counted(self, *given, inner=getattr(groups.GroupsCore, name), what=what):  # noqa: B008
            grown[what] += 1
            return inner(self, *given)

        monkeypatch.setattr(groups.GroupsCore, name, counted)
    scenario = world(
        steps=1,
        model=small_model(48, 4),
        cluster=NvlinkNodes(nodes=12, gpus_per_node=4, oversubscription=2.0, nodes_per_leaf=4),
        parallel=Parallel(ep=48),
        workload=Workload(phase="training", tokens_per_gpu=64),
        sharing=Sharing(repeats=False),
    )
    seen = chains(monkeypatch)
    result = play(scenario)
    assert seen[0]
    assert grown["tables"] > 0
    assert grown["lists"] > 0
    assert_same(result, by_processes(scenario), links=1e-12)


def test_numbers_of_flows_that_have_ended_are_used_again_both_ways(monkeypatch) -> None:
    # System: 24 ranks over slow cards, 9 layers, 19,872 flows in a step whose links are hardly ever all idle. Numbers are used again when
    # more than 4,096 are in use and three in four of their flows have ended.
    purged = []
    inner = groups.GroupsCore._purge
    monkeypatch.setattr(groups.GroupsCore, "_purge", lambda self: (purged.append(self.live), inner(self))[1])
    scenario = world(
        steps=1,
        model=small_model(24, 4, layers=10),
        cluster=NvlinkNodes(nodes=24, gpus_per_node=1, nic=1e8),
        parallel=Parallel(ep=24),
        sharing=Sharing(repeats=False),
    )
    seen = chains(monkeypatch)
    result = play(scenario)
    assert seen[0]
    assert purged
    assert_same(result, by_processes(scenario), links=1e-12)


def test_a_step_of_more_flows_than_fit_is_played_by_processes(monkeypatch) -> None:
    # A leg of 8 ranks has 56 flows of 20 B, if all send to all: 100 B are not enough for one.
    monkeypatch.setattr("moesim.engine.chain.MOST_BYTES", 100)
    seen = chains(monkeypatch)
    play(world())
    assert seen == [False] * 3


@pytest.mark.parametrize(("start", "balanced"), [("barrier", False), ("pairwise", True)])
def test_exchanges_that_come_again_behind_barriers_are_looked_up(start, balanced, monkeypatch) -> None:
    # Balanced layers are all alike. Behind a barrier their flows begin together, so that one layer is worked out and the others are looked
    # up; else ranks come to each a little differently. Each of 8 ranks has 7 flows in a leg.
    monkeypatch.setattr("moesim.engine.chain.MANY_FLOWS", 7)
    seen = chains(monkeypatch)
    scenario = world(exchange=plugin("exchange", "direct")(start=start), model=small_model(8, 2, layers=6))
    result = play(scenario)
    assert seen == [True, True, balanced]
    assert_same(result, by_processes(scenario), links=1e-12)


def test_l2_bytes_that_get_lost_on_the_way_into_a_step_worked_out_at_once_are_noticed(monkeypatch) -> None:
    # What is asked for is added up from the matrices of the exchanges, what is carried from the ends of flows.
    def short(stage, inner=chain_module._pairs):
        sender, receiver, size = inner(stage)
        return sender, receiver, size * np.where(np.arange(len(size)) == 0, 0.5, 1.0)

    monkeypatch.setattr(chain_module, "_pairs", short)
    with pytest.raises(LawBroken, match=r"law L2 \(bytes\): .*asked"):
        play(world())


OTHERS = {
    "messages that cost time": {"exchange": plugin("exchange", "direct")(overhead=1e-7)},
    "few messages in flight": {"exchange": plugin("exchange", "direct")(in_flight=2)},
    "quanta": {"sharing": Sharing(mode="fast")},
    "gradients beside": {"schedule": plugin("schedule", "overlapped_gradients")()},
    "shared experts beside": {"schedule": plugin("schedule", "two_batch")(), "workload": Workload(phase="prefill", tokens_per_gpu=40)},
    "nobody to send to": {"parallel": Parallel(ep=1)},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_steps_are_played_by_processes(name, monkeypatch) -> None:
    seen = chains(monkeypatch)
    play(world(**OTHERS[name]))
    assert seen
    assert not any(seen)


def test_weights_that_move_beside_a_step_are_noticed(monkeypatch) -> None:
    # System: EPLB moves experts after the first step while the second runs. Steps in which something else moves are played by processes.
    scenario = world(
        steps=6,
        workload=Workload(phase="decode", tokens_per_gpu=40),
        policy=Policy(placement=plugin("placement", "eplb")(redundant=8, window=2, interval=2), rebalance=Rebalance(mode="async")),
    )
    expected = by_processes(scenario)
    seen = chains(monkeypatch)
    assert_same(play(scenario), expected, links=1e-12)
    assert seen[0]
    assert not all(seen)
    assert len(expected.tables["rebalances"]["step"])


def test_a_fabric_is_not_lent_while_something_is_on_its_way() -> None:
    env = simpy.Environment()
    fabric = Fabric(env, NvlinkNodes(nodes=1, gpus_per_node=2).build())
    assert fabric.lendable
    fabric.transfer(np.array([0]), np.array([1]), np.array([1e9]), np.full((1, 2), fabric.watch(lambda: None), dtype=np.int32))
    assert not fabric.lendable
    env.run(until=1e-4)
    assert not fabric.lendable
    env.run()
    assert fabric.lendable


def test_scenarios_with_equal_ties_keep_their_order() -> None:
    # System: every rank computes and sends the same, so all arrive and leave at the same instants: what happens first is a matter of order.
    scenario = dataclasses.replace(world(), routing=plugin("source", "balanced")(), sharing=Sharing(repeats=False))
    assert_same(play(scenario), by_processes(scenario), links=1e-12)
