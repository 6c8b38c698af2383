"""What a candidate can do at best, known before it is simulated: bounds that no run of it can beat.

Each bound holds for every routing that the scenario can draw. Where a plug-in does something that no closed form here knows, its part
counts nothing, and the bound is weaker but still one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.base.errors import MoesimError
from moesim.facts.arrays import Floats
from moesim.facts.cluster import Cluster
from moesim.facts.contracts import Kernels
from moesim.facts.program import BACKWARD, COLLECTIVES, COMMUNICATES, FORWARD, OPTIMISER, RECOMPUTE, Program, Work, may_overlap
from moesim.facts.scenario import Scenario, Setting
from moesim.facts.trace import Trace
from moesim.models.bounds import no_communication
from moesim.models.compute.grouped_gemm import GroupedGemmKernels
from moesim.models.compute.peaks import peak
from moesim.models.compute.roofline import RooflineKernels
from moesim.models.exchange.transport import Carrier
from moesim.models.parallel_memory import spread_or_recomputed
from moesim.models.schedule.tensor import cut_model, is_cut
from moesim.models.schedule.whole import step_program
from moesim.models.stages import setting_of, stage_setting
from moesim.models.work import dense_work
from moesim.study.plan_memory import memory_floor

MEMORY, COMPUTE, PORTS = "memory floor", "no-communication bound", "port bound"

EVEN_SOURCES = frozenset({"balanced", "lognormal", "power_law", "router", "uniform"})
"""Sources that give every GPU ``tokens_per_gpu`` tokens with k choices each, whatever else they draw."""

PLAIN_GATES = frozenset({"as_given", "topk"})
"""Gates that leave every token k choices."""

NO_DROPS = frozenset({"dropless", "dmoe"})
COPYING = frozenset({"direct", "hierarchical", "low_latency", "padded", "two_dimensional"})
"""Exchanges in which every rank that holds a chosen expert of a token, other than the token's own, gets at least one row of it."""

FIXED_PLACEMENTS = frozenset({"contiguous", "round_robin"})
"""Placements that never hold more than ceil(E / ranks) experts on a rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """The best that a candidate can reach in one metric: no mean over its steps is better.

    Parameters
    ----------
    name : str
        Of the bound: ``memory floor``, ``no-communication bound`` or ``port bound``.
    metric : str
        What it bounds.
    value : float
        In SI units; a least value, or for ``tokens_per_second`` a largest one.
    drop_rate : float or None
        If it holds only for candidates that drop at most this share; one that drops more misses the target of the drop rate.
    """

    name: str
    metric: str
    value: float
    drop_rate: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What is certain about a scenario: its tokens and routes on an average GPU; 0 where nothing is."""

    tokens: int
    routes: float
    drops: bool


def bounds_of(scenario: Scenario, read_trace: Callable[..., Trace], *, drop_rate: float | None = None) -> tuple[Bound, ...]:
    """Return bounds of ``peak_memory``, ``step_time`` and ``tokens_per_second`` for one scenario, the simplest first.

    Parameters
    ----------
    scenario : Scenario
        Checked.
    read_trace : callable
        Turns a path into a recording.
    drop_rate : float, optional
        The most that a plan may drop on average. Candidates that drop more are no plans, so the bounds need not hold for them. Without it
        a capacity rule may drop everything.

    Returns
    -------
    tuple of Bound

    Notes
    -----
    *Memory floor*: :func:`moesim.study.plan_memory.memory_floor`, of the mean rows.

    *No-communication bound*: :func:`moesim.models.bounds.no_communication` of an average GPU. In every task the mean over GPUs of its time
    is at least what is said here, the times along a path add up, and the slowest GPU is no faster than the average one. Dense phases count
    as their kernels take; experts as their floating-point operations at the achieved rate.

    *Port bound*: the same with exchanges that last as long as the mean GPU's rows take over all first (or last) links of a GPU together. A
    token whose k experts are on ranks of at most s experts leaves for at least k / s - 1 ranks. A step in micro-batches, in stages, with
    tensor parallelism or with a section ``training`` has no port bound, and what its GPUs send to each other counts nothing.
    """
    whole = setting_of(scenario, read_trace)
    setting = stage_setting(whole)
    program = step_program(scenario.schedule, scenario.model, scenario.workload, parallel=scenario.parallel, training=scenario.training)
    known = _known(scenario, setting)
    kept = 1.0 if not known.drops else 0.0 if drop_rate is None else max(0.0, 1.0 - drop_rate)
    in_parts = program.microbatches > 1 or spread_or_recomputed(whole)
    if in_parts and known.drops:
        kept = 0.0  # how drops are shared out over stages and parts is not certain
    given = drop_rate if 0.0 < kept < 1.0 else None
    memory = memory_floor(whole, program, known.tokens, float(np.floor(kept * known.routes)))
    found = [Bound(name=MEMORY, metric="peak_memory", value=memory, drop_rate=given)]
    if not known.tokens or any(before >= index for index, task in enumerate(program.tasks) for before in task.after):
        return tuple(found)
    kernels = scenario.compute.begin(setting)
    tokens = setting.gpus * known.tokens
    if in_parts:
        least = _least_in_parts(program, whole, setting, known, kernels)
        found.append(Bound(name=COMPUTE, metric="step_time", value=least))
        if least:
            found.append(Bound(name=COMPUTE, metric="tokens_per_second", value=tokens / least))
        return tuple(found)
    for name, network in ((COMPUTE, False), (PORTS, True)):
        seconds = _seconds(program, setting, known, kernels, kept)
        moving = _moving(scenario, setting, known, kept) if network else {}
        least = _longest(program, seconds, moving)
        found.append(Bound(name=name, metric="step_time", value=least, drop_rate=given))
        if kept == 1.0:
            best = tokens / least if least else np.inf
        else:
            # Steps may drop unequally, and the mean of tokens over time is not tokens over the mean time. Where tasks form a chain, time
            # is linear in what is kept, so its reciprocal is convex, and largest when some steps keep everything and others nothing.
            still = _moving(scenario, setting, known, 0.0) if network else {}
            none = _longest(program, _seconds(program, setting, known, kernels, 0.0), still)
            every = _longest(program, _seconds(program, setting, known, kernels, 1.0), {})
            chain = not may_overlap(program) and drop_rate is not None
            best = (tokens * (kept / every + (1 - kept) / none) if chain else tokens / none) if none else np.inf
        if np.isfinite(best):
            found.append(Bound(name=name, metric="tokens_per_second", value=float(best), drop_rate=given))
    return tuple(found)


