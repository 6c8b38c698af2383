"""Kernels of an MoE layer as 'moesim measure compute' and 'suite' time them on one device."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import CalibrationError
from moesim.facts.arrays import Floats
from moesim.models.fitted.expert_loop import ExpertLoop
from moesim.models.fitted.parametric import Parametric
from moesim.models.fitted.rows import Rows, labels, numbers, words
from moesim.models.fitted.token_work import TokenWork
from moesim.study.validation.fitted_table import alpha_beta
from moesim.study.validation.machines import preset_of
from moesim.study.validation.own_table import OwnTable
from moesim.study.validation.table_kind import register_table

MATRICES = {"ffn": 3.0, "moe_ffn": 3.0, "up_proj": 2.0, "down_proj": 1.0}
WHOLE = "moe_ffn"
"""Operation that holds the choices, the permutation and the weighted sum besides the experts."""

BYTES = {"float32": (4.0, 4.0), "bfloat16": (2.0, 2.0), "float16": (2.0, 2.0), "float8_e4m3fn": (1.0, 2.0)}
"""Of an element of weights, and of a row."""

GROUPED = ("grouped_mm", "scaled_grouped_mm", "bmm")
"""Kernels that work on all experts at once, on a GPU."""


def dtype_bytes(name: str) -> tuple[float, float]:
    """Return the bytes of an element of weights and of a row.

    Raises
    ------
    CalibrationError
        If the number format is none that PyTorch measures.
    """
    if name not in BYTES:
        raise CalibrationError(f"the number format {name!r} is not known: {', '.join(BYTES)} are")
    return BYTES[name]


def expert_rows(rows: Rows) -> Floats:
    """Return Floats[n, S]: rows of each expert of the device, from the list of each line or, where there is none, alike for active ones."""
    listed = words(rows, "rows_per_expert").tolist() if "rows_per_expert" in rows else [""] * len(rows["rows"])
    found = []
    for text, routed, active in zip(listed, numbers(rows, "rows"), numbers(rows, "active_experts"), strict=True):
        try:
            each = [float(part) for part in text.split()] or [routed / max(active, 1.0)] * int(active)
        except ValueError:
            raise CalibrationError(f"rows_per_expert begins with {text[:30]!r}: numbers with blanks between them are expected") from None
        if abs(sum(each) - routed) > 0.5 + 1e-6 * routed:
            raise CalibrationError(f"rows_per_expert adds up to {sum(each):g}, the column rows says {routed:g}")
        found.append(each)
    most = max((len(each) for each in found), default=1)
    return np.asarray([each + [0.0] * (most - len(each)) for each in found]).reshape(len(found), max(most, 1))


def loop_inputs(given: Floats, hidden: Floats, width: Floats, matrices: Floats, dtypes: NDArray[np.str_]) -> dict[str, NDArray[Any]]:
    """Return what :class:`moesim.models.fitted.expert_loop.ExpertLoop` must be told."""
    sizes = np.asarray([dtype_bytes(str(name)) for name in dtypes]).reshape(len(dtypes), 2)
    return {
        "expert_rows": given, "most_rows": given.max(axis=1, initial=0.0), "hidden_size": hidden, "inter_size": width,
        "matrices": matrices, "weight_bytes": sizes[:, 0], "row_bytes": sizes[:, 1],
    }  # fmt: skip


def elements(operation: str, tokens: Floats, hidden: Floats, experts: Floats, top_k: Floats, routed: Floats) -> Floats:
    """Return the elements that a gate, a permutation or a weighted sum touches: operands, results, and a gate's products."""
    if operation == "gate":
        return np.asarray(tokens * hidden * experts)
    if operation == "permute":
        return np.asarray(2.0 * routed * hidden + tokens * top_k)
    return np.asarray((3.0 * routed + tokens) * hidden)


