"""Checks of the slots that decide which copy of an expert computes a token: placement, dispatch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moesim.base.errors import ContractBroken, PluginError
from moesim.base.streams import stream
from moesim.facts.arrays import Ints
from moesim.facts.contracts import View
from moesim.facts.placement import Placement
from moesim.facts.routing import Assignment, Kept
from moesim.facts.scenario import Setting
from moesim.testing.rules import Trials, demand, name_of, same, whole_numbers
from moesim.testing.world import home, tiny_kept, tiny_placements, tiny_routings, tiny_settings


def check_placement(placement: Any, *, settings: Sequence[Setting] | None = None, steps: int = 24) -> None:
    """Check a placement policy.

    The first call gives a placement; in each, every expert of every layer lives on a rank that exists (L11); what happens later changes
    no earlier decision (L12); runs do not share state, and a fresh run decides alike (L8).

    Parameters
    ----------
    placement : object
        An instance of a placement.
    settings : sequence of Setting or None
        Where to try it; small ones by default.
    steps : int
        Length of the histories it is shown; choose more than its interval, so that it rebalances.

    Raises
    ------
    ContractBroken
        Naming the rule or law and the numbers.
    """
    who = name_of("placement", placement)
    trials = Trials(who)
    for setting in settings or tiny_settings():
        history = _history(setting, steps, number=0)
        decisions = trials.ask(_decide, who, placement.begin, setting, history)
        if decisions is None:
            continue
        again = _decide(who, placement.begin, setting, history)
        demand(same(decisions, again), "law L8", f"{who}: two fresh runs with the same history decide differently")
        half = steps // 2
        other = np.concatenate([history[:half], _history(setting, steps - half, number=1)])
        changed = _decide(who, placement.begin, setting, other)
        for step in range(half + 1):
            text = f"{who}: the decision of step {step} changes with the loads of steps {half} to {steps - 1}"
            demand(same(decisions[step], changed[step]), "law L12", text)
        _check_interleaved(who, placement, setting, (history, other), (decisions, changed))
    trials.finish()


def check_dispatch(dispatch: Any, *, settings: Sequence[Setting] | None = None) -> None:
    """Check a dispatch policy.

    Every kept route and every padding row of a source is bound to a slot that holds its expert, none is lost or made up (L1), in the
    source's own group; a fresh run binds alike (L8).

    Parameters
    ----------
    dispatch : object
        An instance of a dispatch.
    settings : sequence of Setting or None
        Where to try it; small ones by default.

    Raises
    ------
    ContractBroken
        Naming the rule or law and the numbers.
    """
    who = name_of("dispatch", dispatch)
    trials = Trials(who)
    for setting in settings or tiny_settings():
        for where in tiny_placements(setting):
            for routing in tiny_routings(setting):
                kept = tiny_kept(routing)
                bound = trials.ask(_bind, dispatch, setting, kept, where)
                if bound is None:
                    continue
                for (step, layer), assignment in bound.items():
                    _check_assignment(f"{who}: step {step}, MoE layer {layer}", assignment, kept, where, setting, layer)
                again = _bind(dispatch, setting, kept, where)
                demand(same(list(bound.values()), list(again.values())), "law L8", f"{who}: two fresh runs bind differently")
    trials.finish()


def _history(setting: Setting, steps: int, *, number: int) -> Ints:
    """Return int[steps, L, E] loads with a few hot experts, which change in the middle."""
    model = setting.model
    rng = stream(setting.seed, "testing", "history", number)
    weight = np.exp(rng.standard_normal((2, len(model.moe_layers), model.experts)))
    which = (np.arange(steps) >= steps // 2).astype(np.int64)
    routes = setting.gpus * setting.workload.tokens_per_gpu * model.top_k
    return rng.poisson(weight[which] * (routes / model.experts)).astype(np.int64)


class _Run:
    """A run of a placement, shown one step after the other."""

    def __init__(self, who: str, begin: Any, setting: Setting) -> None:
        self.who, self.setting = who, setting
        self.plan = begin(setting)
        self.present: Placement | None = None

    def step(self, history: Ints, step: int) -> Placement | None:
        """Return the decision of one step; the history is cut off before it."""
        # A read-only view, behind which the future lies: whoever looks there decides differently when the future changes.
        past = history[:step]
        past.flags.writeable = False
        answer: Placement | None = self.plan(View(step=step, loads=past, placement=self.present))
        if answer is None:
            demand(self.present is not None, "first call", f"{self.who}: the first call returned None, but there is no placement to keep")
            return None
        demand(isinstance(answer, Placement), "type", f"{self.who}: step {step} returned {type(answer).__name__}, expected Placement")
        model = self.setting.model
        try:
            answer.check(layers=len(model.moe_layers), experts=model.experts, ranks=self.setting.parallel.ep, who=self.who)
        except PluginError as error:
            raise ContractBroken("law L11", f"step {step}: {error}") from error
        self.present = answer
        return answer


def _decide(who: str, begin: Any, setting: Setting, history: Ints) -> list[Placement | None]:
    run = _Run(who, begin, setting)
    return [run.step(history, step) for step in range(len(history))]


def _check_interleaved(
    who: str, placement: Any, setting: Setting, histories: tuple[Ints, Ints], alone: tuple[list[Placement | None], list[Placement | None]]
) -> None:
    runs = [_Run(who, placement.begin, setting) for _ in histories]
    for step in range(len(histories[0])):
        for run, history, expected in zip(runs, histories, alone, strict=True):
            text = f"{who}: a run decides differently in step {step} when another run takes turns with it"
            demand(same(run.step(history, step), expected[step]), "state", text)


def _bind(dispatch: Any, setting: Setting, kept: Kept, placement: Placement) -> dict[tuple[int, int], Assignment]:
    bind = dispatch.begin(setting)
    return {
        (step, layer): bind(kept, placement, step=step, moe_layer=layer)
        for step in range(2)
        for layer in range(len(setting.model.moe_layers))
    }


def _check_assignment(where: str, assignment: Assignment, kept: Kept, placement: Placement, setting: Setting, layer: int) -> None:
    demand(isinstance(assignment, Assignment), "type", f"{where}: returned {type(assignment).__name__}, expected Assignment")
    expert_of_slot = placement.expert_of_slot[layer]
    shared, ranks = assignment.shared_slots, setting.parallel.ep
    demand(
        shared in {0, ranks}, "shape", f"{where}: {shared} slots hold the shared expert; it has none, or one on each of the {ranks} ranks"
    )
    shape = (setting.gpus, placement.slots + shared)
    for name, rows, given in (
        ("routes", assignment.slot_counts, kept.routing.counts),
        ("padding rows", assignment.slot_padding, kept.padding),
    ):
        whole_numbers(where, f"slot table of {name}", rows, shape)
        bound = np.zeros_like(given)
        if shared and rows is assignment.slot_counts:
            _check_shared(where, rows[:, -shared:], np.diff(kept.routing.token_start))
        for slot, expert in enumerate(expert_of_slot):
            bound[:, expert] += rows[:, slot]
        wrong = np.argwhere(bound != given)
        if wrong.size:
            gpu, expert = wrong[0]
            text = f"{where}: {bound[gpu, expert]} of {given[gpu, expert]} {name} from GPU {gpu} to expert {expert} are bound to its slots"
            raise ContractBroken("law L1", text)
    whole_numbers(where, "destination", assignment.destination, shape)
    right = home(placement, setting)
    if shared:
        right = np.hstack([right, np.arange(setting.gpus)[:, None] // ranks * ranks + np.arange(ranks)])
    elsewhere = np.argwhere(assignment.destination != right)
    if elsewhere.size:
        gpu, slot = elsewhere[0]
        text = f"slot {slot} as seen by GPU {gpu} is on GPU {assignment.destination[gpu, slot]}, not {right[gpu, slot]}"
        raise ContractBroken("own group", f"{where}: {text}")
    demand(same(assignment.kept, kept), "law L1", f"{where}: the kept routes are not those it was given")
    if kept.routing.ids is not None:
        _check_slots(where, assignment, expert_of_slot)


def _check_shared(where: str, rows: Ints, tokens: Ints) -> None:
    wrong = np.flatnonzero(rows.sum(axis=1) != tokens)
    if wrong.size:
        gpu = wrong[0]
        text = f"{where}: GPU {gpu} has {tokens[gpu]} tokens, of which the shared experts of its group compute {rows[gpu].sum()}"
        raise ContractBroken("law L1", text)


def _check_slots(where: str, assignment: Assignment, expert_of_slot: Ints) -> None:
    ids = np.asarray(assignment.kept.routing.ids)
    demand(assignment.slots is not None, "fidelity", f"{where}: slots is None, but the tokens are known")
    slots = np.asarray(assignment.slots)
    if assignment.shared_slots:
        # The last choice of each token is the shared expert, which is treated as one expert more.
        shape = (len(ids), 1)
        ids = np.hstack([ids, np.full(shape, ids.max(initial=-1) + expert_of_slot.max(initial=0) + 1)])
        expert_of_slot = np.concatenate([expert_of_slot, np.full(assignment.shared_slots, ids[:, -1].max(initial=-1))])
    demand(slots.shape == ids.shape, "shape", f"{where}: slots have shape {slots.shape}, ids {ids.shape}")
    demand(slots.dtype.kind in "iu", "type", f"{where}: slots hold {slots.dtype}, expected integers")
    outside = np.argwhere((slots < -1) | (slots >= len(expert_of_slot)) | ((slots < 0) != (ids < 0)))
    if outside.size:
        token, choice = outside[0]
        text = f"{where}: choice {choice} of token {token} (expert {ids[token, choice]}) is bound to slot {slots[token, choice]}"
        raise ContractBroken("law L1", text)
    wrong = np.argwhere((slots >= 0) & (expert_of_slot[slots] != ids))
    if wrong.size:
        token, choice = wrong[0]
        slot = slots[token, choice]
        text = f"slot {slot}, which holds expert {expert_of_slot[slot]}, not {ids[token, choice]}"
        raise ContractBroken("law L11", f"{where}: choice {choice} of token {token} is bound to {text}")
    source = np.broadcast_to(assignment.kept.routing.source_of_token()[:, None], slots.shape)
    counted = np.zeros(assignment.slot_counts.shape, dtype=np.int64)
    np.add.at(counted, (source[slots >= 0], slots[slots >= 0]), 1)
    wrong = np.argwhere(counted != assignment.slot_counts)
    if wrong.size:
        gpu, slot = wrong[0]
        text = f"{where}: {assignment.slot_counts[gpu, slot]} routes counted from GPU {gpu} to slot {slot}, but {counted[gpu, slot]} bound"
        raise ContractBroken("law L1", text)
