"""Whole small runs with plug-ins of our own, to see that the engine plays what they say and refuses what breaks a law."""

import dataclasses

import numpy as np
import pytest

from moesim.base.errors import LawBroken
from moesim.base.registry import plugin
from moesim.engine.simulate import simulate
from moesim.facts.contracts import View
from moesim.facts.gpu_presets import gpu_presets
from moesim.facts.model import Attention, MoeModel
from moesim.facts.routing import LayerRouting, Routing
from moesim.facts.scenario import Parallel, Policy, Scenario, Workload
from moesim.facts.traffic import Exchange, Traffic
from moesim.models.topology.nvlink_nodes import NvlinkNodes
from moesim.models.topology.one_switch import OneSwitch

MODEL = MoeModel(
    name="small",
    layers=1,
    moe_layers=(0,),
    hidden=64,
    experts=4,
    top_k=1,
    expert_width=32,
    dispatch_width=64,
    attention=Attention(heads=4, score_width=16.0, projection_parameters=4 * 64 * 64, cache_bytes_per_token=256),
)


def no_trace(path):
    raise AssertionError(path)


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A source that sends given tokens to given experts: ``ids`` by step, each a list by GPU of lists of experts."""

    ids: tuple
    repeats: tuple = ()
    kind = "fixed"

    def begin(self, setting):
        def draw(step):
            by_gpu = self.ids[step % len(self.ids)]
            start = np.cumsum([0, *[len(tokens) for tokens in by_gpu]])
            chosen = np.array([expert for tokens in by_gpu for expert in tokens], dtype=np.int64)[:, None]
            layer = LayerRouting.of_tokens(chosen, start, setting.model.experts, weights=np.ones(chosen.shape))
            return Routing(layers=[layer], basis="measured", repeats=self.repeats[step] if self.repeats else None)

        return draw


def scenario(**changes):
    given = {
        "name": "run",
        "steps": 1,
        "model": MODEL,
        "cluster": OneSwitch(gpus=2, bandwidth=1e9, latency=0.0),
        "parallel": Parallel(ep=2),
        "workload": Workload(phase="prefill", tokens_per_gpu=4),
        "routing": Fixed((((0, 0, 0, 2), (1, 3)),)),
    }
    return Scenario(**{**given, **changes})


def play(world, **more):
    return simulate(world, read_trace=no_trace, keep_spans=True, **more)


# Experts 0 and 1 sit on GPU 0, experts 2 and 3 on GPU 1. GPU 0 has four tokens, three for itself; GPU 1 has two, one for GPU 0.


def test_rows_copies_and_loads_of_a_run_that_can_be_counted_by_hand():
    result = play(scenario())
    layers, ranks = result.tables["layers"], result.tables["ranks"]
    assert ranks["rows"].tolist() == [4, 2]  # 3 of its own and 1 from GPU 1; 1 from GPU 0 and 1 of its own
    assert layers["copies"].tolist() == [2]
    assert (layers["expert_max"][0], layers["expert_mean"][0]) == (3, 1.5)
    assert (layers["rank_max"][0], layers["rank_mean"][0]) == (4, 3.0)
    assert result.tables["gpus"]["rows"].tolist() == [4.0, 2.0]
    assert result.tables["traffic"]["copies"].sum() == 2


@dataclasses.dataclass(frozen=True)
class TwoStages:
    """An exchange that moves 100 B from GPU 0 to 1 and back, first one way, then the other."""

    launch: float = 0.0
    barrier: bool = False
    kind = "two_stages"

    def begin(self, setting):
        def carry(assignment, *, direction):
            there, back = np.array([[0.0, 100.0], [0.0, 0.0]]), np.array([[0.0, 0.0], [100.0, 0.0]])
            copies = np.zeros((2, 2), dtype=np.int64)
            stages = (Traffic(bytes=there, copies=copies), Traffic(bytes=back, copies=copies))
            return Exchange(dispatch=stages, combine=stages, launch=self.launch, barrier=self.barrier)

        return carry


def test_stages_of_an_exchange_follow_each_other():
    # 100 B at 1 kB/s take 0.1 s; the second stage starts when the first is over: 0.2 s for both, and as much for combine.
    slow = OneSwitch(gpus=2, bandwidth=1e3, latency=0.0)
    result = play(scenario(cluster=slow, exchange=TwoStages()))
    spans = result.tables["spans"]
    dispatch = spans.where(spans["phase"] == "dispatch")
    transfer = dispatch["end_s"] - dispatch["start_s"] - dispatch["waiting_s"]
    np.testing.assert_allclose(transfer, [0.2, 0.2], rtol=1e-9)
    assert dispatch["bytes"].tolist() == [100.0, 100.0]
    assert len(result.tables["collectives"]) == 4
    assert result.tables["links"]["bytes"].tolist() == [200.0] * 4


def test_launch_comes_before_a_rank_arrives():
    late = play(scenario(exchange=TwoStages(launch=0.5)))
    collectives = late.tables["collectives"]
    attention = late.tables["spans"].where(late.tables["spans"]["phase"] == "gate")
    assert collectives["first_arrival_s"][0] == pytest.approx(attention["end_s"].min() + 0.5, rel=1e-9)


def test_the_report_says_what_the_exchange_really_does():
    held = play(scenario(exchange=TwoStages(barrier=True)))
    assert any("No byte of an all-to-all moves before" in line for line in held.assumptions)
    free = play(scenario(exchange=TwoStages(barrier=False)))
    assert not any("No byte of an all-to-all moves before" in line for line in free.assumptions)


@dataclasses.dataclass(frozen=True)
class Silent:
    """An exchange that forgets the bytes."""

    kind = "silent"

    def begin(self, setting):
        def carry(assignment, *, direction):
            nothing = Traffic(bytes=np.zeros((2, 2)), copies=np.zeros((2, 2), dtype=np.int64))
            return Exchange(dispatch=(nothing,), combine=(nothing,))

        return carry


def test_l2_an_exchange_that_loses_its_bytes_is_caught():
    with pytest.raises(
        LawBroken, match=r"law L2 \(bytes\): step 0, MoE layer 0: GPU 0 sends 1 rows in dispatch, but the exchange moves no"
    ):
        play(scenario(exchange=Silent()))


@dataclasses.dataclass(frozen=True)
class Broken:
    """A dispatch that spoils what the good one did."""

    how: str
    kind = "broken"

    def begin(self, setting):
        good = plugin("dispatch", "even")().begin(setting)

        def bind(kept, placement, *, step, moe_layer):
            done = good(kept, placement, step=step, moe_layer=moe_layer)
            counts, padding, destination = (np.array(part) for part in (done.slot_counts, done.slot_padding, done.destination))
            if self.how == "swaps":
                counts[0, [0, 1]] = counts[0, [1, 0]]
            elif self.how == "loses":
                counts[1, 3] -= 1
            elif self.how == "pads":
                padding[0, 0] += 1
            else:
                destination[0] = 1 - destination[0] + 2
            return dataclasses.replace(done, slot_counts=counts, slot_padding=padding, destination=destination)

        return bind


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("swaps", "GPU 0 kept 3 copies for expert 0, but 0 were bound to slots that hold it"),
        ("loses", "GPU 1 kept 1 copies for expert 3, but 0 were bound"),
        ("pads", "the capacity rule added 0 padding rows, but 1 were bound"),
        ("strays", "slot 0 of GPU 0 was looked for on GPU 3, outside its expert-parallel group"),
    ],
)
def test_l1_a_dispatch_that_loses_or_moves_copies_is_caught(how, message):
    world = scenario(cluster=OneSwitch(gpus=4), routing=Fixed((((0, 0, 0, 2), (1, 3), (0,), (1,)),)))
    with pytest.raises(LawBroken, match=message):
        play(dataclasses.replace(world, policy=Policy(dispatch=Broken(how))))


def test_steps_with_other_tokens_cost_other_times():
    # The second step has one token instead of six: attention and gate must not be taken from the first.
    result = play(scenario(steps=2, routing=Fixed((((0,) * 4000, (1,) * 4000), ((0,), (1,))))))
    steps = result.tables["steps"]
    assert steps["tokens"].tolist() == [8000, 2]
    assert steps["attention_s"][1] < steps["attention_s"][0]
    # The balanced step has each step's own tokens as well.
    assert result.metrics["step_time_if_balanced"].n == 2
    assert result.metrics["step_time_if_balanced"].low < result.metrics["step_time_if_balanced"].high


def test_steps_that_repeat_tokens_are_no_new_samples():
    same = play(scenario(steps=4, routing=Fixed((((0, 2), (1, 3)),), repeats=(None, 0, 0, 0))))
    assert (same.metrics["step_time"].n, same.metrics["step_time"].low) == (1, None)
    assert same.tables["steps"]["repeats"].tolist() == [-1, 0, 0, 0]
    mixed = play(scenario(steps=4, warmup=1, routing=Fixed((((0, 2), (1, 3)), ((0, 0), (1, 3))), repeats=(None, None, 0, 1))))
    # Measured are steps 1, 2 and 3: 3 repeats 1, and 2 repeats step 0, which was not measured: two samples.
    assert mixed.metrics["drop_rate"].n == 2


def test_memory_follows_the_tokens_that_are_there_not_the_ones_that_were_announced():
    few = play(scenario(workload=Workload(phase="prefill", tokens_per_gpu=4)))
    many = play(scenario(workload=Workload(phase="prefill", tokens_per_gpu=400_000)))
    assert few.metrics["peak_memory"] == many.metrics["peak_memory"]
    gpus = few.tables["gpus"]
    assert gpus["peak_memory_bytes"][0] > gpus["peak_memory_bytes"][1]  # GPU 0 has twice the tokens and twice the rows
    assert few.metrics["peak_memory"].value == gpus["peak_memory_bytes"].max()


def test_idle_time_and_utilisation_are_what_is_left():
    result = play(scenario(steps=2, routing=Fixed((((0, 0, 0, 2), (1, 3)), ((2, 2, 2, 2), (0, 0))))))
    gpus, steps, links = result.tables["gpus"], result.tables["steps"], result.tables["links"]
    phases = [
        "attention_s",
        "dense_s",
        "gate_s",
        "shared_s",
        "expert_s",
        "dispatch_transfer_s",
        "combine_transfer_s",
        "waiting_s",
        "idle_s",
    ]
    np.testing.assert_allclose(sum(gpus[name] for name in phases), steps["step_time_s"].mean(), rtol=1e-9)
    np.testing.assert_allclose(links["utilisation"], links["bytes"] / (links["bandwidth_Bps"] * steps["step_time_s"].mean()), rtol=1e-9)


def test_l12_a_placement_is_asked_with_nothing_but_the_past():
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Spy:
        kind = "spy"

        def begin(self, setting):
            good = plugin("placement", "contiguous")().begin(setting)

            def plan(view: View):
                seen.append((view.step, view.loads.shape, view.placement))
                return good(view)

            return plan

    play(scenario(policy=Policy(placement=Spy())))
    assert seen[0] == (0, (0, 1, 4), None)


def test_a_gate_that_needs_scores_does_not_disturb_the_balanced_step():
    world = scenario(
        model=dataclasses.replace(MODEL, top_k=2),
        routing=plugin("source", "router")(scale=0.5, scores=True),
        policy=Policy(gate=plugin("gate", "topk")()),
        workload=Workload(phase="prefill", tokens_per_gpu=32),
    )
    assert play(world).metrics["step_time_if_balanced"].value > 0


# Warnings


def test_too_little_memory_is_said_with_both_numbers():
    small = dataclasses.replace(gpu_presets()["h100-sxm"], name="small-gpu", memory=1e6)
    world = scenario(cluster=OneSwitch(gpus=2, gpu=small), routing=Fixed((((0,) * 4000, (1,)),)))
    (sentence,) = [line for line in play(world).warnings if "would not fit" in line]
    assert "GPU 0 would need" in sentence
    assert "a small-gpu has 1 MB" in sentence
    assert "(1 of 2 GPUs are over)" in sentence


def test_oversubscription_without_effect_is_said():
    one_leaf = NvlinkNodes(nodes=2, gpus_per_node=1, nodes_per_leaf=2, oversubscription=8)
    assert any("oversubscription (8) changed nothing" in line for line in play(scenario(cluster=one_leaf)).warnings)
    two_leaves = NvlinkNodes(nodes=2, gpus_per_node=1, nodes_per_leaf=1, oversubscription=8)
    assert not any("oversubscription" in line for line in play(scenario(cluster=two_leaves)).warnings)


def test_the_balanced_step_carries_as_many_routes_as_were_kept():
    # 400 tokens of each GPU all want one expert; capacity 0.5 keeps 50 of each 400 (4 experts, top 1). A step with even loads would
    # keep all of them; compared is one that keeps 50 of each GPU, spread over all experts: it moves less and is faster.
    tight = Policy(capacity=plugin("capacity", "megatron")(factor=0.5))
    slow = OneSwitch(gpus=2, bandwidth=1e3, latency=0.0)
    result = play(scenario(cluster=slow, routing=Fixed((((2,) * 400, (0,) * 400),)), policy=tight))
    assert result.metrics["drop_rate"].value == 1 - 50 / 400
    # All 50 of each GPU cross to the other; of 48 (4 x 12.5, rounded) spread evenly, half do. One row takes 64 elements and a header.
    assert 0.4 < result.metrics["step_time_if_balanced"].value / result.metrics["step_time"].value < 0.6


def test_a_router_that_the_source_does_not_imitate_is_said():
    grouped = dataclasses.replace(MODEL, groups=4, top_groups=2, hash_layers=1, scoring="sigmoid")
    source = plugin("source", "router")(scale=0.5, scores=True)
    result = play(scenario(model=grouped, routing=source, policy=Policy(gate=plugin("gate", "topk")())))
    said = " | ".join(result.warnings)
    assert "lets a token choose from 2 of 4 groups" in said
    assert "the first 1 MoE layers of small route by token id" in said
    assert "policy.gate.scoring=sigmoid" in said


def test_variants_that_are_not_run_are_named():
    result = play(scenario(compare={"other": Policy(), "more": Policy()}))
    assert any("(other, more)" in line for line in result.warnings)
    assert not any("variants" in line for line in play(scenario()).warnings)
