"""Checks of moesim.testing: each rule of all plug-ins and of metrics is broken once, and the right one is named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar

import numpy as np
import pytest
from plugins_of_tests import Own, broken

from moesim.base.errors import FidelityError, PluginError
from moesim.base.registry import plugin
from moesim.facts.routing import LayerRouting
from moesim.testing import (
    check_capacity,
    check_compute,
    check_dispatch,
    check_exchange,
    check_gate,
    check_metric,
    check_placement,
    check_source,
    tiny_records,
)


def test_plugin_must_be_a_frozen_documented_dataclass() -> None:
    class Plain:
        """Not a dataclass."""

    @dataclass
    class Thawed:
        """Not frozen."""

    @dataclass(frozen=True)
    class Silent:
        pass

    Silent.__doc__ = None
    for thing, word in ((Plain(), "not a dataclass"), (Thawed(), "not frozen"), (Silent(), "no docstring")):
        assert word in broken("plug-in", check_gate, thing)
    assert "registered in the slot 'gate'" in broken("plug-in", check_placement, plugin("gate", "as_given")())


def test_refusing_everything_is_no_answer() -> None:
    def start(setting: Any) -> Any:
        raise PluginError("not today")

    for check in (check_source, check_gate, check_capacity, check_placement, check_dispatch, check_exchange, check_compute):
        assert "the last refusal: not today" in broken("answers", check, Own(start))


def test_refusing_what_knows_too_little_is_fine() -> None:
    def start(setting: Any) -> Any:
        def choose(routing: LayerRouting, **where: int) -> LayerRouting:
            if routing.scores is None:
                raise FidelityError("needs scores")
            return routing

        return choose

    check_gate(Own(start))


def metric(answer: Callable[[Any], Any], **variables: Any) -> Any:
    @dataclass(frozen=True)
    class Measured:
        """A metric of a test."""

        unit: ClassVar[str] = variables.get("unit", "s")
        better: ClassVar[str] = variables.get("better", "lower")
        rests_on: ClassVar[tuple[str, ...]] = variables.get("rests_on", ("routing",))

        def measure(self, record: Any) -> Any:
            return answer(record)

    return Measured()


def step_times(record: Any) -> Any:
    return np.array(record.tables["steps"]["step_time_s"])


@pytest.mark.parametrize(
    ("rule", "answer", "variables"),
    [
        ("declaration", step_times, {"better": "smaller"}),
        ("declaration", step_times, {"rests_on": "routing"}),
        ("declaration", step_times, {"unit": None}),
        ("shape", lambda record: step_times(record)[:-1], {}),
        ("shape", lambda record: 1.0, {}),
        ("range", lambda record: step_times(record) * np.inf, {}),
        # A metric in seconds that is a rate, one that adds seconds to bytes, a pure number with a dimension.
        ("dimension", lambda record: 1.0 / step_times(record), {}),
        ("dimension", lambda record: step_times(record) + record.tables["gpus"]["peak_memory_bytes"][0], {}),
        ("dimension", step_times, {"unit": ""}),
        ("dimension", step_times, {"unit": "B"}),
    ],
)
def test_metric_that_breaks_a_rule(rule: str, answer: Callable[[Any], Any], variables: dict[str, Any]) -> None:
    broken(rule, check_metric, metric(answer, **variables))


def test_metric_that_changes_the_record() -> None:
    record = next(iter(tiny_records()))
    tables = {name: dataclasses.replace(table, columns=dict(table.columns)) for name, table in record.tables.items()}
    own = dataclasses.replace(record, tables=tables)

    def answer(record: Any) -> Any:
        columns = record.tables["steps"].columns
        if columns["step_time_s"][0] > 100:  # only in the record of this test
            columns["waiting_s"] = columns["waiting_s"] + 1.0
        return np.array(columns["step_time_s"])

    tables["steps"].columns["step_time_s"] = np.full(len(own.steps), 200.0)
    broken("read-only", check_metric, metric(answer), record=own)


def test_metric_that_is_never_the_same() -> None:
    counter = count()
    broken("law L8", check_metric, metric(lambda record: step_times(record) + next(counter)))
