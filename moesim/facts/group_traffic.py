"""Stages of exchanges that stay inside groups of GPUs, kept as the pairs of each group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats, Ints, frozen
from moesim.facts.traffic import N, Traffic, blocks_of


class GroupTraffic(Traffic):
    """A stage in which bytes stay inside groups of GPUs: it holds the pairs of each group only, and not those of the whole cluster.

    ``bytes``, ``copies`` and ``padding`` are made when they are asked for, and cost the square of the GPUs; what
    :meth:`~Traffic.among` and the other methods return costs as much as there are pairs. A changed copy
    (:func:`dataclasses.replace`) is a plain :class:`Traffic`.
    """

    __slots__ = ("_bytes", "_copies", "_padding")

    _bytes: Floats
    _copies: Ints
    _padding: Ints

    def __new__(cls, **fields: Any) -> Any:  # noqa: D102 - dataclasses.replace makes copies of any class so
        return Traffic(**fields)

    @classmethod
    def of_groups(cls, blocks: Floats, copies: Ints, padding: Ints | None = None) -> GroupTraffic:
        """Return a stage of G / R groups.

        Parameters
        ----------
        blocks : float[G / R, R, R]
            Bytes from each GPU of a group (second axis) to each other of it (third).
        copies, padding : int[G / R, R, R]
            Token copies and rows of padding, likewise; no padding if left out.
        """
        stage: GroupTraffic = object.__new__(cls)
        object.__setattr__(stage, "_bytes", frozen(blocks, np.float64))
        object.__setattr__(stage, "_copies", frozen(copies, np.int64))
        rows = np.zeros(np.shape(copies), dtype=np.int64) if padding is None else padding
        object.__setattr__(stage, "_padding", frozen(rows, np.int64))
        return stage

    def __reduce__(self) -> tuple[Callable[..., GroupTraffic], tuple[Floats, Ints, Ints]]:
        return GroupTraffic.of_groups, (self._bytes, self._copies, self._padding)

    @property
    def bytes(self) -> Floats:
        """float[G, G]."""
        return _whole(self._bytes)

    @property
    def copies(self) -> Ints:
        """int[G, G]."""
        return _whole(self._copies)

    @property
    def padding(self) -> Ints:
        """int[G, G]."""
        return _whole(self._padding)

    @property
    def ranks(self) -> int:
        """R."""
        return int(self._bytes.shape[1])

    @property
    def gpus(self) -> int:
        """G."""
        return int(self._bytes.shape[0] * self._bytes.shape[1])

    def among(self, ranks: int) -> Floats:
        """Return float[G / R, R, R], the bytes inside each group of R GPUs with consecutive numbers."""
        return self._bytes if ranks == self.ranks else np.asarray(blocks_of(self.bytes, ranks))

    def copies_among(self, ranks: int) -> Ints:
        """Return int[G / R, R, R], the token copies inside each group of R GPUs with consecutive numbers."""
        return self._copies if ranks == self.ranks else np.asarray(blocks_of(self.copies, ranks))

    def padding_among(self, ranks: int) -> Ints:
        """Return int[G / R, R, R], the rows of padding inside each group of R GPUs with consecutive numbers."""
        return self._padding if ranks == self.ranks else np.asarray(blocks_of(self.padding, ranks))

    def sent(self) -> Floats:
        """Return float[G], the bytes that leave each GPU."""
        return np.asarray(self._bytes.sum(axis=2).ravel())

    def received(self) -> Floats:
        """Return float[G], the bytes that come to each GPU."""
        return np.asarray(self._bytes.sum(axis=1).ravel())

    def flows(self) -> int:
        """Return how many pairs of GPUs have bytes."""
        return int(np.count_nonzero(self._bytes))

    def astray(self, ranks: int) -> tuple[int, int] | None:
        """Return a pair (source, destination) that has bytes but is in no group of R GPUs together; None if there is none."""
        return None if ranks == self.ranks else super().astray(ranks)


def _whole(blocks: NDArray[N]) -> NDArray[N]:
    """Return [G, G] with square blocks along its diagonal and nothing beside them, read-only."""
    groups, ranks = blocks.shape[:2]
    whole = np.zeros((groups * ranks, groups * ranks), dtype=blocks.dtype)
    every = np.arange(groups)
    whole.reshape(groups, ranks, groups, ranks)[every, :, every, :] = blocks
    whole.flags.writeable = False
    return whole


def added(stages: Sequence[Traffic]) -> Traffic:
    """Return the sum of stages of the same GPUs."""
    in_groups = {stage.ranks for stage in stages if isinstance(stage, GroupTraffic)}
    if len(in_groups) == 1 and all(isinstance(stage, GroupTraffic) for stage in stages):
        ranks = in_groups.pop()
        return GroupTraffic.of_groups(
            np.sum([stage.among(ranks) for stage in stages], axis=0),
            np.sum([stage.copies_among(ranks) for stage in stages], axis=0),
            np.sum([stage.padding_among(ranks) for stage in stages], axis=0),
        )
    return Traffic(
        bytes=np.sum([stage.bytes for stage in stages], axis=0),
        copies=np.sum([stage.copies for stage in stages], axis=0),
        padding=np.sum([stage.padding for stage in stages], axis=0),
    )
