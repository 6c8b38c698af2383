"""Groups of experts: a token chooses from its best groups only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import PluginError
from moesim.facts.model import MoeModel
from moesim.models.compiled_loops import loops_for

GROUP_SCORES = ("top2", "megatron", "max")
"""Sum of the 2 best experts (DeepSeek-V3); sum of the best k // M (Megatron-Core); the single best (DeepSeek-V2)."""
ADDED_IN_ORDER = 8
"""NumPy adds so many numbers one after another; of more it makes several sums."""


def experts_that_count(rule: str, top_k: int, top_groups: int) -> int:
    """Return how many of its best experts make the score of a group."""
    return {"top2": 2, "megatron": top_k // top_groups, "max": 1}[rule]


def checked_groups(who: str, model: MoeModel, groups: int | None, top_groups: int | None, rule: str) -> tuple[int, int, int]:
    """Return groups, how many of them a token may use, and how many experts make the score of a group; those of the model by default.

    Raises
    ------
    PluginError
        On behalf of ``who``, if the groups do not divide the experts or leave a token too few of them.
    """
    groups = model.groups if groups is None else groups
    top_groups = min(model.top_groups, groups) if top_groups is None else top_groups
    if model.experts % groups:
        raise PluginError(f"{who}: {model.experts} experts do not divide into {groups} groups")
    if top_groups > groups:
        raise PluginError(f"{who}: top_groups ({top_groups}) is larger than groups ({groups})")
    size = model.experts // groups
    if top_groups * size < model.top_k:
        raise PluginError(
            f"{who}: {top_groups} of {groups} groups hold {top_groups * size} experts, but a token chooses {model.top_k}; raise top_groups"
        )
    count = experts_that_count(rule, model.top_k, top_groups)
    if top_groups < groups and not 1 <= count <= size:
        raise PluginError(
            f"{who}: group_score: {rule} adds up the best {count} experts of a group, but a group has {size}; choose another of "
            f"{', '.join(GROUP_SCORES)}"
        )
    return groups, top_groups, count


def best_groups(scores: NDArray[Any], groups: int, top_groups: int, count: int) -> NDArray[Any]:
    """Return float[T, E], ``scores`` with minus infinity outside each token's best groups.

    Parameters
    ----------
    scores : float[T, E]
        What experts are chosen by. The experts of a group have consecutive ids.
    groups : int
        G, a divisor of E.
    top_groups : int
        How many groups a token may use; of groups of equal score the lower.
    count : int
        A group's score is the sum of its best so many experts.

    Notes
    -----
    Source: torchtitan, ``models/common/moe.py``, and sgl-project/sglang, ``biased_grouped_topk_impl`` (2 experts); NVIDIA/Megatron-LM,
    ``moe_utils.py``, ``group_limited_topk`` (k // M); DeepSeek-V2, arXiv:2405.04434, section 2.2.2 (1).
    """
    tokens, experts = scores.shape
    if top_groups >= groups:
        return scores
    loops = loops_for(scores) if count <= ADDED_IN_ORDER and scores.dtype == np.float32 else None
    limited = np.empty_like(scores)
    if loops is not None and loops.within_best_groups(limited, scores, groups, top_groups, count):
        return limited
    by_group = scores.reshape(tokens, groups, experts // groups)
    best = np.sort(by_group, axis=2)[:, :, -count:]
    # Largest first, as a top-k would add them: the order of single-precision sums.
    total = best[:, :, ::-1].sum(axis=2)
    order = np.argsort(-total, axis=1, kind="stable")[:, :top_groups]
    allowed = np.zeros((tokens, groups), dtype=np.bool_)
    np.put_along_axis(allowed, order, True, axis=1)
    return np.asarray(np.where(allowed[:, :, None], by_group, scores.dtype.type(-np.inf)).reshape(tokens, experts))
