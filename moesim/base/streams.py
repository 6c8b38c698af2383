"""Named random streams: adding one caller moves nobody else's numbers."""

from __future__ import annotations

import hashlib

import numpy as np


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
