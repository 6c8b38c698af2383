"""Replay a recording of real routing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from moesim.base.errors import TraceError
from moesim.base.fields import Choice, File, Text
from moesim.base.registry import register
from moesim.facts.contracts import Draw
from moesim.facts.model import MoeModel
from moesim.facts.scenario import Setting
from moesim.facts.trace import Trace
from moesim.models.source.deal_counts import deal_counts
from moesim.models.source.deal_tokens import deal_conversations, deal_in_order, deal_recorded


@register("source", "recorded")
@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """Deal the tokens (or counts) of a trace file to GPUs and steps.

    Parameters
    ----------
    trace : str
        The file.
    task : str or None
        Which task, for a file of counts that holds several.
    deal : str
        ``in_order``: every GPU takes the next ``tokens_per_gpu`` tokens, a step goes on where the last one ended, and the trace is
        read again from its start when it ends. ``conversations``: every GPU fills its tokens with whole conversations drawn at
        random with replacement, the last one cut. ``recorded``: steps and source GPUs as the trace has them; a trace without
        sources is dealt in equal blocks, one without steps is one step. The trace must have the cluster's number of ranks; if it does
        not state a number, it may name fewer, and the last GPUs have no tokens.
    assume_sources : str or None
        ``even`` splits counts that do not say where their routes start evenly over the GPUs. That is an assumption, and every
        result says so.

    Notes
    -----
    A trace of counts knows no tokens: it is replayed step by step as it was recorded, whatever ``tokens_per_gpu`` says.
    """

    trace: File
    task: Text | None = None
    deal: Annotated[str, Choice(("in_order", "conversations", "recorded"))] = "in_order"
    assume_sources: Annotated[str, Choice(("even",))] | None = None

    def begin(self, setting: Setting) -> Draw:
        """Return the draws of one run.

        Raises
        ------
        TraceError
            If the trace belongs to another model or cluster, or says itself what each rank has while the workload does too.
        FidelityError
            If the trace lacks what the deal needs.
        """
        trace = setting.read_trace(self.trace) if self.task is None else setting.read_trace(self.trace, task=self.task)
        check_fits(trace, setting.model)
        if setting.workload.ranks is not None and (trace.ids is None or self.deal == "recorded"):
            how = "deal: recorded" if trace.ids is not None else f"a trace of {trace.fidelity}"
            raise TraceError(f"{how} says itself how many tokens each GPU has: leave workload.ranks out, or deal tokens in another way")
        if trace.ids is None:
            return deal_counts(trace, setting, assume_even=self.assume_sources == "even", conversations=self.deal == "conversations")
        deal = {"in_order": deal_in_order, "conversations": deal_conversations, "recorded": deal_recorded}[self.deal]
        return deal(trace, setting)


def check_fits(trace: Trace, model: MoeModel) -> None:
    """Refuse a trace of another model.

    Raises
    ------
    TraceError
        Naming both numbers; of an expert that the model does not have, also its place in the trace.
    """
    fix = "choose the model that was recorded, or another trace"
    if trace.layers != len(model.moe_layers):
        raise TraceError(
            f"the trace {trace.name} has {trace.layers} MoE layers, but the model {model.name} has {len(model.moe_layers)}; {fix}"
        )
    if trace.experts > model.experts and not trace.experts_stated:
        raise TraceError(
            f"the trace {trace.name}: {_first_beyond(trace, model.experts)} does not exist in the model {model.name}, whose experts are "
            f"0 to {model.experts - 1}; {fix}, or write -1 for no choice (some engines fill up with 255)"
        )
    if trace.experts != model.experts and trace.experts_stated:
        raise TraceError(f"the trace {trace.name} has {trace.experts} experts, but the model {model.name} has {model.experts}; {fix}")
    if trace.top_k and trace.top_k != model.top_k:
        raise TraceError(
            f"the trace {trace.name} has {trace.top_k} choices per token, but the model {model.name} has top_k {model.top_k}; {fix}"
        )


def _first_beyond(trace: Trace, experts: int) -> str:
    """Return the place and the number of the first expert of a trace that is beyond so many."""
    if trace.ids is not None:
        token, layer, choice = (int(index[0]) for index in np.nonzero(trace.ids >= experts))
        return f"array ids: token {token}, layer {layer}, choice {choice}: expert {int(trace.ids[token, layer, choice])}"
    counts = np.asarray(trace.counts)[..., experts:]
    if not counts.any():
        return f"expert {trace.experts - 1} (which is named, with no routes)"
    step, layer, source, expert = (int(index[0]) for index in np.nonzero(counts))
    routes = int(counts[step, layer, source, expert])
    number = layer if trace.layer_numbers is None else int(trace.layer_numbers[layer])
    where = f"step {step}, layer {number}, source {source}" if trace.by_source else f"step {step}, layer {number}"
    return f"{where}: expert {experts + expert} (of {routes} routes)"
