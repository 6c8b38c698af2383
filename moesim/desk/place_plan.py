"""Plan a placement from loads, and say what an engine is to load."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import UsageError, did_you_mean
from moesim.desk.place_loads import Loads
from moesim.desk.placement_files import Planned
from moesim.facts.arrays import Floats
from moesim.facts.model import MoeModel
from moesim.models.placement.plan_map import PlacementPlan
from moesim.models.placement.planners import PLANNERS
from moesim.models.placement.simple_plans import plan_contiguous

TIMED = 5
"""How often planning is repeated to say how long it takes; what was compiled or loaded for it has been by then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What the plan is for; None where it follows from the rest."""

    slots: int | None
    gpus: int | None
    nodes: int | None
    groups: int | None
    experts: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A plan, and what it was made of.

    Parameters
    ----------
    kind : str
        Of the planner.
    name : str
        Of the loads.
    loads : float[L, E]
        Summed over steps.
    planned_from : float[L, E] or float[steps, L, E]
        What the planner was given.
    plan : PlacementPlan
    in_order : float[L, G] or None
        Loads of the GPUs with experts in order and no replicas; None if they do not divide over the GPUs.
    sizes : Sizes
        All of them.
    layers : tuple of int or None
        The number of each layer in the model.
    model : MoeModel or None
    notes : tuple of str
        Warnings.
    """

    kind: str
    name: str
    loads: Floats
    planned_from: NDArray[Any]
    plan: PlacementPlan
    in_order: Floats | None
    sizes: Sizes
    layers: tuple[int, ...] | None
    model: MoeModel | None
    notes: tuple[str, ...]

    @property
    def gpu_load(self) -> Floats:
        """float[L, G]: every expert's load split evenly over its replicas."""
        return self.plan.rank_loads(self.loads, int(self.sizes.gpus or 1))


def number_of(layers: Sequence[int] | None, row: int) -> int:
    """Return the number of a row's layer in the model, or of the row where that is not known."""
    return row if layers is None else layers[row]


def place(given: Loads, kind: str, sizes: Sizes, model: MoeModel | None = None) -> Placed:
    """Plan a placement.

    Parameters
    ----------
    given : Loads
        What to plan by.
    kind : str
        One of ``PLANNERS``.
    sizes : Sizes
        What a run's scenario or the model says is taken from there where it is None: the ranks of a group and their nodes, the experts'
        groups, as many slots as experts.
    model : MoeModel, optional
        That of the run, if it is not given.

    Raises
    ------
    UsageError
        If there is no such kind, or loads and model do not fit.
    PluginError
        If the sizes do not fit each other.
    """
    if kind not in PLANNERS:
        raise UsageError(f"--kind: there is no planner {kind!r}{did_you_mean(kind, PLANNERS)}")
    model = model if model is not None or given.scenario is None else given.scenario.model
    loads, notes = _all_experts(given, sizes.experts, model)
    layers = given.layers if model is None else _layers(given, model, loads)
    whole = _completed(sizes, given, model, loads.shape[-1])
    plan = _plan(kind, loads, whole)
    total = np.asarray(loads if loads.ndim == 2 else loads.sum(axis=0), dtype=np.float64)
    experts = total.shape[1]
    in_order = None
    gpus = int(whole.gpus or 1)
    if experts % gpus == 0:
        in_order = plan_contiguous(total, slots=experts, gpus=gpus, nodes=int(whole.nodes or 1), groups=int(whole.groups or 1)).rank_loads(
            total, gpus
        )
    idle = np.flatnonzero(total.sum(axis=1) == 0)
    if idle.size and (model is None or len(total) == len(model.moe_layers)):
        notes.append(
            f"layer {number_of(layers, int(idle[0]))} has no load at all ({idle.size} of {len(total)} layers): nothing says what to do"
        )
    return Placed(
        kind=kind,
        name=given.name,
        loads=total,
        planned_from=loads,
        plan=plan,
        in_order=in_order,
        sizes=whole,
        layers=layers,
        model=model,
        notes=tuple(notes),
    )


def _plan(kind: str, loads: NDArray[Any], sizes: Sizes) -> PlacementPlan:
    slots, gpus, nodes, groups = (int(size or 1) for size in (sizes.slots, sizes.gpus, sizes.nodes, sizes.groups))
    return PLANNERS[kind](loads, slots=slots, gpus=gpus, nodes=nodes, groups=groups)


