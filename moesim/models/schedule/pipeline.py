"""Pipeline parallelism: one forward, one backward."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated

from moesim.base.errors import PluginError
from moesim.base.fields import Whole
from moesim.base.registry import register
from moesim.facts.collective import GradientCalls
from moesim.facts.model import MoeModel
from moesim.facts.program import (
    BACKWARD,
    COLLECTIVES,
    COMMUNICATION,
    COMPUTE,
    FORWARD,
    GRADIENTS,
    PIPELINE,
    RECEIVE,
    SEND,
    Program,
    Task,
    Work,
)
from moesim.facts.scenario import Workload
from moesim.models.schedule.building import work_of
from moesim.models.schedule.sequential import layer_phases


@register("schedule", "pipeline")
@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline(GradientCalls):
    """Run micro-batches through ``parallel.pp`` stages of the model, one forward and one backward in turn (1F1B).

    A stage begins with as many forward passes as there are stages behind it, then alternates forward and backward, and ends with the
    backward passes that are left. What a stage hands on leaves at once, beside what it computes next. With ``chunks`` above 1 each stage
    holds several pieces of the model and goes through them in groups of ``pp`` micro-batches (interleaved 1F1B). Gradients of a layer
    are reduced after the last micro-batch's backward pass, as ``overlapped_gradients`` does, among the GPUs of the stage. Inference
    runs forward only. Within a stage nothing overlaps but hand-overs and gradients.

    Parameters
    ----------
    microbatches : int
        Micro-batches of a step, at least as many as stages; their tokens are equal parts of each GPU's. The tokens of a step go through all
        stages, so only GPUs of one stage count for ``workload.tokens_per_gpu``.
    chunks : int
        Pieces of the model on each stage, which then divide its layers with the stages; above 1, stages must divide the micro-batches.

    Notes
    -----
    The orders are those of ``forward_backward_pipelining_without_interleaving`` and ``..._with_interleaving`` in NVIDIA/Megatron-LM
    (``megatron/core/pipeline_parallel/schedules.py``); the bubble is (p - 1) / (m v + p - 1) of a step with p equal stages, m
    micro-batches and v chunks (Narayanan et al., arXiv:2104.04473, section 2.2). Every layer counts as one, embedding and head as none.
    """

    microbatches: Annotated[int, Whole(1, 4096)] = 8
    chunks: Annotated[int, Whole(1, 64)] = 1

    def program(self, model: MoeModel, workload: Workload) -> Program:
        """Return the tasks of one step on one stage: its micro-batches one after another, gradients at the end."""
        return self.staged(model, workload, 1)

    def staged(self, model: MoeModel, workload: Workload, stages: int) -> Program:
        """Return the tasks of one step.

        Raises
        ------
        PluginError
            If stages and chunks do not divide the layers, or there are too few micro-batches or tokens.
        """
        self._check(model, workload, stages)
        training = workload.phase == "training"
        orders = [deque(_order(stage, stages, self.microbatches, self.chunks, training=training)) for stage in range(stages)]
        laying = _Laying(model, stages, self.chunks, self.microbatches, self.gather_parameters)
        while any(orders):
            # Of each stage as much as does not wait for what is not in the list yet: so every receive comes after its send.
            before = len(laying.tasks)
            for stage, order in enumerate(orders):
                while order and laying.ready(stage, *order[0]):
                    laying.run(stage, *order.popleft())
            if len(laying.tasks) == before:
                raise PluginError("the stages of the pipeline wait for each other: the order of micro-batches has a cycle")
        if training:
            laying.gather()
        return Program(tasks=tuple(laying.tasks))

    def _check(self, model: MoeModel, workload: Workload, stages: int) -> None:
        pieces = stages * self.chunks
        if model.layers % pieces:
            what = f"{stages} stages" + (f" of {self.chunks} chunks" if self.chunks > 1 else "")
            raise PluginError(f"{what} do not divide the {model.layers} layers of {model.name}: every piece needs equally many layers")
        if self.chunks > 1 and stages == 1:
            raise PluginError(f"chunks = {self.chunks} interleaves stages, but parallel.pp is 1: write chunks: 1")
        if self.microbatches < stages:
            raise PluginError(
                f"{self.microbatches} micro-batches are too few for {stages} stages, some of which would always idle: use at least {stages}"
            )
        if self.chunks > 1 and self.microbatches % stages:
            raise PluginError(f"interleaving needs microbatches that {stages} stages divide, and {self.microbatches} is not such a number")
        if workload.tokens_per_gpu < self.microbatches:
            raise PluginError(
                f"schedule pipeline cuts {workload.tokens_per_gpu} tokens of a GPU into {self.microbatches} micro-batches: give it at most "
                "as many, or more workload.tokens_per_gpu"
            )


def _order(stage: int, stages: int, microbatches: int, chunks: int, *, training: bool) -> Iterator[tuple[str, int, int]]:
    """Yield what a stage does in turn: direction, chunk and micro-batch."""
    total = microbatches * chunks
    ahead = [(FORWARD, *_virtual(number, stages, chunks)) for number in range(total)]
    if not training:
        yield from ahead
        return
    back = [(BACKWARD, chunks - 1 - chunk, microbatch) for _, chunk, microbatch in ahead]
    warmup = stages - 1 - stage if chunks == 1 else 2 * (stages - 1 - stage) + (chunks - 1) * stages
    warmup = min(warmup, total)
    yield from ahead[:warmup]
    for forward, backward in zip(ahead[warmup:], back, strict=False):
        yield forward
        yield backward
    yield from back[total - warmup :]


def _virtual(number: int, stages: int, chunks: int) -> tuple[int, int]:
    """Return the chunk and the micro-batch of a stage's forward passes in their order."""
    if chunks == 1:
        return 0, number
    round_, place = divmod(number, stages * chunks)
    return place // stages, round_ * stages + place % stages


