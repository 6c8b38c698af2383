"""What an exchange asks of the fabric."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from moesim.facts.arrays import Floats, Ints, frozen


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """One stage of an exchange.

    Parameters
    ----------
    bytes : float[G, G]
        From each source GPU (row) to each destination (column); the diagonal stays on the GPU and is never sent.
    copies : int[G, G]
        Token copies in it; rows of padding are no copies of any token.
    padding : int[G, G]
        Rows of padding in it, sent like copies; none if left out. ``bytes`` holds both.
    """

    bytes: Floats
    copies: Ints
    padding: Ints = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))

    def __post_init__(self) -> None:
        rows = self.padding if np.size(self.padding) else np.zeros(np.shape(self.copies), dtype=np.int64)
        object.__setattr__(self, "bytes", frozen(self.bytes, np.float64))
        object.__setattr__(self, "copies", frozen(self.copies, np.int64))
        object.__setattr__(self, "padding", frozen(rows, np.int64))


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """Both ways of one layer: tokens to their experts, results back; each a sequence of stages.

    ``launch`` is the time a GPU spends between reaching a collective and offering its first byte; with ``barrier`` no byte moves
    before every rank of the group has arrived (counts are exchanged first), otherwise a pair starts when both have arrived.
    """

    dispatch: tuple[Traffic, ...]
    combine: tuple[Traffic, ...]
    launch: float = 0.0
    barrier: bool = False
