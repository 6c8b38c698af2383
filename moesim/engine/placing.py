"""Where the experts are when a run begins."""

from __future__ import annotations

from typing import Any

import numpy as np

from moesim.base.errors import PluginError
from moesim.facts.contracts import Plan, PlanBatch, View
from moesim.facts.placement import Placement
from moesim.facts.scenario import Setting


def check_type(answer: object, who: str) -> None:
    """Refuse what is no placement, on behalf of ``who``.

    Raises
    ------
    PluginError
        Naming the type that came instead.
    """
    if not isinstance(answer, Placement):
        raise PluginError(f"{who} returned {type(answer).__name__}, expected a Placement, or None to keep the present one (law L11)")


def first_placement(plan: Any, setting: Setting, begun: Plan | None = None) -> Placement:
    """Return where the experts are when a run begins, checked against law L11; ``begun`` is the plan of the run, if it goes on.

    Raises
    ------
    PluginError
        If the plug-in returns none, or one that breaks the law.
    """
    model = setting.model
    begun = plan.begin(setting) if begun is None else begun
    if setting.parallel.etp > 1 and isinstance(begun, PlanBatch):
        raise PluginError(
            f"placement {plan.kind!r} places the experts of every group anew for each batch, but with etp = {setting.parallel.etp} several "
            "groups share every expert: write etp: 1, or choose a placement that is the same in all groups"
        )
    placement = begun(View(step=0, loads=np.zeros((0, len(model.moe_layers), model.experts), dtype=np.int64), placement=None))
    if placement is None:
        raise PluginError(f"placement {plan.kind!r} returned nothing at its first call: experts must be somewhere from the start")
    check_type(placement, f"placement {plan.kind!r}")
    placement.check(layers=len(model.moe_layers), experts=model.experts, ranks=setting.parallel.ep, who=f"placement {plan.kind!r}")
    return placement
