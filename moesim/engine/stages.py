"""What a step asks of one stage of a pipeline, laid over the GPUs of all stages."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from moesim.engine.load import LayerLoad, StepLoad
from moesim.facts.group_traffic import GroupTraffic
from moesim.facts.program import Program
from moesim.facts.traffic import Exchange, Traffic
from moesim.models.stages import stage_of_layers

N = TypeVar("N", np.int64, np.float64)


def over_stages(load: StepLoad, program: Program, stages: int) -> StepLoad:
    """Return a load of all GPUs from that of one stage: every layer on the GPUs that run it, and nothing of it on others.

    Routing stays that of a stage, whose tokens are those of the step. Tokens and seconds are repeated for every stage: a stage asks for
    those of its own layers only.

    Parameters
    ----------
    load : StepLoad
        Arrays over the GPUs of a stage.
    program : Program
    stages : int
        How many there are.
    """
    if stages == 1:
        return load
    stage_of = stage_of_layers(program, 1 + max(task.work.layer for task in program.tasks))
    placing = _Placing(stages)
    moe_layer_stage = {task.work.moe_layer: int(stage_of[task.work.layer]) for task in program.tasks if task.work.moe_layer >= 0}
    return dataclasses.replace(
        load,
        layers=tuple(placing.layer(layer, moe_layer_stage[number]) for number, layer in enumerate(load.layers)),
        parts=tuple(tuple(placing.layer(layer, moe_layer_stage[number]) for number, layer in enumerate(part)) for part in load.parts),
        seconds={work: np.tile(seconds, stages) for work, seconds in load.seconds.items()},
    )


class _Placing:
    """Lays arrays over the GPUs of all stages; the same object is laid over the same stage once."""

    def __init__(self, stages: int) -> None:
        self._stages = stages
        self._layers: dict[tuple[int, int], LayerLoad] = {}

    def layer(self, layer: LayerLoad, stage: int) -> LayerLoad:
        """Return a layer on the GPUs of a stage."""
        key = (id(layer), stage)
        if key not in self._layers:
            self._layers[key] = dataclasses.replace(
                layer,
                exchange={direction: self._exchange(exchange, stage) for direction, exchange in layer.exchange.items()},
                rows=self._row(layer.rows, stage),
                padding=self._row(layer.padding, stage),
                arrived=self._row(layer.arrived, stage),
                tokens=np.tile(layer.tokens, self._stages),
                guests=self._row(layer.guests, stage),
            )
        return self._layers[key]

    def _exchange(self, exchange: Exchange, stage: int) -> Exchange:
        def traffic(one: Traffic) -> Traffic:
            if isinstance(one, GroupTraffic):
                return GroupTraffic.of_groups(
                    self._row(one.among(one.ranks), stage),
                    self._row(one.copies_among(one.ranks), stage),
                    self._row(one.padding_among(one.ranks), stage),
                )
            return Traffic(
                bytes=self._square(one.bytes, stage), copies=self._square(one.copies, stage), padding=self._square(one.padding, stage)
            )

        return dataclasses.replace(
            exchange,
            dispatch=tuple(traffic(one) for one in exchange.dispatch),
            combine=tuple(traffic(one) for one in exchange.combine),
            dispatch_counted=self._row(exchange.dispatch_counted, stage),
            combine_counted=self._row(exchange.combine_counted, stage),
        )

    def _row(self, values: NDArray[N], stage: int) -> NDArray[N]:
        whole = np.zeros((len(values) * self._stages, *values.shape[1:]), dtype=values.dtype)
        whole[stage * len(values) : (stage + 1) * len(values)] = values
        return whole

    def _square(self, values: NDArray[N], stage: int) -> NDArray[N]:
        size = len(values)
        whole = np.zeros((size * self._stages, size * self._stages), dtype=values.dtype)
        block = slice(stage * size, (stage + 1) * size)
        whole[block, block] = values
        return whole
