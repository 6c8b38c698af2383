"""What the mixing block of each layer costs: grouped-query, latent, linear and state-space attention, from their fields.

A model may mix kinds. The facts know one kind of layer, so each number is the mean over the layers: the sum over a step is exact, its
split between layers is not, and a note says so. Counted are the weights of matrices and convolutions; norms, biases, sinks and
scalars per head are left out (less than one in a thousand).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from moesim.desk.config_aliases import HEADS, KEY_VALUE_HEADS
from moesim.desk.config_fields import Fields
from moesim.facts.model import Attention

KINDS = {
    "full_attention": "full",
    "attention": "full",
    "sliding_attention": "sliding",
    "chunked_attention": "sliding",
    "compressed_sparse_attention": "full",
    "heavily_compressed_attention": "full",
    "linear_attention": "linear",
    "mamba": "mamba",
    "moe": "none",
    "mlp": "none",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixer:
    """One block: its weights, heads times mean width of scores and values, and cache elements per token of context."""

    parameters: int = 0
    score: float = 0.0
    cache: int = 0


def attention_of(fields: Fields, hidden: int, layers: int, blocks: list[str] | None, cache_bytes: float) -> tuple[Attention, list[str]]:
    """Return the attention facts, averaged over the layers, and notes on what they leave out.

    Parameters
    ----------
    fields : Fields
        The configuration; problems go there.
    hidden, layers : int
        Width of the residual stream; number of layers.
    blocks : list of str or None
        From :func:`moesim.desk.config_layers.blocks_of`.
    cache_bytes : float
        Bytes of one cached element.
    """
    kinds = _kinds(fields, layers, blocks)
    heads = fields.whole("attention heads", HEADS)
    makers = {"full": _full, "sliding": _sliding, "linear": _linear, "mamba": _mamba}
    mixers = {kind: makers[kind](fields, hidden, heads) for kind in sorted(set(kinds)) if kind != "none"}
    mixers["none"] = Mixer()
    score = sum(mixers[kind].score for kind in kinds) / max(1, len(kinds))
    if fields.sound and score <= 0:
        fields.complain("attention", "no layer attends to its context: moesim needs at least one attention layer")
    mean = Attention(
        heads=heads,
        score_width=max(score, 1.0) / heads,
        projection_parameters=round(sum(mixers[kind].parameters for kind in kinds) / max(1, len(kinds))),
        cache_bytes_per_token=round(cache_bytes * sum(mixers[kind].cache for kind in kinds) / max(1, len(kinds))),
    )
    return mean, _notes(fields, kinds, mixed=len({mixers[kind] for kind in kinds}) > 1)


def _kinds(fields: Fields, layers: int, blocks: list[str] | None) -> list[str]:
    if blocks is not None:
        return [KINDS[block] for block in blocks]
    linear = fields.value("linear_attn_config")
    if isinstance(linear, dict):
        # Kimi counts layers from 1 here, and only here.
        full = fields.numbers("linear_attn_config.full_attn_layers", minimum=1, maximum=layers)
        if full is None:
            fields.complain("full-attention layers", "missing; looked for linear_attn_config.full_attn_layers")
        chosen = set(full or ())
        return ["full" if i + 1 in chosen else "linear" for i in range(layers)]
    for name in ("layer_types", "layers_block_type"):
        listed = fields.choices(name, layers, tuple(KINDS))
        if listed is not None:
            return [KINDS[kind] for kind in listed]
    pattern = fields.choices("hybrid_layer_pattern", layers, (0, 1))
    if pattern is not None:
        return ["sliding" if flag else "full" for flag in pattern]
    if fields.has("full_attention_interval"):
        every = fields.whole("distance of full-attention layers", ("full_attention_interval",))
        return ["full" if (i + 1) % every == 0 else "linear" for i in range(layers)]
    if fields.has("attn_layer_period"):
        period = fields.whole("period of attention layers", ("attn_layer_period",))
        offset = fields.whole("offset of attention layers", ("attn_layer_offset",), minimum=0, default=0)
        return ["full" if i % period == offset else "mamba" for i in range(layers)]
    return ["full"] * layers


def _full(fields: Fields, hidden: int, heads: int) -> Mixer:
    if fields.has("o_lora_rank"):
        return _compressed(fields, hidden, heads)
    if fields.has("kv_lora_rank"):
        return _latent(fields, hidden, heads)
    if fields.has("global_head_dim"):
        width = fields.whole("width of a head", ("global_head_dim",))
        shared_value = fields.flag("sharing of keys and values", ("attention_k_eq_v",), default=False)
        groups = fields.whole("key-value heads", ("num_global_key_value_heads",)) if shared_value else _key_value_heads(fields, heads)
        return grouped_query(hidden, heads, groups, width, width, value_projection=not shared_value)
    width = _head_width(fields, hidden, heads)
    value_width = fields.whole("width of a value head", ("v_head_dim",), default=width)
    gate = fields.flag(
        "output gate", ("attn_output_gate",), default=fields.value("model_type") in ("qwen3_next", "qwen3_5_moe", "qwen3_5_moe_text")
    )
    return grouped_query(hidden, heads, _key_value_heads(fields, heads), width, value_width, gate=gate)


def _sliding(fields: Fields, hidden: int, heads: int) -> Mixer:
    if not fields.has("swa_num_key_value_heads", "swa_num_attention_heads", "global_head_dim"):
        return _full(fields, hidden, heads)
    heads = fields.whole("attention heads of sliding layers", ("swa_num_attention_heads",), default=heads)
    width = fields.whole("head width of sliding layers", ("swa_head_dim", "head_dim"), default=max(1, hidden // heads))
    value_width = fields.whole("value width of sliding layers", ("swa_v_head_dim", "v_head_dim"), default=width)
    groups = fields.whole("key-value heads of sliding layers", ("swa_num_key_value_heads",), default=_key_value_heads(fields, heads))
    return grouped_query(hidden, heads, groups, width, value_width)


def _key_value_heads(fields: Fields, heads: int) -> int:
    groups = fields.whole("key-value heads", KEY_VALUE_HEADS, default=heads)
    if fields.sound and heads % groups:
        fields.complain("num_key_value_heads", f"{heads} attention heads do not divide among {groups} key-value heads")
    return groups


def _head_width(fields: Fields, hidden: int, heads: int) -> int:
    if not fields.has("head_dim") and fields.sound and hidden % heads:
        fields.complain("head_dim", f"missing, and hidden size {hidden} does not divide among {heads} attention heads")
    return fields.whole("width of a head", ("head_dim",), default=max(1, hidden // heads))


def grouped_query(
    hidden: int, heads: int, groups: int, width: int, value_width: int, *, gate: bool = False, value_projection: bool = True
) -> Mixer:
    """Return multi-head, grouped-query or multi-query attention.

    Queries ``hidden x heads x width``, keys ``hidden x groups x width``, values ``hidden x groups x value_width``, output ``heads x
    value_width x hidden``. An output gate is as large as the values of all heads. Source: transformers, ``MixtralAttention``;
    the gate, which doubles ``q_proj``: ``Qwen3NextAttention``.
    """
    query = hidden * heads * width
    values = hidden * groups * value_width if value_projection else 0
    gating = hidden * heads * value_width if gate else 0
    return Mixer(
        parameters=query + hidden * groups * width + values + heads * value_width * hidden + gating,
        score=heads * (width + value_width) / 2,
        cache=groups * (width + value_width),
    )


def _latent(fields: Fields, hidden: int, heads: int) -> Mixer:
    """Return multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1; transformers ``DeepseekV3Attention``).

    Queries ``hidden x heads x (nope + rope)``, or through a rank r ``hidden x r + r x heads x (nope + rope)``; keys and values
    ``hidden x (rank + rope) + rank x heads x (nope + value)``; output ``heads x value x hidden``. Cached are the latent vector
    and the shared rotary key. A sparse-attention indexer (DeepSeek-V3.2) adds its query, key and head-weight projections.
    """
    rank = fields.whole("rank of keys and values", ("kv_lora_rank",))
    query_rank = fields.whole("rank of queries", ("q_lora_rank",), minimum=0, default=0)
    nope = fields.whole("width without rotation", ("qk_nope_head_dim",))
    rope = fields.whole("rotated width", ("qk_rope_head_dim",))
    value = fields.whole("width of a value head", ("v_head_dim",))
    width = nope + rope
    query = hidden * query_rank + query_rank * heads * width if query_rank else hidden * heads * width
    keys = hidden * (rank + rope) + rank * heads * (nope + value)
    gate = hidden * heads * value if fields.flag("output gate", ("mla_use_output_gate",), default=False) else 0
    index = 0
    if fields.has("index_n_heads"):
        index_heads = fields.whole("heads of the indexer", ("index_n_heads",))
        index_width = fields.whole("width of an indexer head", ("index_head_dim",))
        index = (query_rank or hidden) * index_heads * index_width + hidden * index_width + hidden * index_heads
    return Mixer(
        parameters=query + keys + heads * value * hidden + gate + index,
        score=heads * (width + value) / 2,
        cache=rank + rope,
    )


def _compressed(fields: Fields, hidden: int, heads: int) -> Mixer:
    """Return the shared-key attention of DeepSeek-V4 (its ``inference/model.py``, class ``Attention``).

    Queries through a rank, ``hidden x r + r x heads x width``; one key that is also the value, ``hidden x width``; output in two
    steps, ``heads x width x rank_out`` (block-diagonal over the groups: each multiplies only its own heads) and ``groups x rank_out x
    hidden``. The compressors and the indexer are not counted.
    """
    width = fields.whole("width of a head", ("head_dim",))
    query_rank = fields.whole("rank of queries", ("q_lora_rank",))
    output_rank = fields.whole("rank of outputs", ("o_lora_rank",))
    groups = fields.whole("groups of outputs", ("o_groups",))
    query = hidden * query_rank + query_rank * heads * width
    output = heads * width * output_rank + groups * output_rank * hidden
    return Mixer(parameters=query + hidden * width + output, score=float(heads * width), cache=width)


def _linear(fields: Fields, hidden: int, heads: int) -> Mixer:  # noqa: ARG001 - one signature for every kind
    """Return a linear-attention block; its state does not grow, so it caches nothing per token and its score costs nothing.

    Gated DeltaNet (transformers ``Qwen3NextGatedDeltaNet``): queries and keys ``2 x key``, values and gate ``2 x value``, two scalars
    per value head, a convolution over ``2 x key + value`` channels, output ``value x hidden``. Kimi delta attention
    (``KimiDeltaAttention``): queries, keys and values of ``heads x width``, a decay and (unless full-rank) a gate through rank
    ``width``, one scalar per head, three convolutions, output.
    """
    if isinstance(fields.value("linear_attn_config"), dict):
        number = fields.whole("linear-attention heads", ("linear_attn_config.num_heads",))
        width = fields.whole("width of a linear-attention head", ("linear_attn_config.head_dim",))
        kernel = fields.whole("convolution length", ("linear_attn_config.short_conv_kernel_size",), default=4)
        inner = number * width
        through = hidden * width + width * inner
        full_rank = fields.flag("full-rank gate", ("linear_attn_config.use_full_rank_gate",), default=False)
        gate = hidden * inner if full_rank else through
        return Mixer(parameters=4 * hidden * inner + through + gate + hidden * number + 3 * kernel * inner)
    keys = fields.whole("linear-attention key heads", ("linear_num_key_heads",)) * fields.whole(
        "width of a linear-attention key head", ("linear_key_head_dim",)
    )
    value_heads = fields.whole("linear-attention value heads", ("linear_num_value_heads",))
    values = value_heads * fields.whole("width of a linear-attention value head", ("linear_value_head_dim",))
    kernel = fields.whole("convolution length", ("linear_conv_kernel_dim",), default=4)
    inputs = hidden * (2 * keys + 2 * values + 2 * value_heads)
    return Mixer(parameters=inputs + kernel * (2 * keys + values) + values * hidden)


def _mamba(fields: Fields, hidden: int, heads: int) -> Mixer:  # noqa: ARG001 - one signature for every kind
    """Return a state-space block.

    Mamba-2 (transformers ``NemotronHMamba2Mixer``): input ``hidden x (2 inner + 2 groups x state + heads)``, a convolution over ``inner +
    2 groups x state`` channels, output ``inner x hidden``; the ``n_groups`` here have nothing to do with routing. Mamba-1
    (``JambaMambaMixer``): input ``hidden x 2 inner``, convolution, ``inner x (rank + 2 state)``, ``rank x inner``, output.
    """
    kernel = fields.whole("convolution length", ("conv_kernel", "mamba_d_conv"), default=4)
    state = fields.whole("state size", ("ssm_state_size", "mamba_d_state"))
    if fields.has("mamba_num_heads", "mamba_n_heads"):
        number = fields.whole("state-space heads", ("mamba_num_heads", "mamba_n_heads"))
        inner = number * fields.whole("width of a state-space head", ("mamba_head_dim", "mamba_d_head"))
        channels = inner + 2 * state * fields.whole("state-space groups", ("n_groups", "mamba_n_groups"))
        return Mixer(parameters=hidden * (inner + channels + number) + kernel * channels + inner * hidden)
    inner = hidden * fields.whole("widening of the state-space block", ("mamba_expand",))
    automatic = fields.value("mamba_dt_rank") in (None, "auto")
    rank = math.ceil(hidden / 16) if automatic else fields.whole("rank of the time step", ("mamba_dt_rank",))
    return Mixer(parameters=hidden * 2 * inner + kernel * inner + inner * (rank + 2 * state) + rank * inner + inner * hidden)


def _notes(fields: Fields, kinds: list[str], *, mixed: bool) -> list[str]:
    notes = []
    if mixed:
        present = {kind: kinds.count(kind) for kind in ("full", "sliding", "linear", "mamba", "none") if kind in kinds}
        listing = ", ".join(f"{count} {kind}" for kind, count in present.items())
        notes.append(f"attention is a mean over layers of several kinds ({listing}): its sum is right, its split between layers is not")
    windowed = fields.value("sliding_window") is not None and fields.value("use_sliding_window") is not False
    if "sliding" in kinds or (windowed and "full" in kinds and not fields.has("layer_types")):
        notes.append("attention windows are not modelled: every attention layer attends to the whole context")
    if fields.has("index_topk", "compress_ratios", "sparse_attention_config"):
        notes.append("sparse attention is not modelled: every attention layer attends to the whole context")
    return notes
