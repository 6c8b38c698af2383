"""Placements that change during a run: when they plan, from what, and what changes."""

import dataclasses

import numpy as np
import pytest
from routings import random_routing, world

from moesim.base.errors import FidelityError, FieldError, PluginError
from moesim.base.registry import plugin
from moesim.engine.check import least_bytes
from moesim.facts.contracts import View
from moesim.facts.placement import Placement
from moesim.models.placement.eplb_plan import plan_eplb, plan_global
from moesim.models.placement.eplb_trtllm_plan import plan_trtllm
from moesim.models.placement.eplb_vllm_plan import plan_vllm
from moesim.models.placement.group_sizes import group_sizes, nodes_of_group
from moesim.models.placement.simple_plans import plan_greedy
from moesim.models.placement.topology_plan import plan_topology
from moesim.models.placement.utilisation import loads_of_ranks, mean_utilisation, relative_gain
from moesim.testing import check_placement
from moesim.testing.world import tiny_cluster, tiny_setting

KINDS = {"biased": {}, "eplb": {}, "eplb_sglang": {}, "eplb_trtllm": {}, "eplb_vllm": {}, "greedy": {}, "topology": {"sources": "even"}}


def history(steps=30, layers=2, experts=8, seed=3):
    rng = np.random.default_rng(seed)
    return rng.poisson(np.exp(rng.normal(3, 1, (layers, experts))), (steps, layers, experts))


def play(policy, setting, loads, recent=()):
    """Return the answer of each step, and the placement in place in it."""
    plan = policy.begin(setting)
    present, answers, placements = None, [], []
    for step in range(len(loads)):
        answers.append(plan(View(step=step, loads=loads[:step], placement=present, recent=recent[:step])))
        present = answers[-1] or present
        placements.append(present)
    return answers, placements


def changes(answers):
    return [step for step, answer in enumerate(answers) if answer is not None]


def make(kind, **keys):
    return plugin("placement", kind)(**{**KINDS[kind], **keys})


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "eplb_trtllm"])
@pytest.mark.parametrize("redundant", [0, 4])
def test_l11_l12_rebalancing_keeps_the_contract(kind, redundant):
    check_placement(make(kind, redundant=redundant, window=3, interval=4))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_starts_with_experts_in_order_and_the_first_ones_again(kind):
    if kind == "eplb_trtllm":
        return
    answers, _ = play(make(kind, redundant=4), world(gpus=4), history(2))
    assert answers[0].expert_of_slot.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]] * 2
    assert answers[0].rank_of_slot.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_tensorrt_llm_starts_with_the_next_ranks_experts_in_redundant_slots():
    answers, _ = play(make("eplb_trtllm", redundant=4), world(gpus=4), history(1))
    # Rank r starts at expert 2 r, with three slots.
    assert answers[0].expert_of_slot[0].tolist() == [0, 1, 2, 2, 3, 4, 4, 5, 6, 6, 7, 0]


@pytest.mark.parametrize(("kind", "steps"), [("eplb", [8, 16, 24]), ("eplb_sglang", [8, 16, 24]), ("eplb_vllm", [2, 10, 18, 26])])
def test_when_frameworks_rebalance(kind, steps):
    # vLLM's counter starts at three quarters of the interval.
    answers, _ = play(make(kind, redundant=4, window=5, interval=8), world(gpus=4), history())
    assert changes(answers) == [0, *steps]


def test_the_window_is_what_is_planned_from():
    loads = history()
    _, placements = play(make("eplb", redundant=4, window=5, interval=8), world(gpus=4), loads)
    expected = plan_eplb(loads[3:8], slots=12, gpus=4)
    np.testing.assert_array_equal(placements[8].expert_of_slot, expected.physical_to_logical_map)
    np.testing.assert_array_equal(placements[15].expert_of_slot, expected.physical_to_logical_map)


def test_vllm_keeps_slots_of_what_stays():
    loads = history()
    _, placements = play(make("eplb_vllm", redundant=4, window=5, interval=8), world(gpus=4), loads)
    expected = plan_vllm(loads[5:10], slots=12, gpus=4, old=placements[9].expert_of_slot)
    np.testing.assert_array_equal(placements[10].expert_of_slot, expected.physical_to_logical_map)


