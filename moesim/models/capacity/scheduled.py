"""A capacity factor that changes over the steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

from moesim.base.errors import FieldError
from moesim.base.fields import Count, CountOrZero
from moesim.base.registry import PluginOf, register
from moesim.facts.contracts import Limit
from moesim.facts.routing import Kept, LayerRouting
from moesim.facts.scenario import Setting
from moesim.models.router.coefficients import Corners, OverSteps, at_step


@register("capacity", "scheduled")
@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled:
    """Apply another capacity rule with a factor that changes from step to step.

    Parameters
    ----------
    of : plug-in
        The rule, one with a ``factor``; the one that stands there does not count.
    factor : float or list
        The factor, or its corners ``[[step, factor], ...]``: in a straight line between them, and constant before and after.
    first, stride : int
        Step s of the run is step ``first + s stride`` of the schedule. Give the numbers of the source ``training``, whose simulated steps
        stand for several training steps; within ``routing.capacity`` steps are training steps already, so leave them out.

    Notes
    -----
    No framework that was looked at changes its capacity factor while it trains, but for evaluation (DeepSpeed's ``eval_capacity_factor``,
    V-MoE's evaluation ratio); this is for asking what it would give.
    """

    of: Annotated[Any, PluginOf("capacity")]
    factor: Annotated[Corners, OverSteps(1e-6)]
    first: CountOrZero = 0
    stride: Count = 1

    def __post_init__(self) -> None:
        if not hasattr(self.of, "factor") or self.of.kind == "scheduled":
            raise FieldError("of", f"the rule {self.of.kind!r} has no factor that could change: take one that has, such as megatron")

    def begin(self, setting: Setting) -> Limit:
        """Return the rule for one run."""
        begun: dict[float, Limit] = {}

        def limit(routing: LayerRouting, *, step: int, moe_layer: int) -> Kept:
            factor = at_step(self.factor, self.first + step * self.stride)
            if factor not in begun:
                begun.clear()  # factors do not come back, but for constant ones
                begun[factor] = replace(self.of, factor=factor).begin(setting)
            return begun[factor](routing, step=step, moe_layer=moe_layer)

        return limit
