"""TensorRT-LLM's expert-parallel load balancer."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from moesim.base.fields import CountOrZero, Efficiency
from moesim.base.registry import register
from moesim.facts.arrays import Ints
from moesim.facts.contracts import Plan, View
from moesim.facts.placement import Placement
from moesim.facts.scenario import Setting
from moesim.models.placement.eplb_trtllm_plan import plan_trtllm
from moesim.models.placement.group_sizes import GroupSizes, group_sizes


@register("placement", "eplb_trtllm")
@dataclass(frozen=True, slots=True, kw_only=True)
class EplbTrtllm:
    """Re-place a few layers in every step, in turn, from loads that fade with time, as TensorRT-LLM's online balancer does.

    Every step the load of an expert becomes ``decay`` times what it was plus the step's routes. With n layers per step the layers form
    ceil(L / n) classes, layer l in class l mod their number, and the classes take turns; if all are equally large, a turn without any
    follows the last. A layer is planned as DeepSeek's global algorithm does, ties apart. What a step plans is in place in the next one.
    Rank r starts with the experts from ``r E / ep`` on (rounded down, and wrapping around), so redundant slots hold the first experts
    of the next rank.

    Parameters
    ----------
    redundant : int
        ``num_slots`` minus experts; their memory is charged. 0 by default.
    layer_updates_per_iter : int
        Layers that are planned in a step; 2 by default, as in the documentation's example. 0 keeps the start for ever.
    decay : float
        Of the statistics, per step; 0.9 by default (``decayFactor``).

    Notes
    -----
    Source: NVIDIA/TensorRT-LLM, ``moeLoadBalancer.cpp`` (``generateUpdatePlan``, ``doReplication``, ``doPlacement``),
    ``moeLoadBalanceCommon.h`` and ``updateLoadFactorKernel``; ``examples/wide_ep/ep_load_balancer/README.md``.
    """

    redundant: CountOrZero = 0
    layer_updates_per_iter: CountOrZero = 2
    decay: Efficiency = 0.9

    def begin(self, setting: Setting) -> Plan:
        """Return the plan for one run.

        Raises
        ------
        PluginError
            If the slots do not divide over the ranks.
        """
        sizes = group_sizes(setting, self.redundant, "placement 'eplb_trtllm'")
        return _Online(sizes=sizes, turns=update_turns(sizes.layers, self.layer_updates_per_iter), decay=self.decay)


def update_turns(layers: int, each: int) -> tuple[Ints, ...]:
    """Return the layers of each turn.

    Source: NVIDIA/TensorRT-LLM, ``moeLoadBalancer.cpp``, ``generateUpdatePlan``.

    Examples
    --------
    >>> [turn.tolist() for turn in update_turns(5, 2)]
    [[0, 3], [1, 4], [2]]
    >>> [turn.tolist() for turn in update_turns(4, 2)]
    [[0, 2], [1, 3], []]
    """
    if each == 0:
        return (np.zeros(0, dtype=np.int64),)
    classes = -(-layers // each)
    turns = [np.arange(turn, layers, classes) for turn in range(classes)]
    if len(turns[0]) == len(turns[-1]):
        turns.append(np.zeros(0, dtype=np.int64))
    return tuple(turns)


@dataclass(slots=True)
class _Online:
    """The state of one run: faded loads, and what is in place."""

    sizes: GroupSizes
    turns: tuple[Ints, ...]
    decay: float
    load: np.ndarray = field(init=False)
    seen: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.load = np.zeros((self.sizes.layers, self.sizes.experts), dtype=np.float32)

    def __call__(self, view: View) -> Placement | None:
        """Return the placement with this turn's layers planned anew, or None if the turn has none."""
        sizes = self.sizes
        for routes in view.loads[self.seen :]:
            self.load = self.load * np.float32(self.decay) + routes.astype(np.float32)
        self.seen = len(view.loads)
        if view.placement is None:
            rank, place = np.divmod(np.arange(sizes.slots), sizes.slots // sizes.gpus)
            return sizes.placement((rank * sizes.experts // sizes.gpus + place) % sizes.experts)
        turn = self.turns[(view.step - 1) % len(self.turns)]
        if view.step < 1 or not len(turn):
            return None
        planned = np.array(view.placement.expert_of_slot)
        planned[turn] = plan_trtllm(self.load[turn], slots=sizes.slots, gpus=sizes.gpus).physical_to_logical_map
        return Placement(expert_of_slot=planned, rank_of_slot=view.placement.rank_of_slot)
