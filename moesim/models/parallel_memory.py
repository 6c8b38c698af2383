"""Bytes that a GPU holds when the model is spread over stages or tensor-parallel GPUs, or does not keep all its activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from moesim.facts.arrays import Floats, Ints
from moesim.facts.model import DTYPE_BYTES
from moesim.facts.program import BACKWARD, FORWARD, Program
from moesim.facts.scenario import Setting
from moesim.models.collective.gradients import tensor_layer_parameters
from moesim.models.memory import OPTIMISER_BYTES
from moesim.models.optimiser import shards
from moesim.models.schedule.training_tasks import recomputed
from moesim.models.work import GRADIENT_BYTES


def spread_or_recomputed(setting: Setting) -> bool:
    """Tell whether GPUs hold something else than every layer with all its activations."""
    return setting.parallel.pp > 1 or setting.parallel.tp > 1 or setting.training is not None


def stage_weight_bytes(setting: Setting, layers: Sequence[int], slots: int, *, least: bool = False) -> float:
    """Return the bytes of weights on a GPU of one stage, in training with gradients and optimiser states.

    As :func:`moesim.models.memory.weight_bytes`, of the stage's layers and of one of ``tp`` shares of what is cut. States are divided by
    the GPUs that share the update (``training.sharding``); gradients are not. Tied embeddings are on the first and the last stage.

    Parameters
    ----------
    setting : Setting
        All GPUs.
    layers : sequence of int
        Of the stage.
    slots : int
        Physical experts of each MoE layer on the GPU.
    least : bool
        Shard gradients and states over all that hold the same parameter, whatever the setting says: no common sharding needs less.
    """
    model, parallel = setting.model, setting.parallel
    per_layer = [tensor_layer_parameters(model, layer, parallel.tp) for layer in layers]
    weights, kept = (float(sum(part)) for part in zip(*per_layer, strict=True))
    if model.tied_embeddings and parallel.pp > 1 and model.layers - 1 in layers and 0 not in layers:
        kept += model.vocabulary * model.hidden / parallel.tp
    experts = float(slots * model.expert_parameters * len(set(layers) & set(model.moe_layers)))
    total = (
        weights * DTYPE_BYTES[model.weight_dtype] + kept * DTYPE_BYTES[model.activation_dtype] + experts * DTYPE_BYTES[model.expert_dtype]
    )
    if setting.workload.phase == "training":
        stage = setting.gpus // parallel.pp
        dense_shards, expert_shards = (stage // parallel.tp, stage // parallel.block) if least else shards(setting)
        gradients = (weights + kept) / (dense_shards if least else 1) + experts / (expert_shards if least else 1)
        total += gradients * GRADIENT_BYTES + ((weights + kept) / dense_shards + experts / expert_shards) * OPTIMISER_BYTES
    return total


def passes_kept(program: Program, stage: int, layers: int) -> Ints:
    """Return int[layers], of how many micro-batches the activations of each layer are kept when most are: forward done, backward not.

    Counted in the order of the program: for 1F1B, as many micro-batches as there are stages from this one on.
    """
    now = np.zeros(layers, dtype=np.int64)
    most = now.copy()
    for task in program.tasks:
        work = task.work
        if task.stage != stage or work.phase != "attention":
            continue
        if work.direction == FORWARD:
            now[work.layer] += 1
            if now.sum() > most.sum():
                most = now.copy()
        elif work.direction == BACKWARD:
            now[work.layer] -= 1
    return most


@dataclass(frozen=True, slots=True)
class _Layer:
    """Bytes of one layer for each token and each row: all of them, and those that recomputation keeps."""

    per_token: float
    per_row: float
    token_kept: float
    row_kept: float


def _layer(setting: Setting, layer: int) -> _Layer:
    model, element = setting.model, DTYPE_BYTES[setting.model.activation_dtype]
    moe = layer in model.moe_layers
    width = model.attention.heads * model.attention.score_width
    copies = setting.parallel.tp if setting.parallel.tensor == "replicated" else 1
    common = 4.0 * model.hidden * copies + 4.0 * width
    inner = float(model.matrices * (model.shared_width if moe else model.dense_width))
    row_inner = float(model.matrices * model.expert_width)
    row = 2.0 * model.dispatch_width + row_inner if moe else 0.0
    kept_token, kept_row = common + inner, row
    again = {} if setting.training is None else recomputed(model, layer, setting.training)
    phases = {phase for names in again.values() for phase in names}
    if "attention" in phases:
        kept_token, kept_row = float(model.hidden), 0.0
    else:
        if "attention_core" in phases:
            kept_token -= width  # its result; queries, keys and values stay
        if {"shared", "dense"} & phases:
            kept_token -= inner
        if "dispatch" in phases:
            kept_row = 0.0
        elif "experts" in phases:
            kept_row -= row_inner
    return _Layer(element * (common + inner), element * row, element * kept_token, element * kept_row)


def stage_activation_bytes(
    setting: Setting, program: Program, stage: int, rows: ArrayLike, tokens: ArrayLike, context: ArrayLike | None = None
) -> Floats:
    """Return the bytes of activations, exchange buffers and cache on GPUs of one stage.

    The list is that of :func:`moesim.models.memory.activation_bytes`. Training keeps what :func:`passes_kept` counts, less what is
    recomputed, and beside it one whole layer pass. Full recomputation keeps the input of a layer. Forward only, the largest layer is held
    for one micro-batch and keys and values for all; a tensor-parallel group divides those of its tokens.

    Parameters
    ----------
    setting : Setting
        All GPUs.
    program : Program
    stage : int
    rows : float[..., L]
        Rows that a GPU computes in each MoE layer of the model in a step; only those of the stage are looked at.
    tokens : float[...]
        Tokens that start on it in a step.
    context : float[...], optional
        How many tokens a token attends to on average; by default what the workload says.

    Returns
    -------
    float[...]
    """
    model = setting.model
    rows, tokens = np.asarray(rows, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    layers = layers_of_stage(program, stage)
    parts = program.microbatches
    kept = passes_kept(program, stage, model.layers)
    total, widest, dropped = np.zeros(tokens.shape), np.zeros(tokens.shape), np.zeros(tokens.shape)
    for layer in layers:
        one = _layer(setting, layer)
        arrived = rows[..., model.moe_layers.index(layer)] if layer in model.moe_layers else np.zeros(tokens.shape)
        whole = tokens * one.per_token + arrived * one.per_row
        held = tokens * one.token_kept + arrived * one.row_kept
        total = total + kept[layer] * held / parts
        widest = np.maximum(widest, whole / parts)
        dropped = np.maximum(dropped, (whole - held) / parts)
    if setting.workload.phase == "training":
        return np.asarray(total + dropped)
    read = np.asarray(setting.workload.context if context is None else context)
    cached = tokens * (read if setting.workload.phase == "decode" else 1)
    return np.asarray(widest + cached * len(layers) * model.attention.cache_bytes_per_token)


def layers_of_stage(program: Program, stage: int) -> list[int]:
    """Return the layers that a stage runs."""
    return sorted({task.work.layer for task in program.tasks if task.stage == stage and task.work.phase == "attention"})


def held_by(
    setting: Setting, program: Program, gpu: int, slots: int, rows: ArrayLike, tokens: ArrayLike, context: ArrayLike | None = None
) -> tuple[float, Floats]:
    """Return the bytes of weights and float[steps] bytes of activations of one GPU.

    Parameters
    ----------
    setting : Setting
        All GPUs.
    program : Program
    gpu, slots : int
        The GPU, and the physical experts of each MoE layer that it holds.
    rows : int[steps, L]
        Rows that it computes in each MoE layer of the model.
    tokens : int[steps]
        Tokens that start on it.
    context : float[steps], optional
        How many tokens a token of it attends to on average; by default what the workload says.
    """
    stage = gpu // (setting.gpus // program.stages)
    weights = stage_weight_bytes(setting, layers_of_stage(program, stage), slots)
    return weights, stage_activation_bytes(setting, program, stage, rows, tokens, context)
