"""Both directions of expert kernels against sums done by hand, where memory binds and where arithmetic binds."""

from types import SimpleNamespace

import numpy as np
import pytest

from moesim.facts.gpu import Gpu
from moesim.facts.model import Attention, MoeModel
from moesim.models.compute.grouped_gemm import GroupedGemm
from moesim.models.compute.roofline import Roofline

# Experts of 8 x 3 with a gate, weights in fp8 (1 B), activations in bf16 (2 B): no two widths or sizes are equal.
MODEL = MoeModel(
    name="hand",
    layers=1,
    moe_layers=(0,),
    hidden=8,
    experts=3,
    top_k=1,
    expert_width=3,
    dispatch_width=8,
    expert_dtype="fp8",
    attention=Attention(heads=1, score_width=1.0, projection_parameters=1, cache_bytes_per_token=1),
)
ROWS = np.array([[3, 1, 0], [0, 0, 0]])
FAST = 1e30


def kernels(plan, *, flops, bandwidth, sms=2):
    gpu = Gpu(name="toy", flops={"fp8": flops}, memory=1e9, memory_bandwidth=bandwidth, nvlink=1.0, nic=1.0, sms=sms)
    return plan.begin(SimpleNamespace(cluster=SimpleNamespace(gpu=gpu), model=MODEL))


def grouped(*, launch=0.0):
    return GroupedGemm(compute_efficiency=1.0, memory_efficiency=1.0, launch=launch, tile_rows=(2, 4), tile_columns=2)


# One byte per second, so seconds are bytes. 4 rows, 2 experts that have rows; operands 1 B, results 2 B, gradients 4 B.
UP = 2 * 48 * 1 + 4 * (8 * 1 + 6 * 2)  # 8 in, 6 out (gate and up)
DOWN = 2 * 24 * 1 + 4 * (3 * 1 + 8 * 2)
BETWEEN = 4 * 4 * 8 * 2 + 3 * 4 * 3 * 2  # rows sorted and put back: 4 passes of 8 bf16; the activation: 2 widths in, 1 out
DOWN_ROWS = 2 * 24 * 1 + 4 * (8 * 1 + 3 * 2)  # the gradient of the rows goes the other way: 8 in, 3 out
UP_ROWS = 2 * 48 * 1 + 4 * (6 * 1 + 8 * 2)
UP_WEIGHTS = 2 * 48 * 4 + 4 * (8 + 6) * 2  # fp32 gradients of both experts, rows of both sides in bf16
DOWN_WEIGHTS = 2 * 24 * 4 + 4 * (3 + 8) * 2


def test_grouped_gemm_forward_when_memory_binds():
    made = kernels(grouped(), flops=FAST, bandwidth=1.0)
    assert made.experts(ROWS, direction="forward").tolist() == [UP + DOWN + BETWEEN, 0.0] == [628.0, 0.0]


def test_grouped_gemm_backward_when_memory_binds():
    # The work between the GEMMs comes twice: each of its kernels reads and writes values and gradients.
    made = kernels(grouped(), flops=FAST, bandwidth=1.0)
    expected = DOWN_ROWS + UP_ROWS + UP_WEIGHTS + DOWN_WEIGHTS + 2 * BETWEEN
    assert made.experts(ROWS, direction="backward").tolist() == [expected, 0.0] == [1720.0, 0.0]


@pytest.mark.parametrize(("direction", "bytes_", "launches"), [("forward", 628, 2), ("backward", 1720, 4)])
def test_every_grouped_gemm_is_launched_once(direction, bytes_, launches):
    # Two forward (up, down), two gradients of each backward; none on a GPU without rows.
    made = kernels(grouped(launch=1000.0), flops=FAST, bandwidth=1.0)
    assert made.experts(ROWS, direction=direction).tolist() == [bytes_ + 1000 * launches, 0.0]


def test_grouped_gemm_when_arithmetic_binds():
    # 2 SMs, 1 flop/s together; tiles of 2 columns. 3 rows take a tile of 4, 1 row one of 2. Waves go tallest first, two tiles at a time.
    made = kernels(grouped(), flops=1.0, bandwidth=FAST)
    # Up: 3 column tiles: 4 4 | 4 2 | 2 2 = 10 rows of 2 columns of 8. Down: 4 column tiles: 4 4 | 4 4 | 2 2 | 2 2 = 12 rows of 2 of 3.
    up, down = 10 * (2 * 2 * 8) * 2, 12 * (2 * 2 * 3) * 2
    assert made.experts(ROWS, direction="forward").tolist() == pytest.approx([up + down, 0.0], rel=1e-12)
    # Rows: down's is 3 wide (2 tiles: 4 4 | 2 2 = 6) over 8, up's 8 wide (12) over 6. Weights: tiles of 4 x 2, as deep as the rows filled
    # up to 2 at a time (4 and 2): up 8 x 6 has 2 * 3 tiles an expert: 3 waves of 4 and 3 of 2 = 18; down 3 x 8 has 4: 2 of 4, 2 of 2 = 12.
    rows = 6 * (2 * 2 * 8) * 2 + 12 * (2 * 2 * 6) * 2
    weights = (18 + 12) * (2 * 4 * 2) * 2
    assert made.experts(ROWS, direction="backward").tolist() == pytest.approx([rows + weights, 0.0], rel=1e-12)


def test_roofline_in_both_directions_when_memory_binds():
    # 2 experts of 72 weights of 1 B; 4 rows of 8 bf16 in and out. Backward: weights once, rows twice, 4 B of gradient for each weight.
    made = kernels(Roofline(compute_efficiency=1.0, memory_efficiency=1.0, launch=1000.0), flops=FAST, bandwidth=1.0)
    assert made.experts(ROWS, direction="forward").tolist() == [2 * 72 + 4 * 2 * 16 + 1000, 0.0]
    assert made.experts(ROWS, direction="backward").tolist() == [2 * 72 + 2 * 4 * 2 * 16 + 2 * 72 * 4 + 1000, 0.0]


def test_roofline_in_both_directions_when_arithmetic_binds():
    # 4 rows through 72 weights, 2 flops each, at half of 4 flop/s; backward twice.
    made = kernels(Roofline(compute_efficiency=0.5, memory_efficiency=1.0, launch=1000.0), flops=4.0, bandwidth=FAST)
    assert made.experts(ROWS, direction="forward").tolist() == [4 * 72 * 2 / 2 + 1000, 0.0]
    assert made.experts(ROWS, direction="backward").tolist() == [2 * 4 * 72 * 2 / 2 + 1000, 0.0]