def _known(scenario: Scenario, setting: Setting) -> _Known:
    """Return the tokens and routes of an average GPU where they follow from the scenario alone."""
    policy = scenario.policy
    drops = policy.capacity.kind not in NO_DROPS
    kind = scenario.routing.kind
    tokens = scenario.workload.tokens_per_gpu
    if scenario.workload.ranks is not None:
        return _Known(tokens=0, routes=0.0, drops=drops)  # no rank is the average one
    full = kind in EVEN_SOURCES
    if kind == "recorded" and scenario.routing.deal != "recorded":
        task = getattr(scenario.routing, "task", None)
        trace = setting.read_trace(scenario.routing.trace, **({} if task is None else {"task": task}))
        if trace.ids is None:
            return _Known(tokens=0, routes=0.0, drops=drops)
        full = bool(trace.top_k == scenario.model.top_k and (np.asarray(trace.ids) >= 0).all())
    elif not full:
        return _Known(tokens=0, routes=0.0, drops=drops)
    routes = float(tokens * scenario.model.top_k) if full and policy.gate.kind in PLAIN_GATES else 0.0
    return _Known(tokens=tokens, routes=routes, drops=drops)


def _seconds(program: Program, setting: Setting, known: _Known, kernels: Kernels, kept: float) -> dict[Work, Floats]:
    """Return float[1] for every task that computes: what an average GPU needs at least."""
    found: dict[Work, Floats] = {}
    for task in program.tasks:
        work = task.work
        if work.phase in COMMUNICATES or work in found:
            continue
        if work.phase == "experts":
            found[work] = np.array([_expert_seconds(kernels, setting, kept * known.routes, work.direction)])
            continue
        cost = dense_work(
            work.phase, setting.model, np.array([known.tokens]), setting.workload.context, work.direction,
            workload_phase=setting.workload.phase,
        )  # fmt: skip
        found[work] = np.asarray(kernels.dense(cost.flops, cost.moved, dtype=cost.dtype))
    return found


