"""The best replica choice there is: a linear program for each layer and batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from moesim.base.fields import Choice
from moesim.base.registry import register
from moesim.facts.arrays import Floats, Ints
from moesim.facts.contracts import Bind
from moesim.facts.placement import Placement
from moesim.facts.routing import Assignment, Kept
from moesim.facts.scenario import Setting
from moesim.models.dispatch.lp_split import optimal_split, whole_rows
from moesim.models.dispatch.replicas import Replicas, Rows, bind_rows


@register("dispatch", "lp")
@dataclass(frozen=True, slots=True, kw_only=True)
class LinearProgram:
    """Split each expert's rows over its replicas so that the most loaded rank is as light as it can be: SGLang's ``lp``, DeepSeek's LPLB.

    A linear program over the rows of all ranks of a group, padding included, layer by layer and step by step. It costs the real system an
    all-reduce of the counts and a solver in every layer; neither takes time here.

    Parameters
    ----------
    split : str
        ``whole`` rounds the solution to whole rows and gives every slot exactly those: a rank is then at most one row per replica above
        the optimum. ``sampled`` draws the slot of each row from the solution's shares, as SGLang does, so that loads scatter around it.

    Notes
    -----
    Rounding: :func:`~moesim.models.dispatch.lp_split.whole_rows`. The whole rows of a slot are spread evenly over the rows of its expert in
    the order of their sources, so every source splits nearly alike. Counts alone give the same loads as tokens under ``whole``.

    Source: sgl-project/sglang, ``python/sglang/srt/eplb/lplb_solver.py`` (0.5.23).
    """

    split: Annotated[str, Choice(("whole", "sampled"))] = "whole"

    def begin(self, setting: Setting) -> Bind:
        """Return the dispatch for one run."""
        ranks = setting.parallel.ep

        def bind(kept: Kept, placement: Placement, *, step: int, moe_layer: int) -> Assignment:
            def choose(rows: Rows, replicas: Replicas) -> Ints:
                load = (kept.routing.counts + kept.padding).reshape(-1, ranks, kept.routing.experts).sum(axis=1)
                best = np.stack([optimal_split(mine, replicas.expert_of_slot, placement.rank_of_slot, ranks=ranks).rows for mine in load])
                if self.split == "whole":
                    whole = np.stack([whole_rows(split, mine, replicas.expert_of_slot) for split, mine in zip(best, load, strict=True)])
                    return _dealt(rows, whole, replicas, ranks)
                draw = rows.draws(setting.rng("dispatch", "lp", step, moe_layer))
                return _drawn(rows, best, draw, replicas, ranks)

            return bind_rows(kept, placement, moe_layer=moe_layer, ranks=ranks, who="dispatch 'lp'", choose=choose)

        return bind


def _dealt(rows: Rows, whole: Ints, replicas: Replicas, ranks: int) -> Ints:
    """Return int[n]: the rows of an expert, in order, take slots so that slot s comes ``whole[group, s]`` times, evenly spread."""
    experts = len(replicas.number)
    pair = rows.source // ranks * experts + rows.expert
    order = np.argsort(pair, kind="stable")
    group, slot = np.nonzero(whole * (replicas.number > 1)[replicas.expert_of_slot])
    times = whole[group, slot]
    begin = np.cumsum(times) - times
    number = np.arange(times.sum()) - np.repeat(begin, times)
    moment = (number + 0.5) / np.repeat(times, times)  # when, of all rows of the expert from 0 to 1, this slot's row is due
    slot_of = np.repeat(slot, times)
    pair_of = np.repeat(group, times) * experts + replicas.expert_of_slot[slot_of]
    chosen = np.empty(len(pair), dtype=np.int64)
    chosen[order] = slot_of[np.lexsort((slot_of, moment, pair_of))]
    return chosen


def _drawn(rows: Rows, best: Floats, draw: Floats, replicas: Replicas, ranks: int) -> Ints:
    """Return int[n]: each row's slot, drawn from the shares of its expert's slots in its group."""
    group = rows.source // ranks
    by_expert = best[:, replicas.slots]
    until = np.cumsum(by_expert, axis=1)
    before = until - by_expert
    first, last = replicas.first[rows.expert], (replicas.first + replicas.number - 1)[rows.expert]
    begin = before[group, first]
    point = begin + draw * (until[group, last] - begin)
    chosen = np.empty(len(point), dtype=np.int64)
    for number in range(len(best)):
        mine = group == number
        chosen[mine] = np.searchsorted(until[number], point[mine], side="right")
    found: Ints = replicas.slots[np.clip(chosen, first, last)]
    return found
