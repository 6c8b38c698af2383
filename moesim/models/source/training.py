"""A router that trains: imbalance that grows, and what balancing does about it, step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any

from moesim.base.errors import FieldError, PluginError
from moesim.base.fields import Choice, Count, CountOrZero, Flag, NotNegative, Number, section
from moesim.base.registry import PluginOf, plugin, register
from moesim.facts.contracts import Draw
from moesim.facts.routing import Fidelity
from moesim.facts.scenario import Setting
from moesim.models.router.coefficients import Coefficient, Deep, DeepPositive, DeepShare, at_depth
from moesim.models.router.law import LAWS, Law
from moesim.models.source.training_run import Run

SCOPES = ("micro_batch", "sequence", "batch")
CONSTANTS = tuple(item.name for item in fields(Law) if item.name not in {"fitted_at", "deep"})


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

    The logit of token t for expert e is ``offset_e + offset of the token's domain_e + the token's own part``, as in the source ``router``,
    but the offsets change after every step: by feedback (an expert with more than the mean load gains), by the gradients of the auxiliary
    loss and the z-loss, by decay and by a random walk. Biases and quantiles of gates are updated exactly. Domains of tokens stick: a token
    has the domain of the one before it with probability ``stickiness``.

    It says how loads, drops and step times develop under a strategy. It does not predict the loss of the model.

    Parameters
    ----------
    gate : plug-in
        How the router chooses while it trains: ``topk``, ``loss_free``, ``quantile``, ``noisy_topk``, ``input_jitter`` and so on. The
        scenario's own ``policy.gate`` stays ``as_given``.
    capacity : plug-in
        What is dropped before gates count; give it the rule of ``policy.capacity``. ``null`` drops nothing.
    learn_from : str
        Which routes feed back: those ``chosen`` (in recorded trainings, dropping tokens did not make experts less attractive), or those
        ``kept``.
    auxiliary : float or list
        Coefficient of the balance loss, or its corners ``[[step, coefficient], ...]``.
    scope : str
        Over which tokens the balance loss is taken: those of a GPU (``micro_batch``), of a ``sequence``, or of all GPUs (``batch``).
    z : float or list
        Coefficient of the router z-loss, or its corners.
    noise : float or list
        Standard deviation of normal noise that is added to every logit before the gate chooses, or its corners; it goes with every gate.
    freeze_gate_at : int or None
        The training step from which on the gate's biases stay as they are; for a gate that has some.
    serve_from : int or None
        The training step from which on the router is served instead of trained: offsets and biases stay as they are, gates add no noise and
        no jitter, and those that balance in training only choose as they do afterwards. New tokens come in every step. ``capacity`` no
        longer counts; what is dropped then is up to ``policy.capacity``.
    stride : int
        Training steps for each simulated step: with 20, a hundred simulated steps show two thousand.
    first : int
        The training step with which the simulation begins.
    preset : str
        Where the constants below come from that are left out: ``assumed``, or ``small-lm``, fitted to recorded trainings of a small
        language model (16 experts, top-2; see the documentation of this source).
    domains : int
        How many kinds of text there are.
    mixture : list of float or null
        Weight of each domain; equal if left out.
    stickiness : float
        Probability that a token has the domain of the token before it in its sequence.
    sequence_length : int
        Tokens of a sequence.
    shift : section or null
        A change of the mixture.
    scale, growth, settling, warmup, experts_start, domain_start, kinds, shared_kinds, kind_share, sequence_share : number, list or null
        How the router starts, and what tokens have in common; see :class:`moesim.models.router.law.Law`. All but ``warmup`` and the
        numbers of kinds may be corners ``[[depth, value], ...]``, with depth 0 in the first layer and 1 in the last.
    feedback, domain_feedback, kind_feedback, drive, fading, drift, domain_drift, decay : number, list or null
        How fast the router changes by itself, in logits and training steps; likewise, but for ``decay``.
    gain, domain_gain, kind_gain, common, limit, floor, memory, reach : number, list or null
        How far the gradients of losses move it; likewise, but for ``memory``.
    noise_push, noise_growth, drop_push, sigmoid_push : number, list or null
        What noise, drops and sigmoid scores add to feedback; likewise.
    scores : bool
        Keep float32[T, E] logits in every layer.

    Notes
    -----
    Positive feedback is what keeps a few experts alive and lets the others die without balancing (OLMoE, arXiv:2409.02060, figure 10). That
    it is linear in the excess load is an assumption; rates are assumed or fitted, as ``preset`` says. Routing has the basis ``fitted`` only
    where the model has as many experts and choices as the recordings.
    """

    gate: Annotated[Any, PluginOf("gate", "topk")] = field(default_factory=_default("gate", "topk"))
    capacity: Annotated[Any, PluginOf("capacity")] = field(default_factory=_default("capacity", "dropless"))
    learn_from: Annotated[str, Choice(("chosen", "kept"))] = "chosen"
    auxiliary: Coefficient = ((0, 0.0),)
    scope: Annotated[str, Choice(SCOPES)] = "micro_batch"
    z: Coefficient = ((0, 0.0),)
    noise: Coefficient = ((0, 0.0),)
    freeze_gate_at: Count | None = None
    serve_from: CountOrZero | None = None
    stride: Count = 1
    first: CountOrZero = 0
    preset: Annotated[str, Choice(tuple(LAWS))] = "assumed"
    domains: Count = 4
    mixture: tuple[NotNegative, ...] | None = None
    stickiness: Annotated[float, Number(0.0, 1.0)] = 0.95
    sequence_length: Count = 1024
    shift: Shift | None = None
    scale: DeepPositive | None = None
    growth: Deep | None = None
    settling: DeepPositive | None = None
    warmup: NotNegative | None = None
    experts_start: Deep | None = None
    domain_start: Deep | None = None
    kinds: Count | None = None
    shared_kinds: CountOrZero | None = None
    kind_share: DeepShare | None = None
    sequence_share: DeepShare | None = None
    feedback: Deep | None = None
    domain_feedback: Deep | None = None
    drive: Deep | None = None
    fading: DeepPositive | None = None
    gain: Deep | None = None
    domain_gain: Deep | None = None
    kind_feedback: Deep | None = None
    kind_gain: Deep | None = None
    common: Deep | None = None
    limit: DeepPositive | None = None
    floor: DeepPositive | None = None
    memory: Annotated[float, Number(0.0, 1.0)] | None = None
    reach: Deep | None = None
    noise_push: Deep | None = None
    noise_growth: Deep | None = None
    drop_push: Deep | None = None
    sigmoid_push: Deep | None = None
    decay: Annotated[float, Number(0.0, 1.0)] | None = None
    drift: Deep | None = None
    domain_drift: Deep | None = None
    scores: Flag = False

    def __post_init__(self) -> None:
        for name, mixture in (("mixture", self.mixture), ("shift", self.shift.mixture if self.shift else None)):
            if mixture is not None and len(mixture) != self.domains:
                raise FieldError(name, f"the mixture has {len(mixture)} weights for {self.domains} domains: give one for each")
            if mixture is not None and not sum(mixture):
                raise FieldError(name, "all weights of the mixture are 0: give at least one domain some")
        law = self.law()
        # Broken lines add up to one whose largest value is at a corner.
        shares = dict.fromkeys(("kind_share", "sequence_share"), ((0.0, 0.0),)) | dict(law.deep)
        for depth in sorted({0.0} | {corner[0] for name in ("kind_share", "sequence_share") for corner in shares[name]}):
            here = {name: at_depth(dict(law.deep).get(name, getattr(law, name)), depth) for name in ("kind_share", "sequence_share")}
            if sum(here.values()) > 1:
                told = f"kind_share {here['kind_share']:g} and sequence_share {here['sequence_share']:g}"
                where = "" if depth == 0 else f" at depth {depth:g}"
                raise FieldError("sequence_share", f"{told}{where} are more than the whole of a token's own part: together at most 1")

    def begin(self, setting: Setting) -> Draw:
        """Return the draws of one run.

        Raises
        ------
        PluginError
            If ``as_given`` is to choose, which has nothing to choose from, ranks have unequally many tokens, or a gate without biases
            shall keep them.
        """
        if self.gate.kind == "as_given":
            raise PluginError(
                "routing.gate of a training source must choose by scores, and as_given keeps choices that are there: use topk"
            )
        if setting.workload.ranks is not None:
            raise PluginError("a training source cuts equally many tokens of every GPU into sequences: leave workload.ranks out")
        return Run(self, self.law(), setting).draw

    @property
    def fidelity(self) -> Fidelity:
        """What policies get to know of the tokens."""
        return Fidelity.SCORES if self.scores else Fidelity.WEIGHTS

    def outside(self, steps: int) -> list[tuple[str, str]]:
        """Return what never happens in a run of so many simulated steps, as fields and what is wrong with them."""
        last = self.first + (steps - 1) * self.stride
        span = f"training steps {self.first} to {last} (first {self.first}, {steps} steps of stride {self.stride})"
        found = []
        if self.shift is not None and not self.first < self.shift.at <= last:
            wrong = f"the shift at training step {self.shift.at} is outside the run, which shows {span}"
            found.append(("shift.at", f"{wrong}: it must be after the first and at most the last of them"))
        for name in ("freeze_gate_at", "serve_from"):
            at = getattr(self, name)
            if at is not None and at > last:
                found.append((name, f"training step {at} is outside the run, which shows {span}: take an earlier one, or leave it out"))
        return found

    def law(self) -> Law:
        """Return the constants: the preset's, but for those that are given."""
        given = {name: getattr(self, name) for name in CONSTANTS if getattr(self, name) is not None}
        if not given:
            return LAWS[self.preset]
        corners = {name: value for name, value in given.items() if isinstance(value, tuple)}
        kept = {name: value for name, value in LAWS[self.preset].deep if name not in given}
        single = {name: value for name, value in given.items() if name not in corners}
        return replace(LAWS[self.preset], **single, deep=tuple((kept | corners).items()), fitted_at=None)
