"""Recorded trainings, and what the source ``training`` predicts of them.

A recorded training and its prediction have the same shape (experts, choices, sources, sequences, steps) and the same strategy. The
prediction knows nothing else of the recording: neither its text nor its seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from moesim.base.balance_health import idle
from moesim.base.errors import CalibrationError
from moesim.base.loads import maxvio
from moesim.base.registry import plugin
from moesim.facts.arrays import Floats
from moesim.facts.scenario import Setting
from moesim.facts.trace import Trace
from moesim.models.bare_setting import bare_setting
from moesim.models.source.training import Training

WINDOW = 50
"""Steps over which MaxVio is averaged before prediction and recording are compared."""
DEAD = 0.5
"""A layer with more idle experts than this, mean over the last fifth of the steps, has lost some."""
ALIKE = 0.1
"""Two trainings whose final MaxVio differ by less than this share have no order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """How a router was kept even; the fields are those of ``moesim measure training``."""

    aux: float = 0.0
    scope: str = "micro_batch"
    z: float = 0.0
    bias: float = 0.0
    noise: float = 0.0
    capacity: float = 0.0
    scoring: str = "softmax"


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What routers did: float[n, L], for every step and layer.

    Parameters
    ----------
    maxvio : float[n, L]
    idle : float[n, L]
        Experts below a hundredth of the mean load.
    dropped : float[n, L]
        The share of routes that a capacity limit dropped.
    """

    maxvio: Floats
    idle: Floats
    dropped: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A recorded training: its strategy, its shape, and what its routers did."""

    name: str
    strategy: Strategy
    seed: int
    experts: int
    top_k: int
    layers: int
    sources: int
    tokens_per_source: int
    sequence_length: int
    domains: int
    course: Course


def source_of(strategy: Strategy, *, sequence_length: int, domains: int, **constants: Any) -> Training:
    """Return the source of routing that plays a strategy.

    Parameters
    ----------
    strategy : Strategy
    sequence_length, domains : int
        Of the text; every sequence is of one domain.
    **constants
        A ``preset`` of the source, or constants of its own.
    """
    scoring = strategy.scoring
    if strategy.bias:
        gate = plugin("gate", "loss_free")(rate=strategy.bias, scoring=scoring)
    elif strategy.noise:
        gate = plugin("gate", "noisy_topk")(amount=strategy.noise, scoring=scoring)
    else:
        gate = plugin("gate", "topk")(scoring=scoring)
    capacity = plugin("capacity", "megatron")(factor=strategy.capacity) if strategy.capacity else plugin("capacity", "dropless")()
    return Training(
        gate=gate,
        capacity=capacity,
        auxiliary=((0, strategy.aux),),
        scope=strategy.scope,
        z=((0, strategy.z),),
        stickiness=1.0,
        sequence_length=sequence_length,
        domains=domains,
        **constants,
    )


def predict(recorded: Recorded, *, steps: int | None = None, seed: int = 0, times: int = 1, **constants: Any) -> Course:
    """Play the strategy of a recording with a preset or with constants.

    Parameters
    ----------
    recorded : Recorded
        Of which only shape and strategy are used.
    steps : int, optional
        As many as were recorded, if left out.
    seed : int
        Of the prediction.
    times : int
        Recorded steps for each step that is played; with more than 1, ``constants`` must be those of such steps.

    Returns
    -------
    Course
        Of steps // times steps.
    """
    strategy = replace(recorded.strategy, bias=recorded.strategy.bias * times)
    source = source_of(strategy, sequence_length=recorded.sequence_length, domains=recorded.domains, **constants)
    where = _setting(recorded, seed)
    draw = source.begin(where)
    limit = source.capacity.begin(where)
    count = (len(recorded.course.maxvio) if steps is None else steps) // times
    found = np.zeros((3, count, recorded.layers))
    routes = recorded.sources * recorded.tokens_per_source * recorded.top_k
    for step in range(count):
        routing = draw(step)
        for index in range(recorded.layers):
            layer = routing.layers[index]
            loads = layer.counts.sum(axis=0)
            found[0, step, index] = maxvio(loads)
            found[1, step, index] = idle(loads).sum()
            if strategy.capacity:
                found[2, step, index] = limit(layer, step=step, moe_layer=index).dropped.sum() / routes
    return Course(maxvio=found[0], idle=found[1], dropped=found[2])


def _setting(recorded: Recorded, seed: int) -> Setting:
    return bare_setting(
        gpus=recorded.sources,
        experts=recorded.experts,
        top_k=recorded.top_k,
        layers=recorded.layers,
        tokens_per_gpu=recorded.tokens_per_source,
        seed=seed,
        read_trace=_no_trace,
    )


def _no_trace(path: str) -> Trace:
    raise CalibrationError(f"a router that trains reads no trace ({path})")


