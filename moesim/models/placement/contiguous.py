"""Experts in order, an equal block to each rank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.base.registry import register
from moesim.facts.contracts import Plan
from moesim.facts.scenario import Setting
from moesim.models.placement.static import Once, experts_per_rank, same_in_all_layers


@register("placement", "contiguous")
@dataclass(frozen=True, slots=True, kw_only=True)
class Contiguous:
    """Put experts 0 to n - 1 on rank 0, the next n on rank 1, and so on, with n = E / ep.

    Notes
    -----
    Source: the default of NVIDIA/Megatron-LM (``local_expert_indices`` of ``megatron/core/transformer/moe/moe_layer.py``) and of
    vllm-project/vllm (``determine_expert_map``, strategy ``linear``).
    """

    def begin(self, setting: Setting) -> Plan:
        """Return the plan for one run.

        Raises
        ------
        PluginError
            If the experts do not divide over the ranks of a group.
        """
        experts_per_rank(setting, "placement 'contiguous'")
        return Once(same_in_all_layers(setting, np.arange(setting.model.experts)))
