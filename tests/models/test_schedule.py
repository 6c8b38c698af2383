"""The sequential program: what it holds, in which order."""

from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.registry import kinds
from moesim.facts.model import Attention, MoeModel
from moesim.facts.scenario import Workload
from moesim.models.schedule.sequential import Sequential


def model(layers, moe_layers, shared=0):
    return MoeModel(
        name="m",
        layers=layers,
        moe_layers=moe_layers,
        hidden=8,
        experts=4,
        top_k=2,
        expert_width=8,
        shared_width=shared,
        dense_width=16,
        dispatch_width=8,
        attention=Attention(heads=1, score_width=1.0, projection_parameters=1, cache_bytes_per_token=1),
    )


def said(program):
    return [f"{task.work.phase} {task.work.layer} {task.work.direction[0]}" for task in program.tasks]


def test_prefill_of_a_dense_and_a_moe_layer():
    program = Sequential().program(model(2, (1,), shared=8), Workload(phase="prefill", tokens_per_gpu=1))
    assert said(program) == [
        "attention 0 f", "dense 0 f", "attention 1 f", "gate 1 f", "shared 1 f", "dispatch 1 f", "experts 1 f", "combine 1 f",
    ]  # fmt: skip
    assert [task.lane for task in program.tasks[-3:]] == ["communication", "compute", "communication"]
    assert [task.work.moe_layer for task in program.tasks] == [-1, -1, 0, 0, 0, 0, 0, 0]


def test_training_goes_back_the_way_it_came():
    program = Sequential().program(model(2, (1,)), Workload(phase="training", tokens_per_gpu=1))
    forward, backward = said(program)[:7], said(program)[7:]
    assert backward == [name[:-1] + "b" for name in reversed(forward)]
    assert backward[:3] == ["combine 1 b", "experts 1 b", "dispatch 1 b"]


@settings(max_examples=50, deadline=None)
@given(layers=st.integers(1, 6), data=st.data(), shared=st.sampled_from([0, 8]), phase=st.sampled_from(["training", "prefill", "decode"]))
def test_every_moe_layer_exchanges_once_each_way_and_in_order(layers, data, shared, phase):
    moe = tuple(sorted(data.draw(st.sets(st.integers(0, layers - 1), min_size=1))))
    program = Sequential().program(model(layers, moe, shared), Workload(phase=phase, tokens_per_gpu=1))
    directions = ["forward", "backward"] if phase == "training" else ["forward"]
    assert {task.work.direction for task in program.tasks} == set(directions)
    assert len({task.work for task in program.tasks}) == len(program.tasks)
    for direction in directions:
        for number, layer in enumerate(moe):
            mine = [task.work for task in program.tasks if task.work.moe_layer == number and task.work.direction == direction]
            assert {work.layer for work in mine} == {layer}
            order = [work.phase for work in mine if work.phase in ("dispatch", "experts", "combine")]
            assert order == (["dispatch", "experts", "combine"] if direction == "forward" else ["combine", "experts", "dispatch"])
    # Every task comes after what it waits for, and all of them form one chain.
    assert [task.after for task in program.tasks] == [()] + [(number,) for number in range(len(program.tasks) - 1)]


def test_it_is_registered():
    assert kinds("schedule")["sequential"] is Sequential
