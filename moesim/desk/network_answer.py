"""What ``moesim network`` answers: one mapping for scripts. Its keys are a contract; add to them, do not rename."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moesim.facts.network import NetworkResult, Shortfall
from moesim.models.sharing.told import beyond_bound, without_compiler

SCHEMA = 1
UNITS = {"algbw": "B/s", "busbw": "B/s", "bandwidth": "B/s", "rate": "B/s", "port_bandwidth": "B/s", "size": "B"}
"""Of keys whose names do not end in their unit."""


def answer(
    result: NetworkResult,
    why: Shortfall | None,
    *,
    name: str,
    question: str,
    rows: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Return everything that was found out.

    Parameters
    ----------
    result : NetworkResult
        Of the traffic that is explained: the only one, or the last of a sweep.
    why : Shortfall or None
        Its explanation; None if nothing was sent.
    name : str
        Of the file's question.
    question : str
        What the traffic was, in words.
    rows : sequence of mapping
        The rows of a sweep.
    notes : sequence of str
        What a reader should know.
    """
    cluster = result.cluster
    sent = result.asked.sum()
    senders = np.count_nonzero(result.asked, axis=0)
    use = result.utilisation
    return {
        "schema": SCHEMA,
        "name": name,
        "question": question,
        "gpus": cluster.gpus,
        "nodes": cluster.nodes,
        "ranks": result.ranks,
        "basis": cluster.basis,
        "finish_s": result.finish,
        "algbw": result.algbw,
        "busbw": result.busbw,
        "bottleneck": None if why is None else cluster.link_names[why.bottleneck],
        "total_bytes": float(sent),
        "cross_node_share": float(result.asked[cluster.crosses_nodes()].sum() / sent) if sent else 0.0,
        "incast": {"degree": int(senders.max(initial=0)), "destination": int(senders.argmax()) if senders.any() else None},
        "why": None if why is None else explanation(result, why),
        "classes": classes(result),
        "rows": [dict(row) for row in rows],
        "links": [
            {
                "name": cluster.link_names[link],
                "bytes": float(result.carried[link]),
                "busy_s": float(result.busy[link]),
                "utilisation": float(use[link]),
                "link_class": cluster.link_class[link],
                "bandwidth": float(cluster.bandwidth[link]),
            }
            for link in range(cluster.links)
        ],
        "over_time": over_time(result),
        "sharing": dict(result.sharing),
        "notes": [*notes, *(note for note in (without_compiler(result.sharing), beyond_bound(result.sharing)) if note)],
        "units": UNITS,
    }


def explanation(result: NetworkResult, why: Shortfall) -> dict[str, Any]:
    """Return the chain from a mean port to the time taken, and what the bottleneck is."""
    cluster, link = result.cluster, why.bottleneck
    return {
        "port_class": why.port_class,
        "port_bandwidth": why.port_bandwidth,
        "ideal_s": why.ideal,
        "slowdown": why.slowdown,
        "share_of_port": why.share_of_port,
        "factors": dict(why.factors),
        "largest": max(why.factors, key=lambda name: why.factors[name]),
        "port_bound_s": why.port_bound,
        "link_bound_s": why.link_bound,
        "bottleneck": {
            "name": cluster.link_names[link],
            "link_class": cluster.link_class[link],
            "bandwidth": float(cluster.bandwidth[link]),
            "bytes": float(result.carried[link]),
            "busy_s": float(result.busy[link]),
            "utilisation": float(result.utilisation[link]),
            "flows": why.flows,
            "sources": why.sources,
            "destinations": why.destinations,
        },
    }


def classes(result: NetworkResult) -> list[dict[str, Any]]:
    """Return one row per class of links: how many there are, what they carried, how full they were on average and at most."""
    cluster, use = result.cluster, result.utilisation
    of = np.array(cluster.link_class)
    rows = []
    for name in dict.fromkeys(cluster.link_class):
        own = np.flatnonzero(of == name)
        fullest = int(own[np.argmax(use[own])])
        rows.append(
            {
                "link_class": name,
                "links": len(own),
                "bytes": float(result.carried[own].sum()),
                "mean_utilisation": float(use[own].mean()),
                "max_utilisation": float(use[fullest]),
                "fullest": cluster.link_names[fullest],
            }
        )
    return rows


def over_time(result: NetworkResult) -> dict[str, Any]:
    """Return the utilisation of each class of links in each bin of time: the mean over its links, and that of the fullest."""
    use, of = result.utilisation_over_time, np.array(result.cluster.link_class)
    found = {}
    for name in dict.fromkeys(result.cluster.link_class):
        own = use[:, of == name]
        found[name] = {"mean": own.mean(axis=1).tolist(), "max": own.max(axis=1, initial=0.0).tolist()}
    return {"edges_s": result.edges.tolist(), "classes": found}
