"""What the model of the expert FFN must be told of a row of a table: rows of the hottest rank, tiles, and the data sheet."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import CalibrationError
from moesim.facts.arrays import Floats, Ints
from moesim.models.fitted.expert_ffn import TILINGS, loads_of
from moesim.models.fitted.routing_draws import (
    BY_RANK,
    distinct_tokens,
    even_rows,
    hottest_rank,
    pareto_rows,
    power_law_rows,
    rows_by_rank,
    uniforms_of,
)
from moesim.models.fitted.rows import Rows, count, numbers, words
from moesim.study.validation.machines import peaks, presets_of
from moesim.study.validation.number_formats import format_of, has_units, peak_flops

DRAWS = 12
"""Routings over which a time is averaged: the tables average five, whose seeds nobody knows."""

WIDE = 2.0
"""Bytes of an element that is not narrow."""

SAMPLED = "sampled"
"""Kind of a distribution whose tokens sample their experts one by one by heavy-tailed weights."""

Local = tuple[Ints, Ints]
"""int[D, S] rows of the experts of a rank, int[D, E] rows of all experts of its group."""


def ffn_inputs(
    rows: Rows,
    kernel: str,
    local: Callable[[Rows, int], Local],
    slots: Floats,
    regime: NDArray[np.str_],
    received: Floats | None = None,
) -> dict[str, NDArray[Any]]:
    """Return the inputs of :class:`moesim.models.fitted.expert_ffn.ExpertFfn`.

    Parameters
    ----------
    rows : Rows
        With system, moe_dtype, hidden_size, inter_size, topk, num_experts, moe_ep_size, distribution and num_tokens (of the whole group).
    kernel : str
        A key of ``TILINGS``.
    local : callable
        From rows and a row's index to the rows of experts.
    slots : Floats[n]
        Experts that a rank holds.
    regime : str array [n]
        By which the scatter is told apart.
    received : Floats[n], optional
        Tokens that the call was given, where those are fewer than the group's and known.

    Raises
    ------
    CalibrationError
        If a number format or a distribution is not known.
    """
    size = count(rows)
    presets, formats = presets_of(words(rows, "system")), [format_of(name) for name in words(rows, "moe_dtype").tolist()]
    tiling = TILINGS[kernel]
    # A GPU without units for narrow operands unpacks weights and computes in 16 bits: rows are then as wide, and kernels as efficient.
    unpacked = ~has_units(presets, np.asarray([form.arithmetic for form in formats]))
    row_bytes = np.asarray([form.row_bytes for form in formats])
    row_bytes = np.where(unpacked, np.maximum(row_bytes, WIDE), row_bytes)
    narrow = row_bytes < WIDE
    routes = numbers(rows, "num_tokens") * numbers(rows, "topk")
    given = numbers(rows, "num_tokens") if received is None else received
    mean, sms = given * numbers(rows, "topk") / numbers(rows, "num_experts"), peaks(presets, "sms")
    wide, deep = 2 * numbers(rows, "inter_size"), numbers(rows, "hidden_size")
    (heights, across), (second, second_across) = (
        tiling.tiles(mean, narrow, groups=slots, columns=columns, sms=sms) for columns in (wide, deep)
    )
    parts = [_loads(local, rows, row, int(heights[row]), int(second[row])) for row in range(size)]
    most = max((len(part[0]) for part in parts), default=1)
    active, routed, tiles, others, reached, seconds = (
        (np.stack([_filled(part[index], most) for part in parts]) for index in range(6)) if parts else (np.zeros((0, 1)),) * 6
    )
    whole = np.broadcast_to(routes[:, None], routed.shape)
    # A rank sums over all choices of every token that reached it, those of other ranks included: they are looked at, and skipped.
    reached = reached if received is None else np.broadcast_to(received[:, None], reached.shape)
    summed = whole if tiling.whole_group else reached * numbers(rows, "topk")[:, None]
    return {
        "active": active,
        "routed": routed,
        "tiles": tiles,
        "empty_tiles": others if tiling.whole_group else np.zeros_like(others),
        "moved_rows": whole if tiling.whole_group else routed,
        "summed_rows": summed,
        "tile_rows": heights.astype(np.float64),
        "tile_columns": across,
        "second_tiles": seconds,
        "second_tile_rows": second.astype(np.float64),
        "second_tile_columns": second_across,
        "slots": slots,
        "num_tokens": numbers(rows, "num_tokens"),
        "ranks": numbers(rows, "moe_ep_size"),
        "hidden_size": numbers(rows, "hidden_size"),
        "inter_size": numbers(rows, "inter_size"),
        "weight_bytes": np.asarray([form.weight_bytes for form in formats]),
        "row_bytes": row_bytes,
        "narrow": narrow,
        "regime": regime,
        "memory_bandwidth": peaks(presets, "memory_bandwidth"),
        "sms": sms,
        "peak_flops": peak_flops(presets, np.asarray([form.arithmetic for form in formats])),
    }


def _loads(local: Callable[[Rows, int], Local], rows: Rows, row: int, height: int, second: int) -> tuple[Floats, ...]:
    """Return active experts, rows, tiles, others' tiles, tokens that reach the rank, and tiles of the second GEMM."""
    own, group = local(rows, row)
    first = loads_of(own, group, height)
    below = first[2] if second == height else loads_of(own, group, second)[2]
    return (*first, distinct_tokens(own, int(rows["num_tokens"][row])), below)


