"""What the bars of a timeline stand for: the kind of each span, which has a colour and a strip of a GPU's row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.facts.program import GRADIENTS, GROUP_CALLS, OPTIMISER, PIPELINE, RECEIVE, RECOMPUTE, SEND, TENSOR_CALLS
from moesim.facts.record import Table

LABELS = {
    "recompute": "computed again",
    "gradients": "gradients",
    "hand_over": "to the next stage",
    "bubble": "waits for another stage",
}
"""What kinds are called that are no part of a GPU's step by themselves."""


def kinds(spans: Table) -> NDArray[np.str_]:
    """Return the kind of each span, a key of :data:`moesim.desk.report.style.COLOURS`."""
    phase = spans["phase"]
    found = np.where(phase == "attention_core", "attention", phase).astype("<U24")
    found[np.isin(phase, GROUP_CALLS)] = GRADIENTS
    found[np.isin(phase, TENSOR_CALLS)] = "tensor"
    found[phase == OPTIMISER] = "optimiser"
    found[phase == SEND] = "hand_over"
    found[phase == RECEIVE] = "bubble"
    found[(spans["direction"] == RECOMPUTE) & (spans["lane"] == "compute")] = "recompute"
    return found


def strips(spans: Table) -> NDArray[np.int64]:
    """Return in which strip of its GPU's row each span is: 0 computing, 1 exchanging tokens, 2 what goes on beside both."""
    beside = (spans["lane"] == GRADIENTS) | ((spans["lane"] == PIPELINE) & (spans["phase"] == SEND))
    upper = (spans["lane"] == "compute") | (spans["phase"] == RECEIVE)
    return np.where(beside, 2, np.where(upper, 0, 1)).astype(np.int64)
