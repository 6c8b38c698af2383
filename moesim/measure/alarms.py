"""Alarms over the steps of a run: what is wrong with its routing, in which layer, since which step, and what to try."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moesim.base.balance_health import noise_floor
from moesim.facts.arrays import Bools, Floats
from moesim.facts.record import Table

PATIENCE = 5
"""Measured steps in a row for which something must hold before it is an alarm: one step proves nothing."""
DEAD = 20
"""Measured steps without work after which an expert counts as dead."""
SWING = -0.3
"""Correlation of loads with those of the step before, below which a bias overshoots: independent loads have 0, stable ones nearly 1."""
RISING = 2.0
"""How many times as far apart loads must be as in the first measured steps, before that counts as rising."""
STALE = 1.2
"""How much more uneven ranks are than right after the last placement, before that placement counts as stale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """Something that is wrong with routing; ``moe_layer`` is -1 if it concerns all layers."""

    name: str
    moe_layer: int
    step: int
    sentence: str
    advice: str


def find_alarms(tables: Mapping[str, Table], *, experts: int, top_k: int, tokens: float, phase: str, ranks: int) -> tuple[Alarm, ...]:
    """Return the alarms of a run, in the order of the steps in which they began.

    Parameters
    ----------
    tables : mapping of str to Table
        ``layers``, ``ranks`` and, if the placement changed, ``rebalances``.
    experts, top_k : int
        E and k.
    tokens : float
        Tokens of a step, over all GPUs.
    phase : str
        ``training``, ``prefill`` or ``decode``.
    ranks : int
        Of an expert-parallel group.

    Notes
    -----
    One alarm of a kind per layer, for the first time it held for :data:`PATIENCE` measured steps in a row.
    """
    found: list[Alarm] = []
    layers = tables["layers"]
    floor = noise_floor(experts, top_k, tokens)
    for layer in np.unique(layers["moe_layer"]):
        mine = layers.where(layers["moe_layer"] == layer)
        steps = mine["step"]
        violation = np.divide(mine["expert_max"], mine["expert_mean"], out=np.ones(len(mine)), where=mine["expert_mean"] > 0) - 1.0

        def add(name: str, holds: Bools, sentence: str, advice: str, at: int = int(layer), steps: Floats = steps) -> None:
            start = _lasting(holds)
            if start is not None:
                found.append(Alarm(name=name, moe_layer=at, step=int(steps[start]), sentence=sentence, advice=advice))

        idle = mine["idle_experts"]
        add(
            "collapse",
            idle >= experts / 2,
            f"at least half of the {experts} experts of MoE layer {layer} have almost no load (up to {int(idle.max(initial=0))} of them)",
            "raise the auxiliary loss or switch on a bias early; collapse feeds itself and seldom heals",
        )
        dead = mine["idle_longest"] >= DEAD
        if dead.any() and not (idle >= experts / 2).any():
            first = int(np.flatnonzero(dead)[0])
            found.append(
                Alarm(
                    name="dead expert",
                    moe_layer=int(layer),
                    step=int(steps[first]) - DEAD + 1,
                    sentence=f"an expert of MoE layer {layer} has had almost no load for {int(mine['idle_longest'].max())} steps",
                    advice="a bias or quantiles bring single experts back; the auxiliary loss alone often does not",
                )
            )
        add(
            "oscillating bias",
            (np.nan_to_num(mine["load_correlation"], nan=0.0) < SWING) & (violation > 2 * floor),
            f"loads of MoE layer {layer} swing: experts above the mean in one step are below it in the next",
            "lower the rate of the bias (or of the loss), or update it less often",
        )
        spread = np.nan_to_num(mine["load_cv"])
        rising = _rising(spread, math.sqrt((1 - top_k / experts) * experts / (top_k * tokens)) if tokens else 0.0)
        add(
            "rising variance",
            rising & (idle < experts / 2),
            f"loads of MoE layer {layer} come apart: they varied by {spread[:PATIENCE].mean():.2f} x their mean at first, and by up to "
            f"{spread.max():.2f} x since",
            "imbalance feeds itself: switch balancing on now, or strengthen it, before experts die",
        )
        by_domain = mine["domain_information"]
        known = bool(np.count_nonzero(~np.isnan(by_domain)) >= PATIENCE)  # what is known of domains says more than what GPUs happen to have
        information = by_domain if known else mine["source_information"]
        before = np.maximum.accumulate(np.nan_to_num(information))
        add(
            "over-balancing",
            (before > 0.01) & (information < 0.1 * before) & (violation < 1.5 * floor),
            f"experts of MoE layer {layer} no longer differ by text ({information[-1]:.2g} bit now, {before[-1]:.2g} before)",
            "weaken the loss, or take it over the whole batch instead of each sequence",
        )
    found += _unrealistic(tables, floor, phase, ranks)
    found += _stale(tables)
    return tuple(sorted(found, key=lambda alarm: (alarm.step, alarm.moe_layer, alarm.name)))


