"""Shared experts that other ranks compute, in whole runs."""

import dataclasses

import numpy as np
import pytest
from worlds import play, small_model

from moesim.base.errors import LawBroken
from moesim.base.registry import plugin
from moesim.facts.scenario import Parallel, Policy, Scenario, Workload
from moesim.models.topology.one_switch import OneSwitch


def scenario(dispatch, **keys):
    model = dataclasses.replace(small_model(8, 2), shared_experts=1, shared_width=small_model(8, 2).expert_width)
    return Scenario(
        name="shared rows",
        steps=2,
        model=model,
        cluster=OneSwitch(gpus=4),
        parallel=Parallel(ep=4),
        workload=Workload(tokens_per_gpu=128, phase="prefill"),
        routing=plugin("source", "lognormal")(sigma=1.5),
        policy=Policy(dispatch=dispatch),
        **keys,
    )


def test_the_experts_kernel_computes_shared_rows_and_no_rank_computes_them_beside():
    plain, filled = play(scenario(plugin("dispatch", "static")())), play(scenario(plugin("dispatch", "waterfill")()))
    assert plain.tables["steps"]["shared_s"].min() > 0
    assert filled.tables["steps"]["shared_s"].tolist() == [0.0, 0.0]
    # 128 tokens x 2 choices a GPU in each layer, and 128 shared rows more.
    assert plain.tables["layers"]["rank_mean"].tolist() == [256.0] * 4
    assert filled.tables["layers"]["rank_mean"].tolist() == [384.0] * 4
    # The same tokens, of which rows of shared experts travel now.
    assert (filled.tables["layers"]["dispatch_bytes"] > plain.tables["layers"]["dispatch_bytes"]).all()
    np.testing.assert_array_equal(filled.tables["layers"]["routes"], plain.tables["layers"]["routes"])


def test_what_a_rank_computes_in_all_is_more_even():
    plain, filled = play(scenario(plugin("dispatch", "static")())), play(scenario(plugin("dispatch", "waterfill")()))
    # With plain dispatch every rank computes its 128 shared rows itself: the fullest has rank_max + 128 of 384 on average.
    beside = (plain.tables["layers"]["rank_max"] + 128) / 384
    assert (filled.tables["layers"]["rank_max"] / filled.tables["layers"]["rank_mean"] < beside).all()


def test_a_schedule_that_hides_shared_experts_is_told_that_there_are_none():
    found = play(scenario(plugin("dispatch", "waterfill")(), schedule=plugin("schedule", "shared_expert")()))
    assert any("dispatch waterfill computes shared experts with the routed ones" in text for text in found.warnings)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Forgetful:
    """Binds as waterfill does, and then does something wrong."""

    how: str
    kind = "forgetful"

    def begin(self, setting):
        good = plugin("dispatch", "waterfill")().begin(setting)

        def bind(kept, placement, *, step, moe_layer):
            answer = good(kept, placement, step=step, moe_layer=moe_layer)
            if self.how == "lose":
                fewer = answer.slot_counts.copy()
                fewer[2, int(np.argmax(fewer[2, -4:])) - 4] -= 1
                return dataclasses.replace(answer, slot_counts=fewer)
            if self.how == "move":
                moved = answer.destination.copy()
                moved[1, -4:] = moved[1, -4:][::-1]
                return dataclasses.replace(answer, destination=moved)
            return dataclasses.replace(answer, shared_slots=3)

        return bind


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("lose", "GPU 2 has 128 tokens, of which the shared experts of its group compute 127"),
        ("move", "GPU 1 looks for the shared expert of rank 0 on GPU 3"),
        ("miscount", "made 3 slots for the shared expert, where each of the 4 ranks has one"),
    ],
)
def test_l1_shared_rows_that_are_lost_or_go_astray_are_caught(how, message):
    with pytest.raises(LawBroken, match=message):
        play(scenario(Forgetful(how=how)))
