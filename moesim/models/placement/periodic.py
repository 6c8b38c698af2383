"""Rebalancing every so many steps from the loads of a window: the clockwork that serving frameworks share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from moesim.facts.arrays import Ints
from moesim.facts.contracts import View
from moesim.facts.placement import Placement

Rebalance = Callable[[Ints, Placement], Placement | None]
"""From the loads of the window, int[steps, L, E], and the present placement: the next one, or None to keep it."""


@dataclass(slots=True)
class Periodic:
    """A plan that starts with a layout and rebalances before the steps ``due``, ``due + interval``, and so on.

    Parameters
    ----------
    start : Placement
        In place until the first rebalance: no load is known yet.
    rebalance : callable
        Plans from the last ``window`` steps.
    window, interval : int
        Steps of load that a plan looks at, and steps between plans.
    due : int
        The step before which it first rebalances, at least 1.
    """

    start: Placement
    rebalance: Rebalance
    window: int
    interval: int
    due: int

    def __call__(self, view: View) -> Placement | None:
        """Return the start layout first, then a new placement whenever one is due, otherwise None."""
        if view.placement is None:
            return self.start
        if view.step < self.due or not len(view.loads):
            return None
        self.due += (view.step - self.due) // self.interval * self.interval + self.interval
        return self.rebalance(view.loads[-self.window :], view.placement)
