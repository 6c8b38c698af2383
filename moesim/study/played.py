"""A variant as it was played, and its pieces of evidence about each metric."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from moesim.facts.arrays import Floats, Ints
from moesim.facts.evidence import weakest
from moesim.study.batches import batches, joined
from moesim.study.cell import Answer
from moesim.study.paired import Estimated, estimate

CHOICES = ("expert_max_over_mean", "expert_cv", "maxvio")
"""Metrics that follow from the tokens and the gate alone; two runs with the same tokens and choices agree in them to the last bit."""

TIMES = ("step_time", "exposed_communication", "waiting_time")
"""Metrics that hardly agree to the last bit in two runs with different tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """One variant of a comparison after its runs.

    Parameters
    ----------
    name : str
        Of the variant.
    answers : tuple of Answer
        Of its finished runs: one per seed, or a single long one.
    seeds : tuple of int
        The seed of each.
    serial : bool
        Whether the pieces of evidence are the steps of one run, the first, rather than runs with seeds of their own.
    blocks : int[steps] or None
        Which block of tokens each measured step of the first run had. Steps with the same block share their tokens.
    draws : str
        A digest of all that the source and the gate know: variants with the same draws must have the same tokens and choices (law L9).
    learns : bool
        Whether the gate learns from what became of its choices; then the same draws need not be the same choices.
    """

    name: str
    answers: tuple[Answer, ...]
    seeds: tuple[int, ...]
    serial: bool = False
    blocks: Ints | None = None
    draws: str = ""
    learns: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """What a variant's runs say of one metric: a value per piece of evidence, what to pair it by, and how much it counts.

    ``serial`` says that the pieces are blocks of one run, in order, whose neighbours may be alike; otherwise they are runs with seeds of
    their own. ``whole`` marks a number that a run has only once.
    """

    labels: tuple[int, ...]
    values: Floats
    weights: Floats
    serial: bool

    def estimate(self) -> Estimated:
        """Estimate the mean."""
        if not self.serial:
            return estimate(self.values, self.weights, scale=float(np.abs(self.values).max()))
        values, weights = joined(self.values, self.weights, batches(self.values, self.weights))
        return estimate(values, weights, scale=float(np.abs(self.values).max()))


def series(played: Played, metric: str, summary: str) -> Series | None:
    """Return the pieces of evidence about one metric, None if no run can tell.

    Parameters
    ----------
    played : Played
    metric : str
    summary : str
        How the metric makes one value of its steps: ``mean``, ``max`` or ``whole``.

    Notes
    -----
    With several seeds a piece is a run: its mean over steps, its largest step, or its one number. In a single run a piece is a block of
    tokens: the mean (or the largest) of the steps that had these tokens, counted as often as there were such steps. A ``whole`` metric of
    a single run is one piece.
    """
    if not played.serial or summary == "whole" or played.blocks is None:
        found = [
            (seed, answer.metrics[metric].value)
            for seed, answer in zip(played.seeds, played.answers, strict=True)
            if metric in answer.metrics and answer.metrics[metric].value is not None
        ]
        if not found:
            return None
        values = np.array([value for _, value in found], dtype=np.float64)
        seeds = (0,) if played.serial else tuple(seed for seed, _ in found)
        return Series(labels=seeds, values=values, weights=np.ones(len(found)), serial=played.serial)
    samples = played.answers[0].samples.get(metric)
    if samples is None or np.isnan(samples).all():
        return None
    known = ~np.isnan(samples)
    blocks, first, at, count = np.unique(played.blocks[known], return_index=True, return_inverse=True, return_counts=True)
    if summary == "max":
        values = np.full(len(blocks), -np.inf)
        np.maximum.at(values, at, samples[known])
    else:
        values = np.bincount(at, weights=samples[known]) / count
    order = np.argsort(first, kind="stable")  # as they were played
    return Series(
        labels=tuple(int(block) for block in blocks[order]), values=values[order], weights=count[order].astype(np.float64), serial=True
    )


def basis(played: Played, metric: str) -> str:
    """Return the weakest evidence that a metric of these runs rests on."""
    return weakest(answer.metrics[metric].basis for answer in played.answers if metric in answer.metrics)


def choices_of_steps(answer: Answer) -> tuple[str, ...]:
    """Return a digest for each measured step of a run: equal where the routers' choices loaded the experts equally."""
    rows = [np.asarray(answer.samples[name], dtype=np.float64) for name in CHOICES if name in answer.samples]
    table = np.stack(rows, axis=1) if rows else np.zeros((len(answer.steps), 0))
    return tuple(hashlib.sha256(row.tobytes()).hexdigest()[:16] for row in np.ascontiguousarray(table))


def same_choices(one: Played, other: Played) -> bool:
    """Tell whether two variants had the same tokens and choices, step for step, in every run that both have."""
    mine = dict(zip(one.seeds, one.answers, strict=True))
    others = dict(zip(other.seeds, other.answers, strict=True))
    both = [seed for seed in mine if seed in others]
    return bool(both) and all(_pairs(mine[seed], others[seed]) for seed in both)


def contradict(one: Played, other: Played) -> bool:
    """Tell whether two variants had other tokens or choices in a step that both measured, in a run that both have."""
    mine = dict(zip(one.seeds, one.answers, strict=True))
    others = dict(zip(other.seeds, other.answers, strict=True))
    return any(_differ(mine[seed], others[seed]) for seed in mine if seed in others)


def are_copies(played: Played) -> bool:
    """Tell whether several seeds gave exactly the same run: then its source knows no chance, or replays the same tokens to every seed."""
    first, *rest = played.answers
    return bool(rest) and all(_copies(first, other) for other in rest)


def as_one_run(played: Played) -> Played:
    """Return a variant with its first run only, whose steps are then the pieces of evidence: copies under other seeds are none."""
    return replace(played, answers=played.answers[:1], seeds=played.seeds[:1], serial=True)


def _pairs(one: Answer, other: Answer) -> bool:
    return np.array_equal(one.steps, other.steps) and choices_of_steps(one) == choices_of_steps(other)


def _differ(one: Answer, other: Answer) -> bool:
    _, mine, others = np.intersect1d(one.steps, other.steps, return_indices=True)
    # expert_cv is a number of the whole run, and differs with its length.
    names = [name for name in CHOICES if name != "expert_cv" and name in one.samples and name in other.samples]
    return any(
        not np.allclose(one.samples[name][mine], other.samples[name][others], rtol=1e-9, atol=1e-12, equal_nan=True) for name in names
    )


def _copies(one: Answer, other: Answer) -> bool:
    # Not all metrics: a bound may draw numbers of its own by seed.
    names = [name for name in (*CHOICES, *TIMES) if name in one.samples and name in other.samples]
    return bool(names) and all(np.array_equal(one.samples[name], other.samples[name], equal_nan=True) for name in names)
