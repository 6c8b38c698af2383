"""Overflow to the next best expert instead of dropping."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.fields import Choice, Count, Flag, Positive
from moesim.base.registry import register
from moesim.facts.arrays import Bools, Ints
from moesim.facts.contracts import Limit
from moesim.facts.routing import Kept, LayerRouting
from moesim.facts.scenario import Setting
from moesim.models.capacity.megatron import megatron_capacity
from moesim.models.capacity.orders import by_position, by_weight, rank_of_choice
from moesim.models.capacity.survivors import keep_first, keep_in_queues, settled, signed_type, what_is_left

WHO = "capacity rule 'next_best'"
MOST_GAIN = 80.0
"""Bounds the logarithm of the ratio of two weights, so that the new weight is a finite single."""


@register("capacity", "next_best")
@dataclass(frozen=True, slots=True, kw_only=True)
class NextBest:
    """Cap the routes from each source GPU to each expert at ceil(T k / E factor); what overflows goes to the token's next best expert.

    T are the tokens of that GPU, k the choices of a token, E the experts. In each stage every route without a room asks the expert of the
    largest score that its token has neither chosen nor asked; experts with rows left take what they can. What overflows in the last
    stage is dropped. Accepted routes are never displaced. A token's overflowing routes ask in the order of its choices.

    Parameters
    ----------
    factor : float
        Of the mean number of routes.
    stages : int
        How often routes are offered, the router's own choice included: 2 in the paper, 1 drops at once.
    drop : str
        ``position``: earlier tokens first, as in the paper. ``probs``: larger gate weights first, in every stage.
    pad_to_capacity : bool
        Fill each expert's spare rows.

    Notes
    -----
    Source: Fedus et al., arXiv:2101.03961, appendix B (No-Token-Left-Behind), there for one choice per token; no mainstream framework does
    it. The next best expert is read from the router's scores over all experts (logits): counts, choices or gate weights do not name it.
    The weight of a route that moved is the old one times exp(new score - old score), which is what a softmax gate without renormalisation
    gives the new expert.
    """

    factor: Positive = 1.0
    stages: Count = 2
    drop: Annotated[str, Choice(("position", "probs"))] = "position"
    pad_to_capacity: Flag = False

    def begin(self, setting: Setting) -> Limit:
        """Return the rule for one run."""

        def limit(routing: LayerRouting, *, step: int, moe_layer: int) -> Kept:  # noqa: ARG001 - the contract of the slot
            tokens = np.diff(routing.token_start)
            choices = setting.model.top_k if routing.ids is None else routing.ids.shape[1]
            capacity = megatron_capacity(tokens, choices, routing.experts, self.factor)
            rows = capacity if self.pad_to_capacity else None
            if not (routing.counts > capacity[:, None]).any():
                there = None if routing.ids is None else np.asarray(routing.ids >= 0)
                return what_is_left(routing, capacity=capacity, limit=capacity, rows=rows, keep=there, weights=routing.weights)
            return self.overflow(routing, capacity)

        return limit

    def overflow(self, routing: LayerRouting, capacity: Ints) -> Kept:
        """Return what is left of a routing in which some expert has more routes than rows.

        Raises
        ------
        FidelityError
            If the routing has no scores and there are stages to come; with ``drop: probs``, no gate weights.
        """
        given = np.asarray(routing.need_ids(WHO))
        order = by_weight(routing.need_weights(f"{WHO} with drop: probs")) if self.drop == "probs" else by_position(routing)
        keep = keep_first(routing, capacity, order)
        signed = signed_type(given.dtype)
        ids = np.where(keep, given.astype(signed), np.asarray(-1, dtype=signed))
        weights = None if routing.weights is None else np.where(keep, routing.weights, 0).astype(np.float32)
        counts = np.minimum(routing.counts, capacity[:, None])
        moved = None
        if self.stages > 1:
            scores = routing.need_scores(f"{WHO} (stages: 1, which drops at once, needs none)")
            left_for, came = self._offer(routing, scores, ids, weights, capacity, np.asarray((given >= 0) & ~keep))
            moved = came - left_for
            counts = counts + came
        padding = np.maximum(capacity[:, None] - counts, 0) if self.pad_to_capacity else np.zeros_like(counts)
        alive, before = (ids >= 0).any(axis=1), (given >= 0).any(axis=1)
        return Kept(
            routing=replace(routing, counts=counts, ids=settled(ids), weights=None if weights is None else settled(weights)),
            dropped=routing.counts - counts if moved is None else routing.counts + moved - counts,
            padding=padding,
            capacity=capacity,
            fully_dropped=int(np.count_nonzero(before & ~alive)),
            moved=moved,
        )

    def _offer(
        self,
        routing: LayerRouting,
        scores: NDArray[Any],
        ids: NDArray[Any],
        weights: NDArray[Any] | None,
        capacity: Ints,
        homeless: Bools,
    ) -> tuple[Ints, Ints]:
        """Find rows for the homeless routes; return int[G, E], how many left each expert and how many came. Writes ids and weights."""
        given = np.asarray(routing.ids)
        crowd = Crowd.of(routing, scores, homeless)
        base = routing.source_of_token()[crowd.token] * routing.experts
        first = base + given[crowd.token, crowd.slot]
        room = np.maximum(capacity[:, None] - routing.counts, 0).ravel()
        waiting = np.ones(len(crowd.token), dtype=np.bool_)
        left_for, came = np.zeros((2, room.size), dtype=np.int64)
        for _ in range(1, self.stages):
            asked = crowd.ask(waiting)
            if not (asked >= 0).any():
                break
            new = _new_weights(routing, scores, given, crowd, asked)
            order = crowd.token * ids.shape[1] + crowd.slot if self.drop == "position" else by_weight(new)
            queue = base + asked
            length = np.bincount(queue[asked >= 0], minlength=room.size)
            taken = keep_in_queues(np.asarray(asked >= 0), queue, length, room, order)
            arrived = np.minimum(length, room)
            room = room - arrived
            came += arrived
            left_for += np.bincount(first[taken], minlength=room.size)
            where = crowd.token[taken], crowd.slot[taken]
            ids[where] = asked[taken]
            if weights is not None:
                weights[where] = new[taken]
            waiting &= ~taken
        return left_for.reshape(routing.counts.shape), came.reshape(routing.counts.shape)


@dataclass(slots=True)
class Crowd:
    """Routes without a row, in the order of their tokens and, within a token, of its choices.

    Parameters
    ----------
    token, slot : int[n]
        Where each stands in the choices.
    row : int[n]
        The row of its token in ``open``.
    number : int[n]
        How many homeless routes of its token come before it.
    open : float[tokens, E]
        Scores of the experts that a token may still ask; minus infinity elsewhere.
    """

    token: Ints
    slot: Ints
    row: Ints
    number: Ints
    open: NDArray[Any]

    @classmethod
    def of(cls, routing: LayerRouting, scores: NDArray[Any], homeless: Bools) -> Crowd:
        """Gather the homeless routes of a routing."""
        token, slot = (axis.astype(np.int64) for axis in np.nonzero(homeless))
        ids = np.asarray(routing.ids)
        tokens, row = np.unique(token, return_inverse=True)
        if routing.weights is not None:
            rank = rank_of_choice(np.asarray(routing.weights)[tokens])[row, slot]
            sorted_by_choice = np.lexsort((rank, token))
            token, slot, row = token[sorted_by_choice], slot[sorted_by_choice], row[sorted_by_choice]
        first = np.searchsorted(token, token, side="left")
        still = scores[tokens].astype(np.float32, copy=False)  # a fresh array: it is chosen by index
        chosen = ids[tokens].astype(np.int64)
        there = chosen >= 0
        still[np.nonzero(there)[0], chosen[there]] = -np.inf
        return cls(token, slot, row, np.arange(len(token)) - first, still)

    def ask(self, waiting: Bools) -> Ints:
        """Return int[n], the expert that each waiting route asks, -1 for none; no two routes of a token ask the same, now or later."""
        asked = np.full(len(self.token), -1, dtype=np.int64)
        for number in range(int(self.number.max(initial=-1)) + 1):
            here = np.flatnonzero(waiting & (self.number == number))
            rows = self.row[here]
            # The first route of every token: the rows are all of them, in order, and need no copy.
            best = (self.open if len(rows) == len(self.open) else self.open[rows]).argmax(axis=1)
            possible = np.isfinite(self.open[rows, best])
            asked[here[possible]] = best[possible]
            self.open[rows, best] = -np.inf
        return asked


def _new_weights(routing: LayerRouting, scores: NDArray[Any], given: NDArray[Any], crowd: Crowd, asked: Ints) -> NDArray[np.float32]:
    if routing.weights is None:
        return np.zeros(len(asked), dtype=np.float32)
    old = scores[crowd.token, given[crowd.token, crowd.slot].astype(np.int64)].astype(np.float64)
    gain = np.clip(scores[crowd.token, np.maximum(asked, 0)] - old, -MOST_GAIN, MOST_GAIN)
    return np.asarray(routing.weights[crowd.token, crowd.slot] * np.exp(gain), dtype=np.float32)