def test_vllm_on_rocm_leaves_alone_what_would_gain_little():
    even = np.full((30, 2, 8), 50)
    assert changes(play(make("eplb_vllm", window=4, interval=8), world(gpus=4), even)[0]) == [0, 2, 10, 18, 26]
    assert changes(play(make("eplb_vllm", window=4, interval=8, least_gain=0.05), world(gpus=4), even)[0]) == [0]
    # Pairs of 50 + w and 50 on rank 0 to 50 and 50 on the others: with w on two experts of one rank the plan takes them apart.
    for more, wanted in ((4, [0]), (40, [0, 2])):
        skewed = even.copy()
        skewed[..., :2] += more
        found = changes(play(make("eplb_vllm", window=4, interval=8, least_gain=0.05), world(gpus=4), skewed)[0])
        assert found == wanted  # (100 + 2 w) to (100 + w): 108 to 104 is 3.7 % less, 180 to 140 is 22 %; afterwards nothing is left to gain


def test_relative_gain_by_hand():
    def two(row):
        return Placement(expert_of_slot=np.asarray([row, row]), rank_of_slot=np.asarray([0, 0, 1, 1]))

    # Layer 0 loads 6, 6, 2, 2; layer 1 loads 1, 1, 1, 1: ranks 14 and 6 of 10 become 10 and 10.
    loads = np.array([[[6, 6, 2, 2], [1, 1, 1, 1]]])
    assert relative_gain(loads, two([0, 1, 2, 3]), two([0, 2, 1, 3]), 2) == pytest.approx((1.4 - 1.0) / 1.4)
    assert relative_gain(loads, two([0, 2, 1, 3]), two([0, 1, 2, 3]), 2) == pytest.approx(-0.4)
    assert relative_gain(np.zeros((3, 2, 4), dtype=int), two([0, 1, 2, 3]), two([0, 2, 1, 3]), 2) == 0.0


def test_sglang_leaves_an_even_layer_alone():
    even = np.full((30, 2, 8), 5)
    answers, _ = play(make("eplb_sglang", interval=8, threshold=0.99), world(gpus=4), even)
    assert changes(answers) == [0]
    answers, _ = play(make("eplb_sglang", interval=8), world(gpus=4), even)  # 1: always
    assert changes(answers) == [0, 8, 16, 24]
    skewed = even + np.arange(8) * 9
    assert changes(play(make("eplb_sglang", interval=8, threshold=0.99), world(gpus=4), skewed)[0]) == [0, 8]


def test_utilisation_by_hand():
    placement = make("eplb", redundant=1).begin(world(gpus=3, experts=2, moe_layers=1))(View(step=0, loads=history(0), placement=None))
    # Slots hold experts 0, 1, 0, one per rank; loads 6 and 1 give ranks 3, 1, 3: mean 7/3 over largest 3.
    loads = np.array([[[6, 1]]])
    assert loads_of_ranks(loads, placement, 3).tolist() == [[[3, 1, 3]]]
    assert mean_utilisation(loads, placement, 3) == pytest.approx(7 / 9, rel=1e-5)
    assert mean_utilisation(loads, placement, 3, without=[1]) == pytest.approx(1.0)


def test_sglang_changes_layers_in_chunks_and_waits_for_the_last():
    loads = history(layers=3)
    setting = world(gpus=4, moe_layers=3)
    answers, placements = play(make("eplb_sglang", redundant=4, interval=8, layers_per_chunk=2), setting, loads)
    # Planned before step 8; a pass goes by before each chunk, and the next interval counts from the last chunk: 8 + 2 + 8.
    assert changes(answers) == [0, 9, 10, 19, 20, 29]
    target = plan_global(loads[:8].sum(axis=0).astype(float), slots=12, gpus=4).physical_to_logical_map
    start = placements[0].expert_of_slot
    np.testing.assert_array_equal(placements[9].expert_of_slot, np.concatenate([target[:2], start[2:]]))
    np.testing.assert_array_equal(placements[10].expert_of_slot, target)


@pytest.mark.parametrize(
    "algorithm", ["deepseek", "deepseek_hierarchical", "deepseek_vec", "deepseek_vec_hierarchical", "elasticity_aware"]
)
def test_every_algorithm_of_sglang_runs(algorithm):
    dead = (1,) if algorithm == "elasticity_aware" else ()
    policy = make("eplb_sglang", redundant=4, interval=3, algorithm=algorithm, dead_ranks=dead)
    check_placement(policy, settings=[tiny_setting(), tiny_setting(experts=16)])
    _, placements = play(policy, tiny_setting(), history(5))
    assert placements[0].slots_per_rank(4).tolist() == placements[4].slots_per_rank(4).tolist() == ([3, 0, 3, 3] if dead else [3] * 4)


