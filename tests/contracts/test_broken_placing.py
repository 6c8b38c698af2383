"""Checks of moesim.testing: each rule of placements and dispatches is broken once, and the right one is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest
from plugins_of_tests import Own, broken, changed

from moesim.base.registry import plugin
from moesim.facts.placement import Placement
from moesim.testing import (
    check_dispatch,
    check_placement,
    tiny_setting,
)


def contiguous(setting: Any, *, shift: int = 0) -> Placement:
    experts = setting.model.experts
    return Placement(
        expert_of_slot=np.tile((np.arange(experts) + shift) % experts, (len(setting.model.moe_layers), 1)),
        rank_of_slot=np.arange(experts) * setting.parallel.ep // experts,
    )


def placing(decide: Callable[..., Placement | None]) -> Own:
    return Own(lambda setting: lambda view: decide(setting, view))


def test_placement_that_forgets_an_expert() -> None:
    def decide(setting: Any, view: Any) -> Placement:
        good = contiguous(setting)
        return replace(good, expert_of_slot=np.maximum(good.expert_of_slot, 1))

    assert "expert 0 of layer 0 lives nowhere" in broken("law L11", check_placement, placing(decide))


def test_placement_that_has_nothing_at_first() -> None:
    broken("first call", check_placement, placing(lambda setting, view: None))


def test_placement_that_looks_behind_the_view() -> None:
    # The loads it is shown are a window into an array that holds the future, too.
    def decide(setting: Any, view: Any) -> Placement:
        everything = view.loads if view.loads.base is None else view.loads.base
        return contiguous(setting, shift=int(everything.sum()))

    broken("law L12", check_placement, placing(decide))


def test_placement_whose_decisions_depend_on_an_earlier_run() -> None:
    counter = count()

    def start(setting: Any) -> Any:
        placement = contiguous(setting, shift=next(counter))
        return lambda view: placement

    broken("law L8", check_placement, Own(start))


def test_placement_that_shares_state_between_runs() -> None:
    # The instance remembers the loads it saw last, whichever run they belong to; one run after the other looks fine.
    memory: dict[int, int] = {}

    def decide(setting: Any, view: Any) -> Placement:
        if view.step == 0:
            memory.clear()
        if len(view.loads):
            memory[view.step] = memory.get(view.step, 0) + int(view.loads[-1].sum())
        return contiguous(setting, shift=memory.get(view.step, 0))

    broken("state", check_placement, placing(decide))


def less(rows: np.ndarray) -> np.ndarray:
    out = np.array(rows)
    out[tuple(np.argwhere(out > 0)[0])] -= 1
    return out


def other_slot(assignment: Any) -> Any:
    if assignment.slots is None:
        return assignment
    slots = np.array(assignment.slots)
    token, choice = np.argwhere(slots >= 0)[0]
    slots[token, choice] = (slots[token, choice] + 1) % assignment.destination.shape[1]
    return replace(assignment, slots=slots)


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("law L1", lambda assignment: replace(assignment, slot_counts=less(assignment.slot_counts))),
        ("law L1", lambda assignment: replace(assignment, slot_padding=less(assignment.slot_padding))),
        ("law L11", other_slot),
        ("law L1", lambda a: a if a.slots is None else replace(a, slots=np.full_like(a.slots, -1))),
        ("own group", lambda assignment: replace(assignment, destination=assignment.destination[::-1])),
        ("fidelity", lambda assignment: replace(assignment, slots=None)),
        ("shape", lambda assignment: replace(assignment, slot_counts=assignment.slot_counts[:, :-1])),
        ("law L1", lambda a: replace(a, kept=replace(a.kept, dropped=a.kept.dropped + 1))),
    ],
)
def test_dispatch_that_breaks_a_rule(rule: str, change: Callable[[Any], Any]) -> None:
    settings = [tiny_setting(ep=2)]  # two groups, so that there is another one
    broken(rule, check_dispatch, changed("dispatch", "even", change), settings=settings)


def less_shared(assignment: Any) -> Any:
    """One row less for the shared expert, which comes last."""
    rows = np.array(assignment.slot_counts)
    gpu, slot = np.argwhere(rows[:, -assignment.shared_slots :] > 0)[0]
    rows[gpu, slot - assignment.shared_slots] -= 1
    return replace(assignment, slot_counts=rows)


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("law L1", less_shared),
        ("law L1", lambda a: replace(a, slots=np.where(np.arange(a.slots.shape[1]) == a.slots.shape[1] - 1, -1, a.slots))),
        ("law L11", lambda a: replace(a, slots=np.where(a.slots == a.slots[0, -1], 0, a.slots))),
        ("own group", lambda a: replace(a, destination=np.hstack([a.destination[:, :-2], a.destination[:, -2:][:, ::-1]]))),
        ("shape", lambda a: replace(a, shared_slots=1)),
        ("shape", lambda a: replace(a, slots=a.slots[:, :-1])),
    ],
)
def test_dispatch_of_shared_rows_that_breaks_a_rule(rule: str, change: Callable[[Any], Any]) -> None:
    broken(rule, check_dispatch, changed("dispatch", "waterfill", change), settings=[tiny_setting(ep=2)])


def test_dispatch_that_binds_differently_every_time() -> None:
    # Every other run swaps what two replicas of an expert get, where only counts are known.
    counter = count()

    def start(setting: Any) -> Any:
        turn = next(counter)
        bind = plugin("dispatch", "even")().begin(setting)

        def other(kept: Any, placement: Placement, **where: int) -> Any:
            answer = bind(kept, placement, **where)
            if turn % 2 == 0 or answer.slots is not None:
                return answer
            held = placement.expert_of_slot[where["moe_layer"]]
            counts = np.array(answer.slot_counts)
            for expert in range(kept.routing.experts):
                replicas = np.flatnonzero(held == expert)
                counts[:, replicas] = counts[:, replicas[::-1]]
            return replace(answer, slot_counts=counts)

        return other

    broken("law L8", check_dispatch, Own(start))
