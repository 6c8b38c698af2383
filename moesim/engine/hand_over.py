"""From one stage of a pipeline to the next: activations forward, their gradients backward."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import simpy

from moesim.engine.fabric import Fabric
from moesim.facts.program import FORWARD, SEND, Work


class HandOvers:
    """The hand-overs of one step between GPUs of the same place in neighbouring stages; the last stage hands on to the first.

    A receiver has posted its buffers before, so bytes move as soon as they are sent; they share links with all other traffic.

    Parameters
    ----------
    env : simpy.Environment
    fabric : Fabric
    gpus, stage_gpus : int
        Of all stages and of one.
    each : float
        Bytes of a token.
    """

    def __init__(self, env: simpy.Environment, fabric: Fabric, gpus: int, stage_gpus: int, each: float) -> None:
        self._env = env
        self._fabric = fabric
        self._gpus = gpus
        self._stage_gpus = stage_gpus
        self._each = each
        self._arrived: dict[tuple[Work, int], simpy.Event] = {}

    def send(self, work: Work, gpu: int, tokens: int) -> tuple[float, simpy.Event]:
        """Send a micro-batch's tokens; return their bytes and an event that fires when they have arrived."""
        peer = (gpu + (self._stage_gpus if work.direction == FORWARD else -self._stage_gpus)) % self._gpus
        event = self._event(work, peer)
        size = tokens * self._each
        if size <= 0:
            event.succeed()
            return 0.0, event

        def arrived() -> None:
            self._fabric.unwatch(counter)
            event.succeed()

        counter = self._fabric.watch(arrived)
        self._fabric.transfer(np.array([gpu]), np.array([peer]), np.array([size]), np.array([[counter, counter]], dtype=np.int32))
        return size, event

    def receive(self, work: Work, gpu: int) -> tuple[int, simpy.Event]:
        """Return who sends what a GPU receives, and the event that fires when it has arrived."""
        peer = (gpu - (self._stage_gpus if work.direction == FORWARD else -self._stage_gpus)) % self._gpus
        return peer, self._event(replace(work, phase=SEND), gpu)

    def _event(self, work: Work, gpu: int) -> simpy.Event:
        return self._arrived.setdefault((work, gpu), self._env.event())
