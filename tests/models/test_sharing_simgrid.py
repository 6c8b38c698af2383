"""Ends that SimGrid, an independent simulator, gave the flows of 23 problems: every core reproduces each of them.

A recorded number may be wrong, so a law stands beside the data: rates with the max-min certificate carry exactly the bytes by these ends.
"""

import json
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import simpy
from clusters import between_pairs
from fluid import fluid, through_core

from moesim.engine.fabric import Fabric
from moesim.models.sharing.certificate import violations
from moesim.models.sharing.groups import GroupsCore
from moesim.models.sharing.never_full import follows_of
from moesim.models.sharing.quanta import QuantaCore
from moesim.models.sharing.reference import drain, fair_rates

GOLDEN = Path(__file__).parents[1] / "golden"
RECIPE = json.loads((GOLDEN / "simgrid_ends.json").read_text(encoding="utf-8"))
CASES = sorted(RECIPE["cases"])
RELATIVE = 1e-9
MANY = 400  # flows from which on the NumPy solver takes seconds for all intervals


@cache
def recorded():
    with np.load(GOLDEN / "simgrid_ends.npz", allow_pickle=False) as arrays:
        return dict(arrays)


class Case:
    """A recorded problem; what it does not have is None."""

    def __init__(self, name):
        mine = {key.removeprefix(f"{name}__"): values for key, values in recorded().items() if key.startswith(f"{name}__")}
        self.capacity, self.size, self.start, self.ends = (mine[key] for key in ("capacity", "size", "start", "ends"))
        self.route = mine["route"].astype(np.int32)
        self.source, self.destination = mine["source"].astype(np.int64), mine["destination"].astype(np.int64)
        self.weight, self.cap = mine.get("weight"), mine.get("cap")
        columns = (mine[key] for key in ("change_at", "change_link", "change_value") if key in mine)
        self.changes = [(float(at), int(link), float(value)) for at, link, value in zip(*columns, strict=True)]
        used = self.route >= 0
        self.routes = np.concatenate([[0], np.cumsum(used.sum(axis=1))]), self.route[used].astype(np.int64)

    @property
    def plain(self):
        return self.weight is None and self.cap is None and not self.changes

    def check(self, ends):
        """A flow may be over long before the clock's last digit: what took 20 ps after one second is known to no more than 1e-16 s."""
        np.testing.assert_allclose(ends, self.ends, rtol=RELATIVE)
        np.testing.assert_allclose(ends - self.start, self.ends - self.start, rtol=RELATIVE, atol=1e-14 * self.ends.max())


@pytest.mark.parametrize("name", CASES)
def test_the_numpy_reference_reproduces_every_end(name):
    case = Case(name)
    if case.plain:
        case.check(drain(case.capacity, *case.routes, case.size, case.start))
    else:
        case.check(fluid(case.capacity, case.routes, case.size, case.start, weight=case.weight, cap=case.cap, changes=case.changes))


@pytest.mark.parametrize("name", [name for name in CASES if RECIPE["cases"][name]["flows"] < MANY])
def test_l2_l3_l4_recorded_ends_are_those_of_rates_with_the_certificate(name):
    # Which flows are on their way between two neighbouring moments is read off the record; nobody steps from end to end here.
    case = Case(name)
    flows = len(case.size)
    weight = np.ones(flows) if case.weight is None else case.weight
    cap = np.full(flows, np.inf) if case.cap is None else case.cap
    capacity, carried = case.capacity.copy(), np.zeros(flows)
    changes = list(case.changes)
    moments = np.unique(np.concatenate([case.start, case.ends, [at for at, _, _ in changes]]))
    begin, link = case.routes
    for now, following in pairwise(moments):
        while changes and changes[0][0] <= now:
            _, which, value = changes.pop(0)
            capacity[which] = value
        flying = np.flatnonzero((case.start <= now) & (case.ends >= following))
        part = [link[begin[flow] : begin[flow + 1]] for flow in flying]
        system = capacity, np.cumsum([0, *[len(links) for links in part]]), np.concatenate([*part, np.empty(0, dtype=np.int64)])
        rates = fair_rates(*system, weight[flying], cap[flying])
        assert violations(*system, rates, weight=weight[flying], cap=cap[flying]) == []
        carried[flying] += rates * (following - now)
    # The record's last digit is worth this many bytes.
    np.testing.assert_allclose(carried, case.size, rtol=RELATIVE, atol=1e-14 * case.capacity.max() * case.ends.max())


def driven(case, core):
    return through_core(core, case.route, case.size, case.start, weight=case.weight, cap=case.cap, changes=case.changes)


@pytest.mark.parametrize("pruned", [False, True], ids=["all-links", "without-links-that-never-fill"])
@pytest.mark.parametrize("name", CASES)
def test_the_exact_core_reproduces_every_end(name, pruned):
    case = Case(name)
    follows = follows_of(case.route, len(case.capacity)) if pruned else None
    core = GroupsCore(case.capacity, hops=case.route.shape[1], pairs=len(case.size), follows=follows)
    case.check(driven(case, core))
    np.testing.assert_allclose(core.carried, case.size, rtol=RELATIVE)


@pytest.mark.parametrize("name", CASES)
def test_quanta_come_close_and_short_ones_closer(name):
    # A thousand times shorter quanta bring every end to within one of the last; with the usual ones the last end of all is right to 0.2 %.
    case = Case(name)
    last = case.ends.max()
    for quantum, anybody, everybody in ((0.01, 0.02, 2e-3), (1e-5, 2e-5, 2e-6)):
        ends = driven(case, QuantaCore(case.capacity, hops=case.route.shape[1], pairs=len(case.size), quantum=quantum))
        assert np.abs(ends - case.ends).max() < anybody * last
        assert abs(ends.max() / last - 1) < everybody


def through_simpy(case):
    """Ends of all flows, each started by SimPy at its own time and counted on a counter of its own."""
    env = simpy.Environment()
    gpus = int(max(case.source.max(), case.destination.max())) + 1
    fabric, ends = (
        Fabric(env, between_pairs(gpus, case.capacity, case.source, case.destination, case.routes)),
        np.full(len(case.size), np.nan),
    )
    spare = fabric.watch(lambda: None)
    watch = np.full((len(case.size), 2), spare, dtype=np.int32)
    for flow in range(len(case.size)):
        watch[flow, 0] = fabric.watch(lambda flow=flow: ends.__setitem__(flow, env.now))

    def starter(moment):
        yield env.timeout(moment)
        now = case.start == moment
        weight, cap = (None if column is None else column[now] for column in (case.weight, case.cap))
        fabric.transfer(case.source[now], case.destination[now], case.size[now], watch[now], weight=weight, cap=cap)

    def operator():
        for at, link, value in case.changes:
            yield env.timeout(at - env.now)
            fabric.change_bandwidth(link, value)

    for moment in np.unique(case.start).tolist():
        env.process(starter(moment))
    env.process(operator())
    env.run()
    fabric.check()
    return ends


@pytest.mark.parametrize("name", CASES)
def test_the_fabric_driven_by_simpy_reproduces_every_end(name):
    case = Case(name)
    case.check(through_simpy(case))


def test_the_recipe_and_the_arrays_are_of_the_same_cases():
    assert {key.split("__")[0] for key in recorded()} == set(CASES)
    for name, told in RECIPE["cases"].items():
        case = Case(name)
        assert (told["flows"], told["distinct_ends"]) == (len(case.size), len(np.unique(case.ends)))
        assert told["largest_relative_difference_between_modes"] < 1e-12
