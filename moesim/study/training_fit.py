"""Fit the constants of the source ``training`` to recorded trainings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from moesim.base.errors import CalibrationError
from moesim.facts.arrays import Floats
from moesim.models.router.law import Law
from moesim.models.source.training import CONSTANTS
from moesim.study.training_courses import Recorded, predict, windows

PER_STEP = ("feedback", "domain_feedback", "drive", "gain", "decay", "limit")
PER_ROOT = ("growth", "drift", "domain_drift")
SHARES = ("kind_share", "sequence_share", "decay")


def constants_of(law: Law) -> dict[str, Any]:
    """Return a law as constants of the source."""
    return {name: getattr(law, name) for name in CONSTANTS if getattr(law, name) is not None}


def coarser(law: Law, times: int) -> Law:
    """Return the law of steps that are ``times`` as long: pushes add up, random walks by their squares.

    A fit plays coarse steps, which is that much quicker; what is reported is played step by step.
    """
    scaled: dict[str, Any] = {name: getattr(law, name) * times for name in PER_STEP if getattr(law, name) is not None}
    scaled |= {name: getattr(law, name) * times**0.5 for name in PER_ROOT}
    if law.fading is not None:
        scaled["fading"] = law.fading / times
    return replace(law, **scaled)


def fit(
    recordings: Sequence[Recorded],
    law: Law,
    names: Sequence[str],
    *,
    times: int = 8,
    seeds: Sequence[int] = (0,),
    evaluations: int = 100,
    play: Callable[[Callable[[Recorded], float], Sequence[Recorded]], list[float]] | None = None,
    progress: Callable[[int, float, Law], None] | None = None,
) -> Law:
    """Fit some constants of a law to recorded trainings.

    Parameters
    ----------
    recordings : sequence of Recorded
    law : Law
        Where to begin; constants that are not named stay as they are.
    names : sequence of str
        Constants to fit; their present values must be more than 0.
    times : int
        Recorded steps for each step that is played.
    seeds : sequence of int
        Of predictions, which are averaged.
    evaluations : int
        How many laws are tried.
    play : callable, optional
        Applies a function to all recordings, for example in several processes; one after the other if left out.
    progress : callable, optional
        Called with the number, the error and the law of each trial.

    Returns
    -------
    Law
        The best one that was tried.

    Raises
    ------
    CalibrationError
        If there is nothing to fit to, or a constant is unknown, or not positive.

    Notes
    -----
    The error is the mean over recordings and windows of |ln(predicted / recorded)| of MaxVio, mean over layers, at most 0.8 each, so that
    one window cannot rule. It is minimised over logarithms (of shares: logits) by the method of Nelder and Mead; all trials draw the same
    random numbers.
    """
    from scipy.optimize import minimize

    if not recordings:
        raise CalibrationError("there are no recorded trainings to fit to")
    known = {item.name for item in fields(Law)}
    for name in names:
        value = getattr(law, name) if name in known else None
        if value is None or isinstance(value, tuple) or not value > 0:
            raise CalibrationError(f"the constant {name!r} cannot be fitted: it must be one of the law's, and begin with more than 0")
    best = [(np.inf, law)]

    def trial(place: Floats) -> float:
        tried = _unpacked(law, names, place)
        errors = (play or _one_by_one)(_Error(tried, times, tuple(seeds)), recordings)
        found = float(np.mean(errors))
        if found < best[0][0]:
            best[0] = (found, tried)
        if progress is not None:
            trial_number[0] += 1
            progress(trial_number[0], found, tried)
        return found

    trial_number = [0]
    start = _packed(law, names)
    simplex = np.vstack([start, start + 0.35 * np.eye(len(start))])
    minimize(trial, start, method="Nelder-Mead", options={"initial_simplex": simplex, "maxfev": evaluations, "adaptive": True})
    return best[0][1]


def _one_by_one(function: Callable[[Recorded], float], recordings: Sequence[Recorded]) -> list[float]:
    return [function(item) for item in recordings]


@dataclass(frozen=True, slots=True)
class _Error:
    """The error of a law at one recording; it can be sent to another process."""

    law: Law
    times: int
    seeds: tuple[int, ...]

    def __call__(self, recorded: Recorded) -> float:
        constants = constants_of(coarser(self.law, self.times))
        courses = [predict(recorded, times=self.times, seed=seed, **constants).maxvio for seed in self.seeds]
        steps = len(recorded.course.maxvio)
        distance = np.abs(np.log(windows(np.mean(courses, axis=0), steps) / windows(recorded.course.maxvio, steps)))
        return float(np.minimum(distance, 0.8).mean())


def _packed(law: Law, names: Sequence[str]) -> Floats:
    values = np.array([getattr(law, name) for name in names], dtype=np.float64)
    share = np.array([name in SHARES for name in names])
    return np.log(values / np.where(share, 1.0 - values, 1.0))


def _unpacked(law: Law, names: Sequence[str], place: Floats) -> Law:
    values: dict[str, Any] = {}
    for name, at in zip(names, place.tolist(), strict=True):
        values[name] = float(1.0 / (1.0 + np.exp(-at)) if name in SHARES else np.exp(at))
    total = values.get("kind_share", law.kind_share) + values.get("sequence_share", law.sequence_share)
    if total > 1.0:
        for name in {"kind_share", "sequence_share"} & set(values):
            values[name] /= total * (1.0 + 1e-9)
    return replace(law, **values)