@dataclass(slots=True)
class _Laying:
    """Lays tasks of all stages into one list."""

    model: MoeModel
    stages: int
    chunks: int
    microbatches: int
    gathers: bool
    tasks: list[Task] = field(default_factory=list)
    place: dict[Work, int] = field(default_factory=dict)
    reached: dict[int, int] = field(default_factory=dict)

    def ready(self, stage: int, direction: str, chunk: int, microbatch: int) -> bool:
        """Tell whether what a stage would do next only waits for what is in the list already."""
        arrival = self._arrival(stage, direction, chunk, microbatch)
        return arrival is None or replace(arrival, phase=SEND) in self.place

    def run(self, stage: int, direction: str, chunk: int, microbatch: int) -> None:
        """Add one pass of a micro-batch through the layers of a chunk."""
        arrival = self._arrival(stage, direction, chunk, microbatch)
        if arrival is not None:
            self._next(arrival, stage)
        layers = self._layers(stage, chunk)
        for layer in layers if direction == FORWARD else reversed(layers):
            phases = layer_phases(self.model, layer)
            for phase in phases if direction == FORWARD else reversed(phases):
                self._next(work_of(self.model, phase, layer, direction, microbatch), stage)
                if direction == BACKWARD and microbatch == self.microbatches - 1 and phase in ("experts", "attention"):
                    name = "expert_gradients" if phase == "experts" else "gradients"
                    self._beside(work_of(self.model, name, layer, BACKWARD, microbatch), stage, GRADIENTS)
        onward = layers[-1] + 1 if direction == FORWARD else layers[0] - 1
        if 0 <= onward < self.model.layers:
            self._beside(work_of(self.model, SEND, onward, direction, microbatch), stage, PIPELINE)

    def gather(self) -> None:
        """Add what brings updated weights to all GPUs of each stage."""
        if not self.gathers:
            return
        for stage in range(self.stages):
            for chunk in range(self.chunks):
                for layer in self._layers(stage, chunk):
                    names = ("parameters", "expert_parameters") if layer in self.model.moe_layers else ("parameters",)
                    for name in names:
                        self._beside(work_of(self.model, name, layer, BACKWARD, self.microbatches - 1), stage, GRADIENTS)

    def _layers(self, stage: int, chunk: int) -> range:
        each = self.model.layers // (self.stages * self.chunks)
        first = (chunk * self.stages + stage) * each
        return range(first, first + each)

    def _arrival(self, stage: int, direction: str, chunk: int, microbatch: int) -> Work | None:
        """Return what a pass waits for from another stage; at the two ends of the model there is nothing."""
        layers = self._layers(stage, chunk)
        entry = layers[0] if direction == FORWARD else layers[-1]
        if entry == (0 if direction == FORWARD else self.model.layers - 1):
            return None
        return work_of(self.model, RECEIVE, entry, direction, microbatch)

    def _next(self, work: Work, stage: int) -> None:
        self._add(work, stage, COMMUNICATION if work.phase in COLLECTIVES else COMPUTE)
        self.reached[stage] = len(self.tasks) - 1

    def _beside(self, work: Work, stage: int, lane: str) -> None:
        self._add(work, stage, lane)

    def _add(self, work: Work, stage: int, lane: str) -> None:
        self.place[work] = len(self.tasks)
        after = (self.reached[stage],) if stage in self.reached else ()
        self.tasks.append(Task(work=work, lane=lane, after=after, stage=stage))
