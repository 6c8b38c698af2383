"""The two greedy steps that the EPLB family is made of: replicate the hottest, pack the heaviest first."""

from __future__ import annotations

import numpy as np

from moesim.facts.arrays import Floats, Ints


def replicate_experts(weight: Floats, slots: int, *, last_of_equals: bool = False) -> tuple[Ints, Ints]:
    """Give one slot to every expert, and each slot more to the expert whose replicas carry most.

    Parameters
    ----------
    weight : float[N, E]
        Loads of N independent problems (layers, or nodes of layers), in the precision in which to compare.
    slots : int
        S, at least E.
    last_of_equals : bool
        Among experts of equal load per replica, choose the one of highest number, as the heap of TensorRT-LLM does; otherwise the lowest.

    Returns
    -------
    expert_of_replica : int[N, S]
        First the experts in order, then the redundant ones in the order in which they were given.
    count : int[N, E]
        Replicas of each expert.

    Notes
    -----
    Source: deepseek-ai/EPLB, ``eplb.py``, ``replicate_experts``.
    """
    problems, experts = weight.shape
    expert_of_replica = np.empty((problems, slots), dtype=np.int64)
    expert_of_replica[:, :experts] = np.arange(experts)
    count = np.ones((problems, experts), dtype=np.int64)
    carried = np.array(weight)  # of one replica
    row = np.arange(problems)
    for slot in range(experts, slots):
        hottest = experts - 1 - carried[:, ::-1].argmax(axis=1) if last_of_equals else carried.argmax(axis=1)
        expert_of_replica[:, slot] = hottest
        count[row, hottest] += 1
        carried[row, hottest] = weight[row, hottest] / count[row, hottest].astype(weight.dtype)
    return expert_of_replica, count


def balanced_packing(weight: Floats, packs: int) -> tuple[Ints, Ints]:
    """Put the items into packs of equally many, the heaviest first, each into the lightest pack that has room.

    One item per pack is nobody's choice: then item i goes to pack i, unsorted. Equal items keep their order, equal packs go by number.

    Parameters
    ----------
    weight : float[N, n]
        Of N independent problems, in the precision in which to add up.
    packs : int
        A divisor of n.

    Returns
    -------
    pack, position : int[N, n]
        The pack of each item, and how many items were in it before.

    Notes
    -----
    Source: deepseek-ai/EPLB, ``eplb.py``, ``balanced_packing``.
    """
    problems, items = weight.shape
    room = items // packs
    if room == 1:
        return np.tile(np.arange(items), (problems, 1)), np.zeros((problems, items), dtype=np.int64)
    return pack_heaviest_first(weight, packs, room)


def pack_heaviest_first(weight: Floats, packs: int, room: int) -> tuple[Ints, Ints]:
    """Put items into packs, the heaviest first, each into the lightest pack that has fewer than ``room`` items.

    With room for all items this is the LPT rule (longest processing time first) of Graham, "Bounds on multiprocessing timing anomalies",
    SIAM J. Appl. Math. 17, 1969: the heaviest pack is at most 4/3 - 1/(3 packs) times the best possible.

    Parameters
    ----------
    weight : float[N, n]
        Of N independent problems.
    packs, room : int
        ``packs * room >= n``.

    Returns
    -------
    pack, position : int[N, n]
    """
    problems, items = weight.shape
    pack_of = np.empty((problems, items), dtype=np.int64)
    position = np.empty((problems, items), dtype=np.int64)
    total = np.zeros((problems, packs), dtype=weight.dtype)
    held = np.zeros((problems, packs), dtype=np.int64)
    order = np.argsort(-weight, axis=1, kind="stable")
    row = np.arange(problems)
    for item in order.T:
        lightest = total.argmin(axis=1)
        before = held[row, lightest]
        pack_of[row, item] = lightest
        position[row, item] = before
        held[row, lightest] = before + 1
        total[row, lightest] = np.where(before + 1 == room, np.inf, total[row, lightest] + weight[row, item])
    return pack_of, position
