"""One run of the source ``training``: every layer's router, as far as it has come."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import PluginError
from moesim.facts.arrays import Floats, Ints
from moesim.facts.contracts import Choose, Learn, Limit
from moesim.facts.routing import LayerRouting, Routing
from moesim.facts.scenario import Setting
from moesim.models.capacity.dropless import keep_all
from moesim.models.gate.memory import Memory
from moesim.models.router.coefficients import at_step
from moesim.models.router.dynamics import RouterState, Tokens, advance
from moesim.models.router.law import Law
from moesim.models.source.on_demand import LayersOnDemand

if TYPE_CHECKING:
    from moesim.models.source.training import Training

TOO_FAR = 1e18
"""Scores of which exponentials, and gradients, are no numbers any more in single precision, or will not be after the next step."""

SPREADS = {"normal": 1.0, "gumbel": np.pi / 6**0.5, "uniform": 1 / 3**0.5}
"""Standard deviations of the laws of noise of the gate ``noisy_topk``, for an amount of 1."""


class Run:
    """It remembers how far every layer has come, and starts a layer again if an earlier step is asked for."""

    def __init__(self, source: Training, law: Law, setting: Setting) -> None:
        self._source, self._law, self._setting = source, law, setting
        self._token_start = np.arange(setting.gpus + 1, dtype=np.int64) * setting.workload.tokens_per_gpu
        self._layers: dict[int, _Layer] = {}
        self._sequence = _sequences(source, setting)
        self._tokens: dict[int, Tokens] = {}
        model = setting.model
        fitted = law.fitted_at == (model.experts, model.top_k)
        if source.freeze_gate_at is not None and memory_of(source.gate.begin(in_phase(setting, "training"))) is None:
            raise PluginError(
                f"routing.freeze_gate_at {source.freeze_gate_at}: the gate {source.gate.kind!r} has no biases that could stay as they are; "
                "leave freeze_gate_at out, or take a gate that has, such as loss_free or quantile"
            )
        self._basis = "fitted" if fitted else "assumed"
        self._notes = () if fitted or law.fitted_at is None else (_stretched(source.preset, law.fitted_at, setting),)

    def draw(self, step: int) -> Routing:
        """Return the routing of one simulated step."""
        trained = self._source.first + step * self._source.stride
        served = trained if self._source.serve_from is None else self._source.serve_from

        def layer(index: int) -> LayerRouting:
            known = self._layers.get(index)
            if known is None or known.reached > min(trained, served):
                known = self._layers[index] = _Layer(self._source, self._law, self._setting, index, self._token_start)
            while known.reached < min(trained, served):
                known.learn(self.tokens(known.reached))
            routing = known.choose(self.tokens(trained), trained)
            return routing if self._source.scores else _without_scores(routing)

        layers = LayersOnDemand(layer, len(self._setting.model.moe_layers))
        return Routing(layers=layers, basis=self._basis, notes=self._notes)

    def tokens(self, step: int) -> Tokens:
        """Return what the tokens of a training step are."""
        if step not in self._tokens:
            domain = _domains(self._source, self._setting, step)
            kind = None
            if self._law.has_kinds:
                frequency = 1.0 / np.arange(1, self._law.kinds + 1)
                draws = self._setting.rng("source", "training", "kinds", step).random(len(domain))
                kind = domain * self._law.kinds + np.searchsorted(np.cumsum(frequency / frequency.sum())[:-1], draws, side="right")
            # Every layer in turn asks for the step that it learns from and for the one that it shows: those two are remembered.
            while len(self._tokens) > 1:
                del self._tokens[next(iter(self._tokens))]
            self._tokens[step] = Tokens(domain=domain, sequence=self._sequence, kind=kind)
        return self._tokens[step]


class _Layer:
    """The router of one layer and its gate."""

    def __init__(self, source: Training, law: Law, setting: Setting, index: int, token_start: Ints) -> None:
        self._source, self._setting, self._index, self._token_start = source, setting, index, token_start
        self._law = law = law.of_layer(index, len(setting.model.moe_layers))
        experts = setting.model.experts
        rng = setting.rng("source", "training", "start", index)
        self.state = RouterState(
            offsets=law.experts_start * rng.standard_normal(experts),
            domains=law.domain_start * rng.standard_normal((source.domains, experts)),
            grown=np.zeros(experts),
            driven=rng.standard_normal(experts),
        )
        if law.has_kinds:
            rows = source.domains * law.kinds
            tastes = setting.rng("source", "training", "taste", index).standard_normal((rows, experts), dtype=np.float32)
            by_domain = tastes.reshape(source.domains, law.kinds, experts)
            by_domain[:, : law.shared_kinds] = by_domain[0, : law.shared_kinds]  # the same in all domains
            self.state.kinds = tastes
            self.state.moved = np.zeros_like(tastes) if law.kind_gain or law.kind_feedback else None
        self._gate: Choose = source.gate.begin(in_phase(setting, "training"))
        memory = memory_of(self._gate)
        if memory is not None:
            memory.until = min((at for at in (source.freeze_gate_at, source.serve_from) if at is not None), default=None)
        stays = memory is not None or isinstance(self._gate, Learn)
        self._serving = self._gate if stays else in_service(source.gate).begin(in_phase(setting, "prefill"))
        self._plain = source.gate.kind == "topk"
        self._limit: Limit = source.capacity.begin(setting)
        sequence = _sequences(source, setting)
        blocks = {"batch": np.zeros_like(sequence), "micro_batch": np.arange(sequence.size) // setting.workload.tokens_per_gpu}
        self._group = blocks.get(source.scope, sequence)
        self._sequences = int(sequence[-1]) + 1
        self._chosen: tuple[int, LayerRouting] | None = None
        self.reached = 0

    def choose(self, tokens: Tokens, step: int) -> LayerRouting:
        """Return the routing of a step: the one that the layer has reached, or one of service after it."""
        law, source = self._law, self._source
        in_training = source.serve_from is None or step < source.serve_from
        if self._chosen is None or self._chosen[0] != step:
            experts = self._setting.model.experts
            rng = self._setting.rng("source", "training", "tokens", step, self._index)
            noise = rng.standard_normal((len(tokens.domain), experts), dtype=np.float32)
            topics = rng.standard_normal((self._sequences, experts), dtype=np.float32) if law.sequence_share else None
            self._check_range(step)
            scores = self.state.logits(tokens, noise, topics, law=law)
            none = np.zeros((len(self._token_start) - 1, experts), dtype=np.int64)
            scored = LayerRouting(experts=experts, token_start=self._token_start, counts=none, scores=scores, domains=tokens.domain)
            gate = self._gate if in_training else self._serving
            wobble = at_step(source.noise, step) if in_training else 0.0
            if wobble:
                drawn = self._setting.rng("source", "training", "noise", step, self._index).standard_normal(scores.shape, dtype=np.float32)
                noisy = replace(scored, scores=scores + np.float32(wobble) * drawn)
                answer = replace(gate(noisy, step=step, moe_layer=self._index), scores=scored.scores)  # losses know no noise
            else:
                answer = gate(scored, step=step, moe_layer=self._index)
            if not in_training and isinstance(gate, Learn):
                gate.learn(keep_all(answer, step=step, moe_layer=self._index), step=step, moe_layer=self._index)
            self._chosen = (step, answer)
        return self._chosen[1]

    def _check_range(self, step: int) -> None:
        """Refuse a router whose coefficients have driven its scores out of the range of numbers."""
        reached = float(np.abs(self.state.offsets).max() + np.abs(self.state.domains).max())
        if not reached < TOO_FAR:
            weights = {name: at_step(getattr(self._source, name), step) for name in ("auxiliary", "z")}
            given = ", ".join(f"{name} {weight:g}" for name, weight in weights.items() if weight)
            raise PluginError(
                f"training step {step}, MoE layer {self._index}: the scores of the router have grown to {reached:.3g} and mean nothing any "
                f"more; give smaller coefficients{f' (now {given})' if given else ''} or constants"
            )

    def learn(self, tokens: Tokens) -> None:
        """Go on to the next step."""
        source, step, index = self._source, self.reached, self._index
        chosen = self.choose(tokens, step)
        kept = self._limit(chosen, step=step, moe_layer=index)
        if isinstance(self._gate, Learn):
            self._gate.learn(kept, step=step, moe_layer=index)
        model = self._setting.model
        routes = chosen.counts.sum()
        advance(
            self.state,
            self._law,
            logits=np.asarray(chosen.need_scores("a router that trains")),
            domain=tokens.domain,
            chosen=np.asarray(chosen.need_ids("a router that trains"), dtype=np.int64),
            counted=(kept.routing if source.learn_from == "kept" else chosen).counts.sum(axis=0),
            group=self._group,
            top_k=model.top_k,
            balance=at_step(source.auxiliary, step),
            z=at_step(source.z, step),
            scoring=getattr(source.gate, "scoring", "softmax"),
            walk=self._setting.rng("source", "training", "walk", step, index).standard_normal((1 + source.domains, model.experts)),
            kind=tokens.kind,
            pace=self._law.faded(step),
            pull=self._law.faded(step) ** 2,
            growth=self._law.grown(step + 1) - self._law.grown(step),
            plain=self._plain and not at_step(source.noise, step),
            noise=float(np.hypot(at_step(source.noise, step), gate_noise(source.gate, step, model.experts))),
            dropped=1.0 - float(kept.routing.counts.sum()) / max(float(routes), 1.0),
        )
        self.reached += 1


def _sequences(source: Training, setting: Setting) -> Ints:
    """Return int[T], the sequence of each token; the tokens of a GPU are cut into sequences, of which the last may be shorter."""
    per_gpu = setting.workload.tokens_per_gpu
    token = np.arange(setting.gpus * per_gpu)
    return np.asarray(token // per_gpu * -(-per_gpu // source.sequence_length) + token % per_gpu // source.sequence_length)


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
    return replace(layer, scores=None)


def memory_of(gate: Choose) -> Memory | None:
    """Return the biases of a gate, if it has any that its choices have made."""
    found = getattr(gate, "memory", None)
    return found if isinstance(found, Memory) else None


def gate_noise(gate: Any, step: int, experts: int) -> float:
    """Return the standard deviation of the noise that a gate adds to logits in a step; 0 if it adds none."""
    if gate.kind != "noisy_topk":
        return 0.0
    amount = 1.0 / experts if gate.amount is None else float(at_step(gate.amount, step))
    return amount * SPREADS[gate.law]


def in_phase(setting: Setting, phase: str) -> Setting:
    """Return the setting of another phase: what a router does in training does not depend on what the run is about."""
    return replace(setting, workload=replace(setting.workload, phase=phase))


def in_service(gate: Any) -> Any:
    """Return a gate without its noise: routers add some in training only."""
    return replace(gate, **{name: 0.0 for name in ("amount", "epsilon") if hasattr(gate, name)})


def _stretched(preset: str, fitted_at: tuple[int, int], setting: Setting) -> str:
    return (
        f"assumed, not fitted: the preset {preset} of the source training was fitted at {fitted_at[0]} experts, top {fitted_at[1]}, but "
        f"{setting.model.name} has {setting.model.experts}, top {setting.model.top_k}"
    )
