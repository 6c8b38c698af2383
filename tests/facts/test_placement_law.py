"""Law L11 of a placement: every expert lives somewhere, every slot exists, and a message says where the law is broken."""

import numpy as np
import pytest

from moesim.base.errors import PluginError
from moesim.facts.placement import Placement

# 2 layers, 4 slots on 2 ranks, 3 experts: expert 0 has two replicas in layer 0, expert 2 in layer 1.
EXPERTS = [[0, 1, 2, 0], [2, 2, 0, 1]]
RANKS = [0, 0, 1, 1]


def check(expert_of_slot=EXPERTS, rank_of_slot=RANKS, *, layers=2, experts=3, ranks=2):
    Placement(expert_of_slot=np.array(expert_of_slot), rank_of_slot=np.array(rank_of_slot)).check(
        layers=layers, experts=experts, ranks=ranks, who="placement 'mine'"
    )


def test_l11_replicas_are_lawful():
    check()


def test_slots_per_rank_counts_ranks_without_slots_too():
    placement = Placement(expert_of_slot=[[0, 1, 2]], rank_of_slot=[1, 1, 0])
    assert (placement.layers, placement.slots) == (1, 3)
    assert placement.slots_per_rank(4).tolist() == [1, 2, 0, 0]


@pytest.mark.parametrize(
    ("ranks_of_slots", "bad"),
    [
        ([0, 0, 1, 2], 2),  # one more than the last: ranks count from 0
        ([0, 0, 1, 7], 7),
        ([0, -1, 1, 1], -1),
    ],
)
def test_l11_slots_sit_on_ranks_that_exist(ranks_of_slots, bad):
    with pytest.raises(PluginError, match=rf"^placement 'mine': a slot sits on rank {bad}, but the ranks are 0 to 1 \(law L11\)$"):
        check(rank_of_slot=ranks_of_slots)


@pytest.mark.parametrize(
    ("row", "bad"),
    [
        ([2, 3, 0, 1], 3),  # one more than the last expert
        ([2, 9, 0, 1], 9),
        ([2, -1, 0, 1], -1),  # the expert that does not exist is named, not the largest that does
    ],
)
def test_l11_slots_hold_experts_that_exist(row, bad):
    with pytest.raises(PluginError, match=rf"^placement 'mine': layer 1 holds expert {bad}, but experts are 0 to 2 \(law L11\)$"):
        check([EXPERTS[0], row])


@pytest.mark.parametrize(
    ("row", "missing"),
    [
        ([1, 1, 2, 2], 0),
        ([0, 0, 2, 2], 1),
        ([0, 1, 0, 1], 2),  # the last one: counting up to the largest that is there would not miss it
        ([1, 1, 1, 1], 0),  # of several the first is named
    ],
)
@pytest.mark.parametrize("layer", [0, 1])
def test_l11_every_expert_lives_somewhere_in_every_layer(row, missing, layer):
    rows = [row, EXPERTS[1]] if layer == 0 else [EXPERTS[0], row]
    with pytest.raises(PluginError, match=rf"^placement 'mine': expert {missing} of layer {layer} lives nowhere \(law L11\)$"):
        check(rows)


def test_l11_no_slots_hold_no_expert():
    with pytest.raises(PluginError, match="expert 0 of layer 0 lives nowhere"):
        check(np.zeros((2, 0), dtype=int), np.zeros(0, dtype=int))


@pytest.mark.parametrize(("layers", "slots"), [(1, 4), (3, 4), (2, 3)])
def test_l11_every_layer_has_a_row_and_every_slot_a_column(layers, slots):
    shape = rf"expert_of_slot has shape \({layers}, {slots}\), expected \(2, 4\) \(law L11\)$"
    with pytest.raises(PluginError, match=rf"^placement 'mine': {shape}"):
        check(np.zeros((layers, slots), dtype=int))