def windows(values: Floats, steps: int, window: int = WINDOW) -> Floats:
    """Return float[steps // window], means of float[n, L] over layers and windows; n may be fewer than ``steps``, by a whole factor."""
    count = steps // window
    if count < 1:
        raise CalibrationError(f"{steps} steps are less than one window of {window}: record a longer training")
    each = len(values) // count
    return np.asarray(values[: count * each].reshape(count, each, -1).mean(axis=(1, 2)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How a prediction compares with its recording.

    Parameters
    ----------
    predicted, recorded : float[windows]
        MaxVio, mean over layers and steps of a window.
    median : float
        Median over windows of |predicted / recorded - 1|, in per cent.
    bias : float
        Median of predicted / recorded - 1, in per cent.
    end_predicted, end_recorded : float
        MaxVio of the last fifth.
    idle_predicted, idle_recorded : float
        Idle experts of a layer, in the last fifth.
    dropped_predicted, dropped_recorded : float
        Share of routes, in the last fifth.
    lost_predicted, lost_recorded : tuple of int
        Layers that have lost experts by then: more than :data:`DEAD` of them are idle on average.
    """

    predicted: Floats
    recorded: Floats
    median: float
    bias: float
    end_predicted: float
    end_recorded: float
    idle_predicted: float
    idle_recorded: float
    dropped_predicted: float
    dropped_recorded: float
    lost_predicted: tuple[int, ...] = ()
    lost_recorded: tuple[int, ...] = ()


def score(predicted: Course, recorded: Course) -> Score:
    """Compare a prediction with its recording, window by window."""
    steps = len(recorded.maxvio)
    mine, theirs = (windows(item.maxvio, steps) for item in (predicted, recorded))
    error = mine / theirs - 1.0

    def end(values: Floats) -> float:
        return float(_tail(values).mean())

    return Score(
        predicted=mine,
        recorded=theirs,
        median=100 * float(np.median(np.abs(error))),
        bias=100 * float(np.median(error)),
        end_predicted=end(predicted.maxvio),
        end_recorded=end(recorded.maxvio),
        idle_predicted=end(predicted.idle),
        idle_recorded=end(recorded.idle),
        dropped_predicted=end(predicted.dropped),
        dropped_recorded=end(recorded.dropped),
        lost_predicted=lost_layers(predicted.idle),
        lost_recorded=lost_layers(recorded.idle),
    )


def _tail(values: Floats) -> Floats:
    return values[-max(len(values) // 5, 1) :]


def lost_layers(idle: Floats) -> tuple[int, ...]:
    """Return the layers that have lost experts, from float[n, L] idle ones: more than :data:`DEAD` on average in the last fifth."""
    return tuple(np.flatnonzero(_tail(idle).mean(axis=0) > DEAD).tolist())


def seed_noise(ends: Mapping[str, Sequence[float]]) -> float:
    """Return by how much the logarithm of final MaxVio scatters from seed to seed: one standard deviation.

    Parameters
    ----------
    ends : mapping
        Of each strategy, the final MaxVio of its trainings; those with one seed say nothing.

    Raises
    ------
    CalibrationError
        If no strategy was trained with two seeds.
    """
    several = [np.log(values) for values in ends.values() if len(values) > 1]
    if not several:
        raise CalibrationError("no strategy was trained with two seeds, so what a seed makes of it is unknown")
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in several)
    return float(np.sqrt(squares / sum(len(values) - 1 for values in several)))


def order_of_strategies(
    predicted: Mapping[str, float], recorded: Mapping[str, Sequence[float]], noise: float
) -> tuple[int, tuple[tuple[str, str], ...]]:
    """Return how many pairs of strategies end further apart than seeds do, and the pairs predicted the other way round, or alike.

    Parameters
    ----------
    predicted : mapping
        Final MaxVio of each strategy.
    recorded : mapping
        Final MaxVio of the trainings of each.
    noise : float
        As :func:`seed_noise` returns it. A pair has an order if the logarithms of its geometric means over n and m seeds are more than
        2 noise sqrt(1 / n + 1 / m) apart: what chance makes of two equal strategies in one case of twenty.
    """
    middle = {name: float(np.log(values).mean()) for name, values in recorded.items()}
    told, wrong = 0, []
    for one, other in combinations(recorded, 2):
        apart = middle[one] - middle[other]
        if abs(apart) > 2.0 * noise * (1.0 / len(recorded[one]) + 1.0 / len(recorded[other])) ** 0.5:
            told += 1
            if apart * (predicted[one] - predicted[other]) <= 0:  # equal predictions know no order either
                wrong.append((one, other))
    return told, tuple(wrong)


def order(scores: Mapping[str, Score]) -> tuple[int, tuple[tuple[str, str], ...]]:
    """Return how many pairs of trainings end with MaxVio further apart than :data:`ALIKE`, and the pairs predicted the other way round."""
    told, wrong = 0, []
    for (one, first), (other, second) in combinations(scores.items(), 2):
        if abs(first.end_recorded - second.end_recorded) > ALIKE * min(first.end_recorded, second.end_recorded):
            told += 1
            if (first.end_recorded - second.end_recorded) * (first.end_predicted - second.end_predicted) <= 0:
                wrong.append((one, other))
    return told, tuple(wrong)
