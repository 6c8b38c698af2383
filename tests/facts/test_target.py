"""Targets and the sections of plans: what is read, what is refused, and that writing gives the same back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.base.errors import FieldError
from moesim.facts.plan import Plan, Price, PriceText, Sensitivity
from moesim.facts.target import Target, parse_target


@pytest.mark.parametrize(
    ("text", "metric", "sense", "limit", "of_memory"),
    [
        ("step_time <= 60 ms", "step_time", "<=", 0.06, False),
        ("step_time<=60ms", "step_time", "<=", 0.06, False),
        ("tokens_per_second >= 2e6", "tokens_per_second", ">=", 2e6, False),
        ("tokens_per_second>=250e3 tokens/s", "tokens_per_second", ">=", 250e3, False),
        ("drop_rate <= 1 %", "drop_rate", "<=", 0.01, False),
        ("drop_rate ≤ 0.01", "drop_rate", "<=", 0.01, False),
        ("peak_memory <= 0.9 of GPU memory", "peak_memory", "<=", 0.9, True),
        ("peak_memory <= 90% of the gpu memory", "peak_memory", "<=", 0.9, True),
        ("peak_memory <= 64 GiB", "peak_memory", "<=", 64 * 2.0**30, False),
        ("gpus <= 64", "gpus", "<=", 64.0, False),
    ],
)
def test_what_is_read(text, metric, sense, limit, of_memory):
    target = parse_target(text)
    assert (target.metric, target.sense, target.of_memory) == (metric, sense, of_memory)
    assert target.limit == pytest.approx(limit, rel=1e-15)
    assert parse_target(str(target)) == target


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("step_tme <= 60 ms", "did you mean 'step_time'"),
        ("step_time <= 60", "no unit"),
        ("step_time <= 60 GB", "unknown unit 'GB' of a time"),
        ("step_time < 60 ms", "write <= or >="),
        ("step_time = 60 ms", "write <= or >="),
        ("step_time", "cannot read"),
        ("step_time <=", "cannot read"),
        ("step_time <= 0.5 of GPU memory", "no amount of memory"),
        ("drop_rate <= many", "not a number"),
        ("drop_rate <= nan", "not a number"),
        ("tokens_per_second >= 5 %", "counted in tokens/s"),
        (3, "no target"),
    ],
)
def test_what_is_refused(text, said):
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        parse_target(text)


@given(st.floats(1e-12, 1e5), st.sampled_from(["<=", ">="]), st.booleans())
def test_writing_a_target_gives_it_back(limit, sense, of_memory):
    target = Target(metric="peak_memory", sense=sense, limit=limit + 1.0, unit="B", of_memory=of_memory)
    assert parse_target(str(target)) == target
    time = Target(metric="step_time", sense=sense, limit=limit, unit="s")
    assert parse_target(str(time)) == time


def test_a_miss_is_a_share_of_the_limit():
    at_most, at_least = parse_target("step_time <= 50 ms"), parse_target("tokens_per_second >= 100")
    assert at_most.miss(0.06, 0.0) == pytest.approx(0.2)  # 10 of 50 ms
    assert at_most.miss(0.04, 0.0) == pytest.approx(-0.2)
    assert at_least.miss(80.0, 0.0) == pytest.approx(0.2)
    half = parse_target("peak_memory <= 0.5 of GPU memory")
    assert half.limit_for(80e9) == 40e9
    assert half.met_by(40e9, 80e9)
    assert not half.met_by(41e9, 80e9)


def test_targets_that_nothing_can_meet_are_refused():
    with pytest.raises(FieldError, match="nothing can meet both step_time <= 10 ms and step_time >= 20 ms"):
        Plan(targets=(parse_target("step_time <= 10 ms"), parse_target("step_time >= 20 ms")))
    Plan(targets=(parse_target("step_time <= 20 ms"), parse_target("step_time >= 10 ms")))  # a window is no contradiction


def test_costs_need_prices():
    with pytest.raises(FieldError, match="needs prices"):
        Plan(minimise="cost_per_hour")
    with pytest.raises(FieldError, match="needs prices"):
        Plan(targets=(parse_target("cost_per_million_tokens <= 2"),))
    assert Plan().objective == "gpus"
    assert Plan(price={"h100-sxm": Price(per_gpu_hour=2.0)}).objective == "cost_per_hour"


def test_a_price_is_a_number_or_a_number_with_its_source():
    field = PriceText()
    assert field.parse(2) == Price(per_gpu_hour=2.0)
    assert field.parse({"per_gpu_hour": 2.5, "source": "an offer"}) == Price(per_gpu_hour=2.5, source="an offer")
    for price in (Price(per_gpu_hour=2.0), Price(per_gpu_hour=2.5, source="an offer")):
        assert field.parse(field.text(price)) == price
    for wrong in (0, -1, "2", True, {"source": "x"}, {"per_gpu_hour": 1, "per_hour": 2}, {"per_gpu_hour": 1, "source": ""}):
        with pytest.raises(ValueError, match=r"number|small|price|text"):
            field.parse(wrong)


@pytest.mark.parametrize("samples", [1, 3, 12])
def test_sobol_samples_are_a_power_of_two(samples):
    with pytest.raises(FieldError, match="power of two"):
        Sensitivity(samples=samples)
