"""Steps of an MoE layer of PyTorch ranks on links that Linux shapes: ``moe_*.jsonl`` of a testbed, with the calibration beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import CalibrationError, MoesimError
from moesim.facts.arrays import Floats
from moesim.facts.profile import Profile, Section
from moesim.models.fitted.rows import Rows, count, labels, numbers, words
from moesim.models.topology.shaped_hosts import ShapedHosts
from moesim.study.testbed.calibration import Calibration, calibration_of
from moesim.study.testbed.predict import Step, crowding, hosts_of, latency_of_probe, play_step
from moesim.study.validation.table_kind import Prediction, prediction, register_table
from moesim.study.validation.testbed_all_to_all import RECORDS, spread_of_median

CORES = 2
"""Cores of the machine on which the steps without a column ``cores`` were measured."""

SPREAD = 0.06
"""Relative half-width of the interval in which 90 % of the committed steps lie."""

CALIBRATION = "calibration"
"""The column that the companion file becomes."""

Variant = Mapping[str, bool]


def topology_of(rows: Rows, row: int, *, uplinks: bool = True, share: bool = True) -> ShapedHosts:
    """Return the fabric and the cores of one row; without uplinks, or with a core for every rank, if asked so.

    Raises
    ------
    CalibrationError
        If the row does not say them.
    """
    lab = rows["lab_kw"][row]
    if not isinstance(lab, Mapping) or "n" not in lab or "fast" not in lab:
        raise CalibrationError(f"lab_kw is {lab!r}: expected a mapping with n (ranks), fast (bit/s), and for nodes per_node and slow")
    cores = int(numbers(rows, "cores")[row]) if "cores" in rows else CORES
    return hosts_of(
        int(lab["n"]),
        int(lab.get("per_node", 1)) if uplinks else 1,
        float(lab["fast"]) / 1e6,
        float(lab.get("slow") or 0.0) / 1e6,
        cores=cores if share else 0,
        pinned=bool(numbers(rows, "pinned")[row]),
    )


def step_of(rows: Rows, row: int, topology: ShapedHosts) -> Step:
    """Return the step of one row: the rows that were kept, and the latencies that a tiny step of the same session showed."""
    hidden = int(numbers(rows, "d")[row])
    probe = float(numbers(rows, "tiny_a2a_s")[row]) if "tiny_a2a_s" in rows else 0.0
    return Step(
        kept=np.asarray(rows["kept"][row], dtype=np.int64),
        hidden=hidden,
        width=int(numbers(rows, "ff")[row]),
        tokens=int(numbers(rows, "tokens")[row]),
        backward=bool(numbers(rows, "bwd")[row]),
        counts=float(numbers(rows, "counts_latency_s")[row]),
        latency=latency_of_probe(topology, probe, hidden) if probe > 0 else 0.0,
        library=str(words(rows, "a2a")[row]) == "gloo",
    )


def played(rows: Rows, row: int, *, uplinks: bool = True, share: bool = True, balanced: bool = False) -> float:
    """Return the seconds that the engine says one step takes, or what a simpler model would say."""
    calibration = rows[CALIBRATION][row]
    if not isinstance(calibration, Calibration):
        raise CalibrationError("the file ..._calibration.json beside the steps is missing: without it nobody knows what an expert takes")
    hosts = topology_of(rows, row)
    before = next((name for name in ("crowding", "slowdown") if name in rows), "")
    known = float(numbers(rows, before)[row]) if before else 0.0
    calibration = calibration.slower(known if known > 0 else crowding(hosts.ranks, hosts.cores))
    step = step_of(rows, row, hosts)
    topology = topology_of(rows, row, uplinks=uplinks, share=share)
    return play_step(topology.build(), step.balanced() if balanced else step, calibration).seconds


@register_table
class TestbedLayer:
    """Steps of an expert-parallel MoE layer whose kept rows are known: solo-calibrated kernels, shared cores, max-min links.

    A column ``crowding``, where there is one, says how many times its calibrated seconds a reference kernel took before the steps, while
    all ranks were at it; ``slowdown`` the same beside each step. Without either it is 1.19 where ranks share cores.
    """

    name: ClassVar[str] = "testbed_layer"
    files: ClassVar[tuple[str, ...]] = ("moe_fwd*.jsonl", "moe_bwd*.jsonl", "moe_gloo*.jsonl", "moe_nopin*.jsonl")
    companions: ClassVar[tuple[str, ...]] = ("moe_*_calibration.json", *RECORDS)
    columns: ClassVar[tuple[str, ...]] = (
        "lab", "lab_kw", "bwd", "ff", "d", "tokens", "skew", "cf", "pinned", "a2a", "kept", "counts_latency_s",
        "reps", "median_s", "q25_s", "q75_s",
    )  # fmt: skip
    quantity: ClassVar[str] = "time"
    __test__: ClassVar[bool] = False

    def join(self, rows: Rows, companions: Mapping[str, Rows]) -> Mapping[str, NDArray[Any]]:
        """Put the calibration beside every step; of several the one whose name fits is not known here, so they are laid together."""
        documents = [companions[name]["document"][0] for name in sorted(companions) if name.endswith("_calibration.json")]
        merged: dict[str, dict[str, Any]] = {}
        for document in documents:
            for operation, table in document.items() if isinstance(document, Mapping) else ():
                if isinstance(table, Mapping):
                    merged.setdefault(str(operation), {}).update(table)
        column = np.empty(count(rows), dtype=object)
        column[:] = [calibration_of(merged) if merged else None] * count(rows)
        return {**rows, CALIBRATION: column}

    def regime(self, rows: Rows) -> NDArray[np.str_]:
        """Return ``forward``, ``forward_backward``, or ``library`` where the all-to-all posts alternately."""
        way = np.where(numbers(rows, "bwd") > 0, "forward_backward", "forward")
        return np.where(words(rows, "a2a") == "gloo", "library", way).astype(np.str_)

    def group(self, rows: Rows) -> NDArray[np.str_]:
        """Return the fabric."""
        return labels(rows, ("lab",))

    def seconds(self, rows: Rows) -> Floats:
        """Return the median over repeats of the time from the common start to the last rank's end."""
        return numbers(rows, "median_s")

    def noise(self, rows: Rows) -> Floats:
        """Return the relative standard error of the medians."""
        return spread_of_median(rows)

    def rivals(self, rows: Rows) -> NDArray[np.str_]:
        """Return what capacity factors, and routings, compete on: one fabric, one shape."""
        return labels(rows, ("lab", "bwd", "ff", "a2a"))

    def baseline(self, rows: Rows) -> tuple[str, Floats]:
        """Return the step with the same rows spread evenly: what a model that ignores skew says."""
        return "balanced load", self.variant(rows, balanced=True)

    def variant(self, rows: Rows, *, uplinks: bool = True, share: bool = True, balanced: bool = False) -> Floats:
        """Return the seconds of a simpler model: no uplinks, a core for every rank, or balanced load; NaN where it says nothing."""
        values = np.full(count(rows), np.nan)
        for row in range(count(rows)):
            try:
                values[row] = played(rows, row, uplinks=uplinks, share=share, balanced=balanced)
            except MoesimError:
                continue  # the prediction of the row says why
        return values

    def predict(self, rows: Rows, profiles: Mapping[str, Profile]) -> Prediction:  # noqa: ARG002 - the calibration is a file of the session
        """Play each step on the engine's fabric, collectives and cores."""
        values = np.full(count(rows), np.nan)
        reasons = np.asarray([""] * count(rows), dtype=object)
        for row in range(count(rows)):
            try:
                values[row] = played(rows, row)
            except MoesimError as error:
                reasons[row] = str(error)
        return prediction(values, values * (1 - SPREAD), values * (1 + SPREAD), reasons=reasons, basis="fitted")

    def fit(self, rows: Rows) -> dict[str, Section]:  # noqa: ARG002 - the contract's name
        """Fit nothing: the calibration is measured with each session, and is used as it stands."""
        return {}
