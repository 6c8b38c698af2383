"""The published test vector of EPLB: loads in, placement out, exactly."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import CalibrationError
from moesim.facts.arrays import Floats, Ints
from moesim.facts.profile import Profile, Section
from moesim.models.fitted.rows import Rows, count, numbers
from moesim.models.placement.eplb_plan import plan_eplb
from moesim.study.validation.table_kind import Prediction, prediction, register_table

SLOTS, GPUS, NODES, GROUPS = 16, 8, 2, 4

LOADS = (
    (90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86),
    (20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27),
)
PLACEMENT = (
    (5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1),
    (7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1),
)
"""Loads and the expert in each slot, by layer (deepseek-ai/EPLB@d52c72d ``README.md``, MIT)."""


@register_table
class EplbVector:
    """Where each expert's first replica lies, numbered from 1: off by anything means another placement.

    A table with other loads has no published placement to be compared with, and its rows say so.
    """

    name = "eplb_test_vector"
    files = ("eplb_test_vector*.csv",)
    columns = ("layer", "expert", "load")
    quantity = "count"

    def seconds(self, rows: Rows) -> Floats:
        """Return the first slot of each expert in the published placement; NaN where the loads are not the published ones."""
        values = np.full(count(rows), np.nan)
        layers, experts, loads = (numbers(rows, name).astype(int) for name in self.columns)
        for layer, (told, slots) in enumerate(zip(LOADS, PLACEMENT, strict=True)):
            mask = layers == layer
            if sorted(zip(experts[mask].tolist(), loads[mask].tolist(), strict=True)) == list(enumerate(told)):
                values[mask] = _first(np.asarray(slots))[experts[mask]]
        return values

    def regime(self, rows: Rows) -> NDArray[np.str_]:
        """Return one regime."""
        return np.full(count(rows), "placement")

    def group(self, rows: Rows) -> NDArray[np.str_]:
        """Return the layer."""
        return np.asarray([f"layer {layer}" for layer in rows["layer"].tolist()])

    def baseline(self, rows: Rows) -> tuple[str, Floats]:
        """Return experts in the order of their numbers."""
        return "experts in order", numbers(rows, "expert") + 1

    def predict(self, rows: Rows, profiles: Mapping[str, Profile]) -> Prediction:
        """Plan with moesim's own EPLB.

        Raises
        ------
        CalibrationError
            If a layer lacks experts.
        """
        del profiles
        values = np.full(count(rows), np.nan)
        layers, experts, loads = (numbers(rows, name).astype(int) for name in self.columns)
        for layer in np.unique(layers):
            mask = layers == layer
            if sorted(experts[mask].tolist()) != list(range(int(mask.sum()))):
                raise CalibrationError(f"layer {layer} does not hold each expert from 0 once, so nothing can be placed")
            given = np.zeros((1, int(mask.sum())))
            given[0, experts[mask]] = loads[mask]
            plan = plan_eplb(given, slots=SLOTS, gpus=GPUS, nodes=NODES, groups=GROUPS)
            values[mask] = _first(np.asarray(plan.physical_to_logical_map[0]))[experts[mask]]
        return prediction(values, values, values, basis="exact")

    def fit(self, rows: Rows) -> dict[str, Section]:
        """Return nothing."""
        del rows
        return {}


def _first(slots: Ints) -> Ints:
    """Return the first slot of each expert, from 1."""
    return np.asarray([int(np.flatnonzero(slots == expert)[0]) + 1 for expert in range(int(slots.max()) + 1)])
