"""Loads of experts counted by the publisher, against the same recording replayed; and counts that have no recording beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats
from moesim.facts.profile import Profile, Section
from moesim.facts.routing import LayerRouting
from moesim.models.fitted.rows import Rows, count, labels, numbers, words
from moesim.study.validation.table_kind import Prediction, prediction, register_table


@register_table
class RecordedLoads:
    """Tokens that each expert of each layer received, by task.

    The recording ``routing_MODEL_TASK.npz`` beside the table must give the same. The recording's first
    layer is the first layer that the table lists for the task.
    """

    name = "routing_counts"
    files = ("routing_*_counts.csv",)
    columns = ("layer", "expert", "token_count")
    quantity = "count"
    companions = ("routing_*.npz",)

    def join(self, rows: Rows, companions: Mapping[str, Rows]) -> Rows:
        """Put the counts of the recordings beside the rows; NaN where there is none."""
        if "task" not in rows:
            return {**rows, "replayed": np.full(count(rows), np.nan)}
        found = np.full(count(rows), np.nan)
        tasks = words(rows, "task")
        for task in np.unique(tasks):
            recording = next((part for name, part in sorted(companions.items()) if name.endswith(f"_{task}.npz") and "ids" in part), None)
            if recording is not None:
                which = np.flatnonzero(tasks == task)
                found[which] = _replayed(recording, numbers(rows, "layer")[which], numbers(rows, "expert")[which])
        return {**rows, "replayed": found}

    def regime(self, rows: Rows) -> NDArray[np.str_]:
        """Return the task, or the text domain."""
        return words(rows, "task") if "task" in rows else words(rows, "domain") if "domain" in rows else np.asarray(["all"] * count(rows))

    def group(self, rows: Rows) -> NDArray[np.str_]:
        """Return one label per layer."""
        return labels(rows, [name for name in ("task", "model", "domain", "layer") if name in rows])

    def seconds(self, rows: Rows) -> Floats:
        """Return the counted tokens."""
        return numbers(rows, "token_count")

    def baseline(self, rows: Rows) -> tuple[str, Floats]:
        """Return equal loads: the mean over the experts of the layer."""
        which, back = np.unique(self.group(rows), return_inverse=True)
        sums = np.bincount(back, weights=numbers(rows, "token_count"), minlength=len(which))
        return "equal loads", np.asarray((sums / np.bincount(back, minlength=len(which)))[back])

    def predict(self, rows: Rows, profiles: Mapping[str, Profile]) -> Prediction:  # noqa: ARG002 - counting needs no profile
        """Return what the replayed recording gives."""
        values = numbers(rows, "replayed")
        reasons = np.asarray([""] * count(rows), dtype=object)
        for row in np.flatnonzero(~np.isfinite(values)):
            reasons[row] = _reason(str(rows["task"][row]) if "task" in rows else "")
        return prediction(values, values, values, reasons=reasons, basis="exact")

    def fit(self, rows: Rows) -> dict[str, Section]:  # noqa: ARG002 - part of the contract
        """Return nothing: there is nothing to fit."""
        return {}


def _reason(task: str) -> str:
    if task:
        return f"no recording routing_*_{task}.npz stands beside the table, or it lacks this layer or expert"
    return "counted loads are an input of a simulation, not its outcome: there is no recording of their tokens to replay"


def _replayed(recording: Rows, layers: Floats, experts: Floats) -> Floats:
    ids: NDArray[Any] = np.asarray(recording["ids"][0])
    if ids.ndim != 3:
        return np.full(len(layers), np.nan)
    at, which = layers - layers.min(), int(experts.max()) + 1
    found = np.full(len(layers), np.nan)
    for layer in np.unique(at):
        rows = np.flatnonzero(at == layer)
        if layer < ids.shape[1] and int(ids[:, int(layer)].max(initial=0)) < which:
            routing = LayerRouting.of_tokens(ids[:, int(layer)].astype(np.int64), [0, len(ids)], which)
            found[rows] = routing.counts.sum(axis=0)[experts[rows].astype(np.int64)]
    return found
