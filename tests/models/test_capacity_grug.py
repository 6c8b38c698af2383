"""The capacity rule of Grug on systems small enough to do by hand."""

import numpy as np
import pytest
from routings import world

from moesim.base.errors import PluginError
from moesim.facts.routing import LayerRouting
from moesim.models.capacity.grug import Grug, rank_budget


def limit(factor, ids, start, experts, ep):
    routing = LayerRouting.of_tokens(np.asarray(ids)[:, None], start, experts)
    setting = world(gpus=routing.gpus, experts=experts, top_k=1, ep=ep)
    return Grug(factor=factor).begin(setting)(routing, step=0, moe_layer=0)


def test_every_rank_computes_its_budget_full_or_not():
    # 8 tokens of 2 ranks, 1 choice: ceil(1.25 * 8 / 2) = 5 rows a rank. Rank 0 (experts 0, 1) gets 6 routes, rank 1 (2, 3) gets 2.
    kept = limit(1.25, [0, 0, 0, 1, 0, 1, 2, 2], [0, 4, 8], 4, 2)
    # Expert 0's 4 rows come first, so expert 1 keeps 1 of 2: that of GPU 0, whose route arrives first.
    assert kept.routing.counts.tolist() == [[3, 1, 0, 0], [1, 0, 2, 0]]
    assert kept.dropped.tolist() == [[0, 0, 0, 0], [0, 1, 0, 0]]
    # Rank 1 lacks 3 rows: zeros, computed as rows of its last expert, made on GPU 1 itself.
    assert kept.padding.tolist() == [[0, 0, 0, 0], [0, 0, 0, 3]]
    assert (kept.routing.counts + kept.padding).sum(axis=0).reshape(2, 2).sum(axis=1).tolist() == [5, 5]
    assert kept.room == 10


def test_the_exchange_carries_all_routes():
    kept = limit(0.5, [0, 0, 0, 1, 0, 1, 2, 2], [0, 4, 8], 4, 2)
    assert kept.sent is not None
    assert kept.sent.routing.counts.sum() == 8
    assert kept.sent.padding.sum() == 0
    assert kept.routing.counts.sum() == 2 + 2


def test_a_budget_is_rounded_up_and_kept_between_the_experts_and_the_routes():
    # ceil(1.25 * 100 / 4) = 32; 3 routes: ceil(0.94) = 1 is less than the 2 experts of a rank; 0 routes: 0.
    assert rank_budget(np.array([100, 3, 0]), 1.25, 4, 2).tolist() == [32, 2, 0]
    assert rank_budget(np.array([100]), 9.0, 4, 2).tolist() == [100]  # no more rows than routes


def test_experts_must_divide_over_the_ranks():
    with pytest.raises(PluginError, match="do not divide"):
        limit(1.0, [0, 1], [0, 1, 1, 2], 4, 3)
