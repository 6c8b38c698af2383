"""The phases of a mixture-of-experts all-to-all inside one NVLink rack: TensorRT-LLM's two-sided and one-sided kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats
from moesim.facts.model import DTYPE_BYTES
from moesim.models.fitted.estimate import refuse_degenerate
from moesim.models.fitted.parametric import Parametric, refuse_narrow
from moesim.models.fitted.rows import Rows, numbers

SCALE_BLOCK = 16
"""Elements that share a one-byte scale in nvfp4 (NVIDIA, "Introducing NVFP4", 2025)."""

OPS = ("prepare", "dispatch", "combine", "combine_low_precision")


@dataclass(frozen=True, slots=True, kw_only=True)
class NvlinkRack(Parametric):
    """Launch, a step for each copy of a token, work per token, and the bytes over the port of the GPU.

    ``t = launch + per_copy c + T (per_token + b / (link_efficiency B))``: c copies of a token, T tokens per rank, b bytes per token that
    pass the port of a GPU,
    B the peak of NVLink one way. Balanced routing sends a token to ``c = min(k, EP)`` ranks, so beyond EP = k a bigger group does not cost
    more.

    Rows have the columns ``num_tokens``, ``copies``, ``port_bytes`` and ``link_bandwidth``; :func:`port_bytes` gives the bytes of each
    kernel.

    Notes
    -----
    A switch joins all GPUs of the rack at full rate, so there is no term for the distance between them.
    """

    NAME: ClassVar[str] = "nvlink_rack"
    UNITS: ClassVar[Mapping[str, str]] = {"launch": "s", "per_copy": "s", "per_token": "s"}
    RANGED: ClassVar[tuple[str, ...]] = ("num_tokens", "copies", "port_bytes")

    launch: float
    per_copy: float
    per_token: float
    link_efficiency: float

    @staticmethod
    def seconds_of(values: Mapping[str, float], rows: Rows) -> Floats:
        """Return the seconds of rows with the given parameters."""
        moved = numbers(rows, "port_bytes") / (values["link_efficiency"] * numbers(rows, "link_bandwidth"))
        return np.asarray(
            values["launch"] + values["per_copy"] * numbers(rows, "copies") + numbers(rows, "num_tokens") * (values["per_token"] + moved)
        )

    @classmethod
    def fit(cls, rows: Rows, seconds: Floats, *, source: str = "") -> Self:
        """Return the model that comes nearest to the rows; what one number of ranks cannot tell is held at next to nothing.

        Raises
        ------
        CalibrationError
            If there are too few rows or numbers of tokens.
        """
        refuse_degenerate(rows, what="NVLink rack", least=6, varied={"num_tokens": 4})
        refuse_narrow(rows, what="NVLink rack", column="num_tokens", reach=30)
        why = ("assumed", "one number of copies cannot tell what a copy costs from what a token costs")
        held: dict[str, tuple[str, str]] = {}
        if len(np.unique(numbers(rows, "copies"))) < 2:
            held |= {"per_copy": why, "per_token": why}
        if not np.any(numbers(rows, "port_bytes") > 0):
            held = {"link_efficiency": ("assumed", "nothing is sent"), "per_copy": why} if "per_copy" in held else {"link_efficiency": why}
        return cls.fitted(rows, seconds, start=START, held=held, bounds=BOUNDS, source=source)


START = {"launch": 1e-5, "per_copy": 2e-7, "per_token": 1e-9, "link_efficiency": 0.7}
BOUNDS = {"link_efficiency": (0.02, 1.0), "per_copy": (1e-9, 1e-4), "per_token": (1e-11, 1e-5)}


def element_bytes(dtype: str) -> float:
    """Return the bytes of one element: nvfp4 with its scales, fp8 with none beside it.

    Examples
    --------
    >>> element_bytes("nvfp4"), element_bytes("fp8"), element_bytes("bfloat16")
    (0.5625, 1.0, 2.0)
    """
    if dtype == "nvfp4":
        return 0.5 + 1.0 / SCALE_BLOCK
    return float(DTYPE_BYTES[{"bfloat16": "bf16", "float16": "fp16"}.get(dtype, dtype)])


def copies_of(ranks: Floats, top_k: Floats) -> Floats:
    """Return the ranks that balanced routing sends a token to: ``min(k, EP)``."""
    return np.asarray(np.minimum(ranks, top_k))


def port_bytes(op: str, kernel: str, ranks: Floats, top_k: Floats, hidden: Floats, dtypes: NDArray[np.str_]) -> Floats:
    """Return the bytes per token that pass the port of a GPU.

    Parameters
    ----------
    op : str
        A word of ``OPS``.
    kernel : str
        ``NVLinkTwoSided`` copies through a buffer of its own, the share of the own rank too, and combine writes the sum as well;
        ``NVLinkOneSided`` writes to
        other ranks only.
    ranks, top_k, hidden : Floats[n]
        EP, choices per token, elements of a token.
    dtypes : str array [n]
        Of the tokens that are dispatched; combine returns bf16, and low precision fp8.
    """
    copies = copies_of(ranks, top_k)
    if op == "prepare":
        return np.zeros_like(copies, dtype=np.float64)
    away = copies * (ranks - 1) / ranks
    if op == "dispatch":
        each = np.asarray([element_bytes(str(dtype)) for dtype in dtypes]) * hidden
        return np.asarray((away if kernel == "NVLinkOneSided" else copies) * each)
    each = hidden * element_bytes("fp8" if op == "combine_low_precision" else "bf16")
    return np.asarray((away if kernel == "NVLinkOneSided" else copies + 1) * each)
