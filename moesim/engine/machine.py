"""The live objects of a run: clock, fabric, recorder, and the callables of the policies."""

from __future__ import annotations

import math

import simpy

from moesim.base.errors import PluginError, Stuck
from moesim.engine.chain import Chain, chain_of
from moesim.engine.chain import play as play_chain
from moesim.engine.cores import Cores
from moesim.engine.fabric import Fabric
from moesim.engine.held_sms import HeldSms
from moesim.engine.lanes import StepRun
from moesim.engine.load import Policies, StepLoad, load_step
from moesim.engine.recorder import Recorder
from moesim.engine.stages import over_stages
from moesim.engine.tally import Mark
from moesim.facts.collective import GradientCalls
from moesim.facts.model import DTYPE_BYTES
from moesim.facts.placement import Placement
from moesim.facts.program import Program, may_overlap
from moesim.facts.routing import Routing
from moesim.facts.scenario import Scenario, Setting
from moesim.models.collective.expert_tensor_calls import ExpertTensorPlans
from moesim.models.collective.gradients import GradientPlans
from moesim.models.collective.tensor_calls import TensorPlans
from moesim.models.schedule.whole import step_program
from moesim.models.stages import stage_of_layers, stage_setting

NOTHING_LEFT = "No scheduled events left"
"""How SimPy begins to say that its queue is empty and the awaited event has not happened."""


