"""Placements that look at what is used together and from where: affinity and topology, and the search behind them."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routings import world

from moesim.base.errors import FidelityError, PluginError, TraceError
from moesim.base.registry import plugin
from moesim.facts.contracts import View
from moesim.facts.routing import Kept, LayerRouting
from moesim.facts.trace import Trace
from moesim.models.placement.affinity_plan import MOST_TERMS, affinity_cost, co_activations, plan_affinity, transitions
from moesim.models.placement.partition_milp import terms
from moesim.models.placement.plan_map import plan_of
from moesim.models.placement.simple_plans import plan_contiguous, plan_greedy
from moesim.models.placement.swaps import Costs, distances, improve_by_swaps
from moesim.models.placement.topology_plan import leaving_routes, plan_topology


def symmetric(rng, size):
    table = rng.integers(0, 20, (size, size))
    table = table + table.T
    np.fill_diagonal(table, 0)
    return table


def best_of_all(pair, ranks, nodes, loads=None, limit=np.inf):
    """Return the least cost of all placements with equally many experts per rank."""
    distance = distances(ranks, nodes)
    best = np.inf
    for choice in itertools.product(range(ranks), repeat=len(pair)):
        rank = np.array(choice)
        if (np.bincount(rank, minlength=ranks) != len(pair) // ranks).any():
            continue
        if loads is not None and np.bincount(rank, weights=loads, minlength=ranks).max() > limit:
            continue
        best = min(best, (pair * distance[rank][:, rank]).sum() / 2)
    return best


@pytest.mark.parametrize(("experts", "ranks", "nodes"), [(6, 2, 1), (6, 3, 1), (8, 2, 1), (6, 2, 2), (4, 4, 2)])
@pytest.mark.parametrize("slack", [0.0, 100.0])
def test_small_affinity_is_exact(experts, ranks, nodes, slack):
    rng = np.random.default_rng(experts * ranks + nodes)
    pair, loads = symmetric(rng, experts), rng.integers(1, 9, experts)
    assert 0 < terms(pair, ranks, nodes) <= MOST_TERMS  # so this is the exact solver
    plan = plan_affinity(loads[None], gpus=ranks, nodes=nodes, together=pair[None], slack=slack)
    limit = (1 + slack) * plan_greedy(loads[None], slots=experts, gpus=ranks).rank_loads(loads[None], ranks).max()
    assert plan.rank_loads(loads[None], ranks).max() <= limit * (1 + 1e-9)
    assert affinity_cost(plan, nodes=nodes, together=pair[None])[0] == best_of_all(pair, ranks, nodes, loads, limit * (1 + 1e-9))


def test_small_consecutive_affinity_is_exact():
    rng = np.random.default_rng(5)
    follow, loads = rng.integers(0, 20, (1, 4, 4)), np.ones((2, 4))
    plan = plan_affinity(loads, gpus=2, following=follow, slack=100.0)
    pair = symmetric(rng, 4)[None].repeat(2, axis=0)
    both = plan_affinity(loads, gpus=2, following=follow, together=pair, slack=100.0)
    halves = [np.array(h) for h in itertools.product(range(2), repeat=4) if sum(h) == 2]
    best = min(follow[0][one[:, None] != two].sum() for one in halves for two in halves)
    assert affinity_cost(plan, following=follow)[2] == best
    # A pair of a layer counts once, as a step from layer to layer does.
    costs = [
        follow[0][one[:, None] != two].sum() + sum((pair[0] * (half[:, None] != half)).sum() / 2 for half in (one, two))
        for one in halves
        for two in halves
    ]
    assert affinity_cost(both, following=follow, together=pair).sum() == min(costs)


@given(seed=st.integers(0, 10**6), per_rank=st.integers(1, 3), ranks=st.integers(2, 4), slack=st.sampled_from([0.0, 0.2, 5.0]))
@settings(max_examples=30, deadline=None)
def test_swaps_never_cost_more_and_keep_the_limit(seed, per_rank, ranks, slack):
    rng = np.random.default_rng(seed)
    items = per_rank * ranks
    costs = Costs(own=rng.normal(size=(items, ranks)), pair=symmetric(rng, items) / 7.0, distance=distances(ranks, 1))
    loads = rng.random(items)
    start = rng.permutation(np.repeat(np.arange(ranks), per_rank))
    before = np.bincount(start, weights=loads, minlength=ranks)
    limit = (1 + slack) * before.max()
    rank = improve_by_swaps(start, loads, costs, limit=limit)
    assert costs.of(rank) <= costs.of(start) + 1e-9
    assert np.bincount(rank, minlength=ranks).tolist() == [per_rank] * ranks
    assert np.bincount(rank, weights=loads, minlength=ranks).max() <= limit * (1 + 1e-9)
    # No exchange of two is left that would pay: this is a local optimum.
    for one, two in itertools.combinations(range(items), 2):
        other = rank.copy()
        other[one], other[two] = rank[two], rank[one]
        if np.bincount(other, weights=loads, minlength=ranks).max() <= limit:
            assert costs.of(other) >= costs.of(rank) - 1e-6


def test_large_affinity_finds_the_groups_that_are_there():
    # 32 experts in eight cliques of four, scattered: each clique belongs on one of eight ranks.
    clique = np.random.default_rng(1).permutation(np.repeat(np.arange(8), 4))
    pair = np.where(clique[:, None] == clique, 10.0, 0.0)
    np.fill_diagonal(pair, 0.0)
    pair += 0.1 * symmetric(np.random.default_rng(2), 32) / 40  # a little noise, so that it is no exact problem
    assert terms(pair, 8, 2) > MOST_TERMS
    plan = plan_affinity(np.ones((1, 32)), gpus=8, nodes=2, together=pair[None])
    by_rank = clique[plan.physical_to_logical_map[0]].reshape(8, 4)
    assert (by_rank == by_rank[:, :1]).all()


def test_consecutive_affinity_follows_a_permutation_through_many_layers():
    # A token of expert e goes to expert (e + 5) mod 16 in the next layer: everybody can stay at home.
    layers, experts = 6, 16
    follow = np.zeros((layers - 1, experts, experts))
    follow[:, np.arange(experts), (np.arange(experts) + 5) % experts] = 10.0
    loads = np.full((layers, experts), 10.0)
    plan = plan_affinity(loads, gpus=4, nodes=2, following=follow)
    in_order = plan_contiguous(loads, slots=experts, gpus=4)
    cost, before = (affinity_cost(which, nodes=2, following=follow).sum() for which in (plan, in_order))
    assert cost < 0.2 * before


def test_counting_tokens_by_hand():
    ids = np.array([[0, 2], [2, 0], [1, -1], [2, 1]])
    assert co_activations(ids, 3).tolist() == [[0, 0, 2], [0, 0, 1], [2, 1, 0]]
    after = np.array([[1], [1], [0], [-1]])
    assert transitions(ids, after, 3).tolist() == [[0, 2, 0], [1, 0, 0], [0, 2, 0]]


def copies_of(placement, ids, gpus, nodes):
    """Copies of tokens that leave their GPU, and that leave their node: one for each other GPU, or node, that a token's experts are on."""
    rank = np.empty(placement.slots, dtype=int)
    rank[placement.expert_of_slot[0]] = placement.rank_of_slot
    home = np.arange(len(ids)) * gpus // len(ids)
    size = gpus // nodes
    away = sum(len(set(rank[chosen].tolist()) - {start}) for chosen, start in zip(ids, home, strict=True))
    across = sum(len(set((rank[chosen] // size).tolist()) - {start // size}) for chosen, start in zip(ids, home, strict=True))
    return away, across


def test_affinity_from_a_trace_saves_copies():
    # Tokens use pairs of experts e and e + 8 that are far apart in order; all loads are equal.
    first = np.arange(320) % 8
    ids = np.stack([first, first + 8], axis=1)[:, None]
    trace = Trace(name="pairs", digest="0" * 64, layers=1, experts=16, top_k=2, ids=ids)
    setting = world(gpus=4, experts=16, top_k=2, moe_layers=1)
    read = []
    setting = setting.__class__(
        cluster=setting.cluster,
        model=setting.model,
        parallel=setting.parallel,
        workload=setting.workload,
        seed=0,
        read_trace=lambda path: (read.append(path), trace)[1],
    )
    view = View(step=0, loads=np.zeros((0, 1, 16), dtype=int), placement=None)
    near = plugin("placement", "affinity")(trace="pairs.npz").begin(setting)(view)
    assert read == ["pairs.npz"]
    order = plugin("placement", "contiguous")().begin(setting)(view)
    # In order every token goes to two ranks; with pairs together to one.
    # Rank r has 80 tokens. Its own experts are 4 r to 4 r + 3, and pairs (0, 8) to (3, 11) lie on ranks 0 and 2, the others on 1 and 3:
    # half of a rank's tokens have one of their two ranks at home, the other half none.
    assert copies_of(order, ids[:, 0], 4, 1)[0] == 4 * (40 * 1 + 40 * 2)
    # With pairs together a token goes to one rank, and to that only if it is another: three in four.
    assert copies_of(near, ids[:, 0], 4, 1)[0] == 320 * 3 // 4


def test_affinity_refuses_traces_that_do_not_fit():
    def setting_with(trace):
        plain = world(gpus=2, experts=4, top_k=1, moe_layers=1)
        return plain.__class__(
            cluster=plain.cluster, model=plain.model, parallel=plain.parallel, workload=plain.workload, seed=0, read_trace=lambda _: trace
        )

    policy = plugin("placement", "affinity")(trace="x.npz")
    counts = Trace(name="x", digest="0" * 64, layers=1, experts=4, top_k=1, counts=np.ones((1, 1, 1, 4), dtype=int))
    with pytest.raises(FidelityError, match="placement 'affinity' needs tokens, but the trace x has counts only"):
        policy.begin(setting_with(counts))
    other = Trace(name="x", digest="0" * 64, layers=2, experts=4, top_k=1, ids=np.zeros((3, 2, 1), dtype=int))
    with pytest.raises(TraceError, match="the trace x has 2 MoE layers"):
        policy.begin(setting_with(other))


def test_topology_brings_experts_to_the_tokens_that_want_them():
    # Tokens of node 0 use even experts, those of node 1 odd ones: in order, half of all copies cross; none needs to.
    rng = np.random.default_rng(3)
    tokens = np.concatenate(
        [rng.permuted(np.tile(np.arange(0, 8, 2), (40, 1)), axis=1), rng.permuted(np.tile(np.arange(1, 8, 2), (40, 1)), axis=1)]
    )
    ids = tokens[:, :2]
    by_node = np.stack([np.bincount(half.ravel(), minlength=8) for half in (ids[:40], ids[40:])])[None]
    loads = by_node.sum(axis=1)
    near = plan_topology(loads, slots=8, gpus=4, nodes=2, by_node=by_node)
    greedy = plan_greedy(loads, slots=8, gpus=4)
    assert leaving_routes(near, by_node.astype(float))[0] == 0
    assert copies_of(near.placement, ids, 4, 2)[1] == 0 < copies_of(greedy.placement, ids, 4, 2)[1]
    assert near.rank_loads(loads, 4).max() <= 1.1 * greedy.rank_loads(loads, 4).max()


@given(seed=st.integers(0, 10**6), slack=st.sampled_from([0.0, 0.1, 1.0]), redundant=st.integers(0, 2), known=st.booleans())
@settings(max_examples=30, deadline=None)
def test_topology_never_lets_more_routes_leave_than_greedy_nor_a_gpu_grow_beyond_the_slack(seed, slack, redundant, known):
    rng = np.random.default_rng(seed)
    by_node = rng.poisson(rng.exponential(30, (2, 2, 8))).astype(float)
    loads = by_node.sum(axis=1)
    slots = 8 + 4 * redundant
    near = plan_topology(loads, slots=slots, gpus=4, nodes=2, by_node=by_node if known else None, slack=slack)
    greedy = plan_greedy(loads, slots=slots, gpus=4)
    seen = by_node if known else np.repeat(loads[:, None] / 2, 2, axis=1)
    assert (leaving_routes(near, seen) <= leaving_routes(greedy, seen)).all()
    assert (near.rank_loads(loads, 4).max(axis=1) <= (1 + slack) * greedy.rank_loads(loads, 4).max(axis=1) * (1 + 1e-9)).all()
    np.testing.assert_array_equal(near.logical_count, greedy.logical_count)


def test_topology_keeps_the_greedy_plan_where_sums_over_pairs_mislead():
    # With three replicas and more the sum over pairs overstates what twins on a node waste: without a last look 42 routes would leave.
    by_node = np.array([[[6, 132, 19, 26, 121], [17, 20, 0, 134, 70], [9, 40, 9, 115, 10]]], dtype=float)
    near = plan_topology(by_node.sum(axis=1), slots=18, gpus=6, nodes=3, by_node=by_node, slack=1.0)
    assert leaving_routes(near, by_node)[0] == leaving_routes(plan_greedy(by_node.sum(axis=1), slots=18, gpus=6), by_node)[0] == 34


def test_topology_spreads_replicas_over_nodes():
    # One hot expert with two replicas, which greedy puts on one node's two lightest GPUs or not, as it happens; both nodes want it.
    loads = np.array([[90.0, 30.0, 31.0, 29.0, 5.0, 6.0, 7.0]])
    near = plan_topology(loads, slots=8, gpus=4, nodes=2, slack=1.0)
    assert near.logical_count[0, 0] == 2
    homes = near.rank_of_slot[near.physical_to_logical_map[0] == 0] // 2
    assert sorted(homes.tolist()) == [0, 1]


def test_a_topology_saves_copies_in_a_run_with_the_dispatch_that_prefers_the_own_node():
    from moesim.testing.world import tiny_setting

    setting = tiny_setting()
    rng = np.random.default_rng(9)
    ids = np.where(np.arange(64)[:, None] < 32, 0, 1) + 2 * np.argsort(rng.random((64, 4)), axis=1)[:, :2]
    routing = LayerRouting.of_tokens(ids, np.arange(5) * 16, 8)
    kept = Kept(routing=routing, dropped=np.zeros((4, 8), dtype=int), padding=np.zeros((4, 8), dtype=int))
    across = {}
    for name, policy in {
        "greedy": plugin("placement", "greedy")(interval=1),
        "topology": plugin("placement", "topology")(interval=1),
    }.items():
        plan = policy.begin(setting)
        start = plan(View(step=0, loads=np.zeros((0, 2, 8), dtype=int), placement=None))
        placement = plan(View(step=1, loads=np.stack([routing.counts.sum(axis=0)] * 2)[None], placement=start, recent=([routing] * 2,)))
        rows = plugin("dispatch", "static")().begin(setting)(kept, placement, step=1, moe_layer=0).rows_at()
        across[name] = int(rows[:2, 2:].sum() + rows[2:, :2].sum())
    assert across["topology"] == 0 < across["greedy"]


def test_what_does_not_fit_is_refused():
    ones = np.ones((1, 4))
    with pytest.raises(PluginError, match=r"by_node must be finite numbers, at least 0, of shape \(1, 2, 4\), not \(1, 4\)"):
        plan_topology(ones, slots=4, gpus=2, nodes=2, by_node=ones)
    with pytest.raises(PluginError, match=r"slack is -1, but must be at least 0"):
        plan_topology(ones, slots=4, gpus=2, slack=-1)
    with pytest.raises(PluginError, match=r"slack is nan"):
        plan_affinity(ones, gpus=2, slack=float("nan"))
    with pytest.raises(PluginError, match=r"together must be finite numbers, at least 0, of shape \(1, 4, 4\), not \(4, 4\)"):
        plan_affinity(ones, gpus=2, together=np.ones((4, 4)))
    assert plan_of([[0, 1, 2, 3]], 4, 2).logical_count.tolist() == [[1, 1, 1, 1]]