def test_sglang_refuses_what_sglang_refuses():
    with pytest.raises(FieldError, match=r"window \(9\) is longer than interval \(8\)"):
        make("eplb_sglang", window=9, interval=8)
    with pytest.raises(FieldError, match="only algorithm: elasticity_aware"):
        make("eplb_sglang", dead_ranks=(1,))
    with pytest.raises(PluginError, match="the 3 ranks that live have 6 slots, but there are 8 experts"):
        make("eplb_sglang", algorithm="elasticity_aware", dead_ranks=(1,)).begin(world(gpus=4))


def test_tensorrt_llm_updates_layers_in_turn_from_faded_loads():
    loads = history(6, layers=3)
    answers, placements = play(make("eplb_trtllm", redundant=4, layer_updates_per_iter=2, decay=0.5), world(gpus=4, moe_layers=3), loads)
    # Three layers, two per step: classes {0, 2} and {1} take turns from step 1 on.
    faded = np.zeros((3, 8), dtype=np.float32)
    expected = np.array(answers[0].expert_of_slot)
    for step in range(1, 6):
        faded = faded * np.float32(0.5) + loads[step - 1].astype(np.float32)
        turn = [[0, 2], [1]][(step - 1) % 2]
        expected[turn] = plan_trtllm(faded[turn], slots=12, gpus=4).physical_to_logical_map
        np.testing.assert_array_equal(placements[step].expert_of_slot, expected)
    # Two layers and one per step: classes are equally large, and a turn without any follows.
    assert changes(play(make("eplb_trtllm", layer_updates_per_iter=1), world(gpus=4), history(7))[0]) == [0, 1, 2, 4, 5]
    assert changes(play(make("eplb_trtllm", layer_updates_per_iter=0), world(gpus=4), history(7))[0]) == [0]


def test_biased_keeps_layers_whose_hot_experts_are_the_same():
    loads = np.ones((13, 2, 8), dtype=int)
    loads[:, :, 3] = 90
    loads[4:, 1, 5] = 99  # another hot expert, in layer 1 only
    loads[4:, 0, 6] = 50  # not hotter than the hot one
    _, placements = play(make("biased", redundant=4, window=4, interval=4), world(gpus=4), loads)
    first, second = placements[4].expert_of_slot, placements[8].expert_of_slot
    assert (first.reshape(2, 4, 3)[:, :, 0] == 3).all()
    np.testing.assert_array_equal(first[0], second[0])
    assert (second.reshape(2, 4, 3)[1, :, 0] == 5).all()


def test_hierarchical_only_where_groups_divide_over_nodes():
    assert nodes_of_group(tiny_setting()) == 2  # four GPUs in two nodes
    assert nodes_of_group(tiny_setting(ep=2)) == 1
    uneven = dataclasses.replace(tiny_setting(), cluster=dataclasses.replace(tiny_cluster(), node_of=np.array([0, 0, 0, 1])))
    assert nodes_of_group(uneven) == 1
    mixed = dataclasses.replace(tiny_setting(), cluster=dataclasses.replace(tiny_cluster(), node_of=np.array([0, 1, 0, 1])))
    assert nodes_of_group(mixed) == 1
    three = dataclasses.replace(tiny_setting(experts=12, gpus=6, ep=6), cluster=tiny_cluster(6, 3))
    with pytest.raises(PluginError, match=r"4 expert groups do not divide over 3 nodes.*; choose algorithm: global"):
        make("eplb", algorithm="hierarchical").begin(three)
    loads = history(5, experts=12)
    _, placements = play(make("eplb", window=3, interval=3), three, loads)
    expected = plan_global(loads[:3].sum(axis=0).astype(float), slots=12, gpus=6)
    np.testing.assert_array_equal(placements[3].expert_of_slot, expected.physical_to_logical_map)


@pytest.mark.parametrize("kind", KINDS)
def test_redundant_experts_that_do_not_divide_are_refused_with_what_would(kind):
    said = r"8 experts and redundant: 5 make 13 slots, which do not divide over ep = 4 ranks; choose redundant: 4 or 8$"
    with pytest.raises(PluginError, match=rf"placement '{kind}': {said}"):
        make(kind, redundant=5).begin(world(gpus=4))
    with pytest.raises(PluginError, match=rf"'{kind}': redundant: 28 is more than .* on every one of ep = 4 ranks; choose 24 or fewer$"):
        make(kind, redundant=28).begin(world(gpus=4))
    # 60 experts on 8 ranks need some.
    with pytest.raises(PluginError, match=r"redundant: 0 make 60 slots.*; choose redundant: 4$"):
        make(kind).begin(world(gpus=8, experts=60))


