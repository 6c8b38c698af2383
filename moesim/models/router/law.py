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
    kind_feedback : float
        A kind of tokens that sent an expert a share s of all tokens more than an equal part would be gains ``kind_feedback`` times s for
        that expert: what a token is made of keeps finding the same experts.
    kind_gain : float
        A gradient with respect to the logits of the tokens of one kind moves those logits by ``-kind_gain`` times it, beside what offsets
        move: a loss takes a frequent kind from its favourites.
    common : float
        How many times as far a gradient moves all offsets of a layer together as one against the others. Every weight of a router agrees on
        that direction, and an optimiser like Adam moves each by its full step. It matters to the z-loss, which is soon satisfied by it.
    limit : float or None
        The most that gradients move an offset in a step: an optimiser like Adam divides gradients by their own size. None: no limit.
    floor : float or None
        Gradients of a loss move an expert by 1 / sqrt(x + ``floor``) times as much, x being its load of late over the mean: optimisers like
        Adam divide them by the root of the squares that the expert's weights have seen, most of them from the language loss of its tokens.
        What raises all logits together moves an expert by 2 x / (x + 1) instead. None: all experts alike.
    memory : float
        The weight of the present step in that load of late, an exponential mean.
    reach : float
        The coefficient of a loss (balance and z together) at which experts without tokens learn half as much as others. With 0 they learn
        as much as others under any loss.
    noise_push : float
        For each unit of ``noise`` feedback, drive and random walks are that many times stronger in addition: what is chosen by chance is
        learned from as well.
    noise_growth : float
        The same for the growth of the tokens' own part: logits grow until noise no longer drowns them.
    drop_push : float
        For each route dropped of all routes, feedback and drive are that many times stronger in addition.
    sigmoid_push : float
        Where scores are sigmoids, feedback is that many times stronger in addition: one expert's score does not lower the others'.
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
    kind_feedback: float = 0.0
    kind_gain: float = 0.0
    common: float = 1.0
    limit: float | None = None
    floor: float | None = None
    memory: float = 0.05
    reach: float = 0.0
    noise_push: float = 0.0
    noise_growth: float = 0.0
    drop_push: float = 0.0
    sigmoid_push: float = 0.0
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
    "fading", "gain", "domain_gain", "kind_feedback", "kind_gain", "common", "limit", "floor", "reach", "noise_push", "noise_growth",
    "drop_push", "sigmoid_push", "drift", "domain_drift",
)  # fmt: skip
"""Constants that may change from layer to layer."""


def _by_layer(*values: float) -> Depths:
    """Return the corners of a constant that was fitted layer by layer."""
    return tuple((index / (len(values) - 1), value) for index, value in enumerate(values))


LAWS: dict[str, Law] = {
    "assumed": Law(),
    # Fitted to recorded trainings of a small language model (tests/data/trainings, trainings_blind); docs/models/training.md says how.
    "small-lm": Law(
        warmup=100.0,
        kinds=64,
        shared_kinds=1,
        fading=85.0,
        memory=0.05,
        decay=2e-4,
        drift=5e-4,
        fitted_at=(16, 2),
        deep=(
            ("scale", _by_layer(0.262, 0.204, 0.215, 0.222)),
            ("growth", _by_layer(0.0431, 0.0232, 0.0241, 0.021)),
            ("settling", _by_layer(150.0, 1500.0, 100000.0, 100000.0)),
            ("experts_start", _by_layer(0.03, 0.06, 0.06, 0.08)),
            ("domain_start", _by_layer(0.02, 0.03, 0.03, 0.03)),
            ("kind_share", _by_layer(0.672, 0.951, 0.862, 0.265)),
            ("sequence_share", _by_layer(0.258, 0.048, 0.122, 0.175)),
            ("feedback", _by_layer(0.00134, 0.000613, 0.000637, 0.000179)),
            ("domain_feedback", _by_layer(5.89e-06, 0.000543, 0.00186, 0.00192)),
            ("kind_feedback", _by_layer(0.00403, 0.0159, 0.0207, 0.0269)),
            ("drive", _by_layer(0.000818, 0.000354, 0.000607, 0.00646)),
            ("gain", _by_layer(0.00829, 0.533, 1.65, 0.159)),
            ("domain_gain", _by_layer(6.82, 16.0, 9.25, 17.5)),
            ("kind_gain", _by_layer(0.013, 0.59, 10.9, 3.01)),
            ("common", _by_layer(27.5, 291.0, 35.6, 242.0)),
            ("limit", _by_layer(0.137, 0.00931, 0.0355, 0.116)),
            ("floor", _by_layer(0.391, 0.688, 0.00515, 0.0795)),
            ("reach", _by_layer(0.173, 0.597, 0.00569, 0.000283)),
            ("noise_push", _by_layer(1.3, 2.29, 5.66, 0.0218)),
            ("noise_growth", _by_layer(6.6, 1.95, 2.67, 0.164)),
            ("drop_push", _by_layer(0.801, 0.682, 2.02, 0.0525)),
            ("sigmoid_push", _by_layer(1.29, 0.444, 0.53, 0.71)),
            ("domain_drift", _by_layer(0.00162, 0.0111, 0.000475, 0.0105)),
        ),
    ),
}
