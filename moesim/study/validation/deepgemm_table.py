"""Expert compute of one rank with DeepGEMM: the contiguous layout of prefill and the masked one of decode, even and skewed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats, Ints
from moesim.models.fitted.expert_ffn import ExpertFfn
from moesim.models.fitted.routing_draws import BY_SIZE
from moesim.models.fitted.rows import Rows, count, labels, numbers, words
from moesim.study.validation.ffn_inputs import Local, ffn_inputs, hot_rows
from moesim.study.validation.fitted_table import FittedTable
from moesim.study.validation.moe_ffn_table import mean_roofline
from moesim.study.validation.table_kind import register_table

PACKED = 128
"""Rows of an expert in the contiguous layout's even batches: that many, or none. The times of the table say so: 4096 routes on 64 local
experts take what 32 experts' weights take, while skewed batches of 256 routes already read nearly all."""


@register_table
class DeepGemmTable(FittedTable):
    """One call of the expert kernels on one rank; the regime is the phase."""

    model = ExpertFfn
    name = "moe_deepgemm"
    files = ("moe_deepgemm_skew*.csv",)
    columns = (
        "system", "phase", "moe_dtype", "hidden_size", "inter_size", "topk", "num_experts", "moe_ep_size", "distribution",
        "num_tokens", "time_us",
    )  # fmt: skip
    source = "moe_deepgemm_skew.csv"

    def inputs(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """Return the loads of the hottest rank and the data sheet."""
        kernel = str(self.sections(rows)[0]).partition(".")[2] if count(rows) else "deepgemm_masked"
        slots = numbers(rows, "num_experts") / numbers(rows, "moe_ep_size")
        found = ffn_inputs(rows, kernel, _packed if kernel == "deepgemm_contiguous" else _local, slots, self.regime(rows))
        prefill = words(rows, "phase") == "context"
        found["started_one_by_one"] = prefill
        # The gather of prefill zeroes and fills a row for every token of the group; what does not fall with EP in the table is that.
        gathered = 2 * numbers(rows, "num_tokens")[:, None]
        found["summed_rows"] = np.where(prefill[:, None], np.broadcast_to(gathered, found["routed"].shape), found["summed_rows"])
        return found

    def sections(self, rows: Rows) -> NDArray[np.str_]:
        """Return the layout."""
        return np.where(words(rows, "phase") == "context", "expert_ffn.deepgemm_contiguous", "expert_ffn.deepgemm_masked").astype(np.str_)

    def seconds(self, rows: Rows) -> Floats:
        """Return the measured time."""
        return numbers(rows, "time_us") / 1e6

    def regime(self, rows: Rows) -> NDArray[np.str_]:
        """Return ``prefill`` or ``decode``, even or skewed."""
        phase = np.where(words(rows, "phase") == "context", "prefill", "decode")
        even = np.isin(words(rows, "distribution"), ("uniform", "balanced"))
        return np.asarray([f"{name}_{'even' if flat else 'skewed'}" for name, flat in zip(phase, even, strict=True)], dtype=np.str_)

    def group(self, rows: Rows) -> NDArray[np.str_]:
        """Return system and EP."""
        return labels(rows, ("system", "phase", "moe_ep_size"))

    def rivals(self, rows: Rows) -> NDArray[np.str_]:
        """Return everything but the distribution."""
        return labels(rows, ("system", "phase", "moe_dtype", "hidden_size", "inter_size", "num_experts", "moe_ep_size", "num_tokens"))

    def reference(self, rows: Rows) -> Ints:
        """Return the even row of the same batch; -1 for even rows."""
        batches, even = self.rivals(rows).tolist(), np.isin(words(rows, "distribution"), ("uniform", "balanced"))
        found = {label: row for row, label in enumerate(batches) if even[row]}
        return np.asarray([-1 if even[row] else found.get(label, -1) for row, label in enumerate(batches)], dtype=np.int64)

    def baseline(self, rows: Rows) -> tuple[str, Floats]:
        """Return the roofline at the peaks for a rank with the mean load."""
        slots = numbers(rows, "num_experts") / numbers(rows, "moe_ep_size")
        return "roofline of a rank with the mean load, at the data sheet's peaks", mean_roofline(rows, slots)


def _local(rows: Rows, row: int) -> Local:
    experts, top_k, ranks, tokens = (int(rows[name][row]) for name in ("num_experts", "topk", "moe_ep_size", "num_tokens"))
    return hot_rows(str(rows["distribution"][row]), experts, top_k, ranks, tokens, BY_SIZE)


def _packed(rows: Rows, row: int) -> Local:
    """Return the loads of a prefill batch; an even one fills experts to whole tiles, one after another."""
    if str(rows["distribution"][row]) not in {"uniform", "balanced"}:
        return _local(rows, row)
    experts, ranks = int(rows["num_experts"][row]), int(rows["moe_ep_size"][row])
    slots, share = experts // ranks, int(rows["num_tokens"][row]) * int(rows["topk"][row]) // ranks
    if share >= slots * PACKED:
        return _local(rows, row)
    own = np.zeros((1, slots), dtype=np.int64)
    own[0, : share // PACKED] = PACKED
    if share % PACKED:
        own[0, share // PACKED] = share % PACKED
    return own, np.zeros((1, 1), dtype=np.int64)
