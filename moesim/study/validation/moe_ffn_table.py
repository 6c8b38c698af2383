"""The fused MoE FFN of one rank against tokens, experts, widths, number formats, expert-parallel size and skew."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats, Ints
from moesim.models.fitted.expert_ffn import ExpertFfn
from moesim.models.fitted.rows import Rows, count, labels, numbers, words
from moesim.study.validation.ffn_inputs import Local, ffn_inputs, hot_rows
from moesim.study.validation.fitted_table import FittedTable
from moesim.study.validation.machines import peaks, presets_of
from moesim.study.validation.number_formats import format_of, peak_flops
from moesim.study.validation.table_kind import register_table

MOST_DECODE_TOKENS = 512
"""Up to so many tokens in an expert-parallel group a row counts as decode."""

KERNELS = (
    ("cutlass", "cutlass"),
    ("trtllm", "cutlass"),
    ("flashinfer", "cutlass"),
    ("moe_torch", "cutlass"),
    ("deepgemm", "deepgemm_contiguous"),
)
"""What names of kernels contain, and the kernel library that they stand for; any other is vLLM's."""


def kernel_of(name: str) -> str:
    """Return the kernel library behind a name, a key of ``TILINGS``.

    Examples
    --------
    >>> kernel_of("vllm_fused_moe"), kernel_of("flashinfer_trtllm")
    ('vllm', 'cutlass')
    """
    lower = name.lower()
    return next((kernel for sign, kernel in KERNELS if sign in lower), "vllm")


def mean_roofline(rows: Rows, slots: Floats) -> Floats:
    """Return the seconds of a rank with the mean load and so many experts at the data sheet's peaks: weights from memory, or arithmetic."""
    share = numbers(rows, "num_tokens") * numbers(rows, "topk") / numbers(rows, "moe_ep_size")
    each = 3 * numbers(rows, "hidden_size") * numbers(rows, "inter_size")
    presets, formats = presets_of(words(rows, "system")), [format_of(name) for name in words(rows, "moe_dtype").tolist()]
    weights = np.asarray([form.weight_bytes for form in formats])
    reading = np.minimum(np.ceil(share), slots) * each * weights / peaks(presets, "memory_bandwidth")
    computing = share * 2 * each / peak_flops(presets, np.asarray([form.arithmetic for form in formats]))
    return np.asarray(np.maximum(reading, computing))


@register_table
class MoeFfnTable(FittedTable):
    """One call of a fused MoE FFN on the hottest rank."""

    model = ExpertFfn
    name = "moe_ffn"
    files = ("moe_ffn_*.csv",)
    columns = (
        "system", "kernel_source", "moe_dtype", "hidden_size", "inter_size", "topk", "num_experts", "moe_ep_size", "distribution",
        "num_tokens", "time_us",
    )  # fmt: skip
    source = "moe_ffn_h200.csv"

    def inputs(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """Return the loads of the hottest rank and the data sheet."""
        kernel = str(self.sections(rows)[0]).partition(".")[2] if count(rows) else "vllm"
        slots = numbers(rows, "num_experts") / numbers(rows, "moe_ep_size")
        return ffn_inputs(rows, kernel, _local, slots, self.regime(rows))

    def sections(self, rows: Rows) -> NDArray[np.str_]:
        """Return the kernel library."""
        return np.asarray([f"expert_ffn.{kernel_of(name)}" for name in words(rows, "kernel_source").tolist()], dtype=np.str_)

    def instead(self, name: str) -> tuple[str, ...]:  # noqa: ARG002 - the contract's name
        """Return the libraries that were measured on other tables, the most general first."""
        return ("expert_ffn.vllm", "expert_ffn.cutlass")

    def seconds(self, rows: Rows) -> Floats:
        """Return the measured time."""
        return numbers(rows, "time_us") / 1e6

    def regime(self, rows: Rows) -> NDArray[np.str_]:
        """Return ``decode`` for up to 512 tokens in the group, ``prefill`` for more."""
        return np.where(numbers(rows, "num_tokens") <= MOST_DECODE_TOKENS, "decode", "prefill").astype(np.str_)

    def group(self, rows: Rows) -> NDArray[np.str_]:
        """Return system and shape: every held-back shape is new to the fit."""
        return labels(rows, ("system", "hidden_size", "inter_size", "num_experts"))

    def rivals(self, rows: Rows) -> NDArray[np.str_]:
        """Return everything but the distribution."""
        return labels(rows, (*_SHAPE, "num_tokens"))

    def reference(self, rows: Rows) -> Ints:
        """Return the balanced row of the same batch; -1 for balanced rows."""
        batches, even = self.rivals(rows), words(rows, "distribution") == "balanced"
        found = {label: index for index, label in enumerate(batches.tolist()) if even[index]}
        return np.asarray([-1 if even[index] else found.get(label, -1) for index, label in enumerate(batches.tolist())])

    def baseline(self, rows: Rows) -> tuple[str, Floats]:
        """Return the roofline at the peaks for balanced experts: their weights from memory, or their rows' arithmetic."""
        slots = numbers(rows, "num_experts") / numbers(rows, "moe_ep_size")
        return "roofline of a balanced rank at the data sheet's peaks", mean_roofline(rows, slots)


_SHAPE = ("system", "kernel_source", "moe_dtype", "hidden_size", "inter_size", "topk", "num_experts", "moe_ep_size")


def _local(rows: Rows, row: int) -> Local:
    experts, top_k, ranks, tokens = (int(rows[name][row]) for name in ("num_experts", "topk", "moe_ep_size", "num_tokens"))
    return hot_rows(str(rows["distribution"][row]), experts, top_k, ranks, tokens)
