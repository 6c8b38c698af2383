"""The kernel that ranks time beside each step of a layer: how fast their cores are just then."""

import pytest

from moesim.lab.job import Job, LayerCase

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("rows", [0, 16])
def test_every_rank_times_its_experts_after_every_repeat_if_it_is_asked_to(rows):
    from moesim.lab.launch import run_ranks

    case = LayerCase(name="a", tokens=8, hidden=16, expert_width=16, experts=4, top_k=2, backward=True)
    job = Job(kind="layer", cases=(case,), repeats=2, warmup=1, threads=1, backend="gloo", device="cpu", reference=rows)
    done = run_ranks(job, 2, timeout_s=120)
    assert done.why == ""
    for lines in done.ranks:
        noted = [line.get("reference_s") for line in lines if "repeat" in line]
        assert len(noted) == 2
        assert all(seconds is None for seconds in noted) if not rows else all(1e-6 < seconds < 1.0 for seconds in noted)
