"""Compare the models of expert kernels with measured times; prints the tables of docs/validation.md.

    python benchmarks/compare_kernels.py

Nothing is fitted here. Some constants of ``grouped_gemm`` are single rows of the same table, and the profile of ``calibrated`` was fitted
to a table that holds it, so what is compared is in sample.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from moesim.desk.presets.profiles import profile_preset
from moesim.facts.gpu_presets import gpu_presets
from moesim.facts.model import Attention, MoeModel
from moesim.models.compute.calibrated import Calibrated
from moesim.models.compute.grouped_gemm import GroupedGemm
from moesim.models.fitted.routing_draws import even_rows as rows_from_expert_0

TABLE = Path(__file__).resolve().parents[1] / "tests" / "data" / "moe_ffn_h200_balanced.csv"
DTYPES = {"bfloat16": "bf16", "fp8_block": "fp8"}
MOST_DECODE_TOKENS = 512
"""Up to so many tokens in an expert-parallel group a row counts as decode."""


@dataclass(frozen=True)
class Compared:
    """One row: what was measured, and the relative error of the prediction (below 0: the model is too fast)."""

    model: str
    dtype: str
    ranks: int
    tokens: int
    error: float

    @property
    def regime(self) -> str:
        return "decode" if self.tokens <= MOST_DECODE_TOKENS else "prefill"

    @property
    def spread(self) -> str:
        return "EP 1" if self.ranks == 1 else "EP > 1"


def even_rows(routes: int, experts: int) -> np.ndarray:
    """Return int[experts]: the routes as even as whole numbers allow, fewer routes than experts at even distances."""
    return np.diff(np.arange(experts + 1) * routes // experts)


def predicted(row: dict[str, str], kind: str = "grouped_gemm") -> float:
    """Return the seconds that a compute model gives rank 0."""
    experts, ranks, hidden = int(row["num_experts"]), int(row["moe_ep_size"]), int(row["hidden_size"])
    model = MoeModel(
        name=row["model"],
        layers=1,
        moe_layers=(0,),
        hidden=hidden,
        dispatch_width=hidden,
        experts=experts,
        top_k=int(row["topk"]),
        expert_width=int(row["inter_size"]),
        expert_dtype=DTYPES[row["moe_dtype"]],
        attention=Attention(heads=1, score_width=1.0, projection_parameters=1, cache_bytes_per_token=1),
    )
    routes = int(row["num_tokens"]) * model.top_k
    setting = SimpleNamespace(
        cluster=SimpleNamespace(gpu=gpu_presets()["h200-sxm"]),
        model=model,
        parallel=SimpleNamespace(ep=ranks),
        workload=SimpleNamespace(tokens_per_gpu=int(row["num_tokens"]) / ranks),
    )
    if kind == "calibrated":
        kernels = Calibrated(fitted=profile_preset("h200-sxm")).begin(setting)
        rows = rows_from_expert_0(routes, experts)[: experts // ranks]
    else:
        kernels = GroupedGemm().begin(setting)
        rows = even_rows(routes, experts)[: experts // ranks]
    return float(kernels.experts(rows[None, :], direction="forward")[0])


def compare(path: Path = TABLE, kind: str = "grouped_gemm") -> list[Compared]:
    """Return every row of the table with its error under one kind of compute model."""
    with path.open(encoding="utf-8") as text:
        measured = list(csv.DictReader(line for line in text if not line.startswith("#")))
    return [
        Compared(
            model=row["model"],
            dtype=DTYPES[row["moe_dtype"]],
            ranks=int(row["moe_ep_size"]),
            tokens=int(row["num_tokens"]),
            error=predicted(row, kind) / (float(row["time_us"]) * 1e-6) - 1.0,
        )
        for row in measured
    ]


def told(rows: Iterable[Compared]) -> str:
    """Say mean absolute error and bias (the mean of the signed errors), in per cent."""
    errors = np.array([row.error for row in rows])
    if not errors.size:
        return "none"
    return f"{100 * np.abs(errors).mean():.1f} % ({100 * errors.mean():+.1f} %)".replace("-", "−")


def markdown(compared: list[Compared], rows: Callable[[Compared], str], columns: Callable[[Compared], str], head: str) -> str:
    """Return a table of :func:`told`, in the order in which rows and columns first occur when sorted."""
    names = sorted({rows(one) for one in compared})
    across = sorted({columns(one) for one in compared}, key=lambda name: (len(name), name))
    lines = [f"| {head} | {' | '.join(across)} |", "| --- |" + " --- |" * len(across)]
    for name in names:
        cells = (told(one for one in compared if rows(one) == name and columns(one) == column) for column in across)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def regimes(compared: list[Compared]) -> str:
    """Return the table by regime, one rank against several."""
    return markdown(compared, lambda row: row.regime, lambda row: row.spread, "rows")


def groups(compared: list[Compared]) -> str:
    """Return the table of prefill rows by model, dtype and number of ranks."""
    prefill = [row for row in compared if row.regime == "prefill"]
    return markdown(prefill, lambda row: f"{row.model}, {row.dtype}", lambda row: f"EP {row.ranks}", "prefill")


def models(compared: list[Compared]) -> str:
    """Return the table by model and dtype, all ranks together."""
    return markdown(compared, lambda row: f"{row.model}, {row.dtype}", lambda row: row.regime, "model")


def main() -> int:
    for kind in ("grouped_gemm", "calibrated"):
        compared = compare(kind=kind)
        print(f"{kind}: {len(compared)} rows; mean absolute error (bias)\n")
        print("\n\n".join(table(compared) for table in (regimes, models, groups)), end="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
