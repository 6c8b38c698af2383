"""Arithmetic and memory traffic of the parts of a layer whose cost depends on the number of tokens only.

What is counted: matrix multiplications, attention scores, and the bytes that go through a GPU's memory when weights are read once and
activations go in and out of every kernel. What is not: norms, rotations, softmax of the router, biases, the embedding and the head.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from moesim.base.errors import UsageError, did_you_mean
from moesim.facts.arrays import Floats, frozen
from moesim.facts.model import DTYPE_BYTES, MoeModel
from moesim.facts.program import BACKWARD, FORWARD

GRADIENT_BYTES = 4.0
"""Bytes per weight gradient: mixed-precision training adds them up in fp32 (Megatron-LM, ``main_grad``)."""

QUERY_BLOCK = 128
"""Queries that share one read of the keys and values of their sequence (FlashAttention-2 works through blocks of 64 to 128 queries)."""

PHASES = ("attention", "attention_core", "dense", "gate", "shared")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What kernels of one phase do on each GPU.

    Parameters
    ----------
    flops : float[G]
        Floating-point operations, a multiplication and an addition being two.
    moved : float[G]
        Bytes read from and written to the GPU's memory.
    dtype : str
        In what the matrix units compute, a key of ``DTYPE_BYTES``.
    """

    flops: Floats
    moved: Floats
    dtype: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "flops", frozen(self.flops, np.float64))
        object.__setattr__(self, "moved", frozen(self.moved, np.float64))


def dense_work(
    phase: str, model: MoeModel, tokens: ArrayLike, context: ArrayLike, direction: str = FORWARD, *, workload_phase: str = "training"
) -> Work:
    """Return what one layer's ``phase`` does with ``tokens`` tokens on each GPU.

    Parameters
    ----------
    phase : str
        ``attention``, ``attention_core`` (its scores and values alone), ``dense`` (the feed-forward block of a dense layer), ``gate`` or
        ``shared`` (all shared experts).
    model : MoeModel
        Its shape.
    tokens : int[G]
        Tokens on each GPU; no tokens, no work.
    context : int or float[G]
        Tokens that a token attends to on average.
    direction : str
        ``forward`` or ``backward``.
    workload_phase : str
        ``training``, ``prefill`` or ``decode``. In ``decode`` every token belongs to another sequence, so each reads its own keys and
        values; otherwise blocks of ``QUERY_BLOCK`` queries share one read.

    Returns
    -------
    Work
        Flops, bytes and the dtype of the arithmetic.

    Raises
    ------
    UsageError
        If the phase or the direction does not exist.
    """
    if direction not in {FORWARD, BACKWARD}:
        raise UsageError(f"unknown direction {direction!r}{did_you_mean(direction, (FORWARD, BACKWARD))}")
    count, context = np.asarray(tokens, dtype=np.float64), np.asarray(context, dtype=np.float64)
    if phase == "attention":
        return attention_work(model, count, context, direction, workload_phase=workload_phase)
    if phase == "attention_core":
        return attention_core_work(model, count, context)
    if phase == "dense":
        return feed_forward_work(model, count, model.dense_width, direction)
    if phase == "shared":
        return feed_forward_work(model, count, model.shared_width, direction)
    if phase == "gate":
        return gate_work(model, count, direction)
    raise UsageError(f"unknown phase {phase!r}{did_you_mean(phase, PHASES)}")


def matrix_work(tokens: Floats, parameters: float, weight_bytes: float, moved_per_token: float, direction: str) -> tuple[Floats, Floats]:
    """Return the flops and bytes of multiplying ``tokens`` rows by ``parameters`` weights.

    Forward, 2 flops per row and weight. Backward, twice that: once for the gradient of the rows (dgrad), once for the gradient of the
    weights (wgrad); this is the factor 3 of Megatron-LM's ``num_floating_point_operations`` (forward, dgrad, wgrad) less the forward
    part, and the 6 N of PaLM (arXiv:2204.02311, appendix B) less its 2 N.

    Bytes, forward: the weights once, ``moved_per_token`` for each row. Backward: the weights once (dgrad), their gradients written once
    in fp32 (wgrad), and twice the activations, since each kernel of the forward pass has two counterparts.

    Parameters
    ----------
    tokens : float[G]
        Rows on each GPU.
    parameters : float
        Weights that every row meets.
    weight_bytes : float
        Bytes per weight.
    moved_per_token : float
        Bytes of activations that the forward pass reads and writes per row.
    direction : str
        ``forward`` or ``backward``.
    """
    once = (tokens > 0).astype(np.float64)
    flops = 2.0 * parameters * tokens
    if direction == FORWARD:
        return flops, once * parameters * weight_bytes + tokens * moved_per_token
    return 2.0 * flops, once * parameters * (weight_bytes + GRADIENT_BYTES) + 2.0 * tokens * moved_per_token


