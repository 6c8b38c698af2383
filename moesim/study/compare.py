"""Compare variants that were played with the same tokens: paired differences, verdicts, and a winner if there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from moesim.base.errors import UsageError, did_you_mean
from moesim.facts.record import Value
from moesim.measure.collect import metrics as registered
from moesim.study.difference import UNDECIDED, Apart, apart, verdict
from moesim.study.many import ALPHA, confidence_of, holm
from moesim.study.paired import Estimated
from moesim.study.played import Played, Series, basis, contradict, same_choices, series

HEADLINES = (
    "step_time",
    "drop_rate",
    "exposed_communication",
    "waiting_time",
    "rank_max_over_mean",
    "cross_node_bytes",
    "peak_memory",
)
"""What a policy is judged by first. Their verdicts are one family of comparisons, all other metrics a second one, and the metric that
decides who wins a third."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One metric of one variant against the baseline.

    Parameters
    ----------
    value, low, high : float or None
        Variant minus baseline with its own interval of 95 %; None where one of the two has no value, or one piece of evidence no spread.
    corrected_low, corrected_high : float or None
        The interval that leaves out 0 exactly if ``differs``: wider, for the number of comparisons.
    per_cent, per_cent_low, per_cent_high : float or None
        Relative to the baseline, with an interval of 95 %; None if that is 0, the interval also if it may be.
    corrected_per_cent_low, corrected_per_cent_high : float or None
        Its corrected interval.
    p, p_adjusted : float or None
        Two-sided, before and after Holm's correction.
    differs : bool or None
        Whether it is told from 0 at 5 % after correction; None where there is nothing to tell it by.
    verdict : str
        ``better``, ``worse`` or ``not distinguishable``.
    paired : bool
        Whether pieces of evidence were compared one by one.
    n : int
        How many pieces of evidence there are.
    """

    value: float | None
    low: float | None
    high: float | None
    unit: str
    verdict: str
    differs: bool | None
    better: str
    per_cent: float | None = None
    per_cent_low: float | None = None
    per_cent_high: float | None = None
    corrected_low: float | None = None
    corrected_high: float | None = None
    corrected_per_cent_low: float | None = None
    corrected_per_cent_high: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    paired: bool = True
    n: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Winner:
    """The best variant on one metric, if one can be told from all others.

    Parameters
    ----------
    by, better, unit : str
        The metric, its direction and its unit.
    name : str or None
        The winner; None if others cannot be told from the best.
    best, next : str or None
        The two with the best values, whether they can be told apart or not.
    margin, low, high : float or None
        How much better the best is than the next, at least 0, with the interval corrected for all pairs.
    per_cent : float or None
        The margin relative to the next.
    distinguishable : bool
        Whether best and next can be told apart.
    tied : tuple of str
        The best and all that cannot be told from it, in order of their values; the best alone if it won.
    """

    by: str
    better: str
    unit: str
    name: str | None
    best: str | None
    next: str | None
    margin: float | None
    low: float | None
    high: float | None
    per_cent: float | None
    distinguishable: bool
    tied: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What came of a comparison; mappings keep the order of the variants."""

    baseline: str
    metrics: Mapping[str, Mapping[str, Value]]
    differences: Mapping[str, Mapping[str, Difference]]
    winner: Winner
    same_choices: Mapping[str, bool]
    """Whether a variant had the tokens and choices of the baseline in every step."""
    warnings: tuple[str, ...]


def check_objective(by: str) -> None:
    """Refuse a metric that is none, or that has no direction.

    Raises
    ------
    UsageError
        Naming what would have been right.
    """
    known = registered()
    if by not in known:
        raise UsageError(f"--by names no metric: {by!r}{did_you_mean(by, known)}; 'moesim list metrics' shows all")
    if known[by].better == "neither":
        raise UsageError(f"--by {by}: neither more nor less of it is better, so it has no winner; try step_time or drop_rate")


