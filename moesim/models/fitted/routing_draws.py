"""The routings that measured tables name: even, power laws of one draw, and tokens that sample heavy-tailed experts.

Tables of kernel times name a distribution and seldom say which experts got how many rows. The rules below are those of the tables'
published generator (ai-dynamo/aiconfigurator@095f58a, ``collector/helper.py``, and the header lines of the tables), so that its draws are
met statistically; where the source seeds its generator, the very draw is met.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from moesim.base.streams import stream, twister_words
from moesim.facts.arrays import Floats, Ints, frozen

SAMPLED = 2048
"""Tokens that sample their experts one by one."""

FEW = (0.01, 2.0)
"""Range of the weights where there are no more routes than experts."""

BY_RANK, BY_SIZE = "rank", "size"
"""Who gets the routes that rounding lost: rank after rank, to its least loaded expert; or expert after expert, the least loaded first. By
size, too, what an expert would have beyond a row for each token goes to the least loaded one until it is full (the generator of the older
tables)."""


def even_rows(routes: int, experts: int) -> Ints:
    """Return int[experts]: routes spread as evenly as whole numbers allow, the first on expert 0.

    Examples
    --------
    >>> even_rows(3, 6).tolist()
    [1, 0, 1, 0, 1, 0]
    """
    ends = np.arange(experts + 1, dtype=np.int64)
    return np.asarray(np.diff(-(-ends * routes // experts)))


def power_law_weights(uniforms: Floats, exponent: float, least: float, most: float) -> Floats:
    """Return draws of a power law on ``[least, most]`` by its inverse distribution function.

    Parameters
    ----------
    uniforms : Floats[...]
        In [0, 1).
    exponent : float
        Of the density ``x**-exponent``.
    least, most : float
        Above 0, ``least < most``.
    """
    if abs(exponent - 1.0) < 1e-9:
        return np.asarray(least * (most / least) ** uniforms)
    power = 1.0 - exponent
    return np.asarray(((most**power - least**power) * uniforms + least**power) ** (1.0 / power))


def power_law_rows(uniforms: Floats, exponent: float, *, tokens: int, top_k: int, ranks: int, dealing: str = BY_RANK) -> Ints:
    """Return the rows of every expert under a power law: weights on [1, 0.8 tokens], normalised, rounded, at most one row per token.

    Parameters
    ----------
    uniforms : Floats[D, E]
        One draw per line.
    exponent : float
        Of the power law.
    tokens, top_k, ranks : int
        Of the whole expert-parallel group; at most as many choices as experts.
    dealing : str
        ``rank`` or ``size``: who gets the routes that rounding lost.

    Returns
    -------
    Ints[D, E]
        Each line sums to ``tokens * top_k``.
    """
    draws, experts = uniforms.shape
    routes = tokens * top_k
    least, most = (1.0, 0.8 * tokens) if routes > experts else FEW
    weights = power_law_weights(uniforms, exponent, least, max(most, least * (1 + 1e-9)))
    wanted = np.rint(weights / weights.sum(axis=1, keepdims=True) * routes).astype(np.int64)
    rows = np.minimum(wanted, tokens)
    if dealing == BY_SIZE:
        _pour_by_size(rows, (wanted - rows).sum(axis=1), tokens)
    missing = routes - rows.sum(axis=1)
    if dealing == BY_SIZE:
        _deal_by_size(rows, np.maximum(missing, 0))
        _take_by_size(rows, np.maximum(-missing, 0))
    else:
        _deal_by_rank(rows.reshape(draws, ranks, -1), np.maximum(missing, 0))
    while np.any(rows > tokens):
        over = np.maximum(rows - tokens, 0)
        rows -= over
        _deal_by_size(rows, over.sum(axis=1))
    for line in np.flatnonzero(missing < 0) if dealing == BY_RANK else ():
        for _ in range(-int(missing[line])):
            rows[line, int(rows[line].argmax())] -= 1
    return np.asarray(rows)


def _rising(rows: Ints) -> Ints:
    """Return int[D, E], experts from the fewest rows to the most, of equals the last one first."""
    return _falling(rows)[:, ::-1]


def _falling(rows: Ints) -> Ints:
    """Return int[D, E], experts from the most rows to the fewest, of equals the first one first; numbers of 16 bits are sorted sooner."""
    keys = -rows
    return np.asarray(np.argsort(keys.astype(np.int16) if rows.max(initial=0) < 2**15 else keys, axis=1, kind="stable"))


def _pour_by_size(rows: Ints, over: Ints, most: int) -> None:
    """Give what was above ``most`` to the expert with the fewest rows until it has as many, then to the next."""
    if not np.any(over):
        return
    order = _rising(rows)
    room = most - np.take_along_axis(rows, order, axis=1)
    given = np.clip(over[:, None] - (room.cumsum(axis=1) - room), 0, room)
    np.put_along_axis(rows, order, most - room + given, axis=1)


def _take_by_size(rows: Ints, surplus: Ints) -> None:
    """Take one row from each expert, those with the fewest first; for one that has none, from the one with the most."""
    if not np.any(surplus):
        return
    experts = rows.shape[1]
    order = _rising(rows)
    sorted_rows = np.take_along_axis(rows, order, axis=1)
    first = np.arange(experts) < surplus[:, None]
    np.put_along_axis(rows, order, sorted_rows - (first & (sorted_rows > 0)), axis=1)
    left = surplus - (first & (sorted_rows > 0)).sum(axis=1)
    for line in np.flatnonzero(left > 0):
        for _ in range(int(left[line])):
            rows[line, int(rows[line].argmax())] -= 1


def _deal_by_size(rows: Ints, missing: Ints) -> None:
    """Give one row to each expert in turn, those with the fewest first."""
    experts = rows.shape[1]
    order = _rising(rows)
    turn = np.arange(experts)
    extra = missing[:, None] // experts + (turn < (missing % experts)[:, None])
    np.put_along_axis(rows, order, np.take_along_axis(rows, order, axis=1) + extra, axis=1)


def _deal_by_rank(rows: Ints, missing: Ints) -> None:
    """Give each rank its share of the routes that rounding lost, one by one to the expert with the fewest rows, the first of equals.

    Worked out at once: the experts with the fewest rows are filled up to one level, and what is then left goes to the first of those.
    """
    _, ranks, experts = rows.shape
    quota = (missing[:, None] // ranks + (np.arange(ranks) < (missing % ranks)[:, None]))[:, :, None]
    rising = np.sort(rows, axis=2)
    sums = rising.cumsum(axis=2)
    filled = np.arange(1, experts + 1)
    # Lifting the k experts with the fewest rows to the level of the k-th costs this much; as many as can be paid are lifted.
    last = np.maximum((filled * rising - sums <= quota).sum(axis=2, keepdims=True) - 1, 0)
    below = np.take_along_axis(sums, last, axis=2)
    level = (quota + below) // (last + 1)
    left = quota + below - level * (last + 1)
    low = rows <= level
    rows[:] = np.where(low, level + (low & (low.cumsum(axis=2) <= left)), rows)


def pareto_rows(exponent: float, *, tokens: int, top_k: int, experts: int, draws: int) -> Ints:
    """Return the rows of every expert if each token samples its experts, without replacement, by weights ``u**(-1/(exponent-1))``.

    Weights have the density of an unbounded power law above 1; they are drawn once per draw. Beyond ``SAMPLED`` tokens the shares of
    that many are scaled up: what is left of sampling noise is then far below the spread between draws.

    Returns
    -------
    Ints[draws, experts]
        Each line sums to about ``tokens * top_k``, exactly up to ``SAMPLED`` tokens.
    """
    sampled = min(tokens, SAMPLED)
    found = np.stack([np.bincount(_chosen(exponent, top_k, experts, draw)[:sampled].ravel(), minlength=experts) for draw in range(draws)])
    scaled = found if sampled == tokens else np.rint(found * (tokens / sampled))
    return np.asarray(scaled, dtype=np.int64)


@lru_cache(maxsize=64)
def _chosen(exponent: float, top_k: int, experts: int, draw: int) -> Ints:
    rng = stream(0, "sampled routing", draw)
    logs = -np.log1p(-rng.random(experts)) / (exponent - 1.0)
    # The Gumbel trick (Yellott, J. Math. Psychology 15, 1977): the k largest of log weight + noise are a sample without replacement.
    keys = logs + rng.gumbel(size=(SAMPLED, experts))
    return frozen(np.argpartition(-keys, top_k - 1, axis=1)[:, :top_k], np.int64)


def uniforms_of(draws: int, experts: int, *names: str | int) -> Floats:
    """Return Floats[draws, experts] of the named stream."""
    return stream(0, "routing of a table", *names).random((draws, experts))


def seeded_uniforms(experts: int, seed: int = 0) -> Floats:
    """Return the single-precision uniforms that a Mersenne Twister of this seed gives a tensor library: 24 bits of each 32.

    The seeded tables were made with PyTorch's CPU generator, which is the generator of Matsumoto and Nishimura (ACM TOMACS 8, 1998) with
    its usual seeding.

    Returns
    -------
    Floats[experts]
    """
    words = twister_words(seed, experts)
    return np.asarray((words & np.uint32(2**24 - 1)).astype(np.float64) / 2**24)


def rows_by_rank(rows: Ints, ranks: int) -> Ints:
    """Return int[D, ranks, E / ranks]: experts placed in order, equally many on every rank."""
    return np.asarray(rows.reshape(len(rows), ranks, -1))


def hottest_rank(by_rank: Ints) -> Ints:
    """Return int[D, S]: the rows of the experts of the rank with the most rows, the first of equals."""
    return np.asarray(by_rank[np.arange(len(by_rank)), by_rank.sum(axis=2).argmax(axis=1)])


def distinct_tokens(rows: Ints, tokens: int) -> Floats:
    """Return how many tokens reach at least one expert of a rank, if experts are chosen independently of each other.

    Parameters
    ----------
    rows : Ints[D, S]
        Rows of the rank's experts.
    tokens : int
        Of the whole group.

    Returns
    -------
    Floats[D]
        ``tokens * (1 - prod(1 - rows / tokens))``.
    """
    return np.asarray(tokens * (1.0 - np.prod(1.0 - np.minimum(rows / tokens, 1.0), axis=1)))


def filled_tokens(rows: Ints, tokens: int, local: Ints) -> Ints:
    """Return how many tokens reach a rank if experts take tokens in turn, the one with the most rows first, each where the last one ended.

    So the published generator deals rows to tokens (``_assign_experts_from_counts``): each expert takes an unbroken arc of the tokens,
    as if they stood in a circle, and no token takes an expert twice, for no expert has more rows than there are tokens.

    Parameters
    ----------
    rows : Ints[D, E]
        Rows of every expert, at most ``tokens`` each.
    tokens : int
        Of the whole group.
    local : Ints[D, S]
        Experts of the rank.

    Returns
    -------
    Ints[D]

    Examples
    --------
    >>> filled_tokens(np.array([[4, 1, 3, 2]]), 5, np.array([[0, 2]])).tolist()  # tokens 0 to 3, then 4, 0 and 1
    [5]
    """
    order = _falling(rows)
    falling = np.take_along_axis(rows, order, axis=1)
    first = np.empty_like(rows)
    np.put_along_axis(first, order, (falling.cumsum(axis=1) - falling) % tokens, axis=1)
    begin, own = np.take_along_axis(first, local, axis=1), np.take_along_axis(rows, local, axis=1)
    # An arc across the end of the circle is two; those without rows have length 0 and sort where they do no harm.
    begins = np.concatenate([begin, np.zeros_like(begin)], axis=1)
    ends = np.concatenate([np.minimum(begin + own, tokens), np.maximum(begin + own - tokens, 0)], axis=1)
    turn = np.argsort(begins, axis=1, kind="stable")
    begins, ends = np.take_along_axis(begins, turn, axis=1), np.take_along_axis(ends, turn, axis=1)
    reached = np.maximum.accumulate(np.concatenate([np.zeros_like(ends[:, :1]), ends[:, :-1]], axis=1), axis=1)
    return np.asarray(np.maximum(ends - np.maximum(begins, reached), 0).sum(axis=1))
