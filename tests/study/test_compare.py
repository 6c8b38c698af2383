"""Comparisons of variants: verdicts, winners, pairs, and what must hold for any of them."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from study.answers import answer, seeds, single

from moesim.base.errors import UsageError
from moesim.measure.collect import metrics
from moesim.study.compare import HEADLINES, compare
from moesim.study.difference import verdict
from moesim.study.played import Played, are_copies, as_one_run, series

TIMES = st.lists(st.floats(0.01, 1.0), min_size=3, max_size=6)


def test_differences_are_paired_by_seed():
    # Seeds differ by far more than the two policies do: pairs see it, and the intervals of either alone overlap.
    base = seeds("base", step_time=[1.0, 2.0, 3.0, 4.0])
    fast = seeds("fast", step_time=[0.9, 1.9, 2.9, 3.9])
    found = compare([base, fast], baseline="base")
    one = found.differences["fast"]["step_time"]
    assert one.value == pytest.approx(-0.1)
    assert (one.verdict, one.paired, one.n) == ("better", True, 4)
    assert found.metrics["fast"]["step_time"].high > found.metrics["base"]["step_time"].low
    # 100 * (9.6 / 10 - 1).
    assert one.per_cent == pytest.approx(-4.0)
    # Reversed, the same numbers have other partners: nothing can be told.
    shuffled = seeds("fast", step_time=[3.9, 2.9, 1.9, 0.9])
    assert compare([base, shuffled], baseline="base").differences["fast"]["step_time"].verdict == "not distinguishable"


def test_verdicts_follow_the_direction_of_a_metric():
    base = seeds("base", step_time=[1.0, 2.0], tokens_per_second=[10.0, 20.0], expert_cv=[0.5, 0.6])
    other = seeds("other", step_time=[1.5, 2.5], tokens_per_second=[11.0, 21.0], expert_cv=[0.5, 0.6])
    found = compare([base, other], baseline="base").differences["other"]
    assert found["step_time"].verdict == "worse"
    assert found["tokens_per_second"].verdict == "better"
    assert (found["expert_cv"].verdict, found["expert_cv"].differs) == ("not distinguishable", False)
    assert verdict(1.0, "neither", differs=True) == "not distinguishable"
    assert verdict(-1.0, "lower", differs=False) == "not distinguishable"


def test_a_metric_that_one_variant_lacks_is_not_compared():
    base = seeds("base", step_time=[1.0, 2.0], drop_rate=[0.1, 0.2])
    other = seeds("other", step_time=[1.5, 2.5], drop_rate=[np.nan, np.nan])
    found = compare([base, other], baseline="base")
    one = found.differences["other"]["drop_rate"]
    assert (one.value, one.low, one.high, one.differs, one.verdict) == (None, None, None, None, "not distinguishable")
    assert found.metrics["other"]["drop_rate"].value is None
    assert compare([base, other], baseline="base", by="drop_rate").winner.best == "base"


def test_many_comparisons_need_stronger_evidence():
    rng = np.random.default_rng(3)
    base = rng.random(5)
    # Mean -0.03 and standard error 0.0063: t = 4.7 and p = 0.009, times the 231 pairs of 22 variants 1.
    effect = base - 0.03 + 0.02 * np.array([1.0, -1.0, 0.5, -0.5, 0.0])
    alone = compare([seeds("base", step_time=base), seeds("a", step_time=effect)], baseline="base").differences["a"]["step_time"]
    assert (alone.p < 0.05, alone.verdict) == (True, "better")
    crowd = [seeds(f"v{at}", step_time=base + 0.02 * rng.standard_normal(5)) for at in range(20)]
    among = compare([seeds("base", step_time=base), seeds("a", step_time=effect), *crowd], baseline="base").differences["a"]["step_time"]
    assert among.p == alone.p
    assert among.p_adjusted > 0.05
    assert among.verdict == "not distinguishable"
    # The interval of 95 % is the same; the corrected one is wider and holds 0, as the verdict says.
    assert (among.low, among.high) == (alone.low, alone.high)
    assert among.high < 0 < among.corrected_high


def test_families_of_metrics_do_not_dilute_each_other():
    assert "step_time" in HEADLINES
    rng = np.random.default_rng(5)
    base = {name: rng.random(5) for name in ("step_time", "expert_time", "attention_time", "gradient_time", "maxvio")}
    other = {name: values - 0.05 + 0.03 * rng.standard_normal(5) for name, values in base.items()}
    both = compare([seeds("base", **base), seeds("a", **other)], baseline="base").differences["a"]
    alone = compare([seeds("base", step_time=base["step_time"]), seeds("a", step_time=other["step_time"])], baseline="base")
    assert both["step_time"].p_adjusted == alone.differences["a"]["step_time"].p_adjusted


def test_the_winner_must_beat_all_others():
    base, near, far = (seeds(name, step_time=[at + 1.0, at + 2.0, at + 3.1]) for name, at in (("a", 0.0), ("b", 0.2), ("c", 0.5)))
    won = compare([far, near, base], baseline="c").winner
    assert (won.name, won.best, won.next, won.distinguishable, won.tied) == ("a", "a", "b", True, ("a",))
    assert won.margin == pytest.approx(0.2)
    # 0.2 of the mean 2.0333 + 0.2 of b.
    assert won.per_cent == pytest.approx(100 * 0.2 / (6.1 / 3 + 0.2))
    noisy = seeds("b", step_time=[1.6, 1.7, 3.05])
    tied = compare([far, noisy, base], baseline="c").winner
    assert (tied.name, tied.best, tied.next, tied.distinguishable, tied.tied) == (None, "a", "b", False, ("a", "b"))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(2, 4), st.floats(0.0, 3.0))
def test_the_winner_and_the_verdicts_on_its_metric_agree(seed, count, size):
    # Other headlines differ too, or not: they are other comparisons, and must not make a winner look like none.
    rng = np.random.default_rng(seed)
    names = [f"v{at}" for at in range(count)]
    variants = [
        seeds(name, step_time=at * size * 0.01 + 0.02 * rng.random(4) + 1, drop_rate=rng.random(4), waiting_time=rng.random(4))
        for at, name in enumerate(names)
    ]
    for baseline in names:
        found = compare(variants, baseline=baseline)
        won, verdicts = found.winner.name, {name: of["step_time"].verdict for name, of in found.differences.items()}
        if won == baseline:
            assert set(verdicts.values()) == {"worse"}
        elif won is not None:
            assert verdicts[won] == "better"
        elif baseline == found.winner.best:
            assert "not distinguishable" in verdicts.values()


def test_more_is_better_where_the_metric_says_so():
    slow, fast = (seeds(name, step_time=[1.0, 1.0], tokens_per_second=rate) for name, rate in (("slow", [5.0, 6.0]), ("fast", [7.0, 8.0])))
    won = compare([slow, fast], baseline="slow", by="tokens_per_second").winner
    assert (won.name, won.margin, won.per_cent) == ("fast", 2.0, pytest.approx(100 * 2 / 5.5))
    assert (won.low, won.high) == (2.0, 2.0)


def test_one_piece_of_evidence_gives_no_verdict():
    found = compare([seeds("a", step_time=[1.0]), seeds("b", step_time=[2.0])], baseline="a")
    one = found.differences["b"]["step_time"]
    assert (one.value, one.low, one.high, one.p, one.differs, one.verdict) == (1.0, None, None, None, None, "not distinguishable")
    assert (found.winner.name, found.winner.best, found.winner.margin, found.winner.low) == (None, "a", 1.0, None)


def test_steps_with_the_same_tokens_are_one_piece_of_evidence():
    # Six steps, three blocks of tokens, each twice: the mean over steps, but the evidence of three.
    times = [1.0, 2.0, 3.0, 1.2, 2.2, 3.2]
    base = single("base", blocks=[0, 1, 2, 0, 1, 2], step_time=times)
    other = single(
        "other", blocks=[0, 1, 2, 0, 1, 2], step_time=[time + shift for time, shift in zip(times, [1, 2, 3, 1, 2, 3], strict=True)]
    )
    one = compare([base, other], baseline="base").differences["other"]["step_time"]
    assert (one.value, one.n) == (pytest.approx(2.0), 3)
    # Differences of blocks 1, 2, 3: standard error 1 / sqrt(3), t = 4.3027.
    assert one.high - one.value == pytest.approx(4.302653 / np.sqrt(3), rel=1e-5)
    assert compare([base, other], baseline="base").metrics["base"]["step_time"].value == pytest.approx(np.mean(times))
    single_block = single("other", blocks=[0] * 6, step_time=times)
    alone = series(single_block, "step_time", "mean")
    assert (alone.labels, alone.estimate().interval()) == ((0,), (None, None))


def test_a_number_of_the_whole_run_is_one_piece_of_evidence_however_many_steps_it_had():
    found = series(single("a", step_time=[1.0, 2.0, 3.0], normalised_entropy=[0.5, 0.5, 0.5]), "normalised_entropy", "whole")
    assert (found.values.tolist(), found.estimate().error) == ([0.5], None)


def test_seeds_that_are_copies_are_no_evidence():
    runs = tuple(answer({"step_time": [1.0, 2.0]}) for _ in range(5))
    copied = Played(name="a", answers=runs, seeds=(1, 2, 3, 4, 5), blocks=np.arange(2))
    assert are_copies(copied)
    alone = as_one_run(copied)
    assert (alone.seeds, alone.serial) == ((1,), True)
    assert series(alone, "step_time", "mean").estimate().n == 2
    assert not are_copies(dataclasses.replace(copied, answers=(*runs[:4], answer({"step_time": [1.0, 2.5]}))))
    assert not are_copies(dataclasses.replace(copied, answers=runs[:1], seeds=(1,)))


def test_variants_without_common_evidence_are_compared_without_pairs():
    many, one = seeds("many", step_time=[1.0, 1.1, 0.9]), single("one", step_time=[3.0, 3.1, 2.9, 3.0])
    found = compare([many, one], baseline="many").differences["one"]["step_time"]
    assert (found.paired, found.verdict) == (False, "worse")
    assert found.value == pytest.approx(2.0)


def test_a_failed_seed_leaves_the_pairs_that_both_have():
    base = seeds("base", step_time=[1.0, 2.0, 3.0])
    other = seeds("other", step_time=[1.5, 2.5, 3.5])
    other = dataclasses.replace(other, answers=other.answers[1:], seeds=other.seeds[1:])
    one = compare([base, other], baseline="base").differences["other"]["step_time"]
    assert (one.value, one.n) == (0.5, 2)


def test_equal_draws_with_unequal_choices_are_a_broken_law():
    base = dataclasses.replace(seeds("base", step_time=[1.0, 2.0], maxvio=[0.5, 0.6]), draws="x")
    same = dataclasses.replace(seeds("same", step_time=[1.0, 2.0], maxvio=[0.5, 0.6]), draws="x")
    other = dataclasses.replace(seeds("other", step_time=[1.0, 2.0], maxvio=[0.5, 0.7]), draws="x")
    found = compare([base, same, other], baseline="base")
    assert dict(found.same_choices) == {"base": True, "same": True, "other": False}
    assert len(found.warnings) == 1
    assert "law L9" in found.warnings[0]
    assert found.warnings[0].startswith("other and base")
    # A variant that measures fewer steps agrees with the base in those that both have, and that breaks nothing.
    long = dataclasses.replace(seeds("long", step_time=[1.0, 2.0]), draws="x")
    long = dataclasses.replace(
        long, answers=tuple(answer({"step_time": [1.0, 2.0], "maxvio": [0.5, at], "expert_cv": [at] * 2}) for at in (0.6, 0.7))
    )
    short = dataclasses.replace(
        long, name="short", answers=tuple(answer({"step_time": [1.0], "maxvio": [0.5], "expert_cv": [0.5]}) for _ in range(2))
    )
    found = compare([long, short], baseline="long")
    assert (dict(found.same_choices), found.warnings) == ({"long": True, "short": False}, ())
    # A gate that learns from drops may choose differently, and other draws do.
    for excused in (dataclasses.replace(other, learns=True), dataclasses.replace(other, draws="y")):
        assert compare([base, excused], baseline="base").warnings == ()


@settings(deadline=None, max_examples=30)
@given(TIMES)
def test_a_policy_is_never_distinguishable_from_itself(times):
    found = compare([seeds("a", step_time=times), seeds("b", step_time=times)], baseline="a")
    one = found.differences["b"]["step_time"]
    assert (one.value, one.verdict, one.differs) == (0.0, "not distinguishable", False)
    assert (found.winner.name, found.winner.tied) == (None, ("a", "b"))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 1.0)), min_size=2, max_size=6))
def test_swapping_the_baseline_flips_signs_and_verdicts(pairs):
    first, second = (list(times) for times in zip(*pairs, strict=True))
    variants = [seeds("a", step_time=first), seeds("b", step_time=second)]
    one = compare(variants, baseline="a").differences["b"]["step_time"]
    other = compare(variants, baseline="b").differences["a"]["step_time"]
    assert one.value == -other.value
    assert (one.low, one.high) == (-other.high, -other.low)
    assert one.p == other.p
    opposite = {"better": "worse", "worse": "better", "not distinguishable": "not distinguishable"}
    assert one.verdict == opposite[other.verdict]


@settings(deadline=None, max_examples=30)
@given(st.permutations(["a", "b", "c", "d"]), st.integers(0, 20))
def test_the_order_of_variants_decides_nothing(order, seed):
    rng = np.random.default_rng(seed)
    shared = rng.random(4)
    variants = {name: seeds(name, step_time=shared + at / 50 + 0.01 * rng.random(4)) for at, name in enumerate("abcd")}
    first = compare(list(variants.values()), baseline="a")
    other = compare([variants[name] for name in order], baseline="a")
    assert first.winner == other.winner
    assert dict(first.differences) == dict(other.differences)


@settings(deadline=None, max_examples=30)
@given(st.lists(TIMES.map(lambda times: times[:3]), min_size=2, max_size=4))
def test_verdicts_are_consistent_with_intervals(columns):
    found = compare([seeds(str(at), step_time=times) for at, times in enumerate(columns)], baseline="0")
    for differences in found.differences.values():
        one = differences["step_time"]
        assert one.low <= one.value <= one.high
        assert one.corrected_low <= one.low
        assert one.high <= one.corrected_high
        outside = one.corrected_low > 0 or one.corrected_high < 0
        assert (one.verdict != "not distinguishable") == outside == one.differs


def test_chance_gives_verdicts_in_at_most_5_of_100_comparisons():
    # 300 comparisons of 5 equal policies on 2 metrics: with 5 % and a standard error of 1.3 % at most 9 % have any verdict.
    rng = np.random.default_rng(8)
    wrong = 0
    for _ in range(300):
        shared = rng.random((2, 5))
        variants = [
            seeds(name, step_time=shared[0] + 0.1 * rng.standard_normal(5), drop_rate=shared[1] + 0.1 * rng.standard_normal(5))
            for name in "abcde"
        ]
        found = compare(variants, baseline="a")
        wrong += any(of[name].differs for of in found.differences.values() for name in ("step_time", "drop_rate"))
    assert wrong <= 27


@pytest.mark.parametrize(
    ("variants", "options", "said"),
    [
        ([], {}, "needs at least two variants, and there are none"),
        (["a"], {}, "needs at least two variants, and there is only a"),
        (["a", "a"], {}, "two variants are called 'a'"),
        (["a", "b"], {"baseline": "aa"}, "the baseline 'aa' is none of the variants; did you mean 'a'"),
        (["a", "b"], {"by": "steptime"}, "--by names no metric: 'steptime'; did you mean 'step_time'"),
    ],
)
def test_questions_without_an_answer(variants, options, said):
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        compare([seeds(name, step_time=[1.0, 2.0]) for name in variants], **{"baseline": "a", **options})


def test_a_metric_without_a_direction_has_no_winner():
    neither = next(name for name, metric in metrics().items() if metric.better == "neither")
    with pytest.raises(UsageError, match="neither more nor less of it is better"):
        compare([seeds("a", step_time=[1.0, 2.0]), seeds("b", step_time=[1.0, 2.0])], baseline="a", by=neither)
