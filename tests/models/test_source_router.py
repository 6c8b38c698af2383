"""The logit model of a router."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moesim.base.errors import FieldError
from moesim.base.loads import coefficient_of_variation, maxvio
from moesim.models.bare_setting import bare_setting
from moesim.models.source.router import CHUNK, PRESETS, Router, RouterLaw, softmax, top_choices


def loads_of(router: Router, *, experts: int, top_k: int, layers: int, tokens: int, step: int = 0) -> np.ndarray:
    world = bare_setting(gpus=1, experts=experts, top_k=top_k, layers=layers, tokens_per_gpu=tokens, seed=3, read_trace=lambda path: None)
    return np.array([layer.counts[0] for layer in router.begin(world)(step).layers])


def test_deepseek_r1_preset_has_the_published_imbalance():
    # System: 256 experts, top-8, 4096 tokens, EP 32 with 8 contiguous experts each. Expected: the means over layers of an independent
    # implementation of the same model. It averaged over many layers too, so the difference has at most twice our own variance.
    load = loads_of(Router(), experts=256, top_k=8, layers=100, tokens=4096)
    rank = load.reshape(100, 32, 8).sum(axis=2)
    for samples, expected in (
        (coefficient_of_variation(rank), 0.469),
        (maxvio(rank), 1.485),
        (coefficient_of_variation(load), 1.336),
        (maxvio(load), 11.27),
    ):
        error = samples.std(ddof=1) / np.sqrt(len(samples))
        assert abs(samples.mean() - expected) < 3 * np.sqrt(2) * error


@pytest.mark.parametrize(
    ("preset", "published", "slack"), [("aux-loss-1b", 0.72, 0.08), ("aux-loss-3b", 0.52, 0.06), ("loss-free", 0.04, 0.02)]
)
def test_presets_of_the_loss_free_paper_have_its_maxvio(preset, published, slack):
    # arXiv 2408.15664, Table 2: 64 experts, top-6. MaxVio_global is over a whole validation set, so many tokens: little sampling noise.
    violation = maxvio(loads_of(Router(preset=preset), experts=64, top_k=6, layers=25, tokens=16384)).mean()
    assert violation == pytest.approx(published, abs=slack)


@given(
    arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 9)), elements=st.integers(-2, 2).map(float)),
    st.integers(1, 9),
)
def test_top_choices_is_a_stable_sort(logits, top_k):
    # Logits of five values tie all the time; the plain way is a stable descending sort.
    top_k = min(top_k, logits.shape[1])
    expected = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
    ids, values = top_choices(logits, top_k)
    assert np.array_equal(ids, expected)
    assert np.array_equal(values, np.take_along_axis(logits, expected, axis=1))


def test_scores_are_the_logits_behind_the_choices():
    world = bare_setting(gpus=2, experts=16, top_k=3, layers=2, tokens_per_gpu=CHUNK, seed=1, read_trace=lambda path: None)
    with_scores = Router(scores=True).begin(world)(0).layers[1]
    without = Router().begin(world)(0).layers[1]
    assert without.scores is None
    assert np.array_equal(with_scores.ids, without.ids)
    assert np.array_equal(with_scores.weights, without.weights)
    expected = np.argsort(-with_scores.scores, axis=1)[:, :3]
    assert np.array_equal(with_scores.ids, expected)
    assert np.allclose(with_scores.weights, softmax(np.take_along_axis(with_scores.scores, expected, axis=1)))


def test_logits_are_offset_plus_jitter_plus_unit_noise():
    world = bare_setting(gpus=1, experts=32, top_k=2, layers=2, tokens_per_gpu=20_000, seed=2, read_trace=lambda path: None)
    router = Router(preset=None, offsets="normal", scale=0.5, jitter=0.2, scores=True)
    draw = router.begin(world)
    one, two = draw(0).layers[0].scores, draw(1).layers[0].scores
    assert one.std(axis=0) == pytest.approx(1.0, abs=0.03)
    # Between steps only the jitter changes: the difference of two has deviation 0.2 sqrt(2), within 32 experts' sampling error (12 %).
    wobble = two.mean(axis=0) - one.mean(axis=0)
    assert wobble.std() == pytest.approx(0.2 * np.sqrt(2), rel=0.4)
    assert np.corrcoef(one.mean(axis=0), two.mean(axis=0))[0, 1] > 0.6
    assert abs(np.corrcoef(one.mean(axis=0), draw(0).layers[1].scores.mean(axis=0))[0, 1]) < 0.5


@pytest.mark.parametrize(
    ("law", "deviation"),
    [
        (RouterLaw(offsets="laplace", scale=0.32), 0.32 * np.sqrt(2)),  # a Laplace law of diversity b has variance 2 b^2
        (RouterLaw(offsets="normal", scale=0.5), 0.5),
        (RouterLaw(offsets="student_t", scale=0.35, degrees=6.0), 0.35 * np.sqrt(6 / 4)),  # variance d / (d - 2)
    ],
)
def test_offsets_have_their_deviation(law, deviation):
    assert law.draw_offsets(np.random.default_rng(1), 100_000).std() == pytest.approx(deviation, rel=0.03)


def test_keys_beside_a_preset_take_precedence():
    assert Router(preset="deepseek-r1", jitter=0.0).law() == RouterLaw(offsets="laplace", scale=0.32, jitter=0.0)
    assert Router(preset=None, offsets="student_t", scale=0.3, degrees=3.0).law() == RouterLaw(offsets="student_t", scale=0.3, degrees=3.0)


@pytest.mark.parametrize(
    ("keys", "field"),
    [
        ({"preset": None}, "offsets"),
        ({"preset": None, "offsets": "normal"}, "scale"),
        ({"degrees": 3.0}, "degrees"),
    ],
)
def test_keys_that_do_not_determine_a_law_are_refused(keys, field):
    with pytest.raises(FieldError) as caught:
        Router(**keys)
    assert caught.value.field == field


def test_a_preset_is_fitted_and_other_parameters_are_assumed():
    world = bare_setting(gpus=1, experts=256, top_k=8, layers=1, tokens_per_gpu=1, seed=0, read_trace=lambda path: None)
    assert Router().begin(world)(0).basis == "fitted"
    assert Router().begin(world)(0).notes == ()
    assert Router(scale=0.4).begin(world)(0).basis == "assumed"


@pytest.mark.parametrize(("experts", "top_k"), [(64, 8), (256, 6)])
def test_a_preset_at_another_shape_is_assumed_and_says_where_it_was_fitted(experts, top_k):
    world = bare_setting(gpus=1, experts=experts, top_k=top_k, layers=1, tokens_per_gpu=1, seed=0, read_trace=lambda path: None)
    routing = Router().begin(world)(0)
    assert routing.basis == "assumed"
    [note] = routing.notes
    assert "deepseek-r1 was fitted at 256 experts, top 8" in note
    assert f"has {experts} experts, top {top_k}" in note
    # With the law written out nothing of the preset's imbalance is left, so where it was fitted does not matter.
    written = Router(offsets="normal", scale=0.2).begin(world)(0)
    assert (written.basis, written.notes) == ("assumed", ())
    assert Router(preset=None, offsets="normal", scale=0.2).begin(world)(0).notes == ()


def test_every_preset_says_where_it_was_fitted():
    assert {name: law.fitted_at for name, law in PRESETS.items()} == {
        "deepseek-r1": (256, 8),
        "aux-loss-1b": (64, 6),
        "aux-loss-3b": (64, 6),
        "loss-free": (64, 6),
    }
