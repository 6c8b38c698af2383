"""One expert on one CPU thread against its tokens: ``ffn.csv`` of a testbed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats
from moesim.facts.profile import Profile, Section
from moesim.models.compute.table import interpolated
from moesim.models.fitted.rows import Rows, count, labels, numbers, words
from moesim.study.validation.table_kind import Prediction, prediction, register_table

FEW = 16
"""Tokens below which times on a CPU are not smooth: three can take longer than four."""

SPREAD = {
    "ffn_many": 0.08, "ffn_few": 0.5, "grouped_many": 0.14, "grouped_few": 0.7, "permute_many": 0.3, "permute_few": 0.08,
    "combine_many": 0.2, "combine_few": 0.06,
}  # fmt: skip
"""Relative half-width of the interval in which about 90 % of the committed rows lie, by regime. Experts in turn with few tokens each read
their weights from memory again, which a sum of single ones does not know."""


@register_table
class TestbedExpert:
    """A table with straight lines between its points, every row predicted from the others of its shape."""

    name: ClassVar[str] = "testbed_expert"
    files: ClassVar[tuple[str, ...]] = ("ffn.csv",)
    columns: ClassVar[tuple[str, ...]] = ("tag", "dtype", "shape", "op", "tokens", "experts", "reps", "wall_median_s")
    quantity: ClassVar[str] = "time"
    __test__: ClassVar[bool] = False

    def regime(self, rows: Rows) -> NDArray[np.str_]:
        """Return the operation, and ``few`` for fewer than 16 tokens of an expert."""
        size = np.where(self._rows(rows) < FEW, "few", "many")
        return np.asarray([f"{op}_{how}" for op, how in zip(words(rows, "op"), size, strict=True)], dtype=np.str_)

    def group(self, rows: Rows) -> NDArray[np.str_]:
        """Return run, number format and shape."""
        return labels(rows, ("tag", "dtype", "shape"))

    def seconds(self, rows: Rows) -> Floats:
        """Return the median of the wall clock."""
        return numbers(rows, "wall_median_s")

    def baseline(self, rows: Rows) -> tuple[str, Floats]:
        """Return the straight line through the fewest and the most tokens of each table."""
        values = np.full(count(rows), np.nan)
        for which in self._tables(rows).values():
            tokens, seconds = numbers(rows, "tokens")[which], self.seconds(rows)[which]
            ends = [int(tokens.argmin()), int(tokens.argmax())]
            inner = np.setdiff1d(np.arange(len(tokens)), ends)
            values[which[inner]] = np.interp(tokens[inner], tokens[ends], seconds[ends])
        return "line from the fewest to the most tokens", values

    def predict(self, rows: Rows, profiles: Mapping[str, Profile]) -> Prediction:  # noqa: ARG002 - a table is its own profile
        """Leave each row out and read the table at its tokens; experts in turn are the sum of single ones."""
        values = np.full(count(rows), np.nan)
        reasons = np.asarray(["there are fewer than two other rows of this operation and shape"] * count(rows), dtype=object)
        tables = self._tables(rows)
        for (*place, operation), which in tables.items():
            tokens, seconds = numbers(rows, "tokens")[which], self.seconds(rows)[which]
            if operation == "grouped":
                single = tables.get((*place, "ffn"), np.zeros(0, dtype=np.int64))
                if len(single) > 1:
                    order = single[np.argsort(numbers(rows, "tokens")[single])]
                    each = interpolated(self._rows(rows)[which], numbers(rows, "tokens")[order], self.seconds(rows)[order])
                    values[which] = each * numbers(rows, "experts")[which]
                continue
            for at, row in enumerate(which.tolist()):
                others = np.flatnonzero(tokens != tokens[at])
                if len(others) > 1:
                    order = others[np.argsort(tokens[others])]
                    values[row] = float(interpolated(tokens[at : at + 1], tokens[order], seconds[order])[0])
        reasons[np.isfinite(values)] = ""
        width = np.array([SPREAD.get(label, SPREAD["ffn_few"]) for label in self.regime(rows).tolist()])
        return prediction(values, values * (1 - width), values * (1 + width), reasons=reasons, basis="fitted")

    def fit(self, rows: Rows) -> dict[str, Section]:  # noqa: ARG002 - the contract's name
        """Fit nothing: a table has no parameters."""
        return {}

    def _rows(self, rows: Rows) -> Floats:
        """Return the tokens of one expert: all of them share the tokens of ``grouped`` evenly."""
        alone = words(rows, "op") != "grouped"
        return np.asarray(np.where(alone, numbers(rows, "tokens"), numbers(rows, "tokens") // numbers(rows, "experts")))

    def _tables(self, rows: Rows) -> dict[tuple[str, ...], NDArray[np.int64]]:
        """Return the rows of each run, number format, shape and operation."""
        found: dict[tuple[str, ...], list[int]] = {}
        for row, key in enumerate(zip(*(words(rows, name).tolist() for name in ("tag", "dtype", "shape", "op")), strict=True)):
            found.setdefault(key, []).append(row)
        return {key: np.array(which) for key, which in found.items()}
