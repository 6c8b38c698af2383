"""Group-limited (node-limited, device-limited) routing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from moesim.base.fields import Choice, Count
from moesim.base.registry import register
from moesim.facts.contracts import Choose
from moesim.facts.routing import LayerRouting
from moesim.facts.scenario import Setting
from moesim.models.gate.groups import GROUP_SCORES, best_groups, checked_groups
from moesim.models.gate.scoring import SCORINGS, Scored
from moesim.models.gate.select import chosen


@register("gate", "group_limited")
@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLimited(Scored):
    """Choose the k best experts out of the best few groups; with one group per node a token goes to that many nodes at most.

    Parameters
    ----------
    groups : int or None
        Groups of consecutive experts; the model's by default.
    top_groups : int or None
        M, the groups that a token may choose from; the model's by default.
    group_score : str
        What groups are compared by: ``top2``, the sum of their 2 best experts (DeepSeek-V3, SGLang, vLLM, torchtitan, DeepSpeed);
        ``megatron``, the sum of their best k // M; ``max``, their single best (DeepSeek-V2). The first two are the same where k // M is 2.

    Notes
    -----
    Sources: see :func:`moesim.models.gate.groups.best_groups`. The gate ``loss_free`` has the same limits and a bias.
    """

    scoring: Annotated[str, Choice(SCORINGS)] = "sigmoid"
    groups: Count | None = None
    top_groups: Count | None = None
    group_score: Annotated[str, Choice(GROUP_SCORES)] = "top2"

    def begin(self, setting: Setting) -> Choose:
        """Return the gate for one run.

        Raises
        ------
        PluginError
            If the groups do not fit the model.
        """
        who, top_k = "gate 'group_limited'", setting.model.top_k
        limits = checked_groups(who, setting.model, self.groups, self.top_groups, self.group_score)

        def choose(routing: LayerRouting, *, step: int, moe_layer: int) -> LayerRouting:  # noqa: ARG001 - the contract of the slot
            ids, weights = self.choose_best(routing.need_scores(who), lambda scores: best_groups(scores, *limits), top_k, who)
            return chosen(routing, ids, weights)

        return choose
