"""Words and the experts they belong to: how often words occur, and tables from words to experts."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats, Ints


def zipf(words: int, exponent: float) -> Floats:
    """Return float[words], how often each word occurs: in proportion to (r + 1) ** -exponent, adding up to 1.

    Examples
    --------
    >>> zipf(3, 1.0).round(3).tolist()
    [0.545, 0.273, 0.182]
    """
    often = np.arange(1, words + 1, dtype=np.float64) ** -exponent
    return np.asarray(often / often.sum())


def zipf_words(rng: np.random.Generator, tokens: int, words: int, exponent: float) -> Ints:
    """Return int[tokens], words drawn independently by :func:`zipf`."""
    below = np.cumsum(zipf(words, exponent))
    # Rounding may leave the last sum a little below 1, and a draw above it: that is the last word, too.
    return np.minimum(np.searchsorted(below, rng.random(tokens), side="right"), words - 1)


def random_table(rng: np.random.Generator, words: int, experts: int, top_k: int) -> NDArray[np.int32]:
    """Return int32[words, k], for each word k distinct experts, every set equally likely.

    Notes
    -----
    Floyd's way of drawing distinct numbers: the i-th draw is from 0 to E - k + i, and is replaced by its largest value if it was drawn
    before. It takes k numbers per word instead of E.
    """
    table = np.empty((words, top_k), dtype=np.int32)
    for choice in range(top_k):
        largest = experts - top_k + choice
        drawn = rng.integers(0, largest + 1, size=words)
        again = (table[:, :choice] == drawn[:, None]).any(axis=1)
        table[:, choice] = np.where(again, largest, drawn)
    return table


def balanced_table(rng: np.random.Generator, words: int, experts: int, top_k: int, exponent: float) -> NDArray[np.int32]:
    """Return int32[words, k]: words in the order of their frequency, each with the k experts that have least so far.

    Parameters
    ----------
    rng : numpy.random.Generator
        Decides which expert is called which, so that layers differ.
    words, experts, top_k : int
        Sizes.
    exponent : float
        Of the frequencies, see :func:`zipf`.
    """
    often = zipf(words, exponent).tolist()
    names = rng.permutation(experts)
    heap = [(0.0, expert) for expert in range(experts)]
    table = np.empty((words, top_k), dtype=np.int64)
    for word in range(words):
        least = [heapq.heappop(heap) for _ in range(top_k)]
        for choice, (load, expert) in enumerate(least):
            table[word, choice] = expert
            heapq.heappush(heap, (load + often[word], expert))
    return names[table].astype(np.int32)
