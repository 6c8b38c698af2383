"""GPUs that share experts: who is in which group, what travels, what is computed and held, and what is refused."""

import dataclasses
import itertools
from functools import cache

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from worlds import RELATIVE, no_trace, play, small_model

from moesim.base.errors import FieldError
from moesim.base.registry import plugin
from moesim.engine.check import check
from moesim.engine.rows import rows_of_steps
from moesim.engine.simulate import simulate
from moesim.facts.program import BACKWARD, EXPERT_TENSOR_CALLS, FORWARD
from moesim.facts.ranks import Ranks
from moesim.facts.routing import LayerRouting, Routing
from moesim.facts.scenario import Parallel, Policy, Rebalance, Scenario, Workload
from moesim.facts.training import Training
from moesim.measure.critical_path import critical_path
from moesim.models.collective.expert_tensor_calls import unequal_plan
from moesim.models.schedule.whole import step_program
from moesim.study.memory import memory_need
from moesim.study.plan_bounds import bounds_of
from moesim.study.why import explain

HIDDEN, WIDTH = 256, 128
ROW = HIDDEN * 2  # bytes in bf16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Told:
    """Every token's choices, written down: ids[gpu][token] = experts, with GPUs as the scenario counts them."""

    kind = "told"
    ids: tuple

    def begin(self, setting):
        ids = [self.ids[gpu] for gpu in setting.parallel.numbers(setting.gpus)]
        start = np.cumsum([0, *map(len, ids)])
        chosen = LayerRouting.of_tokens(np.array([token for gpu in ids for token in gpu]), start, setting.model.experts)
        return lambda step: Routing(layers=[chosen] * len(setting.model.moe_layers), basis="exact")


def scenario(schedule="sequential", *, source=None, gpus=8, layers=2, tokens=32, phase="training", training=None, **more):
    degrees = {name: more.pop(name) for name in ("pp", "tp", "tensor") if name in more}
    parallel = Parallel(ep=more.pop("ep", 2), etp=more.pop("etp", 2), **degrees)
    model = dataclasses.replace(
        small_model(8, 2),
        layers=layers,
        moe_layers=tuple(range(layers)),
        hidden=HIDDEN,
        dispatch_width=HIDDEN,
        expert_width=more.pop("width", WIDTH),
        dense_width=0,
        **more.pop("model", {}),
    )
    return Scenario(
        name="shared experts",
        seed=1,
        steps=more.pop("steps", 1),
        model=model,
        cluster=more.pop("cluster", None) or plugin("topology", "one_switch")(gpus=gpus),
        parallel=parallel,
        workload=Workload(tokens_per_gpu=tokens, phase=phase, ranks=more.pop("ranks", None)),
        routing=source or plugin("source", "power_law")(),
        exchange=plugin("exchange", "direct")(deduplicate=False),
        policy=more.pop("policy", Policy()),
        training=training,
        schedule=plugin("schedule", schedule)(**more),
    )


@cache
def ran(schedule="sequential", **keys):
    return play(scenario(schedule, **keys))


def spans_of(result, *phases):
    return result.tables["spans"].where(np.isin(result.tables["spans"]["phase"], phases))


def test_a_layer_worked_out_by_hand():
    # Megatron's order is etp inside ep: GPUs 0 and 1 share experts 0 to 3, GPUs 2 and 3 share 4 to 7. GPUs 0 and 2 exchange tokens, and
    # 1 and 3. A row has 512 B, on its way to another GPU 8 B more for its expert and weight. GPU 0 has two tokens, both for experts 0 and
    # 4: 2 rows stay, 2 go to GPU 2. GPU 1 has one token, for 5 and 6: 2 rows go to GPU 3. GPU 2 has none. GPU 3 has one, for 0 and 7: a row
    # goes to GPU 1.
    source = Told(ids=(((0, 4), (0, 4)), ((5, 6),), (), ((0, 7),)))
    result = play(scenario(source=source, gpus=4, layers=1, phase="prefill", tokens=1))
    moved = result.tables["traffic"]
    sent = dict(
        zip(zip(moved["source"].tolist(), moved["destination"].tolist(), strict=True), moved["dispatch_bytes"].tolist(), strict=True)
    )
    assert {pair: size for pair, size in sent.items() if size} == {(0, 2): 2 * (ROW + 8), (1, 3): 2 * (ROW + 8), (3, 1): ROW + 8}
    # So 2 rows come to GPU 0, 1 to GPU 1, 2 to GPU 2, 3 to GPU 3; each goes to the other of its pair, and a part of its result comes back.
    for phase, bytes_ in (("experts_gather", {0: 2, 1: 1, 2: 2, 3: 3}), ("experts_scatter", {0: 1, 1: 2, 2: 3, 3: 2})):
        spans = spans_of(result, phase)
        assert dict(zip(spans["gpu"].tolist(), (spans["bytes"] / ROW).tolist(), strict=True)) == bytes_
    # Both of a pair compute the rows of both.
    assert result.tables["ranks"]["gpu"].tolist() == [0, 1, 2, 3]
    assert result.tables["ranks"]["rows"].tolist() == [3, 3, 5, 5]
    assert result.metrics["rank_max_over_mean"].value == pytest.approx(5 / 4)


