"""Named random streams: adding one caller moves nobody else's numbers."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """Return the generator that belongs to ``names`` under ``seed``.

    Parameters
    ----------
    seed : int
        The scenario's seed, 0 or more.
    *names : str or int
        What the numbers are for, for example ``"source", step, layer``.

    Returns
    -------
    numpy.random.Generator
        The same for the same arguments in any process, whatever other streams were taken before.

    Notes
    -----
    The names are hashed with BLAKE2b, since Python salts its own ``hash``, into the spawn key of a
    ``numpy.random.SeedSequence``. A name's type takes part, so ``1`` and ``"1"`` are different streams.

    Examples
    --------
    >>> bool(stream(7, "source", 3).random() == stream(7, "source", 3).random())
    True
    """
    key: list[int] = []
    for given in names:
        # NumPy's scalars are the same names as Python's: a loop over an array must not start another stream.
        name = given.item() if isinstance(given, np.generic) else given
        digest = hashlib.blake2b(f"{type(name).__name__}:{name}".encode(), digest_size=8).digest()
        key += [int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")]
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=tuple(key)))


def plain_stream(*numbers: int) -> np.random.Generator:
    """Return the generator that NumPy itself makes of some whole numbers: for inputs that others must be able to draw without moesim.

    Parameters
    ----------
    *numbers : int
        Each 0 or more.

    Examples
    --------
    >>> bool(plain_stream(0, 4).random() == np.random.default_rng([0, 4]).random())
    True
    """
    return np.random.default_rng(list(numbers))


def twister_words(seed: int, size: int) -> NDArray[np.uint32]:
    """Return the first 32-bit words of a Mersenne Twister with its authors' seeding: what other programs drew with that seed.

    Parameters
    ----------
    seed : int
        From 0 to 2**32 - 1.
    size : int
        How many words.

    Notes
    -----
    M. Matsumoto and T. Nishimura, ACM TOMACS 8(1), 1998; the seeding is ``init_genrand`` of their reference code of 2002, which PyTorch's
    CPU generator and NumPy's old interface use too.

    Examples
    --------
    >>> twister_words(5489, 2).tolist()
    [3499211612, 581869302]
    """
    key = np.empty(624, dtype=np.uint32)
    word = seed & 0xFFFFFFFF
    for place in range(624):
        key[place] = word
        word = (1812433253 * (word ^ (word >> 30)) + place + 1) & 0xFFFFFFFF
    bits = np.random.MT19937()
    bits.state = {"bit_generator": "MT19937", "state": {"key": key, "pos": 624}}
    return np.asarray(bits.random_raw(size), dtype=np.uint32)
