"""On how many nodes the rows of a token are computed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moesim.facts.arrays import Ints
from moesim.facts.routing import Assignment
from moesim.models.compiled_loops import loops_for
from moesim.models.exchange.copies import destination_columns, first_of_each

UNKNOWN = -1


def nodes_touched(assignment: Assignment, node_of: Ints) -> int:
    """Return the nodes of the GPUs that compute rows of a token, its own node if it has any there, summed over tokens.

    Parameters
    ----------
    assignment : Assignment
        Of what travels.
    node_of : int[G]
        The node of each GPU.

    Returns
    -------
    int
        -1 where tokens are unknown. Two GPUs of one node count once, and a token without routes counts 0.
    """
    slots, routing = assignment.slots, assignment.kept.routing
    if slots is None or routing.ids is None:
        return UNKNOWN
    nodes = replace(assignment, destination=np.ascontiguousarray(node_of[assignment.destination], dtype=np.int64))
    loops = loops_for(slots, nodes.destination) if slots.dtype == np.int32 else None
    if loops is not None:
        # Nodes take the place of GPUs, all of which are one group here.
        return int(loops.tokens_between(slots, routing.token_start, nodes.destination, routing.gpus).sum())
    columns = destination_columns(nodes, routing.source_of_token())
    return sum(int(first.sum()) for _, first in first_of_each(columns))
