"""Whether a candidate meets a target, and how surely."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moesim.base.stats import student_quantile
from moesim.facts.arrays import Floats
from moesim.facts.target import AT_MOST, Target
from moesim.study.cell import Answer, Cell
from moesim.study.plan_bounds import Bound

MET, MISSED, OPEN = "met", "missed", "open"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One combination of alternatives.

    Parameters
    ----------
    name : str
        For people.
    axes : mapping of str to scalar
        What was chosen, by dotted key.
    gpus : int
    gpu : str
        Name of the GPU.
    memory : float
        Bytes of one GPU.
    price : float or None
        Of a GPU for an hour.
    cells : tuple of Cell
        One per replicate.
    bounds : tuple of Bound
        What no run of it can beat.
    problem : str
        Why it is no candidate at all; then nothing else is known.
    """

    name: str
    axes: dict[str, Any]
    gpus: int = 0
    gpu: str = ""
    memory: float = 0.0
    price: float | None = None
    cells: tuple[Cell, ...] = ()
    bounds: tuple[Bound, ...] = ()
    problem: str = ""

    @property
    def cost_per_hour(self) -> float | None:
        """Of all its GPUs."""
        return None if self.price is None else self.price * self.gpus

    def cost_per_million(self, tokens_per_second: float) -> float:
        """Return what a million tokens cost at such a rate."""
        per_hour = self.cost_per_hour
        return math.inf if per_hour is None or tokens_per_second <= 0 else per_hour / 3600.0 / tokens_per_second * 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """The mean of a metric over steps and replicates with the two one-sided bounds; None where too few samples tell.

    ``exact`` marks a number that a run has once: it has no spread to speak of, and counts as it is.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    exact: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of one target.

    Parameters
    ----------
    target : Target
    mean : Mean
    outcome : str
        ``met``: the one-sided bound is on the right side. ``missed``: the mean is not. ``open``: the mean is, but the bound is not, or
        there is none.
    miss : float
        By how much the mean misses the limit, as a share of it; negative is room to spare; infinite where nothing is known.
    """

    target: Target
    mean: Mean
    outcome: str
    miss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A candidate and what became of it.

    Parameters
    ----------
    candidate : Candidate
    status : str
        ``meets``, ``misses``, ``undecided`` (it would meet, but not with the confidence asked for), ``pruned`` (a bound says that it must
        miss), ``invalid``, ``failed`` or ``not tried`` (dearer than a plan that meets all targets).
    verdicts : tuple of Verdict
        One per target that was looked at.
    means : dict of str to Mean
        Of the metrics that tables show.
    reason : str
        Of a status that needs one.
    pruned_by : str
        The name of the bound.
    """

    candidate: Candidate
    status: str
    verdicts: tuple[Verdict, ...] = ()
    means: dict[str, Mean] = field(default_factory=dict)
    reason: str = ""
    pruned_by: str = ""

    @property
    def worst(self) -> float:
        """By how much it misses the target that it misses most, as a share of the limit; infinite where nothing is known."""
        return max((verdict.miss for verdict in self.verdicts), default=math.inf)

    @property
    def missed(self) -> tuple[Verdict, ...]:
        """Verdicts that are not ``met``."""
        return tuple(verdict for verdict in self.verdicts if verdict.outcome != MET)


def mean_of(samples: Sequence[Floats], confidence: float, *, summary: str = "mean") -> Mean:
    """Return the mean of one metric over replicates.

    Parameters
    ----------
    samples : sequence of float[n]
        Per replicate, one number per independent step; NaN where it cannot tell.
    confidence : float
        Of each one-sided bound.
    summary : str
        ``max`` takes the largest number of all; ``whole`` one number per replicate; ``mean`` every step.
    """
    known = [values[~np.isnan(values)] for values in samples]
    known = [values for values in known if values.size]
    if not known:
        return Mean(value=None)
    if summary == "max":
        return Mean(value=max(float(values.max()) for values in known), n=len(known), exact=True)
    pooled = np.array([values.mean() for values in known]) if summary == "whole" else np.concatenate(known)
    count = int(pooled.size)
    if pooled.min() == pooled.max():
        same = float(pooled[0])
        return Mean(value=same, low=same, high=same, n=count) if count > 1 else Mean(value=same, n=1, exact=summary == "whole")
    mean = float(pooled.mean())
    # One-sided: of a two-sided interval that covers 2 c - 1, each end is exceeded with probability 1 - c.
    half = student_quantile(count - 1, 2.0 * confidence - 1.0) * float(pooled.std(ddof=1)) / math.sqrt(count)
    return Mean(value=mean, low=mean - half, high=mean + half, n=count)


def verdict_of(target: Target, mean: Mean, memory: float) -> Verdict:
    """Return what a mean says of a target."""
    if mean.value is None:
        return Verdict(target=target, mean=mean, outcome=OPEN, miss=math.inf)
    miss = target.miss(mean.value, memory)
    if not target.met_by(mean.value, memory):
        return Verdict(target=target, mean=mean, outcome=MISSED, miss=miss)
    sure = mean.value if mean.exact else mean.high if target.sense == AT_MOST else mean.low
    shown = sure is not None and target.met_by(sure, memory)
    return Verdict(target=target, mean=mean, outcome=MET if shown else OPEN, miss=miss)


def samples_of(answers: Sequence[Answer], metric: str) -> list[Floats]:
    """Return the independent samples of a metric, one array per replicate; a replicate that repeats another is no evidence."""
    found: list[Floats] = []
    seen: set[bytes] = set()
    for answer in answers:
        # A source that knows no chance gives the same run for every seed.
        mark = b"".join(name.encode() + np.asarray(values).tobytes() for name, values in sorted(answer.samples.items()))
        if mark in seen:
            continue
        seen.add(mark)
        values = answer.samples.get(metric)
        if values is not None:
            fresh = answer.fresh if len(answer.fresh) == len(values) else np.ones(len(values), dtype=np.bool_)
            found.append(np.asarray(values, dtype=np.float64)[fresh])
    return found
