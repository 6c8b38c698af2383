"""Checks of moesim.testing: each rule of compute models and schedules is broken once, and the right one is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import pytest
from plugins_of_tests import Own, broken

from moesim.base.registry import plugin
from moesim.facts.program import Program, Task
from moesim.testing import (
    check_compute,
    check_schedule,
)


def kernels(**methods: Callable[..., Any]) -> Own:
    def start(setting: Any) -> Any:
        honest = plugin("compute", "roofline")().begin(setting)

        class Kernels:
            basis = methods.get("basis", honest.basis)

            def dense(self, flops: Any, moved: Any, *, dtype: str) -> Any:
                return methods.get("dense", lambda times, flops: times)(honest.dense(flops, moved, dtype=dtype), flops)

            def experts(self, rows: Any, *, direction: str) -> Any:
                return methods.get("experts", lambda times, rows: times)(honest.experts(rows, direction=direction), rows)

        return Kernels()

    return Own(start)


@pytest.mark.parametrize(
    ("rule", "methods"),
    [
        ("evidence", {"basis": "rumour"}),
        ("no work", {"dense": lambda times, flops: times + 1e-6}),
        ("no work", {"experts": lambda times, rows: times + 1e-6}),
        ("monotone", {"dense": lambda times, flops: np.where(flops >= 1e12, times / 1e6, times)}),
        ("monotone", {"experts": lambda times, rows: np.where(rows.sum(axis=1) > 500, times / 1e6, times)}),
        ("own rows", {"experts": lambda times, rows: times + rows.sum() * 1e-9}),
        ("range", {"experts": lambda times, rows: times - 1.0}),
        ("shape", {"dense": lambda times, flops: times[:-1]}),
    ],
)
def test_compute_model_that_breaks_a_rule(rule: str, methods: dict[str, Any]) -> None:
    broken(rule, check_compute, kernels(**methods))


def test_compute_model_that_is_never_the_same() -> None:
    counter = count(1)

    def start(setting: Any) -> Any:
        factor = float(next(counter))
        return kernels(experts=lambda times, rows: times * factor).begin(setting)

    broken("law L8", check_compute, Own(start))


def scheduled(change: Callable[[tuple[Task, ...]], tuple[Task, ...]]) -> Any:
    @dataclass(frozen=True)
    class Changed:
        """The sequential schedule with changed tasks."""

        def program(self, model: Any, workload: Any) -> Program:
            return Program(tasks=change(plugin("schedule", "sequential")().program(model, workload).tasks))

    return Changed()


def without(phase: str) -> Callable[[tuple[Task, ...]], tuple[Task, ...]]:
    def change(tasks: tuple[Task, ...]) -> tuple[Task, ...]:
        left = [task for task in tasks if task.work.phase != phase]
        return tuple(replace(task, after=(number - 1,) if number else ()) for number, task in enumerate(left))

    return change


def each(change: Callable[[int, Task], Task]) -> Callable[[tuple[Task, ...]], tuple[Task, ...]]:
    return lambda tasks: tuple(change(number, task) for number, task in enumerate(tasks))


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("once", without("combine")),
        ("once", without("shared")),
        ("once", lambda tasks: (*tasks, tasks[0])),
        ("law L6", each(lambda number, task: replace(task, after=(number + 1,)))),
        # Experts on the compute lane that wait for nothing are not held back by a dispatch on the other lane.
        ("law L6", each(lambda number, task: replace(task, after=()))),
        ("layers", each(lambda number, task: replace(task, work=replace(task.work, moe_layer=7)))),
        ("lane", each(lambda number, task: replace(task, lane="elsewhere"))),
        ("once", each(lambda number, task: replace(task, work=replace(task.work, direction="sideways")))),
    ],
)
def test_schedule_that_breaks_a_rule(rule: str, change: Callable[[Any], Any]) -> None:
    broken(rule, check_schedule, scheduled(change))


def test_schedule_that_goes_backward_without_training() -> None:
    @dataclass(frozen=True)
    class Eager:
        """Always trains."""

        def program(self, model: Any, workload: Any) -> Program:
            return plugin("schedule", "sequential")().program(model, replace(workload, phase="training"))

    assert "nobody asked for" in broken("once", check_schedule, Eager())