@register_table
class OwnCompute(OwnTable):
    """One call of a kernel on one device; the regime is the operation."""

    name = "own_compute"
    files = ("compute.csv", "compute_*.csv")
    columns = (
        "system", "kernel_source", "operation", "moe_dtype", "hidden_size", "inter_size", "topk", "num_experts", "num_tokens", "rows",
        "active_experts", "time_us",
    )  # fmt: skip
    source = "compute.csv of 'moesim measure'"

    def model_of(self, section: str) -> type[Parametric]:
        """Return the model of experts or of what is done per token."""
        return TokenWork if section.startswith("token_work") else ExpertLoop

    def sections(self, rows: Rows) -> NDArray[np.str_]:
        """Return ``expert_loop.KERNEL.DTYPE``, ``moe_ffn_loop.KERNEL.DTYPE`` or ``token_work.OPERATION.DTYPE``."""
        parts = (words(rows, name).tolist() for name in ("operation", "kernel_source", "moe_dtype", "system"))
        found = []
        for operation, kernel, dtype, system in zip(*parts, strict=True):
            if operation not in MATRICES:
                found.append(f"token_work.{operation}.{dtype}" if operation in {"gate", "permute", "unpermute"} else "")
            elif kernel in GROUPED and preset_of(system):
                found.append("")
            else:
                found.append(f"{'moe_ffn_loop' if operation == WHOLE else 'expert_loop'}.{kernel}.{dtype}")
        return np.asarray(found, dtype=np.str_)

    def why_none(self, rows: Rows, row: int) -> str:
        """Return that a GPU's grouped kernels stand in another table, or that the operation is unknown."""
        operation, kernel = str(words(rows, "operation")[row]), str(words(rows, "kernel_source")[row])
        if operation in MATRICES:
            return f"{kernel} works on all experts at once: what a GPU takes for that is predicted in moe_ffn_*.csv"
        return f"the operation {operation!r} is not known"

    def inputs(self, section: str, rows: Rows) -> dict[str, NDArray[Any]]:
        """Return rows of experts and their shape, or the elements of an operation per token."""
        hidden, routed = numbers(rows, "hidden_size"), numbers(rows, "rows")
        if section.startswith("token_work"):
            operation = section.split(".")[1]
            tokens, experts, top_k = (numbers(rows, name) for name in ("num_tokens", "num_experts", "topk"))
            return {"elements": elements(operation, tokens, hidden, experts, top_k, routed)}
        given = expert_rows(rows)
        if section.split(".")[1] == "bmm":  # every expert is padded to the most rows of any
            held = numbers(rows, "num_experts") / (numbers(rows, "moe_ep_size") if "moe_ep_size" in rows else 1.0)
            given = np.where(np.arange(int(held.max(initial=1))) < held[:, None], given.max(axis=1, keepdims=True), 0.0)
        matrices = np.asarray([MATRICES[operation] for operation in words(rows, "operation").tolist()])
        return loop_inputs(given, hidden, numbers(rows, "inter_size"), matrices, words(rows, "moe_dtype"))

    def seconds(self, rows: Rows) -> Floats:
        """Return the time of a call."""
        return numbers(rows, "time_us") / 1e6

    def regime(self, rows: Rows) -> NDArray[np.str_]:
        """Return the operation."""
        return words(rows, "operation")

    def group(self, rows: Rows) -> NDArray[np.str_]:
        """Return system, shape and distribution: a held-back one is new to the fit."""
        more = ("distribution",) if "distribution" in rows else ()
        return labels(rows, ("system", "hidden_size", "inter_size", "num_experts", *more))

    def baseline(self, rows: Rows) -> tuple[str, Floats]:
        """Return one line per operation through rows x width, fitted to these rows."""
        size = numbers(rows, "rows") * numbers(rows, "hidden_size") * numbers(rows, "inter_size")
        return "one alpha-beta per operation and kernel, fitted to these rows", alpha_beta(
            size, self.seconds(rows), labels(rows, ("system", "operation", "kernel_source", "moe_dtype"))
        )
