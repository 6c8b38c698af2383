"""NCCL send/receive and all-reduce of two kinds of DGX, inside a node and between nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats
from moesim.models.fitted.point_to_point import PointToPoint, path
from moesim.models.fitted.rows import Rows, labels, numbers, words
from moesim.study.validation.fitted_table import FittedTable, alpha_beta
from moesim.study.validation.machines import peaks, presets_of
from moesim.study.validation.table_kind import register_table

NOISY = 0.1
"""Relative standard error of a row: medians over ranks of one or two calls."""


@register_table
class VidurNetwork(FittedTable):
    """Two collectives; regimes say which and whether nodes are crossed."""

    model = PointToPoint
    name = "vidur_p2p_allreduce"
    files = ("vidur_p2p_allreduce*.csv",)
    columns = ("system", "collective", "num_workers", "devices_per_node", "size", "median_us")
    source = "vidur_p2p_allreduce.csv"

    def inputs(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """Return the size and what the ring crosses."""
        presets = presets_of(words(rows, "system"))
        link, nic = peaks(presets, "nvlink"), peaks(presets, "nic")
        rounds, hops, bandwidth = path(
            words(rows, "collective"), numbers(rows, "num_workers"), numbers(rows, "devices_per_node"), link=link, nic=nic
        )
        return {"size": numbers(rows, "size"), "rounds": rounds, "hops": hops, "path_bandwidth": bandwidth}

    def _where(self, rows: Rows) -> NDArray[np.str_]:
        return np.where(numbers(rows, "num_workers") > numbers(rows, "devices_per_node"), "inter_node", "intra_node")

    def sections(self, rows: Rows) -> NDArray[np.str_]:
        """Return collective and whether nodes are crossed."""
        parts = zip(words(rows, "collective").tolist(), self._where(rows).tolist(), strict=True)
        return np.asarray([f"point_to_point.{collective}.{where}" for collective, where in parts])

    def instead(self, name: str) -> tuple[str, ...]:
        """Return a send over the same links: its bandwidth is that of a ring, which then lacks only the hops."""
        return (name.replace("all_reduce", "send_recv"),) if "all_reduce" in name else ()

    def seconds(self, rows: Rows) -> Floats:
        """Return the measured median."""
        return numbers(rows, "median_us") / 1e6

    def regime(self, rows: Rows) -> NDArray[np.str_]:
        """Return where and what."""
        return np.asarray(
            [f"{where} {what}" for where, what in zip(self._where(rows).tolist(), words(rows, "collective").tolist(), strict=True)]
        )

    def group(self, rows: Rows) -> NDArray[np.str_]:
        """Return system, collective, workers and workers per node."""
        return labels(rows, ("system", "collective", "num_workers", "devices_per_node"))

    def baseline(self, rows: Rows) -> tuple[str, Floats]:
        """Return one alpha and one beta per system and regime."""
        keys = labels({"system": words(rows, "system"), "regime": self.regime(rows)}, ("system", "regime"))
        return "one alpha-beta per system and regime, fitted to these rows", alpha_beta(numbers(rows, "size"), self.seconds(rows), keys)

    def noise(self, rows: Rows) -> Floats:
        """Return the scatter of single calls."""
        return np.full(len(rows["size"]), NOISY)
