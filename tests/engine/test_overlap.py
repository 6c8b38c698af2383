"""Micro-batches, schedules that overlap, and kernels that are slower while communication holds SMs."""

import dataclasses
from functools import cache

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import no_trace, play, small_model

from moesim.base.errors import FidelityError, PluginError
from moesim.base.registry import plugin
from moesim.engine.check import check
from moesim.engine.held_sms import HeldSms
from moesim.engine.micro_batches import split, tokens_of_parts
from moesim.facts.routing import LayerRouting
from moesim.facts.scenario import Parallel, Policy, Scenario, Workload

SCHEDULES = ("sequential", "shared_expert", "two_batch", "one_f_one_b")


def scenario(schedule="sequential", *, sms=None, tokens=256, phase="training", capacity=None, **keys):
    return Scenario(
        name="overlap",
        seed=2,
        steps=2,
        model=small_model(16, 2),
        cluster=plugin("topology", "one_switch")(gpus=4),
        parallel=Parallel(ep=4),
        workload=Workload(tokens_per_gpu=tokens, phase=phase),
        routing=plugin("source", "imbalance")(workload="W1_hot_expert_set"),
        exchange=plugin("exchange", "direct")(communication_sms=sms),
        schedule=plugin("schedule", schedule)(**keys),
        policy=Policy(capacity=capacity or plugin("capacity", "dropless")()),
    )


@cache
def ran(schedule, sms=None):
    return play(scenario(schedule, sms=sms))


@pytest.mark.parametrize("schedule", SCHEDULES[1:])
def test_l1_tokens_every_schedule_moves_and_computes_what_sequential_does(schedule):
    plain, other = ran("sequential"), ran(schedule)
    for table, column in (("ranks", "rows"), ("layers", "routes"), ("layers", "kept"), ("experts", "routes"), ("layers", "copies")):
        assert np.array_equal(other.tables[table][column], plain.tables[table][column]), (table, column)
    for column in ("dispatch_bytes", "combine_bytes", "cross_node_bytes"):
        np.testing.assert_allclose(other.tables["layers"][column], plain.tables["layers"][column], rtol=1e-12)
    np.testing.assert_allclose(other.tables["links"]["bytes"], plain.tables["links"]["bytes"], rtol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES[1:])
def test_l7_floors_what_overlaps_hides_something_and_never_beats_the_floor(schedule):
    result = ran(schedule)
    assert result.metrics["overlap_scheduled"].value > 0.01
    assert result.metrics["overlap_realised"].value == pytest.approx(result.metrics["overlap_scheduled"].value)  # no SMs are held
    assert result.metrics["step_time"].value >= result.metrics["step_time_if_no_communication"].value
    assert ran("sequential").metrics["overlap_scheduled"].value == pytest.approx(0.0, abs=1e-12)


def test_shared_experts_hide_behind_the_exchange_and_change_nothing_else():
    # The same kernels and bytes: the step is shorter by what is hidden, at most by all the time of the shared experts.
    plain, other = ran("sequential"), ran("shared_expert")
    saved = plain.metrics["step_time"].value - other.metrics["step_time"].value
    assert 0 < saved <= plain.tables["gpus"]["shared_s"].max() * (1 + 1e-9)
    without = dataclasses.replace(small_model(16, 2), shared_experts=0, shared_width=0)
    times = [
        play(dataclasses.replace(scenario(schedule), model=without)).metrics["step_time"].value
        for schedule in ("sequential", "shared_expert")
    ]
    assert times[0] == pytest.approx(times[1], rel=1e-12)  # nothing to hide


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_held_sms_slow_what_is_computed_beside_and_nothing_else(schedule):
    # Half of an H100's 132 SMs, with bandwidth to spare: only computing beside communication feels it.
    free = play(scenario(schedule))
    held = play(dataclasses.replace(scenario(schedule), exchange=plugin("exchange", "direct")(communication_sms=66, bandwidth_per_sm=1e15)))
    lost = held.tables["steps"]["slowed_s"]
    if schedule == "sequential":
        assert (lost == 0).all()
        assert held.metrics["step_time"].value == free.metrics["step_time"].value
    else:
        assert (lost > 0).all()
        assert held.metrics["step_time"].value > free.metrics["step_time"].value
        assert held.metrics["overlap_realised"].value < held.metrics["overlap_scheduled"].value


