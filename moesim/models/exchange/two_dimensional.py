"""First all GPUs of a node, then all nodes: the 2DH all-to-all of Tutel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from moesim.base.fields import Flag
from moesim.base.registry import register
from moesim.facts.arrays import Ints
from moesim.facts.routing import Assignment
from moesim.facts.scenario import Setting
from moesim.models.exchange.copies import copies_per_route, padding_rows
from moesim.models.exchange.nodes import same_index_on_node_of, through, used
from moesim.models.exchange.padded import buffer_padding
from moesim.models.exchange.transport import Carrier, Rows, Stage, Transport


@register("exchange", "two_dimensional")
@dataclass(frozen=True, slots=True, kw_only=True)
class TwoDimensional(Transport):
    """Exchange within nodes first, so that each GPU holds what its whole node sends to its own local index, then across nodes.

    A row for GPU i of another node goes to GPU i of its own node, and from there to its destination; stages follow each other. Each GPU
    then sends one large message to each other node instead of many small ones. Every route is a row of ``dispatch_width`` elements with
    their scales and nothing else: the place in the buffer says which expert it is for. Combine does the same with the results, and backward
    with the gradients, in bf16. No row is sent twice over the same links, and none is left out: the bytes between nodes are those of
    ``direct`` with ``deduplicate: false``.

    Every node must hold as many ranks of a group as every other. In a group of one node there is one stage, of one rank per node likewise.
    Its bandwidth is the algorithm bandwidth of nccl-tests: the send buffer of a GPU, its own share included, over time.

    Parameters
    ----------
    padded : bool
        Every buffer of a source and a slot has the capacity of the rule, as in ``padded``; otherwise real rows are sent.

    Notes
    -----
    Source: Hwang et al., Tutel: Adaptive Mixture-of-Experts at Scale, MLSys 2023, "Two-Dimensional Hierarchical (2DH) All-to-All";
    microsoft/tutel, ``tutel/custom/custom_kernel.cpp``, ``nccl_all_to_all_2d_async``. The copies that align chunks in memory are not
    modelled.
    """

    padded: Flag = False

    def begin(self, setting: Setting) -> Carrier:
        """Return the exchange of one run.

        Raises
        ------
        PluginError
            If the ranks of a group are spread unevenly over nodes.
        """
        # The forwarder has the local index of the destination on the node of the source.
        via = same_index_on_node_of(setting, "exchange 'two_dimensional'").swapaxes(1, 2)
        price = self.price(setting.model.dispatch_width)
        count = partial(self._count, setting=setting, via=via)
        return Carrier(plan=self, price=price, port=self.port(setting), held_sms=self.held_sms(setting), count=count)

    def _count(self, assignment: Assignment, *, setting: Setting, via: Ints) -> Rows:
        who = "exchange 'two_dimensional' with padded: true"
        slot_padding = buffer_padding(assignment, who) if self.padded else assignment.slot_padding
        padded = replace(assignment, slot_padding=slot_padding)
        copies, padding = (rows(padded, setting.parallel.ep) for rows in (copies_per_route, padding_rows))
        sent = (padded.slot_counts + padded.slot_padding).sum(axis=1)
        return Rows(
            out=_legs(copies, padding, via, setting),
            home=_legs(copies.swapaxes(1, 2), padding.swapaxes(1, 2), via, setting),
            counted=sent.astype(np.float64),
        )


def _legs(copies: Ints, padding: Ints, via: Ints, setting: Setting) -> tuple[Stage, ...]:
    within, across = zip(through(copies, via), through(padding, via), strict=True)
    return tuple(reversed(used(across=(across[0], across[1]), within=(within[0], within[1]), setting=setting)))
