"""GPUs that forward for others: bytes between rails leave a node through the card of the right rail (PXN)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moesim.base.errors import FieldError
from moesim.facts.arrays import Ints
from moesim.facts.cluster import Cluster


def check_pxn(*, pxn: bool, rail_optimised: bool) -> None:
    """Refuse PXN where there are no rails.

    Raises
    ------
    FieldError
        At ``pxn``.
    """
    if pxn and not rail_optimised:
        message = "pxn: true sends bytes out through the card of the destination's rail, and without rails any card reaches any other alike"
        raise FieldError("pxn", f"{message}: write rail_optimised: true, or leave pxn out")


def rail_peers(domain_of: Ints, rails: int) -> Ints:
    """Return int[G, G]: for every pair, the GPU beside the source that is on the destination's rail.

    Inside an NVLink domain, and where source and destination are on one rail, it is the source itself: nobody forwards. GPU ``i`` is on
    rail ``i % rails``, and beside it are the ``rails`` GPUs of its node or tray.

    Examples
    --------
    >>> rail_peers(np.array([0, 0, 1, 1]), 2).tolist()
    [[0, 0, 0, 1], [1, 1, 0, 1], [2, 3, 2, 2], [2, 3, 3, 3]]
    """
    gpu = np.arange(len(domain_of))
    peer = (gpu // rails * rails)[:, None] + (gpu % rails)[None, :]
    return np.where(domain_of[:, None] == domain_of[None, :], gpu[:, None], peer)


def forwarded(cluster: Cluster, via: Ints) -> Cluster:
    """Return the cluster with routes that pass a third GPU.

    Parameters
    ----------
    cluster : Cluster
        With direct routes.
    via : int[G, G]
        The GPU that forwards for each pair; the source itself where none does.

    Returns
    -------
    Cluster
        The route of a pair is the direct one to the forwarding GPU, followed by the direct one from there. The links at both sides of
        the forwarding GPU carry the bytes, and the latencies add up.

    Notes
    -----
    This is how NCCL's PXN moves data: the sender writes over NVLink into a buffer of the GPU beside the card, and the card reads it from
    there ("Doubling all2all Performance with NVIDIA Collective Communication Library 2.12", NVIDIA technical blog, 2022).
    The two steps overlap, chunk by chunk, which a fluid model takes for one flow over all of the links.
    """
    gpus = cluster.gpus
    gpu = np.arange(gpus)
    pairs = np.stack((gpu[:, None] * gpus + via, via * gpus + gpu[None, :]), axis=-1).ravel()
    lengths = np.diff(cluster.route_start)[pairs]
    ends = np.cumsum(lengths)
    # Each piece is a run of the old routes: a running number, moved to where the piece begins.
    place = np.arange(int(ends[-1])) + np.repeat(cluster.route_start[pairs] - (ends - lengths), lengths)
    return replace(cluster, route_start=np.concatenate(([0], ends[1::2])), route_link=cluster.route_link[place])
