"""Draw k distinct experts per token with given popularities, and the gate weights that go with them.

The model behind is a router whose logits are ``log(popularity) + Gumbel noise``: the k largest logits of a token, in order, follow the
Plackett-Luce law (draw one expert in proportion to popularity, then another among the rest, and so on). That is the Gumbel top-k
identity (Yellott 1977; Kool, van Hoof and Welling, arXiv 1903.06059). It lets us draw the choices without making E logits per token.

Since ``exp(-logit)`` of the largest, second largest, ... are the arrival times of a Poisson process that slows down as experts are
taken, the softmax over the chosen logits can be drawn exactly too: its entries are proportional to 1 / arrival time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats

ROUNDS = 8
"""Rejection rounds before a token falls back to one Gumbel per expert; it changes the speed, not the law."""

ROWS = 4096


def draw_uniform(rng: np.random.Generator, *, tokens: int, experts: int, top_k: int) -> NDArray[Any]:
    """Return int32[tokens, k], ordered choices of k distinct experts, every ordered choice equally likely.

    Notes
    -----
    The j-th choice is a number below E - j, counted among the experts not yet taken: it is moved up once for each taken expert at
    or below it, in increasing order. There is no rejection, so the number of random draws is fixed.
    """
    chosen = np.empty((top_k, tokens), dtype=np.int32)
    taken: list[NDArray[Any]] = []
    for slot in range(top_k):
        pick = rng.integers(0, experts - slot, size=tokens, dtype=np.int32)
        for lower in taken:
            pick += pick >= lower
        chosen[slot] = pick
        rest = pick
        for place, lower in enumerate(taken):  # insert into the sorted columns
            taken[place], rest = np.minimum(lower, rest), np.maximum(lower, rest)
        taken.append(rest)
    return np.ascontiguousarray(chosen.T)


def draw_popular(rng: np.random.Generator, log_popularity: Floats, *, tokens: int, top_k: int) -> NDArray[Any]:
    """Return int32[tokens, k], ordered choices of k distinct experts by the Plackett-Luce law.

    Parameters
    ----------
    rng : numpy.random.Generator
        The stream.
    log_popularity : float[E]
        Natural logarithm of each expert's popularity, finite; a constant added to all changes nothing.
    tokens, top_k : int
        How many rows and columns.

    Notes
    -----
    An independent draw that repeats an expert of its token is drawn again, which leaves exactly the law of drawing among the rest.
    Tokens that still have none after ``ROUNDS`` rounds take the largest of ``log_popularity + Gumbel noise`` over the experts not
    taken: the same law.
    """
    share = np.cumsum(np.exp(log_popularity - log_popularity.max()))
    share /= share[-1]
    chosen = np.empty((top_k, tokens), dtype=np.int32)
    for slot in range(top_k):
        open_tokens = np.arange(tokens)
        for _ in range(ROUNDS):
            pick = np.searchsorted(share, rng.random(open_tokens.size), side="right").astype(np.int32)
            repeated = np.zeros(open_tokens.size, dtype=bool)
            for earlier in range(slot):
                repeated |= chosen[earlier, open_tokens] == pick
            fresh = ~repeated
            chosen[slot, open_tokens[fresh]] = pick[fresh]
            open_tokens = open_tokens[repeated]
            if not open_tokens.size:
                break
        for first in range(0, open_tokens.size, ROWS):
            rows = open_tokens[first : first + ROWS]
            logits = log_popularity + rng.gumbel(size=(rows.size, log_popularity.size))
            np.put_along_axis(logits, chosen[:slot, rows].T.astype(np.int64), -np.inf, axis=1)
            chosen[slot, rows] = logits.argmax(axis=1)
    return np.ascontiguousarray(chosen.T)


def draw_weights(rng: np.random.Generator, popularity_of_choice: Floats) -> NDArray[Any]:
    """Return float32[tokens, k], the softmax over the chosen logits, falling along each row.

    Parameters
    ----------
    rng : numpy.random.Generator
        The stream.
    popularity_of_choice : float[tokens, k]
        Popularity of each choice, in the order of the choices; the popularities of all experts sum to 1.

    Notes
    -----
    With Z the popularity not yet taken, the next arrival comes an exponential time of mean 1 / Z after the last.
    """
    left = 1.0 - np.cumsum(popularity_of_choice, axis=1) + popularity_of_choice
    # What is left may round to nothing or less when one expert has nearly all popularity; its successors then weigh next to nothing.
    waits = rng.standard_exponential(size=left.shape) / np.maximum(left, 1e-15)
    inverse = 1.0 / np.maximum(np.cumsum(waits, axis=1), 1e-300)
    return np.asarray(inverse / inverse.sum(axis=1, keepdims=True), dtype=np.float32)


def draw_popular_layer(rng: np.random.Generator, log_popularity: Floats, *, tokens: int, top_k: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the choices of :func:`draw_popular` and their :func:`draw_weights`."""
    ids = draw_popular(rng, log_popularity, tokens=tokens, top_k=top_k)
    popularity = np.exp(log_popularity - log_popularity.max())
    popularity /= popularity.sum()
    return ids, draw_weights(rng, popularity[ids])
