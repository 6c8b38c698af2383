"""What the memory of one GPU is made of: weights, gradients, optimiser states; activations, rows of the experts, keys and values."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from moesim.facts.arrays import Floats
from moesim.facts.model import DTYPE_BYTES
from moesim.facts.program import Program
from moesim.facts.scenario import Setting
from moesim.models.memory import OPTIMISER_BYTES, activation_bytes, weight_bytes
from moesim.models.parallel_memory import layers_of_stage, stage_activation_bytes, stage_weight_bytes
from moesim.models.work import GRADIENT_BYTES


def weight_parts(setting: Setting, program: Program | None, gpu: int, slots: int) -> dict[str, float]:
    """Return the bytes of ``weights``, ``gradients`` and ``optimiser`` states on a GPU; together what it holds besides activations.

    Parameters
    ----------
    setting : Setting
        All GPUs.
    program : Program or None
        Of a model that is spread over stages or tensor-parallel GPUs, or recomputes; None where every GPU holds all layers.
    gpu, slots : int
        The GPU, and the physical experts of each MoE layer that it holds.
    """
    forward = dataclasses.replace(setting, workload=dataclasses.replace(setting.workload, phase="prefill"))
    if program is None:
        total, weights = (weight_bytes(each.model, slots, each.workload.phase) for each in (setting, forward))
        parameters = (total - weights) / (GRADIENT_BYTES + OPTIMISER_BYTES)
    else:
        layers = layers_of_stage(program, gpu // (setting.gpus // program.stages))
        whole = dataclasses.replace(setting, training=None)  # nothing sharded
        total, weights, every = (stage_weight_bytes(each, layers, slots) for each in (setting, forward, whole))
        parameters = (every - weights) / (GRADIENT_BYTES + OPTIMISER_BYTES)
    gradients = parameters * GRADIENT_BYTES
    return {"weights": weights, "gradients": gradients, "optimiser": total - weights - gradients}


def activation_parts(
    setting: Setting, program: Program | None, gpu: int, rows: ArrayLike, tokens: ArrayLike, context: ArrayLike
) -> dict[str, Floats]:
    """Return the bytes of ``activations`` of tokens, of ``expert_rows`` (rows that arrive, what is between, results), and of ``cache``.

    Parameters
    ----------
    setting, program, gpu
        As :func:`weight_parts` takes them.
    rows : float[..., L] or float[...]
        Rows that the GPU computes: of every MoE layer with a program, as :func:`~moesim.models.memory.activation_bytes` takes them without.
    tokens : float[...]
        Tokens that it computes.
    context : float[...]
        How many tokens each of them attends to on average.

    Returns
    -------
    dict of str to float[...]
        They add up to what the GPU holds besides weights and states. Rows of experts are, in training, what the total loses without them;
        forward only, those of the fullest layer, whether or not another layer, a dense one, needs more than that.
    """
    model, workload = setting.model, setting.workload
    rows, tokens, context = (np.asarray(values, dtype=np.float64) for values in (rows, tokens, context))

    def total(arrived: Floats) -> Floats:
        if program is None:
            return activation_bytes(model, workload, arrived, tokens=tokens, context=context)
        return stage_activation_bytes(setting, program, gpu // (setting.gpus // program.stages), arrived, tokens, context)

    everything = total(rows)
    if workload.phase == "training":
        without = total(np.zeros_like(rows))
        return {"activations": without, "expert_rows": everything - without, "cache": np.zeros_like(tokens)}
    layers = model.layers if program is None else len(layers_of_stage(program, gpu // (setting.gpus // program.stages)))
    cache = tokens * (context if workload.phase == "decode" else 1.0) * layers * model.attention.cache_bytes_per_token
    fullest = rows if program is None else rows.max(axis=-1, initial=0.0) / program.microbatches
    of_row = DTYPE_BYTES[model.activation_dtype] * (2.0 * model.dispatch_width + model.matrices * model.expert_width)
    return {"activations": everything - cache - fullest * of_row, "expert_rows": fullest * of_row, "cache": cache}
