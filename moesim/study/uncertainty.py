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
from moesim.facts.profile import Profile
from moesim.facts.record import Result, Value
from moesim.facts.scenario import Scenario
from moesim.facts.trace import Trace

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


def drawn(profile: Profile, seed: int, draw: int) -> Profile:
    """Return a profile whose parameters the measurements would have allowed as well.

    Each section is drawn on a stream of its own, named by the profile and the section: two plug-ins that use the same section get the same
    draw, and so do all variants of a comparison.
    """
    sections = {}
    for name, section in profile.sections.items():
        values = next(section.draws(1, stream(seed, "parameters", profile.name, name, draw)))
        sections[name] = replace(section, parameters=tuple(replace(item, value=values[item.name]) for item in section.parameters))
    return replace(profile, sections=sections)


def with_drawn_parameters(scenario: Scenario, draw: int = 0) -> Scenario:
    """Return a scenario whose profiles are drawn anew, by its seed and the number of the draw; the same where it has none."""
    found = scenario
    for place, profile in profiles_in(scenario).items():
        part, _, name = place.partition(".")
        found = replace(found, **{part: replace(getattr(found, part), **{name: drawn(profile, scenario.seed, draw)})})
    return found


def uncertain_parameters(scenario: Scenario) -> int:
    """Return how many parameters of a scenario's profiles have a variance."""
    matrices = [section.matrix for profile in profiles_in(scenario).values() for section in profile.sections.values()]
    return sum(int(np.count_nonzero(np.diag(matrix))) for matrix in matrices if matrix is not None)


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
    known = uncertain_parameters(scenario)
    if not known:
        raise UsageError(
            f"uncertainty.draws: {draws} repetitions would all be alike, for no profile of this scenario has a covariance: name a fitted "
            "profile under compute or exchange, or leave the section out"
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
        assumptions=(*result.assumptions, _said(draws, known)),
        facts={**result.facts, "uncertainty": {"draws": draws, "parameters": known}},
    )


def _said(draws: int, known: int) -> str:
    return (
        f"Intervals contain chance between steps and the uncertainty of {known} fitted parameters ({draws} draws from their covariance, "
        "same tokens). They do not contain how far a model is off on a machine or a shape unlike the measured ones."
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
