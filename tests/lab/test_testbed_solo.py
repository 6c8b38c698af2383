"""The calibration of local operations: what is timed, and that nothing of it lies in a cache."""

import pytest

torch = pytest.importorskip("torch")

from moesim.lab import inside, solo  # noqa: E402 - PyTorch first
from moesim.lab.experts import Weights, feed_forward, grouped_product  # noqa: E402
from moesim.study.testbed.calibration import BACKWARD, FORWARD, calibration_of  # noqa: E402
from moesim.study.testbed.predict import Step, phases_of  # noqa: E402


@pytest.fixture
def small_scratch(monkeypatch):
    monkeypatch.setattr(solo.Device, "cache_bytes", lambda _: 4096)


def test_a_calibration_holds_what_the_steps_of_its_shapes_need(small_scratch):
    found = solo.calibrate([(8, 16, 4, 2, 16)], stacks=[(8, 16, 2)], repeats=1, grid=(1, 4))
    assert set(found) == {*FORWARD, *BACKWARD}
    assert set(found["ffn"]) == {"8x16,1", "8x16,4"}
    assert set(found["ffn_bwd"]) == {"8x16/2,1", "8x16/2,4"}
    assert all(seconds > 0 for table in found.values() for seconds in table.values())
    step = Step(kept=[[3, 3, 0, 0], [0, 0, 1, 0]], hidden=8, width=16, tokens=16, backward=True)
    assert len(phases_of(step, calibration_of(found))) == 12
    assert set(solo.calibrate([(8, 16, 4, 2, 16)], repeats=1, grid=(1,))) == set(FORWARD)


def test_an_expert_counts_for_its_share_of_the_ranks_backward_pass(small_scratch, monkeypatch):
    monkeypatch.setattr(solo.Cold, "timed", lambda *_: 1.0)
    found = solo.calibrate([(8, 16, 4, 2, 16)], stacks=[(8, 16, 4)], repeats=1, grid=(2,))
    assert found["ffn_bwd"] == {"8x16/4,2": 0.25}


def test_caches_are_emptied_before_every_call_that_counts(small_scratch, monkeypatch):
    done = []
    monkeypatch.setattr(solo.Device, "flush", lambda *_: done.append("flush"))
    solo.Cold(3).timed(lambda: done.append("call"))
    assert done == ["call", *["flush", "call"] * 3]  # the first call makes ready what is made once


def test_an_expert_without_rows_gets_a_gradient_of_zero_and_the_others_theirs():
    # Two experts, all rows for the second: down(silu(gate) * up), of which PyTorch's own formula for one expert is the reference.
    torch.manual_seed(1)
    weights = Weights(up=torch.randn(2, 8, 4).requires_grad_(), down=torch.randn(2, 4, 4).requires_grad_())
    rows = torch.randn(3, 4)
    feed_forward(rows, weights, grouped_product("loop", [0, 3], solo.Device("cpu"))).sum().backward()
    up, down = weights.up.detach()[1].clone().requires_grad_(), weights.down.detach()[1].clone().requires_grad_()
    inner = rows @ up.T
    ((torch.nn.functional.silu(inner[:, :4]) * inner[:, 4:]) @ down.T).sum().backward()
    assert not weights.up.grad[0].any()
    torch.testing.assert_close(weights.up.grad[1], up.grad)
    torch.testing.assert_close(weights.down.grad[1], down.grad)


def test_memory_is_kept_where_the_allocator_can_be_told_and_nothing_fails_elsewhere(monkeypatch):
    asked = []

    class Library:
        def mallopt(self, what, value):
            asked.append((what, value))

    monkeypatch.setattr(inside.ctypes, "CDLL", lambda _: Library())
    inside.keep_memory()
    assert asked == [(-3, 32 << 20), (-1, (1 << 31) - 1)]  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h
    monkeypatch.setattr(inside.ctypes, "CDLL", lambda _: object())
    inside.keep_memory()
