"""Dropping by device, as in the training of DeepSeek-V2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from moesim.base.fields import Count, Number, Positive
from moesim.base.registry import register
from moesim.facts.arrays import Bools, Ints
from moesim.facts.contracts import Limit
from moesim.facts.routing import Kept, LayerRouting
from moesim.facts.scenario import Setting
from moesim.models.capacity.orders import by_weight
from moesim.models.capacity.scopes import experts_per_rank
from moesim.models.capacity.survivors import keep_in_queues, leave

WHO = "capacity rule 'deepseek_v2'"


@register("capacity", "deepseek_v2")
@dataclass(frozen=True, slots=True, kw_only=True)
class DeepSeekV2:
    """Send every route; a device computes factor times its mean share of all routes, and drops those of the lowest gate weight.

    The budget is ceil(factor T k / D) rows, for all experts of a device together, with T the tokens and D the devices of an
    expert-parallel group and k the choices of a token. Tokens of some sequences are never dropped, not even where they alone exceed
    the budget. Gate weights are not renormalised.

    Parameters
    ----------
    factor : float
        Of the mean load of a device: 1.0 in the paper.
    exempt : float
        The share of sequences that are never dropped, about 0.1 in the paper. Each sequence is drawn on its own, for all layers of a step.
    sequence : int
        Tokens of a sequence: so many tokens of a GPU in a row. 4096 in the paper; a GPU with fewer tokens has one sequence.

    Notes
    -----
    Source: DeepSeek-AI, arXiv:2405.04434, section 2.2.4 (Token-Dropping Strategy); that single routes are dropped by routing probability:
    deepseek-ai/DeepSeek-V2 issue 5. Not published, and assumed here: the rounding; which sequences are exempt; and that rows are dropped
    where they arrive, which is where a device can compare them, so that dropping saves compute and no communication. Equal weights:
    the lower source rank and the earlier token stay. Experts that share a device are those of the contiguous placement.
    """

    by_rank: ClassVar[bool] = True

    factor: Positive = 1.0
    exempt: Annotated[float, Number(0.0, 1.0)] = 0.1
    sequence: Count = 4096

    def begin(self, setting: Setting) -> Limit:
        """Return the rule for one run; it draws exempt sequences from the stream ``capacity, deepseek_v2, step``."""
        ranks = setting.parallel.ep
        local = experts_per_rank(setting, WHO)

        def limit(routing: LayerRouting, *, step: int, moe_layer: int) -> Kept:  # noqa: ARG001 - the contract of the slot
            choices = setting.model.top_k if routing.ids is None else routing.ids.shape[1]
            tokens = np.diff(routing.token_start).reshape(-1, ranks).sum(axis=1)
            budget = np.ceil(self.factor * (tokens * choices / ranks)).astype(np.int64).repeat(ranks)
            arrived = routing.counts.reshape(-1, ranks, ranks, local).sum(axis=(1, 3)).ravel()
            room = int(budget.sum())
            if (arrived <= budget).all():
                there = None if routing.ids is None else np.asarray(routing.ids >= 0)
                return leave(routing, counts=routing.counts, keep=there, weights=routing.weights, room=room, at_receiver=True)
            ids = routing.need_ids(WHO)
            weights = routing.need_weights(WHO)
            spared = exempt_tokens(routing, setting.rng("capacity", "deepseek_v2", step), self.exempt, self.sequence)
            keep = keep_by_device(np.asarray(ids), routing.source_of_token(), by_weight(weights), spared, budget, local, ranks)
            return leave(routing, keep=keep, weights=routing.weights, room=room, at_receiver=True)

        return limit


def exempt_tokens(routing: LayerRouting, rng: np.random.Generator, share: float, sequence: int) -> Bools:
    """Return bool[T]: whether a token belongs to a sequence that is never dropped.

    Parameters
    ----------
    routing : LayerRouting
        For the tokens of each GPU.
    rng : numpy.random.Generator
        One draw per sequence, GPU after GPU.
    share : float
        The probability of each sequence.
    sequence : int
        Tokens of a sequence; the last one of a GPU may be shorter.
    """
    tokens = np.diff(routing.token_start)
    sequences = -(-tokens // sequence)
    spared = rng.random(int(sequences.sum())) < share
    first = np.cumsum(sequences) - sequences
    within = np.arange(routing.tokens) - np.repeat(routing.token_start[:-1], tokens)
    return np.asarray(spared[np.repeat(first, tokens) + within // sequence])


def keep_by_device(ids: Ints, source: Ints, order: Ints, spared: Bools, budget: Ints, experts_per_rank: int, ranks: int) -> Bools:
    """Keep the routes that their device has room for: first all those of spared tokens, then the first in ``order``.

    Parameters
    ----------
    ids : int[T, k]
        Experts; -1 for none.
    source : int[T]
        The GPU of each token.
    order : int[T, k]
        See :mod:`~moesim.models.capacity.orders`.
    spared : bool[T]
        Tokens that are never dropped.
    budget : int[G]
        Rows of each device.
    experts_per_rank, ranks : int
        Neighbouring experts on one rank, ranks of a group.
    """
    there: Bools = np.array(ids >= 0, order="C")
    # A device that no choice names may come out here for -1; such choices do not compete.
    device = (source // ranks * ranks)[:, None] + ids.astype(np.int64) // experts_per_rank
    safe = there & spared[:, None]
    room = np.maximum(budget - np.bincount(device[safe], minlength=len(budget)), 0)
    compete: Bools = there & ~safe
    length = np.bincount(device[compete], minlength=len(budget))
    return np.asarray(safe | keep_in_queues(compete, device, length, room, order))
