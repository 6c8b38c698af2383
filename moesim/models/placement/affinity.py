"""Experts that are used together, on the same rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import FidelityError
from moesim.base.fields import Choice, Count, File, NotNegative
from moesim.base.registry import register
from moesim.facts.contracts import Plan, View
from moesim.facts.placement import Placement
from moesim.facts.routing import Fidelity, LayerRouting
from moesim.facts.scenario import Setting
from moesim.models.placement.affinity_plan import co_activations, plan_affinity, transitions
from moesim.models.placement.group_sizes import GroupSizes, group_sizes
from moesim.models.placement.simple_plans import experts_in_order
from moesim.models.placement.static import Once

WHO = "placement 'affinity'"


@register("placement", "affinity")
@dataclass(frozen=True, slots=True, kw_only=True)
class Affinity:
    """Place experts that the same tokens use on the same rank, or else in the same node, without making any rank too heavy.

    Needs to know the experts of each token. With a ``trace`` it plans once, before the run; otherwise every ``interval`` steps from the
    last ``look_back`` steps, and the run starts with experts in order. There are no redundant experts, and every rank holds equally many.

    Parameters
    ----------
    use : str
        ``together``: experts of one layer, so that fewer copies of a token travel where an exchange sends a rank or node only one.
        ``consecutive``: experts of one layer and of the next, as ExFlow does for engines whose tokens stay at their experts; where
        tokens return home between layers, as in every exchange of this version, that saves nothing.
    slack : float
        How much heavier than under ``greedy`` the heaviest rank of a layer may be by the loads planned from: 0.1 by default, ours. ExFlow
        has no limit.
    trace : file or None
        Recorded routing to plan from; take another one than the run replays, or the plan knows its future.
    look_back : int
        Steps whose tokens are counted; 10 by default, ours.
    interval : int
        Steps between plans; 1000 by default, as in SGLang.

    Notes
    -----
    Source: Yao et al., "Exploiting Inter-Layer Expert Affinity" (ExFlow), arXiv:2401.08383; YJHMITWEB/ExFlow, ``solve_affinity.py``. How it
    is solved: :func:`~moesim.models.placement.affinity_plan.plan_affinity`.
    """

    use: Annotated[str, Choice(("together", "consecutive"))] = "together"
    slack: NotNegative = 0.1
    trace: File | None = None
    look_back: Count = 10
    interval: Count = 1000

    def begin(self, setting: Setting) -> Plan:
        """Return the plan for one run.

        Raises
        ------
        PluginError
            If the experts do not divide over the ranks.
        TraceError
            If the trace belongs to another model.
        FidelityError
            If the trace knows no tokens.
        """
        sizes = group_sizes(setting, 0, WHO)
        if self.trace is None:
            return _FromRecent(self, sizes, look_back=self.look_back, due=self.interval)
        from moesim.models.source.recorded import check_fits

        recording = setting.read_trace(self.trace)
        check_fits(recording, setting.model)
        recording.need(Fidelity.TOKENS, WHO)
        ids = np.asarray(recording.ids)
        return Once(self.placement(sizes, [[ids[:, layer] for layer in range(sizes.layers)]]))

    def placement(self, sizes: GroupSizes, steps: Sequence[Sequence[NDArray[Any]]]) -> Placement:
        """Return the plan from the tokens of steps: for each step and layer, int[T, k] chosen experts."""
        layers, experts = sizes.layers, sizes.experts
        loads = np.zeros((layers, experts), dtype=np.int64)
        together = np.zeros((layers, experts, experts), dtype=np.int64)
        following = np.zeros((max(layers - 1, 0), experts, experts), dtype=np.int64)
        for step in steps:
            for layer, ids in enumerate(step):
                loads[layer] += np.bincount(ids[ids >= 0], minlength=experts)
                if self.use == "together":
                    together[layer] += co_activations(ids, experts)
                elif layer:
                    following[layer - 1] += transitions(step[layer - 1], ids, experts)
        planned = plan_affinity(
            loads,
            gpus=sizes.gpus,
            nodes=sizes.nodes,
            together=together if self.use == "together" else None,
            following=following if self.use == "consecutive" else None,
            slack=self.slack,
        )
        return planned.placement


@dataclass(slots=True)
class _FromRecent:
    """Plan every so often from the tokens of the last steps."""

    policy: Affinity
    sizes: GroupSizes
    look_back: int
    due: int

    def __call__(self, view: View) -> Placement | None:
        """Return experts in order first, then a new plan whenever one is due."""
        if view.placement is None:
            return self.sizes.placement(experts_in_order(self.sizes.experts, self.sizes.slots))
        if view.step < self.due:
            return None
        self.due += (view.step - self.due) // self.policy.interval * self.policy.interval + self.policy.interval
        return self.policy.placement(self.sizes, [[layer.need_ids(WHO) for layer in step] for step in recent_steps(view, WHO)])


def recent_steps(view: View, who: str) -> Sequence[Sequence[LayerRouting]]:
    """Return the routes of the last steps, or refuse on behalf of ``who`` where nobody kept them.

    Raises
    ------
    FidelityError
        If there are none.
    """
    if not view.recent:
        raise FidelityError(f"{who} needs the routes of the last steps at step {view.step}, but only the loads of experts were kept")
    return view.recent
