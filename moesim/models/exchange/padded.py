"""Buffers of a fixed capacity, full or not: the all-to-all of DeepSpeed and Tutel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from moesim.base.errors import PluginError
from moesim.base.registry import register
from moesim.facts.arrays import Ints
from moesim.facts.routing import Assignment
from moesim.facts.scenario import Setting
from moesim.models.exchange.copies import copies_per_route, padding_rows
from moesim.models.exchange.transport import Carrier, Rows, Transport, there_and_back


@register("exchange", "padded")
@dataclass(frozen=True, slots=True, kw_only=True)
class Padded(Transport):
    """Send a buffer of C rows from every GPU to every expert, however many of them are filled; C is the capacity of the rule.

    So bytes do not depend on the routing, and no counts need to be exchanged before. A row is ``dispatch_width`` elements with their
    scales and nothing else: its place in the buffer says which expert it is for, and gate weights stay with the token. Combine returns
    every buffer, and backward sends the gradients of both, in bf16.

    A capacity rule that pads its buffers (``deepspeed``, ``megatron`` with ``pad_to_capacity``) has filled them already, and its rows are
    sent as they are. Under a rule that does not, empty rows are sent but not computed. With redundant experts every slot has a buffer of
    its own. A rule without a capacity (``dropless``) is refused.

    Its bandwidth is the algorithm bandwidth of nccl-tests: the send buffer of a GPU, its own share included, over time.

    Notes
    -----
    Source: deepspeedai/DeepSpeed, ``deepspeed/moe/sharded_moe.py``, ``MOELayer.forward`` (an all-to-all of E x C x M elements);
    microsoft/tutel, ``tutel/impls/moe_layer.py``.
    """

    def begin(self, setting: Setting) -> Carrier:
        """Return the exchange of one run."""
        return Carrier(
            plan=self,
            price=self.price(setting.model.dispatch_width),
            port=self.port(setting),
            held_sms=self.held_sms(setting),
            count=partial(_count, ranks=setting.parallel.ep),
        )


def buffer_padding(assignment: Assignment, who: str) -> Ints:
    """Return int[G, S], the empty rows of each source in each slot's buffer; those of the capacity rule where it pads.

    Raises
    ------
    PluginError
        On behalf of ``who``, if the capacity rule has no capacity.
    """
    capacity = assignment.kept.capacity
    if capacity is None:
        raise PluginError(
            f"{who} sends buffers of a fixed capacity, but the capacity rule has none: choose policy.capacity: {{rule: deepspeed}}, or "
            "{rule: megatron, factor: 1.25}, or exchange: {kind: direct, deduplicate: false}"
        )
    if assignment.slot_padding.any():
        return assignment.slot_padding
    empty: Ints = np.maximum(capacity[:, None] - assignment.slot_counts, 0)
    return empty


def _count(assignment: Assignment, *, ranks: int) -> Rows:
    full = replace(assignment, slot_padding=buffer_padding(assignment, "exchange 'padded'"))
    sent = (full.slot_counts + full.slot_padding).sum(axis=1)
    return there_and_back(((copies_per_route(full, ranks), padding_rows(full, ranks)),), sent)
