"""All-to-alls of PyTorch ranks on links that Linux shapes: ``a2a_cases.csv`` of a testbed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import MoesimError
from moesim.facts.arrays import Floats
from moesim.facts.cluster import Cluster
from moesim.facts.profile import Profile, Section
from moesim.models.bounds import link_bound
from moesim.models.fitted.rows import Rows, count, labels, numbers, words
from moesim.models.topology.shaped_hosts import ShapedHosts
from moesim.study.testbed.patterns import matrix
from moesim.study.testbed.predict import exchange, testbed
from moesim.study.validation.table_kind import Prediction, prediction, register_table

LONG = 0.05
"""s; below, the latency of a call and the bytes that a shaper lets through at once are no longer small."""

SPREAD = {"long": 0.021, "fifo_long": 0.072, "library_long": 0.25, "short": 0.11}
"""Relative half-width of the interval in which 90 % of the committed cases lie, by regime. Library: what the order of entering alone makes."""

REPEATED = 0.009
"""Relative standard error between two sessions: the same cases 45 minutes apart differed by 1.0 % on average."""


def spread_of_median(rows: Rows) -> Floats:
    """Return the relative standard error of each median: 0.93 x interquartile range / sqrt(repeats), and what sessions differ by."""
    quartiles = numbers(rows, "q75_s") - numbers(rows, "q25_s")
    own = 0.93 * quartiles / np.sqrt(np.maximum(numbers(rows, "reps"), 1.0)) / numbers(rows, "median_s")
    return np.asarray(np.hypot(np.nan_to_num(own), REPEATED))


def topology_of(rows: Rows, row: int) -> ShapedHosts:
    """Return the fabric of one row."""
    ranks, per_node = int(numbers(rows, "n")[row]), int(numbers(rows, "per_node")[row])
    return testbed(ranks, per_node, float(numbers(rows, "fast_mbit")[row]), float(numbers(rows, "slow_mbit")[row]), cores=0)


def traffic_of(rows: Rows, row: int) -> tuple[Floats, Floats]:
    """Return the bytes between ranks and the seconds by which each rank is late: ``zipf@20`` lets rank r start 20 r ms late.

    Raises
    ------
    UsageError
        If the pattern is unknown.
    """
    kind, _, late = str(words(rows, "kind")[row]).partition("@")
    ranks = int(numbers(rows, "n")[row])
    sent = matrix(kind, ranks, int(numbers(rows, "bytes_per_pair")[row])).astype(np.float64)
    return sent, np.arange(ranks) * (float(late) / 1e3 if late else 0.0)


@register_table
class TestbedAllToAll:
    """Completion of an all-to-all on shaped links: bytes from the pattern's name, rates as they were set; nothing is fitted."""

    name: ClassVar[str] = "testbed_all_to_all"
    files: ClassVar[tuple[str, ...]] = ("a2a_cases*.csv",)
    columns: ClassVar[tuple[str, ...]] = (
        "tag", "n", "per_node", "fast_mbit", "slow_mbit", "mode", "kind", "bytes_per_pair", "reps", "median_s", "q25_s", "q75_s",
    )  # fmt: skip
    quantity: ClassVar[str] = "time"
    __test__: ClassVar[bool] = False

    def regime(self, rows: Rows) -> NDArray[np.str_]:
        """Return ``long`` (50 ms and more), ``fifo_long`` (one queue per link), ``library_long`` (posted alternately), or ``short``."""
        shaper = words(rows, "shaper") if "shaper" in rows else np.full(count(rows), "htbfq")
        kind = np.where(words(rows, "mode") == "a2a", "library_long", np.where(shaper == "htbfq", "long", "fifo_long"))
        return np.where(self.seconds(rows) >= LONG, kind, "short").astype(np.str_)

    def group(self, rows: Rows) -> NDArray[np.str_]:
        """Return the fabric with its settings."""
        return labels(rows, ("tag",))

    def seconds(self, rows: Rows) -> Floats:
        """Return the median over repeats of the time from the common start to the last rank's end."""
        return numbers(rows, "median_s")

    def noise(self, rows: Rows) -> Floats:
        """Return the relative standard error of the medians."""
        return spread_of_median(rows)

    def rivals(self, rows: Rows) -> NDArray[np.str_]:
        """Return what patterns of the same size compete on."""
        return labels(rows, ("tag", "bytes_per_pair"))

    def baseline(self, rows: Rows) -> tuple[str, Floats]:
        """Return the port bound: the busiest link's bytes over its rate, as if every byte could move from the start."""
        values = np.full(count(rows), np.nan)
        for row in range(count(rows)):
            try:
                values[row] = link_bound(traffic_of(rows, row)[0], self._cluster(rows, row))[0]
            except MoesimError:
                continue  # the prediction of the row says why
        return "port bound", values

    def predict(self, rows: Rows, profiles: Mapping[str, Profile]) -> Prediction:  # noqa: ARG002 - nothing is fitted
        """Play each case on the engine's fabric."""
        values = np.full(count(rows), np.nan)
        reasons = np.asarray([""] * count(rows), dtype=object)
        for row in range(count(rows)):
            try:
                sent, late = traffic_of(rows, row)
                library = str(words(rows, "mode")[row]) == "a2a"
                values[row] = exchange(self._cluster(rows, row), sent, late=late.tolist(), library=library).seconds
            except MoesimError as error:
                reasons[row] = str(error)
        width = np.array([SPREAD[label] for label in self.regime(rows).tolist()])
        return prediction(values, values * (1 - width), values * (1 + width), reasons=reasons, basis="exact")

    def fit(self, rows: Rows) -> dict[str, Section]:  # noqa: ARG002 - the contract's name
        """Fit nothing: rates and packet sizes were set, not measured."""
        return {}

    def _cluster(self, rows: Rows, row: int) -> Cluster:
        return topology_of(rows, row).build()
