"""What a recording says by itself: how its loads are spread, and what a capacity rule would drop of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moesim.base.errors import UsageError
from moesim.base.loads import coefficient_of_variation, dead, gini, max_over_mean, maxvio, normalised_entropy
from moesim.facts.arrays import Ints
from moesim.facts.contracts import Limit
from moesim.facts.routing import Fidelity, LayerRouting
from moesim.facts.scenario import Setting
from moesim.facts.trace import Trace
from moesim.models.bare_setting import bare_setting
from moesim.models.source.deal_counts import fewest_tokens, with_ranks
from moesim.models.source.deal_tokens import recorded_steps

NO_SOURCES = "the trace does not say on which rank a route starts, and the rule acts on each rank by itself"
NO_TOP_K = "the trace does not say how many experts a token chooses, and a capacity is a share of that"
NO_TOKENS = "the trace has counts only: nobody knows which routes belong to one token"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Whether a trace can answer a question, and if not, why."""

    question: str
    possible: bool
    reason: str = ""


def questions(trace: Trace) -> tuple[Answer, ...]:
    """Return which questions a trace can answer, and which it cannot."""
    knows = trace.fidelity
    tokens = "it has counts only, not the experts of each token"
    return (
        Answer(question="load of each expert and, under a placement, of each rank", possible=True),
        Answer(
            question="bytes between ranks, and drops of a capacity per rank",
            possible=knows >= Fidelity.COUNTS_BY_SOURCE,
            reason="it does not say on which rank a route starts",
        ),
        Answer(question="tokens that lose all their routes, and experts chosen together", possible=knows >= Fidelity.TOKENS, reason=tokens),
        Answer(
            question="which routes a rule drops that goes by gate weight",
            possible=knows >= Fidelity.WEIGHTS,
            reason=tokens if knows < Fidelity.TOKENS else "it has no gate weights (array gate)",
        ),
        Answer(
            question="what another gate would have chosen",
            possible=knows >= Fidelity.SCORES,
            reason="it has no scores over all experts (array scores)",
        ),
        Answer(
            question="differences between conversations",
            possible=trace.sample_length is not None,
            reason="it does not say where conversations begin (array sample_len)",
        ),
        Answer(
            question="changes from step to step",
            possible=trace.step is not None or (trace.counts is not None and len(trace.counts) > 1),
            reason="it does not number its steps: it counts as one step",
        ),
    )


def with_shape(trace: Trace, *, experts: int | None, top_k: int | None) -> Trace:
    """Return the trace with E or k put in where the file does not state them.

    Raises
    ------
    UsageError
        If the file states another number, or holds an expert beyond ``experts``.
    """
    if experts is not None and experts != trace.experts:
        if trace.experts_stated:
            raise UsageError(f"--experts {experts} contradicts the trace {trace.name}, which says it has {trace.experts} experts")
        if experts < trace.experts:
            raise UsageError(f"--experts {experts} is too small: the trace {trace.name} uses expert {trace.experts - 1}")
        counts = trace.counts
        if counts is not None:
            counts = np.pad(counts, ((0, 0), (0, 0), (0, 0), (0, experts - trace.experts)))
        trace = replace(trace, experts=experts, counts=counts)
    if experts is not None:
        trace = replace(trace, experts_stated=True)
    if top_k is not None and top_k != trace.top_k:
        if trace.top_k:
            raise UsageError(f"--top-k {top_k} contradicts the trace {trace.name}, which has {trace.top_k} choices per token")
        trace = replace(trace, top_k=top_k)
    return trace


def ranks_of(trace: Trace) -> int:
    """Return how many ranks the trace was recorded on, as far as it says, or 1 if it does not."""
    return trace.named_ranks or 1


def why_no_drops(trace: Trace, ranks: int) -> str:
    """Return why nobody can say what a capacity rule would drop of this trace; empty if one can."""
    if trace.ids is not None:
        return ""
    if not trace.by_source and ranks > 1:
        return NO_SOURCES
    return "" if trace.top_k else NO_TOP_K