def _filled(values: Floats, length: int) -> Floats:
    """Repeat draws until there are ``length``: the mean stays, for ``length`` is a multiple or the only draw is repeated."""
    return np.resize(values, length)


def distribution_of(name: str) -> tuple[str, float]:
    """Return the kind of a distribution and its exponent: ``even``, ``power_law`` or ``sampled``.

    Raises
    ------
    CalibrationError
        If the name is not known.
    """
    if name in {"balanced", "uniform"}:
        return "even", 0.0
    parts = name.removesuffix("_eplb").split("_")
    try:
        if parts[:2] == ["power", "law"] and len(parts) == 3:
            return "power_law", float(parts[2])
        if parts[:3] == ["power", "law", SAMPLED] and len(parts) == 4 and float(parts[3]) > 1:
            return SAMPLED, float(parts[3])
    except ValueError:
        pass
    raise CalibrationError(
        f"the distribution {name!r} is not known: balanced, uniform, power_law_A, power_law_A_eplb and power_law_sampled_A (A above 1) are"
    )


@lru_cache(maxsize=8192)
def hot_rows(name: str, experts: int, top_k: int, ranks: int, tokens: int, dealing: str = BY_RANK, draws: int = DRAWS) -> Local:
    """Return the rows of the hottest rank's experts, and those of all experts.

    Raises
    ------
    CalibrationError
        If experts do not divide over ranks, or the distribution is not known.
    """
    if experts % ranks:
        raise CalibrationError(f"{experts} experts do not divide over {ranks} ranks")
    kind, exponent = distribution_of(name)
    if kind == "even":
        rows = even_rows(tokens * top_k, experts)[None]
        return rows[:, : experts // ranks], rows
    rows = drawn_rows(kind, exponent, experts, top_k, ranks, tokens, dealing, draws)
    return hottest_rank(rows_by_rank(rows, ranks)), rows


def drawn_rows(kind: str, exponent: float, experts: int, top_k: int, ranks: int, tokens: int, dealing: str, draws: int) -> Ints:
    """Return int[draws, experts], the rows of every expert in so many batches of a skewed distribution."""
    if kind == SAMPLED:
        return pareto_rows(exponent, tokens=tokens, top_k=top_k, experts=experts, draws=draws)
    uniforms = uniforms_of(draws, experts, "hottest rank", experts)
    return power_law_rows(uniforms, exponent, tokens=tokens, top_k=top_k, ranks=ranks, dealing=dealing)
