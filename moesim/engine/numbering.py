"""GPUs by the numbers that the scenario gives them, in results of a run that played them group after group."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moesim.facts.record import Table
from moesim.facts.scenario import Parallel

COLUMNS = ("gpu", "waited_for", "last_gpu", "source", "destination")
"""Which columns hold numbers of GPUs; -1 stands for none."""

SORTED = {"gpus": ("gpu",), "ranks": ("step", "moe_layer", "gpu"), "traffic": ("source", "destination")}
"""By which columns the rows of a table stand in order; rows of others stand in the order in which things happened."""


def as_numbered(tables: Mapping[str, Table], parallel: Parallel, gpus: int) -> dict[str, Table]:
    """Return tables in which GPUs have their numbers in the scenario; the same tables without expert tensor parallelism.

    Parameters
    ----------
    tables : mapping of str to Table
        With GPUs in the order of expert-parallel groups (:meth:`~moesim.facts.scenario.Parallel.numbers`).
    parallel : Parallel
    gpus : int
        G.
    """
    if parallel.etp == 1:
        return dict(tables)
    numbers = np.append(parallel.numbers(gpus), -1)  # the last one is what -1 stands for
    found = {}
    for name, table in tables.items():
        columns = {column: numbers[values] if column in COLUMNS else values for column, values in table.columns.items()}
        if name in SORTED:
            order = np.lexsort([columns[column] for column in reversed(SORTED[name])])
            columns = {column: values[order] for column, values in columns.items()}
        found[name] = Table(columns=columns, units=table.units)
    return found
