"""Checks of moesim.testing: each rule of sources, gates and capacity rules is broken once, and the right one is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import pytest
from plugins_of_tests import Own, broken, changed

from moesim.base.registry import plugin
from moesim.facts.routing import LayerRouting, Routing, count_routes
from moesim.testing import (
    check_capacity,
    check_gate,
    check_source,
)


def of_layers(change: Callable[[LayerRouting], LayerRouting]) -> Callable[[Routing], Routing]:
    return lambda routing: replace(routing, layers=tuple(change(layer) for layer in routing.layers))


def twice(layer: LayerRouting) -> LayerRouting:
    ids = np.array(layer.ids)
    ids[-1, -1] = ids[-1, 0]
    if ids.shape[1] == 1:
        return layer
    return replace(layer, ids=ids, counts=count_routes(ids, layer.token_start, layer.experts))


def outside(layer: LayerRouting) -> LayerRouting:
    ids = np.array(layer.ids)
    ids[0, 0] = layer.experts
    return replace(layer, ids=ids)


def miscounted(layer: LayerRouting) -> LayerRouting:
    counts = np.array(layer.counts)
    counts[0, 0] += 1
    return replace(layer, counts=counts)


def started_wrong(layer: LayerRouting) -> LayerRouting:
    return replace(layer, token_start=layer.token_start + 1)


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("law L11", of_layers(twice)),
        ("law L11", of_layers(outside)),
        ("law L1", of_layers(miscounted)),
        ("range", of_layers(started_wrong)),
        ("shape", lambda routing: replace(routing, layers=routing.layers[:1])),
        ("shape", of_layers(lambda layer: replace(layer, counts=layer.counts[:, :-1]))),
        ("evidence", lambda routing: replace(routing, basis="rumour")),
    ],
)
def test_source_that_breaks_a_rule(rule: str, change: Callable[[Any], Any]) -> None:
    broken(rule, check_source, changed("source", "uniform", change))


def test_source_that_never_draws_the_same_twice() -> None:
    def start(setting: Any) -> Any:
        counter = count()
        honest = plugin("source", "uniform")()
        return lambda step: honest.begin(setting)(next(counter))

    broken("law L8", check_source, Own(start))


def test_source_whose_draws_depend_on_what_was_drawn_before() -> None:
    # It remembers what it drew for each step, so asking again agrees; another order of steps does not.
    def start(setting: Any) -> Any:
        draws: dict[int, Routing] = {}
        draw = plugin("source", "uniform")().begin(setting)
        return lambda step: draws.setdefault(step, draw(len(draws)))

    broken("law L9", check_source, Own(start))


def test_gate_that_chooses_an_expert_twice() -> None:
    broken("law L11", check_gate, changed("gate", "as_given", lambda layer: twice(layer) if layer.ids is not None else layer))


def test_gate_that_moves_tokens_to_another_gpu() -> None:
    def moved(layer: LayerRouting) -> LayerRouting:
        start = np.array(layer.token_start)
        start[1] += 1
        counts = layer.counts if layer.ids is None else count_routes(layer.ids, start, layer.experts)
        return replace(layer, token_start=start, counts=counts)

    broken("law L1", check_gate, changed("gate", "as_given", moved))


def test_gate_that_forgets_the_tokens() -> None:
    broken("fidelity", check_gate, changed("gate", "as_given", lambda layer: replace(layer, ids=None, weights=None, scores=None)))


def test_gate_whose_runs_share_state() -> None:
    counter = count()

    def rolled(layer: LayerRouting) -> LayerRouting:
        if layer.ids is None:
            return layer
        ids = (layer.ids + next(counter)) % layer.experts
        return LayerRouting.of_tokens(ids, layer.token_start, layer.experts, weights=layer.weights, scores=layer.scores)

    broken("law L8", check_gate, changed("gate", "as_given", rolled))


def kept_with(**values: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda kept: replace(kept, **{name: value(kept) for name, value in values.items()})


def unweighted(kept: Any) -> Any:
    if kept.routing.weights is None:
        return kept
    return replace(kept, routing=replace(kept.routing, weights=np.ones_like(kept.routing.weights)))


def exchanged(kept: Any) -> Any:
    # Two tokens of one GPU swap their experts: all counts stay right.
    if kept.routing.ids is None:
        return kept
    ids = np.array(kept.routing.ids)
    first = {token: ids[token, 0] for token in range(16) if ids[token, 0] >= 0}
    one, other = next((i, j) for i in first for j in first if first[i] not in ids[j] and first[j] not in ids[i])
    ids[[one, other], 0] = ids[[other, one], 0]
    return replace(kept, routing=replace(kept.routing, ids=ids))


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("law L1", kept_with(dropped=lambda kept: kept.dropped * 0)),
        ("law L1", kept_with(fully_dropped=lambda kept: None if kept.fully_dropped is None else kept.fully_dropped + 1)),
        ("range", kept_with(padding=lambda kept: kept.padding - 1)),
        ("capacity", kept_with(capacity=lambda kept: kept.capacity - 1)),
        ("weights", unweighted),
        ("fidelity", kept_with(routing=lambda kept: replace(kept.routing, ids=None))),
        ("fidelity", kept_with(fully_dropped=lambda kept: kept.fully_dropped or 0)),
        ("shape", kept_with(dropped=lambda kept: kept.dropped[:-1])),
    ],
)
def test_capacity_rule_that_breaks_a_rule(rule: str, change: Callable[[Any], Any]) -> None:
    broken(rule, check_capacity, changed("capacity", "megatron", change, factor=0.5))


def test_capacity_rule_that_lets_tokens_swap_experts() -> None:
    message = broken("law L1", check_capacity, changed("capacity", "megatron", exchanged, factor=1.0))
    assert "was expert" in message
    assert "and became" in message


def test_capacity_rule_that_drops_with_a_factor_that_allows_everything() -> None:
    @dataclass(frozen=True)
    class Stingy:
        """Takes only half of what the factor says."""

        factor: float

        def begin(self, setting: Any) -> Any:
            return plugin("capacity", "megatron")(factor=self.factor / 2).begin(setting)

    assert "factor 4 = E/k drops" in broken("law L15", check_capacity, Stingy(1.0))
