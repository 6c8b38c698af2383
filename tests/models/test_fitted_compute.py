"""Fitted models of kernels: known parameters are found again, and times behave as times must."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import CalibrationError
from moesim.models.fitted import Fitted
from moesim.models.fitted.blockscale_tiles import blockscale_tiles
from moesim.models.fitted.expert_ffn import TILINGS, ExpertFfn, loads_of
from moesim.models.fitted.fused_layer import FusedLayer
from moesim.models.fitted.grouped_gemm_kernel import GroupedGemmKernel, tiles_chosen
from moesim.models.fitted.routing_draws import even_rows, power_law_rows, seeded_uniforms

PEAKS = {"memory_bandwidth": 4.8e12, "peak_flops": 1978e12, "sms": 132.0}
FFN = {
    "launch": 20e-6, "slot": 2e-7, "memory_efficiency": 0.8, "compute_efficiency_16": 0.5, "compute_efficiency_8": 0.4, "step_16": 3e-9,
    "step_8": 5e-9, "sharpness_16": 2.0, "sharpness_8": 2.5, "passes": 2.0, "empty_tile": 3e-7, "floor": 0.0,
    "tile_load": 0.0,
}  # fmt: skip
LAYER = {
    "launch": 70e-6, "memory_efficiency": 0.7, "compute_efficiency": 0.5, "sharpness": 2.0, "hidden_weights": 0.6, "local_share": 0.5,
}  # fmt: skip


def tiles_of(kernel, mean, slots, columns, narrow=True):
    """Rows and columns of a tile."""
    given = {"groups": np.array([float(slots)]), "columns": np.array([float(columns)]), "sms": np.array([PEAKS["sms"]])}
    tall, wide = TILINGS[kernel].tiles(np.array([mean]), np.array([narrow]), **given)
    return int(tall[0]), float(wide[0])


def ffn_rows(tokens, *, ranks=(1, 4), experts=64, hidden=2048, width=1024, narrow=True, kernel="vllm", top_k=4):
    """Rows of balanced batches: one per number of tokens and ranks."""
    tiling, found = TILINGS[kernel], []
    for over in ranks:
        for size in tokens:
            group, slots = even_rows(size * top_k, experts)[None], experts // over
            (height, wide), (second, second_wide) = (
                tiles_of(kernel, size * top_k / experts, slots, n, narrow) for n in (2 * width, hidden)
            )
            active, routed, tiles, empty = (float(part[0]) for part in loads_of(group[:, :slots], group, height))
            below = float(loads_of(group[:, :slots], group, second)[2][0])
            found.append((active, routed, tiles, empty * tiling.whole_group, below, height, wide, second, second_wide, slots, size, over))
    columns = list(zip(*found, strict=True))
    names = (
        "active", "routed", "tiles", "empty_tiles", "second_tiles", "tile_rows", "tile_columns", "second_tile_rows", "second_tile_columns",
        "slots", "num_tokens", "ranks",
    )  # fmt: skip
    rows = {name: np.asarray(column, dtype=float) for name, column in zip(names, columns, strict=True)}
    for name in ("active", "routed", "tiles", "empty_tiles", "second_tiles"):
        rows[name] = rows[name][:, None]
    number = len(found)
    whole = (rows["num_tokens"] * top_k)[:, None]
    shape = {"hidden_size": hidden, "inter_size": width, "weight_bytes": 1 if narrow else 2, "row_bytes": 1 if narrow else 2, **PEAKS}
    return {
        **rows,
        "moved_rows": whole if tiling.whole_group else rows["routed"],
        "summed_rows": whole,
        "narrow": np.full(number, narrow),
        "regime": np.full(number, "all"),
        **{name: np.full(number, float(value)) for name, value in shape.items()},
    }


def together(*tables):
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def layer_rows(tokens, ranks=(4, 8), exponents=(0.0, 1.01, 1.2), experts=96, top_k=6):
    counts, columns = [], []
    for over in ranks:
        for size in tokens:
            for exponent in exponents:
                batch = size * over
                rows = (
                    power_law_rows(seeded_uniforms(experts)[None], exponent, tokens=batch, top_k=top_k, ranks=over)[0]
                    if exponent
                    else even_rows(batch * top_k, experts)
                )
                counts.append(rows[None])
                columns.append((size, over, f"law {exponent}"))
    sizes, over, names = (np.asarray(column) for column in zip(*columns, strict=True))
    number = len(counts)
    shape = {
        "experts": experts, "weight_bytes": 35e6, "row_flops": 1.3e8, "memory_bandwidth": 8e12, "peak_flops": 5e15, "link_bandwidth": 9e11,
        "hidden_size": 7168, "inter_size": 3072,
    }  # fmt: skip
    return {
        "counts": np.stack(counts),
        "ranks": over.astype(float),
        "tokens_per_rank": sizes.astype(float),
        "distribution": names,
        "regime": np.full(number, "all"),
        "returned_bytes": sizes * top_k * 7168 * 2.0,
        **{name: np.full(number, float(value)) for name, value in shape.items()},
    }


def gemm_rows(means, experts=(4, 64), columns=4096, depth=7168, tile=64):
    pairs = [(size, mean) for size in experts for mean in means]
    sizes, each = (np.asarray(column, dtype=float) for column in zip(*pairs, strict=True))
    shape = {"tile_rows": tile, "tile_columns": 128, "columns": columns, "depth": depth, "weight_bytes": 1, "row_bytes": 1, **PEAKS}
    return {
        "active": sizes[:, None],
        "routed": (sizes * each)[:, None],
        "tiles": (sizes * np.ceil(each / tile))[:, None],
        "rows_per_expert": each,
        "experts": sizes,
        "regime": np.full(len(pairs), "all"),
        **{name: np.full(len(pairs), float(value)) for name, value in shape.items()},
    }


TOKENS = (1, 2, 4, 8, 16, 64, 256, 512, 1024, 4096, 16384)


def test_they_offer_what_every_fitted_model_offers():
    for model in (
        ExpertFfn(**FFN),
        FusedLayer(**LAYER),
        GroupedGemmKernel(launch=1e-6, memory_efficiency=0.8, compute_efficiency=0.5, sharpness=4.0, fill=90.0),
    ):
        assert isinstance(model, Fitted)
        again = type(model).of_section(model.section())
        assert again == model
        assert {parameter.basis for parameter in model.section().parameters} == {"assumed"}


def test_the_ffn_finds_known_parameters_again():
    shapes = [
        ffn_rows(TOKENS, ranks=(1, 4, 16), narrow=narrow, hidden=h, width=w)
        for narrow in (True, False)
        for h, w in ((2048, 768), (7168, 2048))
    ]
    rows = together(*shapes)
    noise = np.exp(0.01 * np.random.default_rng(3).standard_normal(len(rows["ranks"])))
    truth = {**FFN, "tile_load": 30.0}
    found = ExpertFfn.fit(rows, ExpertFfn(**truth).predict(rows) * noise)
    assert found.tile_load == pytest.approx(30.0, rel=0.3)
    for name in ("launch", "memory_efficiency", "compute_efficiency_16", "compute_efficiency_8", "passes", "empty_tile"):
        assert getattr(found, name) == pytest.approx(FFN[name], rel=0.12), name
    # What was seen is told: the range, the scatter of 1 %, and the errors of the parameters.
    section = found.section()
    assert section.fitted_range["num_tokens"] == (1.0, 16384.0)
    assert section.scatter[""] == pytest.approx(0.01, rel=0.3)
    assert 0 < section.parameters[0].error < 0.1 * found.launch


def test_the_layer_finds_known_parameters_again():
    rows = layer_rows((1, 4, 16, 64, 256, 1024, 4096, 16384))
    found = FusedLayer.fit(rows, FusedLayer(**LAYER).predict(rows))
    for name, value in LAYER.items():
        assert getattr(found, name) == pytest.approx(value, rel=0.02), name


def test_a_grouped_gemm_finds_known_parameters_again():
    model = GroupedGemmKernel(launch=6e-6, memory_efficiency=0.7, compute_efficiency=0.6, sharpness=5.0, fill=120.0)
    means = (1, 8, 32, 64, 128, 256, 1024, 4096)
    rows = together(gemm_rows(means), gemm_rows(means, depth=1024))
    found = GroupedGemmKernel.fit(rows, model.predict(rows))
    assert found.memory_efficiency == pytest.approx(0.7, rel=0.02)
    assert found.compute_efficiency == pytest.approx(0.6, rel=0.02)
    assert found.fill == pytest.approx(120.0, rel=0.2)


def test_a_grouped_gemm_that_never_waits_for_memory_does_not_say_what_memory_gives():
    # On a GPU with a twentieth of the arithmetic every tile outlasts the reading of its weights.
    rows = gemm_rows((1, 8, 32, 64, 128, 256, 1024, 4096))
    rows |= {"peak_flops": rows["peak_flops"] / 20}
    truth = GroupedGemmKernel(launch=6e-6, memory_efficiency=0.5, compute_efficiency=0.6, sharpness=5.0, fill=120.0)
    section = GroupedGemmKernel.fit(rows, truth.predict(rows)).section()
    assert {item.name: item.basis for item in section.parameters}["memory_efficiency"] == "assumed"
    assert section.values()["compute_efficiency"] == pytest.approx(0.6, rel=0.05)


def test_tiles_are_those_of_the_librarys_rule():
    def chosen(mean, experts, columns, contiguous=False, sms=78.0):
        one = np.ones(1)
        found = tiles_chosen(mean * one, experts * one, columns * one, sms * one, np.asarray([contiguous]))
        return tuple(float(part[0]) for part in found)

    # Four experts of 64 rows and 2048 columns: 4 x ceil(2048 / 112) = 76 of 78 SMs in one wave; narrower tiles need a second.
    assert chosen(64, 4, 2048) == (64.0, 112.0)
    # Rows for one wave of tall tiles alone: 128 rows x 13 tiles of 160 columns are 13 x 6 = 78; short ones are twice as many.
    assert chosen(128, 6, 2080)[0] == 128.0
    # The contiguous layout pads to 128 rows whatever the batch.
    assert chosen(1, 256, 4096, contiguous=True)[0] == 128.0


def test_the_ffn_by_hand():
    # One expert, 16-bit, 10 rows in one tile of 16; so sharp a corner that the larger one counts, no step, no launch, no helpers.
    values = {**FFN, "launch": 0.0, "slot": 0.0, "passes": 0.0, "empty_tile": 0.0, "step_16": 1e-30, "sharpness_16": 400.0}
    rows = ffn_rows((10,), ranks=(1,), experts=1, hidden=256, width=128, narrow=False, top_k=1)
    rows |= {"memory_bandwidth": np.array([1e9]), "peak_flops": np.array([1e15]), "sms": np.array([2.0])}
    # First GEMM: 256 x 256 weights and 10 rows in and out, 2 bytes each, at 0.8 GB/s; second: 128 x 256 weights.
    first = 2 * (256 * 256 + 10 * (256 + 256)) / 0.8e9
    second = 2 * (256 * 128 + 10 * (128 + 256)) / 0.8e9
    assert ExpertFfn.seconds_of(values, rows)[0] == pytest.approx(first + second)
    # With much memory bandwidth the tiles decide: height 16, two tiles side by side on two SMs are one wave, in both GEMMs.
    rows |= {"memory_bandwidth": np.array([1e18]), "peak_flops": np.array([1e12])}
    wave = 2 * 16 * 128 * 2 / (0.5e12)
    assert ExpertFfn.seconds_of(values, rows)[0] == pytest.approx(wave * 256 + wave * 128)


def test_the_layer_by_hand():
    # Two ranks of one expert each. Rank 0 has 10 rows, rank 1 none: reading takes 2 s, computing 10 x 0.5 s.
    values = {
        "launch": 1.0,
        "memory_efficiency": 0.5,
        "compute_efficiency": 0.25,
        "sharpness": 1.0,
        "hidden_weights": 0.25,
        "local_share": 3.0,
    }
    rows = {
        "counts": np.array([[[10, 0]]]), "ranks": np.array([2.0]), "experts": np.array([2.0]), "weight_bytes": np.array([1e9]),
        "row_flops": np.array([1e9]), "returned_bytes": np.array([1e9]), "memory_bandwidth": np.array([1e9]), "peak_flops": np.array([8e9]),
        "link_bandwidth": np.array([1e9]),
    }  # fmt: skip
    # Sharpness 1 adds: together 7 s, apart the larger one, 5 s; a quarter and three quarters of them; 1 s launch; 3 x 1 s for the results.
    assert FusedLayer.seconds_of(values, rows)[0] == pytest.approx(1.0 + 0.25 * 7.0 + 0.75 * 5.0 + 3.0)


@pytest.mark.parametrize("kernel", sorted(TILINGS))
@pytest.mark.parametrize("narrow", [True, False])
def test_more_tokens_are_never_faster(kernel, narrow):
    tokens = (*range(1, 600, 7), 1000, 4000, 16000)
    for over in (1, 16):
        times = ExpertFfn(**FFN).predict(ffn_rows(tokens, ranks=(over,), narrow=narrow, kernel=kernel))
        # The tiles of others become fewer where they become taller, which can save a little. A library that chooses tiles by waves can get
        # faster where it chooses others (the measured ones do), so times are compared between such changes.
        tiles = [[tiles_of(kernel, size * 4 / 64, 64 // over, n, narrow) for n in (2048, 2048)] for size in tokens]
        alike = np.array([one == other for one, other in itertools.pairwise(tiles)]) | (not TILINGS[kernel].chosen)
        assert np.all(np.diff(times)[alike] >= -0.02 * times[:-1][alike])
        assert times[-1] > 2 * times[0]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 300), min_size=8, max_size=8), st.integers(0, 7), st.integers(1, 500))
def test_more_rows_never_make_a_layer_faster(counts, expert, more):
    rows = layer_rows((8,), ranks=(4,), exponents=(0.0,), experts=8)
    times = []
    for given_counts in (np.array(counts), np.array(counts) + more * (np.arange(8) == expert)):
        times.append(FusedLayer(**LAYER).predict({**rows, "counts": given_counts[None, None]})[0])
    assert times[1] >= times[0] * (1 - 1e-12)


def test_more_active_experts_are_never_faster_in_decode():
    # The same 64 rows on 1 to 64 experts of one rank: every further expert's weights must be read.
    rows = layer_rows((16,), ranks=(1,), exponents=(0.0,), experts=64)
    times = [FusedLayer(**LAYER).predict({**rows, "counts": spread(64, gap)})[0] for gap in (64, 16, 4, 1)]
    assert times == sorted(times)
    assert times[-1] > 5 * times[0]


def spread(routes, gap):
    counts = np.zeros(64, dtype=int)
    counts[::gap] = routes * gap // 64
    return counts[None, None]


def test_twice_the_memory_halves_decode_and_leaves_prefill():
    few, many = layer_rows((32,), exponents=(0.0,)), layer_rows((32768,), exponents=(0.0,))
    model = FusedLayer(**{**LAYER, "launch": 1e-12, "local_share": 1e-12, "sharpness": 12.0})
    for rows, ratio in ((few, 0.5), (many, 1.0)):
        doubled = {**rows, "memory_bandwidth": 2 * rows["memory_bandwidth"]}
        assert model.predict(doubled) / model.predict(rows) == pytest.approx(np.full(2, ratio), rel=0.1)


def test_heights_of_tiles_follow_the_mean_and_stop():
    tiling = TILINGS["vllm"]
    means, wide = np.array([0.1, 16.0, 16.5, 64.0, 65.0, 4000.0]), np.zeros(6, dtype=bool)
    assert tiling.heights(means, wide).tolist() == [16, 16, 32, 64, 128, 128]
    assert tiling.heights(means, ~wide).tolist() == [16, 16, 32, 64, 64, 64]


def test_tiles_that_are_chosen_by_waves():
    # One expert, 4096 columns, 132 SMs. Fewer than 32 rows: the weights have the height, 4096 / 128 = 32 blocks; tiles 16 tokens wide make
    # most of one wave (2 x 32 for 17 to 31 rows). From 32 rows on tokens have it: 4096 / 32 = 128 tiles are the fullest single wave.
    for mean, wanted in ((1, (16, 128)), (30, (16, 128)), (31.2, (64, 32)), (64, (64, 32)), (65, (128, 32))):
        assert tiles_of("cutlass", mean, 1, 4096) == wanted, mean
    # On 128 experts there are many waves in any case, and 128 columns need the fewest: ceil(32 x 128 / 132) = 32.
    assert tiles_of("cutlass", 40, 128, 4096) == (64, 128)
    assert tiles_of("vllm", 40, 128, 4096) == (64, 128.0)
    # An H20 has 78 SMs and changes sides at 64 rows.
    assert [float(part[0]) for part in blockscale_tiles(*(np.array([x]) for x in (40.0, 1.0, 4096.0, 78.0)))][1] == 128


def test_a_wider_tile_costs_the_rows_that_it_fetches():
    # Two tiles of 64 x 64 rows and columns instead of one of 64 x 128, one wave each: (64 + 64) 64 / ((64 + 64) 128) at h0 = 64 were there
    # no rows to fetch; with them (64 + 64) (64 + 64) / ((64 + 64) (128 + 64)) = 2/3.
    values = {**FFN, "launch": 0.0, "slot": 0.0, "passes": 0.0, "empty_tile": 0.0, "step_8": 1e-30, "sharpness_8": 400.0, "tile_load": 64.0}
    rows = ffn_rows((64,), ranks=(1,), experts=1, top_k=1) | {"memory_bandwidth": np.array([1e18])}
    rows |= {"tile_rows": np.array([64.0]), "second_tile_rows": np.array([64.0])}
    times = []
    for wide in (64.0, 128.0):
        across = {"tile_columns": np.array([wide]), "second_tile_columns": np.array([wide])}
        times.append(ExpertFfn.seconds_of(values, {**rows, **across})[0])
    assert times[0] / times[1] == pytest.approx(2 / 3)


def test_a_tile_fetches_its_weights_whatever_its_height():
    # So sharp a corner, and so much memory bandwidth, that only tiles count: 8 rows cost (8 + 24) / (32 + 24) of what 32 rows cost.
    values = {**FFN, "launch": 0.0, "slot": 0.0, "passes": 0.0, "empty_tile": 0.0, "step_8": 1e-30, "sharpness_8": 400.0, "tile_load": 24.0}
    short, tall = (ffn_rows((size,), ranks=(1,), experts=1, top_k=1) for size in (8, 32))
    for rows, height in ((short, 8.0), (tall, 32.0)):
        rows |= {"memory_bandwidth": np.array([1e18]), "tile_rows": np.array([height]), "second_tile_rows": np.array([height])}
    assert ExpertFfn.seconds_of(values, short)[0] / ExpertFfn.seconds_of(values, tall)[0] == pytest.approx(32 / 56)


def test_loads_by_hand():
    # Rank with rows 0, 3, 17 in tiles of 16: two experts, three tiles; the group has 1 + 2 more.
    local, group = np.array([[0, 3, 17]]), np.array([[0, 3, 17, 1, 20, 0]])
    assert [part.tolist() for part in loads_of(local, group, 16)] == [[2.0], [20.0], [3.0], [3.0]]


def test_degenerate_rows_are_refused():
    rows = ffn_rows((64,) * 20, ranks=(1,))
    with pytest.raises(CalibrationError, match="num_tokens holds only 64"):
        ExpertFfn.fit(rows, ExpertFfn(**FFN).predict(rows))
    few = ffn_rows((1, 2, 4), ranks=(1,))
    with pytest.raises(CalibrationError, match="3 rows are too few"):
        ExpertFfn.fit(few, ExpertFfn(**FFN).predict(few))
    balanced = layer_rows((1, 4, 16, 64, 256, 1024, 4096), exponents=(0.0,))
    with pytest.raises(CalibrationError, match="distribution"):
        FusedLayer.fit(balanced, FusedLayer(**LAYER).predict(balanced))
    alike = gemm_rows((8,) * 12)
    with pytest.raises(CalibrationError, match="rows_per_expert holds only 8"):
        GroupedGemmKernel.fit(alike, np.full(24, 1e-5))


def test_what_rows_cannot_tell_is_held_and_said():
    rows = ffn_rows((*TOKENS, 32, 128), ranks=(1,), narrow=True)
    found = ExpertFfn.fit(rows, ExpertFfn(**FFN).predict(rows)).section()
    basis = {parameter.name: parameter.basis for parameter in found.parameters}
    assert basis["compute_efficiency_8"] == "fitted"
    assert {basis[name] for name in ("compute_efficiency_16", "step_16", "empty_tile", "slot", "floor")} == {"assumed"}
