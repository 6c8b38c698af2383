"""The live objects of a run: clock, fabric, recorder, and the callables of the policies."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import simpy

from moesim.base.errors import Stuck
from moesim.engine.fabric import Fabric
from moesim.engine.lanes import StepRun
from moesim.engine.load import Policies, StepLoad, load_step
from moesim.engine.recorder import Recorder
from moesim.engine.tally import Mark
from moesim.facts.placement import Placement
from moesim.facts.program import Program
from moesim.facts.routing import Routing
from moesim.facts.scenario import Setting


class Machine:
    """A cluster that can play one step after another.

    Parameters
    ----------
    setting : Setting
    program : Program
    policies : Policies
        Fresh callables: a machine never shares them with another.
    placement : Placement
    """

    def __init__(self, setting: Setting, program: Program, policies: Policies, placement: Placement) -> None:
        self.setting = setting
        self.program = program
        self.policies = policies
        self.placement = placement
        self.env = simpy.Environment()
        self.fabric = Fabric(self.env, setting.cluster)
        self.recorder = Recorder(setting.cluster)
        self.marks: list[Mark] = []

    def load(self, routing: Routing, step: int) -> StepLoad:
        """Work out what a step asks for."""
        return load_step(self.setting, self.program, self.policies, self.placement, routing, step)

    def play(self, load: StepLoad, step: int) -> Mark:
        """Run one step on the clock; the next can start when every GPU has finished it.

        Raises
        ------
        Stuck
            If nothing is left to happen and somebody still waits.
        """
        self.recorder.step = step
        start = self.env.now
        run = StepRun(self.env, self.fabric, self.recorder, self.program, load, ranks=self.setting.parallel.ep, gpus=self.setting.gpus)
        finished: list[float] = []
        self.env.process(self._driver(run, finished))
        self.env.run()
        if not finished:
            raise Stuck(describe_stuck(run, self.env.now))
        self.recorder.end_step()
        self.marks.append(Mark(start, finished[0], self.fabric.busy.copy(), self.fabric.carried_on_link.copy()))
        return self.marks[-1]

    def _driver(self, run: StepRun, finished: list[float]) -> Generator[simpy.Event, Any, None]:
        yield run.all_done()
        finished.append(self.env.now)


def describe_stuck(run: StepRun, now: float) -> str:
    """Say who waits for what."""
    lines = []
    for (gpu, lane), what in sorted(run.waiting.items(), key=lambda item: item[0])[:8]:
        if isinstance(what, str):
            lines.append(f"GPU {gpu} ({lane}) waits for {what}")
        else:
            missing = ", ".join(str(rank) for rank in what.missing[:8]) or "nobody; its bytes do not move"
            lines.append(f"GPU {gpu} ({lane}) waits in a collective for GPU {missing}")
    more = len(run.waiting) - len(lines)
    return f"nothing is left to happen at {now:.9g} s, but " + "; ".join(lines) + (f"; and {more} more" if more > 0 else "")
