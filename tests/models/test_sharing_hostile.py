"""The modes that approximate keep the errors that they state on traffic that nobody would wish for."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from fluid import padded

from moesim.models.sharing.groups import GroupsCore
from moesim.models.sharing.modes import COARSE, FAST, MODES
from moesim.models.sharing.never_full import follows_of
from moesim.models.sharing.quanta import QuantaCore

NODE, LEAF = 8, 16


@dataclass(frozen=True)
class Traffic:
    """Flows between GPUs of nodes of 8 (links of 9 B/s), with cards of 1 B/s, two nodes below a leaf and a thin spine; and their starts."""

    gpus: int
    source: np.ndarray
    destination: np.ndarray
    size: np.ndarray
    start: np.ndarray

    def only(self, mask):
        return Traffic(self.gpus, *(column[mask] for column in (self.source, self.destination, self.size, self.start)))

    @property
    def links(self):
        """Capacities: NVLinks out and in, cards out and in, uplinks, downlinks."""
        gpus, leaves = self.gpus, -(-self.gpus // LEAF)
        return np.concatenate([np.full(2 * gpus, 9.0), np.full(2 * gpus, 1.0), np.full(2 * leaves, LEAF / 2)])

    @property
    def routes(self):
        gpus, leaves = self.gpus, -(-self.gpus // LEAF)
        found = []
        for source, destination in zip(self.source.tolist(), self.destination.tolist(), strict=True):
            if source // NODE == destination // NODE:
                found.append([source, gpus + destination])
            elif source // LEAF == destination // LEAF:
                found.append([2 * gpus + source, 3 * gpus + destination])
            else:
                up, down = 4 * gpus + source // LEAF, 4 * gpus + leaves + destination // LEAF
                found.append([2 * gpus + source, up, down, 3 * gpus + destination])
        table = np.cumsum([0, *[len(route) for route in found]]), np.concatenate(found)
        return padded(table, 4)

    def bound(self):
        load = np.zeros(len(self.links))
        for hop in self.routes.T:
            np.add.at(load, hop[hop >= 0], self.size[hop >= 0])
        return (load / self.links).max()


def skewed(gpus, seed):
    """An all-to-all in which receivers are popular, log-normal with sigma 0.5, and no two flows are equal."""
    rng = np.random.default_rng(seed)
    source, destination = np.nonzero(~np.eye(gpus, dtype=bool))
    size = rng.lognormal(0.0, 0.5, gpus)[destination] * rng.lognormal(0.0, 0.25, len(source))
    return Traffic(gpus, source, destination, size, np.zeros(len(source)))


def even(traffic, rng):
    return replace(traffic, size=1 + 1e-3 * rng.random(len(traffic.size)))


def incast(traffic, rng):
    return replace(traffic, size=rng.lognormal(size=len(traffic.size))).only(traffic.destination < 3)


def hot_receiver(traffic, _):
    return replace(traffic, size=traffic.size * np.where(traffic.destination == 5, 50.0, 1.0))


def one_giant_flow(traffic, rng):
    size = traffic.size.copy()
    size[rng.integers(len(size))] *= 1e5
    return replace(traffic, size=size)


def heavy_tail(traffic, rng):
    return replace(traffic, size=1 + rng.pareto(1.1, len(traffic.size)))


def no_two_senders_alike(traffic, rng):
    return replace(traffic, size=traffic.size * rng.lognormal(0.0, 2.0, traffic.gpus)[traffic.source])


def few_flows(traffic, rng):
    return replace(traffic, size=rng.lognormal(size=len(traffic.size))).only(rng.random(len(traffic.size)) < 0.06)


def staggered(spread):
    def starts(traffic, rng):
        return replace(traffic, start=(rng.random(traffic.gpus) * spread * traffic.bound())[traffic.source])

    starts.__name__ = f"ranks_start_within_{spread:g}_of_the_bound"
    return starts


HOSTILE = (
    even,
    incast,
    hot_receiver,
    one_giant_flow,
    heavy_tail,
    no_two_senders_alike,
    few_flows,
    staggered(0.01),
    staggered(0.2),
    staggered(1.0),
    staggered(3.0),
)


def ends_of_ranks(traffic, core):
    """When each rank has received everything, and when it has sent everything, after the first of its flows began."""
    gpus = traffic.gpus
    watch = np.stack([traffic.destination, gpus + traffic.source], axis=1).astype(np.int32)
    pending, woken, ends = np.bincount(watch.ravel(), minlength=2 * gpus), np.empty(2 * gpus, dtype=np.int64), np.full(2 * gpus, np.nan)
    route = traffic.routes
    for moment in [*np.unique(traffic.start).tolist(), np.inf]:
        now = 0.0
        while now < moment and core.live:
            now, woke = core.advance(moment, pending, woken)
            ends[woken[:woke]] = now
        new = traffic.start == moment
        if new.any():
            core.join(moment, route[new], np.zeros(new.sum(), dtype=np.int64), traffic.size[new], None, None, watch[new], pending)
    begun = np.full(2 * gpus, np.inf)
    np.minimum.at(begun, watch.ravel(), np.repeat(traffic.start, 2))
    used = np.isfinite(ends)
    return ends[used], (ends - begun)[used]


def cores(traffic, mode):
    keys = {"hops": 4, "pairs": 1, "follows": follows_of(traffic.routes, len(traffic.links))}
    return GroupsCore(traffic.links, **keys), QuantaCore(traffic.links, quantum=mode.quantum, guard=mode.guard, **keys)


def errors(traffic, mode):
    """The errors of a mode by the names under which it states them."""
    exact, near = cores(traffic, mode)
    (right, took), (found, _) = ends_of_ranks(traffic, exact), ends_of_ranks(traffic, near)
    off = np.abs(found - right)
    return {
        "makespan": abs(found.max() / right.max() - 1),
        "rank_mean": (off / took).mean(),
        "rank_worst": (off / took).max(),
        "rank_of_whole": off.max() / right.max(),
    }


@pytest.mark.parametrize("name", [FAST, COARSE])
@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_a_mode_keeps_the_errors_that_it_states_on_hostile_traffic(make, name):
    mode = MODES[name]
    found = errors(make(skewed(48, 2), np.random.default_rng(7)), mode)
    for what, stated in mode.errors().items():
        if stated is not None:
            assert found[what] <= stated, what


def test_flows_that_join_one_after_the_other_hold_nobody_back():
    # System: 64 ranks start one by one while others end, so that most quanta, 3 in a hundred of the time to go, are cut short. A flow to a
    # popular receiver from a rank that has nearly done must not fall behind at each cut. Expectation: no worse than without cuts, where
    # the mean rank is off by 0.1 % and the worst by 1.5 %; going back along straight lines at a cut made that 0.4 % and 3 %.
    found = errors(staggered(1.0)(skewed(64, 1), np.random.default_rng(7)), MODES[COARSE])
    assert found["rank_mean"] < 1e-3
    assert found["rank_worst"] < 0.015
