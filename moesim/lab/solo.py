"""What a rank of the testbed does, done alone: seconds of each local operation on one core, and the rows that each case will keep.

``python -m moesim.lab.solo REQUEST.json ANSWER.json`` in a process of its own, with one thread on one core. Times are those of the thread
on its processor, so that other programs that take the core away now and then do not count. Caches are emptied before every call: in a step,
the weights of all other experts, and the rows of an all-to-all, have gone through them since an operation last saw its data. With warm
caches experts looked a third faster than they are in steps, and small operations several times faster. Nothing here knows of the network
or of steps: that is what makes the answer a calibration and not a fit.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from moesim.lab.device import Device
from moesim.lab.experts import Weights, feed_forward, grouped_product, make_weights
from moesim.lab.routing import by_expert, capacity, choose, keep, make_gate, weighted_sum

ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
QUICK_ROWS = (1, 8, 16, 32, 64, 128, 256, 512)
SEED = 11
SOURCES, LOCAL = 4, 4
"""Ranks from which rows come, and experts they are for, where received rows are grouped: their number matters little."""


class Cold:
    """Times calls whose data is in no cache.

    Parameters
    ----------
    repeats : int
        Of each call.
    """

    def __init__(self, repeats: int) -> None:
        self.repeats = repeats
        self._device = Device("cpu")
        self._scratch = torch.zeros(self._device.cache_bytes() // 4)

    def timed(self, call: Callable[[], Any]) -> float:
        """Return the median over repeats of the processor time of a call, in s."""
        call()
        samples = []
        for _ in range(self.repeats):
            self._device.flush(self._scratch)
            begun = time.thread_time()
            call()
            samples.append(time.thread_time() - begun)
        return statistics.median(samples)


def rows_kept(job_seed: int, ranks: int, case: Mapping[str, Any]) -> list[list[int]]:
    """Return int[ranks, experts]: the rows that each rank keeps for each expert in a case, as the layer will route them.

    Parameters
    ----------
    job_seed : int
        Of the job that will be measured.
    ranks : int
        How many there are.
    case : mapping
        Of a :class:`moesim.lab.job.LayerCase`.
    """
    device = Device("cpu")
    gate = make_gate(
        device.generator(job_seed * 31 + 7), case["experts"], case["hidden"], case["skew"], in_order=case["popularity"] == "in_order"
    )
    limit = capacity(case["tokens"], case["top_k"], case["experts"], case["capacity_factor"])
    found = []
    for rank in range(ranks):
        tokens = torch.randn(case["tokens"], case["hidden"], generator=device.generator(job_seed * 1_000_003 + 500_009 + rank))
        probability, experts_of = choose(tokens, gate, case["top_k"])
        routes = keep(experts_of, probability, case["experts"], limit, case["drop"])
        found.append(torch.bincount(experts_of.reshape(-1)[routes], minlength=case["experts"]).tolist())
    return found


Points = dict[str, dict[str, float]]


def calibrate(shapes: Sequence[Sequence[int]], *, stacks: Sequence[Sequence[int]] = (), repeats: int, grid: Sequence[int]) -> Points:
    """Measure every local operation of a layer.

    Parameters
    ----------
    shapes : sequence of (hidden, width, experts, top_k, tokens)
        Layers whose operations are needed.
    stacks : sequence of (hidden, width, local experts)
        Ranks whose backward pass is needed as well.
    repeats : int
        Of each time.
    grid : sequence of int
        Rows of an expert.

    Returns
    -------
    dict
        ``{operation: {"SHAPE,ROWS": seconds}}``: router (hidden,experts,TOKENS), permute (hidden,COPIES), ffn (hiddenxwidth,ROWS), group
        (hidden,ROWS: grouping received rows and back), sum (hidden,ROWS), and b_sum, ffn_bwd (hiddenxwidth/LOCAL,ROWS), b_router.
    """
    names = ("router", "permute", "ffn", "group", "sum", *(("b_sum", "ffn_bwd", "b_router") if stacks else ()))
    found: Points = {name: {} for name in names}
    cold = Cold(repeats)
    for hidden, width in sorted({(shape[0], shape[1]) for shape in shapes}):
        _experts(found, hidden, width, cold, grid)
    for hidden, width, local in sorted({(stack[0], stack[1], stack[2]) for stack in stacks}):
        for rows in grid:
            found["ffn_bwd"][f"{hidden}x{width}/{local},{rows}"] = _backward_of_experts(hidden, width, local, rows, cold)
    for hidden, experts, top_k, tokens in sorted({(shape[0], *shape[2:]) for shape in shapes}):
        for count in sorted({max(tokens // 16, top_k), tokens // 4, tokens, 2 * tokens}):
            if count:
                _tokens(found, hidden, experts, top_k, count, cold)
    return found


def _experts(found: Points, hidden: int, width: int, cold: Cold, grid: Sequence[int]) -> None:
    weights = make_weights(SEED, range(1), hidden, width, "float32", Device("cpu"))
    for rows in grid:
        x = torch.randn(rows, hidden)
        product = grouped_product("loop", [rows], Device("cpu"))
        with torch.no_grad():
            found["ffn"][f"{hidden}x{width},{rows}"] = cold.timed(lambda: feed_forward(x, weights, product))  # noqa: B023 - called at once


def _backward_of_experts(hidden: int, width: int, local: int, rows: int, cold: Cold) -> float:
    """Return the seconds of one of several experts of a rank: PyTorch makes one gradient of the weights of all."""
    weights = make_weights(SEED, range(local), hidden, width, "float32", Device("cpu"))
    parameters = [torch.randn(rows * local, hidden).requires_grad_(), weights.up.requires_grad_(), weights.down.requires_grad_()]
    own = Weights(up=parameters[1], down=parameters[2])
    result = feed_forward(parameters[0], own, grouped_product("loop", [rows] * local, Device("cpu")))
    gradient = torch.randn_like(result)
    return cold.timed(lambda: torch.autograd.grad(result, parameters, gradient, retain_graph=True)) / local


def _tokens(found: Points, hidden: int, experts: int, top_k: int, tokens: int, cold: Cold) -> None:
    device = Device("cpu")
    gate = make_gate(device.generator(SEED), experts, hidden, 0.0, in_order=True)
    x = torch.randn(tokens, hidden)
    probability, experts_of = choose(x, gate, top_k)
    copies = tokens * top_k

    def permute() -> Any:
        routes = keep(experts_of, probability, experts, tokens, "probs")
        torch.bincount(experts_of.reshape(-1)[routes], minlength=experts)
        return x.index_select(0, routes // top_k)

    rows = torch.randn(copies, hidden)
    mine = torch.full((SOURCES, LOCAL), copies // (SOURCES * LOCAL))
    mine[0, 0] += copies - int(mine.sum())
    token_of = torch.randint(0, tokens, (copies,))
    weight = torch.rand(copies)

    def group() -> Any:
        order = by_expert(mine)
        return torch.empty_like(rows).index_copy_(0, order, rows.index_select(0, order))

    with torch.no_grad():
        found["router"][f"{hidden},{experts},{tokens}"] = cold.timed(lambda: choose(x, gate, top_k))
        found["permute"][f"{hidden},{copies}"] = cold.timed(permute)
        found["group"][f"{hidden},{copies}"] = cold.timed(group)
        found["sum"][f"{hidden},{copies}"] = cold.timed(lambda: weighted_sum(rows, weight, token_of, tokens))
    if "b_sum" in found:
        _backward_of_tokens(found, x, gate, top_k, rows, token_of, cold)


def _backward_of_tokens(found: Points, x: Any, gate: Any, top_k: int, rows: Any, token_of: Any, cold: Cold) -> None:
    hidden, experts, tokens = x.shape[1], gate.weight.shape[0], x.shape[0]
    returned, source = rows.clone().requires_grad_(), x.clone().requires_grad_()
    own = type(gate)(weight=gate.weight.clone().requires_grad_(), popularity=gate.popularity)
    probability, _ = choose(source, own, top_k)
    chosen = probability.reshape(-1)
    output = weighted_sum(returned, chosen, token_of, tokens)
    gradient = torch.ones_like(output)

    def of_sum() -> Any:
        return torch.autograd.grad(output, (returned, chosen), gradient, retain_graph=True)

    of_chosen = of_sum()[1]

    def of_gate() -> Any:
        of_x, _ = torch.autograd.grad(chosen, (source, own.weight), of_chosen, retain_graph=True)
        return of_x.index_add(0, token_of, rows)

    found["b_sum"][f"{hidden},{len(rows)}"] = cold.timed(of_sum)
    found["b_router"][f"{hidden},{experts},{tokens}"] = cold.timed(of_gate)


def main(arguments: list[str]) -> int:
    """Answer a request; return the exit code."""
    from moesim.lab.rank import end_with_parent

    end_with_parent()
    if len(arguments) != 2:
        sys.stderr.write("usage: python -m moesim.lab.solo REQUEST.json ANSWER.json\n")
        return 2
    from moesim.lab.environment import describe
    from moesim.lab.inside import keep_memory, take_precedence

    request = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    granted = take_precedence("first")
    keep_memory()
    kept = {case["name"]: rows_kept(request["seed"], case["ranks"], case) for case in request["cases"]}
    points = (
        calibrate(request["shapes"], stacks=request["stacks"], repeats=request["repeats"], grid=QUICK_ROWS if request["quick"] else ROWS)
        if request["shapes"]
        else {}
    )
    answer = {"kept": kept, "calibration": points, "scheduling": granted, "environment": describe(Device("cpu"))}
    Path(arguments[1]).write_text(json.dumps(answer, allow_nan=False), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
