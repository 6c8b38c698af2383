"""Joint counts of experts between layers: an input of placements, listed so that nobody thinks it was forgotten."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats
from moesim.facts.profile import Profile, Section
from moesim.models.fitted.rows import Rows, count, labels, numbers
from moesim.study.validation.table_kind import Prediction, prediction, register_table

REASON = "joint counts of experts are an input of affinity placements, not an outcome of a simulation: there is nothing to predict"


@register_table
class ExpertAffinity:
    """How often an expert of one layer and an expert of another serve the same token."""

    name = "routing_crosslayer"
    files = ("routing_*_crosslayer.csv",)
    columns = ("layer_a", "layer_b", "count")
    quantity = "count"

    def regime(self, rows: Rows) -> NDArray[np.str_]:
        """Return one regime."""
        return np.asarray(["all"] * count(rows), dtype=np.str_)

    def group(self, rows: Rows) -> NDArray[np.str_]:
        """Return one label per pair of layers."""
        return labels(rows, ("layer_a", "layer_b"))

    def seconds(self, rows: Rows) -> Floats:
        """Return the counts."""
        return numbers(rows, "count")

    def baseline(self, rows: Rows) -> tuple[str, Floats]:
        """Return nothing: no rule applies."""
        return "", np.full(count(rows), np.nan)

    def predict(self, rows: Rows, profiles: Mapping[str, Profile]) -> Prediction:  # noqa: ARG002 - part of the contract
        """Return no number, and why."""
        return prediction(np.full(count(rows), np.nan), reasons=np.asarray([REASON] * count(rows), dtype=object))

    def fit(self, rows: Rows) -> dict[str, Section]:  # noqa: ARG002 - part of the contract
        """Return nothing: there is nothing to fit."""
        return {}
