"""A whole expert-parallel layer as 'moesim measure layer' times it, put together from kernels and exchanges that were measured alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import CalibrationError
from moesim.facts.arrays import Floats
from moesim.facts.profile import Profile, Section
from moesim.models.fitted.expert_loop import ExpertLoop
from moesim.models.fitted.intervals import interval, spread
from moesim.models.fitted.own_all_to_all import OwnAllToAll
from moesim.models.fitted.rows import Rows, count, labels, numbers, words
from moesim.models.fitted.token_work import TokenWork
from moesim.study.validation.own_compute import dtype_bytes, elements, loop_inputs
from moesim.study.validation.own_overlap import TOGETHER
from moesim.study.validation.own_table import machine_of, no_own, own_section
from moesim.study.validation.table_kind import Prediction, prediction, register_table

COUNTS = "counts_of_ranks"
"""Column that the companion becomes: for each case a text per source rank, ``;`` between them."""

COUNT_BYTES = 8.0
"""Of the number of rows that a rank tells another one for each expert."""

APART = 0.2
"""Standard deviation of the logarithm that a sum of parts has beside theirs, for they were timed apart from the whole: with other caches,
at another hour, and the slowest of ranks that vary is slower than each of them on average. Assumed: as much as laboratories differ."""

NO_BACKWARD = "the backward pass: 'moesim measure compute' times forward kernels only"


@register_table
class OwnLayer:
    """Forward pass of a layer, from the common start to the end of the slowest rank; the rows of every expert are given."""

    name = "own_layer"
    files = ("layer.csv", "layer_of_*.csv")
    companions: ClassVar[tuple[str, ...]] = ("layer_expert_counts*.csv", "layer_phases*.csv")
    quantity: ClassVar[str] = "time"
    columns = (
        "system", "library", "kernel_source", "posting", "case", "moe_dtype", "hidden_size", "inter_size", "topk", "num_experts",
        "moe_ep_size", "tokens_per_rank", "pass", "time_us",
    )  # fmt: skip

    def join(self, rows: Rows, companions: Mapping[str, Rows]) -> Mapping[str, NDArray[Any]]:
        """Put the rows that every rank sends to every expert beside the case that they belong to."""
        known: dict[str, dict[int, str]] = {}
        for table in companions.values():
            if all(name in table for name in ("case", "source_rank", "counts")):
                parts = (table[name].tolist() for name in ("case", "source_rank", "counts"))
                for case, rank, counts in zip(*parts, strict=True):
                    known.setdefault(str(case), {})[int(rank)] = str(counts)
        texts = [";".join(text for _, text in sorted(known.get(case, {}).items())) for case in words(rows, "case").tolist()]
        return {**rows, COUNTS: np.asarray(texts, dtype=object)}

    def predict(self, rows: Rows, profiles: Mapping[str, Profile]) -> Prediction:
        """Add up the parts of each row; a row whose machine lacks one says which."""
        size = count(rows)
        values, low, high = (np.full(size, np.nan) for _ in range(3))
        outside = np.zeros(size, dtype=bool)
        reasons = np.asarray([""] * size, dtype=object)
        for row in range(size):
            if str(rows["pass"][row]) != "forward":
                reasons[row] = NO_BACKWARD
                continue
            try:
                values[row], deviation, outside[row] = _forward(rows, row, profiles)
            except CalibrationError as error:
                reasons[row] = str(error)
                continue
            ends = interval(values[row : row + 1], np.asarray([deviation]))
            low[row], high[row] = float(ends[0][0]), float(ends[1][0])
        return prediction(values, low, high, outside=outside, reasons=reasons)

    def fit(self, rows: Rows) -> dict[str, Section]:
        """Return nothing: a layer tests what kernels and exchanges say, and tells none of them by itself."""
        del rows
        return {}

    def seconds(self, rows: Rows) -> Floats:
        """Return the time of the pass."""
        return numbers(rows, "time_us") / 1e6

    def regime(self, rows: Rows) -> NDArray[np.str_]:
        """Return the pass."""
        return words(rows, "pass")

    def group(self, rows: Rows) -> NDArray[np.str_]:
        """Return system, ranks and shape."""
        return labels(rows, ("system", "moe_ep_size", "hidden_size", "inter_size", "num_experts"))

    def rivals(self, rows: Rows) -> NDArray[np.str_]:
        """Return everything but skew and capacity: routings and capacity factors of one layer compete."""
        return labels(rows, ("system", "moe_ep_size", "hidden_size", "inter_size", "num_experts", "tokens_per_rank", "pass"))

    def baseline(self, rows: Rows) -> tuple[str, Floats]:
        """Return the measured time of the least skewed dropless case of the batch, times this one's load over its load."""
        if not all(name in rows for name in ("skew", "max_rank_load")):
            return "the least skewed case x load of the hottest rank", np.full(count(rows), np.nan)
        rivals, seconds, load = self.rivals(rows), self.seconds(rows), np.maximum(numbers(rows, "max_rank_load"), 1.0)
        found = np.full(count(rows), np.nan)
        for label in np.unique(rivals):
            mask = np.flatnonzero(rivals == label)
            least = mask[np.argmin(numbers(rows, "skew")[mask])]
            found[mask] = seconds[least] * load[mask] / load[least]
        return "the least skewed case x load of the hottest rank", found


