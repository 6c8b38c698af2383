"""Deal the tokens of a trace to GPUs and steps."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import FidelityError
from moesim.facts.arrays import Ints
from moesim.facts.contracts import Draw
from moesim.facts.routing import LayerRouting, Routing
from moesim.facts.scenario import Setting
from moesim.facts.trace import Trace, blocks
from moesim.models.source.on_demand import LayersOnDemand

MOST_ELEMENTS = 2**23
"""Of an array of a trace that is copied layer by layer."""
UNDERSTATED = "tokens of one step come back in another, so intervals understate the spread between steps"
"""What a note says of steps that share some of their tokens: they are not independent samples, nor the same one."""


class _Columns:
    """The layers of a trace's arrays, each in a row of its own: a step then takes whole rows of them, and not a few bytes here and there.

    A trace is small beside the steps that are dealt from it again and again; one that is large is left as it is.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], NDArray[Any]] = {}

    def rows(self, array: NDArray[Any], layer: int, tokens: Ints | slice, dtype: Any) -> NDArray[Any]:
        """Return [tokens, ...] of one layer, of a type and in C order; an array and a layer are asked for in one type only."""
        if isinstance(tokens, slice) or array.size > MOST_ELEMENTS:
            return np.ascontiguousarray(array[tokens, layer], dtype=dtype)
        key = (id(array), layer)  # the trace lives as long as its deal
        if key not in self._known:
            self._known[key] = np.ascontiguousarray(array[:, layer], dtype=dtype)
        return np.take(self._known[key], tokens, axis=0)


def _dealt(
    trace: Trace,
    tokens: Ints | slice,
    token_start: Ints,
    experts: int,
    notes: tuple[str, ...],
    repeats: int | None = None,
    *,
    columns: _Columns,
) -> Routing:
    """Return the step whose tokens are these tokens of the trace, in the order of their GPUs."""

    def part(array: NDArray[Any] | None, layer: int, dtype: Any) -> NDArray[Any] | None:
        return None if array is None else columns.rows(array, layer, tokens, dtype)

    def layer(index: int) -> LayerRouting:
        ids = part(trace.ids, index, np.int32)
        if ids is None:
            raise FidelityError(f"the trace {trace.name} has no tokens to deal")
        weights = part(trace.weights, index, np.float32)
        scores = part(trace.scores, index, np.float32)
        domains = None if trace.domain is None else trace.domain[tokens]
        words = None if trace.words is None else trace.words[tokens]
        return LayerRouting.of_tokens(ids, token_start, experts, weights=weights, scores=scores, vocabulary_ids=words, domains=domains)

    return Routing(layers=LayersOnDemand(layer, trace.layers), basis="measured", notes=notes, repeats=repeats)


def deal_in_order(trace: Trace, setting: Setting) -> Draw:
    """Give every GPU the next tokens of the trace, ``tokens_per_gpu`` or what its rank has, step after step, around and around.

    A step repeats an earlier one if it begins at the same token. Of N tokens and n a step, that is so every N / gcd(N, n) steps. Where
    ranks have other tokens in every step (``workload.ranks``), none repeats another as a whole.
    """
    need, have = int(setting.token_start(0)[-1]), trace.tokens
    ranks = setting.workload.ranks
    steady = ranks is None or ranks.steady
    period = have // math.gcd(have, need)
    if need > have:
        note = f"the trace {trace.name} has {have} tokens and a step takes {need}: every step reads it {need / have:.3g} times"
    else:
        lasts = f"{have / need:.3g}"
        enough = f"enough for {lasts} step{'s' * (lasts != '1')} of {need}"
        note = f"the trace {trace.name} has {have} tokens, {enough}: after that it is read again from its start"
    if have % need and need % have:
        note = f"{note}; {UNDERSTATED}"
    begins, columns = [0], _Columns()

    def draw(step: int) -> Routing:
        while not steady and len(begins) <= step:  # every step before it took as many tokens as its ranks had
            begins.append(begins[-1] + int(setting.token_start(len(begins) - 1)[-1]))
        first = step * need if steady else begins[step]
        token_start = setting.token_start(step)
        count = int(token_start[-1])
        wraps = first + count > have
        tokens = (first + np.arange(count)) % have if wraps else slice(first, first + count)
        repeats = step % period if step >= period and steady else None
        return _dealt(trace, tokens, token_start, setting.model.experts, (note,) if wraps else (), repeats, columns=columns)

    return draw


