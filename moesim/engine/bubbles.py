"""When the stages of a pipeline have nothing to do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats
from moesim.facts.program import COMMUNICATION, COMPUTE, OPTIMISER, RECEIVE, SEND
from moesim.facts.record import Table


def covered(start: Floats, end: Floats) -> float:
    """Return the length of the union of intervals that are sorted by their start."""
    if not len(start):
        return 0.0
    reach = np.maximum.accumulate(end)
    gap = np.maximum(start[1:] - reach[:-1], 0.0).sum()
    return float(reach[-1] - start[0] - gap)


def bubble(spans: Table, numbers: NDArray[np.int64], gpus: int) -> tuple[Floats, Floats]:
    """Return float[steps, G] twice: how long a pipeline takes, and in how much of it each GPU neither computes nor exchanges tokens.

    A pipeline takes from the start of its first task to the end of the last pass on any GPU; gradients and the update of weights come
    after. Without hand-overs there is no pipeline, and both are 0.

    Parameters
    ----------
    spans : Table
        Of the measured steps.
    numbers : int[steps]
        Their numbers, consecutive.
    gpus : int
        G.
    """
    window, idle = np.zeros((len(numbers), gpus)), np.zeros((len(numbers), gpus))
    if not np.isin(spans["phase"], (SEND, RECEIVE)).any():
        return window, idle
    busy = spans.where(np.isin(spans["lane"], (COMPUTE, COMMUNICATION)) & (spans["phase"] != OPTIMISER))
    order = np.lexsort((busy["start_s"], busy["gpu"], busy["step"]))
    step, gpu, start, end = (busy[name][order] for name in ("step", "gpu", "start_s", "end_s"))
    for place, number in enumerate(numbers.tolist()):
        of_step = slice(*np.searchsorted(step, [number, number + 1]).tolist())
        took = float(end[of_step].max() - start[of_step].min())
        window[place] = took
        bounds = np.searchsorted(gpu[of_step], np.arange(gpus + 1)) + of_step.start
        idle[place] = [took - covered(start[a:b], end[a:b]) for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)]
    return window, idle
