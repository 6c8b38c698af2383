"""The hottest rank's expert compute before and after experts are replicated and placed anew."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import CalibrationError
from moesim.facts.arrays import Floats, Ints
from moesim.models.fitted.expert_ffn import TILINGS, ExpertFfn
from moesim.models.fitted.routing_draws import BY_SIZE, distinct_tokens, hottest_rank, rows_by_rank
from moesim.models.fitted.rows import Rows, count, labels, numbers, words
from moesim.models.placement.eplb_plan import plan_eplb
from moesim.study.validation.ffn_inputs import Local, distribution_of, drawn_rows, ffn_inputs, hot_rows
from moesim.study.validation.fitted_table import FittedTable
from moesim.study.validation.moe_ffn_table import MOST_DECODE_TOKENS, kernel_of, mean_roofline
from moesim.study.validation.table_kind import register_table

CANDIDATES, NEAREST, ALIKE = 64, 6, 0.04
"""Of so many draws, those are averaged whose hottest rank is reached by as many tokens as the table says, within this share (twelve of
them), or else the nearest six: the number tells the draw. Where all tokens reach the rank anyway it tells nothing, and draws of all kinds
are averaged."""

REPLICATED = "_eplb"


@register_table
class HotRankTable(FittedTable):
    """One call of the expert kernels on the hottest rank, for a power law as drawn, or balanced by EPLB on the true loads."""

    model = ExpertFfn
    name = "moe_hot_rank"
    files = ("moe_hot_rank_eplb*.csv",)
    columns = (
        "system", "moe_dtype", "moe_kernel", "hidden_size", "inter_size", "topk", "num_experts", "num_slots", "moe_ep_size", "distribution",
        "num_tokens", "rank0_num_tokens", "time_us",
    )  # fmt: skip
    source = "moe_hot_rank_eplb.csv"

    def inputs(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """Return the loads of the hottest rank and the data sheet."""
        names, tokens = words(rows, "distribution").tolist(), _whole(rows, "num_tokens")
        shape = tuple(_whole(rows, name) for name in ("num_experts", "topk", "num_slots", "moe_ep_size"))
        seen = numbers(rows, "rank0_num_tokens").tolist()
        wanted: dict[tuple[Any, ...], set[int]] = {}
        keys = [(name, *(column[row] for column in shape)) for row, name in enumerate(names)]
        for key, size in zip(keys, tokens, strict=True):
            if key[0].endswith(REPLICATED):
                wanted.setdefault(key, set()).add(size)
        planned = {key: replicated_rows(*key, tuple(sorted(sizes))) for key, sizes in wanted.items()}

        def local(_: Rows, row: int) -> Local:
            name, experts, top_k, slots, ranks = keys[row]
            if name.endswith(REPLICATED):
                own = planned[keys[row]][tokens[row]]
                group = np.zeros((len(own), 1), dtype=np.int64)
            elif slots != experts:
                raise CalibrationError(
                    f"{slots} slots for {experts} experts without {REPLICATED}: nobody knows which experts are replicated"
                )
            else:
                own, group = hot_rows(name, experts, top_k, ranks, tokens[row], BY_SIZE, CANDIDATES)
            near = _nearest(own, tokens[row], seen[row])
            return own[near], group[near]

        slots_per_rank = numbers(rows, "num_slots") / numbers(rows, "moe_ep_size")
        kernel = str(self.sections(rows)[0]).partition(".")[2] if count(rows) else "cutlass"
        return ffn_inputs(rows, kernel, local, slots_per_rank, self.regime(rows))

    def sections(self, rows: Rows) -> NDArray[np.str_]:
        """Return the kernel library."""
        known = [name if name in TILINGS else kernel_of(name) for name in words(rows, "moe_kernel").tolist()]
        return np.asarray([f"expert_ffn.{name}" for name in known], dtype=np.str_)

    def instead(self, name: str) -> tuple[str, ...]:  # noqa: ARG002 - the contract's name
        """Return the library that the table has."""
        return ("expert_ffn.cutlass",)

    def seconds(self, rows: Rows) -> Floats:
        """Return the measured time."""
        return numbers(rows, "time_us") / 1e6

    def regime(self, rows: Rows) -> NDArray[np.str_]:
        """Return ``decode`` or ``prefill``, before or after replication."""
        size = np.where(numbers(rows, "num_tokens") <= MOST_DECODE_TOKENS, "decode", "prefill")
        after = np.char.endswith(words(rows, "distribution"), REPLICATED)
        return np.asarray([f"{phase}_{'after' if done else 'before'}" for phase, done in zip(size, after, strict=True)], dtype=np.str_)

    def group(self, rows: Rows) -> NDArray[np.str_]:
        """Return system and shape."""
        return labels(rows, ("system", "hidden_size", "inter_size", "num_experts"))

    def rivals(self, rows: Rows) -> NDArray[np.str_]:
        """Return the batch: placements of it compete."""
        return labels({**rows, "law": np.char.replace(words(rows, "distribution"), REPLICATED, "")}, (*_BATCH, "law"))

    def reference(self, rows: Rows) -> Ints:
        """Return the row of the same batch before replication; -1 for those themselves."""
        batches, after = self.rivals(rows).tolist(), np.char.endswith(words(rows, "distribution"), REPLICATED).tolist()
        before = {label: row for row, label in enumerate(batches) if not after[row]}
        return np.asarray([before.get(label, -1) if after[row] else -1 for row, label in enumerate(batches)], dtype=np.int64)

    def baseline(self, rows: Rows) -> tuple[str, Floats]:
        """Return the roofline at the peaks for a rank with the mean load."""
        slots = numbers(rows, "num_slots") / numbers(rows, "moe_ep_size")
        return "roofline of a rank with the mean load, at the data sheet's peaks", mean_roofline(rows, slots)


_BATCH = ("system", "moe_dtype", "moe_kernel", "hidden_size", "inter_size", "topk", "num_experts", "moe_ep_size", "num_tokens")


def _whole(rows: Rows, name: str) -> list[int]:
    return [int(value) for value in numbers(rows, name)]


def _nearest(own: Ints, tokens: int, seen: float) -> Ints:
    """Return the draws whose hottest rank is reached by a number of tokens like ``seen``."""
    if len(own) <= NEAREST or not seen > 0:
        return np.arange(len(own))
    off = np.abs(np.log(np.maximum(distinct_tokens(own, tokens), 0.5) / seen))
    alike = np.flatnonzero(off <= ALIKE)
    if len(alike) >= 2 * NEAREST:
        return alike[np.linspace(0, len(alike) - 1, 2 * NEAREST).astype(np.int64)]
    return np.sort(np.argsort(off, kind="stable")[:NEAREST])


@lru_cache(maxsize=512)
def replicated_rows(
    name: str, experts: int, top_k: int, slots: int, ranks: int, sizes: tuple[int, ...], draws: int = 24
) -> dict[int, Ints]:
    """Return the rows of the hottest rank's slots after EPLB placed the experts by their true rows, for several numbers of tokens.

    Replicas share their expert's rows, each rounded up: the source gives every replica of an expert with rows at least one.

    Returns
    -------
    dict of int to Ints[draws, slots / ranks]
        By tokens.

    Raises
    ------
    CalibrationError
        If slots do not divide over ranks, or the distribution is not known.
    """
    if slots % ranks:
        raise CalibrationError(f"{slots} slots do not divide over {ranks} ranks")
    kind, exponent = distribution_of(name)
    if kind == "even":
        raise CalibrationError(f"the distribution {name!r} has no exponent: power_law_A{REPLICATED} is expected")
    rows = [drawn_rows(kind, exponent, experts, top_k, ranks, tokens, BY_SIZE, draws) for tokens in sizes]
    loads = np.concatenate(rows)
    # All batches are problems of one call: the planner takes one step for all of them.
    plan = plan_eplb(loads, slots=slots, gpus=ranks)
    shares = np.take_along_axis(loads / plan.logical_count, plan.physical_to_logical_map, axis=1)
    of_slot = np.ceil(shares - 1e-9).astype(np.int64)
    hot = hottest_rank(rows_by_rank(of_slot[:, np.argsort(plan.rank_of_slot, kind="stable")], ranks))
    return {tokens: hot[index * draws : (index + 1) * draws] for index, tokens in enumerate(sizes)}
