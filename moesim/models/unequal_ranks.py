"""By how much GPUs are ready before those of their group that have more tokens or longer contexts: arithmetic, without a clock."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moesim.facts.arrays import Floats
from moesim.facts.program import COLLECTIVES, COMMUNICATES, OPTIMISER, Program, Work


def waiting_for_slow_ranks(program: Program, seconds: Mapping[Work, Floats], ranks: int) -> Floats:
    """Return float[G], the seconds of a step by which each GPU is ready for exchanges before the slowest of its group.

    Between two exchanges of tokens every GPU computes what its own tokens ask for: attention, dense blocks, gate, shared experts. The next
    exchange cannot end before the slowest of the group is there; the others are ready for as long as they were faster, and what they have
    for each other may move meanwhile. Experts are left out, whose differences come from routing.

    Parameters
    ----------
    program : Program
    seconds : mapping of Work to float[G]
        Of every task that computes.
    ranks : int
        GPUs of an expert-parallel group.

    Returns
    -------
    float[G]
        Exact where nothing overlaps and exchanges hold every GPU until the last is there; with overlap, an upper estimate.
    """
    gpus = len(next(iter(seconds.values())))
    of_stage = gpus // program.stages
    waited, own = np.zeros(gpus), np.zeros(gpus)

    def meet(stage: int) -> None:
        here = slice(stage * of_stage, (stage + 1) * of_stage)
        groups = own[here].reshape(-1, ranks)
        waited[here] += (groups.max(axis=1, keepdims=True) - groups).ravel()
        own[here] = 0.0

    for task in program.tasks:
        phase = task.work.phase
        if phase in COLLECTIVES:
            meet(task.stage)
        elif phase not in COMMUNICATES and phase not in ("experts", OPTIMISER):
            here = slice(task.stage * of_stage, (task.stage + 1) * of_stage)
            own[here] += seconds[task.work][here]
    for stage in range(program.stages):
        meet(stage)
    return waited
