"""The reader of config.json: aliases, traps, exact attention, and one clear message for everything wrong."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import ScenarioError
from moesim.desk.model_config import model_of, read_config
from moesim.facts.model import MoeModel

CONFIGS = Path(__file__).parent / "configs"

MIXTRAL = {
    "model_type": "mixtral",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 100,
}
DEEPSEEK = {
    "model_type": "deepseek_v3",
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 10,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "n_routed_experts": 16,
    "n_shared_experts": 2,
    "num_experts_per_tok": 4,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
    "scoring_func": "sigmoid",
}


def but(base, **changes):
    changed = {**base, **changes}
    return {key: value for key, value in changed.items() if value is not ...}


def complaints(config):
    with pytest.raises(ScenarioError) as caught:
        model_of(config)
    return {problem.path: problem.message for problem in caught.value.problems}


# hidden, layers, experts, top-k, expert width; layers with experts; shared width; dispatch width; published total in billions.
GOLDEN = {
    "dbrx": ((6144, 40, 16, 4, 10752), 40, 0, 6144, 132.0),
    "deepseek-v4-flash": ((4096, 43, 256, 6, 2048), 43, 2048, 4096, 284.0),
    "deepseek-v4-pro": ((7168, 61, 384, 6, 3072), 61, 3072, 7168, 1600.0),
    "ernie-4.5-21b": ((2560, 28, 64, 6, 1536), 27, 3072, 2560, 21.8),
    "gemma-4-26b-a4b": ((2816, 30, 128, 8, 704), 30, 2112, 2816, 25.2),
    "jamba": ((4096, 32, 16, 2, 14336), 16, 0, 4096, 51.6),
    "kimi-k2-short": ((7168, 61, 384, 8, 2048), 60, 2048, 7168, 1026.0),
    "kimi-k3": ((7168, 93, 896, 16, 3072), 92, 6144, 3584, 2780.0),
    "llama-4-maverick": ((5120, 48, 128, 1, 8192), 24, 8192, 5120, 401.0),
    "llama-4-scout": ((5120, 48, 16, 1, 8192), 48, 8192, 5120, 108.0),
    "mimo-v2-flash": ((4096, 48, 256, 8, 2048), 47, 0, 4096, 309.0),
    "minimax-m2.5": ((3072, 62, 256, 8, 1536), 62, 0, 3072, 229.0),
    "minimax-m3": ((6144, 60, 128, 4, 3072), 57, 3072, 6144, 426.0),
    "nemotron-3-ultra": ((8192, 12, 512, 22, 5120), 6, 10240, 2048, None),
    "qwen2-57b": ((3584, 28, 64, 8, 2560), 28, 20480, 3584, 57.4),
    "qwen3.5-397b": ((4096, 60, 512, 10, 1024), 60, 1024, 4096, 397.0),
    "step-3.7-flash": ((4096, 45, 288, 8, 1280), 42, 1280, 4096, 196.0),
}


def test_every_fixture_is_golden():
    assert sorted(file.stem for file in CONFIGS.glob("*.json")) == sorted(GOLDEN)


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_golden_configurations(name):
    shape, moe_layers, shared_width, dispatch_width, total = GOLDEN[name]
    model = read_config(CONFIGS / f"{name}.json")
    assert model.name == name
    assert (model.hidden, model.layers, model.experts, model.top_k, model.expert_width) == shape
    assert len(model.moe_layers) == moe_layers
    assert model.shared_width == shared_width
    assert model.dispatch_width == dispatch_width
    if total is not None:
        # V4-Pro is only published as 1.6T, two digits: 2 % there, 1 % elsewhere.
        assert model.total_parameters / 1e9 == pytest.approx(total, rel=0.02 if name == "deepseek-v4-pro" else 0.01)


def test_trap_nested_text_config_and_implied_shared_expert():
    model = read_config(CONFIGS / "llama-4-maverick.json")
    # Every second layer, the last of each pair; the dense ones are twice as wide; one shared expert that no field mentions.
    assert model.moe_layers == tuple(range(1, 48, 2))
    assert (model.dense_width, model.shared_experts, model.scoring) == (16384, 1, "sigmoid")


def test_trap_architectures_mislead():
    model = read_config(CONFIGS / "kimi-k2-short.json")
    # It says DeepseekV3ForCausalLM, which would mean 8 groups: Kimi has none.
    assert (model.groups, model.top_groups) == (1, 1)
    assert (model.scoring, model.correction_bias, model.moe_layers[0]) == ("sigmoid", True, 1)


def test_trap_mamba_groups_are_not_routing_groups():
    model = read_config(CONFIGS / "nemotron-3-ultra.json")
    assert (model.groups, model.top_groups) == (1, 1)
    assert model.moe_layers == (1, 3, 5, 7, 9, 11)
    # Latent experts without a gate: two matrices of 2048 x 5120.
    assert model.expert_parameters == 2 * 2048 * 5120
    # Mamba-2 by hand: inner 256 x 64 = 16384, channels 16384 + 2 x 8 x 128 = 18432; attention 64 heads, 2 groups of 128.
    mamba = 8192 * (16384 + 18432 + 256) + 4 * 18432 + 16384 * 8192
    attention = 2 * 8192 * 64 * 128 + 2 * 8192 * 2 * 128
    assert model.attention.projection_parameters == round((4 * mamba + 2 * attention) / 12)
    assert any("mean over layers" in note for note in model.notes)


def test_the_letters_of_a_hybrid_pattern_are_the_blocks():
    config = json.loads((CONFIGS / "nemotron-3-ultra.json").read_text())
    listed = model_of(config)
    lettered = model_of(but(config, layers_block_type=..., hybrid_override_pattern="MEME*E" * 2, num_hidden_layers=12))
    assert lettered == listed
    assert "the pattern of blocks has 12" in complaints(but(config, num_hidden_layers=13))["num_hidden_layers"]
    assert "letters" in complaints(but(config, layers_block_type=..., hybrid_override_pattern="MEX"))["hybrid_override_pattern"]
    assert "dense blocks" in complaints(but(config, layers_block_type=..., hybrid_override_pattern="ME*-"))["hybrid_override_pattern"]


def test_trap_latent_experts_and_linear_attention():
    model = read_config(CONFIGS / "kimi-k3.json")
    assert (model.dispatch_width, model.shared_experts, model.shared_width) == (3584, 2, 6144)
    inner = 96 * 128
    linear = 4 * 7168 * inner + 7168 * 128 + 128 * inner + 7168 * inner + 7168 * 96 + 3 * 4 * inner
    latent = 7168 * 1536 + 1536 * 96 * 192 + 7168 * 576 + 512 * 96 * 256 + 2 * 96 * 128 * 7168
    assert model.attention.projection_parameters == round((69 * linear + 24 * latent) / 93)
    assert model.attention.score_width == pytest.approx(160 * 24 / 93)


def test_trap_hash_layers_and_expert_format():
    model = read_config(CONFIGS / "deepseek-v4-pro.json")
    assert (model.hash_layers, model.expert_dtype, model.weight_dtype, model.scoring) == (3, "fp4", "fp8", "sqrtsoftplus")
    # Queries through rank 1536, one key of 512, output through 16 groups of rank 1024.
    by_hand = 7168 * 1536 + 1536 * 128 * 512 + 7168 * 512 + 128 * 512 * 1024 + 16 * 1024 * 7168
    assert model.attention.projection_parameters == by_hand
    assert any("sparse attention" in note for note in model.notes)


def test_trap_experts_that_compute_nothing_are_refused():
    found = complaints(but(DEEPSEEK, model_type="longcat_flash", zero_expert_num=256))
    assert "work of a token varies" in found["zero_expert_num"]
    assert "two attention" in complaints(but(DEEPSEEK, model_type="longcat_flash"))["model_type"]


def test_trap_unknown_model_type_names_what_is_missing_and_what_was_tried():
    found = complaints(but(MIXTRAL, model_type="mixtrall"))
    assert "did you mean 'mixtral'" in found["model_type"]
    # A plain intermediate_size may mean anything; nothing says which layers have experts or how the router scores.
    assert found["width of an expert"].startswith("missing; looked for moe_intermediate_size, expert_ffn_hidden_size")
    assert "first_k_dense_replace" in found["which layers have experts"]
    assert "scoring_func" in found["scoring function"]
    assert set(found) == {"model_type", "width of an expert", "which layers have experts", "scoring function"}


def test_an_unknown_model_that_says_everything_is_read():
    model = model_of(but(DEEPSEEK, model_type="brand_new"))
    assert (model.name, model.experts, model.moe_layers) == ("brand_new", 16, (1, 2, 3, 4, 5))


def test_a_missing_model_type_is_unknown():
    assert "['mixtral'] is not a model" in complaints(but(MIXTRAL, model_type=["mixtral"]))["model_type"]
    assert "null is not a model" in complaints(but(MIXTRAL, model_type=...))["model_type"]


def test_latent_attention_without_a_query_rank():
    model = model_of(DEEPSEEK)
    # q 64 x 4 x 12, kv 64 x (16 + 4) + 16 x 4 x (8 + 10), output 4 x 10 x 64.
    assert model.attention.projection_parameters == 3072 + 1280 + 1152 + 2560
    assert model.attention.score_width == (12 + 10) / 2
    assert model.attention.cache_bytes_per_token == 2 * (16 + 4)
    # The indexer of sparse attention: queries from the hidden state, one key, one weight per head.
    indexed = model_of(but(DEEPSEEK, index_n_heads=2, index_head_dim=8, index_topk=64))
    assert indexed.attention.projection_parameters - model.attention.projection_parameters == 64 * 16 + 64 * 8 + 64 * 2


def test_gated_delta_net_by_hand():
    model = read_config(CONFIGS / "qwen3.5-397b.json")
    key, value = 16 * 128, 64 * 128
    linear = 4096 * (2 * key + 2 * value + 2 * 64) + 4 * (2 * key + value) + value * 4096
    # The output gate doubles the queries.
    full = 3 * 4096 * 32 * 256 + 2 * 4096 * 2 * 256
    assert model.attention.projection_parameters == round((45 * linear + 15 * full) / 60)
    # A quarter of the layers attend and cache: 2 heads x 2 x 256 x 2 bytes.
    assert model.attention.cache_bytes_per_token == 2048 // 4
    assert model.attention.score_width == 256 / 4


def test_sliding_layers_with_their_own_heads_by_hand():
    model = read_config(CONFIGS / "mimo-v2-flash.json")
    common = 4096 * 64 * 192 + 64 * 128 * 4096
    assert model.attention.projection_parameters == round(common + 4096 * 320 * (9 * 4 + 39 * 8) / 48)
    assert model.routed_scale == 1.0  # null
    gemma = read_config(CONFIGS / "gemma-4-26b-a4b.json")
    sliding, full = 2 * 2816 * 16 * 256 + 2 * 2816 * 8 * 256, 2 * 2816 * 16 * 512 + 2816 * 2 * 512
    assert gemma.attention.projection_parameters == round((25 * sliding + 5 * full) / 30)
    assert gemma.tied_embeddings


def test_state_space_blocks_of_jamba_by_hand():
    model = read_config(CONFIGS / "jamba.json")
    assert model.moe_layers == tuple(range(1, 32, 2))
    mamba = 4096 * 16384 + 4 * 8192 + 8192 * (256 + 32) + 256 * 8192 + 8192 * 4096
    assert model.attention.projection_parameters == round((28 * mamba + 4 * (2 * 4096**2 + 2 * 4096 * 1024)) / 32)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (0, 1, 2, 3, 4, 5)),
        ({"first_k_dense_replace": 2}, (2, 3, 4, 5)),
        ({"first_k_dense_replace": 1, "moe_layer_freq": 2}, (2, 4)),
        ({"moe_layer_freq": [0, 1, 1, 0, 1, 1]}, (1, 2, 4, 5)),
        ({"decoder_sparse_step": 2}, (1, 3, 5)),
        ({"decoder_sparse_step": 1, "mlp_only_layers": [0, 3]}, (1, 2, 4, 5)),
        ({"interleave_moe_layer_step": 3}, (2, 5)),
        ({"interleave_moe_layer_step": 3, "moe_layers": [5, 1]}, (1, 5)),
        ({"expert_layer_period": 3, "expert_layer_offset": 1}, (1, 4)),
        ({"moe_layer_start_index": 1, "moe_layer_end_index": 4, "moe_layer_interval": 2}, (1, 3)),
        ({"moe_layer_start_index": [2, 2], "moe_layer_end_index": -1}, (2, 3, 4, 5)),
        ({"mlp_layer_types": ["dense", "sparse"] * 3}, (1, 3, 5)),
        ({"moe_layers_enum": "3,4, 5"}, (3, 4, 5)),
        ({"moe_layers_enum": [1, 2]}, (1, 2)),
        ({"first_k_dense_replace": 3, "mlp_layer_types": ["dense"] * 3 + ["sparse"] * 3}, (3, 4, 5)),
    ],
)
def test_which_layers_have_experts(fields, expected):
    # The family's own rule is removed unless the case states it.
    assert model_of(but(DEEPSEEK, **({"first_k_dense_replace": ...} | fields))).moe_layers == expected


@pytest.mark.parametrize(
    ("fields", "path", "message"),
    [
        ({"mlp_layer_types": ["sparse"] * 6}, "moe_layer_freq", "must be the same layers"),
        ({"mlp_layer_types": ["sparse"] * 5}, "mlp_layer_types", "has 5 entries, but the model has 6 layers"),
        ({"mlp_layer_types": ["sparse", "odd"] * 3}, "mlp_layer_types", "unknown entry 'odd' for layer 1"),
        ({"first_k_dense_replace": 6}, "moe_layer_freq", "no layer has experts"),
        ({"moe_layers_enum": "3,9"}, "moe_layers_enum", "layers (0 to 5)"),
        ({"mlp_only_layers": [0, 6]}, "mlp_only_layers", "not the number of a layer (0 to 5)"),
        ({"mlp_only_layers": 3}, "mlp_only_layers", "not a list"),
        ({"hidden_size": "64"}, "hidden_size", "'64' is not a whole number"),
        ({"hidden_size": 64.0}, "hidden_size", "64.0 is not a whole number"),
        ({"hidden_size": True}, "hidden_size", "true is not a whole number"),
        ({"hidden_size": -64}, "hidden_size", "-64 is too small"),
        ({"hidden_size": 10**40}, "hidden_size", "a number of more than 30 digits is too large"),
        ({"num_hidden_layers": 20_000}, "num_hidden_layers", "must be at most 10000"),
        ({"num_experts_per_tok": [2, 2, 4]}, "num_experts_per_tok", "differs from layer to layer"),
        ({"num_experts": 8}, "n_routed_experts", "16 contradicts num_experts (8)"),
        ({"num_experts_per_tok": 17}, "top_k", "larger than experts"),
        ({"n_group": 5}, "groups", "do not divide"),
        ({"scoring_func": "softmaxx"}, "scoring_func", "did you mean 'softmax'"),
        ({"routed_scaling_factor": "2.5"}, "routed_scaling_factor", "is not a number"),
        ({"routed_scaling_factor": -1}, "routed_scaling_factor", "out of range"),
        ({"routed_scaling_factor": float("nan")}, "routed_scaling_factor", "out of range"),
        ({"norm_topk_prob": 1}, "norm_topk_prob", "neither true nor false"),
        ({"torch_dtype": "float12"}, "torch_dtype", "unknown number format 'float12'"),
        ({"quantization_config": []}, "quantization_config", "not a mapping"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "quantization_config.quant_method", "4-bit"),
        ({"quantization_config": {"quant_method": "magic"}}, "quantization_config.quant_method", "unknown quantisation 'magic'"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder", "decoders only"),
        ({"kv_lora_rank": ..., "v_head_dim": ..., "num_attention_heads": 5}, "head_dim", "does not divide"),
        ({"layer_types": ["linear_attention", "full_attention"] * 3}, "linear-attention key heads", "looked for linear_num_key_heads"),
        ({"layer_types": ["conv", "full_attention"] * 3}, "layer_types", "unknown entry 'conv'"),
        ({"intermediate_size": ...}, "width of a dense block", "looked for intermediate_size"),
        ({"vocab_size": []}, "vocab_size", "[] is not a whole number"),
        ({"quantization_config": {"quant_method": ["fp8"]}}, "quantization_config.quant_method", "unknown quantisation ['fp8']"),
    ],
)
def test_each_wrong_field_has_one_clear_message(fields, path, message):
    found = complaints(but(DEEPSEEK, **fields))
    assert message in found[path]
    assert len(found) == (1 if path != "linear-attention key heads" else 4)


def test_all_problems_are_reported_at_once():
    found = complaints(but(DEEPSEEK, hidden_size=..., n_routed_experts="x", scoring_func=3))
    assert set(found) == {"hidden size", "n_routed_experts", "scoring_func"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ("bf16", "bf16", "bf16")),
        ({"dtype": "float16"}, ("fp16", "fp16", "fp16")),
        ({"torch_dtype": "torch.float32"}, ("fp32", "fp32", "fp32")),
        ({"quantization_config": {"quant_method": "fp8"}}, ("fp8", "fp8", "bf16")),
        ({"quantization_config": {"quant_method": "mxfp4"}}, ("bf16", "mxfp4", "bf16")),
        ({"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}, ("bf16", "fp4", "bf16")),
        ({"quantization_config": {"quant_method": "gptq", "bits": 8}}, ("int8", "int8", "bf16")),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}, "expert_dtype": "fp4"}, ("bf16", "fp4", "bf16")),
        (
            {
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "config_groups": {"g": {"weights": {"num_bits": 8, "type": "float"}}},
                }
            },
            ("fp8", "fp8", "bf16"),
        ),
    ],
)
def test_number_formats(fields, expected):
    model = model_of(but(DEEPSEEK, **fields))
    assert (model.weight_dtype, model.expert_dtype, model.activation_dtype) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"n_shared_experts": 2}, (2, 64)),
        ({"n_shared_experts": 0}, (0, 0)),
        ({"n_shared_experts": None}, (0, 0)),
        ({"n_shared_experts": None, "shared_expert_intermediate_size": 48}, (1, 48)),
        ({"n_shared_experts": None, "shared_intermediate_size": 0}, (0, 0)),
        ({"n_shared_experts": 2, "moe_shared_expert_intermediate_size": 48}, (2, 96)),
    ],
)
def test_shared_experts_are_a_count_or_a_width(fields, expected):
    model = model_of(but(DEEPSEEK, **fields))
    assert (model.shared_experts, model.shared_width) == expected


def test_aliases_that_agree_are_one_field():
    # gpt-oss writes its top-k twice; Hunyuan writes it once per layer.
    assert model_of(but(MIXTRAL, experts_per_token=2)).top_k == 2
    assert model_of(but(MIXTRAL, num_experts_per_tok=..., moe_topk=[3, 3, 3, 3])).top_k == 3


def test_greedy_routing_ignores_groups():
    assert model_of(but(DEEPSEEK, topk_method="greedy")).groups == 1
    assert model_of(but(DEEPSEEK, topk_method="group_limited_greedy")).top_groups == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1:1: not JSON"),
        ('{"a": 1,\n "b" 2}', ":2:6: not JSON"),
        ("[1, 2]", "a model configuration is a JSON object, not [1, 2]"),
        ("null", "not null"),
        ("[" * 100_000, "nested too deeply"),
        ('{"hidden_size": ' + "9" * 5000 + "}", "a number in it is too long"),
    ],
)
def test_files_that_are_no_configuration(tmp_path, text, message):
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ScenarioError) as caught:
        read_config(file)
    assert len(caught.value.problems) == 1
    assert str(file) in str(caught.value)
    assert message in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ScenarioError, match="cannot read this file: No such file"):
        read_config(tmp_path / "absent.json")
    file = tmp_path / "binary.json"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ScenarioError, match="not UTF-8"):
        read_config(file)


def test_a_folder_names_its_model(tmp_path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text("\ufeff" + json.dumps(MIXTRAL))
    assert read_config(folder) == read_config(folder / "config.json")
    assert read_config(folder).name == "my-model"


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([0, 1, 2, "auto", "mixtral"])
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6
)
every = [json.loads(file.read_text()) for file in sorted(CONFIGS.glob("*.json"))]
keys = sorted({key for config in every for key in (*config, *config.get("text_config", {}))} | {"moe_layers", "mlp_only_layers", "n_group"})


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(every), st.dictionaries(st.sampled_from(keys), values, min_size=1, max_size=3), st.booleans())
def test_fuzz_any_change_gives_a_model_or_problems(config, changes, inside):
    nested = inside and isinstance(config.get("text_config"), dict)
    changed = {**config, "text_config": {**config["text_config"], **changes}} if nested else {**config, **changes}
    try:
        model, problems = model_of(changed), ()
    except ScenarioError as error:
        model, problems = None, error.problems
    # One or the other: a model, or problems that each say something.
    assert isinstance(model, MoeModel) != bool(problems)
    assert all(problem.message for problem in problems)


@settings(max_examples=50, deadline=None)
@given(values)
def test_fuzz_any_json_gives_a_model_or_problems(value):
    with pytest.raises(ScenarioError):
        model_of(value)
