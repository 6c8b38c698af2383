"""The constants of a router that trains: what they were fitted to, or that they are assumed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from moesim.models.router.coefficients import Depths, at_depth


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """How a router starts and how fast it changes, in units of logits and per training step.

    Parameters
    ----------
    scale : float
        Standard deviation of the tokens' own part of a logit at step 0.
    growth : float
        That part's variance grows by ``growth`` squared per step: experts learn to tell tokens apart, and updates of the router's weights
        add up like a random walk. Without a loss on the router it is 2 x / (x + 1) times as much for an expert with x times the mean load:
        one that gets no tokens learns nothing, is seldom among the best, and stays dead.
    settling : float or None
        Steps after which that growth has fallen to a quarter, and its sum to half of what it would be: the first layer soon knows its
        tokens apart. None: it goes on.
    warmup : float
        Steps over which the learning rate rises in a straight line; growth is slower then, by the square of what is missing.
    experts_start, domain_start : float
        Standard deviations of the offsets of experts, and of domains' own ones, at step 0.
    kinds : int
        Kinds of tokens in a domain; the j-th most frequent has a share in proportion to 1 / j, as words and letters do (Zipf).
    shared_kinds : int
        How many of the most frequent kinds are the same in all domains, as the space between words is; the others are a domain's own.
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
    gain : float
        A gradient of a loss with respect to the offset of an expert moves it by ``-gain`` times the gradient.
    domain_gain : float or None
        The same for what a domain's own offsets are moved by the gradients of its tokens. None: as ``gain``.
    kind_gain : float
        A gradient with respect to the logits of the tokens of one kind moves those logits by ``-kind_gain`` times it, beside what offsets
        move: a loss takes a frequent kind from its favourites.
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
    deep : tuple
        Pairs of the name of one of the constants in :data:`DEEP` and its corners ``((depth, value), ...)`` over depth, from 0 in the first
        layer to 1 in the last; :meth:`of_layer` puts them in place of the single value.
    """

    scale: float = 1.0
    growth: float = 0.0
    settling: float | None = None
    warmup: float = 0.0
    experts_start: float = 0.05
    domain_start: float = 0.1
    kinds: int = 1
    shared_kinds: int = 0
    kind_share: float = 0.0
    sequence_share: float = 0.0
    feedback: float = 2e-3
    domain_feedback: float = 1e-3
    drive: float = 0.0
    fading: float | None = None
    gain: float = 1.0
    domain_gain: float | None = None
    kind_gain: float = 0.0
    common: float = 1.0
    limit: float | None = None
    decay: float = 1e-3
    drift: float = 1e-3
    domain_drift: float = 0.0
    fitted_at: tuple[int, int] | None = None
    deep: tuple[tuple[str, Depths], ...] = ()

    @property
    def has_kinds(self) -> bool:
        """Whether tokens of a kind have something in common."""
        return self.kinds > 1 and (self.kind_share > 0 or "kind_share" in dict(self.deep))

    def faded(self, step: int) -> float:
        """Return what is left of feedback in a step."""
        return 1.0 if self.fading is None else 1.0 / (1.0 + step / self.fading)

    def grown(self, step: float) -> float:
        """Return by how much the variance of the tokens' own part has grown until a step, for an expert of mean load."""
        # The sum of the squares of the learning rate, in full steps: s^3 / (3 w^2) while it rises, and then one for each step.
        warm = step**3 / (3.0 * self.warmup**2) if step < self.warmup else step - 2.0 * self.warmup / 3.0
        slowed = warm if self.settling is None else warm / (1.0 + warm / self.settling)
        return self.growth**2 * slowed

    def of_layer(self, layer: int, layers: int) -> Law:
        """Return the law of one layer of so many, with single values only."""
        depth = layer / max(layers - 1, 1)
        values: dict[str, Any] = {name: at_depth(corners, depth) for name, corners in self.deep}
        return replace(self, deep=(), **values)


DEEP = (
    "scale", "growth", "settling", "experts_start", "domain_start", "kind_share", "sequence_share", "feedback", "domain_feedback", "drive",
    "fading", "gain", "domain_gain", "kind_gain", "drift", "domain_drift",
)  # fmt: skip
"""Constants that may change from layer to layer."""


def _by_layer(*values: float) -> Depths:
    """Return the corners of a constant that was fitted layer by layer."""
    return tuple((index / (len(values) - 1), value) for index, value in enumerate(values))


LAWS: dict[str, Law] = {
    "assumed": Law(),
    # Fitted to four recorded trainings of a small language model (tests/data/trainings); docs/models/training.md says how.
    "small-lm": Law(
        warmup=100.0,
        kinds=64,
        shared_kinds=1,
        fading=85.0,
        common=20.0,
        decay=2e-4,
        drift=5e-4,
        fitted_at=(16, 2),
        deep=(
            ("scale", _by_layer(0.201, 0.184, 0.155, 0.146)),
            ("growth", _by_layer(0.0422, 0.0263, 0.0264, 0.0254)),
            ("settling", _by_layer(150.0, 1500.0, 100000.0, 100000.0)),
            ("experts_start", _by_layer(0.03, 0.06, 0.06, 0.08)),
            ("domain_start", _by_layer(0.02, 0.03, 0.03, 0.03)),
            ("kind_share", _by_layer(0.86, 0.78, 0.62, 0.45)),
            ("sequence_share", _by_layer(0.136, 0.123, 0.185, 0.161)),
            ("feedback", _by_layer(0.000721, 0.000742, 7.63e-05, 0.000126)),
            ("domain_feedback", _by_layer(0.000247, 0.00104, 0.00163, 0.00232)),
            ("drive", _by_layer(0.000912, 0.00131, 0.00144, 0.00784)),
            ("gain", _by_layer(0.114, 0.176, 0.3, 0.182)),
            ("domain_gain", _by_layer(1.01, 4.35, 3.99, 12.0)),
            ("kind_gain", _by_layer(0.0314, 0.385, 0.44, 0.535)),
            ("domain_drift", _by_layer(0.00232, 0.00667, 0.00399, 0.0121)),
        ),
    ),
}
