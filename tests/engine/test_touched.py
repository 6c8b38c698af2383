"""How many nodes compute rows of a token."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routings import counts_of, random_routing, world

from moesim.base.registry import plugin
from moesim.engine.touched import nodes_touched
from moesim.facts.placement import Placement
from moesim.facts.routing import Kept, LayerRouting
from moesim.models import compiled_loops

PLACEMENT = Placement(expert_of_slot=np.asarray([[0, 1, 2, 3, 4, 5, 6, 7]]), rank_of_slot=np.arange(8) // 2)
NODES = np.asarray([0, 0, 1, 1])


def bound(routing):
    none = np.zeros_like(routing.counts)
    setting = world(gpus=4, experts=8, top_k=2)
    return plugin("dispatch", "even")().begin(setting)(Kept(routing=routing, dropped=none, padding=none), PLACEMENT, step=0, moe_layer=0)


def test_by_hand():
    # Ranks 0 and 1 are node 0. Experts (0, 3): ranks 0 and 1, one node; (0, 4): two nodes; (7, -): one; none: none.
    ids = np.asarray([[0, 3], [0, 4], [7, -1], [-1, -1]])
    assert nodes_touched(bound(LayerRouting.of_tokens(ids, [0, 1, 2, 3, 4], 8)), NODES) == 4


def test_counts_do_not_tell():
    assert nodes_touched(bound(counts_of(random_routing(0, gpus=4, experts=8, top_k=2, most=9))), NODES) == -1


@given(seed=st.integers(0, 10**6), compiled=st.booleans())
@settings(max_examples=30, deadline=None)
def test_the_same_as_a_set_for_each_token(seed, compiled):
    routing = random_routing(seed, gpus=4, experts=8, top_k=3, most=40, gaps=True)
    rank = np.arange(8) // 2
    wanted = sum(len({int(NODES[rank[expert]]) for expert in row if expert >= 0}) for row in routing.ids.tolist())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled_loops, "FEWEST", 1)
        patch.setattr(compiled_loops, "WORTH_LOADING", 0 if compiled else 10**15)
        assert nodes_touched(bound(routing), NODES) == wanted


def test_with_one_node_a_token_with_routes_has_one():
    routing = random_routing(3, gpus=4, experts=8, top_k=2, most=40)
    assert nodes_touched(bound(routing), np.zeros(4, dtype=np.int64)) == routing.tokens
    assert nodes_touched(replace(bound(routing), slots=None), NODES) == -1
