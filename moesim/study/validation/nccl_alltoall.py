"""nccl-tests all-to-all inside one node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import CalibrationError
from moesim.facts.arrays import Bools, Floats, frozen
from moesim.facts.profile import Profile, Section
from moesim.models.fitted.nccl_all_to_all import NcclAllToAll, regimes_of
from moesim.models.fitted.rows import Rows, labels, numbers, take, words
from moesim.study.validation.fitted_table import FittedTable, alpha_beta
from moesim.study.validation.machines import in_rack, peaks, presets_of
from moesim.study.validation.published_exchanges import NODE, across_nodes
from moesim.study.validation.table_kind import Prediction, register_table

WITHOUT_NVLINK = ("l40s",)
"""Presets whose GPUs exchange over PCIe and host memory: regimes of their own, for nothing that was fitted is like them."""


HOST_PATH = 16e9
"""B/s that all GPUs of such a node send each other together. The table's header says that eight L40S peak at 2 GB/s each, PCIe without
peer-to-peer: every
byte goes through host memory, which they share. One number for a whole system, hence assumed."""

REACHED = 0.7
"""Share of a link that the carried model reaches, taken out again where the bandwidth is already an achieved one."""


@register_table
class NcclAllToAllTable(FittedTable):
    """One kernel, sizes from 512 B to 512 MB per rank; regimes ``large`` (at least 16 MB) and ``small``."""

    model = NcclAllToAll
    name = "nccl_alltoall_intranode"
    files = ("nccl_alltoall_*.csv",)
    columns = ("system", "num_gpus", "bytes_per_rank", "time_us")
    source = "nccl_alltoall_intranode.csv"

    def inputs(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """Return numbers of GPUs, sizes, and the peaks of link and memory; of several nodes, what one of them exchanges inside."""
        presets, all_ranks = presets_of(words(rows, "system")), numbers(rows, "num_gpus")
        ranks = np.where(_several_nodes(rows), NODE, all_ranks)
        shared = HOST_PATH / ranks / REACHED
        return {
            "num_gpus": ranks,
            "bytes_per_rank": numbers(rows, "bytes_per_rank") * ranks / all_ranks,
            "link_bandwidth": np.where(np.isin(presets, WITHOUT_NVLINK), shared, peaks(presets, "nvlink")),
            "memory_bandwidth": peaks(presets, "memory_bandwidth"),
        }

    def fit(self, rows: Rows) -> dict[str, Section]:
        """Fit the rows of one node or one rack: what crosses cards says nothing of the kernel inside.

        Raises
        ------
        CalibrationError
            If no row is of one node, or rows do not determine the model.
        """
        inside = ~_several_nodes(rows)
        if len(inside) and not np.any(inside):
            raise CalibrationError(f"every row has more than the {NODE} GPUs of a node: the model is fitted to one node or one NVLink rack")
        return super().fit(take(rows, inside))

    def predict(self, rows: Rows, profiles: Mapping[str, Profile]) -> Prediction:
        """Predict every row; more GPUs than a node has, outside a rack, send over their cards, which no row of the table did: assumed."""
        found = super().predict(rows, profiles)
        ranks, size, several = numbers(rows, "num_gpus"), numbers(rows, "bytes_per_rank"), _several_nodes(rows)
        cards = peaks(presets_of(words(rows, "system")), "nic")
        values = found.values.copy()
        for row in np.flatnonzero(several & np.isfinite(values)):
            given = {"num_gpus": ranks[row : row + 1], "bytes_per_rank": size[row : row + 1]}
            values[row] = across_nodes(float(values[row]), given, -(-int(ranks[row]) // NODE), float(cards[row]))
        wider = np.where(several, 2.0, 1.0)  # as wide as any interval beyond the fitted range
        return replace(
            found,
            values=frozen(values),
            low=frozen(values * (found.low / found.values) ** wider),
            high=frozen(values * (found.high / found.values) ** wider),
            outside=frozen(found.outside | several, np.bool_),
            basis=np.where(several, "assumed", found.basis),
        )

    def sections(self, rows: Rows) -> NDArray[np.str_]:
        """Return the one section."""
        return np.full(len(rows["num_gpus"]), "nccl_all_to_all")

    def seconds(self, rows: Rows) -> Floats:
        """Return the measured time."""
        return numbers(rows, "time_us") / 1e6

    def regime(self, rows: Rows) -> NDArray[np.str_]:
        """Return ``large`` or ``small``, with ``pcie`` before it where there is no NVLink."""
        pcie = np.isin(presets_of(words(rows, "system")), WITHOUT_NVLINK)
        plain = regimes_of(rows)
        return np.where(pcie, np.char.add("pcie_", plain), plain)

    def assumed(self, rows: Rows) -> NDArray[np.bool_]:
        """Tell the rows of GPUs that share the path through the host."""
        return np.asarray(np.isin(presets_of(words(rows, "system")), WITHOUT_NVLINK))

    def group(self, rows: Rows) -> NDArray[np.str_]:
        """Return system and number of GPUs."""
        return labels(rows, ("system", "num_gpus"))

    def baseline(self, rows: Rows) -> tuple[str, Floats]:
        """Return one alpha and one beta per system for the bytes that leave a GPU."""
        ranks = numbers(rows, "num_gpus")
        sent = numbers(rows, "bytes_per_rank") * (ranks - 1) / ranks
        return "one alpha-beta per system, fitted to these rows", alpha_beta(sent, self.seconds(rows), words(rows, "system"))

    def noise(self, rows: Rows) -> Floats:
        """Return the repeat noise of nccl-tests: 1 % for large messages, five times that for small ones."""
        return np.where(regimes_of(rows) == "large", 0.01, 0.05)


def _several_nodes(rows: Rows) -> Bools:
    return np.asarray((numbers(rows, "num_gpus") > NODE) & ~in_rack(words(rows, "system")))
