"""Experts that move during a run: what the policy sees, what it costs, when it takes effect."""

import dataclasses

import numpy as np
import pytest
from worlds import play, small_model

from moesim.base.errors import PluginError
from moesim.base.registry import plugin
from moesim.facts.contracts import View
from moesim.facts.placement import Placement
from moesim.facts.scenario import Parallel, Policy, Rebalance, Scenario, Workload
from moesim.models.memory import expert_bytes
from moesim.models.topology.one_switch import OneSwitch


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """Swap experts 0 and E - 1 before one step; remember what was seen."""

    at: int = 2
    seen: list = dataclasses.field(default_factory=list)
    kind = "swap"

    def begin(self, setting):
        experts, ranks, layers = setting.model.experts, setting.parallel.ep, len(setting.model.moe_layers)
        rank = np.repeat(np.arange(ranks), experts // ranks)

        def plan(view: View):
            self.seen.append((view.step, len(view.loads)))
            if view.placement is None:
                return Placement(expert_of_slot=np.tile(np.arange(experts), (layers, 1)), rank_of_slot=rank)
            if view.step != self.at:
                return None
            swapped = view.placement.expert_of_slot.copy()
            swapped[:, [0, -1]] = swapped[:, [-1, 0]]
            return Placement(expert_of_slot=swapped, rank_of_slot=rank)

        return plan


def scenario(placement, *, steps=5, phase="prefill", **rules):
    return Scenario(
        name="moving",
        steps=steps,
        model=small_model(8, 2),
        cluster=OneSwitch(gpus=4),
        parallel=Parallel(ep=4),
        workload=Workload(tokens_per_gpu=16, phase=phase),
        routing=plugin("source", "uniform")(),
        policy=Policy(placement=placement, rebalance=Rebalance(**rules)),
    )


def test_l12_the_policy_is_asked_before_every_step_and_sees_the_steps_before_it():
    swap = Swap()
    play(scenario(swap))
    assert swap.seen == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]


@pytest.mark.parametrize("phase", ["prefill", "training"])
def test_a_swap_moves_two_experts_of_each_layer_and_stops_the_world(phase):
    """Two MoE layers, two experts each go the other way: 4 copies. The two ways do not share a link: the stall is two experts' time."""
    world = scenario(Swap(), phase=phase, planner_time=0.25)
    result = play(world)
    table = result.tables["rebalances"]
    each = expert_bytes(world.model, phase)
    assert table["step"].tolist() == [2]
    assert table["copies"].tolist() == [4]
    assert table["bytes"].tolist() == [4 * each]
    cluster = world.cluster.build()
    route = cluster.route(0, 3)
    wanted = 2 * each / cluster.bandwidth[route].min() + cluster.latency[route].sum()
    assert table["transfer_s"][0] == pytest.approx(wanted, rel=1e-9)
    assert table["stall_s"][0] == pytest.approx(0.25 + wanted, rel=1e-9)
    # The stall lies between two steps, and the clock goes on.
    steps = result.tables["steps"]
    gap = steps["start_s"][2] - (steps["start_s"][1] + steps["step_time_s"][1])
    assert gap == pytest.approx(table["stall_s"][0], rel=1e-9)
    assert result.metrics["migrated_bytes"].value == pytest.approx(4 * each / 5)


def test_training_moves_optimiser_states_unless_told_otherwise():
    model = small_model(8, 2)
    # 16 B per parameter more: gradients and optimiser states.
    assert expert_bytes(model, "training") - expert_bytes(model, "prefill") == 16 * model.expert_parameters
    light = play(scenario(Swap(), phase="training", optimiser=False)).tables["rebalances"]["bytes"][0]
    assert light == 4 * expert_bytes(model, "prefill")


def test_asynchronous_layers_follow_each_other_and_nothing_stops():
    """One layer per step: decided before step 2, sent in steps 2 and 3, all in place from step 4 on; no time between steps."""
    result = play(scenario(Swap(), steps=6, mode="async"))
    table = result.tables["rebalances"]
    assert table["stall_s"].tolist() == [0.0]
    assert table["in_place_step"].tolist() == [4]
    steps = result.tables["steps"]
    ends = steps["start_s"] + steps["step_time_s"]
    assert steps["start_s"][1:] == pytest.approx(ends[:-1], rel=1e-12)


def test_weights_on_their_way_contend_with_tokens():
    """The steps in which weights travel take longer than the same steps without. Experts are wide here: their weights take a whole step."""

    def transfers(at):
        wide = dataclasses.replace(small_model(8, 2), expert_width=65536)
        world = dataclasses.replace(scenario(Swap(at=at), steps=6, mode="async"), model=wide)
        return play(world).tables["steps"]["dispatch_transfer_s"]

    still, moving = transfers(99), transfers(2)
    assert moving[:2] == pytest.approx(still[:2], rel=1e-9)
    assert moving[2:4].sum() > still[2:4].sum()


def test_a_planner_that_takes_longer_than_the_run_changes_nothing():
    result = play(scenario(Swap(), mode="async", planner_time=1e3))
    assert result.tables["rebalances"]["in_place_step"].tolist() == [-1]


