"""A router as random logits: offsets of experts that last or drift, jitter of a step, noise of a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import FieldError
from moesim.base.fields import Choice, Flag, NotNegative, Number, Positive
from moesim.base.registry import register
from moesim.facts.contracts import Draw
from moesim.facts.model import MoeModel
from moesim.facts.routing import LayerRouting, Routing
from moesim.facts.scenario import Setting
from moesim.models.source.drifting import Drifting
from moesim.models.source.on_demand import LayersOnDemand

CHUNK = 1024
"""Tokens whose logits are made at a time, so that they stay in the cache; it changes the speed, not the numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterLaw:
    """The parameters of the logit model, in units of the standard deviation of a token's noise."""

    offsets: str
    scale: float
    degrees: float = 4.0
    jitter: float = 0.0
    fitted_at: tuple[int, int] | None = None
    """Experts of a layer and choices of a token where it was fitted to published numbers."""

    def draw_offsets(self, rng: np.random.Generator, experts: int) -> NDArray[Any]:
        """Return float32[E], what the experts of one layer are favoured by."""
        if self.offsets == "laplace":
            draws = rng.laplace(size=experts)
        elif self.offsets == "normal":
            draws = rng.standard_normal(experts)
        else:
            draws = rng.standard_t(self.degrees, size=experts)
        return np.asarray(self.scale * draws, dtype=np.float32)


PRESETS: dict[str, RouterLaw] = {
    # Fitted to the rank and expert statistics of DeepSeek-R1 at EP 32 on a translation set: TensorRT-LLM technical blog 4, Table 1.
    "deepseek-r1": RouterLaw(offsets="laplace", scale=0.32, jitter=0.05, fitted_at=(256, 8)),
    # Fitted to MaxVio_global of arXiv 2408.15664, Table 2 (64 routed experts, top-6): 0.72 and 0.52 with the auxiliary loss, 0.04 without.
    "aux-loss-1b": RouterLaw(offsets="normal", scale=0.15, fitted_at=(64, 6)),
    "aux-loss-3b": RouterLaw(offsets="normal", scale=0.11, fitted_at=(64, 6)),
    "loss-free": RouterLaw(offsets="normal", scale=0.0, fitted_at=(64, 6)),
}


