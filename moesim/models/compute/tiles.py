"""Tiles in waves: how long the thread blocks of one grouped GEMM keep the streaming multiprocessors (SMs) busy.

A grouped GEMM cuts the output of every expert into tiles and gives each SM one tile at a time. Time is counted in *heights*: what one SM
needs for one unit of the dimension that differs between tiles. All tiles are started tallest first, ``sms`` at a time, and a wave lasts
as long as its tallest tile.

Both functions below are that same sum, "the height of the tile at every ``sms``-th place of the descending order". More tiles push every
place's height up or leave it, and so do taller tiles; hence the result never falls when any expert gets more rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moesim.facts.arrays import Floats, Ints


def row_tiles(rows: Ints, ladder: Sequence[int]) -> tuple[Ints, Ints]:
    """Return how many row tiles each expert needs, and how tall they are.

    Kernels are built for a few tile heights and take the smallest that holds an expert's rows; experts with more rows than the tallest
    are cut into tiles of that height, the last one filled up.

    Parameters
    ----------
    rows : int[...]
        Rows of each expert.
    ladder : sequence of int
        Tile heights, increasing.

    Returns
    -------
    tiles, height : int[...]
        0 and 0 for no rows.
    """
    heights = np.asarray(ladder, dtype=np.int64)
    rows = np.asarray(rows, dtype=np.int64)
    tiles = -(-rows // heights[-1])
    height = heights[np.minimum(np.searchsorted(heights, rows), len(heights) - 1)]
    return tiles, np.where(rows > 0, height, 0)


def waves_of_rows(rows: Ints, ladder: Sequence[int], column_tiles: int, sms: int) -> Floats:
    """Return the height of all waves together when tiles are as tall as an expert's rows ask.

    Parameters
    ----------
    rows : int[G, S]
        Rows of each local expert.
    ladder : sequence of int
        Tile heights, increasing.
    column_tiles : int
        Tiles side by side across an expert's output.
    sms : int
        Tiles that run at the same time.

    Returns
    -------
    float[G]
        Rows that one SM works through, one after another.

    Notes
    -----
    Counting the waves in which the tallest tile reaches height h, for each h of the ladder, gives the sum of the tallest tiles of all
    waves: the tiles of height h or more come first, so they touch ``ceil(count / sms)`` waves.
    """
    tiles, height = row_tiles(rows, ladder)
    levels = np.asarray(ladder, dtype=np.int64)
    reaching = np.where(height >= levels[:, None, None], tiles, 0).sum(axis=2) * column_tiles
    steps = np.diff(levels, prepend=0)
    return np.asarray((steps[:, None] * -(-reaching // sms)).sum(axis=0), dtype=np.float64)


def waves_of_depths(depths: Ints, tiles: int, sms: int) -> Floats:
    """Return the height of all waves together when every expert has ``tiles`` tiles, as deep as its rows.

    This is the weight gradient: its output has the shape of the weights, and the rows are what is summed over.

    Parameters
    ----------
    depths : int[G, S]
        Rows of each local expert, filled up to what the kernel reads at a time; 0 for none.
    tiles : int
        Tiles of one expert's output.
    sms : int
        Tiles that run at the same time.

    Returns
    -------
    float[G]
        Rows that one SM works through, one after another.
    """
    ordered = -np.sort(-np.asarray(depths, dtype=np.int64), axis=1)
    # Tile number i * tiles is expert i's first; the waves that start within its tiles last as long as its tiles are deep.
    waves_before = -(-(np.arange(ordered.shape[1] + 1, dtype=np.int64) * tiles) // sms)
    return np.asarray((ordered * np.diff(waves_before)).sum(axis=1), dtype=np.float64)
