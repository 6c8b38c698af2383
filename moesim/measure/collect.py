"""All metrics of a run: samples per step, and one value with an interval for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from moesim.base.errors import PluginError
from moesim.base.registry import kinds
from moesim.base.stats import mean_interval
from moesim.facts.arrays import Bools, Floats
from moesim.facts.contracts import Metric, Record
from moesim.facts.evidence import weakest
from moesim.facts.record import Value

FIRST = (
    "step_time",
    "tokens_per_second",
    "dispatch_transfer_time",
    "combine_transfer_time",
    "waiting_time",
    "expert_time",
    "exposed_communication",
    "drop_rate",
    "fully_dropped_tokens",
    "capacity_utilisation",
    "rank_max_over_mean",
    "expert_max_over_mean",
    "maxvio",
    "balancedness",
    "cross_node_bytes",
    "peak_memory",
    "step_time_if_balanced",
    "step_time_if_no_communication",
)
"""The metrics that come first in every listing, in this order; all others follow by name."""

SUMMARIES = ("mean", "max", "whole")
"""How samples of steps become one value. ``mean`` has an interval; ``max`` is the largest; ``whole`` is one number of the whole run."""

BETTER = ("lower", "higher", "neither")
GROUNDS = ("compute", "network", "routing", "accounting")


def metrics() -> dict[str, Any]:
    """Return one instance of every registered metric: those of :data:`FIRST` in that order, then the others by name.

    Raises
    ------
    PluginError
        If a metric cannot be made without arguments; there is no place in a scenario to give it any.
    """
    known = kinds("metric")
    order = [name for name in FIRST if name in known] + [name for name in known if name not in FIRST]
    return {name: _made(name, known[name]) for name in order}


def sample(name: str, metric: Metric, record: Record) -> Floats:
    """Return float[steps], what a metric says of each measured step; NaN where it cannot tell.

    Raises
    ------
    PluginError
        If the metric fails, or returns something else than one finite number or NaN per step.
    """
    try:
        samples = np.asarray(metric.measure(record), dtype=np.float64)
    except Exception as error:
        raise PluginError(f"metric {name!r} failed: {type(error).__name__}: {error}") from error
    steps = len(record.steps)
    if samples.shape != (steps,):
        raise PluginError(f"metric {name!r} returned shape {samples.shape}, expected ({steps},): one number per measured step")
    if np.isinf(samples).any():
        raise PluginError(f"metric {name!r} is infinite in step {int(record.steps[np.isinf(samples)][0])}; use NaN for what cannot be told")
    return samples


def summarise(metric: Metric, samples: Floats, bases: Mapping[str, str], *, fresh: Bools | None = None) -> Value:
    """Return one value for the samples of a metric.

    Parameters
    ----------
    metric : Metric
        Its optional class variable ``summary`` is one of :data:`SUMMARIES`; ``mean`` if it has none.
    samples : float[steps]
        NaN where the record cannot tell; such steps are left out, and ``n`` says how many are left.
    bases : mapping of str to str
        The evidence behind ``compute``, ``network``, ``routing`` and ``accounting``, words of :data:`moesim.facts.evidence.STRENGTH`.
    fresh : bool[steps], optional
        :func:`fresh_steps`: the interval and ``n`` count only these, the value all.

    Returns
    -------
    Value
        ``value`` is None if no step has an answer. ``low`` and ``high`` bound the mean over steps with 95 % (Student's t, steps taken
        as independent) for a ``mean`` of at least two steps, and are None otherwise. ``basis`` is the weakest of what the metric
        rests on. A ratio is taken in each step and then averaged, so that each step weighs the same.
    """
    basis = weakest(bases[ground] for ground in metric.rests_on)
    known = samples[~np.isnan(samples)]
    independent = samples[~np.isnan(samples) & (True if fresh is None else fresh)]
    summary = getattr(metric, "summary", "mean")
    if not known.size:
        return Value(value=None, unit=metric.unit, low=None, high=None, n=0, basis=basis)
    if summary == "mean":
        # A metric that is known only in steps that repeat others still has one sample.
        mean = mean_interval(independent if independent.size else known[:1])
        # No metric can be below 0 unless a sample is: Student's t knows nothing of that.
        low = max(mean.low, min(0.0, float(known.min()))) if mean.low is not None else None
        value = mean.value if len(independent) == len(known) else float(known.mean())
        return Value(value=value, unit=metric.unit, low=low, high=mean.high, n=mean.n, basis=basis)
    return Value(value=float(known.max()), unit=metric.unit, low=None, high=None, n=len(known), basis=basis)


def measure_all(record: Record, bases: Mapping[str, str]) -> dict[str, Value]:
    """Return every metric of a run by name, in the order of :func:`metrics`.

    Parameters
    ----------
    record : Record
        Of a run.
    bases : mapping of str to str
        The evidence behind ``compute``, ``network``, ``routing`` and ``accounting``.

    Returns
    -------
    dict of str to Value
        As :func:`summarise` makes them.

    Raises
    ------
    PluginError
        If a metric breaks its contract.
    """
    return summarise_all(sample_all(record), bases, fresh=fresh_steps(record))


def sample_all(record: Record) -> dict[str, Floats]:
    """Return float[steps] for every metric, by name, in the order of :func:`metrics`: :func:`sample` of each."""
    return {name: sample(name, metric, record) for name, metric in metrics().items()}


def summarise_all(samples: Mapping[str, Floats], bases: Mapping[str, str], *, fresh: Bools | None = None) -> dict[str, Value]:
    """Return one value for each metric of :func:`sample_all`: :func:`summarise` of each."""
    known = metrics()
    return {name: summarise(known[name], numbers, bases, fresh=fresh) for name, numbers in samples.items()}


def fresh_steps(record: Record) -> Bools:
    """Return bool[steps], false for a measured step whose tokens an earlier measured step had already: it is no new sample."""
    steps = record.steps
    repeats = np.asarray(record.tables["steps"].columns.get("repeats", np.full(len(steps), -1)))
    tokens = np.where(repeats < 0, steps, repeats)
    fresh = np.zeros(len(steps), dtype=np.bool_)
    fresh[np.unique(tokens, return_index=True)[1]] = True
    return fresh


def declaration_problem(metric: Any) -> str | None:
    """Return what is wrong with the class variables of a metric, or None."""
    if not isinstance(getattr(metric, "unit", None), str):
        return "needs a class variable 'unit', a text ('' for a pure number)"
    if getattr(metric, "better", None) not in BETTER:
        return f"needs a class variable 'better', one of {', '.join(BETTER)}"
    grounds = getattr(metric, "rests_on", None)
    if not isinstance(grounds, tuple) or any(ground not in GROUNDS for ground in grounds):
        return f"needs a class variable 'rests_on', a tuple of words among {', '.join(GROUNDS)}"
    if getattr(metric, "summary", "mean") not in SUMMARIES:
        return f"has summary {metric.summary!r}, which is none of {', '.join(SUMMARIES)}"
    return None


def _made(name: str, cls: type) -> Any:
    needed = [
        field.name
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if needed:
        raise PluginError(f"metric {name!r} needs values for {', '.join(needed)}: give these fields defaults")
    metric = cls()
    problem = declaration_problem(metric)
    if problem:
        raise PluginError(f"metric {name!r} {problem}")
    return metric
