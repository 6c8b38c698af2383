"""The routings that tables of a hottest rank name, drawn as their generator draws them; the tokens that reach the rank tell them apart."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from moesim.base.errors import CalibrationError
from moesim.facts.arrays import Ints
from moesim.models.fitted.routing_draws import BY_SIZE, filled_tokens, rows_by_rank
from moesim.models.placement.eplb_plan import plan_eplb
from moesim.study.validation.ffn_inputs import distribution_of, drawn_rows

CANDIDATES, NEAREST, ALIKE = 64, 6, 0.02
"""Of so many draws, those count whose hottest rank is reached by as many tokens as the table says, within this share (twelve of them), or
else the nearest six. Where all tokens reach the rank in any case the number tells nothing, and draws of all kinds count."""

REPLICATED = "_eplb"

Drawn = tuple[Ints, Ints]
"""int[D, S] rows of the slots of the hottest rank, int[D] tokens that reach it."""


@lru_cache(maxsize=8192)
def drawn_before(name: str, experts: int, top_k: int, ranks: int, tokens: int) -> Drawn:
    """Return draws with the experts in order, equally many on every rank.

    Raises
    ------
    CalibrationError
        If experts do not divide over ranks, or the distribution has no exponent.
    """
    if experts % ranks:
        raise CalibrationError(f"{experts} experts do not divide over {ranks} ranks")
    rows = _drawn(name, experts, top_k, ranks, tokens)
    hottest = rows_by_rank(rows, ranks).sum(axis=2).argmax(axis=1)
    per = experts // ranks
    local = hottest[:, None] * per + np.arange(per)
    return np.take_along_axis(rows, local, axis=1), filled_tokens(rows, tokens, local)


@lru_cache(maxsize=512)
def drawn_after(name: str, experts: int, top_k: int, slots: int, ranks: int, sizes: tuple[int, ...]) -> dict[int, Drawn]:
    """Return draws after EPLB placed the experts by their true rows, for several numbers of tokens.

    Replicas share their expert's rows. Shares are rounded down, and what is then missing goes to the largest fractions, of equals to the
    hottest rank's first, as the published generator does it (``_generate_power_law_distribution_with_eplb``).

    Raises
    ------
    CalibrationError
        If slots do not divide over ranks, or the distribution has no exponent.
    """
    if slots % ranks:
        raise CalibrationError(f"{slots} slots do not divide over {ranks} ranks")
    loads = np.concatenate([_drawn(name, experts, top_k, ranks, tokens) for tokens in sizes])
    # All batches are problems of one call: the planner takes one step for all of them.
    plan = plan_eplb(loads, slots=slots, gpus=ranks)
    shares = np.take_along_axis(loads / plan.logical_count, plan.physical_to_logical_map, axis=1)
    by_rank = shares[:, np.argsort(plan.rank_of_slot, kind="stable")].reshape(len(loads), ranks, -1)
    hottest = by_rank.sum(axis=2).argmax(axis=1)
    # The order of slots decides ties: the hottest rank's come first.
    turn = np.argsort(np.arange(ranks) != hottest[:, None], axis=1, kind="stable")
    shares = np.take_along_axis(by_rank, turn[:, :, None], axis=1).reshape(len(loads), slots)
    rows = np.floor(shares + 1e-9).astype(np.int64)
    order = np.argsort(rows - shares, axis=1, kind="stable")
    lost = loads.sum(axis=1) - rows.sum(axis=1)
    np.put_along_axis(rows, order, np.take_along_axis(rows, order, axis=1) + (np.arange(slots) < lost[:, None]), axis=1)
    local = np.broadcast_to(np.arange(slots // ranks), (CANDIDATES, slots // ranks))
    found = {}
    for index, tokens in enumerate(sizes):
        part = rows[index * CANDIDATES : (index + 1) * CANDIDATES]
        found[tokens] = (part[:, : slots // ranks], filled_tokens(part, tokens, local))
    return found


def _drawn(name: str, experts: int, top_k: int, ranks: int, tokens: int) -> Ints:
    kind, exponent = distribution_of(name)
    if kind == "even":
        raise CalibrationError(f"the distribution {name!r} has no exponent: power_law_A or power_law_A{REPLICATED} is expected")
    return drawn_rows(kind, exponent, experts, top_k, ranks, tokens, BY_SIZE, CANDIDATES)


def like_recorded(drawn: Drawn, tokens: int, seen: float) -> Ints:
    """Return the rows of the draws whose rank is reached by a number of tokens like ``seen``, scaled to be reached by just that.

    Parameters
    ----------
    drawn : Drawn
        All draws.
    tokens : int
        Of the whole group: no expert has more rows.
    seen : float
        Tokens that reached the rank, above 0.

    Returns
    -------
    Ints[d, S]
    """
    rows, reached = drawn
    off = np.abs(np.log(np.maximum(reached, 0.5) / seen))
    alike = np.flatnonzero(off <= ALIKE)
    if len(alike) >= 2 * NEAREST:
        chosen = alike[np.linspace(0, len(alike) - 1, 2 * NEAREST).astype(np.int64)]
    else:
        chosen = np.sort(np.argsort(off, kind="stable")[:NEAREST])
    scale = seen / np.maximum(reached[chosen], 1)[:, None]
    scaled = np.clip(np.rint(rows[chosen] * scale).astype(np.int64), 1, tokens)
    return np.where(rows[chosen] > 0, scaled, 0)
