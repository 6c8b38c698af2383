"""Measure the kernels of an MoE layer on one device: experts, grouped products, gate, permute and unpermute."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from moesim.base.errors import MoesimError
from moesim.base.streams import stream
from moesim.lab.device import DTYPES, Device, as_graph, choose_kernel, per_call
from moesim.lab.experts import Weights, feed_forward, grouped_product, make_weights, swiglu
from moesim.lab.job import ComputeCase, Job, visits
from moesim.lab.loads import choices, expert_loads, hottest_first
from moesim.lab.rank import Journal
from moesim.lab.routing import choose, make_gate, weighted_sum
from moesim.lab.session import Session

LEAST = 1e-3
"""A sample repeats a short call until it lasts about so long, in s: the clock's own cost is then below a thousandth."""

MOST_ITERATIONS = 200


def facts_of(case: ComputeCase, seed: int) -> dict[str, Any]:
    """Return what a case asks of the device: rows of each local expert, and what the table says about them."""
    counts = hottest_first(expert_loads(case.distribution, case.tokens, case.top_k, case.experts, seed), case.ep)
    local = counts[: case.experts // case.ep]
    ranks = counts.reshape(case.ep, -1).sum(axis=1)
    return {
        "rows": int(local.sum()),
        "rows_per_expert": local.tolist(),
        "active_experts": int((local > 0).sum()),
        "max_expert_rows": int(local.max()),
        "mean_rank_rows": float(ranks.mean()),
    }


class Pool:
    """Rows and weights that cases of one shape share, so that a device holds them once."""

    def __init__(self, seed: int, device: Device) -> None:
        self.seed, self.device = seed, device
        self.rows: dict[Any, Any] = {}
        self.weights: dict[Any, Weights] = {}

    def drawn(self, rows: int, width: int, dtype: Any) -> Any:
        """Return [rows, width] numbers of mean 0 and variance 1."""
        known = self.rows.get((width, dtype))
        if known is None or known.shape[0] < rows:
            draw = self.device.local_generator(self.seed * 7919 + 11)
            uniform = torch.rand(rows, width, generator=draw, device=self.device.place)
            known = self.rows[width, dtype] = ((uniform - 0.5) * math.sqrt(12.0)).to(dtype)
        return known[:rows]

    def experts(self, case: ComputeCase) -> Weights:
        """Return the weights of this device's experts."""
        key = (case.experts // case.ep, case.hidden, case.expert_width, case.dtype)
        if key not in self.weights:
            self.weights[key] = make_weights(self.seed, range(key[0]), case.hidden, case.expert_width, case.dtype, self.device)
        return self.weights[key]


def build(case: ComputeCase, seed: int, device: Device, pool: Pool) -> tuple[Callable[[], Any], str]:
    """Return the call to be timed, and the name of its kernel.

    Parameters
    ----------
    case : ComputeCase
        What to do.
    seed : int
        Of loads, rows and weights.
    device : Device
        Where.
    pool : Pool
        What other cases have already drawn.
    """
    place = device.place
    dtype = torch.bfloat16 if case.dtype == "float8_e4m3fn" else DTYPES[case.dtype]

    def drawn(rows: int, width: int) -> Any:
        return pool.drawn(rows, width, dtype)

    if case.operation == "gate":
        gate = make_gate(device.generator(seed * 7919 + 5), case.experts, case.hidden, 0.0, in_order=True)
        here = type(gate)(weight=gate.weight.to(place, dtype), popularity=gate.popularity.to(place))
        tokens = drawn(case.tokens, case.hidden)
        return lambda: choose(tokens, here, case.top_k), "linear + softmax + topk"

    table = hottest_first(expert_loads(case.distribution, case.tokens, case.top_k, case.experts, seed), case.ep)
    local = case.experts // case.ep
    counts = table[:local].tolist()
    rows = sum(counts)
    if case.operation in {"permute", "unpermute", "moe_ffn"}:
        return _moving(case, seed, device, pool, table, drawn)
    weights = pool.experts(case)
    kernel = choose_kernel(case.kernel, device, case.dtype)
    product = grouped_product(kernel, counts, device)
    if case.operation == "ffn":
        inputs = drawn(rows, case.hidden)
        return lambda: feed_forward(inputs, weights, product), kernel
    if case.operation == "up_proj":
        inputs = drawn(rows, case.hidden)
        return lambda: product(inputs, weights.up, weights.up_scale), kernel
    inner = swiglu(drawn(rows, 2 * case.expert_width))
    return lambda: product(inner, weights.down, weights.down_scale), kernel


def _moving(
    case: ComputeCase, seed: int, device: Device, pool: Pool, table: Any, drawn: Callable[..., Any]
) -> tuple[Callable[[], Any], str]:
    """Return calls that move rows: they start from logits that make each token choose the experts of the table."""
    local = case.experts // case.ep
    chosen = choices(table, case.tokens, case.top_k, seed)
    logits = stream(seed, "logits").random((case.tokens, case.experts)).astype(np.float32)
    np.put_along_axis(logits, chosen, np.take_along_axis(logits, chosen, 1) + 4.0, 1)
    given = torch.from_numpy(logits).to(device.place)
    tokens = drawn(case.tokens, case.hidden)
    counts = table[:local].tolist()

    def pick() -> tuple[Any, Any]:
        best = torch.softmax(given, dim=-1).topk(case.top_k, dim=-1)
        return best.indices.reshape(-1), best.values.reshape(-1)

    def sort(flat: Any) -> tuple[Any, Any, Any]:
        order = torch.argsort(flat, stable=True)[: sum(counts)]  # experts of this device have the lowest numbers
        token_of = order // case.top_k
        return tokens.index_select(0, token_of), order, token_of

    def select() -> tuple[Any, Any, Any]:
        flat, weight = pick()
        rows, order, token_of = sort(flat)
        return rows, weight[order], token_of

    if case.operation == "permute":  # choosing belongs to the gate, which has an operation of its own
        picked, _ = pick()
        return lambda: sort(picked), "argsort + index_select"
    if case.operation == "unpermute":
        rows, weight, token_of = select()
        return lambda: weighted_sum(rows, weight, token_of, case.tokens), "index_add"
    weights = pool.experts(case)
    kernel = choose_kernel(case.kernel, device, case.dtype)
    product = grouped_product(kernel, counts, device)

    def layer() -> Any:
        rows, weight, token_of = select()
        return weighted_sum(feed_forward(rows, weights, product), weight, token_of, case.tokens)

    return layer, kernel


def measure_compute(job: Job, session: Session, journal: Journal) -> None:
    """Measure every case of a job and write one line per repeat.

    Cases that share weights are measured together, in random order within; so the weights of one shape are in memory at a time.

    Parameters
    ----------
    job : Job
        Of kind ``compute``.
    session : Session
        One rank.
    journal : Journal
        Where lines go; :mod:`moesim.lab.rank` says what is in them.
    """
    cases = [case for case in job.cases if isinstance(case, ComputeCase)]
    shapes = list(dict.fromkeys(_shape(case) for case in cases))
    for shape in shapes:
        _measure_shape(job, [case for case in cases if _shape(case) == shape], session.device, journal)
        journal.publish()


def _shape(case: ComputeCase) -> tuple[int, int, int, str]:
    return case.experts // case.ep, case.hidden, case.expert_width, case.dtype


def _measure_shape(job: Job, cases: Sequence[ComputeCase], device: Device, journal: Journal) -> None:
    scratch = torch.zeros(device.cache_bytes() // 4, device=device.place) if job.cold else None
    calls: dict[int, tuple[Callable[[], Any], int]] = {}
    pool = Pool(job.seed, device)
    with torch.inference_mode():
        # The largest first: smaller ones take a part of its rows.
        for number, case in sorted(enumerate(cases), key=lambda item: -item[1].tokens):
            try:
                call, kernel = build(case, job.seed, device, pool)
                for _ in range(max(job.warmup, 1)):
                    call()
                graph, call = as_graph(call, device) if job.graph else (False, call)
                once = per_call(call, device, 1)
            except (MoesimError, RuntimeError, NotImplementedError) as error:
                # A kernel that refuses a shape or a number format, or memory that is too small, ends this case alone.
                journal.write({"case": case.name, "error": str(error).split("\n", maxsplit=1)[0]})
                continue
            iterations = 1 if job.cold else min(max(1, round(LEAST / max(once, 1e-9))), MOST_ITERATIONS)
            calls[number] = (call, iterations)
            journal.write({"case": case.name, "facts": {"kernel": kernel, "graph": graph, **facts_of(case, job.seed)}})
        of_these = Job(kind="compute", cases=tuple(cases), repeats=job.repeats, warmup=0, seed=job.seed)
        for repeat, number in visits(of_these):
            if number not in calls:
                continue
            call, iterations = calls[number]
            if scratch is not None:
                device.flush(scratch)
            else:
                call()  # caches as in a steady stream of such calls
            seconds = per_call(call, device, iterations)
            journal.write({"case": cases[number].name, "repeat": repeat, "time_s": seconds, "iterations": iterations})
