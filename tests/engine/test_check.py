"""Rules between the parts of a scenario."""

import dataclasses

import numpy as np
import pytest
from scenario_texts import SMALL

from moesim.base.errors import ScenarioError, TraceError
from moesim.desk.scenario_file import read_scenario
from moesim.engine.check import check, least_bytes
from moesim.facts.trace import Trace
from moesim.models.memory import weight_bytes


def scenario(*overrides, text=SMALL):
    return read_scenario(text, file="f.yaml", folder="/", overrides=overrides, check=False)


def no_trace(path):
    raise AssertionError(f"nothing here reads {path}")


def said(found):
    return [(problem.path, problem.message) for problem in check(found, no_trace)]


def test_a_good_scenario_has_no_problems():
    assert check(scenario(), no_trace) == []


def test_ep_must_divide_the_gpus():
    [(path, message)] = said(scenario("parallel.ep=3"))
    assert path == "parallel.ep"
    assert message == "ep = 3 does not divide the cluster's 8 GPUs into equal groups; choose one of 1, 2, 4, 8"
    [(path, message)] = said(scenario("parallel.ep=16"))
    assert "ep = 16 does not divide the cluster's 8 GPUs" in message


def test_experts_must_divide_where_the_placement_needs_it():
    [(path, message)] = said(scenario("model.experts=12"))
    assert path == "policy.placement"
    assert "12 experts" in message
    assert "8" in message


def test_a_variant_is_checked_only_where_it_differs():
    found = scenario("model.experts=12", "compare.other.placement=round_robin")
    assert [path for path, _ in said(found)] == ["policy.placement", "compare.other.placement"]


def test_problems_get_their_place_in_the_file():
    with pytest.raises(ScenarioError, match=r"^f\.yaml:16:16: parallel\.ep: ep = 5 does not divide the cluster's 8 GPUs"):
        read_scenario(SMALL.replace("ep: 8", "ep: 5"), file="f.yaml", folder="/")
    with pytest.raises(ScenarioError, match=r"^override parallel\.ep=5: parallel\.ep: ep = 5"):
        read_scenario(SMALL, file="f.yaml", folder="/", overrides=["parallel.ep=5"])


# memory


def test_least_bytes_by_hand():
    # Tiny model: per layer attention 4194304, router 1024 x 16, experts 3 x 1024 x 512 each; 2 layers, bf16, no vocabulary.
    model = scenario().model
    dense = 2 * (4194304 + 1024 * 16)
    expert = 3 * 1024 * 512
    assert least_bytes(model, 2, "prefill", gpus=8, groups=1) == 2 * (dense + 2 * 2 * expert)
    # Training: 16 bytes more per parameter, shared by the 8 GPUs (dense) and by the 2 groups (experts).
    assert least_bytes(model, 2, "training", gpus=8, groups=2) == 2 * (dense + 2 * 2 * expert) + 16 * (dense / 8 + 2 * 2 * expert / 2)


def test_least_bytes_is_the_unsharded_account_where_there_is_nothing_to_shard_over():
    model = scenario().model
    for phase in ("training", "decode"):
        assert least_bytes(model, 16, phase, gpus=1, groups=1) == weight_bytes(model, 16, phase)


def test_weights_that_do_not_fit_are_refused_with_both_numbers():
    # 2 x 2 experts of 3 x 1024 x 10^7 weights take 1.23e11 of them, 246 GB in bf16; an H100 has 80 GiB.
    [(path, message)] = said(scenario("model.expert_width=10000000", "workload.phase=prefill"))
    assert path == "parallel.ep"
    assert message.startswith("the weights of tiny need 246 GB on a GPU with 2 experts of each MoE layer, but h100-sxm has 85.9 GB")
    [(path, message)] = said(scenario("model.expert_width=10000000"))
    assert "weights, gradients and optimiser states of tiny need 2.21 TB" in message


def test_memory_is_checked_for_every_phase_by_its_own_account():
    # Sharded over one group, training needs 9 times the experts' bf16 bytes: what fits to serve need not fit to train.
    overrides = ("model.expert_width=2000000",)
    assert said(scenario(*overrides, "workload.phase=decode")) == []
    assert [path for path, _ in said(scenario(*overrides))] == ["parallel.ep"]


# recordings


def trace(layers=2, experts=16, top_k=2, *, counts=False, weights=False, **more):
    ids = np.zeros((64, layers, top_k), dtype=np.int64) + np.arange(top_k)
    known = (
        {"counts": np.full((3, layers, 8, experts), 4), "by_source": True}
        if counts
        else {"ids": ids, "weights": np.full(ids.shape, 1 / top_k) if weights else None}
    )
    return Trace(name="t.npz", digest="0" * 64, layers=layers, experts=experts, top_k=top_k, **known, **more)


