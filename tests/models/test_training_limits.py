"""Coefficients beyond reason: refused where they are written, and by the step at which they have driven a router apart."""

import warnings

import numpy as np
import pytest

from moesim.base.errors import PluginError
from moesim.base.registry import build, plugin
from moesim.models.bare_setting import bare_setting


def no_file(path):
    raise AssertionError(path)


@pytest.mark.parametrize(
    ("slot", "kind", "keys"),
    [
        ("source", "training", {"auxiliary": 1e30}),
        ("source", "training", {"z": [[0, 0.1], [10, 1001]]}),
        ("source", "training", {"noise": 1e300}),
        ("source", "training", {"feedback": 1e300}),
        ("source", "training", {"gain": [[0, 1], [1, 1e9]]}),
        ("gate", "loss_free", {"rate": 1e300}),
        ("gate", "noisy_topk", {"amount": 1e9}),
    ],
)
def test_no_coefficient_is_beyond_a_thousand(slot, kind, keys):
    with pytest.raises(Exception, match="too large: it must be at most 1000"):
        build(plugin(slot, kind), keys)


def test_a_router_that_is_driven_apart_is_refused_with_the_step_and_the_weight():
    # The z-loss pulls every logit down by as much as it is large, times the weight: from some weight on each step overshoots by more.
    setting = bare_setting(gpus=2, experts=8, top_k=2, layers=1, tokens_per_gpu=64, seed=1, read_trace=no_file)
    draw = plugin("source", "training")(z=((0, 300.0),)).begin(setting)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PluginError, match=r"training step \d+, MoE layer 0: the scores of the router have grown to .*now z 300"):
            draw(60).layers[0]
    weak = plugin("source", "training")(z=((0, 0.01),)).begin(setting)
    assert np.isfinite(weak(60).layers[0].counts).all()
