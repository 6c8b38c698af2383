"""Intervals of a run that contain what its profiles do not know: the run again, with parameters that the measurements allow as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np

from moesim.base.errors import UsageError
from moesim.base.stats import STUDENT_95, student_quantile
from moesim.base.streams import stream
from moesim.engine.simulate import simulate
from moesim.facts.profile import Profile, Section
from moesim.facts.record import Result, Value
from moesim.facts.scenario import Scenario
from moesim.facts.trace import Trace
from moesim.models.fitted.intervals import BEYOND, CARRIED

PARTS = ("cluster", "compute", "exchange", "schedule")
"""Plug-ins of a scenario that may hold a profile."""


def profiles_in(scenario: Scenario) -> dict[str, Profile]:
    """Return the profiles that a scenario's plug-ins hold, by ``part.field``."""
    found: dict[str, Profile] = {}
    for part in PARTS:
        plugin = getattr(scenario, part)
        for item in fields(plugin) if is_dataclass(plugin) else ():
            value = getattr(plugin, item.name)
            if isinstance(value, Profile):
                found[f"{part}.{item.name}"] = value
    return found


def drawn(profile: Profile, seed: int, draw: int, *, deviations: Mapping[str, float] | None = None) -> Profile:
    """Return a profile whose numbers the measurements would have allowed as well.

    Two things are drawn for each section, on streams of their own that are named by the profile and the section: two plug-ins that use the
    same section get the same draw, and so do all variants of a comparison.

    - its parameters, from their covariance;
    - by how much its kernels are off as a whole: one factor ``exp(s z)``, z normal, on all times of the section. A model that is off on
      a shape is off in the same way in every layer and step, so the factor is one number for a run.

    Parameters
    ----------
    profile : Profile
    seed, draw : int
        Of the scenario; number of the draw.
    deviations : mapping of str to float, optional
        s of each section by its name, see :func:`deviation`; 0 if left out.
    """
    sections = {}
    for name, section in profile.sections.items():
        values = next(section.draws(1, stream(seed, "parameters", profile.name, name, draw)))
        moved = replace(section, parameters=tuple(replace(item, value=values[item.name]) for item in section.parameters))
        scale = (deviations or {}).get(name, 0.0)
        off = float(np.exp(scale * stream(seed, "scatter", profile.name, name, draw).standard_normal())) if scale else 1.0
        sections[name] = moved.slowed(off) if scale else moved
    return replace(profile, sections=sections)


def deviation(section: Section, *, phase: str = "", carried: bool = False, outside: bool = False) -> float:
    """Return the standard deviation of the logarithm by which measurements lie off a section's model, in one phase of work.

    The scatter of the regimes whose names hold ``prefill`` (also of training) or ``decode`` counts, its largest; that of all rows where no
    regime is named so. A section that follows from other hardware adds ``CARRIED`` as a variance, and beyond the fitted range the whole
    grows by ``BEYOND``: as :func:`moesim.models.fitted.intervals.spread` has it for single predictions.
    """
    word = "decode" if phase == "decode" else "prefill"
    named = [value for name, value in section.scatter.items() if word in name]
    scatter = max(named) if named else section.scatter.get("", max(section.scatter.values(), default=0.0))
    whole = float(np.hypot(scatter, CARRIED if carried else 0.0))
    return BEYOND * whole if outside else whole


def deviations_of(scenario: Scenario, profile: Profile) -> dict[str, float]:
    """Return the :func:`deviation` of every section of a profile in a scenario."""
    gpu = getattr(getattr(scenario.cluster, "gpu", None), "name", profile.gpu)
    asked = {name: np.asarray([value]) for name, value in _asked(scenario).items()}
    return {
        name: deviation(
            section,
            phase=scenario.workload.phase,
            carried=gpu != profile.gpu or bool(section.carried_from),
            outside=bool(section.outside(asked).any()),
        )
        for name, section in profile.sections.items()
    }


