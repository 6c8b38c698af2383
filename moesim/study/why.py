"""Why a step takes as long as it does: its critical path, who waits for whom, and what each part is worth, by simulating without it."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from moesim.base.errors import MoesimError, UsageError
from moesim.engine.own_tokens import mean_context
from moesim.engine.simulate import simulate
from moesim.facts.record import Result, Table
from moesim.facts.scenario import Scenario
from moesim.facts.trace import Trace
from moesim.measure.critical_path import Link, critical_path, waiting_chains
from moesim.models.stages import setting_of, stage_setting
from moesim.models.what_if import EvenLayers, FasterLinks, NoLaggards

FASTER = 2.0
"""How many times as fast a link is in the question what it is worth."""
EACH = 3
"""How many single links, layers and GPUs are asked about unless said otherwise: those with the most time on the critical path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """One change and the step time with it, stalls of rebalances included; ``gain`` is what it takes off, s (below 0 if slower)."""

    name: str
    sentence: str
    step_time: float | None
    gain: float | None
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why the steps of a run take as long as they do.

    Attributes
    ----------
    result : Result
        Of the run itself, with every span.
    path : sequence of Link
        Critical paths of all measured steps, one after the other.
    shares : mapping of str to mapping of str to float
        Mean seconds of a step on the critical path: by ``phase``, ``gpu``, ``layer``, ``link`` and ``experts``.
    waiting : Table
        Who kept whom waiting, over all measured steps.
    seconds : float
        Mean step time with the stalls of rebalances between steps, s: what gains are taken from. Stalls are on no step's path.
    what_ifs : sequence of WhatIf
        What each change is worth, the largest gain first.
    """

    result: Result
    path: tuple[Link, ...]
    shares: Mapping[str, Mapping[str, float]]
    waiting: Table
    seconds: float
    what_ifs: tuple[WhatIf, ...]


def explain(
    scenario: Scenario, *, read_trace: Callable[..., Trace], progress: Callable[[int, int], None] | None = None, each: int = EACH
) -> Explanation:
    """Simulate a scenario, follow its critical path, and simulate it again with each likely cause taken away.

    Parameters
    ----------
    scenario : Scenario
    read_trace : callable
        As :func:`moesim.engine.simulate.simulate` takes it.
    progress : callable, optional
        Called with (runs done, runs) after every run.
    each : int
        How many single links, layers and late GPUs to ask about, each by a run of its own: those with the most time on the critical path.

    Returns
    -------
    Explanation
        Steps and tokens are the same in every run, so the gains carry no noise of sampling.
    """
    result = simulate(scenario, read_trace=read_trace, keep_spans=True)
    spans, collectives, steps = result.tables["spans"], result.tables["collectives"], result.tables["steps"]
    path: list[Link] = []
    for step, start in zip(steps["step"], steps["start_s"], strict=True):
        path += critical_path(
            spans.where(spans["step"] == step), collectives.where(collectives["step"] == step),
            start=float(start), ranks=scenario.parallel.ep, sharing=scenario.parallel.etp, tensor=scenario.parallel.tp,
        )  # fmt: skip
    shares = _shares(path, result, len(steps))
    changes = _changes(scenario, result, shares, each)
    if progress is not None:
        progress(1, len(changes) + 1)
    base = _with_stalls(result)
    tried = []
    for number, (name, sentence, changed) in enumerate(changes):
        tried.append(_try(name, sentence, changed, base, read_trace))
        if progress is not None:
            progress(number + 2, len(changes) + 1)
    tried += _bounds(result, base)
    tried.sort(key=lambda what_if: (what_if.gain is None, -(what_if.gain or 0.0), what_if.name))
    return Explanation(result=result, path=tuple(path), shares=shares, waiting=waiting_chains(spans), seconds=base, what_ifs=tuple(tried))


def _try(name: str, sentence: str, changed: Scenario, base: float, read_trace: Callable[..., Trace]) -> WhatIf:
    try:
        other = simulate(changed, read_trace=read_trace)
    except MoesimError as error:  # a change may not suit a scenario; the others still answer
        return WhatIf(name=name, sentence=sentence, step_time=None, gain=None, error=str(error))
    seconds = _with_stalls(other)
    return WhatIf(name=name, sentence=sentence, step_time=seconds, gain=base - seconds)


def _with_stalls(result: Result) -> float:
    """Return the mean step time and what rebalances stall per step, s."""
    value = result.metrics["net_step_time"].value
    return float(result.tables["steps"]["step_time_s"].mean()) if value is None else value


def _bounds(result: Result, base: float) -> list[WhatIf]:
    """Return the two bounds that every run has anyway, as changes; neither takes the stalls of rebalances away."""
    found = []
    stalls = base - float(result.tables["steps"]["step_time_s"].mean())
    for metric, name, sentence in (
        ("step_time_if_balanced", "all layers even", "every expert and every GPU has the same load"),
        ("step_time_if_no_communication", "no communication", "nothing has to travel and nobody waits"),
    ):
        value = result.metrics[metric].value
        if value is not None:
            found.append(WhatIf(name=name, sentence=sentence, step_time=value + stalls, gain=base - stalls - value))
    return found


def _shares(path: list[Link], result: Result, steps: int) -> dict[str, dict[str, float]]:
    """Return mean seconds per step on the critical path by phase, GPU, layer, link, and set of experts."""
    sums: dict[str, dict[str, float]] = {name: defaultdict(float) for name in ("phase", "gpu", "layer", "link", "experts")}
    hot = _hottest(result)
    for link in path:
        each = link.seconds / steps
        phase = link.phase if link.kind == "compute" else f"{link.phase}: {link.kind}"
        sums["phase"]["idle" if link.kind == "idle" else phase] += each
        sums["gpu"][f"GPU {link.gpu}"] += each
        sums["layer"][f"layer {link.layer}"] += each
        if link.bottleneck:
            sums["link"][link.bottleneck] += each
        if link.phase == "experts" and link.moe_layer >= 0:
            sums["experts"][f"GPU {link.gpu}, layer {link.layer}, hottest expert {hot[link.moe_layer]}"] += each
    return {name: dict(sorted(values.items(), key=lambda item: (-item[1], item[0]))) for name, values in sums.items()}


def _hottest(result: Result) -> dict[int, int]:
    """Return the logical expert with the most routes of each MoE layer."""
    experts = result.tables["experts"]
    found = {}
    for layer in np.unique(experts["moe_layer"]):
        mine = experts.where(experts["moe_layer"] == layer)
        found[int(layer)] = int(mine["expert"][int(mine["routes"].argmax())])
    return found


def _changes(scenario: Scenario, result: Result, shares: Mapping[str, Mapping[str, float]], each: int) -> list[tuple[str, str, Scenario]]:
    """Return the changes to try: name, sentence, and the scenario with the change."""
    changes: list[tuple[str, str, Scenario]] = []
    table = result.tables["links"]
    used = table["bytes"] > 0
    for kind in sorted(set(table["link_class"][used].tolist())):
        names = frozenset(table["link"][table["link_class"] == kind].tolist())
        faster = FasterLinks(base=scenario.cluster, links=names, factor=FASTER)
        changes.append((f"{kind} x {FASTER:g}", f"every {kind} link carries twice as much", dataclasses.replace(scenario, cluster=faster)))
    for name in list(shares["link"])[:each]:
        faster = FasterLinks(base=scenario.cluster, links=frozenset({name}), factor=FASTER)
        changes.append(
            (f"{name} x {FASTER:g}", f"the link {name} alone carries twice as much", dataclasses.replace(scenario, cluster=faster))
        )
    numbers = {layer: index for index, layer in enumerate(scenario.model.moe_layers)}
    layers = [int(name.removeprefix("layer ")) for name in shares["layer"]]
    for layer in [layer for layer in layers if layer in numbers][:each]:
        even = EvenLayers(base=scenario.routing, layers=frozenset({numbers[layer]}))
        changes.append(
            (f"layer {layer} even", f"the experts of layer {layer} have equal loads", dataclasses.replace(scenario, routing=even))
        )
    for gpu in _laggards(result, each):
        place = int(scenario.parallel.places(len(result.tables["gpus"]))[gpu])
        level = NoLaggards(base=scenario.compute, gpus=frozenset({place}))
        changes.append(
            (
                f"GPU {gpu} not late",
                f"the experts of GPU {gpu} take no longer than the others'",
                dataclasses.replace(scenario, compute=level),
            )
        )
    if "rebalances" in result.tables:
        free = dataclasses.replace(scenario.policy.rebalance, mode="free")
        policy = dataclasses.replace(scenario.policy, rebalance=free)
        changes.append(("rebalancing free", "new placements cost no time and no bytes", dataclasses.replace(scenario, policy=policy)))
    if scenario.workload.ranks is not None:
        changes.append(("ranks equal", "every rank has as many tokens, and as much context, as the mean", _with_equal_ranks(scenario)))
    return changes


def _laggards(result: Result, most: int) -> list[int]:
    """Return the GPUs whose experts take longest, if they take longer than the mean."""
    gpus = result.tables["gpus"]
    seconds = gpus["expert_s"]
    order = np.argsort(-seconds, kind="stable")[:most]
    return [int(gpus["gpu"][place]) for place in order if seconds[place] > seconds.mean() * (1 + 1e-9)]


def _with_equal_ranks(scenario: Scenario) -> Scenario:
    """Return the scenario with the mean of its ranks on all of them."""
    stage = stage_setting(setting_of(scenario, _no_trace))
    tokens = [stage.tokens_of_gpus(step) for step in range(scenario.warmup, scenario.steps)]
    read = mean_context(stage, tokens, scenario.warmup)
    workload = dataclasses.replace(scenario.workload, ranks=None, context=scenario.workload.context if read is None else read)
    return dataclasses.replace(scenario, workload=workload)


def _no_trace(path: str) -> Trace:
    raise UsageError(f"tokens of ranks are in no recording of routing, and {path} is not read for them")