def recorded(*overrides):
    return scenario("routing={kind: recorded, trace: t.npz}", *overrides)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (trace(layers=3, weights=True), ("3 MoE layers", "has 2")),
        (trace(experts=32, weights=True), ("32 experts", "has 16")),
        (trace(top_k=4, weights=True), ("4 choices", "2")),
    ],
)
def test_a_recording_of_another_model_is_refused_with_both_numbers(given, words):
    [problem] = check(recorded(), lambda path: given)
    assert problem.path == "routing.trace"
    assert all(word in problem.message for word in words)


def test_a_recording_that_fits_is_read_by_its_path():
    paths = []

    def read(path):
        paths.append(path)
        return trace(weights=True)

    assert check(recorded(), read) == []
    assert set(paths) == {"/t.npz"}


def test_a_damaged_recording_is_a_problem_at_its_key():
    def read(path):
        raise TraceError(f"{path} is damaged")

    assert [(problem.path, problem.message) for problem in check(recorded(), read)] == [("routing.trace", "/t.npz is damaged")]


def test_a_policy_that_needs_more_than_the_recording_knows_is_refused_by_name():
    found = check(recorded("policy.capacity.drop=probs"), lambda path: trace(weights=False))
    assert {problem.path for problem in found} == {"policy.capacity", "compare.tight.capacity"}
    assert "megatron" in found[0].message
    assert "gate weight" in found[0].message
    assert check(recorded("policy.capacity.drop=position"), lambda path: trace(weights=False)) == []


COUNTS = trace(counts=True)


@pytest.mark.parametrize("phase", ["training", "prefill"])
def test_an_exchange_that_needs_tokens_is_refused_for_a_recording_of_counts(phase):
    # The default exchange sends one copy per token and GPU: of counts nobody knows which routes belong to one token. run refuses it too.
    found = recorded(f"workload.phase={phase}", "policy.capacity={rule: dropless}", "compare={}")
    [problem] = check(found, lambda path: COUNTS)
    assert problem.path == "exchange"
    assert "exchange.deduplicate" in problem.message
    assert "counts by source" in problem.message
    kept = recorded(f"workload.phase={phase}", "policy.capacity={rule: dropless}", "compare={}", "exchange.deduplicate=false")
    assert check(kept, lambda path: COUNTS) == []


@pytest.mark.parametrize("phase", ["training", "decode"])
def test_the_exchange_is_tried_in_the_directions_of_the_phase(phase):
    asked = []

    class Asking:
        def begin(self, setting):
            return lambda assignment, *, direction: asked.append(direction)

    found = dataclasses.replace(recorded(f"workload.phase={phase}", "compare={}"), exchange=Asking())
    assert check(found, lambda path: trace(weights=True)) == []
    assert set(asked) == ({"forward", "backward"} if phase == "training" else {"forward"})


@pytest.mark.parametrize(("section", "line"), [("exchange: {kind: direct, launch: 5us}\n", 9), ("", 8)])
def test_a_refused_exchange_has_its_place_or_that_of_the_routing(tmp_path, section, line):
    (tmp_path / "loads.csv").write_text("layer,expert,token_count\n0,0,4000\n0,1,3000\n0,2,2000\n0,3,7384\n", encoding="utf-8")
    text = (
        "name: counts\n"
        "model:\n"
        "  {preset: mixtral-8x7b, layers: 1, moe_layers: [0], experts: 4, top_k: 2}\n"
        "cluster:\n"
        "  {kind: one_switch, gpu: h100-sxm, gpus: 4}\n"
        "parallel: {ep: 4}\n"
        "workload: {phase: prefill, tokens_per_gpu: 2048}\n"
        "routing: {kind: recorded, trace: loads.csv, assume_sources: even}\n"
    )
    with pytest.raises(ScenarioError) as caught:
        read_scenario(text + section, file="f.yaml", folder=tmp_path)
    [problem] = caught.value.problems
    assert (problem.path, problem.line) == ("exchange", line)
    assert "exchange.deduplicate" in problem.message
    assert read_scenario(text + "exchange: {kind: direct, deduplicate: false}\n", file="f.yaml", folder=tmp_path).name == "counts"


def test_a_gate_that_needs_scores_is_refused_for_a_recording_of_counts():
    [problem] = check(recorded("policy.gate={kind: topk}"), lambda path: trace(counts=True))
    assert problem.path == "policy.gate"
    assert "counts by source" in problem.message


# plug-ins that refuse


class Refusing:
    def begin(self, setting):
        raise ValueError("not on a Monday")


def test_a_plugin_that_refuses_to_begin_is_a_problem_at_its_section():
    good = scenario()
    for part in ("exchange", "compute"):
        assert said(dataclasses.replace(good, **{part: Refusing()})) == [(part, "not on a Monday")]
    policy = dataclasses.replace(good.policy, dispatch=Refusing())
    assert said(dataclasses.replace(good, policy=policy, compare={})) == [("policy.dispatch", "not on a Monday")]
