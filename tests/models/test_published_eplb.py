"""EPLB under the fitted router meets what was published for DeepSeek-R1.

TensorRT-LLM technical blog 4, Table 1: DeepSeek-R1 at EP 32 on a translation set, averages over layers and iterations, 1,024 routes for
each rank; without EPLB, and with it and 9 slots for each rank. The router preset was fitted to these figures, so this shows that
router, EPLB and dispatch together can say what a machine showed; it is no forecast of another data set.
"""

from dataclasses import replace

import numpy as np
import pytest

from moesim.base.loads import coefficient_of_variation, maxvio
from moesim.facts.contracts import View
from moesim.facts.scenario import Parallel
from moesim.models.bare_setting import bare_setting
from moesim.models.capacity.dropless import keep_all
from moesim.models.dispatch.even import Even
from moesim.models.placement.eplb import Eplb
from moesim.models.source.router import Router

LAYERS, RANKS, WINDOW, LATER = 40, 32, 12, 2


def imbalance():
    """Mean imbalance of ranks and slots over layers and steps: without EPLB, and with 288 slots planned on the steps before."""
    plain = bare_setting(gpus=RANKS, experts=256, top_k=8, layers=LAYERS, tokens_per_gpu=128, seed=7, read_trace=lambda path: None)
    setting = replace(plain, parallel=Parallel(ep=RANKS))
    draw = Router(preset="deepseek-r1").begin(setting)
    past = np.array([[layer.counts.sum(axis=0) for layer in draw(step).layers] for step in range(WINDOW)])
    plan = Eplb(redundant=32, window=WINDOW, interval=WINDOW, algorithm="global").begin(setting)
    start = plan(View(step=0, loads=past[:0], placement=None))
    placement = plan(View(step=WINDOW, loads=past, placement=start))
    bind = Even().begin(setting)
    experts, slots = [], []
    for step in range(WINDOW, WINDOW + LATER):
        for index, layer in enumerate(draw(step).layers):
            experts.append(layer.counts.sum(axis=0))
            kept = keep_all(layer, step=step, moe_layer=index)
            slots.append(bind(kept, placement, step=step, moe_layer=index).slot_counts.sum(axis=0))
    return np.array(experts), np.array(slots), placement.rank_of_slot


def test_eplb_under_the_fitted_router_meets_the_published_figures_within_a_tenth():
    experts, slots, rank_of_slot = imbalance()
    ranks_before = experts.reshape(len(experts), RANKS, -1).sum(axis=2)
    assert (np.bincount(rank_of_slot, minlength=RANKS) == 9).all()
    ranks_after = np.stack([np.bincount(rank_of_slot, weights=row, minlength=RANKS) for row in slots])
    found = {
        "ranks, max over mean less 1": (maxvio(ranks_before).mean(), 1.564),
        "ranks, deviation over mean": (coefficient_of_variation(ranks_before).mean(), 0.480),
        "experts, max over mean less 1": (maxvio(experts).mean(), 10.948),
        "experts, deviation over mean": (coefficient_of_variation(experts).mean(), 164.1 / 128),
        "EPLB: ranks, max over mean less 1": (maxvio(ranks_after).mean(), 0.109),
        "EPLB: ranks, deviation over mean": (coefficient_of_variation(ranks_after).mean(), 52.0 / 1024),
        "EPLB: slots, max over mean less 1": (maxvio(slots).mean(), 1.792),
        "EPLB: slots, deviation over mean": (coefficient_of_variation(slots).mean(), 77.8 / 114),
    }
    for name, (ours, published) in found.items():
        assert ours == pytest.approx(published, rel=0.1), name
