"""Which variants a comparison has, what they are called, and what is refused."""

import pytest
from scenario_texts import SMALL

from moesim.base.errors import ScenarioError, UsageError
from moesim.desk.compare_variants import AS_WRITTEN, read_variants, several


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def factors(variants):
    return {variant.name: getattr(variant.scenario.policy.capacity, "factor", None) for variant in variants}


def test_the_files_variants_come_in_order_and_the_first_is_the_baseline(small):
    variants, baseline = read_variants(small)
    assert (list(factors(variants).items()), baseline) == ([("dropless", None), ("tight", 1.0)], "dropless")
    assert all(not variant.scenario.compare for variant in variants)


def test_an_override_holds_for_all_variants(small):
    variants, _ = read_variants(small, ["steps=7"])
    assert [variant.scenario.steps for variant in variants] == [7, 7]


def test_a_key_with_several_values_takes_the_place_of_the_files_variants(small):
    variants, baseline = read_variants(small, ["policy.capacity.factor=1.0,1.5", "steps=2"])
    assert (factors(variants), baseline) == ({"factor=1.0": 1.0, "factor=1.5": 1.5}, "factor=1.0")
    assert {variant.scenario.steps for variant in variants} == {2}


def test_several_keys_make_every_combination_and_any_key_may_be_one(small):
    variants, _ = read_variants(small, ["workload.tokens_per_gpu=64,128", "policy.placement.kind=contiguous,round_robin"])
    assert [variant.name for variant in variants] == [
        "tokens_per_gpu=64 placement=contiguous", "tokens_per_gpu=64 placement=round_robin",
        "tokens_per_gpu=128 placement=contiguous", "tokens_per_gpu=128 placement=round_robin",
    ]  # fmt: skip
    assert [variant.scenario.workload.tokens_per_gpu for variant in variants] == [64, 64, 128, 128]
    assert [variant.scenario.policy.placement.kind for variant in variants] == ["contiguous", "round_robin"] * 2


def test_names_are_as_short_as_tells_keys_apart(small):
    variants, _ = read_variants(small, ["policy.placement={kind: eplb, redundant: 8},contiguous", "model.hidden=1024,2048"])
    assert variants[0].name == "placement={kind: eplb, redundant: 8} hidden=1024"
    variants, _ = read_variants(small, ["policy.placement.kind=contiguous,greedy"])
    assert [variant.name for variant in variants] == ["placement=contiguous", "placement=greedy"]


def test_a_range_is_several_values(small):
    variants, _ = read_variants(small, ["policy.capacity.factor=1.0..1.2:0.1"])
    assert list(factors(variants).values()) == [1.0, 1.1, 1.2]


def test_variants_of_the_command_line_come_last_and_may_change_any_key(small):
    variants, baseline = read_variants(small, [], ["wide:cluster.oversubscription=2,policy.capacity=null", "as_is:"])
    assert [variant.name for variant in variants] == ["dropless", "tight", "wide", "as_is"]
    assert (variants[2].scenario.cluster.oversubscription, variants[2].scenario.policy.capacity.kind) == (2.0, "dropless")
    assert variants[3].scenario.policy.capacity.factor == 1.25
    assert baseline == "dropless"


def test_without_variants_in_the_file_the_file_itself_is_the_baseline(small):
    small.write_text(SMALL[: SMALL.index("compare:")])
    variants, baseline = read_variants(small, [], ["tight:policy.capacity.factor=1.0"])
    assert (factors(variants), baseline) == ({AS_WRITTEN: 1.25, "tight": 1.0}, AS_WRITTEN)


def test_the_file_itself_can_be_the_baseline_of_its_variants(small):
    variants, baseline = read_variants(small, baseline=AS_WRITTEN)
    assert (factors(variants), baseline) == ({AS_WRITTEN: 1.25, "dropless": None, "tight": 1.0}, AS_WRITTEN)
    assert read_variants(small, baseline="tight")[1] == "tight"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", [""]),
        ("a,b", ["a", "b"]),
        ("[1, 2],[3]", ["[1, 2]", "[3]"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ("{x: [1, 2], y: 3}", ["{x: [1, 2], y: 3}"]),
    ],
)
def test_commas_inside_brackets_and_quotes_separate_nothing(text, parts):
    assert several(text) == parts


@pytest.mark.parametrize(
    ("words", "given", "baseline", "said"),
    [
        ([], ["tight:steps=2"], None, "two variants are called 'tight'"),
        ([], ["a:steps=2", "a:steps=3"], None, "two variants are called 'a'"),
        ([], ["a"], None, "--variant a: write NAME:KEY=VALUE"),
        ([], ["steps=2"], None, "--variant steps=2: write NAME:KEY=VALUE"),
        ([], ["a:steps"], None, "'steps' is not KEY=VALUE"),
        ([], ["a:seed=3"], None, "seed is not for comparing"),
        (["seed=1,2"], [], None, "seed is not for comparing"),
        ([], [], "tihgt", "--baseline names no variant: 'tihgt'; did you mean 'tight'"),
        (["model.hidden=128..65536:128", "steps=1..9"], [], None, "more than 200 variants"),
    ],
)
def test_what_is_refused(small, words, given, baseline, said):
    with pytest.raises(UsageError) as refused:
        read_variants(small, words, given, baseline=baseline)
    assert said in str(refused.value)


def test_fewer_than_two_variants_are_no_comparison(small):
    small.write_text(SMALL[: SMALL.index("  tight:")])
    with pytest.raises(UsageError, match="has one variant only to compare: name at least two"):
        read_variants(small)
    for empty in ("compare: {}\n", ""):
        small.write_text(SMALL[: SMALL.index("compare:")] + empty)
        with pytest.raises(UsageError, match="has no variants to compare"):
            read_variants(small)


@pytest.mark.parametrize("words", [["policy.capacity.factor=1.0,-1"], ["nonsense=1,2"], ["steps=1,,2"], ["steps=1,1"]])
def test_a_wrong_value_is_found_before_anything_runs(small, words):
    with pytest.raises(ScenarioError):
        read_variants(small, words)
