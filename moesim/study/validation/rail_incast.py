"""Cross-rail against rail-aligned traffic of two nodes: what of the throughput is left when senders choose their peers at random."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray

from moesim.base.streams import stream
from moesim.facts.arrays import Floats
from moesim.facts.profile import Profile, Section
from moesim.models.bounds import link_bound
from moesim.models.fitted.rows import Rows, count, numbers
from moesim.models.topology.one_switch import OneSwitch
from moesim.study.validation.table_kind import Prediction, prediction, register_table

RAILS = 8
"""GPUs of a node, each with a card of its own."""

ROUNDS = 600
"""Random rounds that a prediction is the mean of; the ratio is then sure to 1 %."""


@register_table
class RailIncast:
    """The ratio of cross-rail to rail-aligned throughput; it must come from contention alone.

    Each of eight GPUs of a node has one or two messages on their way to a random GPU of the other node, and posts the next when they have
    arrived. With
    aligned rails every card receives what it can take. At random some receive three, some none, and a round lasts as long as its fullest
    card: max-min sharing
    on one switch, whose completion is the port bound. The number on their way is not in the table; 1 and 2 bound the interval.
    """

    name = "efa_rail_incast_2node"
    files = ("efa_rail_incast*.csv",)
    columns = ("message_KB", "cross_rail_GBps", "rail_aligned_GBps")
    quantity = "fraction"

    def regime(self, rows: Rows) -> NDArray[np.str_]:
        """Return one regime."""
        return np.full(count(rows), "cross-rail share of rail-aligned throughput")

    def group(self, rows: Rows) -> NDArray[np.str_]:
        """Return one label: nothing is fitted."""
        return np.full(count(rows), "all")

    def seconds(self, rows: Rows) -> Floats:
        """Return the measured ratio."""
        return numbers(rows, "cross_rail_GBps") / numbers(rows, "rail_aligned_GBps")

    def baseline(self, rows: Rows) -> tuple[str, Floats]:
        """Return 1: ports and bytes are equal, so a model without contention sees no difference."""
        return "bytes over bandwidth (no contention)", np.ones(count(rows))

    def predict(self, rows: Rows, profiles: Mapping[str, Profile]) -> Prediction:
        """Return the mean of one and two messages on their way."""
        del profiles
        low, high = random_peers_share(1), random_peers_share(2)
        size = count(rows)
        return prediction(np.full(size, (low + high) / 2), np.full(size, low), np.full(size, high), basis="assumed")

    def fit(self, rows: Rows) -> dict[str, Section]:
        """Return nothing."""
        del rows
        return {}


@cache
def random_peers_share(window: int, *, rails: int = RAILS, rounds: int = ROUNDS) -> float:
    """Return the throughput of random peers as a share of that of aligned ones, with ``window`` messages of each sender on their way.

    Parameters
    ----------
    window : int
        Messages that a sender waits for before it posts as many again.
    rails : int
        Senders, and receivers.
    rounds : int
        Rounds to average.
    """
    rng = stream(0, "validation", "rail_incast", window)
    cluster = OneSwitch(gpus=2 * rails, bandwidth=1.0, latency=0.0).build()
    senders = np.repeat(np.arange(rails), window)
    seconds = 0.0
    for _ in range(rounds):
        traffic = np.zeros((2 * rails, 2 * rails))
        np.add.at(traffic, (senders, rails + rng.integers(0, rails, size=len(senders))), 1.0)
        seconds += link_bound(traffic, cluster)[0]
    return float(window * rounds / seconds)
