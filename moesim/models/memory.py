"""Bytes that a GPU holds: weights, what training keeps beside them, activations, cache.

Every GPU holds all layers: its expert-parallel share of the routed experts (its slots) and a full copy of everything else, as under expert
and data parallelism without tensor or pipeline parallelism.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from moesim.facts.arrays import Floats
from moesim.facts.model import DTYPE_BYTES, MoeModel
from moesim.facts.scenario import Workload
from moesim.models.work import GRADIENT_BYTES

OPTIMISER_BYTES = 12.0
"""Bytes of optimiser state per parameter: an fp32 copy of the weight and Adam's two moments in fp32."""


def dense_parameters(model: MoeModel) -> tuple[float, float]:
    """Return the parameters that every GPU holds besides its experts: those in the weight dtype, and those kept in the activation dtype.

    Counted: attention projections of all layers, feed-forward blocks of dense layers, shared experts (weight dtype); routers, the
    projections of latent MoE (``dispatch_width < hidden``), the embedding and the head, one matrix if they are tied (activation dtype). Not
    counted: norms and biases.
    """
    moe = len(model.moe_layers)
    weights = model.layers * model.attention.projection_parameters
    weights += (model.layers - moe) * model.matrices * model.hidden * model.dense_width
    weights += moe * model.matrices * model.hidden * model.shared_width
    kept = moe * model.hidden * model.experts + (1 if model.tied_embeddings else 2) * model.vocabulary * model.hidden
    if model.dispatch_width != model.hidden:
        kept += moe * 2 * model.hidden * model.dispatch_width
    return float(weights), float(kept)


def weight_bytes(model: MoeModel, slots: int, phase: str) -> float:
    """Return the bytes of weights on one GPU, in training with their gradients and optimiser states.

    Training adds 16 bytes per parameter, whatever dtype the weight itself has: a gradient in fp32 (4) and the states of Adam (12: an fp32
    copy of the weight and two moments). With bf16 weights that is the 18 bytes of Megatron-LM's mixed precision without its distributed
    optimizer. Nothing is sharded: not the states of the dense part over data-parallel ranks (ZeRO, distributed optimizer), nor those of
    experts over expert-data-parallel ranks.

    Parameters
    ----------
    model : MoeModel
        Its shape; see :func:`dense_parameters` for what is counted.
    slots : int
        Physical experts that the GPU holds in each MoE layer.
    phase : str
        ``training``, ``prefill`` or ``decode``.
    """
    weights, kept = dense_parameters(model)
    experts = float(len(model.moe_layers) * slots * model.expert_parameters)
    total = (
        weights * DTYPE_BYTES[model.weight_dtype] + kept * DTYPE_BYTES[model.activation_dtype] + experts * DTYPE_BYTES[model.expert_dtype]
    )
    if phase == "training":
        total += (weights + kept + experts) * (GRADIENT_BYTES + OPTIMISER_BYTES)
    return total


def expert_bytes(model: MoeModel, phase: str, *, optimiser: bool = True) -> float:
    """Return the bytes of one routed expert of one layer, in training with its gradients and optimiser states unless told otherwise."""
    states = GRADIENT_BYTES + OPTIMISER_BYTES if phase == "training" and optimiser else 0.0
    return float(model.expert_parameters) * (DTYPE_BYTES[model.expert_dtype] + states)


def activation_bytes(
    model: MoeModel, workload: Workload, rows_received: ArrayLike, *, tokens: ArrayLike | None = None, context: ArrayLike | None = None
) -> Floats:
    """Return the bytes of activations, exchange buffers and cache on a GPU.

    Per token and layer: the residual stream and its normalised copy, before attention and before the feed-forward block (4 hidden), the
    queries, keys, values and results (4 widths of attention, as for multi-head attention: an upper estimate where keys and values are
    fewer), and ``3 width`` (``2`` without a gate) inside a dense block or the shared experts. Per row that arrives at the experts: the
    row and its result (2 dispatch widths) and likewise 3 or 2 expert widths. The list is that of Korthikanti et al., arXiv:2205.05198,
    section 4, without dropout masks and, as FlashAttention keeps none, without scores.

    Training holds all layers at once; no recomputation. Prefill and decode hold the largest layer, and keys and values of all layers: of
    each token (prefill), or of ``context`` tokens for each (decode, one token per sequence). Logits, allocator fragmentation, the
    runtime's own memory and communication libraries' staging buffers are not counted.

    Parameters
    ----------
    model : MoeModel
        Its shape.
    workload : Workload
        Phase, tokens per GPU, context.
    rows_received : int[...]
        Rows that a GPU computes in one MoE layer: the mean over the layers in training, which holds them all; the largest otherwise.
    tokens : int[...], optional
        Tokens that start on the GPU; by default what the workload says.
    context : float[...], optional
        How many tokens a token attends to on average; by default what the workload says.

    Returns
    -------
    float[...]
        One number for each of ``rows_received``.
    """
    element = DTYPE_BYTES[model.activation_dtype]
    rows = np.asarray(rows_received, dtype=np.float64)
    tokens = np.asarray(workload.tokens_per_gpu if tokens is None else tokens, dtype=np.float64)
    moe = len(model.moe_layers)
    common = tokens * (4.0 * model.hidden + 4.0 * model.attention.heads * model.attention.score_width)
    in_dense = tokens * float(model.matrices) * model.dense_width * (moe < model.layers)
    in_moe = tokens * float(model.matrices) * model.shared_width + rows * (
        2.0 * model.dispatch_width + float(model.matrices) * model.expert_width
    )
    if workload.phase == "training":
        return np.asarray(element * (model.layers * common + (model.layers - moe) * in_dense + moe * in_moe))
    cached = tokens * (np.asarray(workload.context if context is None else context) if workload.phase == "decode" else 1)
    cache = cached * model.layers * model.attention.cache_bytes_per_token
    return np.asarray(element * (common + np.maximum(in_dense, in_moe)) + cache)


def peak_memory(
    model: MoeModel,
    workload: Workload,
    slots_per_gpu: int,
    rows_received: ArrayLike,
    *,
    tokens: ArrayLike | None = None,
    context: ArrayLike | None = None,
) -> Floats:
    """Return the bytes that a GPU holds at most: :func:`weight_bytes` and :func:`activation_bytes`, which say what is counted.

    Parameters
    ----------
    model : MoeModel
        Its shape.
    workload : Workload
        Phase, tokens per GPU, context.
    slots_per_gpu : int
        Physical experts that the GPU holds in each MoE layer.
    rows_received : int[...]
        Rows that a GPU computes in one MoE layer, as :func:`activation_bytes` takes them.
    tokens : int[...], optional
        Tokens that start on the GPU; by default what the workload says.
    context : float[...], optional
        How many tokens a token attends to on average; by default what the workload says.

    Returns
    -------
    float[...]
        One number for each of ``rows_received``.
    """
    activations = activation_bytes(model, workload, rows_received, tokens=tokens, context=context)
    return np.asarray(weight_bytes(model, slots_per_gpu, workload.phase) + activations)