def _rising(spread: Floats, floor: float) -> Bools:
    """Return bool[steps], where loads are much further apart than in the first steps, and than chance alone would put them."""
    return np.asarray(spread > RISING * max(float(spread[:PATIENCE].mean()), floor))


def _lasting(holds: Bools) -> int | None:
    """Return the index at which something began to hold for :data:`PATIENCE` steps in a row, or None."""
    if len(holds) < PATIENCE:
        return None
    together = np.convolve(holds.astype(np.int64), np.ones(PATIENCE, dtype=np.int64), mode="valid")
    where = np.flatnonzero(together == PATIENCE)
    return int(where[0]) if where.size else None


def _unrealistic(tables: Mapping[str, Table], floor: float, phase: str, ranks: int) -> list[Alarm]:
    """Find routing as even as chance allows, which serving a trained model never meets, and ranks without any work."""
    layers, held = tables["layers"], tables["ranks"]
    found = []
    if phase != "training" and len(layers) and floor:
        violation = np.divide(layers["expert_max"], layers["expert_mean"], out=np.ones(len(layers)), where=layers["expert_mean"] > 0) - 1.0
        mean = float(violation.mean())
        if mean <= 1.1 * floor:
            found.append(
                Alarm(
                    name="unrealistic routing",
                    moe_layer=-1,
                    step=int(layers["step"][0]),
                    sentence=f"experts are as even as chance allows (MaxVio {mean:.2f}, a balanced router of this size has {floor:.2f})",
                    advice="trained models are less even: replay a recording, or use the source router",
                )
            )
    if ranks > 1 and len(held):
        by_gpu = np.bincount(held["gpu"], weights=held["rows"])
        empty = np.flatnonzero(by_gpu == 0)
        if empty.size:
            found.append(
                Alarm(
                    name="ranks without work",
                    moe_layer=-1,
                    step=int(held["step"][0]),
                    sentence=f"{empty.size} of {by_gpu.size} GPUs got no row in any step (GPU {int(empty[0])} first)",
                    advice="a generator of routing may leave ranks out; if this is meant, nothing is wrong",
                )
            )
    return found


def _stale(tables: Mapping[str, Table]) -> list[Alarm]:
    """After the last placement came into force, ranks were even; if they are not any more, the placement is stale."""
    if "rebalances" not in tables:
        return []
    layers = tables["layers"]
    placed = tables["rebalances"]["in_place_step"]
    placed = placed[placed >= 0]
    steps = np.unique(layers["step"])
    if not placed.size or not len(steps):
        return []
    since = steps[steps >= placed.max()]
    if len(since) < 2 * PATIENCE:
        return []
    uneven = np.array([_mean_ratio(layers.where(layers["step"] == step)) for step in since])
    fresh = float(uneven[:PATIENCE].mean())
    start = _lasting(np.asarray(uneven > STALE * fresh))
    if start is None:
        return []
    return [
        Alarm(
            name="stale placement",
            moe_layer=-1,
            step=int(since[start]),
            sentence=f"ranks were at {fresh:.2f} x the mean right after the placement of step {int(placed.max())}, and are at "
            f"{float(uneven[start:].mean()):.2f} x since",
            advice="rebalance more often, or plan from a shorter window",
        )
    ]


def _mean_ratio(layers: Table) -> float:
    return float(np.divide(layers["rank_max"], layers["rank_mean"], out=np.ones(len(layers)), where=layers["rank_mean"] > 0).mean())
