"""The search for the cheapest plan, with made-up runs: who is played, who is chosen, what binds."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.facts.target import parse_target
from moesim.study.cell import Answer, Cell, failure
from moesim.study.plan import find, pareto
from moesim.study.plan_bounds import Bound
from moesim.study.plan_verdicts import Candidate, mean_of, verdict_of

FAST = parse_target("step_time <= 50 ms")
FEW_DROPS = parse_target("drop_rate <= 0.01")


def candidate(name, gpus, *, price=None, bounds=(), problem="", memory=80e9):
    cell = Cell(name=name, text="", folder="/", axes={}, digest=name)
    return Candidate(
        name=name, axes={"gpus": gpus}, gpus=gpus, gpu="g", memory=memory, price=price, cells=(cell,), bounds=tuple(bounds), problem=problem
    )


class World:
    """Plays cells: step times by name, and a list of who was played."""

    def __init__(self, times, drops=None):
        self.times, self.drops, self.played = times, drops or {}, []

    def __call__(self, cells):
        return [self.one(cell) for cell in cells]

    def one(self, cell):
        self.played.append(cell.name)
        times = np.atleast_1d(np.asarray(self.times[cell.name], dtype=float))
        if np.isnan(times).all():
            return failure(cell, "boom")
        samples = {
            "step_time": times,
            "tokens_per_second": 1000 / times,
            "drop_rate": np.full(len(times), self.drops.get(cell.name, 0.0)),
            "peak_memory": np.full(len(times), 1e9),
        }
        return Answer(
            name=cell.name, digest=cell.digest, axes={}, samples=samples, steps=np.arange(len(times)), fresh=np.ones(len(times), bool)
        )


def same(seconds):
    return [seconds, seconds]


def test_the_cheapest_that_meets_is_chosen_and_dearer_ones_are_not_played():
    world = World({"a": same(0.1), "b": same(0.04), "c": same(0.01)})
    found = find([candidate("c", 32), candidate("a", 8), candidate("b", 16)], [FAST], world, objective="gpus")
    assert found.chosen.candidate.name == "b"
    assert world.played == ["a", "b"]
    assert [one.status for one in found.judged] == ["not tried", "misses", "meets"]
    assert found.cheaper.candidate.name == "a"
    assert found.cheaper.verdicts[0].miss == pytest.approx(1.0)  # 100 ms is 100 % over 50 ms
    assert found.ruled_out == {"step_time <= 50 ms": 1}


def test_of_equally_cheap_ones_the_fastest_is_chosen():
    world = World({"a": same(0.04), "b": same(0.03)})
    found = find([candidate("a", 8), candidate("b", 8)], [FAST], world, objective="gpus")
    assert found.chosen.candidate.name == "b"


def test_everything_is_played_when_asked_for():
    world = World({"a": same(0.01), "b": same(0.005)})
    found = find([candidate("a", 8), candidate("b", 16)], [FAST], world, objective="gpus", everything=True)
    assert world.played == ["a", "b"]
    assert found.chosen.candidate.name == "a"
    assert found.pareto == ("a", "b")  # b is dearer and faster


def test_prices_decide_over_gpus():
    world = World({"few": same(0.01), "many": same(0.01)})
    found = find([candidate("few", 8, price=9.0), candidate("many", 16, price=2.0)], [FAST], world, objective="cost_per_hour")
    assert found.chosen.candidate.name == "many"
    assert world.played == ["many"]


def test_cost_per_token_stops_where_no_bound_can_beat_the_best():
    # 1000 tokens a step; by its bound, dear can do at most 1e4 tokens/s: 16 GPUs for 10 an hour cost at least 160/3600/1e4*1e6 = 4.44.
    at_most = [Bound(name="port bound", metric="tokens_per_second", value=1e4)]
    cheap = candidate("cheap", 8, price=10.0, bounds=[Bound(name="port bound", metric="tokens_per_second", value=1e5)])
    others = [candidate(f"dear {number}", 16, price=10.0, bounds=at_most) for number in range(9)]
    world = World({"cheap": same(0.02)} | {one.name: same(0.2) for one in others})
    found = find([*others, cheap], [parse_target("step_time <= 1 s")], world, objective="cost_per_million_tokens")
    # cheap: 80/3600 a second over 5e4 tokens/s = 0.444 a million, which no bound of the others reaches.
    assert found.chosen.candidate.name == "cheap"
    assert found.chosen.means["cost_per_million_tokens"].value == pytest.approx(80 / 3600 / 5e4 * 1e6)
    assert len(world.played) <= 8  # one wave; the ninth dear one is never looked at
    assert [one.status for one in found.judged].count("not tried") >= 2


def test_a_bound_prunes_and_says_so():
    slow = candidate("slow", 8, bounds=[Bound(name="no-communication bound", metric="step_time", value=0.06)])
    found = find([slow, candidate("b", 16)], [FAST], World({"b": same(0.01)}), objective="gpus")
    assert found.judged[0].status == "pruned"
    assert found.judged[0].pruned_by == "no-communication bound"
    assert found.pruned == {"no-communication bound": 1}
    assert found.cheaper.candidate.name == "slow"
    assert found.cheaper.verdicts[0].miss == pytest.approx(0.2)


def test_a_bound_at_the_limit_does_not_prune():
    at_limit = candidate("a", 8, bounds=[Bound(name="port bound", metric="step_time", value=0.05 * (1 + 1e-12))])
    world = World({"a": same(0.05)})
    assert find([at_limit], [FAST], world, objective="gpus").chosen.candidate.name == "a"


def test_a_memory_floor_counts_against_the_gpu_of_the_candidate():
    floor = [Bound(name="memory floor", metric="peak_memory", value=50e9)]
    target = parse_target("peak_memory <= 0.9 of GPU memory")
    small, large = candidate("small", 8, bounds=floor, memory=48e9), candidate("large", 8, bounds=floor, memory=80e9)
    found = find([small, large], [target], World({"large": same(1.0)}), objective="gpus", summaries={"peak_memory": "max"})
    assert [one.status for one in found.judged] == ["pruned", "meets"]


def test_gpus_and_cost_are_decided_without_a_run():
    world = World({"a": same(0.01)})
    targets = [parse_target("gpus <= 8"), parse_target("cost_per_hour <= 20")]
    found = find([candidate("a", 8, price=2.0), candidate("b", 16, price=1.0)], targets, world, objective="cost_per_hour")
    assert world.played == ["a"]
    assert found.chosen.candidate.name == "a"
    assert found.pruned == {"gpus": 1}


def test_the_mean_on_the_right_side_is_not_enough():
    # Mean 49 ms of two steps, 2 ms apart: s / sqrt(2) = 1 ms, t(1 degree, 95 % one-sided) = 6.31, so 55.3 ms cannot be ruled out.
    world = World({"a": [0.048, 0.050]})
    found = find([candidate("a", 8)], [FAST], world, objective="gpus")
    assert found.chosen is None
    assert found.judged[0].status == "undecided"
    assert found.judged[0].verdicts[0].outcome == "open"
    assert found.judged[0].verdicts[0].mean.high == pytest.approx(0.049 + 6.313751515 * 0.001)
    # With 75 % one-sided, t = 1: 50 ms is just the limit.
    assert find([candidate("a", 8)], [FAST], World({"a": [0.0479, 0.0499]}), objective="gpus", confidence=0.75).chosen is not None


def test_one_sample_shows_nothing():
    found = find([candidate("a", 8)], [FAST], World({"a": [0.01]}), objective="gpus")
    assert found.chosen is None
    assert found.judged[0].status == "undecided"


def test_nothing_fits_and_the_nearest_miss_is_named():
    world = World({"a": same(0.06), "b": same(0.055), "c": same(0.02)}, drops={"c": 0.05})
    found = find([candidate("a", 8), candidate("b", 16), candidate("c", 8)], [FAST, FEW_DROPS], world, objective="gpus")
    # a is 20 % over in time, b 10 %, c 400 % over in drops.
    assert found.chosen is None
    assert found.nearest.candidate.name == "b"
    assert found.ruled_out == {"step_time <= 50 ms": 2, "drop_rate <= 0.01": 1}


def test_what_is_invalid_or_fails_is_said_and_stops_nothing():
    world = World({"broken": [math.nan], "b": same(0.01)})
    found = find(
        [candidate("odd", 0, problem="ep does not divide"), candidate("broken", 8), candidate("b", 16)], [FAST], world, objective="gpus"
    )
    assert [one.status for one in found.judged] == ["invalid", "failed", "meets"]
    assert found.judged[0].reason == "ep does not divide"
    assert found.judged[1].reason == "boom"
    assert found.chosen.candidate.name == "b"
    assert found.cheaper is None


def test_seeds_that_give_the_same_run_are_one_sample():
    one = candidate("a", 8)
    cells = tuple(Cell(name="a", text="", folder="/", axes={}, digest=f"a{number}") for number in range(5))
    several = Candidate(name="a", axes={}, gpus=8, gpu="g", memory=1.0, cells=cells)
    found = find([several], [FAST], World({"a": [0.01]}), objective="gpus")
    assert found.judged[0].verdicts[0].mean.n == 1
    assert one.cells != several.cells


def test_a_number_that_a_run_has_once_counts_as_it_is():
    mean = mean_of([np.array([5.0, 7.0])], 0.95, summary="max")
    assert (mean.value, mean.exact) == (7.0, True)
    assert verdict_of(parse_target("peak_memory <= 7 B"), mean, 0.0).outcome == "met"


def test_the_front_leaves_out_what_another_beats_in_everything():
    world = World({"a": same(0.03), "b": same(0.02), "c": same(0.025)}, drops={"a": 0.0, "b": 0.1, "c": 0.2})
    found = find([candidate("a", 8), candidate("b", 8), candidate("c", 8)], [FAST], world, objective="gpus", everything=True)
    assert found.pareto == ("a", "b")  # c is slower than b and drops more
    assert pareto(found.judged, "gpus") == ("a", "b")


@given(
    st.lists(st.tuples(st.integers(1, 6), st.floats(0.01, 0.1), st.floats(0.2, 1.0)), min_size=1, max_size=8),
    st.floats(0.02, 0.09),
)
def test_pruning_changes_no_choice(worlds, limit):
    """A true bound (a share of what a run would give) never takes away the plan that a search without bounds finds."""
    target = parse_target(f"step_time <= {limit!r} s")
    times = {str(index): same(time) for index, (_, time, _) in enumerate(worlds)}
    plain = [candidate(str(index), gpus) for index, (gpus, _, _) in enumerate(worlds)]
    bounded = [
        candidate(str(index), gpus, bounds=[Bound(name="port bound", metric="step_time", value=share * time)])
        for index, (gpus, time, share) in enumerate(worlds)
    ]
    without, with_bounds = (find(some, [target], World(times), objective="gpus") for some in (plain, bounded))
    assert (without.chosen and without.chosen.candidate.name) == (with_bounds.chosen and with_bounds.chosen.candidate.name)
    for one in with_bounds.judged:
        if one.status == "pruned":
            assert times[one.candidate.name][0] > limit
