"""Loss-free balancing: a bias per expert, which follows the load."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np

from moesim.base.errors import PluginError
from moesim.base.fields import Choice, Count, Flag
from moesim.base.registry import register
from moesim.facts.arrays import Ints
from moesim.facts.contracts import Choose
from moesim.facts.routing import Kept, LayerRouting
from moesim.facts.scenario import Setting
from moesim.models.gate.groups import GROUP_SCORES, best_groups, checked_groups
from moesim.models.gate.memory import Memory, Vector
from moesim.models.gate.scoring import SCORINGS, Scored
from moesim.models.gate.select import chosen
from moesim.models.router.coefficients import Changing, at_step

WHO = "gate 'loss_free'"


@register("gate", "loss_free")
@dataclass(frozen=True, slots=True, kw_only=True)
class LossFree(Scored):
    """Choose by score plus a bias that rises for experts with too few tokens and falls for those with too many, step by step.

    After every step the bias of each expert of each layer changes by ``rate`` times the sign of (mean load - its load); loads are routes
    of the whole batch, over all GPUs. The bias starts at 0 and changes choices only: gate weights come from the scores without it.

    Parameters
    ----------
    rate : float or list
        Gamma, in units of scores; or its corners ``[[step, gamma], ...]``, straight lines between them.
    update : str
        ``sign``, or ``proportional``: ``rate`` times (mean load - load) / mean load.
    count : str
        Which routes are the load: those chosen, ``before`` any is dropped (DeepSeek-V3, torchtitan), or those kept, ``after`` (as
        Megatron-Core counts: an overloaded expert then shows its capacity at most).
    centre : bool
        Subtract the mean of the changes (torchtitan). It moves all biases of a layer together, and so no choice.
    groups : int or None
        Groups of consecutive experts of which a token may use a few (see ``group_limited``), scored with the bias; the model's by default,
        1 for none.
    top_groups : int or None
        The groups that a token may choose from; the model's by default.
    group_score : str
        ``top2``, ``megatron`` or ``max``, as for ``group_limited``.

    Notes
    -----
    Sources: Wang et al., arXiv:2408.15664, algorithm 1 (0.001 and the sign; the paper's proportional variant does not give the unit of the
    load, so it is relative here); DeepSeek-V3, arXiv:2412.19437, section 2.1.2; NVIDIA/Megatron-LM, ``moe_utils.py``,
    ``get_updated_expert_bias``; pytorch/torchtitan, ``components/optimizer/optimizer.py``, ``_update_expert_bias``.
    """

    scoring: Annotated[str, Choice(SCORINGS)] = "sigmoid"
    rate: Changing = 1e-3
    update: Annotated[str, Choice(("sign", "proportional"))] = "sign"
    count: Annotated[str, Choice(("before", "after"))] = "before"
    centre: Flag = False
    groups: Count | None = None
    top_groups: Count | None = None
    group_score: Annotated[str, Choice(GROUP_SCORES)] = "top2"

    def begin(self, setting: Setting) -> Choose:
        """Return the gate for one run; the biases are its own.

        Raises
        ------
        PluginError
            If the groups do not fit the model.
        """
        limits = checked_groups(WHO, setting.model, self.groups, self.top_groups, self.group_score)
        return LossFreeRun(gate=self, top_k=setting.model.top_k, limits=limits, memory=Memory(setting.model.experts, self.next_bias))

    def next_bias(self, bias: Vector, load: Ints, step: int = 0) -> Vector:
        """Return float32[E], the bias after step ``step`` with int[E] routes to each expert."""
        mean = load.sum() / load.size
        if mean == 0:
            return bias
        short = mean - load
        change = np.sign(short) if self.update == "sign" else short / mean
        if self.centre:
            change = change - change.mean()
        return np.asarray(bias + change.astype(np.float32) * np.float32(at_step(self.rate, step)), dtype=np.float32)


@dataclass(slots=True)
class LossFreeRun:
    """The gate in one run, with its biases."""

    gate: LossFree
    top_k: int
    limits: tuple[int, int, int]
    memory: Memory
    unanswered: dict[int, int] = field(default_factory=dict)
    """The latest step of each layer of whose drops nothing is known yet."""

    def __call__(self, routing: LayerRouting, *, step: int, moe_layer: int) -> LayerRouting:
        """Return the choices under the biases that earlier steps made."""
        if self.unanswered.get(moe_layer, step) < step:
            raise PluginError(
                f"{WHO} with count: after must learn what was dropped in step {self.unanswered[moe_layer]}, but nobody said; "
                "call its learn(kept, step=..., moe_layer=...), or write count: before"
            )
        bias = self.memory.at(step, moe_layer)
        ids, weights = self.gate.choose_best(
            routing.need_scores(WHO), lambda scores: best_groups(scores + bias, *self.limits), self.top_k, WHO
        )
        answer = chosen(routing, ids, weights)
        if self.gate.count == "before":
            self.memory.saw(answer.counts.sum(axis=0), step=step, moe_layer=moe_layer)
        else:
            self.unanswered[moe_layer] = step
        return answer

    def learn(self, kept: Kept, *, step: int, moe_layer: int) -> None:
        """Take note of the routes that the capacity rule kept; they count from the next step on."""
        if self.gate.count == "after":
            self.unanswered.pop(moe_layer, None)
            self.memory.saw(kept.routing.counts.sum(axis=0), step=step, moe_layer=moe_layer)