def deal_conversations(trace: Trace, setting: Setting) -> Draw:
    """Fill every GPU with whole conversations drawn at random with replacement; the last one is cut.

    Steps are independent samples, unless there is one conversation only: then every step repeats the first.

    Raises
    ------
    FidelityError
        If the trace does not say where conversations begin.
    """
    if trace.sample_length is None:
        raise FidelityError(
            f"deal: conversations needs the length of each conversation, but the trace {trace.name} has no sample_len; "
            "use deal: in_order, or add the array sample_len to the file"
        )
    length = trace.sample_length[trace.sample_length > 0].astype(np.int64)
    notes = (f"the trace {trace.name} has one conversation only: every GPU has it in every step",) if length.size == 1 else ()
    start = np.cumsum(length) - length
    steady = setting.workload.ranks is None or setting.workload.ranks.steady
    columns = _Columns()

    def fill(rng: np.random.Generator, per_gpu: int) -> Ints:
        chosen = np.empty(0, dtype=np.int64)
        while length[chosen].sum() < per_gpu:
            more = -(-(per_gpu - int(length[chosen].sum())) // int(length.mean())) + 1
            chosen = np.concatenate([chosen, rng.integers(length.size, size=more)])
        ends = np.cumsum(length[chosen])
        # Token i of the row of conversations is that many tokens behind the end of its conversation.
        which = np.searchsorted(ends, np.arange(per_gpu), side="right")
        return np.asarray(start[chosen][which] + np.arange(per_gpu) - (ends - length[chosen])[which])

    def draw(step: int) -> Routing:
        token_start = setting.token_start(step)
        each = np.diff(token_start).tolist()
        tokens = np.concatenate(
            [fill(setting.rng("source", "recorded", "conversations", step, gpu), many) for gpu, many in enumerate(each)]
        )
        repeats = 0 if length.size == 1 and step and steady else None
        return _dealt(trace, tokens, token_start, setting.model.experts, notes, repeats, columns=columns)

    return draw


def deal_recorded(trace: Trace, setting: Setting) -> Draw:
    """Replay the steps and source GPUs of the trace.

    Raises
    ------
    TraceError
        If the trace was recorded on another number of GPUs (:meth:`~moesim.facts.trace.Trace.fits_ranks`).
    """
    token_starts, step_start = recorded_steps(trace, setting.gpus)
    count = len(token_starts)
    fewer = trace.fits_ranks(setting.gpus)
    notes = (fewer,) if fewer else ()
    columns = _Columns()
    again = f"the trace {trace.name} holds {count} step{'s' if count > 1 else ''}: after that it is read again from its start"

    def draw(step: int) -> Routing:
        which = step % count
        here = slice(int(step_start[which]), int(step_start[which + 1]))
        return _dealt(
            trace,
            here,
            token_starts[which],
            setting.model.experts,
            (*notes, again) if step >= count else notes,
            which if step >= count else None,
            columns=columns,
        )

    return draw


def recorded_steps(trace: Trace, gpus: int) -> tuple[list[Ints], Ints]:
    """Return the steps of a trace and how the tokens of each are spread over GPUs.

    Parameters
    ----------
    trace : Trace
        With tokens.
    gpus : int
        G. A trace without sources is dealt in equal contiguous blocks; one that does not state its ranks leaves the last GPUs empty.

    Returns
    -------
    token_starts : list of int[G + 1]
        For each step, the bounds of the GPUs within the step.
    step_start : int[steps + 1]
        The bounds of the steps within the trace.

    Raises
    ------
    TraceError
        If the trace was recorded on another number of GPUs.
    """
    trace.fits_ranks(gpus)
    step = np.zeros(trace.tokens, dtype=np.int64) if trace.step is None else trace.step
    step_start = np.concatenate([[0], np.flatnonzero(np.diff(step)) + 1, [trace.tokens]]).astype(np.int64)
    if trace.source is None:
        return [blocks(int(size), gpus) for size in np.diff(step_start)], step_start
    starts = []
    for first, last in pairwise(step_start.tolist()):
        starts.append(np.searchsorted(trace.source[first:last], np.arange(gpus + 1)).astype(np.int64))
    return starts, step_start
