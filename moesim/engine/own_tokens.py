"""What GPUs compute of the tokens that start on them: attention, dense blocks, gate and shared experts, each GPU its own batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from moesim.base.errors import PluginError
from moesim.facts.arrays import Floats, Ints
from moesim.facts.contracts import Kernels
from moesim.facts.program import Work
from moesim.facts.routing import Kept
from moesim.facts.scenario import Setting
from moesim.models.schedule.tensor import cut_model, is_cut
from moesim.models.stages import stage_setting
from moesim.models.work import dense_work


class OwnTokens:
    """The seconds of one step's kernels that do not depend on routing; equal work is timed once.

    Parameters
    ----------
    setting : Setting
        Of one stage of a pipeline.
    kernels : Kernels
    step : int
        Whose ranks may have other tokens and contexts than those of other steps.
    """

    def __init__(self, setting: Setting, kernels: Kernels, step: int) -> None:
        self._setting = setting
        self._kernels = kernels
        self._contexts = None if setting.workload.ranks is None else setting.contexts_of_gpus(step)
        self._known: dict[tuple[str, str, bytes], Floats] = {}

    def seconds(self, work: Work, direction: str, own: Ints) -> Floats:
        """Return float[G].

        Parameters
        ----------
        work : Work
            A phase other than experts and optimiser.
        direction : str
            ``forward`` or ``backward``.
        own : int[G]
            Tokens that start on each GPU, of the work's micro-batch.
        """
        setting = self._setting
        tensor = setting.parallel.tp
        model, computed = setting.model, setting.computed_tokens(own)
        cut = is_cut(work, setting.parallel)
        if cut:
            model, computed = cut_model(model, tensor), setting.of_tensor_groups(computed)
        key = (work.phase, direction, computed.tobytes() + own.tobytes())
        if key not in self._known:
            context: Floats | int = setting.workload.context
            if self._contexts is not None:
                # Padding and dummies read nothing: what own tokens read is divided by all that are computed.
                read = own * self._contexts
                context = (setting.of_tensor_groups(read) if cut else read) / np.maximum(computed, 1)
            cost = dense_work(work.phase, model, computed, context, direction, workload_phase=setting.workload.phase)
            self._known[key] = self._kernels.dense(cost.flops, cost.moved, dtype=cost.dtype)
        return self._known[key]


def with_padded_rows(kept: Kept, own: Ints, setting: Setting) -> Kept:
    """Return what a capacity rule left, and beside it the rows of padding and dummies where they travel.

    Parameters
    ----------
    kept : Kept
    own : int[G]
        Tokens that start on each GPU.
    setting : Setting
        Rows that are added all go to the experts 0 to k - 1, as tokens that are all alike do.
    """
    ranks = setting.workload.ranks
    if ranks is None or ranks.padded_rows == "masked":
        return kept
    added = setting.computed_tokens(own) - own
    if not added.any():
        return kept
    rows = np.zeros_like(kept.padding)
    rows[:, : setting.model.top_k] = added[:, None]
    sent = None if kept.sent is None else dataclasses.replace(kept.sent, padding=kept.sent.padding + rows)
    return dataclasses.replace(kept, padding=kept.padding + rows, sent=sent)


def check_ranks(setting: Setting, drawn: Ints, step: int) -> None:
    """Refuse a source that drew other tokens than the ranks of the workload have.

    Raises
    ------
    PluginError
        Naming the first GPU, and what the source should ask.
    """
    if setting.workload.ranks is None:
        return
    wanted = setting.tokens_of_gpus(step)
    if not np.array_equal(drawn, wanted):
        gpu = int(np.argmax(drawn != wanted))
        raise PluginError(
            f"step {step}: the source drew {drawn[gpu]} tokens on GPU {gpu}, where workload.ranks says {wanted[gpu]}: it should cut its "
            "tokens by setting.token_start(step)"
        )


def held_tokens(setting: Setting, tokens: Ints, steps: Ints) -> tuple[Ints, Floats]:
    """Return what a GPU holds activations and cache for: int[N, G] tokens, padding included, and float[N, G], what each of them reads.

    Parameters
    ----------
    setting : Setting
        All GPUs.
    tokens : int[N, G]
        That start on each, by step.
    steps : int[N]
        The numbers of the steps.
    """
    if setting.workload.ranks is None:
        return tokens, np.full(tokens.shape, float(setting.workload.context))
    stage = stage_setting(setting)
    contexts = np.stack([np.tile(stage.contexts_of_gpus(step), setting.parallel.pp) for step in steps.tolist()])
    computed = np.stack([setting.computed_tokens(own) for own in tokens])
    return computed, tokens * contexts / np.maximum(computed, 1)


def mean_context(setting: Setting, tokens: Sequence[Ints], first: int) -> int | None:
    """Return what a token attends to on average over some steps, at least 1; None where the workload has one context for all.

    Parameters
    ----------
    setting : Setting
        All GPUs.
    tokens : sequence of int[G]
        That start on each GPU, by step.
    first : int
        The number of the first of these steps.
    """
    if setting.workload.ranks is None:
        return None
    own = np.stack(tokens)
    computed, read = held_tokens(setting, own, np.arange(first, first + len(own)))
    return max(round(float((computed * read).sum() / own.sum())), 1)