def _asked(scenario: Scenario) -> dict[str, float]:
    """Return what a scenario asks of fitted models, by the names of columns of their ranges."""
    model, ranks, tokens = scenario.model, scenario.parallel.ep, scenario.workload.tokens_per_gpu
    per_node = getattr(scenario.cluster, "gpus_per_node", None)
    found = {
        "ranks": ranks, "num_gpus": ranks, "hidden_size": model.dispatch_width, "inter_size": model.expert_width // scenario.parallel.etp,
        "slots": model.experts / ranks, "num_topk": model.top_k, "num_experts": model.experts,
    }  # fmt: skip
    if tokens:
        found |= {"num_tokens": tokens * ranks, "tokens_per_rank": tokens}
    if isinstance(per_node, int) and per_node > 0:
        found |= {"node_num": max(-(-ranks // per_node), 1)}
    return {name: float(value) for name, value in found.items()}


def with_drawn_parameters(scenario: Scenario, draw: int = 0) -> Scenario:
    """Return a scenario whose profiles are drawn anew, by its seed and the number of the draw; the same where it has none."""
    found = scenario
    for place, profile in profiles_in(scenario).items():
        part, _, name = place.partition(".")
        fresh = drawn(profile, scenario.seed, draw, deviations=deviations_of(scenario, profile))
        found = replace(found, **{part: replace(getattr(found, part), **{name: fresh})})
    return found


def uncertain_parameters(scenario: Scenario) -> int:
    """Return how many parameters of a scenario's profiles have a variance."""
    matrices = [section.matrix for profile in profiles_in(scenario).values() for section in profile.sections.values()]
    return sum(int(np.count_nonzero(np.diag(matrix))) for matrix in matrices if matrix is not None)


def uncertain_models(scenario: Scenario) -> int:
    """Return about how many sections of a scenario's profiles measurements are known to scatter."""
    return sum(sum(value > 0 for value in deviations_of(scenario, profile).values()) for profile in profiles_in(scenario).values())


def simulate_uncertain(
    scenario: Scenario,
    *,
    read_trace: Callable[..., Trace],
    progress: Callable[[int, int], None] | None = None,
    keep_spans: bool = False,
    keep_routing: bool = False,
) -> Result:
    """Simulate a scenario; with ``uncertainty.draws`` also with drawn parameters, which widens the intervals.

    Parameters
    ----------
    scenario, read_trace, progress, keep_spans, keep_routing
        As in :func:`moesim.engine.simulate.simulate`; progress counts the steps of all runs together.

    Returns
    -------
    Result
        Values, tables and bounds are those of the parameters as they were fitted. ``low`` and ``high`` contain both what steps with other
        tokens would give and what the parameters would; ``facts["uncertainty"]`` and the last assumption say so.

    Raises
    ------
    UsageError
        If draws are asked for and nothing in the scenario is uncertain.
    """
    draws = scenario.uncertainty.draws if scenario.uncertainty is not None else 0
    if not draws:
        return simulate(scenario, read_trace=read_trace, progress=progress, keep_spans=keep_spans, keep_routing=keep_routing)
    known, models = uncertain_parameters(scenario), uncertain_models(scenario)
    if not known and not models:
        raise UsageError(
            f"uncertainty.draws: {draws} repetitions would all be alike, for no profile of this scenario has a covariance or a scatter: "
            "name a fitted profile under compute or exchange, or leave the section out"
        )
    total = scenario.steps * (draws + 1)

    def after(runs: int) -> Callable[[int, int], None] | None:
        return None if progress is None else lambda done, _: progress(runs * scenario.steps + done, total)

    result = simulate(scenario, read_trace=read_trace, progress=after(0), keep_spans=keep_spans, keep_routing=keep_routing)
    others = [
        simulate(with_drawn_parameters(scenario, draw), read_trace=read_trace, progress=after(draw)).metrics for draw in range(1, draws + 1)
    ]
    return replace(
        result,
        metrics=widened(result.metrics, others),
        assumptions=(*result.assumptions, _said(draws, known, models)),
        facts={**result.facts, "uncertainty": {"draws": draws, "parameters": known, "models": models}},
    )


def _said(draws: int, known: int, models: int) -> str:
    return (
        f"Intervals contain chance between steps, the uncertainty of {known} fitted parameters and the scatter of measurements about "
        f"{models} fitted models ({draws} draws, same tokens). "
        "They do not contain the error of a kernel that behaves unlike all measured ones."
    )


def widened(base: Mapping[str, Value], others: Sequence[Mapping[str, Value]]) -> dict[str, Value]:
    """Return values whose intervals contain what drawn parameters do to them.

    Steps and parameters err independently, so their half-widths add as squares: ``sqrt(a**2 + b**2)``, with ``b`` Student's t at 95 %
    times the standard deviation over the draws. A metric that is the largest of its steps, which has no interval of its own, gets that of
    the parameters. No interval goes below 0 unless the value, or a draw, does.

    Parameters
    ----------
    base : mapping of str to Value
        Of the run with the parameters as fitted.
    others : sequence of mapping
        Of the runs with drawn ones, at least one.
    """
    found = {}
    for name, value in base.items():
        drawn_values = np.array(
            [other[name].value for other in others if name in other and other[name].value is not None], dtype=np.float64
        )
        found[name] = value if value.value is None or len(drawn_values) < 2 else _wider(value, drawn_values)
    return found


def _wider(value: Value, draws: np.ndarray[Any, np.dtype[np.float64]]) -> Value:
    middle = float(value.value or 0.0)
    spread = float(draws.std(ddof=1))
    if spread <= 1e-12 * abs(middle):  # rounding: this metric does not depend on what was drawn
        return value
    reach = student_quantile(min(len(draws) - 1, len(STUDENT_95)), 0.95) * spread
    below = reach if value.low is None else float(np.hypot(reach, middle - value.low))
    above = reach if value.high is None else float(np.hypot(reach, value.high - middle))
    least = min(0.0, middle, float(draws.min()))
    return replace(value, low=max(middle - below, least), high=middle + above)