def planning_seconds(placed: Placed, *, repeats: int = TIMED) -> float:
    """Return how long the same planning takes on this machine: the median of some more, in seconds of its clock.

    Parameters
    ----------
    placed : Placed
        Whose plan is made again.
    repeats : int
        How often.
    """
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        _plan(placed.kind, placed.planned_from, placed.sizes)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def _all_experts(given: Loads, stated: int | None, model: MoeModel | None) -> tuple[NDArray[Any], list[str]]:
    """Return the loads of all experts there are, and what is to be noted: a recording may not have seen the last ones."""
    loads, seen = given.loads, given.shape[1]
    experts = stated if stated is not None else seen if model is None else model.experts
    if experts == seen:
        guess = not given.experts_stated and stated is None and model is None
        return loads, (
            [f"{given.name} does not state its number of experts: {seen} are taken from its largest id; if there are more, give --experts"]
            if guess
            else []
        )
    if given.experts_stated or experts < seen:
        whose = f"the model {model.name} has {experts}" if model is not None and stated is None else f"--experts says {experts}"
        raise UsageError(f"{given.name} has loads of {seen} experts, but {whose}")
    return np.concatenate([loads, np.zeros((*loads.shape[:-1], experts - seen), dtype=loads.dtype)], axis=-1), []


def _layers(given: Loads, model: MoeModel, loads: NDArray[Any]) -> tuple[int, ...]:
    """Return the number of each layer in the model: its MoE layers, all its layers, or those that a recording names."""
    layers = loads.shape[-2]
    if given.layers is not None and layers != len(model.moe_layers) and set(given.layers) <= set(model.moe_layers):
        return given.layers
    if layers == len(model.moe_layers):
        return model.moe_layers
    if layers != model.layers:
        other = "" if model.layers == len(model.moe_layers) else f", or {model.layers} for all its layers"
        raise UsageError(f"{given.name} has {layers} layers, but the model {model.name} has {len(model.moe_layers)} MoE layers{other}")
    dense = sorted(set(range(layers)) - set(model.moe_layers))
    busy = [layer for layer in dense if loads[..., layer, :].any()]
    if busy:
        raise UsageError(
            f"{given.name}: layer {busy[0]} has loads, but it is a dense layer of {model.name}, whose {layers} layers these seem"
        )
    return tuple(range(layers))


def _completed(sizes: Sizes, given: Loads, model: MoeModel | None, experts: int) -> Sizes:
    gpus, nodes = sizes.gpus, sizes.nodes
    if gpus is None:
        if given.scenario is None:
            raise UsageError("--gpus is missing: how many ranks share the experts of a layer?")
        gpus = given.scenario.parallel.ep
        if nodes is None:
            node_of = np.asarray(given.scenario.cluster.build().node_of)[:gpus]
            here = len(np.unique(node_of))
            nodes = here if gpus % here == 0 and (np.bincount(node_of - node_of.min()) == gpus // here).all() else 1
    groups = sizes.groups if sizes.groups is not None else 1 if model is None else model.groups
    slots = experts if sizes.slots is None else sizes.slots
    return Sizes(slots=slots, gpus=gpus, nodes=1 if nodes is None else nodes, groups=groups, experts=experts)


def to_export(placed: Placed, form: str) -> tuple[Planned, list[str]]:
    """Return what an engine's file is to say, and what is to be noted about the numbers of its layers."""
    slots = placed.plan.physical_to_logical_map
    notes: list[str] = []
    layers = placed.layers
    model = placed.model
    experts, gpus = placed.loads.shape[1], int(placed.sizes.gpus or 1)
    if model is not None and layers is not None:
        keep = [row for row, layer in enumerate(layers) if layer in set(model.moe_layers)]
        kept = tuple(layers[row] for row in keep)
        complete = kept == model.moe_layers
        return Planned(slots=slots[keep], experts=experts, gpus=gpus, layers=kept, model_layers=model.layers, complete=complete), notes
    if layers is None:
        layers = tuple(range(len(slots)))
        if form != "vllm-ascend":
            notes.append("nothing says which layers of the model these are: they are numbered from 0; give --model if it has dense layers")
    elif form == "sglang":
        notes.append(f"nothing says how many layers the model has: {max(layers) + 1} are written; give --model")
    return Planned(slots=slots, experts=experts, gpus=gpus, layers=layers, model_layers=max(layers) + 1), notes
