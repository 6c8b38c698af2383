"""The three signs of Tutel's capacity factor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from moesim.base.errors import PluginError
from moesim.base.fields import Count, Flag, Number
from moesim.base.registry import register
from moesim.facts.arrays import Ints
from moesim.facts.contracts import Limit
from moesim.facts.routing import Kept, LayerRouting
from moesim.facts.scenario import Setting
from moesim.models.capacity.orders import renormalise, slot_major
from moesim.models.capacity.scopes import group_maximum, round_up
from moesim.models.capacity.survivors import keep_first, what_is_left


@register("capacity", "tutel")
@dataclass(frozen=True, slots=True, kw_only=True)
class Tutel:
    """Cap the routes from each source GPU to each expert by a factor whose sign chooses the rule, and send buffers filled to the cap.

    With T tokens of a GPU, k choices and E experts: a positive factor f gives C = k int(f ceil(T / E)); 0 drops nothing, and C is the
    largest number of routes from any source of the expert-parallel group to any expert; a negative one takes the smaller of that number
    and k int(-f ceil(T / E)). C is then rounded up to a multiple of ``alignment``. First choices of all tokens come before any second
    choice.

    Parameters
    ----------
    factor : float
        ``capacity_factor``; any sign.
    batch_prioritized_routing : bool
        Among equal choices the tokens of the largest gate weight come first (equal weights: the earlier token), not the earlier tokens.
        Tutel ranks them by their probability over all experts: use the gate ``topk`` with ``pre_softmax: true``.
    alignment : int
        What C is a multiple of.
    normalize_gate : bool
        For k of 2 and more: divide the weights of a token by their sum, before dropping, so that what is left may sum to less than 1.
    inequivalent_tokens : bool
        T is the largest number of tokens of a GPU of the expert-parallel group, not a GPU's own, so that all buffers are equal.

    Notes
    -----
    Source: microsoft/tutel, ``tutel/impls/fast_dispatch.py``, ``extract_critical``. Dropped before the dispatch; buffers always travel
    and are computed whole. The largest number is communicated, which takes an all-reduce of one number that is not modelled.
    """

    factor: Annotated[float, Number()] = 1.0
    batch_prioritized_routing: Flag = False
    alignment: Count = 1
    normalize_gate: Flag = True
    inequivalent_tokens: Flag = False

    def begin(self, setting: Setting) -> Limit:
        """Return the rule for one run."""
        ranks = setting.parallel.ep

        def limit(routing: LayerRouting, *, step: int, moe_layer: int) -> Kept:  # noqa: ARG001 - the contract of the slot
            choices = setting.model.top_k if routing.ids is None else routing.ids.shape[1]
            tokens = np.diff(routing.token_start)
            if self.inequivalent_tokens:
                tokens = group_maximum(tokens, ranks)
            needed = group_maximum(routing.counts.max(axis=1, initial=0), ranks)
            capacity = tutel_capacity(tokens, choices, routing.experts, self.factor, needed, self.alignment)
            keep, weights = None, routing.weights
            if routing.ids is not None:
                if (routing.counts > capacity[:, None]).any():
                    keep = keep_first(
                        routing, capacity, slot_major(routing, "capacity rule 'tutel'", priority=self.batch_prioritized_routing)
                    )
                else:
                    keep = np.asarray(routing.ids >= 0)
                if weights is not None and choices > 1 and self.normalize_gate:
                    weights = renormalise(weights, np.asarray(routing.ids >= 0))
            return what_is_left(routing, capacity=capacity, limit=capacity, rows=capacity, keep=keep, weights=weights)

        return limit


def tutel_capacity(tokens: Ints, top_k: int, experts: int, factor: float, needed: Ints, alignment: int = 1) -> Ints:
    """Return int[G], rows of each source's buffer for each expert.

    Parameters
    ----------
    tokens : int[G]
        T.
    top_k, experts : int
        k and E.
    factor : float
        Of any sign.
    needed : int[G]
        The largest number of routes to one expert in the group of each source.
    alignment : int
        What the result is a multiple of.

    Raises
    ------
    PluginError
        If a factor so near 0 leaves no row at all; Tutel does not run then. One token alone is forgiven.

    Examples
    --------
    >>> tutel_capacity(np.array([50]), 2, 7, 1.0, np.array([30])).tolist()
    [16]
    >>> tutel_capacity(np.array([50]), 2, 7, 0.0, np.array([30]), 8).tolist()
    [32]
    >>> tutel_capacity(np.array([50]), 2, 7, -1.0, np.array([9])).tolist()
    [9]
    """
    each = -(-tokens // experts)
    cap = top_k * np.floor(abs(factor) * each).astype(np.int64)
    # What a run is checked with is one token per GPU: a factor that suits the real batches must not fail there.
    empty = np.flatnonzero((cap == 0) & (tokens > 1)) if factor else np.empty(0, dtype=np.int64)
    if empty.size:
        most = int(each[empty[0]])
        raise PluginError(
            f"capacity rule 'tutel': factor {factor:g} leaves no row for the {tokens[empty[0]]} tokens of GPU {empty[0]}, since "
            f"int({abs(factor):g} x {most}) is 0; write a factor of at least {1 / most:g}, or 0 to drop nothing"
        )
    if factor == 0:
        cap = needed
    elif factor < 0:
        cap = np.minimum(needed, cap)
    return round_up(cap, alignment)
