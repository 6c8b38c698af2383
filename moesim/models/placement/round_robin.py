"""Experts dealt to the ranks one by one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.base.registry import register
from moesim.facts.contracts import Plan
from moesim.facts.scenario import Setting
from moesim.models.placement.static import Once, experts_per_rank, same_in_all_layers


@register("placement", "round_robin")
@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRobin:
    """Put expert e on rank e mod ep, so that neighbouring experts (a routing group) lie on different ranks.

    Notes
    -----
    Source: vllm-project/vllm, ``determine_expert_map``, strategy ``round_robin``.
    """

    def begin(self, setting: Setting) -> Plan:
        """Return the plan for one run.

        Raises
        ------
        PluginError
            If the experts do not divide over the ranks of a group.
        """
        per_rank = experts_per_rank(setting, "placement 'round_robin'")
        # Slots lie rank by rank; column r of the table of experts in order is what rank r gets.
        return Once(same_in_all_layers(setting, np.arange(setting.model.experts).reshape(per_rank, setting.parallel.ep).T.ravel()))
