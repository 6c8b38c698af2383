"""The range of popularity of the power law, which depends on whether a step has more routes than experts."""

from types import SimpleNamespace

import numpy as np
import pytest

from moesim.models.bare_setting import bare_setting
from moesim.models.source import power_law
from moesim.models.source.power_law import PowerLaw


def no_file(path: str) -> None:
    raise AssertionError(f"nobody should read {path}")


@pytest.mark.parametrize(
    ("tokens", "low", "high"),
    [
        # 2 GPUs, 8 experts, top 2. 2 tokens a GPU make 8 routes: no more than experts, so 0.01 to 2 (power_law_logits_v3).
        (1, 0.01, 2.0),
        (2, 0.01, 2.0),
        # 3 make 12 routes of 6 tokens: 1 to 0.8 * 6. Tokens are those of all GPUs, and neither routes nor those of one GPU.
        (3, 1.0, 4.8),
        (100, 1.0, 160.0),
    ],
)
def test_popularity_runs_from_low_to_high(tokens, low, high, monkeypatch):
    # What the source would draw is caught where it is handed on; a stream of 0, 1/2 and 1 gives the ends of the range and its median.
    monkeypatch.setattr(power_law, "begin_popular", lambda kind, setting, popularity, redraw: popularity)
    setting = bare_setting(gpus=2, experts=8, top_k=2, layers=1, tokens_per_gpu=tokens, seed=0, read_trace=no_file)
    popularity = PowerLaw(alpha=2.0).begin(setting)
    asked = []
    ends = popularity(SimpleNamespace(random=lambda size: asked.append(size) or np.array([0.0, 0.5, 1.0])))
    # Density x ** -2: the distribution function is (1/low - 1/x) / (1/low - 1/high), so the median is the harmonic mean of the ends.
    assert np.exp(ends) == pytest.approx([low, 2 / (1 / low + 1 / high), high], rel=1e-12)
    assert asked == [8]
