"""A recording of real routing, before it is dealt to GPUs and steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import FidelityError, TraceError
from moesim.facts.arrays import Ints, frozen
from moesim.facts.routing import Fidelity

ARRAYS = (
    "ids", "weights", "scores", "sample_length", "step", "source", "counts", "layer_numbers", "domain", "domain_counts", "words",
)  # fmt: skip
"""Of a trace: all that it holds but names and sizes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What a file of recorded routing holds; either ``ids`` or ``counts`` is there.

    Parameters
    ----------
    name : str
        For messages: the file's name.
    digest : str
        SHA-256 of the content, hexadecimal.
    layers : int
        L, MoE layers in it.
    experts : int
        E, as the file says or as its largest id implies.
    ids : int[N, L, k] or None
        Experts of each of N tokens.
    weights : float[N, L, k] or None
        Gate weight of each choice.
    scores : float[N, L, E] or None
        Router logits.
    sample_length : int[...] or None
        Tokens of each conversation, in order; sums to N.
    step, source : int[N] or None
        The step and the rank of each token, where they were recorded; both non-decreasing (source within a step).
    ranks : int or None
        G, how many ranks there were, where the file states it. None if it does not: then there were at least the largest source
        plus one, and the last of them may have had no tokens.
    counts : int[steps, L, G, E] or None
        Routes; G is 1 when sources were not recorded (``by_source`` is then false).
    top_k : int
        k; 0 when only counts were recorded and the file does not say.
    experts_stated : bool
        False when E is no more than the largest id in the file plus one: the model may have more.
    domain : int[N] or None
        Which kind of text each token is from.
    domain_counts : int[steps, L, D, E] or None
        Routes from the tokens of each domain, of a trace of counts; negative in steps in which they were not noted.
    words : int[N] or None
        Which word of the vocabulary each token is, from 0.
    layer_numbers : int[L] or None
        Which layers of the model these are, where the file says.
    origin : str
        Where the recording came from and under which licence, in the file's own words.
    """

    name: str
    digest: str
    layers: int
    experts: int
    top_k: int
    ids: NDArray[Any] | None = None
    weights: NDArray[Any] | None = None
    scores: NDArray[Any] | None = None
    sample_length: Ints | None = None
    step: Ints | None = None
    source: Ints | None = None
    ranks: int | None = None
    counts: Ints | None = None
    by_source: bool = False
    experts_stated: bool = True
    layer_numbers: Ints | None = None
    origin: str = ""
    domain: Ints | None = None
    domain_counts: Ints | None = None
    words: Ints | None = None

    def __post_init__(self) -> None:
        for name in ARRAYS:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, frozen(value))

    @property
    def tokens(self) -> int:
        """N, or 0 when only counts were recorded."""
        return 0 if self.ids is None else len(self.ids)

    @property
    def fidelity(self) -> Fidelity:
        """What the trace knows."""
        if self.scores is not None:
            return Fidelity.SCORES
        if self.ids is not None:
            return Fidelity.TOKENS if self.weights is None else Fidelity.WEIGHTS
        return Fidelity.COUNTS_BY_SOURCE if self.by_source else Fidelity.COUNTS

    @property
    def named_ranks(self) -> int | None:
        """How many ranks the file states, or else the largest source plus one; None when sources were not recorded."""
        if self.ranks is not None:
            return self.ranks
        if self.source is not None:
            return int(self.source.max()) + 1
        return self.counts.shape[2] if self.counts is not None and self.by_source else None

    def fits_ranks(self, ranks: int) -> str:
        """Refuse another number of ranks than the trace has, and return what is to be noted (or nothing).

        Raises
        ------
        TraceError
            If the trace states another number of ranks, or names more.
        """
        named = self.named_ranks
        if named is None or named == ranks:
            return ""
        if self.ranks is not None:
            raise TraceError(
                f"the trace {self.name} was recorded on {named} ranks (it says so), but {ranks} are asked for; take {named}, or another "
                "trace"
            )
        if named > ranks:
            raise TraceError(
                f"the trace {self.name} was recorded on {named} ranks at least (its largest source is {named - 1}), but {ranks} are asked "
                "for; take as many as there were, or another trace"
            )
        return (
            f"the trace {self.name} does not state how many ranks there were, and its largest source is {named - 1}: the last "
            f"{ranks - named} of {ranks} have no tokens"
        )

    def need(self, fidelity: Fidelity, who: str) -> None:
        """Refuse on behalf of ``who`` if the trace knows less than ``fidelity``."""
        if self.fidelity < fidelity:
            raise FidelityError(f"{who} needs {fidelity}, but the trace {self.name} has {self.fidelity} only")


def blocks(tokens: int, ranks: int) -> Ints:
    """Return int[ranks + 1], the bounds of equal contiguous blocks of ceil(tokens / ranks); the last may be shorter.

    Examples
    --------
    >>> blocks(10, 4).tolist()
    [0, 3, 6, 9, 10]
    """
    size = -(-tokens // ranks)
    return np.minimum(np.arange(ranks + 1) * size, tokens)
