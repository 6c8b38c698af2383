from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from moesim.base.errors import PluginError
from moesim.base.registry import SLOTS, register
from moesim.facts.contracts import Record
from moesim.facts.record import Value
from moesim.measure.collect import FIRST, measure_all, metrics, summarise

BASES = {"compute": "fitted", "network": "datasheet", "routing": "exact", "accounting": "assumed"}


@pytest.fixture
def metric_slot(monkeypatch: pytest.MonkeyPatch) -> dict[str, type]:
    """The metric slot as a copy, so that a test's own metric is gone afterwards."""
    metrics()
    known = dict(SLOTS["metric"].known)
    slot = SLOTS["metric"]
    monkeypatch.setitem(
        SLOTS, "metric", type(slot)(name=slot.name, package=slot.package, tag=slot.tag, plural=slot.plural, null=slot.null, known=known)
    )
    return known


def _put(kind: str, answer: Any, **variables: Any) -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Own:
        """A metric of a test."""

        def measure(self, record: Record) -> Any:
            return answer(record)

    for name, value in {"unit": "", "better": "lower", "rests_on": ("routing",), **variables}.items():
        setattr(Own, name, value)
    Own.__qualname__ = kind
    register("metric", kind)(Own)


def test_order_is_that_of_the_design_and_then_by_name() -> None:
    names = list(metrics())
    assert tuple(names[: len(FIRST)]) == FIRST
    assert names[len(FIRST) :] == sorted(names[len(FIRST) :])
    assert "waiting_share" in names[len(FIRST) :]


def test_value_is_the_mean_over_steps_with_students_interval(record: Record) -> None:
    # Samples 2 and 4: mean 3, standard error sqrt(2) / sqrt(2) = 1, t quantile of 97.5 % with one degree of freedom = 12.7062.
    value = measure_all(record, BASES)["step_time"]
    assert value.value == 3.0
    assert value.low == 0.0  # 3.0 - 12.7062047 would be below 0, where no time can be
    assert value.high == pytest.approx(3.0 + 12.7062047)
    assert (value.n, value.unit) == (2, "s")


def test_basis_is_the_weakest_of_what_a_metric_rests_on(record: Record) -> None:
    values = measure_all(record, BASES)
    assert values["step_time"].basis == "datasheet"
    assert values["expert_time"].basis == "fitted"
    assert values["drop_rate"].basis == "exact"


def test_steps_without_an_answer_are_left_out(record: Record) -> None:
    # all_to_all_contention is 1.5 in step 3 and unknown in step 4: one sample has no interval.
    assert measure_all(record, BASES)["all_to_all_contention"] == Value(value=1.5, unit="", low=None, high=None, n=1, basis="datasheet")


def test_no_answer_at_all_is_none(record: Record, metric_slot: dict[str, type]) -> None:
    _put("unanswerable", lambda record: np.full(len(record.steps), np.nan))
    assert measure_all(record, BASES)["unanswerable"] == Value(value=None, unit="", low=None, high=None, n=0, basis="exact")


def test_one_number_of_the_whole_run_has_no_interval(record: Record) -> None:
    values = measure_all(record, BASES)
    assert values["peak_memory"] == Value(value=9e9, unit="B", low=None, high=None, n=2, basis="assumed")
    assert values["dead_experts"] == Value(value=0.5, unit="", low=None, high=None, n=2, basis="exact")


def test_largest_sample_counts_where_a_metric_says_so(record: Record, metric_slot: dict[str, type]) -> None:
    _put("largest", lambda record: record.tables["steps"]["step_time_s"], summary="max")
    assert measure_all(record, BASES)["largest"].value == 4.0


def test_metric_of_somebody_else_is_measured_too(record: Record, metric_slot: dict[str, type]) -> None:
    @register("metric", "idle_share")
    @dataclass(frozen=True, slots=True, kw_only=True)
    class IdleShare:
        """Share of the step in which a GPU does nothing."""

        unit: ClassVar[str] = ""
        better: ClassVar[str] = "lower"
        rests_on: ClassVar[tuple[str, ...]] = ("compute",)

        def measure(self, record: Record) -> np.ndarray:
            return np.asarray(record.tables["steps"]["waiting_s"] / record.tables["steps"]["step_time_s"])

    values = measure_all(record, BASES)
    assert values["idle_share"].value == pytest.approx(0.375)
    assert list(values)[: len(FIRST)] == list(FIRST)


@pytest.mark.parametrize(
    ("answer", "variables", "message"),
    [
        (lambda record: np.zeros(5), {}, r"'broken' returned shape \(5,\), expected \(2,\)"),
        (lambda record: np.array([1.0, np.inf]), {}, "'broken' is infinite in step 4"),
        (lambda record: record.tables["nothing"], {}, "'broken' failed: KeyError: 'nothing'"),
        (lambda record: np.zeros(2), {"better": "smaller"}, "'better', one of lower, higher, neither"),
        (lambda record: np.zeros(2), {"rests_on": ("weather",)}, "'rests_on', a tuple of words among compute"),
        (lambda record: np.zeros(2), {"summary": "median"}, "summary 'median'"),
        (lambda record: np.zeros(2), {"unit": None}, "class variable 'unit'"),
    ],
)
def test_broken_metric_is_refused_by_name(
    answer: Any, variables: dict[str, Any], message: str, record: Record, metric_slot: dict[str, type]
) -> None:
    _put("broken", answer, **variables)
    with pytest.raises(PluginError, match=message):
        measure_all(record, BASES)


def test_metric_that_cannot_be_made_without_arguments_is_refused(record: Record, metric_slot: dict[str, type]) -> None:
    @register("metric", "needy")
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Needy:
        """A metric with a field that has no default."""

        threshold: float
        unit: ClassVar[str] = ""

    with pytest.raises(PluginError, match="'needy' needs values for threshold"):
        measure_all(record, BASES)


def test_a_metric_known_only_in_a_repeated_step_has_one_sample() -> None:
    # The fresh step cannot tell; the step that repeats it can.
    value = summarise(metrics()["step_time"], np.array([np.nan, 2.0]), BASES, fresh=np.array([True, False]))
    assert (value.value, value.low, value.high, value.n) == (2.0, None, None, 1)
