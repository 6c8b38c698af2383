"""Computing beside communication whose kernels hold SMs: what is computed meanwhile is slower by the share that they hold."""

from __future__ import annotations

import simpy

from moesim.base.errors import PluginError


class HeldSms:
    """The SMs of each GPU, lent to communication while it is under way.

    A kernel that would take w seconds on the whole GPU does w seconds of work at the rate 1 - h, h being the share of the SMs that
    communication holds at that moment. Communication kernels hold their SMs from their launch to their end, waiting for peers included:
    they poll.

    Parameters
    ----------
    env : simpy.Environment
        The clock.
    gpus : int
        G.
    """

    def __init__(self, env: simpy.Environment, gpus: int) -> None:
        self._env = env
        self._held = [0.0] * gpus
        self._running: list[dict[simpy.Event, float]] = [{} for _ in range(gpus)]
        self._reached = [0.0] * gpus
        self._plans = [0] * gpus

    def contended(self, gpu: int) -> bool:  # noqa: ARG002 - the same contract as shared cores
        """Tell that a kernel's end is not known when it starts."""
        return True

    def run(self, gpu: int, seconds: float) -> simpy.Event:
        """Start a kernel that takes ``seconds`` on the whole GPU; the event fires when it is done."""
        self._advance(gpu)
        event = self._env.event()
        self._running[gpu][event] = seconds
        self._plan(gpu)
        return event

    def hold(self, gpu: int, share: float) -> None:
        """Let communication have a share of a GPU's SMs from now on; a negative share gives it back.

        Raises
        ------
        PluginError
            If nothing would be left to compute with.
        """
        if not share:
            return
        self._advance(gpu)
        held = self._held[gpu] + share
        if held >= 1:
            raise PluginError(f"communication of GPU {gpu} holds all its SMs: give the exchange fewer communication_sms")
        self._held[gpu] = held if held > 1e-12 else 0.0
        self._plan(gpu)

    def _advance(self, gpu: int) -> None:
        now = self._env.now
        done = (now - self._reached[gpu]) * (1.0 - self._held[gpu])
        if done > 0:
            for event in self._running[gpu]:
                self._running[gpu][event] -= done
        self._reached[gpu] = now

    def _plan(self, gpu: int) -> None:
        """Set an alarm for the kernel that ends next; earlier alarms are stale from now on."""
        self._plans[gpu] += 1
        if not self._running[gpu]:
            return
        plan = self._plans[gpu]
        soonest = min(self._running[gpu], key=self._running[gpu].__getitem__)
        alarm = self._env.timeout(max(self._running[gpu][soonest], 0.0) / (1.0 - self._held[gpu]))
        alarm.callbacks.append(lambda _: self._end(gpu, plan, soonest))

    def _end(self, gpu: int, plan: int, event: simpy.Event) -> None:
        if plan != self._plans[gpu]:
            return
        self._advance(gpu)
        del self._running[gpu][event]
        event.succeed()
        self._plan(gpu)
