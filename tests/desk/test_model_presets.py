"""Model presets: golden shapes, and totals that come out at the published sizes."""

from dataclasses import replace

import pytest

from moesim.base.errors import PluginError
from moesim.desk.presets.models import model_preset, model_presets
from moesim.facts.model import MoeModel

# hidden, layers, experts, top-k, expert width: from the published configurations.
SHAPES = {
    "deepseek-v2-lite": (2048, 27, 64, 6, 1408),
    "deepseek-v3": (7168, 61, 256, 8, 2048),
    "glm-5": (6144, 78, 256, 8, 2048),
    "gpt-oss-120b": (2880, 36, 128, 4, 2880),
    "gpt-oss-20b": (2880, 24, 32, 4, 2880),
    "kimi-k2": (7168, 61, 384, 8, 2048),
    "mixtral-8x22b": (6144, 56, 8, 2, 16384),
    "mixtral-8x7b": (4096, 32, 8, 2, 14336),
    "olmoe-1b-7b": (2048, 16, 64, 8, 1024),
    "qwen3-235b-a22b": (4096, 94, 128, 8, 1536),
    "qwen3-30b-a3b": (2048, 48, 128, 8, 768),
    "qwen3-next-80b-a3b": (2048, 48, 512, 10, 512),
}
# Published sizes in billions, total and (where the model card counts embeddings too) active.
SIZES = {
    "deepseek-v2-lite": (15.7, None),
    "deepseek-v3": (671.0, 37.5),
    "glm-5": (744.0, None),
    "gpt-oss-120b": (116.8, 5.7),
    "gpt-oss-20b": (20.9, 4.2),
    "kimi-k2": (1026.4, 32.9),
    "mixtral-8x22b": (140.6, 39.1),
    "mixtral-8x7b": (46.7, 12.9),
    "olmoe-1b-7b": (6.92, 1.28),
    "qwen3-235b-a22b": (235.0, 22.2),
    "qwen3-30b-a3b": (30.5, 3.35),
    "qwen3-next-80b-a3b": (79.7, None),
}


def test_every_preset_is_listed():
    assert list(model_presets()) == sorted(SHAPES)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_golden_shapes(name):
    model = model_preset(name)
    assert model.name == name
    assert (model.hidden, model.layers, model.experts, model.top_k, model.expert_width) == SHAPES[name]


@pytest.mark.parametrize("name", sorted(SIZES))
def test_totals_are_the_published_sizes(name):
    total, active = SIZES[name]
    assert model_preset(name).total_parameters / 1e9 == pytest.approx(total, rel=0.01)
    if active is not None:
        assert model_preset(name).active_parameters / 1e9 == pytest.approx(active, rel=0.01)


def test_deepseek_v3_in_full():
    model = model_preset("deepseek-v3")
    assert model.moe_layers == tuple(range(3, 61))
    assert (model.shared_experts, model.shared_width, model.dense_width) == (1, 2048, 18432)
    assert (model.groups, model.top_groups) == (8, 4)
    assert (model.scoring, model.normalise_top_k, model.routed_scale, model.correction_bias) == ("sigmoid", True, 2.5, True)
    assert (model.weight_dtype, model.expert_dtype, model.activation_dtype) == ("fp8", "fp8", "bf16")
    assert model.dispatch_width == 7168
    # One expert is 3 x 7168 x 2048 bytes of fp8: the 42 MB (44.04e6 B) that is moved when it is replicated.
    assert model.expert_bytes == 44_040_192
    # Latent attention by hand: queries 7168 x 1536 + 1536 x 128 x 192, keys and values 7168 x 576 + 512 x 128 x 256,
    # output 128 x 128 x 7168.
    assert model.attention.projection_parameters == 11_010_048 + 37_748_736 + 4_128_768 + 16_777_216 + 117_440_512
    # Scores are 192 wide and values 128; cached are 512 latent and 64 rotary elements of two bytes.
    assert model.attention.score_width == 160
    assert model.attention.cache_bytes_per_token == 1152


def test_grouped_query_attention_by_hand():
    # Mixtral: queries and output 4096 x 4096 each, keys and values 4096 x 1024 each; 8 heads x 2 x 128 x 2 bytes cached.
    attention = model_preset("mixtral-8x7b").attention
    assert attention.projection_parameters == 2 * 4096 * 4096 + 2 * 4096 * 1024
    assert (attention.heads, attention.score_width, attention.cache_bytes_per_token) == (32, 128, 4096)
    # Qwen3 states its head width: 32 x 128 is not its hidden size of 2048.
    attention = model_preset("qwen3-30b-a3b").attention
    assert attention.projection_parameters == 2 * 2048 * 4096 + 2 * 2048 * 512


def test_what_each_preset_routes_like():
    lite = model_preset("deepseek-v2-lite")
    assert lite.moe_layers == tuple(range(1, 27))
    assert (lite.shared_experts, lite.shared_width, lite.dense_width) == (2, 2816, 10944)
    assert (lite.scoring, lite.normalise_top_k, lite.groups) == ("softmax", False, 1)
    kimi = model_preset("kimi-k2")
    assert (kimi.moe_layers[0], kimi.groups, kimi.routed_scale) == (1, 1, 2.827)
    olmoe = model_preset("olmoe-1b-7b")
    assert (olmoe.dense_width, olmoe.normalise_top_k) == (0, False)
    oss = model_preset("gpt-oss-120b")
    assert (oss.weight_dtype, oss.expert_dtype) == ("bf16", "mxfp4")
    assert any("windows" in note for note in oss.notes)


def test_unknown_preset_names_the_nearest():
    with pytest.raises(PluginError, match="unknown model 'mixtral-8x7'; did you mean 'mixtral-8x7b'"):
        model_preset("mixtral-8x7")


def test_parameters_count_each_part_once():
    # Two layers of hidden 4, one dense (width 8), one with 3 experts of width 2 and a shared one of width 5, vocabulary 10, attention 7.
    model = MoeModel(
        name="tiny",
        layers=2,
        moe_layers=(1,),
        hidden=4,
        experts=3,
        top_k=1,
        expert_width=2,
        shared_experts=1,
        shared_width=5,
        dense_width=8,
        dispatch_width=4,
        vocabulary=10,
        attention=replace(model_preset("mixtral-8x7b").attention, projection_parameters=7),
    )
    embeddings, attention, dense, router, shared, expert = 2 * 10 * 4, 2 * 7, 3 * 4 * 8, 4 * 3, 3 * 4 * 5, 3 * 4 * 2
    assert model.total_parameters == embeddings + attention + dense + router + shared + 3 * expert
    assert model.active_parameters == model.total_parameters - 2 * expert
    assert replace(model, tied_embeddings=True).total_parameters == model.total_parameters - 40
    # Without a gate every block has two matrices of three.
    assert replace(model, gated=False).total_parameters == model.total_parameters - (dense + shared + 3 * expert) // 3
    # A dispatch width of 2: experts half as tall, and 4 x 2 weights down to it and as many back.
    assert replace(model, dispatch_width=2).total_parameters == model.total_parameters - 3 * expert // 2 + 16
