"""The capacities of FastMoE's three gates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from moesim.base.errors import FieldError, PluginError
from moesim.base.fields import Choice, Flag, Positive
from moesim.base.registry import register
from moesim.facts.arrays import Bools, Ints
from moesim.facts.contracts import Limit
from moesim.facts.routing import Kept, LayerRouting
from moesim.facts.scenario import Setting
from moesim.models.capacity.orders import by_position, by_weight, rank_of_choice
from moesim.models.capacity.scopes import by_group, experts_per_rank
from moesim.models.capacity.survivors import keep_first, leave

WHO = "capacity rule 'fastmoe'"


@register("capacity", "fastmoe")
@dataclass(frozen=True, slots=True, kw_only=True)
class FastMoe:
    """Cap what an expert takes as FastMoE's gates do: from each GPU (GShardGate) or from all of them (SwitchGate, DCGate), at random.

    With T tokens of a GPU, k choices, E experts, E / W of them on each of W ranks, and the factor r: ``gshard`` takes
    floor(ceil(r T) k / E) from each GPU; ``switch`` takes ceil(r T / (E / W)) from all GPUs of the group together, ``dc`` ceil(r T). For
    these two the receiver serves whole sources, one after another, and tells them how many it takes. Dropped before the dispatch:
    nothing that is dropped travels, nothing is padded. Gate weights are not renormalised.

    Parameters
    ----------
    gate : str
        ``gshard``, ``switch`` (one choice per token) or ``dc`` (two).
    factor : float
        1.2 in training and 2.4 in evaluation are FastMoE's defaults.
    order : str
        FastMoE serves in the order of atomic counters on the GPU, which nobody can foretell. ``random`` draws an order of sources and of
        routes; ``position`` takes the lower rank and the earlier token first.
    random_routing : bool
        After all this, drop the second choice of a token if twice its score is below a uniform draw, whoever else might have used its row;
        not for ``switch``. FastMoE compares the router's raw output, so scores are needed.

    Notes
    -----
    Source: laekov/fastmoe, ``fmoe/gates/{gshard_gate,switch_gate,dc_gate,utils}.py`` and ``cuda/balancing.cuh``. The exchange of counts
    before the dispatch costs a small all-to-all that is not modelled. Where GPUs differ in T, ``switch`` and ``dc`` take the largest of
    the group.
    """

    gate: Annotated[str, Choice(("gshard", "switch", "dc"))] = "gshard"
    factor: Positive = 1.2
    order: Annotated[str, Choice(("random", "position"))] = "random"
    random_routing: Flag = False

    def __post_init__(self) -> None:
        if self.random_routing and self.gate == "switch":
            raise FieldError(
                "random_routing", "random_routing: true drops second choices, and gate: switch makes none; leave one of them out"
            )

    def begin(self, setting: Setting) -> Limit:
        """Return the rule for one run; it draws from the streams ``capacity, fastmoe, (routes | sources | second), step, layer``.

        Raises
        ------
        PluginError
            If the model's tokens make another number of choices than the gate.
        """
        wanted = {"switch": 1, "dc": 2}.get(self.gate, 2 if self.random_routing else setting.model.top_k)
        if setting.model.top_k != wanted:
            what = f"gate: {self.gate}" if self.gate != "gshard" else "random_routing: true"
            raise PluginError(
                f"{WHO}: {what} is for {wanted} choice(s) per token, but the model has top_k {setting.model.top_k}; write gate: gshard"
                f"{' without random_routing' if self.random_routing else ''}"
            )
        ranks = setting.parallel.ep
        local = experts_per_rank(setting, WHO) if self.gate == "switch" else 1

        def limit(routing: LayerRouting, *, step: int, moe_layer: int) -> Kept:
            choices = setting.model.top_k if routing.ids is None else routing.ids.shape[1]
            capacity, room = None, None
            if self.gate == "gshard":
                capacity = gshard_gate_capacity(np.diff(routing.token_start), choices, routing.experts, self.factor)
                counts = np.minimum(routing.counts, capacity[:, None])
            else:
                tokens = np.diff(routing.token_start).reshape(-1, ranks).max(axis=1)
                taken = np.ceil(self.factor * tokens / local).astype(np.int64)
                turn = self._turns(setting.rng("capacity", "fastmoe", "sources", step, moe_layer), routing, ranks)
                counts, room = source_after_source(routing, taken, turn, ranks), int(taken.sum()) * routing.experts
            keep = None
            if routing.ids is not None:
                keep = keep_first(routing, counts, self._queue(setting, routing, step, moe_layer))
            if self.random_routing:
                stays = second_stays(routing, setting.rng("capacity", "fastmoe", "second", step, moe_layer))
                keep = stays if keep is None else stays & keep
                return leave(routing, keep=keep, weights=routing.weights, capacity=capacity, room=room)
            return leave(routing, counts=counts, keep=keep, weights=routing.weights, capacity=capacity, room=room)

        return limit

    def _turns(self, rng: np.random.Generator, routing: LayerRouting, ranks: int) -> Ints:
        groups = routing.gpus // ranks
        shape = (groups, ranks, routing.experts)
        if self.order == "position":
            return np.broadcast_to(np.arange(ranks)[None, :, None], shape)
        return np.argsort(rng.random(shape), axis=1)

    def _queue(self, setting: Setting, routing: LayerRouting, step: int, moe_layer: int) -> Ints:
        if self.order == "position":
            return by_position(routing)
        shape = routing.need_ids(WHO).shape
        return by_weight(setting.rng("capacity", "fastmoe", "routes", step, moe_layer).random(shape, dtype=np.float32))


def gshard_gate_capacity(tokens: Ints, top_k: int, experts: int, factor: float) -> Ints:
    """Return int[G], routes that each expert takes from each source: floor(ceil(r T) k / E).

    Source: laekov/fastmoe, ``fmoe/gates/gshard_gate.py``.

    Examples
    --------
    >>> gshard_gate_capacity(np.array([50, 64]), 2, 7, 1.2).tolist()
    [17, 22]
    """
    capacity: Ints = np.ceil(factor * tokens).astype(np.int64) * top_k // experts
    return capacity


def source_after_source(routing: LayerRouting, taken: Ints, turn: Ints, ranks: int) -> Ints:
    """Return int[G, E], how many routes each expert takes from each source if it serves whole sources in turn until it is full.

    Parameters
    ----------
    routing : LayerRouting
        Its counts.
    taken : int[groups]
        Routes that an expert takes from all sources of its group.
    turn : int[groups, ranks, E]
        The source that an expert serves first, second and so on.
    ranks : int
        GPUs of a group.
    """
    asked = np.take_along_axis(by_group(routing.counts, ranks), turn, axis=1)
    before = np.cumsum(asked, axis=1) - asked
    served = np.clip(taken[:, None, None] - before, 0, asked)
    counts = np.empty_like(served)
    np.put_along_axis(counts, np.asarray(turn), served, axis=1)
    return counts.reshape(routing.counts.shape)


def second_stays(routing: LayerRouting, rng: np.random.Generator) -> Bools:
    """Return bool[T, 2]: false for a second choice whose score, doubled, is below a uniform draw.

    Raises
    ------
    FidelityError
        If the routing has no scores.
    """
    who = f"{WHO} with random_routing: true"
    ids, scores = routing.need_ids(who), routing.need_scores(who)
    score = np.take_along_axis(scores, np.maximum(ids.astype(np.int64), 0), axis=1)
    second = rank_of_choice(score) == 1
    draws = rng.random(len(ids), dtype=np.float32)
    return np.asarray(~(second & (2 * score < draws[:, None])) & (ids >= 0))