def top_choices(logits: NDArray[Any], top_k: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the k largest logits of each row, largest first; equal logits go to the lower expert.

    Parameters
    ----------
    logits : float[T, E]
        No NaN.
    top_k : int
        1 to E.

    Returns
    -------
    ids : int32[T, k]
    values : float[T, k]
    """
    tokens, experts = logits.shape
    threshold = np.partition(logits, experts - top_k, axis=1)[:, experts - top_k, None]
    chosen = logits >= threshold
    crowded = np.flatnonzero(np.count_nonzero(chosen, axis=1) > top_k)
    if crowded.size:  # ties at the threshold: keep the lowest experts among them
        above = logits[crowded] > threshold[crowded]
        tied = logits[crowded] == threshold[crowded]
        room = top_k - np.count_nonzero(above, axis=1)
        chosen[crowded] = above | (tied & (np.cumsum(tied, axis=1) <= room[:, None]))
    ids = (np.flatnonzero(chosen) % experts).astype(np.int32).reshape(tokens, top_k)
    values = np.take_along_axis(logits, ids.astype(np.int64), axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(values, order, axis=1)


def softmax(values: NDArray[Any]) -> NDArray[Any]:
    """Return the softmax of each row; the first entry of a row is its largest."""
    raised = np.exp(values - values[:, :1])
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


@register("source", "router")
@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """Draw every token's logits and let it take the k largest.

    The logit of token t for expert e is ``offset_e + jitter_e + noise_te``: the offset belongs to the layer and lasts for the whole run,
    or drifts with a ``correlation``; the jitter is drawn anew for each step, the noise is standard normal. ``offsets`` is the law of the
    offsets and ``scale`` its scale: the diversity of a Laplace law (its standard deviation is 1.41 times that), the standard deviation of
    a normal law, the factor of a Student-t law of ``degrees`` degrees of freedom. Gate weights are the softmax over the chosen logits;
    ``scores`` keeps all logits, for gates that need them.

    Parameters
    ----------
    preset : str or None
        Parameters fitted to published numbers; keys that are written beside it take precedence. With null, ``offsets`` and
        ``scale`` must be there.
    offsets, scale, degrees, jitter : optional
        The law, see above.
    correlation : float or null
        Of an offset with itself a step later. Offsets then drift (an Ornstein-Uhlenbeck process) and keep their law at every step; with 1,
        or if left out, they last for the run. No published system is known well enough to fit it: an assumption.
    scores : bool
        Keep float32[T, E] logits in every layer.

    Notes
    -----
    Offsets heavier than normal and lighter than Student-t with 4 degrees reproduce the measured imbalance of ranks and experts
    together. The model leaves out co-activation of experts, more than one population of tokens, and group-limited choice. A preset was
    fitted at its own number of experts and k; with others its imbalance is an assumption, and every result says so.
    """

    preset: Annotated[str, Choice(tuple(PRESETS))] | None = "deepseek-r1"
    offsets: Annotated[str, Choice(("laplace", "normal", "student_t"))] | None = None
    scale: NotNegative | None = None
    degrees: Positive | None = None
    jitter: NotNegative | None = None
    correlation: Annotated[float, Number(0.0, 1.0)] | None = None
    scores: Flag = False

    def __post_init__(self) -> None:
        if self.preset is None:
            for name in ("offsets", "scale"):
                if getattr(self, name) is None:
                    raise FieldError(name, f"without a preset, {name} must be given (presets: {', '.join(PRESETS)})")
        if self.degrees is not None and self.law().offsets != "student_t":
            raise FieldError("degrees", f"degrees only matters with offsets: student_t, but offsets is {self.law().offsets}")

    def law(self) -> RouterLaw:
        """Return the parameters after the preset and the keys beside it are merged."""
        base = PRESETS[self.preset] if self.preset is not None else RouterLaw(offsets="normal", scale=0.0)
        return RouterLaw(
            offsets=base.offsets if self.offsets is None else self.offsets,
            scale=base.scale if self.scale is None else self.scale,
            degrees=base.degrees if self.degrees is None else self.degrees,
            jitter=base.jitter if self.jitter is None else self.jitter,
        )

    def misfit(self, model: MoeModel) -> str:
        """Say that the preset was fitted at another number of experts or choices than the model's; nothing if it was not."""
        if self.preset is None or (self.offsets is not None and self.scale is not None):
            return ""  # no number of the preset's imbalance is left
        fitted = PRESETS[self.preset].fitted_at
        if fitted is None or fitted == (model.experts, model.top_k):
            return ""
        return (
            f"assumed, not fitted: the router preset {self.preset} was fitted at {fitted[0]} experts, top {fitted[1]}, but {model.name} "
            f"has {model.experts} experts, top {model.top_k}; its imbalance there is a guess"
        )

    def begin(self, setting: Setting) -> Draw:
        """Return the draws of one run."""
        model = setting.model
        law = self.law()
        misfit = self.misfit(model)
        drift = None
        if self.correlation is not None:
            drift = Drifting(setting, law.offsets, law.scale, law.degrees, self.correlation)
        basis = (
            "assumed"
            if misfit or any(value is not None for value in (self.offsets, self.scale, self.degrees, self.jitter, drift))
            else "fitted"
        )
        notes = (misfit,) if misfit else ()

        def draw(step: int) -> Routing:
            token_start = setting.token_start(step)

            def layer(index: int) -> LayerRouting:
                if drift is None:
                    favour = law.draw_offsets(setting.rng("source", "router", "offsets", index), model.experts)
                else:
                    favour = drift.at(step, index).astype(np.float32)
                wobble = setting.rng("source", "router", "jitter", step, index).standard_normal(model.experts)
                favour = favour + np.asarray(law.jitter * wobble, dtype=np.float32)
                rng = setting.rng("source", "router", step, index)
                return _route(rng, favour, token_start, model.top_k, keep_scores=self.scores)

            return Routing(layers=LayersOnDemand(layer, len(model.moe_layers)), basis=basis, notes=notes)

        return draw


def _route(rng: np.random.Generator, favour: NDArray[Any], token_start: NDArray[Any], top_k: int, *, keep_scores: bool) -> LayerRouting:
    tokens, experts = int(token_start[-1]), favour.size
    ids = np.empty((tokens, top_k), dtype=np.int32)
    weights = np.empty((tokens, top_k), dtype=np.float32)
    scores = np.empty((tokens, experts), dtype=np.float32) if keep_scores else None
    buffer = np.empty((min(CHUNK, tokens), experts), dtype=np.float32)
    for first in range(0, tokens, CHUNK):
        here = slice(first, min(first + CHUNK, tokens))
        logits = buffer[: here.stop - first] if scores is None else scores[here]
        rng.standard_normal(dtype=np.float32, out=logits)
        logits += favour
        ids[here], chosen = top_choices(logits, top_k)
        weights[here] = softmax(chosen)
    return LayerRouting.of_tokens(ids, token_start, experts, weights=weights, scores=scores)
