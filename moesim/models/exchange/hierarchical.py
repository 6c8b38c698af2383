"""One copy per destination node over the rail of the source, then NVLink: the normal kernels of DeepEP."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

import numpy as np

from moesim.base.fields import BytesPerSecond, Flag, ReadFile
from moesim.base.registry import register
from moesim.facts.arrays import Ints
from moesim.facts.profile_data import ProfileField
from moesim.facts.routing import Assignment
from moesim.facts.scenario import Setting
from moesim.models.exchange.copies import destinations, first_of_each, padding_rows, stays_home, without_own
from moesim.models.exchange.fitted_limits import normal_limits
from moesim.models.exchange.nodes import same_index_on_node_of, through, used
from moesim.models.exchange.transport import Carrier, Rows, Transport, there_and_back

META_BYTES = 8
ALIGNMENT = 16


@register("exchange", "hierarchical")
@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchical(Transport):
    """Send one copy of a token to each node that holds any of its experts, and let the GPU it lands on forward it inside the node.

    Dispatch has two stages. Across nodes, a token goes once to each other node that holds any of its experts, to the GPU of the source's
    own local index there: it stays on its rail. Within nodes, that GPU sends it to each GPU of the node that holds any of its experts and
    is not itself; so does the source in its own node. Combine is the reverse: the GPUs of a node send what they hold of a token to the
    forwarding one, which adds it up and returns one copy.

    A copy is ``dispatch_width`` elements with their scales, 8 bytes that say where it comes from and, in dispatch, a 4-byte index and a
    4-byte weight for each of the k choices, rounded up to 16 bytes. Backward is the reverse in bf16, with k gradients of gate weights on
    the way back to the tokens. Padding rows are forwarded one by one.

    Every node must hold as many ranks of a group as every other. In a group of one node there is one stage, of one rank per node likewise.
    Its bandwidth is DeepEP's: across nodes the RDMA bandwidth (a token counts once for each node that it goes to, its own included), in
    one node the NVLink bandwidth (tokens that a GPU receives, its own included); in both the payload without its routing.

    Parameters
    ----------
    pipelined : bool
        Both stages start together, as the kernels forward chunk by chunk; otherwise forwarding waits for all of the first stage.
    bandwidth_per_sm : float
        As in the other exchanges, but among 2 nodes of 8 Hopper GPUs with 4 SMs, where bytes of both stages count: 13.9 GB/s in dispatch
        and 10.7 GB/s in combine (``h100_sxm/comm/sglang/0.5.6.post2/wideep_deepep_normal_perf.parquet`` under the same folder). The
        default is their mean.
    profile : str or None
        A shipped profile's name, or the file of one: its sections of these kernels then say how long they take before the first byte, in
        place of
        ``launch``, and what a GPU sends at most. The cluster's efficiencies still apply: with ``nvlink_efficiency: 1`` the profile alone
        decides.
    fitted : profile or None
        What the profile holds; the loader fills it in.

    Notes
    -----
    Source: deepseek-ai/DeepEP, ``csrc/kernels/internode.cu``: ``get_num_bytes_per_token``, ``SourceMeta``, ``dispatch`` and ``combine``.
    """

    pipelined: Flag = True
    bandwidth_per_sm: BytesPerSecond = 12.3e9
    profile: Annotated[str, ReadFile(reader="profile/deepep_normal", into="fitted")] | None = None
    fitted: ProfileField | None = None

    def begin(self, setting: Setting) -> Carrier:
        """Return the exchange of one run.

        Raises
        ------
        PluginError
            If the ranks of a group are spread unevenly over nodes.
        """
        via = same_index_on_node_of(setting, "exchange 'hierarchical'")
        choices = setting.model.top_k
        price = self.price(setting.model.dispatch_width, choices=choices)
        price = replace(
            price,
            dispatch=_message(price.dispatch),
            combine=_message(price.combine),
            gradient_out=_message(price.gradient_out),
            gradient_home=_message(price.gradient_home),
        )
        count = partial(_count, setting=setting, via=via)
        each = {"dispatch": price.dispatch, "combine": price.combine}
        limits = None if self.fitted is None else normal_limits(self.fitted, setting, each, self.communication_sms)
        port, held = self.port(setting), self.held_sms(setting)
        return Carrier(plan=self, price=price, port=port, held_sms=held, count=count, pipelined=self.pipelined, limits=limits)


def _message(size: float) -> float:
    return float(-(-(size + META_BYTES) // ALIGNMENT) * ALIGNMENT)


def _count(assignment: Assignment, *, setting: Setting, via: Ints) -> Rows:
    gpus, ranks = setting.gpus, setting.parallel.ep
    across, within = np.zeros((2, gpus * ranks), dtype=np.int64)
    to_nodes = np.zeros(gpus, dtype=np.int64)
    received = np.zeros(gpus, dtype=np.int64)
    if not stays_home(assignment):
        source, columns = destinations(assignment, "exchange 'hierarchical'")
        node_of = setting.cluster.node_of
        # Ranks in the group of the source; where a token has no such choice, any number is as good as another.
        peers = columns % ranks
        forwarders = via.reshape(gpus, ranks)[source[None, :], peers]
        begin = source // ranks * ranks
        for choice, first in first_of_each(np.where(columns >= 0, node_of[columns], -1)):
            to_nodes += np.bincount(source[first], minlength=gpus)
            across += np.bincount(source[first] * ranks + forwarders[choice][first], minlength=gpus * ranks)
        for choice, first in first_of_each(columns):
            received += np.bincount(columns[choice][first], minlength=gpus)
            row = begin[first] + forwarders[choice][first]
            within += np.bincount(row * ranks + peers[choice][first], minlength=gpus * ranks)
    legs = tuple(without_own(leg.reshape(-1, ranks, ranks)) for leg in (across, within))
    padding = through(padding_rows(assignment, ranks), via)
    stages = used(across=(legs[0], padding[0]), within=(legs[1], padding[1]), setting=setting)
    groups = setting.cluster.node_of.reshape(-1, setting.parallel.ep)
    across_nodes = np.repeat((groups != groups[:, :1]).any(axis=1), setting.parallel.ep)
    return there_and_back(stages, np.where(across_nodes, to_nodes, received))