@examples(60)
@given(ep=st.integers(1, 5), etp=st.integers(1, 4), blocks=st.integers(1, 3))
def test_gpus_in_the_order_of_groups_and_back(ep, etp, blocks):
    parallel, gpus = Parallel(ep=ep, etp=etp), ep * etp * blocks
    numbers, places = parallel.numbers(gpus), parallel.places(gpus)
    assert numbers[places].tolist() == places[numbers].tolist() == list(range(gpus))
    for group in numbers.reshape(-1, ep):  # one GPU of each neighbourhood, all in the same place of theirs
        assert len(set(group // (ep * etp))) == 1 == len(set(group % etp))
        assert len(set(group // etp)) == ep
    if etp == 1 or ep == 1:
        assert numbers.tolist() == list(range(gpus))


@pytest.mark.parametrize("schedule", ["sequential", "two_batch", "one_f_one_b", "shared_expert", "overlapped_gradients"])
@pytest.mark.parametrize(("ep", "etp"), [(2, 2), (1, 4), (2, 4)])
def test_l2_bytes_rows_are_gathered_and_added_up_once_each_way(schedule, ep, etp):
    result = ran(schedule, ep=ep, etp=etp)
    # 8 GPUs of 32 tokens with 2 choices in 2 layers: each row goes to the others of its neighbourhood, and so does its result.
    for phase in EXPERT_TENSOR_CALLS:
        for way in (FORWARD, BACKWARD):
            spans = spans_of(result, phase).where(spans_of(result, phase)["direction"] == way)
            assert spans["bytes"].sum() == 2 * 8 * 32 * 2 * (etp - 1) * ROW
    # What is sent goes through a port out and a port in.
    everything = result.tables["spans"]["bytes"].sum()
    assert result.tables["links"]["bytes"].sum() == pytest.approx(2 * everything)
    rows = result.tables["ranks"]["rows"].reshape(2, -1, etp)
    assert (rows == rows[:, :, :1]).all()
    assert result.tables["ranks"]["rows"].sum() == 2 * 8 * 32 * 2 * etp
    assert result.metrics["step_time"].value >= result.metrics["step_time_if_no_communication"].value > 0


@st.composite
def cut_worlds(draw):
    """Any degrees, on one switch or on nodes that cut groups and neighbourhoods or do not."""
    ep, etp, blocks = draw(st.integers(1, 4)), draw(st.integers(2, 4)), draw(st.integers(1, 2))
    gpus, pp = ep * etp * blocks, draw(st.sampled_from([1, 2]))
    nodes = draw(st.sampled_from([count for count in range(1, gpus + 1) if gpus % count == 0]))
    tp = draw(st.sampled_from([size for size in (1, 2, 4) if gpus % size == 0]))
    schedule = "pipeline" if pp > 1 else draw(st.sampled_from(["sequential", "two_batch", "one_f_one_b", "overlapped_gradients"]))
    rules = [("dropless", {}), ("megatron", {"factor": 1.0}), ("megatron", {"factor": 1.2, "pad_to_capacity": True})]
    rule = draw(st.sampled_from(rules))
    return scenario(
        schedule,
        ep=ep,
        etp=etp,
        tp=tp,
        pp=pp,
        gpus=gpus * pp,
        width=48,
        tokens=draw(st.integers(8, 20)),
        source=plugin("source", draw(st.sampled_from(["uniform", "power_law", "balanced"])))(),
        cluster=plugin("topology", "nvlink_nodes")(nodes=nodes * pp, gpus_per_node=gpus // nodes),
        model={"experts": 12},
        policy=Policy(
            capacity=plugin("capacity", rule[0])(**rule[1]),
            placement=plugin("placement", draw(st.sampled_from(["contiguous", "round_robin"])))(),
        ),
    )


@examples(12)
@given(cut_worlds())
def test_l1_l2_l7_l14_any_degrees_play_keep_their_rows_and_replay(case):
    recorded = play(case, keep_routing=True)
    etp, spans = case.parallel.etp, recorded.tables["spans"]
    layers = recorded.tables["layers"]
    rows = (layers["kept"] + layers["padding"]).sum()
    assert recorded.tables["ranks"]["rows"].sum() == etp * rows
    for phase in EXPERT_TENSOR_CALLS:
        for way in (FORWARD, BACKWARD):
            mine = spans.where((spans["phase"] == phase) & (spans["direction"] == way))
            assert mine["bytes"].sum() == rows * (etp - 1) * ROW
    assert recorded.metrics["step_time"].value >= recorded.metrics["step_time_if_no_communication"].value * (1 - RELATIVE)
    crossing = recorded.tables["traffic"]
    block, place = case.parallel.block, case.parallel.etp
    assert (crossing["source"] // block == crossing["destination"] // block).all()
    assert (crossing["source"] % place == crossing["destination"] % place).all()
    replay = dataclasses.replace(case, routing=plugin("source", "recorded")(trace="own", deal="recorded"))
    again = simulate(replay, read_trace=lambda path: recorded.routing, keep_spans=True)
    for name in ("steps", "layers", "ranks", "links", "collectives", "spans"):
        for column, values in recorded.tables[name].columns.items():
            np.testing.assert_array_equal(values, again.tables[name][column], err_msg=f"{name}.{column}")


def test_narrow_experts_take_the_rows_of_all_who_share_them():
    # Two GPUs that share experts compute what one GPU would with both GPUs' tokens and experts of half the width.
    shared = ran(source=plugin("source", "balanced")(), phase="prefill")
    alone = ran(source=plugin("source", "balanced")(), phase="prefill", etp=1, width=WIDTH // 2, gpus=4, tokens=64)
    assert shared.metrics["expert_time"].value == pytest.approx(alone.metrics["expert_time"].value, rel=RELATIVE)


@pytest.mark.parametrize("phase", ["training", "decode"])
def test_weights_are_as_many_as_without_and_so_are_their_copies(phase):
    # ep 2 x etp 2 and ep 4 both cut the experts of a layer into four; what is not routed is whole.
    cut, spread = (play(scenario(ep=ep, etp=4 // ep, phase=phase, source=plugin("source", "balanced")())) for ep in (2, 4))
    assert cut.tables["gpus"]["weight_bytes"].tolist() == spread.tables["gpus"]["weight_bytes"].tolist()
    # Rows are a neighbourhood's, with the whole of their width coming in and going out: more memory, not less.
    assert cut.metrics["peak_memory"].value > spread.metrics["peak_memory"].value


def test_gradients_of_a_part_are_reduced_among_its_copies():
    keys = {"schedule": "overlapped_gradients", "tp": 2}
    cut, spread = (ran(ep=ep, etp=4 // ep, **keys) for ep in (2, 4))
    for phase in ("expert_gradients", "gradients", "attention_gather"):
        one, other = (spans_of(result, phase) for result in (cut, spread))
        assert one["bytes"].sum() == other["bytes"].sum() > 0, phase
        # Whoever waits or is waited for holds the same part: GPUs g and g + 4 of expert gradients, the neighbour of a tensor group.
        waited = one.where(one["waited_for"] >= 0)
        apart = {"expert_gradients": 4, "attention_gather": 1}.get(phase)
        assert apart is None or (np.abs(waited["waited_for"] - waited["gpu"]) == apart).all()


@pytest.mark.parametrize("keys", [{}, {"tp": 2}, {"schedule": "pipeline", "pp": 2, "layers": 4, "microbatches": 4, "ep": 2}])
def test_l8_memory_over_steps_agrees_with_the_run_and_the_run_with_itself(keys):
    case = scenario(**keys, training=Training(recompute="full"))
    one, other = play(case), play(case)
    for name, table in one.tables.items():
        for column in table.columns:
            np.testing.assert_array_equal(table[column], other.tables[name][column], err_msg=f"{name}.{column}")
    need = memory_need(case, rows_of_steps(case, read_trace=no_trace))
    assert [gpu.gpu for gpu in need.gpus] == one.tables["gpus"]["gpu"].tolist() == list(range(8))
    assert [gpu.total.max for gpu in need.gpus] == pytest.approx(one.tables["gpus"]["peak_memory_bytes"].tolist())


@pytest.mark.parametrize("keys", [{}, {"tp": 4, "ep": 2, "etp": 2}, {"phase": "prefill"}])
def test_the_critical_path_goes_through_those_who_meet(keys):
    case = scenario(**keys)
    result = play(case)
    degrees = {"ranks": case.parallel.ep, "sharing": case.parallel.etp, "tensor": case.parallel.tp}
    path = critical_path(result.tables["spans"], result.tables["collectives"], start=0.0, **degrees)
    assert sum(link.seconds for link in path) == pytest.approx(result.metrics["step_time"].value)
    assert not [link for link in path if link.kind == "idle"]
    for before, after in itertools.pairwise(path):
        if before.gpu == after.gpu or after.kind != "transfer":
            continue
        # The path went from who left a call to who came to it last: both are in one group of such calls.
        wide = {"experts_gather": 2, "experts_scatter": 2}.get(after.phase, case.parallel.tp)
        if after.phase in ("dispatch", "combine"):
            assert before.gpu // 4 == after.gpu // 4
            assert before.gpu % 2 == after.gpu % 2
        else:
            assert before.gpu // wide == after.gpu // wide


def test_questions_about_a_late_gpu_find_it():
    # Experts 4 to 7 get all rows: GPUs 2 and 3 are late, which are second and fourth in the order of groups.
    case = scenario(source=Told(ids=(((4, 5),) * 400,) * 4), gpus=4, layers=1, phase="prefill", tokens=400)
    found = {what.name: what for what in explain(case, read_trace=no_trace, each=2).what_ifs}
    assert {"GPU 2 not late", "GPU 3 not late"} <= set(found)


def test_unequal_ranks_are_those_of_the_scenario():
    # Tensor-parallel pairs with 60 and 4 tokens: GPUs 0 and 1 have 30 each, whichever order groups are played in.
    ranks = Ranks(tokens=(60, 4, 60, 4))
    result = play(scenario(ranks=ranks, tp=2, phase="decode", tokens=16))
    attention = spans_of(result, "attention")
    tokens = {gpu: set(attention["tokens"][attention["gpu"] == gpu].tolist()) for gpu in range(8)}
    assert tokens == {0: {30}, 1: {30}, 2: {2}, 3: {2}, 4: {30}, 5: {30}, 6: {2}, 7: {2}}
    seconds = result.tables["gpus"]["attention_s"]
    assert seconds[[0, 1, 4, 5]].min() > seconds[[2, 3, 6, 7]].max()


def test_parts_of_experts_move_to_where_the_same_part_goes():
    policy = Policy(placement=plugin("placement", "greedy")(window=1, interval=1, redundant=2), rebalance=Rebalance(mode="sync"))
    cut, whole = (play(scenario(policy=policy, steps=3, etp=etp, gpus=4 * etp)) for etp in (2, 1))
    assert cut.tables["rebalances"]["bytes"].sum() > 0
    # As many groups move parts of half the width: the same bytes a copy for each copy of twice as many half copies.
    per_copy = [one.tables["rebalances"]["bytes"].sum() / one.tables["rebalances"]["copies"].sum() for one in (cut, whole)]
    assert per_copy[0] == pytest.approx(per_copy[1] / 2)


def test_tensor_parallel_experts_without_expert_parallelism_gather_nothing():
    # vLLM without expert parallelism: all of a group have its tokens; results are added up and gathered again, together an all-reduce.
    laid = step_program(
        plugin("schedule", "sequential")(), small_model(8, 2, 2), Workload(tokens_per_gpu=4, phase="decode"),
        parallel=Parallel(ep=1, tp=2, etp=2, tensor="replicated"),
    )  # fmt: skip
    layer = [task.work.phase for task in laid.tasks if task.work.layer == 1]
    assert layer == [
        "attention", "attention_reduce", "gate", "shared", "dispatch", "experts", "experts_scatter", "combine", "tokens_gather",
    ]  # fmt: skip


def test_tensor_parallel_experts_of_vllm_play():
    case = scenario(ep=1, etp=4, tp=4, tensor="replicated", phase="decode", tokens=4)
    assert check(case, no_trace) == []
    result = play(case)
    # Every layer: 8 GPUs of 4 tokens with 2 choices; the parts of each row's result come from 3 others.
    assert spans_of(result, "experts_scatter")["bytes"].sum() == 2 * 8 * 4 * 2 * 3 * ROW
    assert not len(spans_of(result, "experts_gather", "dispatch", "combine")["gpu"])
    # All of a neighbourhood have its rows, and both neighbourhoods have as many tokens.
    assert result.metrics["rank_max_over_mean"].value == pytest.approx(1.0)


def test_recomputed_exchanges_gather_again():
    laid = step_program(
        plugin("schedule", "sequential")(), small_model(8, 2, 2), Workload(tokens_per_gpu=4), parallel=Parallel(ep=2, etp=2),
        training=Training(recompute="full", optimiser="none"),
    )  # fmt: skip
    order = [
        (task.work.phase, task.work.direction) for task in laid.tasks if task.work.phase not in ("attention", "dense", "gate", "shared")
    ]
    forward = ["dispatch", "experts_gather", "experts", "experts_scatter", "combine"]
    back = ["combine", "experts_gather", "experts", "experts_scatter", "dispatch"]
    assert order == [(p, "forward") for p in forward] + [(p, "recompute") for p in forward] + [(p, "backward") for p in back]


def test_pieces_without_bytes_do_not_move():
    ranks = np.array([4, 5, 7])
    plan = unequal_plan("all_gather", ranks, np.array([10.0, 0.0, 5.0]))
    assert plan.traffic(8)[4].tolist() == [0, 0, 0, 0, 0, 10, 0, 10]
    assert plan.traffic(8)[5].sum() == 0
    assert unequal_plan("reduce_scatter", ranks, np.array([10.0, 0.0, 5.0])).traffic(8).tolist() == plan.traffic(8).T.tolist()
    assert unequal_plan("all_gather", ranks, np.zeros(3)).stages == ()
    assert unequal_plan("all_gather", np.array([3]), np.array([8.0])).stages == ()


@pytest.mark.parametrize(
    ("keys", "path", "words"),
    [
        ({"etp": 3}, "parallel.etp", "ep * etp = 6 does not divide the cluster's 8 GPUs into equal groups"),
        ({"etp": 4, "ep": 4}, "parallel.etp", "ep * etp = 16 does not divide"),
        ({"etp": 4, "ep": 2, "width": 130}, "parallel.etp", "etp = 4 does not divide the model's expert_width = 130"),
        ({"policy": Policy(placement=plugin("placement", "llep")())}, "policy.placement", "write etp: 1"),
        (
            {"policy": Policy(dispatch=plugin("dispatch", "waterfill")()), "model": {"shared_width": WIDTH}, "phase": "decode"},
            "policy.dispatch",
            "expert",
        ),
    ],
)
def test_what_cannot_be_cut_is_refused_with_the_rule(keys, path, words):
    problems = check(scenario(**keys), no_trace)
    assert [problem.path for problem in problems] == [path], problems
    assert words in problems[0].message


@pytest.mark.parametrize("keys", [{"ep": 2, "tp": 2}, {"ep": 1, "tp": 3}])
def test_cut_experts_of_replicated_tokens_need_one_group(keys):
    with pytest.raises(FieldError, match="etp = 2 with tensor: replicated") as caught:
        Parallel(etp=2, tensor="replicated", **keys)
    assert caught.value.field == "etp"


@pytest.mark.parametrize("keys", [{}, {"tp": 2, "schedule": "two_batch"}, {"phase": "decode"}, {"ep": 1, "etp": 8, "phase": "prefill"}])
def test_bounds_of_a_plan_hold(keys):
    case = scenario(**keys, source=plugin("source", "balanced")())
    metrics = play(case).metrics
    for bound in bounds_of(case, no_trace):
        reached = metrics[bound.metric].value
        assert bound.value >= reached * (1 - RELATIVE) if bound.metric == "tokens_per_second" else bound.value <= reached * (1 + RELATIVE)
