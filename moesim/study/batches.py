"""Steps of one run as independent pieces of evidence: means of batches, as long as neighbours are alike."""

from __future__ import annotations

import numpy as np

from moesim.facts.arrays import Floats, Ints

TESTED = 8
"""The fewest batches on which a correlation of neighbours can be told from chance at all."""

BY_CHANCE = 0.8416212335729143
"""The 80 % quantile of the normal distribution: how large a correlation times the square root of the batches may be.

A stricter test misses correlations that already spoil an interval: with 95 % instead of 80 %, intervals of 60 steps whose neighbours are
correlated by 0.7 covered the mean in 84 instead of 89 of 100 trials, at the same cover without correlation.
"""


def batches(values: Floats, weights: Floats) -> list[Ints]:
    """Say which neighbouring steps to join, so that the means of neighbouring batches are no longer correlated.

    Parameters
    ----------
    values : float[n]
        One number per step, in the order in which the steps were played.
    weights : float[n]
        How much each counts, more than 0.

    Returns
    -------
    list of int[...]
        The steps of each batch, by their index; together 0 … n - 1 in order.

    Notes
    -----
    A policy that looks at past loads, and a recording whose neighbouring tokens belong to one conversation, make neighbouring steps
    alike; an interval that takes them as independent is then too narrow. So batches have at least ``n ** (1/3)`` steps (the rate at which
    the error of the estimated variance falls fastest: Flegal and Jones, Annals of Statistics 38, 2010). Their size is doubled while the
    lag-1 correlation of their means is significant at 20 % (after Fishman, Management Science 24, 1978), as long as there are the 8
    batches that such a test needs. Of fewer than 8 steps each is a batch of its own: so few cannot show how correlated they are.

    Examples
    --------
    >>> [part.tolist() for part in batches(np.array([1.0, 2.0, 4.0]), np.ones(3))]
    [[0], [1], [2]]
    """
    count, size = len(values), 1
    while (size + 1) ** 3 <= count:
        size += 1
    while True:
        # What is left over makes the first batches one step longer.
        parts = np.array_split(np.arange(count), max(count // size, 1))
        means, _ = joined(values, weights, parts)
        if len(parts) < TESTED or neighbour_correlation(means) * np.sqrt(len(means)) <= BY_CHANCE:
            return parts
        size *= 2


def joined(values: Floats, weights: Floats, parts: list[Ints]) -> tuple[Floats, Floats]:
    """Return the weighted mean of each batch, and the sum of its weights.

    Parameters
    ----------
    values, weights : float[n]
        One per step.
    parts : list of int[...]
        From :func:`batches`.
    """
    sums = np.array([weights[part].sum() for part in parts])
    return np.array([float(values[part] @ weights[part]) for part in parts]) / sums, sums


def neighbour_correlation(values: Floats) -> float:
    """Return the lag-1 autocorrelation of a series; 0 for one that never changes.

    Parameters
    ----------
    values : float[n]
        At least one.

    Examples
    --------
    >>> round(neighbour_correlation(np.array([1.0, 2.0, 3.0, 4.0])), 2)
    0.25
    """
    deviation = values - values.mean()
    spread = float(deviation @ deviation)
    return float(deviation[1:] @ deviation[:-1]) / spread if spread > 0 else 0.0
