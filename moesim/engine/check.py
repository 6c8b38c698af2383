"""Rules between the parts of a scenario, checked before anything runs. No clock, no file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from moesim.base.errors import FidelityError, FieldError, MoesimError, Problem
from moesim.base.units import format_quantity
from moesim.engine.placing import first_placement
from moesim.facts.cluster import Cluster
from moesim.facts.model import DTYPE_BYTES, MoeModel
from moesim.facts.placement import Placement
from moesim.facts.program import RECOMPUTE, Program, may_overlap
from moesim.facts.routing import Assignment, Fidelity, LayerRouting, count_routes
from moesim.facts.scenario import Parallel, Policy, Scenario, Setting
from moesim.facts.trace import Trace
from moesim.facts.training import Training
from moesim.models.memory import OPTIMISER_BYTES, dense_parameters
from moesim.models.parallel_memory import layers_of_stage, stage_weight_bytes
from moesim.models.schedule.whole import Staged, step_program
from moesim.models.stages import setting_of, stage_setting
from moesim.models.work import GRADIENT_BYTES

T = TypeVar("T")


def check(scenario: Scenario, read_trace: Callable[..., Trace]) -> list[Problem]:
    """Return what does not fit together in a scenario whose parts are each valid.

    Checked are: the expert-parallel groups divide the cluster; every plug-in can begin; every placement gives every expert a
    slot; the weights fit (:func:`least_bytes`); a recording has the model's layers, experts and choices (its source says so when it
    begins); the policies and the exchange can work with what the recording knows.

    Parameters
    ----------
    scenario : Scenario
        As built from a file.
    read_trace : callable
        Turns a path into a :class:`~moesim.facts.trace.Trace`.

    Returns
    -------
    list of Problem
        With ``path`` (``policy.placement``) and ``message``; empty if all is well.
    """
    checking = _Checking()
    cluster = checking.attempt("cluster", scenario.cluster.build)
    if cluster is None:
        return checking.problems
    checking.problems += degrees(scenario.parallel, cluster)
    if checking.problems:
        return checking.problems
    traces: list[Trace] = []

    def read(path: str, **options: Any) -> Trace:
        traces.append(read_trace(path, **options))
        return traces[-1]

    setting = checking.attempt("parallel.etp", setting_of, scenario, read, cluster)
    if setting is None:
        return checking.problems
    checking.whole = setting
    stage = checking.attempt("parallel.pp", stage_setting, setting)
    if stage is None:
        return checking.problems
    setting = stage
    if setting.workload.ranks is not None:
        tensor = setting.parallel.tp
        checking.attempt("workload.ranks", setting.workload.ranks.check, setting.gpus // tensor, tensor, setting.workload.tokens_per_gpu)
        if checking.problems:
            return checking.problems
    source_path = "routing.trace" if hasattr(scenario.routing, "trace") else "routing"
    checking.attempt(source_path, scenario.routing.begin, setting)
    outside = getattr(scenario.routing, "outside", None)  # a source may know of steps that the run never reaches
    if outside is not None:
        for name, message in outside(scenario.steps):
            checking.say(f"routing.{name}", message)
    setting = replace(setting, read_trace=read_trace)
    carry = checking.attempt("exchange", scenario.exchange.begin, setting)
    checking.attempt("compute", scenario.compute.begin, setting)
    program = checking.program(scenario)
    if carry is not None and program is not None:
        directions = sorted({task.work.direction for task in program.tasks if task.work.direction != RECOMPUTE})
        checking.carry = lambda assignment: [carry(assignment, direction=direction) for direction in directions]
    held = getattr(scenario.exchange, "communication_sms", None)
    if held is not None and held == cluster.gpu.sms and program is not None and may_overlap(program):
        checking.say(
            "exchange.communication_sms",
            f"{held} SMs are all that {cluster.gpu.name} has: kernels beside communication would have none; give communication fewer",
        )
    known = min((trace.fidelity for trace in traces), default=getattr(scenario.routing, "fidelity", None))
    checking.policies(scenario, setting, known)
    return checking.problems


def least_bytes(model: MoeModel, slots: int, phase: str, *, gpus: int, groups: int) -> float:
    """Return the least memory of weights that a GPU can do with.

    Every GPU holds ``slots`` experts of each MoE layer and one copy of everything else, in the model's dtypes. Training adds, for
    each parameter, an fp32 gradient (4 B), an fp32 copy of the weight and two fp32 moments of Adam (12 B), all of them sharded over the
    GPUs that hold the same parameter: all of them for the dense part, one per group for an expert (ZeRO stage 2, Rajbhandari et al.,
    arXiv:1910.02054). Activations, caches and buffers are not counted. So what this refuses fits under no common sharding; what it
    lets pass may still be too much, and the metric ``peak_memory`` says how much is needed without sharding.

    Parameters
    ----------
    model : MoeModel
        Its shape.
    slots : int
        Physical experts of a layer on the GPU.
    phase : str
        ``training``, ``prefill`` or ``decode``.
    gpus, groups : int
        GPUs of the cluster, and the expert-parallel groups they form.
    """
    weights, kept = dense_parameters(model)
    experts = float(len(model.moe_layers) * slots * model.expert_parameters)
    total = (
        weights * DTYPE_BYTES[model.weight_dtype] + kept * DTYPE_BYTES[model.activation_dtype] + experts * DTYPE_BYTES[model.expert_dtype]
    )
    if phase == "training":
        total += ((weights + kept) / gpus + experts / groups) * (GRADIENT_BYTES + OPTIMISER_BYTES)
    return total


@dataclass(slots=True)
class _Checking:
    """Collects problems; a plug-in that refuses is one."""

    problems: list[Problem] = field(default_factory=list)
    laid: Program | None = None
    whole: Setting | None = None
    base_placement: Placement | None = None
    carry: Callable[[Assignment], object] | None = None
    """The exchange in every direction that the program has."""

    def say(self, path: str, message: str) -> None:
        problem = Problem(path=path, message=message)
        if problem not in self.problems:
            self.problems.append(problem)

    def attempt(self, path: str, call: Callable[..., T], *arguments: Any) -> T | None:
        """Return what a call returns; if it refuses, that is a problem and None."""
        try:
            return call(*arguments)
        except FieldError as error:
            self.say(f"{path}.{error.field}", error.message)
        except (MoesimError, ValueError) as error:
            self.say(path, str(error))
        except MemoryError:
            self.say(path, "this is too large for the memory of the machine that simulates it")
        return None

    def program(self, scenario: Scenario) -> Program | None:
        """Return the program of a step; what refuses it is the schedule, or a section that adds to it."""
        before = len(self.problems)
        stages = scenario.parallel.pp
        if stages > 1 and isinstance(scenario.schedule, Staged):
            blamed = "parallel.pp" if scenario.model.layers % stages else "schedule"
            bare = self.attempt(blamed, scenario.schedule.staged, scenario.model, scenario.workload, stages)
        else:
            bare = self.attempt("schedule", scenario.schedule.program, scenario.model, scenario.workload)
        if bare is None or len(self.problems) > before:
            return None
        parallel, training = scenario.parallel, scenario.training

        def whole(given: Training | None, spread: Parallel) -> Program:
            return step_program(scenario.schedule, scenario.model, scenario.workload, parallel=spread, training=given)

        uncut = replace(parallel, tp=1, etp=1)
        for path, given, spread in (("parallel.pp", None, uncut), ("training", training, uncut), ("parallel.tp", training, parallel)):
            bare = self.attempt(path, whole, given, spread)
            if bare is None:
                return None
        self.laid = bare
        return bare

    def policies(self, scenario: Scenario, setting: Setting, known: Fidelity | None) -> None:
        """Check the policy of the file, then its variants."""
        self.policy("policy", scenario.policy, None, setting, known)
        for name, variant in scenario.compare.items():
            self.policy(f"compare.{name}", variant, scenario.policy, setting, known)

    def policy(self, path: str, policy: Policy, base: Policy | None, setting: Setting, known: Fidelity | None) -> None:
        """Check one policy; what a variant shares with the base is said of the base."""
        blamed = {
            part: f"{path}.{part}" if base is None or getattr(policy, part) != getattr(base, part) else f"policy.{part}"
            for part in ("gate", "capacity", "placement", "dispatch")
        }
        if base is None or policy.placement != base.placement:
            placement = self.attempt(blamed["placement"], first_placement, policy.placement, setting)
            if placement is not None:
                self.memory(blamed["placement"], placement, setting)
        else:
            placement = self.base_placement
        if base is None:
            self.base_placement = placement
        placed = getattr(policy.placement, "kind", "unnamed")
        if getattr(policy.capacity, "by_rank", False) and placed != "contiguous":
            self.say(
                blamed["capacity"],
                f"capacity rule {policy.capacity.kind!r} has a limit per rank and counts the experts of a rank as placement contiguous "
                f"puts them, but the placement is {placed!r}; choose placement: contiguous or another capacity rule",
            )
        begun = [self.attempt(blamed[part], getattr(policy, part).begin, setting) for part in ("gate", "capacity", "dispatch")]
        if known is not None and placement is not None and None not in begun:
            self.fidelity(blamed, begun, _probe(setting, known), placement)

    def fidelity(self, blamed: dict[str, str], begun: list[Any], routing: LayerRouting, placement: Placement) -> None:
        """Take one token per GPU through the policy and the exchange, knowing no more of it than the recording does."""
        choose, limit, bind = begun
        part = "gate"
        try:
            chosen = choose(routing, step=0, moe_layer=0)
            part = "capacity"
            kept = limit(chosen, step=0, moe_layer=0)
            part = "dispatch"
            assignment = bind(kept, placement, step=0, moe_layer=0)
            part = "exchange"
            if self.carry is not None:
                self.carry(assignment)
        except FidelityError as error:
            self.say(blamed.get(part, part), str(error))

    def memory(self, path: str, placement: Placement, setting: Setting) -> None:
        """Refuse weights that do not fit; the number of GPUs is to blame unless redundant experts are."""
        model, gpu = setting.model, setting.cluster.gpu
        ranks, phase = setting.parallel.ep, setting.workload.phase
        slots = int(placement.slots_per_rank(ranks).max())
        needed = least_bytes(model, slots, phase, gpus=setting.gpus, groups=setting.expert_copies)
        if setting.parallel.tp > 1 or (self.laid is not None and self.laid.stages > 1):
            self.stages(slots)
            return
        if needed <= gpu.memory:
            return
        plain = least_bytes(model, -(-model.experts // ranks), phase, gpus=setting.gpus, groups=setting.expert_copies)
        what = "weights, gradients and optimiser states" if phase == "training" else "weights"
        message = (
            f"the {what} of {model.name} need {format_quantity(needed, 'B')} on a GPU with {slots} experts of each MoE layer, "
            f"but {gpu.name} has {format_quantity(gpu.memory, 'B')}"
        )
        if plain <= gpu.memory:
            self.say(path, f"{message}; without redundant experts it would be {format_quantity(plain, 'B')}")
        else:
            self.say("parallel.ep", f"{message}; use more ranks (ep), or fewer layers of the model, as one pipeline stage holds them")

    def stages(self, slots: int) -> None:
        """Refuse weights that do not fit on a GPU of some stage."""
        if self.laid is None or self.whole is None:
            return
        setting, gpu = self.whole, self.whole.cluster.gpu
        needed = [stage_weight_bytes(setting, layers_of_stage(self.laid, stage), slots, least=True) for stage in range(self.laid.stages)]
        worst = int(np.argmax(needed))
        if needed[worst] > gpu.memory:
            self.say(
                "parallel",
                f"the weights of {setting.model.name} need {format_quantity(needed[worst], 'B')} on a GPU of stage {worst}, but {gpu.name} "
                f"has {format_quantity(gpu.memory, 'B')}; use more ranks (ep), stages (pp) or tensor-parallel GPUs (tp)",
            )


def degrees(parallel: Parallel, cluster: Cluster) -> list[Problem]:
    """Return what is wrong with numbers of ranks that must divide each other."""
    gpus, found = cluster.gpus, []
    if gpus % parallel.pp:
        message = f"pp = {parallel.pp} does not divide the cluster's {gpus} GPUs into equal stages; choose one of {_divisors(gpus)}"
        return [Problem(path="parallel.pp", message=message)]
    stage = gpus // parallel.pp
    whose = f"the cluster's {gpus} GPUs" if parallel.pp == 1 else f"the {stage} GPUs of a stage"
    cut = (("ep * etp", parallel.block),) if parallel.etp > 1 and stage % parallel.ep == 0 else ()
    for name, size in (("ep", parallel.ep), ("tp", parallel.tp), *cut):
        if stage % size:
            message = f"{name} = {size} does not divide {whose} into equal groups; choose one of {_divisors(stage)}"
            found.append(Problem(path=f"parallel.{name.split()[-1]}", message=message))
    if cluster.shares_cores and parallel.pp * parallel.tp * parallel.etp > 1:
        found.append(
            Problem(path="parallel", message="ranks that share cores have no stages and no tensor parallelism here: use pp, tp and etp 1")
        )
    return found


def _divisors(number: int) -> str:
    return ", ".join(str(size) for size in range(1, number + 1) if number % size == 0)


def _probe(setting: Setting, known: Fidelity) -> LayerRouting:
    """Return one token on every GPU, with as much knowledge of it as ``known`` says."""
    cluster: Cluster = setting.cluster
    experts, top_k = setting.model.experts, setting.model.top_k
    token_start = np.arange(cluster.gpus + 1)
    ids = np.tile(np.arange(top_k), (cluster.gpus, 1))
    if known < Fidelity.TOKENS:
        return LayerRouting(experts=experts, token_start=token_start, counts=count_routes(ids, token_start, experts))
    return LayerRouting.of_tokens(
        ids,
        token_start,
        experts,
        weights=np.full(ids.shape, 1.0 / top_k) if known >= Fidelity.WEIGHTS else None,
        scores=np.tile(-np.arange(experts, dtype=np.float64), (cluster.gpus, 1)) if known >= Fidelity.SCORES else None,
    )
