"""Sums and ratios per measured step: the arithmetic that metrics share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.facts.arrays import Floats
from moesim.facts.contracts import Record
from moesim.facts.program import COLLECTIVES


def step_column(record: Record, column: str) -> Floats:
    """Return float[steps], a column of the table ``steps``.

    Parameters
    ----------
    record : Record
        Of a run.
    column : str
        Its name.
    """
    return np.asarray(record.tables["steps"][column], dtype=np.float64)


def sum_by_step(record: Record, table: str, values: ArrayLike) -> Floats:
    """Return float[steps], the sum over the rows of each measured step.

    Parameters
    ----------
    record : Record
        Of a run.
    table : str
        A table with a column ``step``.
    values : array_like, float[rows]
        One number per row of that table.
    """
    index = np.searchsorted(record.steps, record.tables[table]["step"])
    return np.asarray(np.bincount(index, weights=np.asarray(values, dtype=np.float64), minlength=len(record.steps)), dtype=np.float64)


def total(record: Record, table: str, column: str) -> Floats:
    """Return float[steps], the sum of a column over the rows of each measured step."""
    return sum_by_step(record, table, record.tables[table][column])


def mean_over_layers(record: Record, values: ArrayLike) -> Floats:
    """Return float[steps], the mean over the rows of the table ``layers``; NaN in a step without any.

    Parameters
    ----------
    record : Record
        Of a run.
    values : array_like, float[rows]
        One number per row of ``layers``.
    """
    rows = np.ones(len(record.tables["layers"]))
    return ratio(sum_by_step(record, "layers", values), sum_by_step(record, "layers", rows))


def ratio(above: ArrayLike, below: ArrayLike) -> Floats:
    """Return ``above / below``, NaN where ``below`` is not more than 0: there is then nothing to compare with."""
    above, below = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    return np.asarray(np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0))


def where_any(values: ArrayLike, of: ArrayLike) -> Floats:
    """Return ``values``, NaN where there is nothing of what they measure (``of`` is not more than 0)."""
    return np.where(np.asarray(of, dtype=np.float64) > 0, np.asarray(values, dtype=np.float64), np.nan)


def rank_loads(record: Record) -> Floats:
    """Return float[steps, L, G], the rows that each GPU computed in each MoE layer of each measured step."""
    table = record.tables["ranks"]
    layer, layers = _numbered(table["moe_layer"])
    # GPUs of a pipeline stage run its layers only: of each layer, count them from the first that runs it.
    first = np.full(layers, np.iinfo(np.int64).max)
    np.minimum.at(first, layer, table["gpu"])
    gpu, gpus = _numbered(table["gpu"] - first[layer]) if len(table) else _numbered(table["gpu"])
    loads = np.zeros((len(record.steps), layers, gpus))
    loads[np.searchsorted(record.steps, table["step"]), layer, gpu] = table["rows"]
    return loads


def expert_loads(record: Record) -> Floats:
    """Return float[L, E], the routes to each logical expert before drops, over all measured steps together."""
    table = record.tables["experts"]
    layer, layers = _numbered(table["moe_layer"])
    expert, experts = _numbered(table["expert"])
    loads = np.zeros((layers, experts))
    loads[layer, expert] = table["routes"]
    return loads


def of_tokens(record: Record, column: str) -> Floats:
    """Return float[steps], the sum of a column of the table ``collectives`` over dispatches and combines."""
    table = record.tables["collectives"]
    return sum_by_step(record, "collectives", np.where(np.isin(table["phase"], COLLECTIVES), table[column], 0.0))


def whole(record: Record, value: float) -> Floats:
    """Return float[steps], one number of the whole run repeated for every measured step."""
    return np.full(len(record.steps), value, dtype=np.float64)


def _numbered(column: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Return the position of each entry among the distinct ones, and how many distinct ones there are."""
    distinct, position = np.unique(column, return_inverse=True)
    return position.reshape(-1), len(distinct)