class Machine:
    """A cluster that can play one step after another.

    Parameters
    ----------
    scenario : Scenario
        Its schedule says what every GPU does, its ``sharing`` how exactly links are shared.
    setting : Setting
        Of all GPUs; ``stage`` is that of one stage of a pipeline, which policies see.
    policies : Policies
        Fresh callables: a machine never shares them with another.
    placement : Placement
    """

    def __init__(self, scenario: Scenario, setting: Setting, policies: Policies, placement: Placement) -> None:
        self.setting = setting
        self.stage = stage_setting(setting)
        self.program: Program = step_program(
            scenario.schedule, scenario.model, setting.workload, parallel=setting.parallel, training=setting.training
        )
        self.stage_of_layer = stage_of_layers(self.program, setting.model.layers)
        self.policies = policies
        self.placement = placement
        self.env = simpy.Environment()
        self._sharing = scenario.sharing
        self._fabric: Fabric | None = None
        self._port = math.inf
        self._gradients = _gradient_plans(scenario.schedule, setting, placement)
        tensor = setting.parallel.tp
        numbers = setting.parallel.numbers(setting.gpus)
        self._tensor = TensorPlans(model=setting.model, cluster=setting.cluster, tensor=tensor, numbers=numbers) if tensor > 1 else None
        cut = setting.parallel.etp > 1
        self._expert_tensor = ExpertTensorPlans(model=setting.model, cluster=setting.cluster, parallel=setting.parallel) if cut else None
        self.recorder = Recorder(setting.cluster, setting.parallel.ep)
        self._cores = Cores(self.env, setting.cluster) if setting.cluster.shares_cores else None
        self.marks: list[Mark] = []

    @property
    def fabric(self) -> Fabric:
        """The links; there are none before the first step, whose exchange says how much a GPU's kernels can send."""
        if self._fabric is None:
            self._fabric = Fabric(self.env, self.setting.cluster, self._sharing, port=self._port)
        return self._fabric

    def load(self, routing: Routing, step: int, *, alike: bool = False) -> StepLoad:
        """Work out what a step asks for; ``alike``: layers with the same routing and placement cost the same."""
        load = load_step(self.stage, self.program, self.policies, self.placement, routing, step, alike=alike)
        return over_stages(load, self.program, self.setting.parallel.pp)

    def play(self, load: StepLoad, step: int) -> Mark:
        """Run one step on the clock; the next can start when every GPU has finished it.

        Raises
        ------
        Stuck
            If nothing is left to happen and somebody still waits.
        """
        self._prepare(load)
        self.recorder.begin_step(step)
        if self._tensor is not None:
            self._tensor.tokens = {microbatch: self.setting.computed_tokens(part[0].tokens) for microbatch, part in enumerate(load.parts)}
        if self._expert_tensor is not None:
            self._expert_tensor.begin_step(
                {(layer, microbatch): one.arrived for microbatch, part in enumerate(load.parts) for layer, one in enumerate(part)}
            )
        start = self.env.now
        chain = self._chain(load)
        if chain is not None:
            self.env.run(until=self.env.process(play_chain(self.env, self.fabric, self.recorder, chain, load)))
            self.marks.append(Mark(start, self.env.now, self.fabric.busy, self.fabric.carried_on_link))
            return self.marks[-1]
        run = StepRun(
            self.env,
            self.fabric,
            self.recorder,
            self.program,
            load,
            ranks=self.setting.parallel.ep,
            gpus=self.setting.gpus,
            gradients=self._gradients,
            tensor=self._tensor,
            expert_tensor=self._expert_tensor,
            hand_over=self.setting.model.hidden * DTYPE_BYTES[self.setting.model.activation_dtype],
            cores=self._computing(load),
        )
        done = run.all_done()
        try:
            self.env.run(until=done)
        except RuntimeError as error:
            if not str(error).startswith(NOTHING_LEFT):
                raise
            raise Stuck(describe_stuck(run, self.env.now)) from None
        self.marks.append(Mark(start, self.env.now, self.fabric.busy, self.fabric.carried_on_link))
        return self.marks[-1]

    def _chain(self, load: StepLoad) -> Chain | None:
        """Return the step as a chain, if it is one and nobody else has anything to do meanwhile."""
        if self._cores is not None:
            return None
        while self.env.peek() <= self.env.now and self.fabric.lendable:
            self.env.step()  # what the step before has left of its last instant; nothing may start to move while its ranks are not there
        if self.env.peek() < math.inf or not self.fabric.lendable:
            return None
        return chain_of(self.program, load, ranks=self.setting.parallel.ep, gpus=self.setting.gpus)

    def _computing(self, load: StepLoad) -> Cores | HeldSms | None:
        """Return what kernels compute on where their speed is not their own."""
        if self._cores is None and may_overlap(self.program):
            held = any(exchange.held_sms for part in load.parts for layer in part for exchange in layer.exchange.values())
            return HeldSms(self.env, self.setting.gpus) if held else None
        return self._cores

    def finish(self) -> None:
        """Let what is still on its way after the last step arrive, and check the laws of the network."""
        self.env.run()
        self.fabric.check()

    def _prepare(self, load: StepLoad) -> None:
        """Tell the fabric what the exchanges of a step ask of it."""
        exchanges = [exchange for part in load.parts for layer in part for exchange in layer.exchange.values()]
        ports = sorted({exchange.port for exchange in exchanges} | {self._port if self._fabric is not None else math.inf})
        if self._fabric is None:
            self._port = ports[0]
        elif ports[0] != self._port:
            raise PluginError(f"an exchange sends {ports[0]:.6g} B/s at most now and {self._port:.6g} before: port must not change")
        most = 0
        for exchange in exchanges:
            for stages in (exchange.dispatch, exchange.combine):
                flows = [stage.flows() for stage in stages]
                most = max(most, sum(flows) if exchange.pipelined else max(flows, default=0))
        self.fabric.expect(most)


def _gradient_plans(schedule: object, setting: Setting, placement: Placement) -> GradientPlans | None:
    """Return how the copies of weights are kept equal, if the schedule has them kept so."""
    if not isinstance(schedule, GradientCalls):
        return None
    ranks = setting.parallel.ep
    return GradientPlans(
        calls=schedule,
        model=setting.model,
        cluster=setting.cluster,
        ep=ranks,
        slots=placement.slots_per_rank(ranks),
        stages=setting.parallel.pp,
        tensor=setting.parallel.tp,
        parallel=setting.parallel if setting.parallel.etp > 1 else None,
    )


def describe_stuck(run: StepRun, now: float) -> str:
    """Say who waits for what."""
    lines = []
    for (gpu, _), (lane, what) in sorted(run.waiting.items(), key=lambda item: item[0])[:8]:
        if isinstance(what, str):
            lines.append(f"GPU {gpu} ({lane}) waits for {what}")
        else:
            missing = ", ".join(str(rank) for rank in what.missing[:8]) or "nobody; its bytes do not move"
            lines.append(f"GPU {gpu} ({lane}) waits in a collective for GPU {missing}")
    more = len(run.waiting) - len(lines)
    return f"nothing is left to happen at {now:.9g} s, but " + "; ".join(lines) + (f"; and {more} more" if more > 0 else "")
