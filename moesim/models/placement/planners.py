"""Every planner by its kind: pure functions of loads and sizes, without a scenario."""

from __future__ import annotations

from collections.abc import Mapping

from moesim.models.placement.biased_plan import plan_biased
from moesim.models.placement.eplb_plan import plan_eplb
from moesim.models.placement.eplb_sglang_plan import plan_deepseek_vec
from moesim.models.placement.eplb_trtllm_plan import plan_trtllm
from moesim.models.placement.eplb_vllm_plan import plan_vllm
from moesim.models.placement.plan_map import Planner
from moesim.models.placement.simple_plans import plan_contiguous, plan_greedy, plan_round_robin
from moesim.models.placement.topology_plan import plan_topology

PLANNERS: Mapping[str, Planner] = {
    "biased": plan_biased,
    "contiguous": plan_contiguous,
    "eplb": plan_eplb,
    "eplb_sglang": plan_deepseek_vec,
    "eplb_trtllm": plan_trtllm,
    "eplb_vllm": plan_vllm,
    "greedy": plan_greedy,
    "round_robin": plan_round_robin,
    "topology": plan_topology,
}
"""What ``kind`` means wherever a placement is planned from loads alone."""
