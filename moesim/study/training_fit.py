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

PER_STEP = ("feedback", "domain_feedback", "drive", "gain", "domain_gain", "kind_feedback", "kind_gain", "decay", "limit", "memory")
PER_ROOT = ("growth", "drift", "domain_drift")
IN_STEPS = ("fading", "settling", "warmup")
SHARES = ("kind_share", "sequence_share", "decay")


def constants_of(law: Law) -> dict[str, Any]:
    """Return a law as constants of the source."""
    return {name: getattr(law, name) for name in CONSTANTS if getattr(law, name) is not None} | dict(law.deep)


def coarser(law: Law, times: int) -> Law:
    """Return the law of steps that are ``times`` as long: pushes add up, random walks by their squares.

    A fit plays coarse steps, which is that much quicker; what is reported is played step by step.
    """
    factors = dict.fromkeys(PER_STEP, float(times)) | dict.fromkeys(PER_ROOT, times**0.5) | dict.fromkeys(IN_STEPS, 1.0 / times)
    scaled: dict[str, Any] = {name: getattr(law, name) * by for name, by in factors.items() if getattr(law, name) is not None}
    deep = tuple((name, tuple((at, value * factors.get(name, 1.0)) for at, value in corners)) for name, corners in law.deep)
    return replace(law, **scaled, deep=deep)


def fit(
    recordings: Sequence[Recorded],
    law: Law,
    names: Sequence[str],
    *,
    times: int = 8,
    seeds: Sequence[int] = (0,),
    by_layer: bool = False,
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
        Constants to fit; their present values must be more than 0. Of one that changes over depth, every corner is fitted.
    times : int
        Recorded steps for each step that is played.
    seeds : sequence of int
        Of predictions, which are averaged.
    by_layer : bool
        Whether every layer counts by itself, or their mean.
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
    The error is the mean over recordings and windows of |ln(predicted / recorded)| of MaxVio, at most 0.8 each, so that
    one window cannot rule. It is minimised over logarithms (of shares: logits) by the method of Nelder and Mead; all trials draw the same
    random numbers.
    """
    from scipy.optimize import minimize

    if not recordings:
        raise CalibrationError("there are no recorded trainings to fit to")
    known = {item.name for item in fields(Law)}
    for name in names:
        values = _values(law, name) if name in known - {"fitted_at", "deep"} else [None]
        if any(value is None or not value > 0 for value in values):
            raise CalibrationError(f"the constant {name!r} cannot be fitted: it must be one of the law's, and begin with more than 0")
    best = [(np.inf, law)]

    def trial(place: Floats) -> float:
        tried = _unpacked(law, names, place)
        errors = (play or _one_by_one)(_Error(tried, times, tuple(seeds), by_layer), recordings)
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
    by_layer: bool

    def __call__(self, recorded: Recorded) -> float:
        constants = constants_of(coarser(self.law, self.times))
        courses = [predict(recorded, times=self.times, seed=seed, **constants).maxvio for seed in self.seeds]
        steps = len(recorded.course.maxvio)
        mine, theirs = np.mean(courses, axis=0), recorded.course.maxvio
        parts = [slice(index, index + 1) for index in range(recorded.layers)] if self.by_layer else [slice(None)]
        distance = [np.abs(np.log(windows(mine[:, part], steps) / windows(theirs[:, part], steps))) for part in parts]
        return float(np.minimum(distance, 0.8).mean())


def _values(law: Law, name: str) -> list[Any]:
    """Return the values of a constant: of its corners, if it changes over depth."""
    corners = dict(law.deep).get(name)
    return [getattr(law, name)] if corners is None else [value for _, value in corners]


def _packed(law: Law, names: Sequence[str]) -> Floats:
    found = [(name, value) for name in names for value in _values(law, name)]
    values = np.array([value for _, value in found], dtype=np.float64)
    share = np.array([name in SHARES for name, _ in found])
    return np.log(values / np.where(share, 1.0 - values, 1.0))


def _unpacked(law: Law, names: Sequence[str], place: Floats) -> Law:
    rest = iter(place.tolist())
    values: dict[str, list[float]] = {}
    for name in names:
        steps = [next(rest) for _ in _values(law, name)]
        values[name] = [float(1.0 / (1.0 + np.exp(-at)) if name in SHARES else np.exp(at)) for at in steps]
    corners = {name: tuple((at, value) for (at, _), value in zip(dict(law.deep)[name], values[name], strict=True))
               for name in names if name in dict(law.deep)}  # fmt: skip
    single: dict[str, Any] = {name: found[0] for name, found in values.items() if name not in corners}
    return _within(replace(law, **single, deep=tuple((dict(law.deep) | corners).items())), set(names) & {"kind_share", "sequence_share"})


def _within(law: Law, fitted: set[str]) -> Law:
    """Return the law with shares that are fitted made smaller, if they are more than the whole together."""
    most = max(
        part.kind_share + part.sequence_share
        for part in (law.of_layer(index, 1 + 100) for index in range(101))
    )  # fmt: skip
    if most <= 1.0 or not fitted:
        return law
    by = 1.0 / (most * (1.0 + 1e-9))
    corners = tuple((name, tuple((at, value * (by if name in fitted else 1.0)) for at, value in line)) for name, line in law.deep)
    single: dict[str, Any] = {name: getattr(law, name) * by for name in fitted if name not in dict(corners)}
    return replace(law, **single, deep=corners)
