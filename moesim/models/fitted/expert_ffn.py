"""The expert FFN of one rank: two grouped GEMMs with all that the kernel library does around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats, Ints
from moesim.models.fitted.blockscale_tiles import blockscale_tiles
from moesim.models.fitted.estimate import refuse_degenerate
from moesim.models.fitted.parametric import Parametric, smooth_maximum
from moesim.models.fitted.rows import Rows, numbers, words

TILE_COLUMNS = 128
"""Width of an output tile, where the library does not choose it."""

CORNER = 4.0
"""Sharpness of the maximum between a GEMM's throughput and the latency of one tile; between 3 and 6 the errors hardly differ."""

OUTPUT_BYTES = 2.0
"""Of an element that a GEMM writes: bf16 whatever the operands are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """How a kernel library cuts rows into tiles.

    Parameters
    ----------
    tallest_16, tallest_8 : int
        Height of the tallest tile, for 16-bit operands and for narrower ones.
    shortest : int
        Height of the shortest tile. Heights are this, times powers of two; a launch uses one of them for all experts, the smallest that
        holds the mean rows of an expert.
    chosen : bool
        Whether instead the library chooses height and width of each GEMM's tiles by waves; see
        :func:`moesim.models.fitted.blockscale_tiles.blockscale_tiles`.
    whole_group : bool
        Whether the kernel is started for the rows of the whole expert-parallel group: tiles of experts that live elsewhere are started as
        well, write zeros and end, and the helper kernels work on all rows.
    """

    tallest_16: int
    tallest_8: int
    shortest: int = 16
    whole_group: bool = False
    chosen: bool = False

    def heights(self, mean_rows: Floats, narrow: NDArray[np.bool_]) -> Ints:
        """Return the tile height of launches whose experts have so many rows on average."""
        tallest = np.where(narrow, self.tallest_8, self.tallest_16)
        doublings = np.ceil(np.log2(np.maximum(mean_rows, 1e-9) / self.shortest) - 1e-12)
        return np.minimum(self.shortest * 2 ** np.clip(doublings, 0, 30).astype(np.int64), tallest)

    def tiles(self, mean_rows: Floats, narrow: NDArray[np.bool_], *, groups: Floats, columns: Floats, sms: Floats) -> tuple[Ints, Floats]:
        """Return rows and columns of the tiles of one GEMM with so many groups and columns."""
        if self.chosen:
            tall, wide = blockscale_tiles(mean_rows, groups, columns, sms)
            return tall.astype(np.int64), wide
        return self.heights(mean_rows, narrow), np.full(len(mean_rows), float(TILE_COLUMNS))


TILINGS = {
    "vllm": Tiling(tallest_16=128, tallest_8=64, whole_group=True),
    "cutlass": Tiling(tallest_16=128, tallest_8=128, chosen=True),
    "deepgemm_contiguous": Tiling(tallest_16=128, tallest_8=128, shortest=128),
    "deepgemm_masked": Tiling(tallest_16=64, tallest_8=64, shortest=64),
}
"""Of the kernel libraries that were measured. vLLM's Triton kernel zeroes the tiles of experts that live elsewhere (vllm-project/vllm
0.22.0, ``fused_moe.py``, ``write_zeros_to_output``). Heights are those with which the tables are met best: 64 for DeepGEMM's masked
layout, 128 for the contiguous one. TensorRT-LLM's choose by waves: rows of a rank with one expert cost 0.40 us each up to 959 tokens that
reach it and 0.28 from 1000 on, where 8 choices on 256 experts make 32 rows an expert, and change again at 4096."""


def loads_of(local: Ints, group: Ints, height: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Return active experts, rows and tiles of a rank, and the tiles of all others of its group.

    Parameters
    ----------
    local : Ints[D, S]
        Rows of the rank's experts.
    group : Ints[D, E]
        Rows of all experts of the group.
    height : int
        Of a tile.

    Returns
    -------
    four Floats[D]
    """
    tiles = (-(-local // height)).sum(axis=1)
    others = (-(-group // height)).sum(axis=1) - tiles
    return tuple(np.asarray(part, dtype=np.float64) for part in ((local > 0).sum(axis=1), local.sum(axis=1), tiles, others))  # type: ignore[return-value]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertFfn(Parametric):
    """Seconds of one rank's expert FFN.

    A GEMM of N columns and depth K reads the weights of experts that have rows, and the rows, at ``memory_efficiency`` of the memory's
    peak; its tiles (rows filled up to whole tiles, tiles to whole waves over the SMs) compute at ``compute_efficiency`` of the peak
    arithmetic, each as if it were ``tile_load`` rows taller and as many columns wider, for a tile of any height fetches the same weights
    from the cache, and one of any width the same rows (the efficiency is that of tiles ``TILE_COLUMNS`` wide); both overlap with a rounded
    corner of sharpness p, ``(a**p + b**p)**(1/p)``; and no GEMM ends before one tile has gone through its depth, ``step K``.
    A gated FFN is a GEMM with N = 2 widths, K = hidden and one with N = hidden, K = width. Around them:

    - ``launch`` for the call, ``slot`` for each expert that the rank holds (it has descriptors and offsets, with rows or without);
    - the rows between the GEMMs (activation, quantisation) and the sum over a token's results move bytes: ``passes`` times what they must;
    - a tile of an expert that lives elsewhere costs ``empty_tile`` of one SM's time, in libraries that start such tiles;
    - the host starts the kernels one by one where no graph does, and nothing ends before the last was started: ``floor``.

    Suffix 16 or 8: operands of 16 bits, or narrower. Tile and wave quantisation are those of NVIDIA, "Matrix Multiplication Background
    User's Guide".

    Rows have ``active``, ``routed``, ``tiles``, ``empty_tiles`` (Floats[n, D], see :func:`loads_of`), ``tile_rows``, ``slots``,
    ``moved_rows`` and ``summed_rows`` (Floats[n, D]: rows that the activation works on, and that the sum over a token's results looks at),
    ``hidden_size``, ``inter_size``, ``weight_bytes`` and ``row_bytes`` (of one element), ``narrow``, ``first_widths`` (of the first GEMM;
    2 if left out, 1 without a gate), ``tile_columns`` (``TILE_COLUMNS`` if left out), ``second_tiles``, ``second_tile_rows`` and
    ``second_tile_columns`` (those of the first GEMM if left out), and the data sheet's ``memory_bandwidth``, ``peak_flops`` and ``sms``.
    Seconds are means over draws.
    """

    NAME: ClassVar[str] = "expert_ffn"
    UNITS: ClassVar[Mapping[str, str]] = {"launch": "s", "slot": "s", "step_16": "s", "step_8": "s", "empty_tile": "s", "floor": "s"}
    RANGED: ClassVar[tuple[str, ...]] = ("num_tokens", "ranks", "hidden_size", "inter_size", "slots")

    launch: float
    slot: float
    memory_efficiency: float
    compute_efficiency_16: float
    compute_efficiency_8: float
    step_16: float
    step_8: float
    sharpness_16: float
    sharpness_8: float
    passes: float
    empty_tile: float
    floor: float
    tile_load: float

    @staticmethod
    def seconds_of(values: Mapping[str, float], rows: Rows) -> Floats:
        """Return the seconds of rows with the given parameters."""
        column: dict[str, Any] = {
            name: numbers(rows, name)[:, None]
            for name in ("hidden_size", "inter_size", "weight_bytes", "row_bytes", "memory_bandwidth", "peak_flops", "sms")
        }
        narrow = rows["narrow"].astype(bool)[:, None]
        of = {name: np.where(narrow, values[f"{name}_8"], values[f"{name}_16"]) for name in ("compute_efficiency", "step", "sharpness")}
        active, routed, empty, moved, summed = (
            np.asarray(rows[name], dtype=np.float64) for name in ("active", "routed", "empty_tiles", "moved_rows", "summed_rows")
        )
        hidden, width = column["hidden_size"], column["inter_size"]
        bandwidth = values["memory_efficiency"] * column["memory_bandwidth"]
        rate = of["compute_efficiency"] * column["peak_flops"]
        total = np.zeros(np.broadcast_shapes(active.shape, hidden.shape))
        wide = numbers(rows, "first_widths")[:, None] if "first_widths" in rows else 2.0
        load = values["tile_load"]
        for order, columns, depth in (("", wide * width, hidden), ("second_", hidden, width)):
            across = numbers(rows, f"{order}tile_columns")[:, None] if f"{order}tile_columns" in rows else float(TILE_COLUMNS)
            if f"{order}tile_rows" in rows:  # otherwise those of the first GEMM stay
                tiles, tall = np.asarray(rows[f"{order}tiles"], dtype=np.float64), numbers(rows, f"{order}tile_rows")[:, None]
            waves = np.ceil(tiles * np.ceil(columns / across) / column["sms"])
            area = (tall + load) * (across + load) / (1.0 + load / TILE_COLUMNS)
            computing = waves * column["sms"] * area * 2 * depth / rate
            weights = active * columns * depth * column["weight_bytes"]
            reading = (weights + routed * (depth * column["row_bytes"] + columns * OUTPUT_BYTES)) / bandwidth
            busy = smooth_maximum(reading, computing, of["sharpness"])
            total = total + np.where(active > 0, smooth_maximum(busy, of["step"] * depth + 0 * busy, CORNER), 0.0)
            total = total + values["empty_tile"] * empty * np.ceil(columns / across) / column["sms"]
        # A gated activation reads two widths and writes one; narrow formats are then read again, and written as bytes.
        between = ((wide + 1) * OUTPUT_BYTES + np.where(narrow, OUTPUT_BYTES + column["row_bytes"], 0.0)) * width
        total = total + values["passes"] * (moved * between + summed * OUTPUT_BYTES * hidden) / bandwidth
        fixed = values["launch"] + values["slot"] * numbers(rows, "slots")
        return np.asarray(smooth_maximum(fixed + total.mean(axis=1), np.full(len(fixed), values["floor"]), CORNER))

    @classmethod
    def fit(cls, rows: Rows, seconds: Floats, *, source: str = "", fixed: Mapping[str, tuple[float, str, str]] | None = None) -> Self:
        """Return the model that comes nearest to the rows.

        Parameters
        ----------
        rows : Rows
            n of them.
        seconds : Floats[n]
            Measured.
        source : str
            Of the rows.
        fixed : mapping of str to (float, str, str), optional
            Parameters that keep a value, with basis and source. Those of a width of operands that no row has are kept in any case.

        Raises
        ------
        CalibrationError
            If the rows do not reach from few tokens to many.
        """
        refuse_degenerate(rows, what="expert FFN", least=12, varied={"num_tokens": 6})
        start, held = dict(START), {}
        for name, (value, basis, why) in (fixed or {}).items():
            start[name], held[name] = value, (basis, why)
        narrow = rows["narrow"].astype(bool)
        for suffix, there in (("_16", ~narrow), ("_8", narrow)):
            if not there.any():
                held |= {
                    name: ("assumed", "no row has operands of this width") for name in start if name.endswith(suffix) and name not in held
                }
        if not np.any(rows["empty_tiles"]) and "empty_tile" not in held:
            held["empty_tile"] = ("assumed", "no row has tiles of experts that live elsewhere")
        if "started_one_by_one" in rows and np.any(rows["started_one_by_one"]):
            start["floor"] = 0.9 * float(np.min(seconds))
        else:
            held["floor"] = ("assumed", "a graph starts the kernels")
        if len(np.unique(numbers(rows, "tile_rows"))) < 2 and "tile_load" not in held:
            start["tile_load"], held["tile_load"] = 0.0, ("assumed", "tiles of one height cannot tell it from the efficiency")
        if len(np.unique(numbers(rows, "slots"))) < 2 and "slot" not in held:
            start["slot"], held["slot"] = 0.0, ("assumed", "rows of one number of experts per rank cannot tell it from the launch")
        # The search asks the model hundreds of times: it looks at the mean of the draws, and predictions at each of them.
        means = {name: np.asarray(column).mean(axis=1, keepdims=True) if name in DRAWN else column for name, column in rows.items()}
        return cls.fitted(means, seconds, start=start, held=held, bounds=BOUNDS, regimes=words(rows, "regime"), source=source)


DRAWN = ("active", "routed", "tiles", "second_tiles", "empty_tiles", "moved_rows", "summed_rows")
"""Columns with one number per draw."""


START = {
    "launch": 20e-6, "slot": 1e-7, "memory_efficiency": 0.85, "compute_efficiency_16": 0.57, "compute_efficiency_8": 0.33,
    "step_16": 3.5e-9, "step_8": 5e-9, "sharpness_16": 2.0, "sharpness_8": 1.6, "passes": 2.0, "empty_tile": 3e-7, "floor": 0.0,
    "tile_load": 20.0,
}  # fmt: skip
BOUNDS = {
    "slot": (1e-9, 5e-6), "memory_efficiency": (0.05, 1.0), "compute_efficiency_16": (0.02, 1.0), "compute_efficiency_8": (0.02, 1.0),
    "step_16": (1e-10, 1e-7), "step_8": (1e-10, 1e-7), "sharpness_16": (1.0, 12.0), "sharpness_8": (1.0, 12.0),
    "passes": (0.2, 20.0), "empty_tile": (1e-9, 1e-5), "floor": (1e-5, 1e-2),
    "tile_load": (0.1, 500.0),
}  # fmt: skip
