"""A router that trains: imbalance that grows, and what balancing does about it, step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import FieldError, PluginError
from moesim.base.fields import Choice, Count, CountOrZero, Flag, NotNegative, Number, section
from moesim.base.registry import PluginOf, plugin, register
from moesim.facts.arrays import Floats, Ints
from moesim.facts.contracts import Choose, Draw, Learn, Limit
from moesim.facts.routing import LayerRouting, Routing
from moesim.facts.scenario import Setting
from moesim.models.router.coefficients import Coefficient, at_step
from moesim.models.router.dynamics import Rates, RouterState, advance
from moesim.models.source.on_demand import LayersOnDemand

SCOPES = ("micro_batch", "sequence", "batch")


def _default(slot: str, kind: str) -> Callable[[], Any]:
    def make() -> Any:
        return plugin(slot, kind)()

    return make


@section
@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """What tokens are about changes during the run.

    Parameters
    ----------
    at : int
        The training step from which on it is different.
    mixture : list of float
        The weight of each domain from then on.
    """

    at: Count
    mixture: tuple[NotNegative, ...]


@register("source", "training")
@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Train a router: experts that get tokens get better and are chosen more, unless something keeps them even.

    The logit of token t for expert e is ``offset_e + offset of the token's domain_e + noise``, as in the source ``router``, but the offsets
    change after every step: by feedback (an expert with more than the mean load gains), by the gradients of the auxiliary loss and the
    z-loss, by decay and by a random walk. Biases and quantiles of gates are updated exactly. Domains of tokens stick: a token has the
    domain of the one before it with probability ``stickiness``.

    It says how loads, drops and step times develop under a strategy. It does not predict the loss of the model.

    Parameters
    ----------
    gate : plug-in
        How the router chooses while it trains: ``topk``, ``loss_free``, ``quantile``, ``noisy_topk``, ``input_jitter`` and so on. The
        scenario's own ``policy.gate`` stays ``as_given``.
    capacity : plug-in
        What is dropped before experts learn and gates count; give it the rule of ``policy.capacity``. ``null`` drops nothing.
    auxiliary : float or list
        Coefficient of the balance loss, or its corners ``[[step, coefficient], ...]``.
    scope : str
        Over which tokens the balance loss is taken: those of a GPU (``micro_batch``), of a ``sequence``, or of all GPUs (``batch``).
    z : float or list
        Coefficient of the router z-loss, or its corners.
    freeze_gate_at : int or None
        The training step from which on the gate's biases stay as they are.
    stride : int
        Training steps for each simulated step: with 20, a hundred simulated steps show two thousand.
    first : int
        The training step with which the simulation begins.
    experts_start : float
        Standard deviation of the offsets at step 0.
    domains : int
        How many kinds of text there are.
    domain_start : float
        Standard deviation of the domains' own offsets at step 0.
    mixture : list of float or null
        Weight of each domain; equal if left out.
    stickiness : float
        Probability that a token has the domain of the token before it in its sequence.
    sequence_length : int
        Tokens of a sequence.
    shift : section or null
        A change of the mixture.
    feedback, domain_feedback, gain, decay, drift : float
        How fast the router changes, per training step; see :class:`moesim.models.router.dynamics.Rates`.
    scores : bool
        Keep float32[T, E] logits in every layer.

    Notes
    -----
    Positive feedback is what keeps a few experts alive and lets the others die without balancing (OLMoE, arXiv:2409.02060, figure 10). That
    it is linear in the excess load is an assumption, and so are the rates unless the documentation of a preset says what they were fitted
    to.
    """

    gate: Annotated[Any, PluginOf("gate", "topk")] = field(default_factory=_default("gate", "topk"))
    capacity: Annotated[Any, PluginOf("capacity")] = field(default_factory=_default("capacity", "dropless"))
    auxiliary: Coefficient = ((0, 0.0),)
    scope: Annotated[str, Choice(SCOPES)] = "micro_batch"
    z: Coefficient = ((0, 0.0),)
    freeze_gate_at: Count | None = None
    stride: Count = 1
    first: CountOrZero = 0
    experts_start: NotNegative = 0.05
    domains: Count = 4
    domain_start: NotNegative = 0.1
    mixture: tuple[NotNegative, ...] | None = None
    stickiness: Annotated[float, Number(0.0, 1.0)] = 0.95
    sequence_length: Count = 1024
    shift: Shift | None = None
    feedback: NotNegative = 2e-3
    domain_feedback: NotNegative = 1e-3
    gain: NotNegative = 1.0
    decay: Annotated[float, Number(0.0, 1.0)] = 1e-3
    drift: NotNegative = 1e-3
    scores: Flag = False

    def __post_init__(self) -> None:
        for name, mixture in (("mixture", self.mixture), ("shift", self.shift.mixture if self.shift else None)):
            if mixture is not None and len(mixture) != self.domains:
                raise FieldError(name, f"the mixture has {len(mixture)} weights for {self.domains} domains: give one for each")
            if mixture is not None and not sum(mixture):
                raise FieldError(name, "all weights of the mixture are 0: give at least one domain some")

    def begin(self, setting: Setting) -> Draw:
        """Return the draws of one run.

        Raises
        ------
        PluginError
            If ``as_given`` is to choose, which has nothing to choose from.
        """
        if self.gate.kind == "as_given":
            raise PluginError(
                "routing.gate of a training source must choose by scores, and as_given keeps choices that are there: use topk"
            )
        return _Run(self, setting).draw