def _least_in_parts(program: Program, whole: Setting, setting: Setting, known: _Known, kernels: Kernels) -> float:
    """Return the least seconds of a step whose tokens are cut into parts or whose model is cut over GPUs, if bytes took no time.

    A part has one token more or fewer than another; the quicker of both counts. What is dropped may be dropped from any part, so a rule
    that drops leaves the experts no certain work; the optimiser has none either. Paths through the GPUs with one number in every stage
    make a step, and their mean is a path of means.
    """
    parts, tensor = program.microbatches, whole.parallel.tp
    few, many = known.tokens // parts, -(-known.tokens // parts)
    rows = 0.0 if known.drops else few * known.routes / known.tokens
    seconds: dict[Work, Floats] = {}
    for task in program.tasks:
        work = task.work
        if work.phase in COMMUNICATES or work in seconds:
            continue
        direction = FORWARD if work.direction == RECOMPUTE else work.direction
        if work.phase == OPTIMISER:
            least = 0.0
        elif work.phase == "experts":
            least = _expert_seconds(kernels, setting, rows, direction)
        else:
            cut = is_cut(work, whole.parallel)
            tokens = np.array([few, many]) * (tensor if cut else 1)
            cost = dense_work(
                work.phase, cut_model(setting.model, tensor) if cut else setting.model, tokens, setting.workload.context, direction,
                workload_phase=setting.workload.phase,
            )  # fmt: skip
            least = float(np.min(kernels.dense(cost.flops, cost.moved, dtype=cost.dtype)))
        seconds[work] = np.full(program.stages, least)
    return no_communication(program, seconds, program.stages)


def _expert_seconds(kernels: Any, setting: Setting, rows: float, direction: str) -> float:
    """Return the least seconds of ``rows`` rows, however they lie: linear in them, so that means over GPUs and steps go through."""
    if type(kernels) is GroupedGemmKernels:
        rate, between = kernels.rate, float(kernels.between(np.array([rows]))[0])
    elif type(kernels) is RooflineKernels:
        rate, between = peak(kernels.gpu, setting.model.expert_dtype) * kernels.compute_efficiency, 0.0
    else:
        return 0.0
    products = rows * setting.model.routed_flops / rate
    return products + between if direction == FORWARD else 2.0 * (products + between)


def _moving(scenario: Scenario, setting: Setting, known: _Known, kept: float) -> dict[tuple[str, str], float]:
    """Return the least seconds of a dispatch and of a combine on an average GPU, by phase and direction."""
    ranks, kind = scenario.parallel.ep, scenario.exchange.kind
    carry = scenario.exchange.begin(setting)
    if not isinstance(carry, Carrier) or ranks == 1:
        return {}
    if kind == "allgather":
        rows = float(known.tokens * (ranks - 1))
    elif kind in COPYING and scenario.policy.placement.kind in FIXED_PLACEMENTS:
        held = -(-setting.model.experts // ranks)
        rows = max(0.0, kept * known.routes / held - known.tokens)
    else:
        return {}
    out, into = port_rates(setting.cluster)
    price = carry.price
    # Dispatch arrives at the experts' GPUs and combine leaves them; backward, combine's gradient arrives and dispatch's leaves.
    return {
        ("dispatch", FORWARD): rows * price.dispatch / into,
        ("combine", FORWARD): rows * price.combine / out,
        ("combine", BACKWARD): rows * price.gradient_out / into,
        ("dispatch", BACKWARD): rows * price.gradient_home / out,
    }


def port_rates(cluster: Cluster) -> tuple[float, float]:
    """Return the most B/s that can leave, and that can reach, any GPU: over all first links of its routes, over all last ones."""
    gpus = cluster.gpus
    pairs = np.arange(gpus * gpus)
    length = np.diff(cluster.route_start)
    used = length > 0
    rates = []
    for hop, end in ((cluster.route_start[:-1], pairs // gpus), (cluster.route_start[1:] - 1, pairs % gpus)):
        link = cluster.route_link[hop[used]]
        own = np.unique(np.stack([end[used], link], axis=1), axis=0)
        total = np.bincount(own[:, 0], weights=cluster.bandwidth[own[:, 1]], minlength=gpus) if own.size else np.zeros(gpus)
        rates.append(float(total.max(initial=0.0)) or np.inf)
    return rates[0], rates[1]


def _longest(program: Program, seconds: Mapping[Work, Floats], moving: Mapping[tuple[str, str], float]) -> float:
    """Return the longest path through a program on one GPU."""
    if not moving:
        return no_communication(program, seconds, 1)
    finished: list[float] = []
    lane_free: dict[str, float] = {}
    for task in program.tasks:
        start = max([lane_free.get(task.lane, 0.0), *(finished[earlier] for earlier in task.after)])
        work = task.work
        if work.phase in COLLECTIVES:
            end = start + moving.get((work.phase, work.direction), 0.0)
        else:
            end = start + (float(seconds[work][0]) if work in seconds else 0.0)
        finished.append(end)
        lane_free[task.lane] = end
    return max(finished, default=0.0)


def safe_bounds(scenario: Scenario, read_trace: Callable[..., Trace], *, drop_rate: float | None = None) -> tuple[Bound, ...]:
    """Return :func:`bounds_of`, and none where a plug-in refuses to answer outside a run: then only a run decides."""
    try:
        return bounds_of(scenario, read_trace, drop_rate=drop_rate)
    except (MoesimError, ValueError, AttributeError):
        return ()
