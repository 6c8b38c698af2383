"""Experts beside an all-to-all, timed on real ranks; and the GPU's name for nvidia-smi, which needs no GPU."""

from __future__ import annotations

from types import SimpleNamespace

import jsonschema
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch", reason="measuring needs PyTorch: pip install 'moesim[measure]'")

from moesim.base.errors import UsageError  # noqa: E402
from moesim.cli import main  # noqa: E402
from moesim.desk.measured_tables import read_measured  # noqa: E402
from moesim.lab.environment import _smi_id  # noqa: E402
from moesim.lab.files import json_schema, read_measurement  # noqa: E402
from moesim.lab.job import Job, OverlapCase  # noqa: E402
from moesim.lab.overlap import deal  # noqa: E402
from moesim.lab.plans import overlap_cases  # noqa: E402


@pytest.mark.parametrize("posting", ["receives_first", "library"])
def test_both_at_once_move_the_right_bytes_and_are_told(tmp_path, posting):
    words = (
        f"overlap --ranks 2 --shape 32x16x4x2 --rows 5 --sizes 1001 --repeats 3 --warmup 1 --device cpu --posting {posting} --system twins"
    )
    done = CliRunner().invoke(main, ["measure", *words.split(), "-o", str(tmp_path)])
    assert done.exit_code == 0, done.output
    found = read_measurement(tmp_path / "overlap.json")
    jsonschema.validate(found, json_schema())
    case = found["cases"][0]
    assert case["repeats"] == 3
    assert case["facts"]["correct"] is True  # 1001 bytes on two ranks: 501 and 500, each where it belongs
    assert case["facts"]["flop"] == 6 * 5 * 32 * 16
    for repeat in range(3):
        sample = {name: case["samples"][f"{name}_s"][repeat] for name in ("compute", "exchange", "compute_beside", "exchange_beside")}
        assert all(seconds > 0 for ranks in sample.values() for seconds in ranks)
    slowest = [max(*a, *b) for a, b in zip(case["samples"]["compute_beside_s"], case["samples"]["exchange_beside_s"], strict=True)]
    assert case["results"]["overlapped"]["max"] == pytest.approx(max(slowest))
    rows = read_measured(tmp_path / "overlap.csv").rows
    assert rows["system"].tolist() == ["twins"]
    assert rows["sequential_us"][0] == pytest.approx(rows["compute_us"][0] + rows["exchange_us"][0], rel=1e-4)
    assert "5 rows beside 1001 B" in done.stdout


def test_jobs_that_make_no_sense_are_refused():
    assert deal(7, 3) == (3, 2, 2)
    case = OverlapCase(name="x", rows=4, experts=2, hidden=8, expert_width=8, bytes=3)
    with pytest.raises(UsageError, match="nothing is exchanged by one rank"):
        Job(kind="overlap", cases=(case,)).check(1)
    with pytest.raises(UsageError, match="3 bytes leave nothing for each of 4 ranks"):
        Job(kind="overlap", cases=(case,)).check(4)
    with pytest.raises(UsageError, match="3 experts cannot be split evenly over 2 ranks"):
        overlap_cases((8, 8, 3, 1), 2, rows=(4,), sizes=(64,), dtype="float32", kernel="auto", posting="library")


def test_nvidia_smi_is_asked_for_the_uuid_with_its_prefix():
    # PyTorch's properties give the bare UUID; nvidia-smi knows none without a prefix, and the clocks would stay unknown.
    assert _smi_id(SimpleNamespace(uuid="6a7b-01"), 0) == "GPU-6a7b-01"
    assert _smi_id(SimpleNamespace(uuid="GPU-6a7b-01"), 0) == "GPU-6a7b-01"
    assert _smi_id(SimpleNamespace(uuid="MIG-1f"), 0) == "MIG-1f"
    assert _smi_id(SimpleNamespace(), 3) == "3"
