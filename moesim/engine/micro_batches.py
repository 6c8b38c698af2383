"""A step in micro-batches: each GPU's tokens cut into consecutive parts, each of which is limited, bound and exchanged by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Ints
from moesim.facts.group_traffic import added
from moesim.facts.routing import Kept, LayerRouting
from moesim.facts.traffic import Exchange, Traffic


def tokens_of_parts(token_start: Ints, parts: int) -> list[Ints]:
    """Return the tokens of each micro-batch: consecutive ones of each GPU, as many of each as in any other or one fewer."""
    of_gpus = [
        np.array_split(np.arange(start, end), parts) for start, end in zip(token_start[:-1].tolist(), token_start[1:].tolist(), strict=True)
    ]
    return [np.concatenate([mine[part] for mine in of_gpus]).astype(np.int64) for part in range(parts)]


def split(layer: LayerRouting, tokens: Sequence[Ints], who: str) -> list[LayerRouting]:
    """Return a layer's micro-batches.

    Parameters
    ----------
    layer : LayerRouting
        With ids: counts cannot be cut.
    tokens : sequence of int[...]
        As :func:`tokens_of_parts` gives them.
    who : str
        Named in the refusal.

    Raises
    ------
    FidelityError
        If the routing does not tell tokens apart.
    """
    ids = layer.need_ids(who)
    source = layer.source_of_token()
    parts = []
    for mine in tokens:
        held = np.bincount(source[mine], minlength=layer.gpus)
        parts.append(
            LayerRouting.of_tokens(
                ids[mine],
                np.concatenate(([0], np.cumsum(held))),
                layer.experts,
                weights=_taken(layer.weights, mine),
                scores=_taken(layer.scores, mine),
                vocabulary_ids=_taken(layer.vocabulary_ids, mine),
                domains=_taken(layer.domains, mine),
            )
        )
    return parts


def _taken(values: NDArray[Any] | None, rows: Ints) -> NDArray[Any] | None:
    return None if values is None else values[rows]


def merged_kept(chosen: LayerRouting, parts: Sequence[Kept], tokens: Sequence[Ints]) -> Kept:
    """Return what the capacity rule left of all micro-batches together, tokens in the order of the whole layer."""
    sent = [part.sent for part in parts]
    return Kept(
        routing=_merged_routing(chosen, [part.routing for part in parts], tokens),
        dropped=np.sum([part.dropped for part in parts], axis=0),
        padding=np.sum([part.padding for part in parts], axis=0),
        capacity=_total([part.capacity for part in parts]),
        fully_dropped=_total([part.fully_dropped for part in parts]),
        moved=_total([part.moved for part in parts]),
        sent=merged_kept(chosen, [part for part in sent if part is not None], tokens) if None not in sent else None,
        room=_total([part.room for part in parts]),
    )


def _merged_routing(chosen: LayerRouting, parts: Sequence[LayerRouting], tokens: Sequence[Ints]) -> LayerRouting:
    if any(part.ids is None for part in parts):
        return dataclasses.replace(chosen, ids=None, weights=None, scores=None, counts=np.sum([part.counts for part in parts], axis=0))
    ids = _together([part.need_ids("a micro-batch") for part in parts], tokens)
    weights = None
    if all(part.weights is not None for part in parts):
        weights = _together([part.need_weights("a micro-batch") for part in parts], tokens)
    return LayerRouting.of_tokens(
        ids,
        chosen.token_start,
        chosen.experts,
        weights=weights,
        scores=chosen.scores,
        vocabulary_ids=chosen.vocabulary_ids,
        domains=chosen.domains,
    )


def _together(values: Sequence[NDArray[Any]], tokens: Sequence[Ints]) -> NDArray[Any]:
    whole = np.empty((sum(len(mine) for mine in tokens), values[0].shape[1]), dtype=values[0].dtype)
    for mine, part in zip(tokens, values, strict=True):
        whole[mine] = part
    return whole


def _total(values: Sequence[Any]) -> Any:
    """Return the sum, or None if a part has none."""
    return None if any(value is None for value in values) else sum(values[1:], values[0])


def merged_exchange(parts: Sequence[Exchange]) -> Exchange:
    """Return the exchange of a layer with the bytes of all its micro-batches, for the accounts; it is never played as such."""

    def stages(of: Callable[[Exchange], tuple[Traffic, ...]]) -> tuple[Traffic, ...]:
        return tuple(added(same) for same in zip(*(of(part) for part in parts), strict=True))

    return dataclasses.replace(
        parts[0],
        dispatch=stages(lambda part: part.dispatch),
        combine=stages(lambda part: part.combine),
        dispatch_counted=np.sum([part.counted("dispatch") for part in parts], axis=0),
        combine_counted=np.sum([part.counted("combine") for part in parts], axis=0),
    )
