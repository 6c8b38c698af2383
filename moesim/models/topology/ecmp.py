"""Which of several equal ways a switch picks for a pair of GPUs: a hash that knows nothing of the load."""

from __future__ import annotations

import numpy as np

from moesim.facts.arrays import Ints

STEP = 0x9E3779B97F4A7C15
WORD = 2**64 - 1


def flow_hash(source: Ints, destination: Ints | int, seed: int) -> Ints:
    """Return a hash of every ordered pair of GPUs: whole numbers from 0 to 2**63 - 1.

    Parameters
    ----------
    source : int[N]
        Sending GPUs.
    destination : int[N] or int
        Receiving GPUs.
    seed : int
        Of the hash function; its lowest 64 bits count.

    Returns
    -------
    int[N]
        Equal for equal arguments, on any machine. The way back is hashed by itself, as switches hash the addresses in their order.

    Notes
    -----
    Switches hash the addresses and ports of a connection with functions that their makers do not publish. Here seed, source and destination
    go one after the other through the mixing function of SplitMix64 (G. L. Steele, D. Lea and C. H. Flood, "Fast splittable
    pseudorandom number generators", OOPSLA 2014), whose output bits pass tests of randomness. So all bytes of a pair form one
    connection; libraries that open several connections per pair collide less.
    """
    first, second = np.broadcast_arrays(np.asarray(source, dtype=np.uint64), np.asarray(destination, dtype=np.uint64))
    state = np.full(first.shape, seed & WORD, dtype=np.uint64)
    for word in (np.zeros_like(first), first, second):
        state = _mix(state + word + np.uint64(STEP))
    return (state >> np.uint64(1)).astype(np.int64)


def _mix(state: np.ndarray) -> np.ndarray:
    """Scramble 64-bit words; arithmetic modulo 2**64."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(state ^ (state >> np.uint64(31)))