def compare(variants: Sequence[Played], *, baseline: str, by: str = "step_time") -> Comparison:
    """Compare finished variants.

    Parameters
    ----------
    variants : sequence of Played
        At least two, with different names.
    baseline : str
        The name of the one that the others are compared with.
    by : str
        The metric that decides who wins.

    Returns
    -------
    Comparison

    Raises
    ------
    UsageError
        If there are fewer than two variants, names repeat, the baseline is none of them, or ``by`` has no direction.

    Notes
    -----
    Each piece of evidence, a seed or a block of a recording, is played by all variants, and their differences are taken piece by
    piece: what a piece does to all of them cancels. Verdicts hold together at 95 % within each of three families
    (:func:`moesim.study.many.holm`): ``by`` for all pairs of variants, the other :data:`HEADLINES` of all variants, and all other metrics
    of all variants, those without a direction among them. The winner is asked of the pairs, because which one is the best was seen in
    the same data; verdicts on ``by`` come from the same pairs, so that they and the winner never contradict each other.
    """
    check_objective(by)
    names = [variant.name for variant in variants]
    if len(names) < 2:
        raise UsageError(f"a comparison needs at least two variants, and there {'is only ' + names[0] if names else 'are none'}")
    if len(set(names)) < len(names):
        raise UsageError(f"two variants are called {next(name for name in names if names.count(name) > 1)!r}; give each its own name")
    if baseline not in names:
        raise UsageError(f"the baseline {baseline!r} is none of the variants{did_you_mean(baseline, names)}")
    known = registered()
    found = {
        variant.name: {name: series(variant, name, getattr(metric, "summary", "mean")) for name, metric in known.items()}
        for variant in variants
    }
    base = variants[names.index(baseline)]
    same = {variant.name: same_choices(variant, base) for variant in variants}
    judged = {name: one for name, of in found.items() if (one := of[by]) is not None}
    order = _order(judged, known[by])
    pairs = _pairs(judged, order)
    return Comparison(
        baseline=baseline,
        metrics={
            variant.name: {name: _value(variant, name, found[variant.name][name], known[name]) for name in known} for variant in variants
        },
        differences=_differences(found, baseline, known, by, pairs),
        winner=_winner(judged, order, pairs, by, known[by]),
        same_choices=same,
        warnings=_broken(variants, base),
    )


def _value(variant: Played, name: str, found: Series | None, metric: Any) -> Value:
    weak = basis(variant, name)
    if found is None:
        return Value(value=None, unit=metric.unit, low=None, high=None, n=0, basis=weak)
    mean = found.estimate()
    low, high = mean.interval()
    if low is not None:
        low = max(low, min(0.0, float(found.values.min())))  # no metric is below 0 unless a piece of evidence is
    return Value(value=mean.value, unit=metric.unit, low=low, high=high, n=mean.n, basis=weak)


def _differences(
    found: Mapping[str, Mapping[str, Series | None]],
    baseline: str,
    known: Mapping[str, Any],
    by: str,
    pairs: Mapping[frozenset[str], _Pair],
) -> dict[str, dict[str, Difference]]:
    distances = {
        (variant, name): _apart(of[name], found[baseline][name]) for variant, of in found.items() if variant != baseline for name in known
    }
    p_values = {key: None if distance is None else distance.absolute.p_value() for key, distance in distances.items()}
    adjusted = {
        **holm({key: p for key, p in p_values.items() if key[1] in HEADLINES and key[1] != by}),
        **holm({key: p for key, p in p_values.items() if key[1] not in HEADLINES and key[1] != by}),
    }
    for variant in found:
        pair = pairs.get(frozenset({variant, baseline}))
        adjusted[variant, by] = None if pair is None else pair.p_adjusted
    return {
        variant: {
            name: _difference(distances[variant, name], known[name], p_values[variant, name], adjusted[variant, name]) for name in known
        }
        for variant in found
        if variant != baseline
    }


