"""The least memory that some GPU of a candidate must have, whatever is routed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from moesim.facts.program import Program
from moesim.facts.scenario import Setting
from moesim.models.memory import peak_memory
from moesim.models.parallel_memory import layers_of_stage, spread_or_recomputed, stage_activation_bytes, stage_weight_bytes

Held = Callable[[int, float], float]
"""Bytes of a GPU by its slots in each MoE layer and the rows it computes in each."""


def memory_floor(setting: Setting, program: Program, tokens: int, rows: float) -> float:
    """Return bytes that the fullest GPU holds at least.

    Parameters
    ----------
    setting : Setting
        All GPUs.
    program : Program
    tokens : int
        Of every GPU; 0 where that is not certain.
    rows : float
        Of the mean GPU in every MoE layer, likewise.

    Notes
    -----
    Two things are certain of the GPUs of a stage that share its experts. The fullest holds no less than their mean, and bytes grow
    linearly with slots and no slower than that with rows: so at least what a GPU with the mean of both holds. And one of them has
    ``ceil(experts / ranks)`` slots, if perhaps no rows.
    """
    if not spread_or_recomputed(setting):
        return _of_stage(
            setting, rows, lambda slots, these: float(peak_memory(setting.model, setting.workload, slots, these, tokens=tokens))
        )
    moe_layers = len(setting.model.moe_layers)

    def of(stage: int) -> float:
        layers = layers_of_stage(program, stage)

        def held(slots: int, these: float) -> float:
            activations = stage_activation_bytes(setting, program, stage, np.full(moe_layers, these), tokens)
            return stage_weight_bytes(setting, layers, slots) + float(activations)

        return _of_stage(setting, rows, held)

    return max(of(stage) for stage in range(program.stages))


def _of_stage(setting: Setting, rows: float, held: Held) -> float:
    few, over = divmod(setting.model.experts, setting.parallel.ep)
    share = over / setting.parallel.ep
    mean = (1.0 - share) * held(few, rows) + share * held(few + 1, rows) if over else held(few, rows)
    return max(mean, held(few + (over > 0), 0.0))