def test_a_kernel_beside_communication_by_hand():
    # 10 s of work; from 2 s to 6 s a quarter of the SMs is held: 2 + 4 * 0.75 = 5 s done by then, the other 5 s take 5 s.
    env = simpy.Environment()
    sms = HeldSms(env, 2)
    ended = {}

    def kernel(gpu, seconds):
        yield sms.run(gpu, seconds)
        ended[gpu] = env.now

    def exchange():
        yield env.timeout(2.0)
        sms.hold(0, 0.25)
        yield env.timeout(4.0)
        sms.hold(0, -0.25)

    env.process(kernel(0, 10.0))
    env.process(kernel(1, 10.0))
    env.process(exchange())
    env.run()
    assert ended == {0: pytest.approx(11.0), 1: pytest.approx(10.0)}


@settings(max_examples=60, deadline=None)
@given(
    work=st.floats(0.1, 50.0),
    changes=st.lists(st.tuples(st.floats(0.1, 5.0), st.floats(0.0, 0.9)), max_size=6),
)
def test_l5_work_is_conserved_whatever_is_held(work, changes):
    env = simpy.Environment()
    sms = HeldSms(env, 1)
    shares, ended = [], []

    def kernel():
        yield sms.run(0, work)
        ended.append(env.now)

    def exchange():
        for wait, share in changes:
            sms.hold(0, share)
            shares.append((env.now, share))
            yield env.timeout(wait)
            sms.hold(0, -share)
        shares.append((env.now, 0.0))

    env.process(exchange())
    env.process(kernel())
    env.run()
    times = [time for time, _ in shares] + [max(ended[0], shares[-1][0])]
    done = sum(
        (min(after, ended[0]) - min(before, ended[0])) * (1 - share) for (before, share), after in zip(shares, times[1:], strict=True)
    )
    assert done == pytest.approx(work, rel=1e-9)


def test_all_sms_cannot_be_held_beside_kernels():
    with pytest.raises(PluginError, match="holds all its SMs"):
        play(scenario("shared_expert", sms=132))


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=5), parts=st.integers(1, 5), seed=st.integers(0, 99))
def test_l1_tokens_micro_batches_are_a_partition_of_each_gpus_tokens(counts, parts, seed):
    start = np.concatenate(([0], np.cumsum(counts)))
    cut = tokens_of_parts(start, parts)
    assert np.array_equal(np.sort(np.concatenate(cut)), np.arange(start[-1]))
    ids = np.random.default_rng(seed).permuted(np.tile(np.arange(6), (int(start[-1]), 1)), axis=1)[:, :2]
    layer = LayerRouting.of_tokens(ids, start, 6)
    pieces = split(layer, cut, "a test")
    assert np.array_equal(np.sum([piece.counts for piece in pieces], axis=0), layer.counts)
    sizes = np.array([np.diff(piece.token_start) for piece in pieces])
    assert (sizes.sum(axis=0) == counts).all()
    assert (sizes.max(axis=0) - sizes.min(axis=0) <= 1).all()


def test_capacity_is_that_of_a_micro_batch_and_drops_add_up():
    megatron = plugin("capacity", "megatron")(factor=1.0)
    whole, halves = play(scenario(capacity=megatron)), play(scenario("two_batch", capacity=megatron))
    # Four GPUs, 256 tokens, top 2 of 16, factor 1: 32 rows for each expert from each GPU, as 2 x 16 in two halves.
    for result in (whole, halves):
        assert (result.tables["layers"]["capacity_rows"] == 4 * 16 * 32).all()
        assert (result.tables["layers"]["kept"] + result.tables["layers"]["dropped"] == result.tables["layers"]["routes"]).all()
    # A half cannot lend what it does not use to the other, so the halves never drop less.
    assert (halves.tables["layers"]["dropped"] >= whole.tables["layers"]["dropped"]).all()
    assert halves.tables["layers"]["dropped"].sum() > whole.tables["layers"]["dropped"].sum()


def test_what_cannot_be_cut_is_refused_by_name():
    with pytest.raises(PluginError, match="tokens_per_gpu is 1"):
        play(scenario("two_batch", tokens=1))
    with pytest.raises(PluginError, match=r"8 micro-batches.*at most as many"):
        play(scenario("one_f_one_b", tokens=4, microbatches=8))
    with pytest.raises(PluginError, match="needs a backward pass"):
        play(scenario("one_f_one_b", phase="prefill"))
    layer = LayerRouting(experts=4, token_start=np.array([0, 2]), counts=np.ones((1, 4), dtype=int))
    with pytest.raises(FidelityError, match="two_batch"):
        split(layer, tokens_of_parts(np.array([0, 2]), 2), "two_batch")


def test_communication_that_holds_all_sms_is_refused_before_the_run():
    world = scenario("two_batch", sms=132)
    assert [(problem.path, "132 SMs are all" in problem.message) for problem in check(world, no_trace)] == [
        ("exchange.communication_sms", True)
    ]
    assert check(scenario("sequential", sms=132), no_trace) == []  # nothing runs beside it