def layer_statistics(trace: Trace, *, ranks: int, begin: Callable[[Setting], Limit] | None) -> list[dict[str, Any]]:
    """Return one row for each layer: what is dropped, and how the load is spread.

    Parameters
    ----------
    trace : Trace
        A trace without source ranks is dealt in equal contiguous blocks, one without steps counts as one step.
    ranks : int
        W, expert-parallel ranks. A rank computes a contiguous block of E / W experts.
    begin : callable or None
        The ``begin`` of a capacity rule; None where nobody can say what it would drop (:func:`why_no_drops`).

    Returns
    -------
    list of dict
        Sums over the steps. Loads (``expert_*``, ``rank_*``) are routes before drops; ``rank_rows_max`` and ``rank_rows_mean`` are the
        rows that a rank computes, after drops and with padding. None where the trace cannot tell, or where the experts do not
        divide over the ranks. ``fully_dropped`` counts tokens that had a route and keep none.

    Raises
    ------
    TraceError
        If the trace was recorded on another number of ranks.
    """
    tokens_per_rank = -(-trace.tokens // ranks)
    setting = bare_setting(
        gpus=ranks,
        experts=trace.experts,
        top_k=trace.top_k or 1,
        layers=trace.layers,
        tokens_per_gpu=max(tokens_per_rank, 1),
        seed=0,
        read_trace=_no_file,
        name=trace.name,
    )
    limit = None if begin is None else begin(setting)
    trace.fits_ranks(ranks)
    rows = []
    for index in range(trace.layers):
        load, computed = np.zeros((2, trace.experts), dtype=np.int64)
        tokens, dropped, fully, capacity = 0, 0, 0, 0
        for step, routing in enumerate(_steps(trace, index, ranks)):
            load += routing.counts.sum(axis=0)
            tokens += routing.tokens
            if limit is None:
                continue
            kept = limit(routing, step=step, moe_layer=index)
            computed += (kept.routing.counts + kept.padding).sum(axis=0)
            dropped += int(kept.dropped.sum())
            fully += kept.fully_dropped or 0
            capacity = max(capacity, 0 if kept.capacity is None else int(kept.capacity.max()))
        routes = int(load.sum())
        known = limit is not None
        row: dict[str, Any] = {"layer": index}
        if trace.layer_numbers is not None:
            row["model_layer"] = int(trace.layer_numbers[index])
        row |= {
            "tokens": tokens if trace.ids is not None or trace.top_k else None,
            "routes": routes,
            "dropped": dropped if known else None,
            "drop_rate": (dropped / routes if routes else 0.0) if known else None,
            "fully_dropped": fully if known and trace.ids is not None else None,
            "capacity": capacity or None,
        }
        divides = not trace.experts % ranks
        row |= _spread("expert", load) | _spread("rank", load.reshape(ranks, -1).sum(axis=1) if divides else None)
        of_rank = computed.reshape(ranks, -1).sum(axis=1) if divides and known else None
        row["rank_rows_max"] = None if of_rank is None else int(of_rank.max())
        row["rank_rows_mean"] = None if of_rank is None else float(of_rank.mean())
        rows.append(row)
    return rows


def _no_file(path: str, **options: Any) -> Trace:
    raise UsageError(f"a capacity rule asked for the file {path} ({options}), which it has no business with")


def _steps(trace: Trace, layer: int, ranks: int) -> Iterator[LayerRouting]:
    """Yield the steps of one layer."""
    if trace.ids is not None:
        starts, step_start = recorded_steps(trace, ranks)
        for which, token_start in enumerate(starts):
            here = slice(int(step_start[which]), int(step_start[which + 1]))
            yield LayerRouting.of_tokens(
                trace.ids[here, layer].astype(np.int32),
                token_start,
                trace.experts,
                weights=None if trace.weights is None else trace.weights[here, layer].astype(np.float32),
                scores=None if trace.scores is None else trace.scores[here, layer].astype(np.float32),
            )
    elif trace.counts is not None:
        for step in with_ranks(trace.counts, ranks) if trace.by_source else trace.counts:
            tokens = fewest_tokens(step[layer], trace.top_k or 1)
            yield LayerRouting(experts=trace.experts, token_start=np.concatenate([[0], np.cumsum(tokens)]), counts=step[layer])


def _spread(whose: str, load: Ints | None) -> dict[str, Any]:
    """Return the measures of imbalance of one load, None for all if there is no load."""
    names = ("max", "mean", "max_over_mean", "maxvio", "coefficient_of_variation", "gini", "normalised_entropy")
    if load is None:
        return {f"{whose}_{name}": None for name in names} | {f"dead_{whose}s": None}
    values = (
        int(load.max()),
        float(load.mean()),
        *(float(measure(load)) for measure in (max_over_mean, maxvio, coefficient_of_variation, gini, normalised_entropy)),
    )
    return {f"{whose}_{name}": value for name, value in zip(names, values, strict=True)} | {f"dead_{whose}s": int(dead(load))}
