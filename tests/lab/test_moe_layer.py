"""The layer that is measured is a Mixture-of-Experts layer: output, gradients and drops are those of one written route by route."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.facts.routing import LayerRouting
from moesim.models.capacity.megatron import Megatron

torch = pytest.importorskip("torch", reason="measuring needs PyTorch: pip install 'moesim[measure]'")

from lab_layers import reference  # noqa: E402

from moesim.base.streams import stream  # noqa: E402
from moesim.lab.compute import Pool, build, facts_of  # noqa: E402
from moesim.lab.device import Device, choose_kernel, kernels_of  # noqa: E402
from moesim.lab.experts import Weights, feed_forward, grouped_product, make_weights  # noqa: E402
from moesim.lab.job import ComputeCase  # noqa: E402
from moesim.lab.loads import choices, expert_loads, hottest_first  # noqa: E402
from moesim.lab.moe_layer import BACKWARD, FORWARD, Layer, Shape  # noqa: E402
from moesim.lab.routing import Gate, by_expert, capacity, choose, keep, make_gate  # noqa: E402

CPU = Device("cpu")


class Meeting:
    """An all-to-all and an all-gather between threads, in place of a network."""

    def __init__(self, ranks: int) -> None:
        self.barrier = threading.Barrier(ranks)
        self.left: list = [None] * ranks

    def exchange(self, rank):
        def move(source, target, sends, receives):
            self.left[rank] = source.detach().split(list(sends))
            self.barrier.wait(20)
            arrived = torch.cat([parts[rank] for parts in self.left])
            assert arrived.shape[0] == sum(receives)
            target.copy_(arrived)
            self.barrier.wait(20)

        return move

    def gather(self, rank):
        def collect(numbers):
            self.left[rank] = numbers
            self.barrier.wait(20)
            found = torch.stack(list(self.left))
            self.barrier.wait(20)
            return found

        return collect


def parallel(world, shape, gate, weights, inputs, gradients):
    """Run the layer on ``world`` threads; return output and gradients of each."""
    meeting, found = Meeting(world), [None] * world
    local = shape.experts // world

    def run(rank):
        mine = slice(rank * local, (rank + 1) * local)
        held = Weights(up=weights.up[mine].clone().requires_grad_(), down=weights.down[mine].clone().requires_grad_())
        own = Gate(weight=gate.weight.clone().requires_grad_(), popularity=gate.popularity)
        layer = Layer(shape, own, held, exchange=meeting.exchange(rank), gather=meeting.gather(rank), rank=rank, world=world, device=CPU)
        marks: list[int] = []
        done = layer.forward(inputs[rank].clone().requires_grad_(), lambda: marks.append(1))
        assert len(marks) == len(FORWARD)
        slopes = layer.backward(done, gradients[rank], lambda: marks.append(1))
        assert len(marks) == len(FORWARD) + len(BACKWARD)
        found[rank] = (done, slopes)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(item is not None for item in found)
    return found


@settings(max_examples=15, deadline=None)
@given(
    world=st.sampled_from([1, 2, 3]),
    per_rank=st.integers(1, 3),
    top_k=st.integers(1, 3),
    tokens=st.integers(1, 9),
    skew=st.sampled_from([0.0, 1.0, 3.0]),
    factor=st.sampled_from([None, 0.5, 1.0, 1.25]),
    drop=st.sampled_from(["probs", "position"]),
    kernel=st.sampled_from(["loop", "bmm"]),
    seed=st.integers(0, 5),
)
def test_output_and_gradients_are_those_of_a_layer_in_one_process(world, per_rank, top_k, tokens, skew, factor, drop, kernel, seed):
    experts = world * per_rank
    top_k = min(top_k, experts)
    draw = CPU.generator(seed)
    gate = make_gate(draw, experts, 6, skew, in_order=bool(seed % 2))
    gate = Gate(weight=gate.weight.double(), popularity=gate.popularity)
    weights = make_weights(seed, range(experts), 6, 5, "float32", CPU)
    weights = Weights(up=weights.up.double(), down=weights.down.double())
    inputs = [torch.randn(tokens, 6, generator=draw, dtype=torch.float64) for _ in range(world)]
    gradients = [torch.randn(tokens, 6, generator=draw, dtype=torch.float64) for _ in range(world)]
    shape = Shape(experts=experts, top_k=top_k, capacity_factor=factor, drop=drop, kernel=kernel)

    found = parallel(world, shape, gate, weights, inputs, gradients)
    outputs, (leaves, gate_weight, up, down), kept = reference(shape, gate, weights, inputs)
    wanted = torch.autograd.grad(outputs, (*leaves, gate_weight, up, down), gradients, allow_unused=True, materialize_grads=True)

    def near(one, other):
        # The gate works in float32, whose rounding is 6e-8.
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)

    for rank, (done, slopes) in enumerate(found):
        near(done.output.detach(), outputs[rank].detach())
        assert done.kept.tolist() == kept[rank]
        assert done.dropped == tokens * top_k - sum(kept[rank])
        near(slopes.x, wanted[rank])
    near(sum(slopes.gate for _, slopes in found), wanted[world])
    near(torch.cat([slopes.up for _, slopes in found]), wanted[world + 1])
    near(torch.cat([slopes.down for _, slopes in found]), wanted[world + 2])


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 40),
    experts=st.integers(1, 9),
    top_k=st.integers(1, 4),
    factor=st.sampled_from([0.1, 0.5, 1.0, 1.25, 2.0, 100.0]),
    drop=st.sampled_from(["probs", "position"]),
    ties=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_drops_are_those_of_the_simulated_rule_of_megatron(tokens, experts, top_k, factor, drop, ties, seed):
    top_k = min(top_k, experts)
    draw = CPU.generator(seed)
    scores = torch.rand(tokens, experts, generator=draw)
    if ties:
        scores = (scores * 3).round() / 3  # equal probabilities: the earlier token must survive in both
    probability, chosen = scores.topk(top_k)
    limit = capacity(tokens, top_k, experts, factor)
    mine = keep(chosen, probability, experts, limit, drop)
    routing = LayerRouting.of_tokens(chosen.numpy(), [0, tokens], experts, weights=probability.numpy())
    theirs = Megatron(factor=factor, drop=drop).apply(routing, top_k=top_k)
    assert theirs.capacity is not None
    assert limit == min(tokens, int(theirs.capacity[0]))
    assert sorted(mine.tolist()) == np.flatnonzero(theirs.routing.ids.reshape(-1) >= 0).tolist()
    assert tokens * top_k - len(mine) == int(theirs.dropped.sum())
    # Grouped by expert, and in token order within each: that is how rows travel.
    of = chosen.reshape(-1)[mine].tolist()
    assert list(zip(of, mine.tolist(), strict=True)) == sorted(zip(of, mine.tolist(), strict=True))


def test_without_a_capacity_nothing_is_dropped_and_skew_makes_the_first_expert_popular():
    draw = CPU.generator(3)
    gate = make_gate(draw, 8, 16, 2.0, in_order=True)
    probability, chosen = choose(torch.randn(400, 16, generator=draw), gate, 2)
    assert len(keep(chosen, probability, 8, capacity(400, 2, 8, None), "probs")) == 800
    loads = torch.bincount(chosen.reshape(-1), minlength=8)
    assert int(loads.argmax()) == 0
    assert int(loads[0]) > 3 * int(loads[7])
    assert bool((probability.sum(-1) < 1).all())  # of all experts, not renormalised over two


@pytest.mark.parametrize("counts", [[3, 0, 5], [0, 0, 0], [1, 1, 1], [0, 7, 0]])
@pytest.mark.parametrize("kernel", kernels_of(CPU, "float32"))
def test_every_kernel_computes_swiglu_experts(kernel, counts):
    weights = make_weights(1, range(3), 16, 8, "float32", CPU)
    rows = torch.randn(sum(counts), 16, generator=CPU.generator(2))
    made = feed_forward(rows, weights, grouped_product(kernel, counts, CPU))
    expected = []
    for part, up, down in zip(rows.split(counts), weights.up, weights.down, strict=True):
        inner = part @ up.T
        expected.append((torch.nn.functional.silu(inner[:, :8]) * inner[:, 8:]) @ down.T)
    torch.testing.assert_close(made, torch.cat(expected), rtol=1e-5, atol=1e-5)


def test_float8_experts_are_near_those_of_float32():
    if not kernels_of(CPU, "float8_e4m3fn"):
        pytest.skip("this PyTorch has no scaled product on a CPU")
    exact = make_weights(1, range(2), 32, 16, "float32", CPU)
    small = make_weights(1, range(2), 32, 16, "float8_e4m3fn", CPU)
    rows = torch.randn(20, 32, generator=CPU.generator(2))
    one = feed_forward(rows, exact, grouped_product("loop", [12, 8], CPU))
    other = feed_forward(rows.bfloat16(), small, grouped_product("scaled_mm_loop", [12, 8], CPU)).float()
    # Three bits of mantissa round to 1/16; over 32 terms of either sign that leaves a few per cent.
    assert float((one - other).norm() / one.norm()) < 0.08
    torch.testing.assert_close(small.up.float() * small.up_scale.unsqueeze(-1), exact.up, rtol=0.07, atol=0.01)


@pytest.mark.parametrize("ep", [1, 2])
def test_the_kernel_of_a_whole_layer_computes_the_rows_of_its_own_experts(ep):
    case = ComputeCase(
        name="a", operation="moe_ffn", tokens=9, hidden=16, expert_width=8, experts=4, top_k=2, ep=ep, distribution="power_law_1.2"
    )
    pool = Pool(4, CPU)
    call, kernel = build(case, 4, CPU, pool)
    made = call()
    assert kernel == "loop"
    facts = facts_of(case, 4)
    local = 4 // ep
    # The same, token by token: who chooses what is drawn as in the case, and the experts of other ranks add nothing.
    counts = hottest_first(expert_loads("power_law_1.2", 9, 2, 4, 4), ep)
    assert facts["rows_per_expert"] == counts[:local].tolist()
    chosen = choices(counts, 9, 2, 4)
    tokens, weights = pool.drawn(9, 16, torch.float32), pool.experts(case)
    permuted, order, token_of = build(dataclasses.replace(case, operation="permute"), 4, CPU, pool)[0]()
    assert sorted(token_of.tolist()) == sorted(token for token in range(9) for expert in chosen[token] if expert < local)
    torch.testing.assert_close(permuted, tokens[token_of])
    # Logits are drawn alike, with those chosen above all others: their softmax is what the rows are weighted with.
    logits = stream(4, "logits").random((9, 4)).astype(np.float32)
    np.put_along_axis(logits, chosen, np.take_along_axis(logits, chosen, 1) + 4.0, 1)
    of_row = torch.softmax(torch.from_numpy(logits), dim=-1).topk(2, dim=-1).values.reshape(-1)[order]
    expected = torch.zeros(9, 16)
    of_expert = [expert for expert in range(local) for _ in range(facts["rows_per_expert"][expert])]
    for row, (token, expert) in enumerate(zip(token_of.tolist(), of_expert, strict=True)):
        assert expert in chosen[token]
        inner = weights.up[expert] @ tokens[token]
        expected[token] += of_row[row] * (weights.down[expert] @ (torch.nn.functional.silu(inner[:8]) * inner[8:]))
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


def test_an_expert_has_the_same_weights_on_whatever_rank_it_lives():
    whole = make_weights(5, range(4), 8, 8, "float32", CPU)
    part = make_weights(5, range(2, 4), 8, 8, "float32", CPU)
    assert torch.equal(whole.up[2:], part.up)
    assert not torch.equal(whole.up[0], whole.up[1])


def test_received_rows_are_grouped_by_expert():
    # From rank 0: one row of local expert 0, two of expert 1; from rank 1: two of expert 0, none of expert 1.
    assert by_expert(torch.tensor([[1, 2], [2, 0]])).tolist() == [0, 3, 4, 1, 2]


def test_a_kernel_that_the_device_lacks_is_refused_by_name():
    from moesim.base.errors import UsageError

    with pytest.raises(UsageError, match="'scaled_grouped_mm' does not work with float8_e4m3fn on cpu here"):
        choose_kernel("scaled_grouped_mm", CPU, "float8_e4m3fn")
    assert choose_kernel("auto", CPU, "float32") == "loop"
