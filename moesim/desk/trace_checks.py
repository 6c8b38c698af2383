"""Check the arrays of a trace file, and say precisely what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import did_you_mean
from moesim.desk.trace_domains import domain_counts, domain_of_tokens, words_of_tokens
from moesim.desk.trace_place import Where, first
from moesim.facts.trace import Trace

AXES = ("step", "layer", "source", "expert")
PAIRWISE = 12
"""Up to this many choices, comparing each pair of columns beats sorting each token."""


def tokens_trace(arrays: dict[str, NDArray[Any]], where: Where) -> Trace:
    """Return the trace of a file of tokens.

    Raises
    ------
    TraceError
        About the first array that is wrong.
    """
    ids = where.whole("ids", arrays["ids"], dimensions=3, shape="tokens, layers, k", minimum=-1)
    tokens, layers, top_k = ids.shape
    if 0 in ids.shape:
        raise where.error("ids", f"has shape {ids.shape}: there are no {('tokens', 'layers', 'choices')[ids.shape.index(0)]} in it")
    scores = arrays.get("scores")
    if scores is not None:
        if scores.ndim != 3 or scores.shape[:2] != ids.shape[:2]:
            raise where.error("scores", f"has shape {scores.shape}, expected ({tokens}, {layers}, experts) to go with ids {ids.shape}")
        _finite("scores", scores, where, negative=True)
    stated = where.number(arrays, "experts")
    if scores is not None:
        if stated not in {None, scores.shape[2]}:
            raise where.error("scores", f"has {scores.shape[2]} experts, but the array experts says {stated}")
        stated = scores.shape[2]
    largest = int(ids.max())
    where.few("experts", stated or 0, "experts")
    experts = largest + 1 if stated is None else stated
    if largest < 0:
        raise where.error("ids", "every choice is -1 (none): there are no routes in it")
    if largest >= experts:
        token, layer, slot = first(ids >= experts)
        raise where.error(
            "ids",
            f"token {token}, layer {layer}, choice {slot}: expert {int(ids[token, layer, slot])} does not exist, experts are 0 to "
            f"{experts - 1}; write -1 for no choice (some engines fill up with 255), or correct the array experts",
        )
    where.few("ids", experts, "experts")
    _distinct(ids, where)
    gate = arrays.get("gate")
    if gate is not None:
        if gate.shape != ids.shape:
            raise where.error("gate", f"has shape {gate.shape}, but ids has {ids.shape}; they must be equal")
        _finite("gate", gate, where, negative=False)
    step = _per_token("step", arrays, tokens, where)
    source = _per_token("source", arrays, tokens, where, within=step)
    return Trace(
        name=where.name,
        digest="",
        layers=layers,
        experts=experts,
        top_k=top_k,
        ids=ids,
        weights=gate,
        scores=scores,
        sample_length=_sample_length(arrays, tokens, where),
        step=step,
        source=source,
        ranks=_ranks(arrays, source, where),
        experts_stated=stated is not None,
        layer_numbers=_layer_numbers(arrays, layers, where),
        origin=where.text(arrays),
        domain=domain_of_tokens(arrays, tokens, where),
        words=words_of_tokens(arrays, tokens, where),
    )


def _distinct(ids: NDArray[Any], where: Where) -> None:
    for values, same in _equal_choices(ids):
        real = same & (values >= 0)  # -1 may repeat: several choices that were not made
        if real.any():
            token, layer = first(real)
            raise where.error(
                "ids",
                f"token {token}, layer {layer}: expert {int(values[token, layer])} is chosen twice; a token has distinct experts in a "
                "layer (layers without experts, which some engines fill with zeros, must be left out)",
            )


def _equal_choices(ids: NDArray[Any]) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_]]]:
    """Yield choices [N, L], and where another choice of the same token equals them."""
    top_k = ids.shape[2]
    pairs: Iterator[tuple[NDArray[Any], NDArray[Any]]]
    if top_k <= PAIRWISE:
        columns = [np.ascontiguousarray(ids[:, :, slot]) for slot in range(top_k)]
        pairs = combinations(columns, 2)
    else:
        ordered = np.sort(ids, axis=2)
        pairs = pairwise(ordered[:, :, slot] for slot in range(top_k))
    for one, other in pairs:
        yield one, one == other


def _finite(name: str, array: NDArray[Any], where: Where, *, negative: bool) -> None:
    if array.dtype.kind != "f":
        raise where.error(name, f"holds {array.dtype}, expected floating-point numbers")
    values = array.astype(np.float32) if array.dtype == np.float16 else array
    low, high = float(values.min()), float(values.max())  # NaN comes through both
    if np.isfinite(low) and np.isfinite(high) and (negative or low >= 0):
        return
    place = first(~np.isfinite(values) if negative else ~(np.isfinite(values) & (values >= 0)))
    kind = "finite" if negative else "finite and at least 0"
    raise where.error(name, f"holds {float(values[place])} at {list(place)} (token, layer, column), expected numbers that are {kind}")


def _sample_length(arrays: dict[str, NDArray[Any]], tokens: int, where: Where) -> NDArray[Any] | None:
    if "sample_len" not in arrays:
        return None
    length = where.whole("sample_len", arrays["sample_len"], dimensions=1, shape="conversations")
    total = int(length.sum(dtype=np.int64))
    if total != tokens:
        raise where.error("sample_len", f"sums to {total}, but ids has {tokens} tokens; they must be equal")
    return length


def _per_token(
    name: str, arrays: dict[str, NDArray[Any]], tokens: int, where: Where, *, within: NDArray[Any] | None = None
) -> NDArray[Any] | None:
    if name not in arrays:
        return None
    values = where.whole(name, arrays[name], dimensions=1, shape="tokens")
    if values.shape != (tokens,):
        raise where.error(name, f"has {len(values)} entries, but ids has {tokens} tokens")
    signed = values.astype(np.int64)
    falls = np.diff(signed) < 0
    if within is not None:
        falls &= np.diff(within.astype(np.int64)) == 0
    if falls.any():
        token = first(falls)[0] + 1
        order = "sort the tokens by step, and by source within a step"
        raise where.error(name, f"falls from {int(values[token - 1])} to {int(values[token])} at token {token}; {order}")
    return values


def _ranks(arrays: dict[str, NDArray[Any]], source: NDArray[Any] | None, where: Where) -> int | None:
    ranks = where.number(arrays, "ranks")
    if source is None:
        if ranks is not None:
            raise where.error(
                "ranks", f"says {ranks}, but no array source says which tokens each of them has; add source, or leave ranks out"
            )
        return None
    largest = where.few("source", int(source.max()), "ranks")
    if ranks is not None and largest >= where.few("ranks", ranks, "ranks"):
        token = first(source >= ranks)[0]
        raise where.error(
            "source",
            f"token {token}: rank {int(source[token])} does not exist, ranks are 0 to {ranks - 1}; correct it, or the array ranks",
        )
    return ranks


def _layer_numbers(arrays: dict[str, NDArray[Any]], layers: int, where: Where) -> NDArray[Any] | None:
    if "layers" not in arrays:
        return None
    if arrays["layers"].ndim == 0:
        if where.number(arrays, "layers") != layers:
            raise where.error("layers", f"says {int(arrays['layers'])}, but there are {layers} in the data")
        return None
    numbers = where.whole("layers", arrays["layers"], dimensions=1, shape="layers")
    if numbers.shape != (layers,):
        raise where.error("layers", f"names {len(numbers)} layers, but there are {layers} in the data")
    if np.any(np.diff(numbers.astype(np.int64)) <= 0):
        raise where.error("layers", f"{numbers.tolist()} must rise, each layer once")
    return numbers


def counts_trace(arrays: dict[str, NDArray[Any]], where: Where) -> Trace:
    """Return the trace of a file of counts.

    Raises
    ------
    TraceError
        About the first array that is wrong.
    """
    counts = arrays["counts"]
    axes = _axes(arrays, counts, where)
    if counts.dtype.kind not in "iuf":
        raise where.error("counts", f"holds {counts.dtype}, expected whole numbers")
    wrong = ~np.isfinite(counts) | (counts < 0) | (counts != np.floor(counts))
    if wrong.any():
        place = first(wrong)
        raise where.error(
            "counts", f"holds {counts[place].item()} at {list(place)} ({', '.join(axes)}), expected whole numbers of at least 0"
        )
    if not counts.any():
        raise where.error("counts", f"of shape {counts.shape} holds no routes")
    present = [axis for axis in AXES if axis in axes]
    plain = counts.transpose([axes.index(axis) for axis in present])
    full = plain.reshape([plain.shape[present.index(axis)] if axis in present else 1 for axis in AXES]).astype(np.int64)
    stated = where.number(arrays, "experts")
    if stated not in {None, full.shape[3]}:
        raise where.error("experts", f"says {stated}, but counts has {full.shape[3]}")
    by_source = "source" in axes
    ranks = where.number(arrays, "ranks")
    if ranks is not None and not by_source:
        raise where.error("ranks", f"says {ranks}, but counts has no dimension 'source'; leave ranks out")
    if ranks not in {None, full.shape[2]}:
        raise where.error("ranks", f"says {ranks}, but counts has {full.shape[2]} sources")
    top_k = where.number(arrays, "top_k") or 0
    if top_k > full.shape[3]:
        raise where.error("top_k", f"is {top_k}, more than the {full.shape[3]} experts")
    return Trace(
        name=where.name,
        digest="",
        layers=full.shape[1],
        experts=full.shape[3],
        top_k=top_k,
        counts=full,
        by_source=by_source,
        ranks=full.shape[2] if by_source else None,
        layer_numbers=_layer_numbers(arrays, full.shape[1], where),
        origin=where.text(arrays),
        domain_counts=domain_counts(arrays, full.sum(axis=2), where),
    )


def _axes(arrays: dict[str, NDArray[Any]], counts: NDArray[Any], where: Where) -> list[str]:
    if "axes" not in arrays:
        raise where.error("axes", f"missing; it names the {counts.ndim} dimensions of counts, for example ['layer', 'expert']")
    if arrays["axes"].dtype.kind != "U" or arrays["axes"].ndim != 1:
        raise where.error("axes", f"has type {arrays['axes'].dtype} and shape {arrays['axes'].shape}, expected a list of words")
    axes = [str(axis) for axis in arrays["axes"]]
    for axis in axes:
        if axis not in AXES:
            raise where.error("axes", f"unknown dimension {axis!r}{did_you_mean(axis, AXES)}")
        if axes.count(axis) > 1:
            raise where.error("axes", f"{axis!r} is there {axes.count(axis)} times")
    for axis in ("layer", "expert"):
        if axis not in axes:
            raise where.error("axes", f"{axis!r} is missing from {axes}; without it the loads mean nothing")
    if len(axes) != counts.ndim:
        raise where.error("axes", f"names {len(axes)} dimensions {axes}, but counts has shape {counts.shape}")
    return axes