def test_a_rebalance_that_moves_slots_between_ranks_is_refused():
    class Crooked(Swap):
        def begin(self, setting):
            inner = Swap.begin(self, setting)

            def plan(view):
                new = inner(view)
                if new is None or view.placement is None:
                    return new
                return Placement(expert_of_slot=new.expert_of_slot, rank_of_slot=new.rank_of_slot[::-1].copy())

            return plan

    with pytest.raises(PluginError, match="may not change how many slots a rank has"):
        play(scenario(Crooked()))


def test_eplb_evens_out_a_skewed_router_from_its_first_rebalance_on():
    """A recording-like skew that stays: after the rebalance the fullest rank has less than before."""
    eplb = plugin("placement", "eplb")(redundant=4, window=2, interval=3)
    world = dataclasses.replace(scenario(eplb, steps=6), routing=plugin("source", "power_law")(), seed=3)
    result = play(world)
    first = int(result.tables["rebalances"]["step"][0])
    layers = result.tables["layers"]
    fullest = layers["rank_max"] / layers["rank_mean"]
    assert fullest[layers["step"] >= first].mean() < fullest[layers["step"] < first].mean()


def test_chunks_of_layers_stop_the_world_one_after_the_other_and_are_planned_once():
    """SGLang's: planned before step 3, layer 0 changes before step 4 and layer 1 before step 5; the planner works for the first only."""
    sglang = plugin("placement", "eplb_sglang")(redundant=4, interval=3, layers_per_chunk=1)
    world = dataclasses.replace(scenario(sglang, steps=7, planner_time=0.5), routing=plugin("source", "power_law")(), seed=3)
    table = play(world).tables["rebalances"]
    assert table["step"].tolist() == [4, 5]
    assert table["in_place_step"].tolist() == [4, 5]
    assert table["layers"].tolist() == [1, 1]
    assert table["planner_s"].tolist() == [0.5, 0.0]
    assert table["stall_s"] == pytest.approx(table["planner_s"] + table["transfer_s"])
    at_once = dataclasses.replace(
        world, policy=dataclasses.replace(world.policy, placement=dataclasses.replace(sglang, layers_per_chunk=None))
    )
    whole = play(at_once).tables["rebalances"]
    assert whole["step"].tolist() == [3, 6]
    assert whole["layers"][0] == 2
    assert whole["bytes"][0] == table["bytes"].sum()


def test_an_interval_shorter_than_an_asynchronous_rebalance_is_stretched_and_said():
    """Two layers arrive in two steps: planned before step 1, in place before step 3, when the plan is asked again, not before 2."""
    eplb = plugin("placement", "eplb")(redundant=4, window=1, interval=1)
    world = dataclasses.replace(scenario(eplb, steps=9, mode="async"), routing=plugin("source", "power_law")(redraw="step"), seed=3)
    result = play(world)
    moves = result.tables["rebalances"]
    assert moves["step"].tolist() == [1, 3, 5, 7]
    assert moves["in_place_step"].tolist()[:-1] == [3, 5, 7]
    assert any("took longer than policy.placement.interval (1 steps" in text for text in result.warnings)
    patient = dataclasses.replace(world, policy=dataclasses.replace(world.policy, placement=dataclasses.replace(eplb, interval=4)))
    assert not any("policy.placement.interval" in text for text in play(patient).warnings)


def test_a_rebalance_that_does_not_arrive_in_the_run_is_said():
    result = play(scenario(Swap(), mode="async", planner_time=1e3))
    assert any("before step 2 was not in place when the run ended" in text for text in result.warnings)


@pytest.mark.parametrize("when", ["first", "later"])
def test_what_is_no_placement_is_refused_by_its_type(when):
    @dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
    class Odd:
        kind = "odd"

        def begin(self, setting):
            good = Swap(at=99).begin(setting)
            return lambda view: view.loads if (view.placement is None) == (when == "first") else good(view)

    with pytest.raises(PluginError, match="placement 'odd' returned ndarray, expected a Placement"):
        play(scenario(Odd()))


@pytest.mark.parametrize("kind", ["llep", "fastermoe", "laer", "flexmoe"])
def test_a_planner_of_batches_is_asked_for_each_layer_and_its_weights_are_charged(kind):
    """Skewed routing: the fullest GPU computes fewer rows than with experts in order, and weights travel beside the tokens."""
    present = {"plan_from": "present"}
    options = {"llep": {"least_rows": 1, "threshold": 1.0}, "laer": present, "flexmoe": present}.get(kind, {})
    base = scenario(plugin("placement", "contiguous")(), steps=2)
    work = Workload(tokens_per_gpu=512, phase="prefill")
    skewed = dataclasses.replace(base, routing=plugin("source", "power_law")(), seed=3, workload=work)
    plain = play(skewed)
    planned = play(dataclasses.replace(skewed, policy=Policy(placement=plugin("placement", kind)(**options))))
    bytes_of = [result.tables["layers"]["dispatch_bytes"].sum() for result in (plain, planned)]
    rows_of = [result.tables["layers"]["rank_max"].sum() for result in (plain, planned)]
    assert rows_of[1] <= rows_of[0]
    if kind == "llep":
        assert rows_of[1] < rows_of[0]
        assert bytes_of[1] > 0
        guests = planned.tables["gpus"]["peak_memory_bytes"] - plain.tables["gpus"]["peak_memory_bytes"]
        assert guests.max() > 0
    assert planned.tables["layers"]["kept"].tolist() == plain.tables["layers"]["kept"].tolist()
