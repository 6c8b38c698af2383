"""All-to-alls as 'moesim measure exchange' times them: whatever library, whatever pattern."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats
from moesim.models.fitted.own_all_to_all import OwnAllToAll
from moesim.models.fitted.parametric import Parametric
from moesim.models.fitted.rows import Rows, labels, numbers, words
from moesim.study.validation.fitted_table import alpha_beta
from moesim.study.validation.own_table import OwnTable
from moesim.study.validation.table_kind import register_table


@register_table
class OwnExchange(OwnTable):
    """Completion of an all-to-all: from the first rank's start to the last one's end; the regime is the pattern."""

    name = "own_exchange"
    files = ("exchange.csv", "exchange_*.csv")
    columns = ("system", "library", "pattern", "posting", "num_gpus", "busiest_port_bytes", "completion_us")
    source = "exchange.csv of 'moesim measure'"

    def model_of(self, section: str) -> type[Parametric]:
        """Return the model."""
        del section
        return OwnAllToAll

    def sections(self, rows: Rows) -> NDArray[np.str_]:
        """Return ``own_all_to_all.LIBRARY.POSTING``; a single rank exchanges nothing."""
        several = numbers(rows, "num_gpus") > 1
        names = labels({"library": words(rows, "library"), "posting": words(rows, "posting")}, ("library", "posting"))
        return np.asarray([f"own_all_to_all.{name.replace(' ', '.')}" if many else "" for name, many in zip(names, several, strict=True)])

    def why_none(self, rows: Rows, row: int) -> str:
        """Return that one rank has nobody to exchange with."""
        del rows, row
        return "one rank alone exchanges nothing; its copy to itself is no all-to-all"

    def inputs(self, section: str, rows: Rows) -> dict[str, NDArray[Any]]:
        """Return ranks, and the bytes of the busiest of them."""
        del section
        return {"num_gpus": numbers(rows, "num_gpus"), "port_bytes": numbers(rows, "busiest_port_bytes")}

    def seconds(self, rows: Rows) -> Floats:
        """Return the completion."""
        return numbers(rows, "completion_us") / 1e6

    def regime(self, rows: Rows) -> NDArray[np.str_]:
        """Return the pattern."""
        return words(rows, "pattern")

    def group(self, rows: Rows) -> NDArray[np.str_]:
        """Return system, ranks and pattern."""
        return labels(rows, ("system", "num_gpus", "pattern"))

    def baseline(self, rows: Rows) -> tuple[str, Floats]:
        """Return one line per library and posting, fitted to these rows."""
        return "one alpha-beta per library and posting, fitted to these rows", alpha_beta(
            numbers(rows, "busiest_port_bytes"), self.seconds(rows), labels(rows, ("system", "library", "posting", "num_gpus"))
        )