def attention_work(model: MoeModel, tokens: Floats, context: Floats | float, direction: str, *, workload_phase: str = "training") -> Work:
    """Return the work of the attention block of one layer.

    Projections: 2 flops per token and weight. Scores and values: ``4 * context * heads * score_width`` per token (PaLM,
    arXiv:2204.02311, appendix B: 12 L H Q T for forward and backward together, a third of it forward). The backward pass of the scores
    does 5 matrix products where the forward pass does 2, since FlashAttention computes the scores again (FlashAttention-2,
    arXiv:2307.08691, section 4.1: 2.5 times).

    Bytes: weights once; per token the residual stream in and out and the queries and results; keys and values are written once per token
    and read once per token (decode) or once per block of queries. Arithmetic is in the activation dtype: scores are never narrower, and
    projections in a narrower dtype make this an upper bound.
    """
    activation = DTYPE_BYTES[model.activation_dtype]
    block = model.attention
    width = block.heads * block.score_width
    flops, moved = matrix_work(
        tokens,
        float(block.projection_parameters),
        DTYPE_BYTES[model.weight_dtype],
        activation * (2.0 * model.hidden + 4.0 * width),
        direction,
    )
    scores = 4.0 * context * width * tokens
    readers = 1.0 if workload_phase == "decode" else float(QUERY_BLOCK)
    cache = tokens * block.cache_bytes_per_token * (1.0 + context / readers)
    factor, passes = (1.0, 1.0) if direction == FORWARD else (2.5, 2.0)
    return Work(flops=flops + factor * scores, moved=moved + passes * cache, dtype=model.activation_dtype)


def attention_core_work(model: MoeModel, tokens: Floats, context: Floats | float) -> Work:
    """Return the work of scores and values of one layer, forward: what selective recomputation of attention does once more.

    Counted as in :func:`attention_work`: ``4 * context * heads * score_width`` flops per token; queries in and results out, and keys
    and values of the context once per block of queries.
    """
    block = model.attention
    width = block.heads * block.score_width
    moved = tokens * (DTYPE_BYTES[model.activation_dtype] * 2.0 * width + block.cache_bytes_per_token * context / QUERY_BLOCK)
    return Work(flops=4.0 * context * width * tokens, moved=moved, dtype=model.activation_dtype)


def feed_forward_work(model: MoeModel, tokens: Floats, width: int, direction: str) -> Work:
    """Return the work of a feed-forward block: three matrices of ``hidden * width`` if it is gated, otherwise two.

    Activations per token of a gated block: ``hidden`` in, ``2 width`` out of the first product, ``2 width`` into and ``width`` out of the
    gate's activation, ``width`` into and ``hidden`` out of the last product; without a gate the first two are ``width``. (Megatron-LM's
    ``num_floating_point_operations`` counts the gated block with the same factor 3/2 over the plain one.)
    """
    activation = DTYPE_BYTES[model.activation_dtype]
    flops, moved = matrix_work(
        tokens if width else np.zeros_like(tokens),
        float(model.matrices * model.hidden * width),
        DTYPE_BYTES[model.weight_dtype],
        activation * (2.0 * model.hidden + 2.0 * model.matrices * width),
        direction,
    )
    return Work(flops=flops, moved=moved, dtype=model.weight_dtype)


def gate_work(model: MoeModel, tokens: Floats, direction: str) -> Work:
    """Return the work of the router: one product of ``hidden * experts``, in the activation dtype as routers are not quantised.

    The scores go in and out in fp32. Where tokens travel narrower than the residual stream (``dispatch_width < hidden``, latent MoE),
    the projections to that width and back are here too: they are done once per token on its own GPU.
    """
    activation = DTYPE_BYTES[model.activation_dtype]
    parameters = float(model.hidden * model.experts)
    per_token = activation * model.hidden + 2.0 * 4.0 * model.experts
    if model.dispatch_width != model.hidden:
        parameters += 2.0 * model.hidden * model.dispatch_width
        per_token += 2.0 * activation * (model.hidden + model.dispatch_width)
    flops, moved = matrix_work(tokens, parameters, activation, per_token, direction)
    return Work(flops=flops, moved=moved, dtype=model.activation_dtype)


def permute_bytes(model: MoeModel, rows: ArrayLike) -> Floats:
    """Return the bytes moved to sort received rows by expert and to put the results back: a read and a write of each row, both times.

    No flops worth counting: the weighted sum of the results does 2 per element, hidden behind its memory traffic on every GPU.

    Parameters
    ----------
    model : MoeModel
        For the width and the dtype of a row.
    rows : int[...]
        Rows that a GPU computes in one layer.

    Returns
    -------
    float[...]
        The same forward and backward: the gradients are permuted the other way round.
    """
    return 4.0 * np.asarray(rows, dtype=np.float64) * model.dispatch_width * DTYPE_BYTES[model.activation_dtype]
