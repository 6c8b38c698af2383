"""Static placements."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routings import world

from moesim.base.errors import PluginError
from moesim.base.registry import plugin
from moesim.facts.contracts import View

NOTHING_YET = View(step=0, loads=np.zeros((0, 2, 8), dtype=int), placement=None)


def first(kind, setting):
    return plugin("placement", kind)().begin(setting)(NOTHING_YET)


def on_rank(placement, rank, layer=0):
    return placement.expert_of_slot[layer][placement.rank_of_slot == rank].tolist()


def test_contiguous_gives_blocks():
    placement = first("contiguous", world(gpus=4, experts=8))
    assert [on_rank(placement, rank) for rank in range(4)] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_round_robin_deals_experts_one_by_one():
    placement = first("round_robin", world(gpus=4, experts=8))
    assert [on_rank(placement, rank, layer=1) for rank in range(4)] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    # The slots of a rank lie together.
    assert placement.rank_of_slot.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("kind", ["contiguous", "round_robin"])
@given(ranks=st.integers(1, 6), per_rank=st.integers(1, 5), groups=st.integers(1, 2), layers=st.integers(1, 3))
@settings(max_examples=25)
def test_l11_every_expert_lives_on_exactly_one_rank(kind, ranks, per_rank, groups, layers):
    setting = world(gpus=ranks * groups, ep=ranks, experts=ranks * per_rank, top_k=1, moe_layers=layers)
    placement = first(kind, setting)
    placement.check(layers=layers, experts=ranks * per_rank, ranks=ranks, who=kind)
    assert placement.slots == ranks * per_rank
    assert placement.slots_per_rank(ranks).tolist() == [per_rank] * ranks


@pytest.mark.parametrize("kind", ["contiguous", "round_robin"])
def test_a_static_placement_is_given_once_per_run(kind):
    policy = plugin("placement", kind)()
    plan = policy.begin(world(gpus=4))
    placement = plan(NOTHING_YET)
    later = View(step=1, loads=np.ones((1, 2, 8), dtype=int), placement=placement)
    assert plan(later) is None
    assert plan(later) is None
    # Another run begins afresh, even where a placement is there already.
    assert policy.begin(world(gpus=4))(later) is not None


@pytest.mark.parametrize("kind", ["contiguous", "round_robin"])
def test_experts_that_do_not_divide_are_refused_with_sizes_that_would_fit(kind):
    # 60 experts on 24 GPUs: groups of 1, 2, 3, 4, 6 and 12 divide both; 8 divides the GPUs only.
    with pytest.raises(
        PluginError, match=rf"'{kind}': 60 experts do not divide over ep = 8 ranks; choose parallel.ep of 1, 2, 3, 4, 6, 12$"
    ):
        plugin("placement", kind)().begin(world(gpus=24, ep=8, experts=60))


@pytest.mark.parametrize("kind", ["contiguous", "round_robin"])
def test_whoever_has_no_placement_yet_gets_one_however_often_it_asks(kind):
    # A view without a placement means that the first answer was not taken: None would leave nothing in place.
    plan = plugin("placement", kind)().begin(world(gpus=4))
    first_answer = plan(NOTHING_YET)
    assert first_answer is not None
    assert plan(NOTHING_YET) is first_answer
