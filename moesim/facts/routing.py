"""Which token goes to which expert, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import FidelityError
from moesim.facts.arrays import Ints, frozen


class Fidelity(IntEnum):
    """How much a routing knows; a policy that needs more than there is is refused by name, never guessed."""

    COUNTS = 1
    COUNTS_BY_SOURCE = 2
    TOKENS = 3
    WEIGHTS = 4
    SCORES = 5

    def __str__(self) -> str:
        return {1: "counts", 2: "counts by source", 3: "tokens", 4: "tokens with gate weights", 5: "scores"}[int(self)]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRouting:
    """One layer of one step: the choices of T tokens that start on G GPUs.

    Parameters
    ----------
    experts : int
        E.
    token_start : int[G + 1]
        The tokens of GPU g are ``token_start[g] : token_start[g + 1]``.
    counts : int[G, E]
        Routes (token, choice) from each source GPU to each expert.
    ids : int[T, k] or None
        Chosen experts; -1 where a token has no such choice (dropped, or fewer than k).
    weights : float[T, k] or None
        Gate weight of each choice.
    scores : float[T, E] or None
        Router logits.
    vocabulary_ids : int[T] or None
        Which word of the vocabulary each token is, from 0.
    domains : int[T] or None
        Which kind of text each token is from, from 0.
    domain_counts : int[D, E] or None
        Routes from the tokens of each domain to each expert, where tokens are unknown.
    """

    experts: int
    token_start: Ints
    counts: Ints
    ids: NDArray[Any] | None = None
    weights: NDArray[Any] | None = None
    scores: NDArray[Any] | None = None
    vocabulary_ids: NDArray[Any] | None = None
    domains: NDArray[Any] | None = None
    domain_counts: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "token_start", frozen(self.token_start, np.int64))
        object.__setattr__(self, "counts", frozen(self.counts, np.int64))
        for name in ("ids", "weights", "scores", "vocabulary_ids", "domains", "domain_counts"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, frozen(getattr(self, name)))

    @classmethod
    def of_tokens(
        cls,
        ids: NDArray[Any],
        token_start: Any,
        experts: int,
        *,
        weights: NDArray[Any] | None = None,
        scores: NDArray[Any] | None = None,
        vocabulary_ids: NDArray[Any] | None = None,
        domains: NDArray[Any] | None = None,
    ) -> LayerRouting:
        """Build from per-token choices; the counts follow."""
        token_start = np.asarray(token_start, dtype=np.int64)
        return cls(
            experts=experts,
            token_start=token_start,
            counts=count_routes(ids, token_start, experts),
            ids=ids,
            weights=weights,
            scores=scores,
            vocabulary_ids=vocabulary_ids,
            domains=domains,
        )

    @property
    def gpus(self) -> int:
        """G, the sources."""
        return len(self.token_start) - 1

    @property
    def tokens(self) -> int:
        """T, over all sources."""
        return int(self.token_start[-1])

    @property
    def routes(self) -> int:
        """Routes of all tokens together."""
        return int(self.counts.sum())

    @property
    def fidelity(self) -> Fidelity:
        """What this routing knows."""
        if self.scores is not None:
            return Fidelity.SCORES
        if self.ids is None:
            return Fidelity.COUNTS_BY_SOURCE
        return Fidelity.TOKENS if self.weights is None else Fidelity.WEIGHTS

    def source_of_token(self) -> Ints:
        """Return int[T], the GPU each token starts on."""
        return np.repeat(np.arange(self.gpus), np.diff(self.token_start))

    def routes_of_domains(self) -> Ints | None:
        """Return int[D, E], routes from the tokens of each domain to each expert; None where domains are unknown."""
        if self.domains is None or self.ids is None:
            return None if self.domain_counts is None else np.asarray(self.domain_counts, dtype=np.int64)
        rows = int(self.domains.max(initial=-1)) + 1
        place = (self.domains.astype(np.int64)[:, None] * self.experts + self.ids)[self.ids >= 0]
        return np.bincount(place, minlength=rows * self.experts).reshape(rows, self.experts)

    def need_ids(self, who: str) -> NDArray[Any]:
        """Return ``ids``, or refuse on behalf of ``who``."""
        if self.ids is None:
            raise FidelityError(f"{who} needs to know the experts of each token, but this routing has {self.fidelity} only")
        return self.ids

    def need_weights(self, who: str) -> NDArray[Any]:
        """Return ``weights``, or refuse on behalf of ``who``."""
        if self.weights is None:
            raise FidelityError(f"{who} needs the gate weight of each choice, but this routing has {self.fidelity} only")
        return self.weights

    def need_scores(self, who: str) -> NDArray[Any]:
        """Return ``scores``, or refuse on behalf of ``who``."""
        if self.scores is None:
            raise FidelityError(f"{who} needs the router's scores over all experts, but this routing has {self.fidelity} only")
        return self.scores

    def need_vocabulary_ids(self, who: str) -> NDArray[Any]:
        """Return ``vocabulary_ids``, or refuse on behalf of ``who``."""
        if self.vocabulary_ids is None:
            raise FidelityError(f"{who} needs the vocabulary id of each token, but this routing has {self.fidelity} without them")
        return self.vocabulary_ids


MANY_TOKENS = 64
"""Of a GPU: from so many on, its routes are counted by themselves, which takes fewer passes over them."""


def count_routes(ids: NDArray[Any], token_start: Any, experts: int) -> Ints:
    """Return int[G, E], routes from each source GPU to each expert; ids of -1 do not count."""
    token_start = np.asarray(token_start, dtype=np.int64)
    gpus = len(token_start) - 1
    bounds = token_start.tolist()
    plain = len(ids) >= MANY_TOKENS * gpus and (bounds[0], bounds[-1]) == (0, len(ids)) and ids.size > 0
    if plain and int(ids.min()) >= 0 and int(ids.max()) < experts:
        return np.array([np.bincount(ids[first:last].ravel(), minlength=experts) for first, last in pairwise(bounds)], dtype=np.int64)
    source = np.repeat(np.arange(gpus), np.diff(token_start))
    flat = (source[:, None] * experts + ids.astype(np.int64))[ids >= 0]
    return np.bincount(flat, minlength=gpus * experts).reshape(gpus, experts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """One step: a :class:`LayerRouting` for each MoE layer.

    Parameters
    ----------
    layers : sequence of LayerRouting
        It may make its layers when they are asked for.
    basis : str
        What the routing rests on, one of :data:`~moesim.facts.evidence.STRENGTH`.
    notes : tuple of str
        Warnings for the user, for example that a trace is shorter than the run and was read again from its start.
    repeats : int or None
        The first step whose tokens this step repeats, all of them and on the same GPUs: such a step is no new sample of the routing.
        None if it repeats no step as a whole.
    """

    layers: Sequence[LayerRouting]
    basis: str = "assumed"
    notes: tuple[str, ...] = ()
    repeats: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a capacity rule leaves of a layer.

    Parameters
    ----------
    routing : LayerRouting
        The routes that are sent; a dropped route has id -1 (and weight 0) in its place.
    dropped : int[G, E]
        Routes dropped, by source and expert.
    padding : int[G, E]
        Empty (or meaningless) rows that the rule adds to fill buffers: they are sent and computed as if they were tokens.
    capacity : int[G] or None
        Rows that each source may send to each expert; None when there is no limit.
    fully_dropped : int or None
        Tokens all of whose routes were dropped; None where tokens are unknown.
    moved : int[G, E] or None
        Routes that a rule sent to another expert than the gate chose: how many more came to an expert from elsewhere than left it; 0 in sum
        for each source. None if a rule only drops. Given and moved routes are what is kept and dropped (law L1).
    sent : Kept or None
        What travels, where that is not what is computed: a rule that drops at the receiver lets every route travel, and rows that only
        the receiver adds do not. None if what is computed is what is sent.
    room : int or None
        Rows that the rule would have admitted from all sources to all experts, for a rule whose limit is not one per source and expert
        (``capacity`` is then None).
    """

    routing: LayerRouting
    dropped: Ints
    padding: Ints
    capacity: Ints | None = None
    fully_dropped: int | None = None
    moved: Ints | None = None
    sent: Kept | None = None
    room: int | None = None

    def __post_init__(self) -> None:
        for name in ("dropped", "padding"):
            object.__setattr__(self, name, frozen(getattr(self, name), np.int64))
        for name in ("capacity", "moved"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, frozen(getattr(self, name), np.int64))

    def admitted(self) -> int:
        """Return the rows that the rule would have admitted from all sources to all experts; -1 without a limit."""
        if self.room is not None:
            return self.room
        return -1 if self.capacity is None else int(self.capacity.sum()) * self.routing.experts


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Kept routes bound to slots: who sends what to which physical expert.

    Parameters
    ----------
    kept : Kept
        What the capacity rule left.
    slot_counts : int[G, S]
        Real routes from each source GPU to each slot of the source's own expert-parallel group.
    slot_padding : int[G, S]
        Padding rows, likewise.
    slots : int[T, k] or None
        The slot of each kept route (-1 where none), where tokens are known.
    destination : int[G, S]
        The GPU that holds each slot, as seen by each source: its own group's copy.
    shared_slots : int
        How many of the S slots, the last ones, hold the shared expert, one on each rank in their order: 0 if its rows stay where their
        tokens are. Otherwise the placement has so many slots less, and each token one choice more, the last.
    """

    kept: Kept
    slot_counts: Ints
    slot_padding: Ints
    destination: Ints
    slots: NDArray[Any] | None = field(default=None)
    shared_slots: int = 0

    def rows_at(self) -> Ints:
        """Return int[G, G], rows (real and padding) that each source sends to each destination GPU."""
        return self._at(self.slot_counts + self.slot_padding)

    def routes_at(self) -> Ints:
        """Return int[G, G], real routes from each source to each destination GPU."""
        return self._at(self.slot_counts)

    def _at(self, rows_of_slots: Ints) -> Ints:
        gpus = len(self.slot_counts)
        rows = np.zeros((gpus, gpus), dtype=np.int64)
        source = np.broadcast_to(np.arange(gpus)[:, None], self.destination.shape)
        np.add.at(rows, (source, self.destination), rows_of_slots)
        return rows