def _difference(distance: Apart | None, metric: Any, p: float | None, adjusted: float | None) -> Difference:
    if distance is None:
        return Difference(value=None, low=None, high=None, unit=metric.unit, verdict=UNDECIDED, differs=None, better=metric.better)
    absolute, part = distance.absolute, distance.relative
    confidence = None if p is None or adjusted is None else confidence_of(p, adjusted)
    low, high = absolute.interval()
    corrected = (None, None) if confidence is None else absolute.interval(confidence)
    per_cent: list[float | None] = [None] * 5
    if part is not None:
        of_part = (None, None) if confidence is None else part.interval(confidence)
        per_cent = [None if number is None else 100 * number for number in (part.value, *part.interval(), *of_part)]
    differs = None if adjusted is None else adjusted <= ALPHA
    return Difference(
        value=absolute.value,
        low=low,
        high=high,
        unit=metric.unit,
        verdict=verdict(absolute.value, metric.better, differs=bool(differs)),
        differs=differs,
        better=metric.better,
        per_cent=per_cent[0],
        per_cent_low=per_cent[1],
        per_cent_high=per_cent[2],
        corrected_low=corrected[0],
        corrected_high=corrected[1],
        corrected_per_cent_low=per_cent[3],
        corrected_per_cent_high=per_cent[4],
        p=p,
        p_adjusted=adjusted,
        paired=distance.paired,
        n=absolute.n,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """Two variants on the metric that decides: what the one with the worse value loses, with its p-value before and after correction."""

    loss: Estimated
    p: float | None
    p_adjusted: float | None

    @property
    def told(self) -> bool:
        return self.p_adjusted is not None and self.p_adjusted <= ALPHA


def _order(judged: Mapping[str, Series], metric: Any) -> list[str]:
    """Return the names from the best value to the worst, names to break ties: which variant was written first decides nothing."""
    sign = 1 if metric.better == "lower" else -1
    return sorted(judged, key=lambda name: (sign * judged[name].estimate().value, name))


def _pairs(judged: Mapping[str, Series], order: Sequence[str]) -> dict[frozenset[str], _Pair]:
    """Return all pairs of variants, corrected for their number."""
    losses = {(one, other): apart(judged[other], judged[one]).absolute for one, other in combinations(order, 2)}
    p_values = {pair: loss.p_value() for pair, loss in losses.items()}
    adjusted = holm(p_values)
    return {frozenset(pair): _Pair(loss=loss, p=p_values[pair], p_adjusted=adjusted[pair]) for pair, loss in losses.items()}


def _winner(judged: Mapping[str, Series], order: Sequence[str], pairs: Mapping[frozenset[str], _Pair], by: str, metric: Any) -> Winner:
    sign = 1 if metric.better == "lower" else -1
    nobody = Winner(
        by=by,
        better=metric.better,
        unit=metric.unit,
        name=None,
        best=order[0] if order else None,
        next=None,
        margin=None,
        low=None,
        high=None,
        per_cent=None,
        distinguishable=False,
        tied=tuple(order),
    )
    if len(order) < 2:
        return nobody
    best, following = order[:2]
    pair = pairs[frozenset({best, following})]
    low, high = _corrected(pair.loss, pair.p, pair.p_adjusted, sign)
    against = judged[following].estimate().value
    tied = (best, *(other for other in order[1:] if not pairs[frozenset({best, other})].told))
    return Winner(
        by=by,
        better=metric.better,
        unit=metric.unit,
        name=best if len(tied) == 1 else None,
        best=best,
        next=following,
        margin=sign * pair.loss.value,
        low=low,
        high=high,
        per_cent=100 * sign * pair.loss.value / against if against else None,
        distinguishable=pair.told,
        tied=tied,
    )


def _corrected(loss: Estimated, p: float | None, adjusted: float | None, sign: int) -> tuple[float | None, float | None]:
    if p is None or adjusted is None:
        return None, None
    low, high = loss.interval(confidence_of(p, adjusted))
    if low is None or high is None:
        return None, None
    return (low, high) if sign > 0 else (-high, -low)


def _apart(of: Series | None, base: Series | None) -> Apart | None:
    return None if of is None or base is None else apart(of, base)


def _broken(variants: Sequence[Played], base: Played) -> tuple[str, ...]:
    """Say where variants that must have the same tokens and choices have not."""
    return tuple(
        f"{variant.name} and {base.name} have the same source and gate, and yet their tokens chose other experts: a plug-in knows what it "
        "must not (law L9), and their differences are not those of the policies alone"
        for variant in variants
        if not variant.learns and variant.draws and variant.draws == base.draws and contradict(variant, base)
    )
