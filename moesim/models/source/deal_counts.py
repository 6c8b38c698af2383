"""Deal a trace that has only counts."""

from __future__ import annotations

import numpy as np

from moesim.base.errors import FidelityError
from moesim.facts.arrays import Ints
from moesim.facts.contracts import Draw
from moesim.facts.routing import LayerRouting, Routing
from moesim.facts.scenario import Setting
from moesim.facts.trace import Trace
from moesim.models.source.on_demand import LayersOnDemand


def split_evenly(counts: Ints, gpus: int) -> Ints:
    """Return int[G, E]: each expert's routes split over the GPUs as evenly as whole numbers allow.

    Parameters
    ----------
    counts : int[E]
        Routes to each expert.
    gpus : int
        G.

    Notes
    -----
    Every GPU gets the floor; what remains of an expert goes one each to the GPUs after the one that took the last remainder, in a
    ring. So both the loads of an expert and the sums of a GPU differ by at most one.

    Examples
    --------
    >>> split_evenly(np.array([3, 2]), 2).tolist()
    [[2, 1], [1, 1]]
    """
    even, remainder = np.divmod(counts, gpus)
    first = np.cumsum(remainder) - remainder
    after_first = (np.arange(gpus)[:, None] - first[None, :]) % gpus
    return np.asarray(even[None, :] + (after_first < remainder[None, :]))


def with_ranks(counts: Ints, ranks: int) -> Ints:
    """Return int[steps, L, ranks, E]: counts of fewer ranks, and no routes for the last ones."""
    return np.pad(counts, ((0, 0), (0, 0), (0, ranks - counts.shape[2]), (0, 0)))


def fewest_tokens(counts: Ints, top_k: int) -> Ints:
    """Return int[...], the fewest tokens that can make these counts: k routes each, at most one to the same expert.

    Parameters
    ----------
    counts : int[..., E]
        Routes to each expert.
    top_k : int
        k.
    """
    return np.asarray(np.maximum(-(-counts.sum(axis=-1) // top_k), counts.max(axis=-1)))


def deal_counts(trace: Trace, setting: Setting, *, assume_even: bool, conversations: bool) -> Draw:
    """Replay the counts of each recorded step.

    Raises
    ------
    FidelityError
        If conversations are asked for, or sources are unknown and no assumption was made.
    TraceError
        If the trace was recorded on another number of GPUs.
    """
    counts = trace.counts
    if counts is None or conversations:
        raise FidelityError(f"deal: conversations needs tokens, but the trace {trace.name} has {trace.fidelity} only; use deal: recorded")
    gpus, experts = setting.gpus, setting.model.experts
    notes: list[str] = []
    if trace.by_source:
        fewer = trace.fits_ranks(gpus)
        notes += [fewer] if fewer else []
        counts = with_ranks(counts, gpus)
    elif not assume_even:
        raise FidelityError(
            f"the trace {trace.name} has {trace.fidelity} only: it does not say which GPU a route starts on, so nobody knows what "
            f"crosses the network; write assume_sources: even to split each count evenly over the {gpus} GPUs, or record counts by source"
        )
    else:
        notes.append(f"assumed, not measured: the counts of the trace {trace.name} start in equal parts on each of the {gpus} GPUs")
    recorded = len(counts)
    per_gpu = setting.workload.tokens_per_gpu
    again = f"the trace {trace.name} holds {recorded} step{'s' if recorded > 1 else ''}: after that it is read again from its start"

    def draw(step: int) -> Routing:
        here = counts[step % recorded]
        routes = here if trace.by_source else np.stack([split_evenly(layer[0], gpus) for layer in here])
        if routes.shape[-1] < experts:  # the file does not state E, and its last experts were never chosen
            routes = np.pad(routes, ((0, 0), (0, 0), (0, experts - routes.shape[-1])))
        domains = None if trace.domain_counts is None else trace.domain_counts[step % recorded]
        if domains is not None and domains.min() < 0:  # not noted in this step
            domains = None
        tokens = fewest_tokens(routes, setting.model.top_k).max(axis=0)
        said = list(notes) + ([again] if step >= recorded else [])
        if np.any(np.abs(tokens - per_gpu) > 1):
            said.append(
                f"the trace {trace.name} has {int(tokens.min())} to {int(tokens.max())} tokens per GPU, not the {per_gpu} of "
                "workload.tokens_per_gpu: the counts are used as they are"
            )
        token_start = np.concatenate([[0], np.cumsum(tokens)])

        def layer(index: int) -> LayerRouting:
            return LayerRouting(
                experts=experts, token_start=token_start, counts=routes[index], domain_counts=None if domains is None else domains[index]
            )

        basis = "measured" if trace.by_source else "assumed"
        repeats = step % recorded if step >= recorded else None
        return Routing(layers=LayersOnDemand(layer, trace.layers), basis=basis, notes=tuple(said), repeats=repeats)

    return draw
