"""Between routing and recordings: put drawn steps together into a trace, and name its content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import UsageError
from moesim.facts.routing import LayerRouting, Routing
from moesim.facts.trace import ARRAYS, Trace


def named(trace: Trace) -> Trace:
    """Return the trace with the digest of its content in place: SHA-256 of its arrays, not of a file that holds them.

    Types, shapes and elements of the arrays count, and how many experts, choices and ranks there are; names, origin and byte order do not.
    """
    digest = hashlib.sha256(f"{trace.experts}|{trace.top_k}|{trace.by_source}|".encode())
    if trace.ranks is not None:
        digest.update(f"ranks|{trace.ranks}|".encode())
    for name in ARRAYS:
        array = getattr(trace, name)
        if array is not None:
            plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
            digest.update(f"{name}|{plain.dtype.str}|{array.shape}|".encode())
            digest.update(plain.reshape(-1).view(np.uint8).data)
    return replace(trace, digest=digest.hexdigest())


def small_ids(ids: NDArray[Any], experts: int) -> NDArray[Any]:
    """Return ids in the smallest integer type that holds them; signed when one of them is -1."""
    signed = bool(ids.size) and int(ids.min()) < 0
    return ids.astype(np.min_scalar_type(-experts if signed else max(experts - 1, 0)))


def trace_of(
    steps: Iterable[tuple[int, Routing]], *, name: str, top_k: int, layer_numbers: Iterable[int] | None = None, origin: str = ""
) -> Trace:
    """Return steps of routing as a trace that ``recorded`` replays exactly.

    Parameters
    ----------
    steps : iterable of (int, Routing)
        The steps with their numbers, increasing; each layer of a step has the same tokens.
    name : str
        Of the trace.
    top_k : int
        k.
    layer_numbers : iterable of int, optional
        Which layers of the model these are.
    origin : str
        Where the routing came from.

    Returns
    -------
    Trace
        With the step and source GPU of each token and the number of GPUs; with counts by source if a layer has counts only.

    Raises
    ------
    UsageError
        If there are no steps, layers of one step differ in their tokens, or steps in their number of GPUs.
    """
    numbers: list[int] = []
    starts: list[NDArray[Any]] = []
    drawn: list[list[LayerRouting]] = []
    for number, routing in steps:
        layers = list(routing.layers)
        for index, layer in enumerate(layers):
            if not np.array_equal(layer.token_start, layers[0].token_start):
                raise UsageError(f"layer {index} of step {number} has other tokens per GPU than layer 0: one trace cannot hold both")
        if starts and len(starts[0]) != len(layers[0].token_start):
            raise UsageError(
                f"step {number} has {layers[0].gpus} GPUs, but step {numbers[0]} has {drawn[0][0].gpus}: one trace cannot hold both"
            )
        numbers.append(number)
        starts.append(layers[0].token_start)
        drawn.append(layers)
    if not drawn:
        raise UsageError("there are no steps to put into a trace")
    experts = drawn[0][0].experts
    ids = weights = scores = counts = None
    step: NDArray[Any] | None = None
    source: NDArray[Any] | None = None
    domain: NDArray[Any] | None = None
    words: NDArray[Any] | None = None
    if any(layer.ids is None for layers in drawn for layer in layers):
        counts = np.stack([np.stack([layer.counts for layer in layers]) for layers in drawn])
    else:
        ids = small_ids(_stack(drawn, "ids"), experts)
        weights = _stack(drawn, "weights") if all(layer.weights is not None for layers in drawn for layer in layers) else None
        scores = _stack(drawn, "scores") if all(layer.scores is not None for layers in drawn for layer in layers) else None
        if all(layers[0].domains is not None for layers in drawn):
            domain = np.concatenate([np.asarray(layers[0].domains) for layers in drawn])
        if all(layers[0].vocabulary_ids is not None for layers in drawn):
            words = np.concatenate([np.asarray(layers[0].vocabulary_ids) for layers in drawn])
        tokens = [int(start[-1]) for start in starts]
        step = np.repeat(np.asarray(numbers, dtype=np.int32), tokens)
        source = np.concatenate([np.repeat(np.arange(len(start) - 1, dtype=np.int32), np.diff(start)) for start in starts])
    return named(
        Trace(
            name=name,
            digest="",
            layers=len(drawn[0]),
            experts=experts,
            top_k=top_k,
            ids=ids,
            weights=weights,
            scores=scores,
            step=step,
            source=source,
            ranks=len(starts[0]) - 1,
            counts=counts,
            by_source=counts is not None,
            domain=domain,
            words=words,
            layer_numbers=None if layer_numbers is None else np.asarray(list(layer_numbers), dtype=np.int64),
            origin=origin,
        )
    )


def _stack(drawn: list[list[LayerRouting]], what: str) -> NDArray[Any]:
    width = max(getattr(layer, what).shape[1] for layers in drawn for layer in layers)
    nothing = -1 if what == "ids" else 0
    return np.concatenate([np.stack([_widened(getattr(layer, what), width, nothing) for layer in layers], axis=1) for layers in drawn])


def _widened(array: NDArray[Any], width: int, nothing: int) -> NDArray[Any]:
    """Return an array with columns of ``nothing`` added: some gates give every layer as many choices as its hungriest token has."""
    missing = width - array.shape[1]
    return np.pad(array, ((0, 0), (0, missing)), constant_values=nothing) if missing else array