def _counts(rows: Rows, row: int) -> NDArray[np.int64]:
    """Return int[ranks, experts] of one row.

    Raises
    ------
    CalibrationError
        If nobody says how many rows go where, or it does not fit the row.
    """
    ranks, experts = int(rows["moe_ep_size"][row]), int(rows["num_experts"][row])
    text = str(rows[COUNTS][row]) if COUNTS in rows else ""
    if not text:
        raise CalibrationError("the rows of every expert are not known: layer_expert_counts.csv must stand beside the table")
    try:
        found = np.asarray([[int(part) for part in line.split()] for line in text.split(";")], dtype=np.int64)
    except ValueError:
        raise CalibrationError(
            f"the counts of experts begin with {text[:30]!r}: as many whole numbers for every rank belong there"
        ) from None
    if found.shape != (ranks, experts) or (found < 0).any() or experts % ranks:
        raise CalibrationError(f"counts of {found.shape[0]} ranks and {found.shape[1]} experts do not fit {ranks} and {experts}")
    return found


def _forward(rows: Rows, row: int, profiles: Mapping[str, Profile]) -> tuple[float, float, bool]:
    """Return seconds, the deviation of their logarithm, and whether a part lies outside what was fitted."""
    sent = _counts(rows, row)
    ranks, experts = sent.shape
    machine, dtype = machine_of(str(rows["system"][row])), str(rows["moe_dtype"][row])
    tokens, hidden, width, top_k = (float(rows[name][row]) for name in ("tokens_per_rank", "hidden_size", "inter_size", "topk"))
    size = dtype_bytes(dtype)[1]
    between = sent.reshape(ranks, ranks, -1).sum(axis=2)  # rows from rank to rank
    away = between - np.diag(np.diag(between))
    port = float(max(away.sum(axis=0).max(), away.sum(axis=1).max())) * hidden * size
    arrived = between.sum(axis=0).astype(np.float64)
    local = sent.sum(axis=0).reshape(ranks, -1).astype(np.float64)
    kept = float(sent.sum(axis=1).max())
    parts: list[tuple[float, float, bool]] = []

    def section(name: str) -> Section:
        found = own_section(profiles, machine, name)
        if found is None:
            raise CalibrationError(no_own(machine, name))
        return found

    def asked(model: Any, name: str, given: Mapping[str, NDArray[Any]], *, times: float = 1.0) -> None:
        known = section(name)
        seconds = model.of_section(known).predict(given)
        at = int(np.argmax(seconds))
        off = spread(known, lambda values: model.seconds_of(values, given))
        flat = {key: column for key, column in given.items() if column.ndim == 1}
        parts.append((times * float(seconds[at]), float(off[at]), bool(known.outside(flat)[at])))

    def per_token(operation: str, routed: float, *, times: float = 1.0) -> None:
        whole = elements(operation, *(np.asarray([value]) for value in (tokens, hidden, float(experts), top_k, routed)))
        asked(TokenWork, f"token_work.{operation}.{dtype}", {"elements": whole}, times=times)

    def exchanged(bytes_of_port: float, *, times: float = 1.0) -> None:
        if ranks == 1:  # a rank alone copies its rows to itself
            per_token("permute", kept, times=times)
            return
        name = f"own_all_to_all.{rows['library'][row]}.{rows['posting'][row]}"
        asked(OwnAllToAll, name, {"num_gpus": np.asarray([float(ranks)]), "port_bytes": np.asarray([bytes_of_port])}, times=times)

    per_token("gate", tokens * top_k)
    per_token("permute", kept)
    if ranks > 1:
        exchanged(COUNT_BYTES * experts * (ranks - 1))
    exchanged(port, times=2.0)  # there and back
    per_token("permute", float(arrived.max()), times=2.0)  # grouped by expert, and back into the order of arrival
    alike = np.full(ranks, 1.0)
    given = loop_inputs(local, hidden * alike, width * alike, 3.0 * alike, np.asarray([dtype] * ranks))
    kernel = f"expert_loop.{rows['kernel_source'][row]}.{dtype}"
    if ranks > 1 and own_section(profiles, machine, kernel + TOGETHER) is not None:
        kernel += TOGETHER  # all ranks compute at the same time, as they did there
    asked(ExpertLoop, kernel, given)
    per_token("unpermute", kept)
    total = sum(part[0] for part in parts)
    deviation = float(np.sqrt(sum((seconds * off) ** 2 for seconds, off, _ in parts)) / total)
    return total, float(np.hypot(deviation, APART)), any(beyond for _, _, beyond in parts)
