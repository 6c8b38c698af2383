"""Which field names a quantity goes by, and what each family of models leaves unsaid.

The names are those met in the configuration classes of transformers 5.23 and in published ``config.json`` files. A family's
entry says only what its files do not: what ``intermediate_size`` means, and how its router scores when no field tells.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

HIDDEN = ("hidden_size", "d_model", "n_embd", "dim")
LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
VOCABULARY = ("vocab_size",)
EXPERTS = (
    "num_local_experts",
    "num_experts",
    "n_routed_experts",
    "moe_num_experts",
    "num_routed_experts",
    "ffn_config.moe_num_experts",
)
TOP_K = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "top_k_experts",
    "ffn_config.moe_top_k",
)
EXPERT_WIDTH = ("moe_intermediate_size", "expert_ffn_hidden_size", "moe_ffn_hidden_size", "ffn_config.ffn_hidden_size")
PLAIN_WIDTH = ("intermediate_size",)
DENSE_WIDTH = ("intermediate_size_mlp", "dense_intermediate_size", "ffn_hidden_size")
SHARED_COUNT = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert")
SHARED_WIDTH = (
    "shared_expert_intermediate_size",
    "shared_intermediate_size",
    "moe_shared_expert_intermediate_size",
    "share_expert_dim",
)
GROUPS = ("n_group", "num_expert_group")
TOP_GROUPS = ("topk_group",)
SCORING = ("scoring_func", "moe_router_activation_func", "score_function", "scoring_function")
NORMALISE = ("norm_topk_prob", "moe_renormalize", "norm_expert_weight")
ROUTED_SCALE = ("routed_scaling_factor", "moe_router_scaling_factor", "router_scaling_factor")
BIAS = ("use_routing_bias", "use_moe_router_bias", "moe_router_enable_expert_bias", "use_expert_bias")
DISPATCH_WIDTH = ("moe_latent_size", "routed_expert_hidden_size")
HASH_LAYERS = ("num_hash_layers",)
FIRST_DENSE = ("first_k_dense_replace", "num_dense_layers", "moe_layer_num_skipped")
HEADS = ("num_attention_heads", "n_heads", "n_head")
KEY_VALUE_HEADS = ("num_key_value_heads", "num_attention_groups", "attn_config.kv_n_heads")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What a ``model_type`` implies.

    Parameters
    ----------
    plain_width : bool
        ``intermediate_size`` is the width of an expert, not of a dense block.
    scoring, normalise, bias :
        How the router scores, whether it normalises the chosen weights, whether it has a correction bias.
    shared : int
        Shared experts, each as wide as a routed one, that no field mentions.
    gated : bool
        Whether blocks have a gate matrix.
    dense_beside : bool
        Every MoE layer also runs a dense block of ``intermediate_size``, as a shared expert would.
    step : int
        Every how many layers one has experts, when no field tells.
    """

    plain_width: bool = False
    scoring: str = "softmax"
    normalise: bool = False
    bias: bool = False
    shared: int = 0
    gated: bool = True
    dense_beside: bool = False
    step: int = 1


_PLAIN = Family(plain_width=True)
_PLAIN_NORMAL = Family(plain_width=True, normalise=True)
_SOFTMAX = Family()
_NORMAL = Family(normalise=True)
_SIGMOID = Family(scoring="sigmoid", normalise=True, bias=True)
_PLAIN_SIGMOID = replace(_SIGMOID, plain_width=True)
_LLAMA4 = Family(plain_width=True, scoring="sigmoid", shared=1)
_GEMMA4 = Family(normalise=True, dense_beside=True)

FAMILIES: dict[str, Family] = {
    "mixtral": _PLAIN_NORMAL,
    "olmoe": _PLAIN,
    "gpt_oss": _PLAIN_NORMAL,
    "granitemoe": _PLAIN_NORMAL,
    "granitemoeshared": _PLAIN_NORMAL,
    "granitemoehybrid": _PLAIN_NORMAL,
    "phimoe": _PLAIN,
    "llama4": _LLAMA4,
    "llama4_text": _LLAMA4,
    "minimax": _PLAIN_NORMAL,
    "minimax_m2": _PLAIN_SIGMOID,
    "minimax_m3": _PLAIN_SIGMOID,
    "minimax_m3_text": _PLAIN_SIGMOID,
    "minimax_m3_vl": _PLAIN_SIGMOID,
    "jamba": Family(plain_width=True, step=2),
    "hunyuan_v1_moe": _PLAIN_NORMAL,
    "qwen2_moe": _SOFTMAX,
    "qwen3_moe": _SOFTMAX,
    "qwen3_vl_moe": _NORMAL,
    "qwen3_vl_moe_text": _NORMAL,
    "qwen3_next": _NORMAL,
    "qwen3_5_moe": _NORMAL,
    "qwen3_5_moe_text": _NORMAL,
    "deepseek": _SOFTMAX,
    "deepseek_v2": _SOFTMAX,
    "deepseek_v3": _SIGMOID,
    "deepseek_v32": _SIGMOID,
    "deepseek_v4": replace(_SIGMOID, scoring="sqrtsoftplus"),
    "kimi_k2": _SIGMOID,
    "kimi_k25": _SIGMOID,
    "kimi_linear": _SIGMOID,
    "kimi_k3": _SIGMOID,
    "glm4_moe": _SIGMOID,
    "glm4_moe_lite": _SIGMOID,
    "glm4v_moe": _SIGMOID,
    "glm4v_moe_text": _SIGMOID,
    "glm_moe_dsa": _SIGMOID,
    "dots1": _SIGMOID,
    "bailing_moe_v2": _SIGMOID,
    "mimo_v2": _SIGMOID,
    "mimo_v2_flash": _SIGMOID,
    "step3p5": _SIGMOID,
    "step3p7": _SIGMOID,
    "nemotron_h": replace(_SIGMOID, gated=False),
    "ernie4_5_moe": Family(normalise=True, bias=True),
    "gemma4": _GEMMA4,
    "gemma4_text": _GEMMA4,
    "longcat_flash": Family(bias=True),
    "dbrx": _NORMAL,
}
"""Known values of ``model_type``; ``architectures`` is never looked at, because it misleads (Kimi-K2 carries DeepSeek's)."""
