"""Experts that move while a run goes on: the policy sees the past, its planning takes time, its weights travel over the same links."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy

from moesim.base.errors import PluginError
from moesim.engine.load import StepLoad
from moesim.engine.machine import Machine
from moesim.engine.placing import check_type
from moesim.facts.arrays import Floats, Ints
from moesim.facts.contracts import Plan, View
from moesim.facts.placement import Placement
from moesim.facts.routing import LayerRouting
from moesim.facts.scenario import Rebalance
from moesim.models.memory import expert_bytes
from moesim.models.placement.migration import copies_needed


@dataclass(slots=True)
class Move:
    """One rebalance: before which step it was decided, what it moves, and what it costs."""

    step: int
    decided_at: float
    planner: float
    layers: int
    copies: int
    bytes: float
    stall: float = 0.0
    transfer: float = 0.0
    in_place: int = -1


@dataclass(slots=True)
class Rebalancing:
    """Asks the placement policy before every step, and carries out what it decides.

    Parameters
    ----------
    machine : Machine
        Its placement changes as layers get their weights.
    plan : callable
        What ``begin`` of the placement returned, after it gave the first placement.
    rules : Rebalance
    who : str
        Name of the policy, for messages.
    """

    machine: Machine
    plan: Plan
    rules: Rebalance
    who: str
    moves: list[Move] = field(default_factory=list)
    _loads: Ints = field(default_factory=lambda: np.zeros((0, 0, 0), dtype=np.int64))
    _steps: int = 0
    _recent: list[list[LayerRouting]] = field(default_factory=list)
    _queue: deque[tuple[int, Floats]] = field(default_factory=deque)
    _target: Placement | None = None
    _ready: set[int] = field(default_factory=set)
    _under_way: bool = False
    _begins: float = 0.0

    def learn(self, load: StepLoad) -> None:
        """Take note of a step that is over: routes to each expert, before drops."""
        counts = np.stack([layer.chosen.counts.sum(axis=0) for layer in load.layers])
        if self._steps == len(self._loads):
            more = np.zeros((max(16, 2 * self._steps), *counts.shape), dtype=np.int64)
            if self._steps:
                more[: self._steps] = self._loads
            self._loads = more
        self._loads[self._steps] = counts
        self._steps += 1
        self._recent.append([layer.chosen for layer in load.layers])
        del self._recent[: max(len(self._recent) - int(getattr(self.plan, "look_back", 0)), 0)]

    def before(self, step: int) -> None:
        """Let layers use weights that have arrived, and ask the policy for a new placement unless one is still on its way."""
        self._commit(step)
        if self._target is not None:
            self._send_next()
            return
        seen = self._loads[: self._steps].view()
        seen.flags.writeable = False
        machine = self.machine
        new = self.plan(View(step=step, loads=seen, placement=machine.placement, recent=tuple(self._recent)))
        if new is None:
            return
        self._check(new)
        wanted = [self._bytes(layer, new) for layer in range(new.layers)]
        changed = [layer for layer in range(new.layers) if (new.expert_of_slot[layer] != machine.placement.expert_of_slot[layer]).any()]
        move = Move(
            step=step,
            decided_at=machine.env.now,
            planner=0.0 if getattr(self.plan, "continues", False) else self.rules.planner_time,
            layers=len(changed),
            copies=sum(count for count, _ in wanted),
            bytes=float(sum(size.sum() for _, size in wanted)),
        )
        self.moves.append(move)
        if self.rules.mode == "free":
            move.planner, move.bytes, move.in_place = 0.0, 0.0, step
            machine.placement = new
            return
        if self.rules.mode == "sync":
            self._stop_the_world(new, [size for _, size in wanted], move)
            return
        self._target = new
        self._queue.extend((layer, wanted[layer][1]) for layer in changed)
        self._begins = machine.env.now + move.planner
        self._send_next()

    def _check(self, new: Placement) -> None:
        setting = self.machine.setting
        check_type(new, self.who)
        new.check(layers=len(setting.model.moe_layers), experts=setting.model.experts, ranks=setting.parallel.ep, who=self.who)
        if not np.array_equal(new.rank_of_slot, self.machine.placement.rank_of_slot):
            raise PluginError(
                f"{self.who}: a rebalance may not change how many slots a rank has: rank_of_slot differs from the first placement"
            )

    def _bytes(self, layer: int, new: Placement) -> tuple[int, Floats]:
        """Return how many copies of experts a layer needs, and float[G, G], their bytes; every group of its stage moves its own."""
        setting, old = self.machine.setting, self.machine.placement
        ranks = setting.parallel.ep
        copies = copies_needed(old.expert_of_slot[layer], new.expert_of_slot[layer], old.rank_of_slot)
        size = np.zeros((setting.gpus, setting.gpus))
        each = expert_bytes(setting.model, setting.workload.phase, optimiser=self.rules.optimiser)
        groups = setting.groups // setting.parallel.pp
        first = int(self.machine.stage_of_layer[setting.model.moe_layers[layer]]) * groups
        for group in range(first, first + groups):
            np.add.at(size, (copies[:, 0] + group * ranks, copies[:, 1] + group * ranks), each)
        return len(copies) * groups, size

    def _stop_the_world(self, new: Placement, sizes: list[Floats], move: Move) -> None:
        """Plan and move everything while nothing else runs."""
        machine = self.machine
        start = machine.env.now
        done = machine.env.event()

        def work() -> Generator[simpy.Event, Any, None]:
            if move.planner:
                yield machine.env.timeout(move.planner)
            began = machine.env.now
            arrived = self._transfer(np.sum(sizes, axis=0))
            if arrived is not None:
                yield arrived
            move.transfer = machine.env.now - began
            done.succeed()

        machine.env.process(work())
        machine.env.run(until=done)
        move.stall = machine.env.now - start
        move.in_place = move.step
        machine.placement = new

    def _transfer(self, size: Floats) -> simpy.Event | None:
        """Send weights; return an event that fires when the last byte has arrived, None if there is nothing to send."""
        source, destination = np.nonzero(size)
        if not len(source):
            return None
        machine = self.machine
        event = machine.env.event()

        def arrived() -> None:
            machine.fabric.unwatch(counter)
            event.succeed()

        counter = machine.fabric.watch(arrived)
        machine.fabric.transfer(source, destination, size[source, destination], np.full((len(source), 2), counter, dtype=np.int32))
        return event

    def _send_next(self) -> None:
        """Let the next layer's weights set out, if the planner is ready and no other layer's are on their way."""
        machine = self.machine
        if self._under_way or not self._queue:
            return
        layer, size = self._queue.popleft()
        self._under_way = True
        wait = max(self._begins - machine.env.now, 0.0)

        def work() -> Generator[simpy.Event, Any, None]:
            if wait:
                yield machine.env.timeout(wait)
            began = machine.env.now
            arrived = self._transfer(size)
            if arrived is not None:
                yield arrived
            self.moves[-1].transfer += machine.env.now - began
            self._ready.add(layer)
            self._under_way = False

        machine.env.process(work())

    def _commit(self, step: int) -> None:
        """Switch the layers whose weights have all arrived to their new placement."""
        if self._target is None:
            return
        if self._ready:
            now = self.machine.placement.expert_of_slot.copy()
            for layer in sorted(self._ready):
                now[layer] = self._target.expert_of_slot[layer]
            self._ready.clear()
            self.machine.placement = dataclasses.replace(self.machine.placement, expert_of_slot=now)
        if not self._queue and not self._under_way:
            self.moves[-1].in_place = step
            self._target = None
