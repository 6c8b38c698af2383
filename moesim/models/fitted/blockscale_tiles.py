"""The output tiles that TensorRT-LLM's block-scaled fp8 kernels take: those of the weights if rows are few, else of the rows."""

from __future__ import annotations

import numpy as np

from moesim.facts.arrays import Floats

WIDTHS = tuple(range(16, 129, 8))
"""Of tiles, among which the library chooses."""

SHORT, TALL = 64, 128
"""Heights of tiles: the shorter one for products with no more rows than that."""

SWAPPED, SWAPPED_FEW_SMS, FEW_SMS = 32, 64, 78
"""Below so many rows an expert on average the operands change places; on GPUs of so few SMs (an H20) below twice as many."""


def blockscale_tiles(mean: Floats, groups: Floats, columns: Floats, sms: Floats) -> tuple[Floats, Floats]:
    """Return the rows and the columns of an output tile of one grouped GEMM.

    The side with the heights is the one of the tokens, or, if an expert has few rows, that of the weights. The other side's width is the
    one of ``WIDTHS`` with the fewest waves over the SMs, then the fullest last wave, then the smallest; the library counts with the mean,
    rounded up, for every group (NVIDIA/TensorRT-LLM, ``fp8_blockscale_gemm_kernel.cuh``, ``grouped_gemm_dispatch``, and its
    ``get_best_gemm_config``, which follows deepseek-ai/DeepGEMM v1).

    Parameters
    ----------
    mean, groups, columns, sms : Floats[n]
        Rows that an expert gets if all experts of the layer shared those of the call, experts that the GPU holds, columns of the product,
        streaming multiprocessors.

    Returns
    -------
    two Floats[n]

    Examples
    --------
    >>> one = np.ones(1)
    >>> [float(part[0]) for part in blockscale_tiles(40 * one, one, 4096 * one, 132 * one)]  # 4096 / 32 = 128 tiles fill a wave best
    [64.0, 32.0]
    >>> [float(part[0]) for part in blockscale_tiles(4 * one, one, 4096 * one, 132 * one)]  # the weights have the height
    [16.0, 128.0]
    """
    expected = np.maximum(np.ceil(np.asarray(mean, dtype=np.float64) - 1e-9), 1.0)
    own = expected >= np.where(sms == FEW_SMS, SWAPPED_FEW_SMS, SWAPPED)
    first, second = np.where(own, expected, columns), np.where(own, columns, expected)
    height = np.where(first <= SHORT, SHORT, TALL).astype(np.float64)
    width = _width(np.ceil(first / height) * groups, second, sms)
    return np.where(own, height, width), np.where(own, width, height)


def _width(blocks: Floats, columns: Floats, sms: Floats) -> Floats:
    least, fullest, found = np.full(len(blocks), np.inf), np.zeros(len(blocks)), np.zeros(len(blocks))
    for wide in WIDTHS:
        tiles = blocks * np.ceil(columns / wide)
        waves, last = np.ceil(tiles / sms), (tiles - 1) % sms + 1
        better = (waves < least) | ((waves == least) & (last > fullest))
        least, fullest = np.where(better, waves, least), np.where(better, last, fullest)
        found = np.where(better, float(wide), found)
    return np.asarray(found)
