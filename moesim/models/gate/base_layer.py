"""BASE layers: every GPU deals its tokens out evenly, so that the scores add up to as much as they can."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.base.errors import FidelityError, PluginError
from moesim.base.registry import register
from moesim.facts.contracts import Choose
from moesim.facts.routing import LayerRouting
from moesim.facts.scenario import Setting
from moesim.models.gate.auction import balanced_assignment
from moesim.models.gate.scoring import score_by
from moesim.models.gate.select import blocks, chosen, largest


@register("gate", "base")
@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """Assign each GPU's tokens so that every expert gets equally many and the total score is as large as it can be; k is 1.

    In training only: prefill and decode take the expert of the largest score, and are not balanced. Where the experts do not divide
    the tokens of a GPU, no expert gets more than the next whole number. The gate weight is the sigmoid of the score.

    Notes
    -----
    Source: Lewis et al., arXiv:2103.16716, and facebookresearch/fairseq, ``fairseq/modules/base_layer.py``, whose assignment is 97 to
    100 % of the best (see :func:`moesim.models.gate.auction.balanced_assignment` for the one here). fairseq may shuffle tokens over the
    GPUs before, with an all-to-all of its own; that is not part of a gate.
    """

    def begin(self, setting: Setting) -> Choose:
        """Return the gate for one run.

        Raises
        ------
        PluginError
            If the model's tokens choose more than one expert.
        """
        who = "gate 'base'"
        if setting.model.top_k != 1:
            raise PluginError(f"{who} makes 1 choice per token, but the model has top_k {setting.model.top_k}; use gate 'sinkhorn'")
        training = setting.workload.phase == "training"

        def choose(routing: LayerRouting, *, step: int, moe_layer: int) -> LayerRouting:  # noqa: ARG001 - the contract of the slot
            scores = routing.need_scores(who).astype(np.float32)
            wrong = np.flatnonzero(~np.isfinite(scores).all(axis=1))
            if wrong.size:
                raise FidelityError(f"{who}: token {int(wrong[0])} has a score that is not finite; check the recorded scores")
            if training:
                ids = np.empty((len(scores), 1), dtype=np.int32)
                for first, last in blocks(routing):
                    ids[first:last, 0] = balanced_assignment(scores[first:last])
            else:
                ids = largest(scores, 1, who)
            return chosen(routing, ids, score_by("sigmoid", np.take_along_axis(scores, ids, axis=1)))

        return choose