class _Run:
    """One run; it remembers how far every layer has come, and starts a layer again if an earlier step is asked for."""

    def __init__(self, source: Training, setting: Setting) -> None:
        self._source = source
        self._setting = setting
        self._tokens = setting.workload.tokens_per_gpu
        self._token_start = np.arange(setting.gpus + 1, dtype=np.int64) * self._tokens
        self._layers: dict[int, _Layer] = {}
        self._domains: tuple[int, Ints] | None = None

    def draw(self, step: int) -> Routing:
        """Return the routing of one simulated step."""
        trained = self._source.first + step * self._source.stride

        def layer(index: int) -> LayerRouting:
            known = self._layers.get(index)
            if known is None or known.reached > trained:
                known = self._layers[index] = _Layer(self._source, self._setting, index)
            while known.reached < trained:
                self._step(known, learn=True)
            routing = self._step(known, learn=False)
            return routing if self._source.scores else _without_scores(routing)

        return Routing(layers=LayersOnDemand(layer, len(self._setting.model.moe_layers)), basis="assumed")

    def _step(self, layer: _Layer, *, learn: bool) -> LayerRouting:
        return layer.step(self.domain_of_tokens(layer.reached), self._token_start, learn=learn)

    def domain_of_tokens(self, step: int) -> Ints:
        """Return int[T], the domain of each token of a training step: the same in all layers."""
        if self._domains is None or self._domains[0] != step:
            self._domains = (step, _domains(self._source, self._setting, step))
        return self._domains[1]


class _Layer:
    """The router of one layer and its gate."""

    def __init__(self, source: Training, setting: Setting, index: int) -> None:
        self._source, self._setting, self._index = source, setting, index
        experts = setting.model.experts
        rng = setting.rng("source", "training", "start", index)
        self.state = RouterState(
            offsets=source.experts_start * rng.standard_normal(experts),
            domains=source.domain_start * rng.standard_normal((source.domains, experts)),
        )
        self._rates = Rates(
            feedback=source.feedback, domain_feedback=source.domain_feedback, gain=source.gain, decay=source.decay, drift=source.drift
        )
        self._gate: Choose = source.gate.begin(setting)
        self._limit: Limit = source.capacity.begin(setting)
        self._drawn: tuple[int, LayerRouting] | None = None
        self.reached = 0

    def step(self, domain: Ints, token_start: Ints, *, learn: bool) -> LayerRouting:
        """Return the routing of the step that the layer has reached; with ``learn`` also go on to the next step."""
        source, step, index = self._source, self.reached, self._index
        chosen = self._drawn[1] if self._drawn is not None and self._drawn[0] == step else self._draw(domain, token_start)
        self._drawn = (step, chosen)
        if not learn:
            return chosen
        kept = self._limit(chosen, step=step, moe_layer=index)
        if isinstance(self._gate, Learn):
            self._gate.learn(kept, step=step, moe_layer=index)
        advance(
            self.state,
            self._rates,
            logits=np.asarray(chosen.need_scores("a router that trains")),
            domain=domain,
            chosen=np.asarray(chosen.need_ids("a router that trains"), dtype=np.int64),
            counted=kept.routing.counts.sum(axis=0),
            group=self._groups(len(domain)),
            top_k=self._setting.model.top_k,
            balance=at_step(source.auxiliary, step),
            z=at_step(source.z, step),
            scoring=getattr(source.gate, "scoring", "softmax"),
            walk=self._setting.rng("source", "training", "walk", step, index).standard_normal(self._setting.model.experts),
        )
        self.reached += 1
        return chosen

    def _draw(self, domain: Ints, token_start: Ints) -> LayerRouting:
        step, index, experts = self.reached, self._index, self._setting.model.experts
        noise = self._setting.rng("source", "training", "tokens", step, index).standard_normal((len(domain), experts), dtype=np.float32)
        none = np.zeros((len(token_start) - 1, experts), dtype=np.int64)
        scored = LayerRouting(experts=experts, token_start=token_start, counts=none, scores=self.state.logits(domain, noise))
        frozen_at = self._source.freeze_gate_at
        return self._gate(scored, step=step if frozen_at is None else min(step, frozen_at), moe_layer=index)

    def _groups(self, tokens: int) -> Ints:
        """Return int[T], the group of each token for the balance loss."""
        if self._source.scope == "batch":
            return np.zeros(tokens, dtype=np.int64)
        per_gpu = self._setting.workload.tokens_per_gpu
        if self._source.scope == "micro_batch":
            return np.arange(tokens) // per_gpu
        sequences = -(-per_gpu // self._source.sequence_length)
        within = np.arange(per_gpu) // self._source.sequence_length
        return np.asarray((np.arange(tokens) // per_gpu) * sequences + np.tile(within, tokens // per_gpu))


def _domains(source: Training, setting: Setting, step: int) -> Ints:
    """Return int[T]: at the start of each sequence, and wherever a token does not stick, a new domain is drawn from the mixture."""
    mixture: Floats = np.ones(source.domains) if source.mixture is None else np.array(source.mixture)
    if source.shift is not None and step >= source.shift.at:
        mixture = np.array(source.shift.mixture)
    per_gpu, gpus = setting.workload.tokens_per_gpu, setting.gpus
    rng = setting.rng("source", "training", "domains", step)
    drawn = rng.choice(source.domains, size=gpus * per_gpu, p=mixture / mixture.sum())
    fresh = rng.random(gpus * per_gpu) >= source.stickiness
    fresh |= np.arange(gpus * per_gpu) % per_gpu % source.sequence_length == 0
    last: NDArray[np.int64] = np.maximum.accumulate(np.where(fresh, np.arange(fresh.size), 0))
    return np.asarray(drawn[last], dtype=np.int64)


def _without_scores(layer: LayerRouting) -> LayerRouting:
    return LayerRouting(experts=layer.experts, token_start=layer.token_start, counts=layer.counts, ids=layer.ids, weights=layer.weights)
