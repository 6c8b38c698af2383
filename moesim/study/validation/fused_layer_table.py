"""A whole MoE layer under skew, one fused kernel on several GPUs, with the rows of every expert beside it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import CalibrationError
from moesim.facts.arrays import Floats, Ints
from moesim.models.fitted.fused_layer import FusedLayer
from moesim.models.fitted.routing_draws import even_rows, pareto_rows, power_law_rows, seeded_uniforms
from moesim.models.fitted.rows import Rows, count, labels, numbers, words
from moesim.study.validation.fitted_table import FittedTable
from moesim.study.validation.machines import peaks, presets_of
from moesim.study.validation.number_formats import format_of, peak_flops
from moesim.study.validation.table_kind import register_table

DRAWS = 8
"""Routings over which a time is averaged where the table's own is not known."""

WEIGHTS = "fp4"
ARITHMETIC = "fp8"
"""Of the fused kernel: FP4 weights with a scale for each 32, FP8 activations, FP8 units."""

COUNTS = "counts_of_experts"
"""Column that the companion file becomes: the counts as text, empty where there are none."""

POWER_LAW, SAMPLED = "power_law_", "power_law_sampled_"


@register_table
class FusedLayerTable(FittedTable):
    """The slowest rank's time for the given or regenerated rows of every expert."""

    model = FusedLayer
    name = "moe_layer_skew"
    files = ("moe_layer_skew_multigpu*.csv",)
    companions: ClassVar[tuple[str, ...]] = ("moe_layer_skew_expert_counts*.csv",)
    columns = (
        "system", "phase", "hidden_size", "inter_size", "topk", "num_experts", "moe_ep_size", "distribution", "tokens_per_rank", "time_us",
    )  # fmt: skip
    source = "moe_layer_skew_multigpu.csv with moe_layer_skew_expert_counts.csv"

    def join(self, rows: Rows, companions: Mapping[str, Rows]) -> Mapping[str, NDArray[Any]]:
        """Put the counts of every expert beside the rows that they belong to."""
        key = ("num_experts", "topk", "moe_ep_size", "global_num_tokens", "distribution")
        known: dict[str, str] = {}
        for table in companions.values():
            if all(name in table for name in (*key, "counts")):
                known.update(zip(labels(table, key).tolist(), words(table, "counts").tolist(), strict=True))
        wide = {**rows, "global_num_tokens": rows["tokens_per_rank"] * rows["moe_ep_size"]}
        return {**wide, COUNTS: np.asarray([known.get(label, "") for label in labels(wide, key).tolist()], dtype=object)}

    def inputs(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """Return the rows of every expert, what one of them costs, and the data sheet."""
        hidden, inner, top_k, tokens = (numbers(rows, name) for name in ("hidden_size", "inter_size", "topk", "tokens_per_rank"))
        presets = presets_of(words(rows, "system"))
        weights = np.asarray([format_of(WEIGHTS).weight_bytes] * count(rows))
        return {
            "counts": counts_of(rows),
            "ranks": numbers(rows, "moe_ep_size"),
            "experts": numbers(rows, "num_experts"),
            "tokens_per_rank": tokens,
            "hidden_size": hidden,
            "inter_size": inner,
            "distribution": words(rows, "distribution"),
            "regime": self.regime(rows),
            "weight_bytes": 3 * hidden * inner * weights,
            "row_flops": 6 * hidden * inner,
            "returned_bytes": tokens * top_k * hidden * 2,
            "memory_bandwidth": peaks(presets, "memory_bandwidth"),
            "link_bandwidth": peaks(presets, "nvlink"),
            "peak_flops": peak_flops(presets, np.asarray([ARITHMETIC] * count(rows))),
        }

    def sections(self, rows: Rows) -> NDArray[np.str_]:
        """Return the one section that there is."""
        return np.asarray(["fused_layer"] * count(rows))

    def seconds(self, rows: Rows) -> Floats:
        """Return the time of the slowest rank."""
        return numbers(rows, "time_us") / 1e6

    def regime(self, rows: Rows) -> NDArray[np.str_]:
        """Return ``prefill`` or ``decode``."""
        return np.where(words(rows, "phase") == "context", "prefill", "decode").astype(np.str_)

    def group(self, rows: Rows) -> NDArray[np.str_]:
        """Return system and EP: whole numbers of ranks are held back."""
        return labels(rows, ("system", "moe_ep_size"))

    def rivals(self, rows: Rows) -> NDArray[np.str_]:
        """Return system, EP, phase and tokens: routings of one batch compete."""
        return labels(rows, self._batch(rows))

    def reference(self, rows: Rows) -> Ints:
        """Return the balanced row of the same batch; -1 for balanced rows, and where there is none."""
        batches, even = self.rivals(rows), words(rows, "distribution") == "balanced"
        found = {label: index for index, label in enumerate(batches.tolist()) if even[index]}
        return np.asarray([-1 if even[index] else found.get(label, -1) for index, label in enumerate(batches.tolist())])

    def ratio_baseline(self, rows: Rows) -> tuple[str, Floats]:
        """Return the hottest rank's load over the mean."""
        return "max/mean load of ranks", self._skew(rows)

    def baseline(self, rows: Rows) -> tuple[str, Floats]:
        """Return the measured balanced time times the hottest rank's load over the mean; nothing for balanced rows."""
        reference = self.reference(rows)
        values = np.where(reference >= 0, self.seconds(rows)[reference] * self._skew(rows), np.nan)
        return "measured balanced time x max/mean load", values

    def _skew(self, rows: Rows) -> Floats:
        if "max_over_mean" in rows:
            return numbers(rows, "max_over_mean")
        counts, ranks = counts_of(rows), numbers(rows, "moe_ep_size").astype(np.int64)
        experts = numbers(rows, "num_experts").astype(np.int64)
        found = np.empty(count(rows))
        for row, (over, size) in enumerate(zip(ranks.tolist(), experts.tolist(), strict=True)):
            loads = counts[row, :, :size].reshape(len(counts[row]), over, -1).sum(axis=2)
            found[row] = float((loads.max(axis=1) / loads.mean(axis=1)).mean())
        return found

    def _batch(self, rows: Rows) -> tuple[str, ...]:
        return tuple(
            name
            for name in ("system", "phase", "hidden_size", "inter_size", "topk", "num_experts", "moe_ep_size", "tokens_per_rank")
            if name in rows
        )


def counts_of(rows: Rows) -> Ints:
    """Return int[n, DRAWS, E]: the rows of every expert, those of the table where it has them, otherwise regenerated.

    Raises
    ------
    CalibrationError
        If a distribution is not known, or counts do not fit their row.
    """
    experts = numbers(rows, "num_experts").astype(np.int64)
    found = np.zeros((count(rows), DRAWS, int(experts.max(initial=1))), dtype=np.int64)
    given = rows[COUNTS].tolist() if COUNTS in rows else [""] * count(rows)
    names = words(rows, "distribution").tolist()
    top_k, ranks, tokens = (numbers(rows, name).astype(np.int64).tolist() for name in ("topk", "moe_ep_size", "tokens_per_rank"))
    cache: dict[tuple[Any, ...], Ints] = {}
    for row, size in enumerate(experts.tolist()):
        batch = tokens[row] * ranks[row]
        if size % ranks[row]:
            raise CalibrationError(f"{size} experts do not divide over {ranks[row]} ranks")
        key = (given[row], names[row], size, top_k[row], ranks[row], batch)
        if key not in cache:
            cache[key] = _parsed(given[row], size) if given[row] else _drawn(names[row], size, top_k[row], ranks[row], batch)
        found[row, :, :size] = cache[key]
    return found


def _parsed(text: str, experts: int) -> Ints:
    try:
        counts = np.asarray([int(part) for part in text.split()], dtype=np.int64)
    except ValueError:
        raise CalibrationError(
            f"the counts of experts begin with {text[:30]!r}: whole numbers with blanks between them are expected"
        ) from None
    if len(counts) != experts or (counts < 0).any():
        raise CalibrationError(
            f"{len(counts)} counts for {experts} experts, the least {counts.min(initial=0)}: one of at least 0 each is expected"
        )
    return counts[None]


@lru_cache(maxsize=512)
def _drawn(name: str, experts: int, top_k: int, ranks: int, tokens: int) -> Ints:
    if name in {"balanced", "uniform"}:
        return even_rows(tokens * top_k, experts)[None]
    try:
        exponent = float(name.rsplit("_", maxsplit=1)[-1])
    except ValueError:
        raise CalibrationError(f"the distribution {name!r} is not known: balanced, power_law_A and power_law_sampled_A are") from None
    if name.startswith(SAMPLED) and exponent > 1:
        return pareto_rows(exponent, tokens=tokens, top_k=top_k, experts=experts, draws=DRAWS)
    if name.startswith(POWER_LAW) and not name.startswith(SAMPLED):
        return power_law_rows(seeded_uniforms(experts)[None], exponent, tokens=tokens, top_k=top_k, ranks=ranks)
    raise CalibrationError(f"the distribution {name!r} is not known: balanced, power_law_A and power_law_sampled_A are")
