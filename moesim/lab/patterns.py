"""Traffic matrices to measure: what MoE dispatch looks like when it is even, skewed, hot, sparse, or one rank is everybody's favourite."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import UsageError, did_you_mean
from moesim.base.streams import stream
from moesim.base.units import parse_quantity

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

KINDS = ("even", "hot", "zipf", "random", "sparse", "incast")
GRAIN = 16
"""Shares are whole multiples of so many bytes: copy engines and NCCL move aligned data faster."""


def shares(kind: str, ranks: int, seed: int) -> Floats:
    """Return float[ranks, ranks] with an empty diagonal: which part of what leaves a mean rank goes where.

    Parameters
    ----------
    kind : str
        ``even``: to all alike. ``hot``: one destination is four times as popular. ``zipf``: destinations are 1, 1/2, 1/3 … as popular,
        in one order for all sources. ``random``: every source has a popularity of its own (Dirichlet, 0.7). ``sparse``: about half of
        the pairs are silent. ``incast``: everything goes to rank 0. In all but the last every rank sends the same amount.
    ranks : int
        At least 2.
    seed : int
        Of the draws.

    Raises
    ------
    UsageError
        If the kind is unknown.
    """
    if kind not in KINDS:
        raise UsageError(f"unknown pattern {kind!r}{did_you_mean(kind, KINDS)}")
    draw = stream(seed, "pattern", kind, ranks)
    if kind == "incast":
        weight = np.zeros((ranks, ranks))
        weight[1:, 0] = 1.0
        return weight
    if kind == "even":
        weight = np.ones((ranks, ranks))
    elif kind == "hot":
        weight = np.ones((ranks, ranks))
        weight[:, ranks // 2] = 4.0
    elif kind == "zipf":
        weight = np.tile(draw.permutation(1.0 / np.arange(1, ranks + 1)), (ranks, 1))
    elif kind == "random":
        weight = draw.dirichlet(np.full(ranks, 0.7), size=ranks)
    else:
        weight = draw.random((ranks, ranks)) * (draw.random((ranks, ranks)) < 0.5)
    np.fill_diagonal(weight, 0.0)
    silent = np.flatnonzero(weight.sum(axis=1) == 0)
    weight[silent, (silent + 1) % ranks] = 1.0  # who would send nothing sends to the next
    return np.asarray(weight / weight.sum(axis=1, keepdims=True))


def matrix(kind: str, ranks: int, size: int, seed: int = 0) -> Ints:
    """Return int[ranks, ranks] bytes of an exchange of buffers of ``size`` bytes.

    As in nccl-tests, a rank keeps one share of 1 / ranks to itself; the rest leaves it as :func:`shares` says.

    Examples
    --------
    >>> matrix("even", 2, 64).tolist()
    [[32, 32], [32, 32]]
    """
    own = size // ranks // GRAIN * GRAIN
    if ranks == 1:
        return np.asarray([[size // GRAIN * GRAIN]], dtype=np.int64)
    away = shares(kind, ranks, seed) * (size - size / ranks)
    table = (np.floor(away / GRAIN + 1e-9) * GRAIN).astype(np.int64)
    np.fill_diagonal(table, own)
    return table


def read_matrix(path: Path) -> Ints:
    """Read a matrix of bytes from CSV: one row per source, one column per destination, no header; lines with '#' are comments.

    Raises
    ------
    UsageError
        If the file cannot be read, is not square, or holds anything but whole numbers of at least 0.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: byte {error.start} is not UTF-8; save the matrix as plain CSV") from None
    numbered = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip() and not line.startswith("#")]
    rows: list[list[int]] = []
    for (number, _), cells in zip(numbered, csv.reader(io.StringIO("\n".join(line for _, line in numbered))), strict=False):
        if len(cells) != len(numbered):
            raise UsageError(f"{path}: line {number}: {len(cells)} cells, but {len(numbered)} rows: a matrix of bytes is square")
        rows.append([_bytes(cell, f"{path}: line {number}, column {column}") for column, cell in enumerate(cells, start=1)])
    if not rows:
        raise UsageError(f"{path}: the file holds no rows")
    return np.asarray(rows, dtype=np.int64)


def _bytes(cell: str, where: str) -> int:
    try:
        number = float(cell)
    except ValueError:
        raise UsageError(f"{where}: {cell.strip()!r} is not a number of bytes") from None
    if not (0 <= number <= 2**40 and number == int(number)):
        raise UsageError(f"{where}: {cell.strip()} must be a whole number of bytes from 0 to 2^40")
    return int(number)


def buffer_size(text: str, option: str = "--sizes") -> int:
    """Return bytes: ``64K`` counts in powers of 1024, as in nccl-tests; ``64 kB`` and ``1 MiB`` say what they mean.

    Raises
    ------
    UsageError
        If it is no size from 1 B to 1 TiB.

    Examples
    --------
    >>> buffer_size("64K"), buffer_size("64 kB"), buffer_size("100")
    (65536, 64000, 100)
    """
    word = text.strip()
    short = re.fullmatch(r"(\d+)([kKmMgG]?)", word)
    try:
        size = float(short[1]) * 1024.0 ** " kmg".index(short[2].lower() or " ") if short else parse_quantity(word, "B")
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None
    if not 1 <= size <= 2**40:
        raise UsageError(f"{option}: {word!r} is out of range: a buffer holds from 1 B to 1 TiB")
    return int(size)