def test_redundant_experts_cost_memory():
    setting = world(gpus=4)
    plain, more = (
        int(make("eplb", redundant=redundant).begin(setting)(View(step=0, loads=history(0), placement=None)).slots_per_rank(4).max())
        for redundant in (0, 4)
    )
    assert (plain, more) == (2, 3)
    bytes_of = [least_bytes(setting.model, slots, "decode", gpus=4, groups=1) for slots in (plain, more)]
    assert bytes_of[1] - bytes_of[0] == len(setting.model.moe_layers) * setting.model.expert_bytes


def recent_of(setting, steps, *, known=True):
    layers = len(setting.model.moe_layers)
    out = []
    for step in range(steps):
        of_step = [random_routing(step * 7 + layer, gpus=setting.gpus, experts=8, top_k=2, most=9) for layer in range(layers)]
        of_step = [
            type(r).of_tokens(r.ids, of_step[0].token_start, 8) if len(r.ids) == len(of_step[0].ids) else of_step[0] for r in of_step
        ]
        out.append([r if known else type(r)(experts=8, token_start=r.token_start, counts=r.counts) for r in of_step])
    return out


@pytest.mark.parametrize("use", ["together", "consecutive"])
def test_affinity_plans_from_the_tokens_of_the_last_steps(use):
    setting = tiny_setting()
    policy = plugin("placement", "affinity")(use=use, interval=3, look_back=2)
    assert policy.begin(setting).look_back == 2
    loads, recent = history(5), recent_of(setting, 5)
    answers, placements = play(policy, setting, loads, recent)
    assert changes(answers) == [0, 3]
    sizes = group_sizes(setting, 0, "test")
    expected = policy.placement(sizes, [[layer.ids for layer in step] for step in recent[:3]])
    np.testing.assert_array_equal(placements[3].expert_of_slot, expected.expert_of_slot)
    with pytest.raises(FidelityError, match="placement 'affinity' needs to know the experts of each token"):
        play(policy, setting, loads, recent_of(setting, 5, known=False))
    with pytest.raises(FidelityError, match="placement 'affinity' needs the routes of the last steps at step 3"):
        play(policy, setting, loads)


def test_topology_counts_where_routes_come_from():
    setting = tiny_setting()
    policy = plugin("placement", "topology")(redundant=4, interval=3, window=3, look_back=2)
    assert policy.begin(setting).look_back == 2
    assert make("topology").begin(setting).look_back == 0
    loads, recent = history(5), recent_of(setting, 5, known=False)
    _, placements = play(policy, setting, loads, recent)
    by_node = np.zeros((2, 2, 8))
    for step in recent[:3]:
        for layer, routing in enumerate(step):
            by_node[layer, 0] += routing.counts[:2].sum(axis=0)
            by_node[layer, 1] += routing.counts[2:].sum(axis=0)
    expected = plan_topology(loads[:3], slots=12, gpus=4, nodes=2, by_node=by_node)
    np.testing.assert_array_equal(placements[3].expert_of_slot, expected.physical_to_logical_map)
    with pytest.raises(FidelityError, match="placement 'topology' needs the routes of the last steps"):
        play(policy, setting, loads)


def test_topology_adds_up_all_groups():
    # Two groups of four GPUs on two nodes each: GPUs 0, 1, 4 and 5 are on the first node of their group.
    setting = dataclasses.replace(tiny_setting(gpus=8), cluster=tiny_cluster(8, 4))
    recent = recent_of(setting, 1, known=False)
    seen = plugin("placement", "topology")().begin(setting).sources(View(step=1, loads=history(1), placement=None, recent=recent))
    for layer, routing in enumerate(recent[0]):
        first = np.array([1, 1, 0, 0] * 2, dtype=bool)
        np.testing.assert_array_equal(seen[layer], [routing.counts[first].sum(axis=0), routing.counts[~first].sum(axis=0)])


def test_greedy_ignores_nodes_and_groups():
    loads = history()
    _, placements = play(make("greedy", redundant=4, window=5, interval=8), tiny_setting(), loads)
    np.testing.assert_array_equal(placements[8].expert_of_slot, plan_greedy(loads[3:8], slots=12, gpus=4).physical_to_logical_map)
