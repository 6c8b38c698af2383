"""The constants of a router that trains: what they were fitted to, or that they are assumed."""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """How a router starts and how fast it changes, in units of logits and per training step.

    Parameters
    ----------
    scale : float
        Standard deviation of the tokens' own part of a logit at step 0.
    growth : float
        That part's variance grows by ``growth`` squared per step: experts learn to tell tokens apart, and updates of the router's weights
        add up like a random walk.
    experts_start, domain_start : float
        Standard deviations of the offsets of experts, and of domains' own ones, at step 0.
    kinds : int
        Kinds of tokens in a domain; the j-th most frequent has a share in proportion to 1 / j, as words and letters do (Zipf).
    kind_share : float
        The share of the tokens' own part (of its variance) that all tokens of a kind have in common.
    sequence_share : float
        The share that all tokens of a sequence have in common: neighbours are about one thing.
    feedback : float
        An expert that gets x times the mean load gains ``feedback`` times 2 (x - 1) / (x + 1): it sees more tokens, learns more, and is
        chosen more.
    domain_feedback : float
        The same for the tokens of one domain, beyond what all domains have in common.
    drive : float
        Standard deviation of a push that an expert has from the start and for good, whatever its load: what tokens have in common grows
        while a model is young, and favours some experts. It fades as the square of what feedback
        fades by, so that all of it together is ``drive`` times ``fading``.
    fading : float or None
        Steps after which feedback has fallen to half, as 1 / (1 + step / fading): the first tokens teach an expert most. None: it never
        falls.
    depth : float
        How much faster feedback and drive are in the last layer than in the first. The exponent grows with the cube of the place between
        them, so most of it is in the last layers: there, tokens of a young model have most in common.
    gain : float
        A gradient of a loss with respect to the offset of an expert moves it by ``-gain`` times the gradient.
    common : float
        How many times as far a gradient moves all offsets of a layer together as one against the others. Every weight of a router agrees on
        that direction, and an optimiser like Adam moves each by its full step. It matters to the z-loss, which is soon satisfied by it.
    limit : float or None
        The most that gradients move an offset in a step: an optimiser like Adam divides gradients by their own size. None: no limit.
    decay : float
        The share of all offsets that is lost.
    drift : float
        Standard deviation of a random walk of the offsets, from everything else that training changes.
    domain_drift : float
        The same of the domains' own offsets.
    fitted_at : tuple of int or None
        Experts of a layer and choices of a token where it was fitted to recordings; None where it is assumed.
    """

    scale: float = 1.0
    growth: float = 0.0
    experts_start: float = 0.05
    domain_start: float = 0.1
    kinds: int = 1
    kind_share: float = 0.0
    sequence_share: float = 0.0
    feedback: float = 2e-3
    domain_feedback: float = 1e-3
    drive: float = 0.0
    fading: float | None = None
    depth: float = 1.0
    gain: float = 1.0
    common: float = 1.0
    limit: float | None = None
    decay: float = 1e-3
    drift: float = 1e-3
    domain_drift: float = 0.0
    fitted_at: tuple[int, int] | None = None

    @property
    def has_kinds(self) -> bool:
        """Whether tokens of a kind have something in common."""
        return self.kinds > 1 and self.kind_share > 0

    def faded(self, step: int) -> float:
        """Return what is left of feedback in a step."""
        return 1.0 if self.fading is None else 1.0 / (1.0 + step / self.fading)

    def haste(self, layer: int, layers: int) -> float:
        """Return how much faster feedback and drive are in a layer than in the first."""
        return float(self.depth ** ((layer / max(layers - 1, 1)) ** 3))

    def spread(self, step: int) -> float:
        """Return the standard deviation of the tokens' own part of a logit in a step."""
        return hypot(self.scale, self.growth * step**0.5)


LAWS: dict[str, Law] = {
    "assumed": Law(),
    # Fitted to four recorded trainings of a small language model (tests/data/trainings); docs/models/training.md says how.
    "small-lm": Law(
        scale=0.15,
        growth=0.0185,
        experts_start=0.045,
        domain_start=0.02,
        kinds=64,
        kind_share=0.54,
        sequence_share=0.13,
        feedback=1.25e-3,
        domain_feedback=1.4e-3,
        drive=3.2e-3,
        fading=30.0,
        depth=6.67,
        gain=1.35,
        common=20.0,
        decay=2e-4,
        drift=5e-4,
        domain_drift=1e-4,
        fitted_at=(16, 2),
    ),
}
