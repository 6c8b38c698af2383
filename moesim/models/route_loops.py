"""Loops over single routes, compiled: which experts and groups a token likes best, which routes stay in full queues, what they take.

Each gives what the plain NumPy code does that calls it, bit for bit; that code is what runs where nothing can be compiled, for few routes
and for arrays of other types.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from moesim.facts.arrays import Bools, Ints
from moesim.models.sharing.bottleneck_groups import Whole32

_WHOLE = types.Array(types.int64, 1, "C", readonly=True)
_TABLE = types.Array(types.int64, 2, "C", readonly=True)
_IDS = types.Array(types.int32, 2, "C", readonly=True)
_SCORES = types.Array(types.float32, 2, "C", readonly=True)
_FLAGS = types.Array(types.boolean, 1, "C")
_FLAGS_OF_TOKENS = types.Array(types.boolean, 2, "C", readonly=True)

Singles = NDArray[np.float32]

SHORT = 16
"""Words that are sorted one by one."""
ROUNDS = 48
"""Partitions after which a queue is sorted instead: so many happen only where an order was made to defeat the choice of pivots."""


@njit(types.void(types.Array(types.int64, 1, "C"), types.int64, types.int64, types.int64), cache=True)
def _lowest_first(words: Ints, first: int, last: int, many: int) -> None:
    """Move the ``many`` lowest of ``words[first : last]`` to the front (C. A. R. Hoare, "Algorithm 65: Find", CACM 4(7), 1961)."""
    target, end = first + many, last
    rounds = 0
    last -= 1
    while last - first > SHORT:
        rounds += 1
        if rounds > ROUNDS:
            words[first : last + 1] = np.sort(words[first : last + 1])
            return
        low, middle, high = words[first], words[(first + last) // 2], words[last]
        pivot = max(min(low, middle), min(max(low, middle), high))
        i, j = first, last
        while i <= j:
            while words[i] < pivot:
                i += 1
            while words[j] > pivot:
                j -= 1
            if i <= j:
                words[i], words[j] = words[j], words[i]
                i += 1
                j -= 1
        if target <= j:
            last = j
        elif target >= i:
            first = i
        else:
            return
    for place in range(first + 1, min(last + 1, end)):
        word = words[place]
        before = place - 1
        while before >= first and words[before] > word:
            words[before + 1] = words[before]
            before -= 1
        words[before + 1] = word


@njit(types.void(_FLAGS, _WHOLE, _WHOLE, _WHOLE, _WHOLE), cache=True)
def keep_lowest(keep: Bools, queue: Ints, length: Ints, room: Ints, order: Ints) -> None:
    """Take from ``keep`` what :func:`moesim.models.capacity.survivors.keep_in_queues` drops; all arrays are flat.

    Raises
    ------
    ValueError
        If a queue does not have the length that it should have.
    """
    queues = len(length)
    begin = np.empty(queues, dtype=np.int64)
    total = 0
    for number in range(queues):
        begin[number] = -1
        if length[number] > room[number]:
            begin[number] = total
            total += length[number]
    end = begin.copy()
    # The order, from -2**31 on, before the place of the route: no two words are equal.
    words = np.empty(total, dtype=np.int64)
    for route in range(len(keep)):
        if not keep[route]:
            continue
        number = queue[route]
        if number < 0 or number >= queues:
            raise ValueError("a route stands in a queue that does not exist")
        if begin[number] >= 0:
            if end[number] >= begin[number] + length[number]:
                raise ValueError("more routes stand in a queue than it is long")
            words[end[number]] = ((order[route] - (1 << 31)) << 32) | route
            end[number] += 1
    for number in range(queues):
        if begin[number] < 0:
            continue
        first, last, space = begin[number], begin[number] + length[number], max(room[number], 0)
        if end[number] != last:
            raise ValueError("fewer routes stand in a queue than it is long")
        if space > 0:
            _lowest_first(words, first, last, space)
        for place in range(first + space, last):
            keep[words[place] & 0xFFFFFFFF] = False


@njit(types.int64(types.Array(types.int32, 2, "C"), types.Array(types.float32, 2, "C"), _FLAGS_OF_TOKENS), cache=True)
def strike(ids: Whole32, weights: Singles, keep: Bools) -> int:
    """Write -1 for the routes that are not kept, with weight 0; return how many tokens had routes and have none left."""
    emptied = 0
    for token in range(ids.shape[0]):
        had = left = False
        for choice in range(ids.shape[1]):
            had |= ids[token, choice] >= 0
            if keep[token, choice]:
                left = True
            else:
                ids[token, choice] = -1
                weights[token, choice] = 0.0
        if had and not left:
            emptied += 1
    return emptied


@njit(types.Array(types.int64, 2, "C")(_IDS, _WHOLE, _TABLE, types.int64), cache=True)
def tokens_between(slots: Whole32, token_start: Ints, destination: Ints, ranks: int) -> Ints:
    """Return int[G, R], one copy per token and GPU of its group of R that holds at least one of its slots, its own GPU included.

    Raises
    ------
    ValueError
        If a slot does not exist, or is outside the group of its source.
    """
    gpus = len(destination)
    copies = np.zeros((gpus, ranks), dtype=np.int64)
    seen = np.full(gpus, -1, dtype=np.int64)
    for source in range(gpus):
        begin = source // ranks * ranks
        for token in range(token_start[source], token_start[source + 1]):
            for choice in range(slots.shape[1]):
                slot = slots[token, choice]
                if slot >= destination.shape[1]:
                    raise ValueError("a route has a slot that does not exist")
                if slot >= 0:
                    to = destination[source, slot]
                    if to < begin or to >= begin + ranks:
                        raise ValueError("a route leaves the group of its source")
                    if seen[to] != token:
                        seen[to] = token
                        copies[source, to - begin] += 1
    return copies


@njit(types.Array(types.int32, 2, "C")(_IDS, _WHOLE, _WHOLE, _WHOLE, _WHOLE, _WHOLE), cache=True)
def turns(ids: Whole32, token_start: Ints, number: Ints, first: Ints, by_expert: Ints, offset: Ints) -> Whole32:
    """Return int32[T, k], the slot of each route when the replicas of an expert take turns, -1 where there is no route.

    Parameters
    ----------
    ids : int32[T, k]
    token_start : int[G + 1]
    number, first : int[E]
        Replicas of each expert, and where they begin in ``by_expert`` int[S], the slots.
    offset : int[G]
        Turns that each source begins with.

    Raises
    ------
    ValueError
        If an expert does not exist or has no slot.
    """
    slots = np.empty(ids.shape, dtype=np.int32)
    turn = np.empty(len(number), dtype=np.int64)
    for source in range(len(offset)):
        turn[:] = offset[source]
        for token in range(token_start[source], token_start[source + 1]):
            for choice in range(ids.shape[1]):
                expert = ids[token, choice]
                if expert < 0:
                    slots[token, choice] = -1
                    continue
                if expert >= len(number) or number[expert] < 1:
                    raise ValueError("an expert that is chosen has no slot")
                slots[token, choice] = by_expert[first[expert] + turn[expert] % number[expert]]
                turn[expert] += 1
    return slots


@njit(types.Array(types.int32, 2, "C")(_SCORES, types.int64), cache=True)
def best_first(scores: Singles, top_k: int) -> Whole32:
    """Return int32[T, k], the experts of each token's largest scores, best first, of equal ones the lower first.

    The first choice of a token is -1 where a score is not a number or plus infinity, or fewer than k are finite: nothing else of it counts.

    Raises
    ------
    ValueError
        If there are fewer than ``top_k`` experts, or no choice is asked for.
    """
    tokens, experts = scores.shape
    if top_k < 1 or top_k > experts:
        raise ValueError("a token has between one choice and as many as there are experts")
    ids = np.empty((tokens, top_k), dtype=np.int32)
    best = np.empty(top_k, dtype=np.float32)
    last = top_k - 1
    for token in range(tokens):
        best[:] = -np.inf
        ids[token] = -1
        wrong = False
        for expert in range(experts):
            score = scores[token, expert]
            if not score <= best[last]:  # larger, or not a number
                wrong |= not score < np.inf
                place = last
                while place > 0 and best[place - 1] < score:
                    best[place] = best[place - 1]
                    ids[token, place] = ids[token, place - 1]
                    place -= 1
                best[place] = score
                ids[token, place] = expert
        if wrong or best[last] == -np.inf:
            ids[token, 0] = -1
    return ids


@njit(types.boolean(types.Array(types.float32, 1, "C"), types.Array(types.float32, 1, "C", readonly=True), types.int64), cache=True)
def _sum_of_best_two(total: Singles, scores: Singles, count: int) -> bool:
    """Write the sum of the best one or two scores of each group; return whether all scores were below infinity.

    Groups take turns, so that one need not wait for what the other compares; nothing is branched on, because nothing can be foretold.
    """
    groups = len(total)
    size = len(scores) // groups
    second = np.full(groups, -np.inf, dtype=np.float32)
    total[:] = -np.inf
    fine = True
    for place in range(size):
        for group in range(groups):
            score = scores[group * size + place]
            fine &= score < np.inf
            first = total[group]
            beaten = min(score, first)
            total[group] = max(first, score)
            second[group] = max(second[group], beaten)
    if count == 2:
        for group in range(groups):
            total[group] += second[group]
    return fine


@njit(types.boolean(types.Array(types.float32, 1, "C"), types.Array(types.float32, 1, "C", readonly=True), types.int64), cache=True)
def _sum_of_best(total: Singles, scores: Singles, count: int) -> bool:
    """Write the sum of the best ``count`` scores of each group, added largest first; return whether all scores were below infinity."""
    groups = len(total)
    size, last = len(scores) // groups, count - 1
    best = np.empty(count, dtype=np.float32)
    for group in range(groups):
        best[:] = -np.inf
        for score in scores[group * size : (group + 1) * size]:
            if not score <= best[last]:  # larger, or not a number
                if not score < np.inf:
                    return False
                place = last
                while place > 0 and best[place - 1] < score:
                    best[place] = best[place - 1]
                    place -= 1
                best[place] = score
        total[group] = best[0]
        for place in range(1, count):
            total[group] += best[place]
    return True


@njit(types.boolean(types.Array(types.float32, 2, "C"), _SCORES, types.int64, types.int64, types.int64), cache=True)
def within_best_groups(limited: Singles, scores: Singles, groups: int, top_groups: int, count: int) -> bool:
    """Fill ``limited`` with the scores of each token's best groups, and minus infinity outside them; false if one is NaN or infinite.

    Parameters
    ----------
    limited : float32[T, E]
        Is written.
    scores : float32[T, E]
    groups : int
        A divisor of E.
    top_groups : int
        How many a token may use; of groups of equal score the lower.
    count : int
        A group's score is the sum of its best so many experts, added largest first; 1 to the size of a group.

    Raises
    ------
    ValueError
        If the groups are not equally large, or a group has fewer experts than count.
    """
    tokens, experts = scores.shape
    if groups < 1 or experts % groups or limited.shape != scores.shape or not 1 <= count <= experts // groups:
        raise ValueError("the groups do not divide the experts, or have too few")
    size = experts // groups
    total = np.empty(groups, dtype=np.float32)
    taken = np.empty(groups, dtype=np.bool_)
    limited[:] = -np.inf
    for token in range(tokens):
        if not (_sum_of_best_two(total, scores[token], count) if count <= 2 else _sum_of_best(total, scores[token], count)):
            return False
        taken[:] = False
        for _ in range(top_groups):
            best = -1
            for group in range(groups):
                if not taken[group] and (best < 0 or total[group] > total[best]):
                    best = group
            taken[best] = True
            limited[token, best * size : (best + 1) * size] = scores[token, best * size : (best + 1) * size]
    return True
