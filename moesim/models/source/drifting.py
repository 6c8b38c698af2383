"""Offsets of experts that drift: an Ornstein-Uhlenbeck process seen at steps, whose law stays what it is."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from moesim.facts.arrays import Floats
from moesim.facts.scenario import Setting


def spread_of(rng: np.random.Generator, experts: int, *, offsets: str, scale: float, degrees: float) -> Floats:
    """Return float[E], by what a standard normal number of each expert is multiplied to follow the law of its offset.

    Parameters
    ----------
    rng : Generator
    experts : int
        E.
    offsets : str
        ``normal``, ``laplace`` or ``student_t``.
    scale, degrees : float
        Of that law.

    Notes
    -----
    All three are normal laws of random variance: exponential for Laplace, inverse chi-squared for Student's t (D. F. Andrews and C. L.
    Mallows, "Scale mixtures of normal distributions", J. R. Stat. Soc. B 36, 1974).
    """
    if offsets == "laplace":
        return np.asarray(scale * np.sqrt(2.0 * rng.exponential(size=experts)))
    if offsets == "student_t":
        return np.asarray(scale * np.sqrt(degrees / rng.chisquare(degrees, size=experts)))
    return np.full(experts, scale)


@dataclass(slots=True)
class Drifting:
    """The offsets of every layer and step of a run.

    An expert's variance is drawn once; its normal number follows z(s) = correlation z(s - 1) + sqrt(1 - correlation^2) times a new one, so
    that the law of an offset is the same at every step, and its correlation with itself n steps later is ``correlation`` to the power n
    (G. E. Uhlenbeck and L. S. Ornstein, "On the theory of the Brownian motion", Phys. Rev. 36, 1930).

    Parameters
    ----------
    setting : Setting
        For its sizes and streams.
    offsets, scale, degrees : str and float
        The law.
    correlation : float
        0 to 1.
    """

    setting: Setting
    offsets: str
    scale: float
    degrees: float
    correlation: float
    _latest: dict[int, tuple[int, Floats]] = field(default_factory=dict)

    def at(self, step: int, layer: int) -> Floats:
        """Return float[E]; the same whatever was asked before."""
        experts = self.setting.model.experts
        at, walk = self._latest.get(layer, (-1, np.zeros(experts)))
        if at > step:
            at, walk = -1, np.zeros(experts)
        fresh = np.sqrt(1.0 - self.correlation**2)
        for number in range(at + 1, step + 1):
            new = self.setting.rng("source", "router", "drift", number, layer).standard_normal(experts)
            walk = new if number == 0 else self.correlation * walk + fresh * new
        self._latest[layer] = step, walk
        rng = self.setting.rng("source", "router", "offsets", layer)
        return np.asarray(spread_of(rng, experts, offsets=self.offsets, scale=self.scale, degrees=self.degrees) * walk)
