"""All-to-alls of PyTorch ranks on links that Linux shapes: ``a2a_cases.csv`` of a testbed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import CalibrationError, MoesimError
from moesim.facts.arrays import Floats
from moesim.facts.cluster import Cluster
from moesim.facts.profile import Profile, Section
from moesim.models.bounds import link_bound
from moesim.models.fitted.rows import Rows, count, each, labels, numbers, words
from moesim.models.topology.shaped_hosts import ShapedHosts
from moesim.study.testbed.patterns import matrix
from moesim.study.testbed.predict import exchange, hosts_of
from moesim.study.validation.table_kind import Prediction, prediction, register_table

CORES = 2
"""Cores of the machine on which the all-to-alls without a column ``cores`` were measured."""

LONG = 0.05
"""s; below, the latency of a call and the bytes that a shaper lets through at once are no longer small."""

RECORDS = ("predictions.json", "measured.json", "comparison.json")
"""Files that ``moesim measure testbed`` writes beside its tables; they say what was foretold and when, and are no tables."""

SPREAD = {"long": 0.021, "fifo_long": 0.035, "library_long": 0.13, "short": 0.07}
"""Relative half-width of the interval in which 90 % of the committed cases lie, by regime. Library: what the order of entering alone
makes."""

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
    return hosts_of(ranks, per_node, float(numbers(rows, "fast_mbit")[row]), float(numbers(rows, "slow_mbit")[row]), cores=0)


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
    starts = np.arange(ranks, dtype=np.float64) * _late_or_reason(late)
    return sent, np.asarray(starts, dtype=np.float64)


def of_one_queue(rows: Rows) -> NDArray[np.bool_]:
    """Tell which rows were measured on links with one queue for all flows."""
    return np.asarray(words(rows, "shaper") != "htbfq" if "shaper" in rows else np.char.find(words(rows, "tag"), "fifo") >= 0)


def posting_of(rows: Rows) -> Floats:
    """Return what the smallest all-to-all took on the fabric of each row, s; NaN where nobody measured it."""
    return numbers(rows, "alpha_s") if "alpha_s" in rows else np.full(count(rows), np.nan)


def regimes(rows: Rows, seconds: Floats) -> NDArray[np.str_]:
    """Return ``long`` (50 ms and more), ``fifo_long`` (one queue per link), ``library_long`` (posted alternately), or ``short``."""
    fifo = of_one_queue(rows)
    kind = np.where(words(rows, "mode") == "a2a", "library_long", np.where(fifo, "fifo_long", "long"))
    return np.where(seconds >= LONG, kind, "short").astype(np.str_)


def _late_or_reason(late: str) -> float:
    try:
        return float(late) / 1e3 if late else 0.0
    except ValueError:
        raise CalibrationError(f"'@{late}' does not say by how many milliseconds ranks start late") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One row: ``sent`` float[G, G] B over a cluster, ``late`` float[G] s, and words of :func:`~moesim.study.testbed.predict.exchange`."""

    cluster: Cluster
    sent: Floats
    late: Floats
    library: bool
    fifo: bool
    posting: float | None
    cores: int


def each_case(rows: Rows, ask: Callable[[Asked], float]) -> tuple[Floats, NDArray[Any]]:
    """Return what ``ask`` says of each row, and why it says nothing where it does not.

    Equal rows are asked about once.
    """
    names = ("tag", "n", "per_node", "fast_mbit", "slow_mbit", "mode", "kind", "bytes_per_pair")
    fifo, posting = of_one_queue(rows), posting_of(rows)
    values = np.full(count(rows), np.nan)
    reasons = np.asarray([""] * count(rows), dtype=object)
    for mask in each(rows, labels(rows, names)).values():
        row = int(np.flatnonzero(mask)[0])
        try:
            sent, late = traffic_of(rows, row)
            case = Asked(
                cluster=topology_of(rows, row).build(), sent=sent, late=late, library=str(words(rows, "mode")[row]) == "a2a",
                fifo=bool(fifo[row]), posting=float(posting[row]) if np.isfinite(posting[row]) else None,
                cores=int(numbers(rows, "cores")[row]) if "cores" in rows else CORES,
            )  # fmt: skip
            values[mask] = ask(case)
        except MoesimError as error:
            reasons[mask] = str(error)
    return values, reasons


@register_table
class TestbedAllToAll:
    """Completion of an all-to-all on shaped links: bytes from the pattern's name, rates as they were set; nothing is fitted.

    A column ``alpha_s``, where there is one, says what the smallest all-to-all took on the same fabric.
    """

    name: ClassVar[str] = "testbed_all_to_all"
    files: ClassVar[tuple[str, ...]] = ("a2a_cases*.csv",)
    columns: ClassVar[tuple[str, ...]] = (
        "tag", "n", "per_node", "fast_mbit", "slow_mbit", "mode", "kind", "bytes_per_pair", "reps", "median_s", "q25_s", "q75_s",
    )  # fmt: skip
    quantity: ClassVar[str] = "time"
    companions: ClassVar[tuple[str, ...]] = RECORDS
    __test__: ClassVar[bool] = False

    def regime(self, rows: Rows) -> NDArray[np.str_]:
        """Return ``long`` (50 ms and more), ``fifo_long`` (one queue per link), ``library_long`` (posted alternately), or ``short``."""
        return regimes(rows, self.seconds(rows))

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
        return "port bound", each_case(rows, lambda case: link_bound(case.sent, case.cluster)[0])[0]

    def predict(self, rows: Rows, profiles: Mapping[str, Profile]) -> Prediction:  # noqa: ARG002 - nothing is fitted
        """Play each case on the engine's fabric."""
        values, reasons = each_case(rows, _played)
        width = np.array([SPREAD[label] for label in self.regime(rows).tolist()])
        return prediction(values, values * (1 - width), values * (1 + width), reasons=reasons, basis="exact")

    def fit(self, rows: Rows) -> dict[str, Section]:  # noqa: ARG002 - the contract's name
        """Fit nothing: rates and packet sizes were set, not measured."""
        return {}


@register_table
class TestbedAllToAllRepeats(TestbedAllToAll):
    """The single repeats behind the medians of :class:`TestbedAllToAll`."""

    name: ClassVar[str] = "testbed_all_to_all_repeats"
    files: ClassVar[tuple[str, ...]] = ("a2a_raw*.csv",)
    columns: ClassVar[tuple[str, ...]] = (
        "tag", "n", "per_node", "fast_mbit", "slow_mbit", "mode", "kind", "bytes_per_pair", "rep", "makespan_s",
    )  # fmt: skip

    def seconds(self, rows: Rows) -> Floats:
        """Return the time from the common start to the last rank's end."""
        return numbers(rows, "makespan_s")

    def noise(self, rows: Rows) -> Floats:
        """Return what sessions differ by; of ten repeats the largest exceeds the smallest by 0.4 % in the median."""
        return np.full(count(rows), REPEATED)

    def rivals(self, rows: Rows) -> NDArray[np.str_]:
        """Return what patterns of the same size compete on, repeat by repeat."""
        return labels(rows, ("tag", "bytes_per_pair", "rep"))


def _played(case: Asked) -> float:
    return exchange(
        case.cluster, case.sent, late=case.late.tolist(), library=case.library, fifo=case.fifo, posting=case.posting, cores=case.cores
    ).seconds
