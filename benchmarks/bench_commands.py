"""Whole commands, as a user waits for them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "words",
    [["--help"], ["check", "scenarios/what-does-real-routing-cost.yaml"], ["run", "scenarios/what-does-real-routing-cost.yaml"]],
    ids=lambda words: words[0],
)
def test_command(benchmark, words, tmp_path):
    if words[0] == "run":
        words = [*words, "-o", str(tmp_path / "out")]
    command = [sys.executable, "-m", "moesim", *words]

    def once():
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)

    assert benchmark.pedantic(once, rounds=7, warmup_rounds=1).stdout
