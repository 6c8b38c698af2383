"""Which inputs move an answer, which change nothing, and whether the winner of a comparison would change."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.base.streams import stream
from moesim.facts.arrays import Floats

RESAMPLES = 200
"""Bootstrap resamples of the Sobol indices."""

Point = Mapping[str, float]
Outcome = Mapping[str, float]
"""Metrics of one run by name; NaN where it cannot tell. An empty one is a run that failed."""
Evaluate = Callable[[Sequence[Point]], Sequence[Outcome]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A number of the scenario and the range in which it may lie.

    Parameters
    ----------
    key : str
        Dotted.
    base, low, high : float
        In SI units.
    dimension : str
        ``s``, ``B``, ``B/s``, ``flop/s`` or empty.
    whole : bool
        Whether it is a whole number.
    """

    key: str
    base: float
    low: float
    high: float
    dimension: str = ""
    whole: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Swing:
    """What one input does alone.

    Parameters
    ----------
    given : Input
    at_low, at_high : float or None
        The metric at either end; None if that run failed.
    changed : tuple of str
        Every metric that differs at either end from what it was.
    problem : str
        Why a run failed.
    """

    given: Input
    at_low: float | None
    at_high: float | None
    changed: tuple[str, ...]
    problem: str = ""

    def reach(self, base: float) -> float:
        """Return the largest distance from the base, 0 where nothing is known."""
        return max((abs(end - base) for end in (self.at_low, self.at_high) if end is not None), default=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """The Sobol indices of one input with 95 % intervals: its share of the variance alone, and with all interactions."""

    key: str
    first: float
    first_low: float
    first_high: float
    total: float
    total_low: float
    total_high: float


def tornado(inputs: Sequence[Input], evaluate: Evaluate, metric: str) -> tuple[float, list[Swing]]:
    """Put every input at its low and its high end, one at a time, the others staying where they are.

    Parameters
    ----------
    inputs : sequence of Input
    evaluate : callable
        Runs the scenario at points; a key that a point leaves out stays at its base.
    metric : str
        What is looked at.

    Returns
    -------
    base : float
        The metric where nothing is changed.
    swings : list of Swing
        The largest reach first.
    """
    points: list[Point] = [{}]
    for given in inputs:
        points += [{given.key: given.low}, {given.key: given.high}]
    base, *ends = evaluate(points)
    at = float(base.get(metric, math.nan))
    swings = []
    for given, low, high in zip(inputs, ends[::2], ends[1::2], strict=True):
        changed = {name for end in (low, high) for name in end if _differ(end[name], base.get(name, math.nan))}
        swings.append(Swing(given=given, at_low=_end(low, metric), at_high=_end(high, metric), changed=tuple(sorted(changed))))
    order = sorted(range(len(swings)), key=lambda index: (-swings[index].reach(at), index))
    return at, [swings[index] for index in order]


def _end(outcome: Outcome, metric: str) -> float | None:
    value = outcome.get(metric, math.nan)
    return None if math.isnan(value) else float(value)


def _differ(one: float, other: float) -> bool:
    return not (one == other or (math.isnan(one) and math.isnan(other)))


def points_of(inputs: Sequence[Input], samples: int, seed: int) -> tuple[Floats, Floats]:
    """Return two float[d, samples] of independent points, evenly spread over the ranges: scrambled Sobol points."""
    from scipy.stats import qmc

    many = len(inputs)
    name = "rng" if "rng" in inspect.signature(qmc.Sobol).parameters else "seed"
    made = qmc.Sobol(2 * many, scramble=True, **{name: stream(seed, "sensitivity", "points")}).random(samples).T
    low = np.array([given.low for given in inputs])[:, None]
    high = np.array([given.high for given in inputs])[:, None]
    spread = [low + (high - low) * part for part in (made[:many], made[many:])]
    whole = np.array([given.whole for given in inputs])[:, None]
    first, second = (np.where(whole, np.rint(part), part) for part in spread)
    return first, second


def sobol(
    inputs: Sequence[Input], values: Callable[[Floats], Floats], *, samples: int, seed: int, confidence: float = 0.95
) -> tuple[list[Index], float]:
    """Return the share of each input in the variance of an answer when all vary together.

    Parameters
    ----------
    inputs : sequence of Input
        Independent, each equally likely anywhere in its range.
    values : callable
        Turns float[d, n] points into float[n] answers, all finite.
    samples : int
        N, a power of two; N (d + 2) points are asked for.
    seed : int
        Of the points and of the bootstrap.
    confidence : float
        Of the percentile intervals over ``RESAMPLES`` bootstrap resamples.

    Returns
    -------
    indices : list of Index
        In the order of the inputs. All are 0 where the answer does not vary.
    variance : float
        Of the answer.

    Notes
    -----
    ``scipy.stats.sobol_indices`` with Saltelli's estimator of 2010 (Computer Physics Communications 181). An index may come out a little
    below 0 or above 1: that is how far the estimate is off.
    """
    from scipy.stats import sobol_indices

    many = len(inputs)
    first, second = points_of(inputs, samples, seed)
    mixed = np.repeat(first[None], many, axis=0)
    mixed[np.arange(many), np.arange(many)] = second
    asked = np.concatenate([first, second, mixed.transpose(1, 0, 2).reshape(many, -1)], axis=1)
    answers = np.asarray(values(asked), dtype=np.float64)
    f_first, f_second, f_mixed = answers[:samples], answers[samples : 2 * samples], answers[2 * samples :].reshape(many, samples)
    variance = float(np.var(np.concatenate([f_first, f_second])))
    if np.ptp(answers) == 0.0:
        nothing = dict.fromkeys(("first", "first_low", "first_high", "total", "total_low", "total_high"), 0.0)
        return [Index(key=given.key, **nothing) for given in inputs], 0.0

    if many == 1:  # what varies alone has all of the variance, and nothing to interact with
        alone = dict.fromkeys(("first", "first_low", "first_high", "total", "total_low", "total_high"), 1.0)
        return [Index(key=inputs[0].key, **alone)], variance

    def indices(chosen: Any) -> tuple[Floats, Floats]:
        parts = {"f_A": f_first[None, chosen], "f_B": f_second[None, chosen], "f_AB": f_mixed[:, None, chosen]}
        if np.ptp(np.concatenate([parts["f_A"], parts["f_B"]])) == 0.0:  # a resample of equal answers says nothing
            return np.zeros(many), np.zeros(many)
        found = sobol_indices(func=parts, n=samples)
        return np.ravel(found.first_order), np.ravel(found.total_order)

    first_order, total_order = indices(np.arange(samples))
    rng = stream(seed, "sensitivity", "bootstrap")
    again = [indices(rng.integers(samples, size=samples)) for _ in range(RESAMPLES)]
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    ends = [np.quantile(np.array([one[which] for one in again]), tails, axis=0) for which in (0, 1)]
    return [
        Index(
            key=given.key,
            first=float(first_order[at]), first_low=float(ends[0][0, at]), first_high=float(ends[0][1, at]),
            total=float(total_order[at]), total_low=float(ends[1][0, at]), total_high=float(ends[1][1, at]),
        )
        for at, given in enumerate(inputs)
    ], variance  # fmt: skip


def winners(values: Mapping[str, Floats], *, higher: bool) -> dict[str, float]:
    """Return in which share of the points each variant is best; several that are equally good share the point.

    Parameters
    ----------
    values : mapping of str to float[n]
        Of each variant at the same points.
    higher : bool
        Whether more is better.

    Examples
    --------
    >>> winners({"a": np.array([1.0, 2.0]), "b": np.array([1.0, 3.0])}, higher=False)
    {'a': 0.75, 'b': 0.25}
    """
    names = list(values)
    table = np.array([values[name] for name in names])
    best = table.max(axis=0) if higher else table.min(axis=0)
    hits = table == best
    shares = (hits / hits.sum(axis=0)).mean(axis=1)
    return {name: float(share) for name, share in zip(names, shares, strict=True)}


def distinct(points: Sequence[Point]) -> int:
    """Return how many different points there are."""
    return len(Counter(tuple(sorted(point.items())) for point in points))
